//! Real PostgreSQL servers, each in its own folder on its own port, stopped when dropped.
//!
//! `initdb` runs once per major and its result is cached outside git; a server starts from a copy. Every hba line
//! asks for SCRAM unless the test says otherwise, and the Unix socket lives in a private folder, so that nothing
//! but the tested way leads in.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{chown, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{kill, Signal};
use nix::unistd::{Gid, Pid, Uid, User};

use crate::authority::{Authority, Leaf};
use crate::ports;

/// The superuser of every server under test.
pub const SUPERUSER: &str = "postgres";
/// Its password: unique, so that the canary scan can look for it.
pub const SUPERUSER_PASSWORD: &str = "canary-superuser-9f3b1c";

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Major {
    /// Debian's package.
    V15,
    /// From Maven Central, in the cache.
    V18,
}

impl Major {
    fn bin(self) -> Result<PathBuf> {
        let path = match self {
            Major::V15 => PathBuf::from("/usr/lib/postgresql/15/bin"),
            Major::V18 => cache()?.join("postgres-18/bin"),
        };
        ensure!(
            path.join("postgres").exists(),
            "PostgreSQL {self:?} is missing at {}: run `bash tests/setup/need.sh postgres postgres18`",
            path.display()
        );
        Ok(path)
    }

    /// The major number.
    pub fn number(self) -> u32 {
        match self {
            Major::V15 => 15,
            Major::V18 => 18,
        }
    }
}

/// How to start a server.
pub struct Options {
    /// Lines of `pg_hba.conf`, without the line for the harness itself.
    pub hba: Vec<String>,
    /// Lines of `postgresql.conf`.
    pub settings: Vec<String>,
    /// Serve TLS with a certificate for 127.0.0.1, localhost and this name.
    pub tls: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            hba: vec!["host all all 127.0.0.1/32 scram-sha-256".to_owned()],
            settings: Vec::new(),
            tls: None,
        }
    }
}

/// A running server.
pub struct Postgres {
    /// Its major version.
    pub major: Major,
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// The authority of its certificate.
    pub authority: Authority,
    folder: tempfile::TempDir,
    child: Child,
}

/// The folder of everything fetched or built for tests, outside git.
pub fn cache() -> Result<PathBuf> {
    let path = match std::env::var_os("SIDEGATE_CACHE") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache/sidegate"),
    };
    fs::create_dir_all(&path)?;
    Ok(path)
}

/// PostgreSQL refuses to run as root: then its Debian user runs it.
fn owner() -> Result<Option<(Uid, Gid)>> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    let user = User::from_name("postgres")?.context("user postgres is missing: install Debian's postgresql package")?;
    Ok(Some((user.uid, user.gid)))
}

fn command(program: &Path) -> Result<Command> {
    let mut command = Command::new(program);
    if let Some((uid, gid)) = owner()? {
        command.uid(uid.as_raw()).gid(gid.as_raw());
    }
    command
        .stdin(Stdio::null())
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("LC_ALL", "C.UTF-8")
        .env("TZ", "UTC");
    Ok(command)
}

fn give(path: &Path) -> Result<()> {
    if let Some((uid, gid)) = owner()? {
        chown(path, Some(uid.as_raw()), Some(gid.as_raw()))?;
    }
    Ok(())
}

/// A data folder as `initdb` leaves it; made once per major.
fn template(major: Major) -> Result<PathBuf> {
    // Not below HOME: the server's user must be able to read it.
    let folder = std::env::temp_dir().join(format!("sidegate-initdb-{}", Uid::effective()));
    fs::create_dir_all(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
    let lock = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(folder.join("lock"))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    let data = folder.join(format!("{}", major.number()));
    if data.join("PG_VERSION").exists() && data.join("ready").exists() {
        return Ok(data);
    }
    if data.exists() {
        fs::remove_dir_all(&data)?;
    }
    fs::create_dir(&data)?;
    give(&data)?;
    let password = folder.join("password");
    fs::write(&password, SUPERUSER_PASSWORD)?;
    give(&password)?;
    let output = command(&binary(major, "initdb")?)?
        .args([
            "-D",
            path(&data)?,
            "-U",
            SUPERUSER,
            "-A",
            "scram-sha-256",
            "--pwfile",
            path(&password)?,
        ])
        .args(["-E", "UTF8", "--locale", "C.UTF-8", "--no-sync"])
        .output()?;
    ensure!(
        output.status.success(),
        "initdb: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    fs::write(data.join("ready"), "")?;
    Ok(data)
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

/// Debian's user may not enter root's home, where the cache is: run 18 from a copy that everybody can read.
fn binary(major: Major, name: &str) -> Result<PathBuf> {
    let bin = major.bin()?;
    if major == Major::V15 || owner()?.is_none() {
        return Ok(bin.join(name));
    }
    let shared = std::env::temp_dir().join("sidegate-postgres-18");
    if !shared.join("bin/postgres").exists() {
        let root = bin.parent().context("a folder above bin")?;
        let fresh = tempfile::Builder::new().prefix("sidegate-postgres-18-").tempdir()?;
        let copied = Command::new("cp")
            .arg("-a")
            .arg(root)
            .arg(fresh.path().join("copy"))
            .status()?;
        ensure!(copied.success(), "copying PostgreSQL 18");
        fs::set_permissions(fresh.path().join("copy"), fs::Permissions::from_mode(0o755))?;
        // Another test may have won the race; its copy is as good as ours.
        let _ = fs::rename(fresh.path().join("copy"), &shared);
    }
    Ok(shared.join("bin").join(name))
}

impl Postgres {
    /// Starts a server with default options.
    pub fn start(major: Major) -> Result<Postgres> {
        Postgres::with(major, Options::default())
    }

    /// Starts a server.
    pub fn with(major: Major, options: Options) -> Result<Postgres> {
        let template = template(major)?;
        let folder = tempfile::Builder::new().prefix("sidegate-pg-").tempdir()?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        let data = folder.path().join("data");
        let copied = Command::new("cp").arg("-a").arg(&template).arg(&data).status()?;
        ensure!(copied.success(), "copying the data folder");
        let sockets = folder.path().join("socket");
        fs::create_dir(&sockets)?;
        fs::set_permissions(&sockets, fs::Permissions::from_mode(0o700))?;
        give(&sockets)?;
        let authority = Authority::new()?;
        let port = ports::free()?;
        write_settings(&data, &sockets, port, &options, &authority)?;
        let log = fs::File::create(folder.path().join("log"))?;
        let child = command(&binary(major, "postgres")?)?
            .args(["-D", path(&data)?])
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting postgres")?;
        let mut server = Postgres {
            major,
            port,
            authority,
            folder,
            child,
        };
        server.wait()?;
        Ok(server)
    }

    /// Waits until the server says that it accepts connections: its pid file ends in `ready`.
    fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        let pid_file = self.folder.path().join("data/postmaster.pid");
        loop {
            if fs::read_to_string(&pid_file).is_ok_and(|text| text.trim_end().ends_with("ready")) {
                return Ok(());
            }
            if self.child.try_wait()?.is_some() || Instant::now() > deadline {
                bail!("postgres did not start: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The server's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Runs SQL as superuser with `psql`, stopping at the first error; answers its output, unaligned.
    pub fn sql(&self, database: &str, sql: &str) -> Result<String> {
        let output = Command::new("psql")
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("PGPASSWORD", SUPERUSER_PASSWORD)
            .env("PGSSLMODE", "prefer")
            .env("PGCLIENTENCODING", "UTF8")
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1"])
            .args(["-p", &self.port.to_string(), "-U", SUPERUSER, "-d", database, "-c", sql])
            .stdin(Stdio::null())
            .output()?;
        ensure!(
            output.status.success(),
            "psql: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// Writes a file into the data folder, where every backend has its working directory; answers its path.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<PathBuf> {
        let file = self.folder.path().join("data").join(name);
        fs::write(&file, content)?;
        give(&file)?;
        Ok(file)
    }

    /// Sets settings for sessions to come and has the server read its files again; returns once it did.
    pub fn reconfigure(&self, settings: &[(&str, &str)]) -> Result<()> {
        let mut wanted = settings.to_vec();
        // A new value each time, so that it tells when the files were read.
        let stamp = uuid::Uuid::now_v7().to_string();
        wanted.push(("sidegate.read", &stamp));
        for (name, value) in &wanted {
            self.sql("postgres", &format!("ALTER SYSTEM SET {name} = '{value}'"))?;
        }
        self.sql("postgres", "SELECT pg_reload_conf()")?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.sql("postgres", "SELECT current_setting('sidegate.read', true)")? != stamp {
            ensure!(
                Instant::now() < deadline,
                "the server does not read its files: {}",
                self.log()
            );
        }
        Ok(())
    }

    /// Stops the server at once, as a crash would, and starts nothing again.
    pub fn kill(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGQUIT);
        let _ = self.child.wait();
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
    }
}

fn write_settings(data: &Path, sockets: &Path, port: u16, options: &Options, authority: &Authority) -> Result<()> {
    let mut settings = format!(
        "\nport = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nfsync = off\n\
         shared_buffers = 32MB\nmax_connections = 200\npassword_encryption = 'scram-sha-256'\nlogging_collector = off\n",
        sockets.display()
    );
    if let Some(name) = &options.tls {
        let Leaf { certificate, key } = authority.leaf(&["127.0.0.1", "localhost", name])?;
        fs::write(data.join("server.crt"), certificate)?;
        fs::write(data.join("server.key"), key)?;
        fs::set_permissions(data.join("server.key"), fs::Permissions::from_mode(0o600))?;
        give(&data.join("server.key"))?;
        settings.push_str("ssl = on\n");
    }
    for line in &options.settings {
        writeln!(settings, "{line}")?;
    }
    let file = data.join("postgresql.conf");
    let mut text = fs::read_to_string(&file)?;
    text.push_str(&settings);
    fs::write(&file, text)?;
    let mut hba = format!("host all {SUPERUSER} 127.0.0.1/32 scram-sha-256\n");
    for line in &options.hba {
        writeln!(hba, "{line}")?;
    }
    fs::write(data.join("pg_hba.conf"), hba)?;
    Ok(())
}
