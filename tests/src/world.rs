//! A [`World`]: broker and sidecar in this process, on files in a temporary folder, exactly as `sidegate up` runs
//! them. Tests write policies as text, connect to the local port as the agent would, and look at the records after.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use nix::unistd::Uid;
use sidegate_broker::app::Broker;
use sidegate_broker::config::{BrokerConfig, Identity, Machine, StartError};
use sidegate_sidecar::app::Sidecar;
use sidegate_sidecar::authority::Separation;
use sidegate_sidecar::broker::Url;
use sidegate_sidecar::config::{Announced, PodFacts, SidecarConfig};
use sidegate_sidecar::staleness::Limits;

/// A running instance.
pub struct World {
    /// The broker.
    pub broker: sidegate_broker::app::Running,
    /// The sidecar.
    pub sidecar: sidegate_sidecar::app::Running,
    folder: tempfile::TempDir,
}

/// How a world is made.
#[derive(Debug, Clone)]
pub struct Setup {
    config: String,
    secrets: Vec<(String, String)>,
    identity: Identity,
    name_servers: Vec<std::net::SocketAddr>,
    memory_limit: Option<u64>,
    ports: Vec<Announced>,
    staleness: Limits,
}

impl Setup {
    /// A world on this configuration, for the agent `agents/support`.
    pub fn new(config: impl Into<String>) -> Setup {
        Setup {
            config: config.into(),
            secrets: Vec::new(),
            identity: Identity {
                namespace: "agents".into(),
                service_account: "support".into(),
                ..Identity::default()
            },
            name_servers: Vec::new(),
            memory_limit: None,
            ports: Vec::new(),
            staleness: Limits::default(),
        }
    }

    /// Adds one key of a Secret, named `NAMESPACE/NAME/KEY`.
    pub fn secret(mut self, path: &str, value: &str) -> Setup {
        self.secrets.push((path.to_owned(), value.to_owned()));
        self
    }

    /// Asks this name server.
    pub fn name_server(mut self, address: std::net::SocketAddr) -> Setup {
        self.name_servers.push(address);
        self
    }

    /// Lets the process have so many bytes of memory.
    pub fn memory(mut self, bytes: u64) -> Setup {
        self.memory_limit = Some(bytes);
        self
    }

    /// Announces a port, as the environment of an injected pod does.
    pub fn port(mut self, announced: Announced) -> Setup {
        self.ports.push(announced);
        self
    }

    /// Lets the broker be silent for so long.
    pub fn staleness(mut self, limits: Limits) -> Setup {
        self.staleness = limits;
        self
    }

    /// Starts broker and sidecar and waits until the first bundle is in force.
    pub async fn start(self) -> Result<World> {
        let (place, broker) = self.place().await?;
        let sidecar = place.sidecar().await?;
        ensure!(
            sidecar.ready(Duration::from_secs(20)).await,
            "no bundle came into force: {:?}",
            broker.status()
        );
        Ok(World {
            broker,
            sidecar,
            folder: place.folder,
        })
    }

    /// Starts the broker alone: broker and sidecar are then stopped and started as the test wants.
    pub async fn place(self) -> Result<(Place, sidegate_broker::app::Running)> {
        let folder = tempfile::Builder::new().prefix("sidegate-world-").tempdir()?;
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("config"))?;
        fs::write(path("config/all.yaml"), &self.config)?;
        private(&path("secrets"))?;
        for (name, value) in &self.secrets {
            let file = path("secrets").join(name);
            let above = file.parent().context("NAMESPACE/NAME/KEY")?;
            private(above.parent().context("NAMESPACE/NAME/KEY")?)?;
            private(above)?;
            fs::write(&file, value)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        }
        private(&path("state"))?;
        let machine = Machine {
            config_dirs: vec![path("config")],
            secrets_dir: Some(path("secrets")),
            identity: self.identity,
        };
        let mut config = BrokerConfig::new(machine.into(), path("state"));
        config.health_listen = Some((std::net::Ipv4Addr::LOCALHOST, 0).into());
        config.loopback_providers = true;
        let broker = Broker::start(config.clone()).await.map_err(|error| match error {
            StartError::Config(problems) => {
                let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
                anyhow::anyhow!("{}", lines.join("\n"))
            }
            other => other.into(),
        })?;
        config.listen = broker.front_addr;
        let local = broker.local().context("a broker of one machine")?;
        let sidecar = SidecarConfig {
            broker: Url::parse(&broker.front_url)?,
            broker_ca_pem: broker.ca_pem.clone(),
            token_file: local.token_file(),
            ports: self.ports,
            name_servers: self.name_servers,
            run_dir: path("run"),
            journal_dir: path("journal"),
            allow_loopback_literals: true,
            separation: Separation::None,
            agent_uid: Some(Uid::effective().as_raw()),
            lanes: sidegate_sidecar::task::LANES,
            cluster_domain: None,
            memory_limit: self.memory_limit,
            metrics: vec![(std::net::Ipv4Addr::LOCALHOST, 0).into()],
            staleness: self.staleness,
            fenced: false,
            waits: false,
            pod: PodFacts {
                uid: local.pod_uid().to_owned(),
                ..PodFacts::default()
            },
        };
        let place = Place {
            folder,
            broker: config,
            sidecar,
        };
        Ok((place, broker))
    }
}

/// Where a broker and a sidecar are started, one as often as the other.
pub struct Place {
    /// Everything they keep.
    pub folder: tempfile::TempDir,
    /// The broker's configuration, at the address it had first.
    pub broker: BrokerConfig,
    /// The sidecar's.
    pub sidecar: SidecarConfig,
}

impl Place {
    /// Starts a broker where the first one was.
    pub async fn broker(&self) -> Result<sidegate_broker::app::Running> {
        Ok(Broker::start(self.broker.clone()).await?)
    }

    /// Starts a sidecar, and waits for nothing.
    pub async fn sidecar(&self) -> Result<sidegate_sidecar::app::Running> {
        Ok(Sidecar::start(self.sidecar.clone()).await?)
    }
}

fn private(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    Ok(())
}

impl World {
    /// The record store.
    pub fn records(&self) -> PathBuf {
        self.folder.path().join("state/records")
    }

    /// The state folder, for control calls.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Replaces the configuration; the broker picks it up by itself.
    pub fn configure(&self, config: &str) -> Result<()> {
        Ok(fs::write(self.folder.path().join("config/all.yaml"), config)?)
    }

    /// Stops both halves, records sealed; answers the folder, so that the records can be looked at.
    pub async fn stop(self) -> tempfile::TempDir {
        self.sidecar.shutdown().await;
        self.broker.shutdown().await;
        self.folder
    }
}
