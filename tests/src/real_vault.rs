//! A real Vault in development mode: in memory, over TLS by an authority of its own, set up with its own command line as
//! `docs/credentials.md` says. It ends with the value.
//!
//! Refuses nothing. The invariant: what it holds is of one test, and gone with its process.

#![allow(clippy::print_stdout)] // why it was not asked

use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Who may do everything.
const ADMIN: &str = "test-admin";
/// What the documentation asks for, of an agent's login.
const POLICY: &str = r#"
path "auth/token/create"        { capabilities = ["update"] }
path "database/creds/support"   { capabilities = ["read"] }
path "sys/leases/renew"         { capabilities = ["update"] }
path "sys/leases/revoke"        { capabilities = ["update"] }
path "ssh/sign/agents"          { capabilities = ["update"] }
"#;

/// A Vault that runs.
pub struct RealVault {
    child: Child,
    program: PathBuf,
    folder: PathBuf,
    /// Where it is: its issuer URL, too.
    pub origin: String,
    /// Its certificate's authority.
    pub ca_pem: String,
}

impl RealVault {
    /// Its program; where none is named, that is said.
    pub fn program() -> Option<PathBuf> {
        let program = std::env::var_os("SIDEGATE_VAULT").map(PathBuf::from);
        if program.is_none() {
            println!("SKIPPED: SIDEGATE_VAULT names no program; `make interop` builds it");
        }
        program
    }

    /// Starts this program on a port, with what it writes in a folder.
    pub fn start(program: &Path, folder: &Path, port: u16) -> io::Result<RealVault> {
        let mut child = Command::new(program)
            .args(["server", "-dev", "-dev-tls", "-dev-no-store-token"])
            .arg(format!("-dev-root-token-id={ADMIN}"))
            .arg(format!("-dev-listen-address=127.0.0.1:{port}"))
            .arg(format!("-dev-tls-cert-dir={}", folder.display()))
            .env("HOME", folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let said = child.stdout.take().ok_or_else(|| io::Error::other("it says nothing"))?;
        let mut vault = RealVault {
            child,
            program: program.to_owned(),
            folder: folder.to_owned(),
            origin: format!("https://127.0.0.1:{port}"),
            ca_pem: String::new(),
        };
        let mut lines = BufReader::new(said).lines();
        // It says so once it is unsealed and serves.
        for line in lines.by_ref() {
            if line?.starts_with("Root Token:") {
                break;
            }
        }
        std::thread::spawn(move || lines.for_each(drop));
        vault.ca_pem = std::fs::read_to_string(vault.ca_file())?;
        Ok(vault)
    }

    fn ca_file(&self) -> PathBuf {
        self.folder.join("vault-ca.pem")
    }

    /// One command of its administrator, as words, and what it prints.
    pub fn run(&self, words: &[&str]) -> io::Result<String> {
        let done = Command::new(&self.program)
            .args(words)
            .env("VAULT_ADDR", &self.origin)
            .env("VAULT_CACERT", self.ca_file())
            .env("VAULT_TOKEN", ADMIN)
            .env("HOME", &self.folder)
            .stdin(Stdio::null())
            .output()?;
        match done.status.success() {
            true => Ok(String::from_utf8_lossy(&done.stdout).into_owned()),
            false => Err(io::Error::other(String::from_utf8_lossy(&done.stderr).into_owned())),
        }
    }

    /// Lets agents log in by assertions of this issuer, and do what the documentation asks for.
    pub fn trust(&self, issuer: &str, ca_pem: &str) -> io::Result<()> {
        let (policy, ca) = (self.folder.join("policy.hcl"), self.folder.join("broker.pem"));
        std::fs::write(&policy, POLICY)?;
        std::fs::write(&ca, ca_pem)?;
        self.run(&["policy", "write", "sidegate", &policy.display().to_string()])?;
        self.run(&["auth", "enable", "jwt"])?;
        self.run(&[
            "write",
            "auth/jwt/config",
            &format!("oidc_discovery_url={issuer}"),
            &format!("oidc_discovery_ca_pem=@{}", ca.display()),
            &format!("bound_issuer={issuer}"),
        ])?;
        let audience = format!("bound_audiences={}", self.origin);
        self.run(&[
            "write",
            "auth/jwt/role/sidegate",
            "role_type=jwt",
            "user_claim=sub",
            "token_type=service",
            "token_policies=sidegate",
            "token_ttl=1h",
            &audience,
        ])?;
        Ok(())
    }
}

impl Drop for RealVault {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
