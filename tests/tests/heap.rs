//! What is left of a credential in the memory of `sidegate up` once its session has ended and its lease is gone: nothing
//! that logs in. Broker and sidecar are one process there, so what the broker read is looked for, too.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{ensure, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::{Pid, Uid};
use serde_json::Value;
use sidegate_tests::bearer::{self, AUDIENCE};
use sidegate_tests::heap::{bearers, Needles, NEW, OLD};
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

/// Who is not root is told that nothing is searched.
fn may_look() -> bool {
    let root = Uid::effective().is_root();
    if !root {
        eprintln!("heap: SKIPPED: who is not root may not read the memory of a process that made itself undumpable");
    }
    root
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

fn up(folder: &Path, config: &str) -> Result<Up> {
    fs::create_dir(folder.join("config"))?;
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

/// How a server has its password told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Login {
    Scram,
    Md5,
    Cleartext,
}

impl Login {
    /// A server that takes no other.
    fn server(self) -> Result<Postgres> {
        let (major, method, stored) = match self {
            Login::Scram => (Major::V18, "scram-sha-256", "scram-sha-256"),
            Login::Md5 => (Major::V15, "md5", "md5"),
            Login::Cleartext => (Major::V18, "password", "scram-sha-256"),
        };
        shop::server(
            major,
            Options {
                hba: vec![format!("host all all 127.0.0.1/32 {method}")],
                settings: vec![format!("password_encryption = '{stored}'")],
                tls: Some("db.internal".to_owned()),
            },
        )
    }

    fn configuration(self, server: &Postgres, port: u16) -> String {
        let config = shop::configuration(server.port, port, "", "");
        let tls = shop::tls_by(server.authority.pem());
        match self {
            Login::Scram => config,
            Login::Md5 | Login::Cleartext => {
                config.replace("tls: {mode: Disabled}", &format!("{tls}\n  weakLogin: InsideTLS"))
            }
        }
    }

    /// What logs in as the role, and which of it a lease carries.
    fn needles(self, server: &Postgres, password: &str) -> Result<(Needles, &'static [&'static str])> {
        let plain = || Needles::default().secret("the password", password.as_bytes());
        Ok(match self {
            Login::Scram => {
                let needles = Needles::password(server, ROLE, password)?;
                (needles, &["the password, ", "the salted password, "])
            }
            Login::Md5 => {
                let query = format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{ROLE}'");
                let stored = server.sql("postgres", &query)?;
                let digest = stored.strip_prefix("md5").context("what is stored is no MD5")?;
                (plain().secret("its digest", digest.as_bytes()), &["the password, "])
            }
            Login::Cleartext => (plain(), &["the password, "]),
        })
    }
}

fn change(server: &Postgres, password: &str) -> Result<()> {
    server
        .sql("postgres", &format!("ALTER ROLE {ROLE} PASSWORD '{password}'"))
        .map(|_| ())
}

/// A lease is refused by the server and dropped for a fresh one: of the password that it carried, and of what was
/// derived from it, nothing is in the process any more, while all of the new one is found.
fn nothing_is_left(login: Login) -> Result<()> {
    if !may_look() {
        return Ok(());
    }
    let server = login.server()?;
    change(&server, OLD)?;
    let (old, carried) = login.needles(&server, OLD)?;
    let folder = tempfile::Builder::new().prefix("sidegate-heap-").tempdir()?;
    secret(folder.path(), OLD)?;
    let port = ports::free()?;
    let up = up(folder.path(), &login.configuration(&server, port))?;
    let pid = up.0.id();
    let read = || psql(port, DATABASE, &["SELECT name FROM app.people WHERE id = 1"]);
    let served = |said: &Said| said.out == "Ada";
    until("the read", read, served)?;
    let held = old.held_by(pid)?;
    for name in carried {
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

/// A token of the broker's own, refused by the server and dropped for a fresh one: nothing of its signature is in the process
/// any more, without which it is no token.
#[test]
fn nothing_of_a_token_is_left_once_its_lease_is_gone() -> Result<()> {
    if !may_look() {
        return Ok(());
    }
    let server = bearer::server()?;
    let folder = tempfile::Builder::new().prefix("sidegate-heap-").tempdir()?;
    let (port, keys) = (ports::free()?, folder.path().join("keys"));
    fs::create_dir_all(folder.path().join("secrets"))?;
    private(&folder.path().join("secrets"), 0o700)?;
    fs::create_dir(&keys)?;
    let up = up(folder.path(), &behind_tokens(&server, port, &keys))?;
    let pid = up.0.id();
    let published = || -> Result<Option<(String, Value)>> {
        let read = |name: &str| fs::read(keys.join(name)).ok();
        let (Some(discovery), Some(set)) = (read(".well-known/openid-configuration"), read("jwks")) else {
            return Ok(None);
        };
        let discovery: Value = serde_json::from_slice(&discovery)?;
        let issuer = discovery["issuer"].as_str().context("no issuer")?.to_owned();
        Ok(Some((issuer, serde_json::from_slice(&set)?)))
    };
    let found = until("the keys are published", published, Option::is_some)?;
    let (issuer, set) = found.context("no keys")?;
    bearer::trust_issuer(&server, &issuer, &set, AUDIENCE)?;
    let read = || psql(port, DATABASE, &["SELECT name FROM app.people WHERE id = 1"]);
    let served = |said: &Said| said.out == "Ada";
    until("the read", read, served)?;
    let tokens = bearers(pid, AUDIENCE)?;
    ensure!(!tokens.is_empty(), "the token that is held is not found");
    let signatures = tokens.iter().filter_map(|token| token.rsplit('.').next());
    let old = signatures.fold(Needles::default(), |needles, signature| {
        needles.secret("a signature", signature.as_bytes())
    });
    ensure!(
        !old.held_by(pid)?.is_empty(),
        "the search does not find what a lease carries"
    );

    bearer::trust_issuer(&server, &issuer, &set, "postgres://elsewhere")?;
    until("the read is refused", read, |said| said.code != 0)?;
    bearer::trust_issuer(&server, &issuer, &set, AUDIENCE)?;
    until("the read with another token", read, served)?;
    let new = bearers(pid, AUDIENCE)?;
    ensure!(
        new.difference(&tokens).next().is_some(),
        "no other token is held: {new:?}"
    );
    until("nothing is left", || old.held_by(pid), Vec::is_empty)?;
    drop(up);
    Ok(())
}

/// The shop behind tokens of our own, and an issuer for whom the broker's keys are written into a folder.
fn behind_tokens(server: &Postgres, port: u16, keys: &Path) -> String {
    let config = bearer::configuration(server, port, AUDIENCE, ROLE);
    let issuer = "---\napiVersion: sidegate.dev/v1alpha1\nkind: TokenIssuer\nmetadata: {name: corp}\nspec:\n  \
                  preset: GenericAssertion\n  issuer: https://idp.invalid\n  \
                  values: {tokenEndpoint: https://idp.invalid/token, clientId: agents}\n  \
                  allowedNamespaces: {selector: {}}\n";
    format!(
        "{config}{issuer}  publish: {{directory: {:?}}}\n",
        keys.display().to_string()
    )
}

#[test]
fn nothing_of_a_password_is_left_once_its_lease_is_gone() -> Result<()> {
    nothing_is_left(Login::Scram)
}

#[test]
fn nothing_of_a_password_is_left_after_logins_by_md5() -> Result<()> {
    nothing_is_left(Login::Md5)
}

#[test]
fn nothing_of_a_password_is_left_after_logins_in_clear() -> Result<()> {
    nothing_is_left(Login::Cleartext)
}
