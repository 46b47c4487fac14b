//! The field: one PostgreSQL, and each way to reach it: direct, PgBouncer (session pooling), HAProxy (tcp),
//! Sidegate with everything on (100 rules, parse, mask check, record `Journal`).

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use sidegate_tests::ports;
use sidegate_tests::postgres::{Major, Options, Postgres};

/// The user the benches log in as where nothing asks for a password.
pub const USER: &str = "bench";
/// The password Sidegate logs in with.
pub const PASSWORD: &str = "bench-secret-canary";
/// The database.
pub const DATABASE: &str = "bench";

/// One way to reach the server.
pub struct Contender {
    /// Its name in tables.
    pub name: &'static str,
    /// Its port.
    pub port: u16,
    /// Processes whose CPU is its cost; none for direct.
    pub pids: Vec<u32>,
}

/// Every contender, with what keeps it running.
pub struct Field {
    /// In a fixed order; rounds rotate it.
    pub contenders: Vec<Contender>,
    /// Versions, for the report.
    pub versions: Vec<(String, String)>,
    _server: Postgres,
    _children: Vec<Running>,
    _folder: tempfile::TempDir,
}

/// A child process that ends with this value.
pub struct Running(Child);

impl Running {
    /// A child that was started.
    pub fn of(child: Child) -> Running {
        Running(child)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if matches!(self.0.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server that trusts the bench user locally and asks Sidegate's user for SCRAM.
pub fn server() -> Result<Postgres> {
    let options = Options {
        hba: vec![
            format!("host all {USER} 127.0.0.1/32 trust"),
            "host all gate 127.0.0.1/32 scram-sha-256".to_owned(),
        ],
        settings: vec![
            "shared_buffers = 256MB".into(),
            "max_connections = 300".into(),
            "autovacuum = off".into(),
        ],
        tls: None,
    };
    let server = Postgres::with(Major::V15, options)?;
    server.sql(
        "postgres",
        &format!("CREATE ROLE {USER} LOGIN SUPERUSER; CREATE ROLE gate LOGIN SUPERUSER PASSWORD '{PASSWORD}'"),
    )?;
    server.sql("postgres", &format!("CREATE DATABASE {DATABASE}"))?;
    Ok(server)
}

impl Field {
    /// Starts everything on a fresh pgbench database of scale 10.
    pub fn start() -> Result<Field> {
        let server = server()?;
        println!("Filling the pgbench tables (scale 10)...");
        let filled = Command::new("pgbench")
            .args([
                "-i",
                "-q",
                "-s",
                "10",
                "-h",
                "127.0.0.1",
                "-p",
                &server.port.to_string(),
                "-U",
                USER,
                DATABASE,
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        if !filled.success() {
            bail!("pgbench -i failed");
        }
        let folder = tempfile::Builder::new().prefix("sidegate-bench-").tempdir()?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        let (bouncer, bouncer_port) = pgbouncer(folder.path(), server.port)?;
        let (haproxy, haproxy_port) = haproxy(folder.path(), server.port)?;
        let (gate, gate_port) = sidegate(folder.path(), server.port, &["SELECT"])?;
        let contenders = vec![
            Contender {
                name: "direct",
                port: server.port,
                pids: vec![],
            },
            Contender {
                name: "pgbouncer",
                port: bouncer_port,
                pids: vec![bouncer.pid()],
            },
            Contender {
                name: "haproxy",
                port: haproxy_port,
                pids: vec![haproxy.pid()],
            },
            Contender {
                name: "sidegate",
                port: gate_port,
                pids: vec![gate.pid()],
            },
        ];
        let versions = vec![
            ("postgresql".to_owned(), server.sql("postgres", "show server_version")?),
            ("pgbouncer".to_owned(), version("pgbouncer", "--version")?),
            ("haproxy".to_owned(), version("haproxy", "-v")?),
        ];
        Ok(Field {
            contenders,
            versions,
            _server: server,
            _children: vec![bouncer, haproxy, gate],
            _folder: folder,
        })
    }
}

fn version(program: &str, flag: &str) -> Result<String> {
    let output = Command::new(program).arg(flag).output()?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .next()
        .unwrap_or("")
        .to_owned())
}

fn pgbouncer(folder: &Path, server: u16) -> Result<(Running, u16)> {
    let port = ports::free()?;
    let users = folder.join("pgbouncer.users");
    fs::write(&users, format!("\"{USER}\" \"\"\n"))?;
    let file = folder.join("pgbouncer.ini");
    fs::write(
        &file,
        format!(
            "[databases]\n{DATABASE} = host=127.0.0.1 port={server} user={USER}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = session\n\
             max_client_conn = 500\ndefault_pool_size = 200\nlogfile =\npidfile =\nlog_connections = 0\nlog_disconnections = 0\n\
             ignore_startup_parameters = extra_float_digits\n",
            users.display()
        ),
    )?;
    let mut command = Command::new("pgbouncer");
    command.arg("-q").arg(&file);
    if nix::unistd::Uid::effective().is_root() {
        command.args(["-u", "postgres"]);
    }
    let child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting pgbouncer")?;
    listening(port)?;
    Ok((Running(child), port))
}

fn haproxy(folder: &Path, server: u16) -> Result<(Running, u16)> {
    let port = ports::free()?;
    let file = folder.join("haproxy.cfg");
    fs::write(
        &file,
        format!(
            "global\n  maxconn 1000\n  nbthread 2\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
             listen pg\n  bind 127.0.0.1:{port}\n  server pg 127.0.0.1:{server}\n"
        ),
    )?;
    let child = Command::new("haproxy")
        .arg("-db")
        .arg("-f")
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    listening(port)?;
    Ok((Running(child.context("starting haproxy")?), port))
}

/// The program built beside this one.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    if !path.exists() {
        bail!("{} is not built: use `make bench`", path.display());
    }
    Ok(path)
}

/// Writes the configuration every Sidegate row uses: 100 rules, masks on other tables, record `Journal`.
pub fn configuration(folder: &Path, server: u16, gate: u16, content: &str, masked: Option<&str>) -> Result<()> {
    let (config, secret) = (folder.join("config"), folder.join("secrets/data/bench"));
    fs::create_dir_all(&config)?;
    fs::create_dir_all(&secret)?;
    for (key, value) in [("username", "gate"), ("password", PASSWORD)] {
        fs::write(secret.join(key), value)?;
        fs::set_permissions(secret.join(key), fs::Permissions::from_mode(0o600))?;
    }
    for private in [folder.join("secrets"), folder.join("secrets/data"), secret] {
        fs::set_permissions(private, fs::Permissions::from_mode(0o700))?;
    }
    let mut rules = String::new();
    for n in 0..98 {
        rules.push_str(&format!(
            "  - {{name: team-{n}, effect: Deny, sql: {{commands: [Update, Delete], tables: [team_{n}.*]}}, when: \"!sql.filtered\"}}\n"
        ));
    }
    let masked = masked.unwrap_or("app.customers.ssn");
    let policy = format!(
        "apiVersion: sidegate.dev/v1alpha1\nkind: Target\nmetadata: {{name: bench, namespace: data}}\nspec:\n  protocol: Postgres\n\
         \x20 address: {{host: 127.0.0.1, port: {server}}}\n  tls: {{mode: Disabled}}\n  credential: {{secret: {{name: bench}}}}\n\
         \x20 listen: {{port: {gate}}}\n  recording: {{durability: Journal, content: {content}}}\n\
         \x20 allowedNamespaces: {{selector: {{}}}}\n---\n\
         apiVersion: sidegate.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: bench, namespace: data}}\nspec:\n\
         \x20 targetRefs: [{{name: bench}}]\n  subjects: [{{serviceAccount: {{namespace: local, name: agent}}}}]\n  rules:\n{rules}\
         \x20 - {{name: write, effect: Allow, sql: {{commands: [Insert, Update, Delete], tables: [public.*]}}}}\n\
         \x20 - {{name: read, effect: Allow, sql: {{commands: [Select], tables: [public.*]}}}}\n\
         \x20 masks:\n  - {{columns: [{masked}], as: {{keepLast: {{count: 4}}}}}}\n"
    );
    fs::write(config.join("bench.yaml"), policy)?;
    Ok(())
}

fn sidegate(folder: &Path, server: u16, _commands: &[&str]) -> Result<(Running, u16)> {
    let gate = ports::free()?;
    configuration(folder, server, gate, "Statements", None)?;
    Ok((up(folder)?, gate))
}

/// Starts `sidegate up` on a folder written by [`configuration`] and waits until it is ready.
pub fn up(folder: &Path) -> Result<Running> {
    let mut child = Command::new(program("sidegate")?)
        .args(["up", "--config", "config", "--secrets", "secrets", "--state", "state"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting sidegate")?;
    let mut said = String::new();
    let mut lines = BufReader::new(child.stderr.take().context("its standard error")?).lines();
    for line in lines.by_ref() {
        let line = line?;
        if line.contains("is ready") {
            // Keep reading, so that it never blocks on a full pipe.
            std::thread::spawn(move || lines.for_each(drop));
            return Ok(Running(child));
        }
        said.push_str(&line);
        said.push('\n');
    }
    bail!("sidegate did not start:\n{said}")
}

/// Waits until something listens on a port.
pub fn listening(port: u16) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("nothing listens on port {port}")
}
