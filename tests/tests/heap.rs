//! What is left of a credential in the memory of `sidegate up` once its session has ended and its lease is gone: nothing
//! that logs in. Broker and sidecar are one process there, so what the broker read is looked for, too.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{ensure, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::{Pid, Uid};
use sidegate_tests::heap::{Needles, NEW, OLD};
use sidegate_tests::patience::until;
use sidegate_tests::postgres::{Major, Options, Postgres};
use sidegate_tests::psql::{psql, Said};
use sidegate_tests::shop::{self, DATABASE, ROLE};
use sidegate_tests::{cli, ports};

/// `sidegate up`, ended with the test.
struct Up(Child);

impl Drop for Up {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

fn private(path: &Path, mode: u32) -> Result<()> {
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

fn secret(folder: &Path, password: &str) -> Result<()> {
    let inner = folder.join("secrets/data/shop-agent");
    fs::create_dir_all(&inner)?;
    for part in ["secrets", "secrets/data", "secrets/data/shop-agent"] {
        private(&folder.join(part), 0o700)?;
    }
    for (key, value) in [("username", ROLE), ("password", password)] {
        // Whole at every moment, as a mounted Secret is.
        let new = inner.join(format!(".{key}"));
        fs::write(&new, value)?;
        private(&new, 0o600)?;
        fs::rename(&new, inner.join(key))?;
    }
    Ok(())
}

fn up(folder: &Path, server: &Postgres, port: u16) -> Result<Up> {
    fs::create_dir(folder.join("config"))?;
    let config = shop::configuration(server.port, port, "", "");
    fs::write(folder.join("config/all.yaml"), config)?;
    let child = Command::new(cli::path()?)
        .args(["up", "--config", "config", "--secrets", "secrets", "--state", "state"])
        .args(["--as", "agents/support"])
        .current_dir(folder)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", folder)
        .stdin(Stdio::null())
        .stdout(fs::File::create(folder.join("said"))?)
        .stderr(fs::File::create(folder.join("log"))?)
        .spawn()?;
    Ok(Up(child))
}

fn change(server: &Postgres, password: &str) -> Result<()> {
    server
        .sql("postgres", &format!("ALTER ROLE {ROLE} PASSWORD '{password}'"))
        .map(|_| ())
}

/// A lease is refused by the server and dropped for a fresh one: of the password that it carried, and of what was
/// derived from it, nothing is in the process any more, while all of the new one is found.
#[test]
fn nothing_of_a_password_is_left_once_its_lease_is_gone() -> Result<()> {
    if !Uid::effective().is_root() {
        eprintln!("heap: SKIPPED: who is not root may not read the memory of a process that made itself undumpable");
        return Ok(());
    }
    let server = shop::server(Major::V18, Options::default())?;
    ensure!(server.sql("postgres", "SHOW password_encryption")? == "scram-sha-256");
    change(&server, OLD)?;
    let old = Needles::password(&server, ROLE, OLD)?;
    let folder = tempfile::Builder::new().prefix("sidegate-heap-").tempdir()?;
    secret(folder.path(), OLD)?;
    let port = ports::free()?;
    let up = up(folder.path(), &server, port)?;
    let pid = up.0.id();
    let read = || psql(port, DATABASE, &["SELECT name FROM app.people WHERE id = 1"]);
    let served = |said: &Said| said.out == "Ada";
    until("the read", read, served)?;
    let held = old.held_by(pid)?;
    for name in ["the password, ", "the salted password, "] {
        let seen = held.iter().any(|found| found.starts_with(name));
        ensure!(seen, "the search does not find {name}which a lease carries: {held:#?}");
    }

    change(&server, NEW)?;
    secret(folder.path(), NEW)?;
    until("the read with the new password", read, served)?;
    let new = Needles::default().secret("the new password", NEW.as_bytes());
    ensure!(!new.held_by(pid)?.is_empty(), "the lease that is held is not found");
    until("nothing is left", || old.held_by(pid), Vec::is_empty)?;
    drop(up);
    Ok(())
}
