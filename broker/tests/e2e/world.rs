//! A broker over temporary folders, with a clock the test moves.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sidegate_broker::clock::ManualClock;
use sidegate_broker::ground::{self, Ground, Read};
use sidegate_broker::{Broker, BrokerConfig, Identity, Machine, Running, StartError};

use crate::client::Client;

pub const CONFIG: &str = r#"
apiVersion: sidegate.dev/v1alpha1
kind: Target
metadata: {name: shop, namespace: local}
spec:
  protocol: Postgres
  address: {host: db.example, port: 5432}
  credential: {secret: {name: shop-agent}}
  listen: {port: 15432}
---
apiVersion: sidegate.dev/v1alpha1
kind: Target
metadata: {name: warehouse, namespace: local}
spec:
  protocol: Postgres
  address: {host: db.example, port: 5433}
  credential: {token: {audience: warehouse, scopes: [read, write], username: reader}}
  listen: {port: 15433}
---
apiVersion: sidegate.dev/v1alpha1
kind: Target
metadata: {name: elsewhere, namespace: other}
spec:
  protocol: Postgres
  address: {host: db.example, port: 5434}
  credential: {secret: {name: shop-agent}}
  listen: {port: 15434}
---
apiVersion: sidegate.dev/v1alpha1
kind: AccessPolicy
metadata: {name: agents, namespace: local}
spec:
  targetRefs: [{name: shop}, {name: warehouse}]
  subjects: [{serviceAccount: {namespace: local, name: agent}}]
  rules:
  - {name: read, effect: Allow, sql: {commands: [Select], tables: ["app.*"]}}
  - name: refund
    effect: Ask
    sql: {commands: [Update], tables: [app.orders]}
    ask: {approvers: [{anyone: {}}], holdFor: 60s, validFor: 15m}
"#;

/// The files of [`CONFIG`], and the password it leads to.
pub fn files(root: &Path, config: &str) {
    fs::create_dir_all(root.join("config")).unwrap();
    fs::write(root.join("config/all.yaml"), config).unwrap();
    let secret = root.join("secrets/local/shop-agent");
    fs::create_dir_all(&secret).unwrap();
    put_secret(&secret.join("username"), "agent_ro");
    put_secret(&secret.join("password"), PASSWORD);
}

/// What nobody but a sidecar may see.
pub const PASSWORD: &str = "canary-4711";

pub struct World {
    pub temp: tempfile::TempDir,
    pub clock: Arc<ManualClock>,
    pub running: Running,
}

impl World {
    pub async fn start() -> Self {
        Self::try_start(CONFIG).await.unwrap_or_else(|error| panic!("{error}"))
    }

    pub async fn try_start(config: &str) -> Result<Self, StartError> {
        Self::start_with(config, |_| {}).await
    }

    /// With a configuration that is changed before it starts.
    pub async fn start_with(config: &str, change: impl FnOnce(&mut BrokerConfig)) -> Result<Self, StartError> {
        let temp = tempfile::tempdir().unwrap();
        files(temp.path(), config);
        let clock = Arc::new(ManualClock::starting_now());
        let mut config = configuration(temp.path(), clock.clone());
        change(&mut config);
        let running = Broker::start(config).await?;
        Ok(World { temp, clock, running })
    }

    /// On a ground that is changed before anything stands on it: what no configuration may say yet.
    pub async fn start_on(config: &str, change: impl FnOnce(&mut Ground)) -> Self {
        let temp = tempfile::tempdir().unwrap();
        files(temp.path(), config);
        let clock = Arc::new(ManualClock::starting_now());
        let config = configuration(temp.path(), clock.clone());
        let read = match Read::config(&config) {
            Ok(Read::Machine(read)) => read,
            Ok(Read::Cluster(_)) => panic!("files make no cluster"),
            Err(error) => panic!("{error:?}"),
        };
        let running = Broker::start_on(config.clone(), |state, _| {
            let mut ground = ground::machine(read, &config, state)?;
            change(&mut ground);
            Ok(ground)
        });
        let running = running.await.unwrap_or_else(|error| panic!("{error}"));
        World { temp, clock, running }
    }

    /// Stops the broker and starts another one over the same folders.
    pub async fn restart(self) -> Self {
        self.restart_after(0).await
    }

    /// The same, with so many milliseconds in between.
    pub async fn restart_after(self, ms: i64) -> Self {
        let World { temp, clock, running } = self;
        running.shutdown().await;
        clock.advance_ms(ms);
        let running = Broker::start(configuration(temp.path(), clock.clone())).await.unwrap();
        World { temp, clock, running }
    }

    /// Puts another configuration in its place, and returns once it is taken up.
    pub async fn configured_by(&self, config: &str) {
        let mut index = self.running.front().index.clone();
        index.borrow_and_update();
        fs::write(self.path("config/all.yaml"), config).unwrap();
        let changed = tokio::time::timeout(std::time::Duration::from_secs(9), index.changed());
        changed.await.expect("the configuration is not taken up").unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    pub fn token(&self) -> String {
        fs::read_to_string(self.running.local().unwrap().token_file()).unwrap()
    }

    pub fn client(&self) -> Client {
        Client::new(&self.running.front_url, &self.running.ca_pem, self.clock.clone())
    }

    /// The page of metrics.
    pub fn page(&self) -> String {
        let front = self.running.front();
        String::from_utf8(front.metrics.text(front).unwrap().0).unwrap()
    }

    /// It has this line.
    #[track_caller]
    pub fn shows(&self, line: &str) {
        let page = self.page();
        assert!(page.lines().any(|shown| shown == line), "{line}\n{page}");
    }

    /// A client with a session.
    pub async fn sidecar(&self) -> Client {
        let mut client = self.client();
        client.login(&self.token()).await;
        client
    }
}

pub fn put_secret(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn configuration(root: &Path, clock: Arc<ManualClock>) -> BrokerConfig {
    let machine = Machine {
        config_dirs: vec![root.join("config")],
        secrets_dir: Some(root.join("secrets")),
        identity: Identity {
            labels: [("tier".to_owned(), "one".to_owned())].into(),
            ..Identity::default()
        },
    };
    let mut config = BrokerConfig::new(machine.into(), root.join("state"));
    config.health_listen = Some(([127, 0, 0, 1], 0).into());
    config.clock = clock;
    config.loopback_providers = true;
    config
}
