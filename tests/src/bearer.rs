//! A PostgreSQL 18 that lets only bearers of good tokens in (OAUTHBEARER, RFC 7628), by our own validator.

use std::path::PathBuf;

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};
use sidegate_broker::Running;

use crate::postgres::{Major, Options, Postgres};
use crate::shop::{self, ROLE};

/// Whom tokens for the shop are for.
pub const AUDIENCE: &str = "postgres://shop.data.svc";

/// The validator as it was built with the tests: beside them.
fn validator() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let found = program
        .parent()
        .context("the tests' folder")?
        .join("libsidegate_validator.so");
    ensure!(found.exists(), "{} was not built with the tests", found.display());
    Ok(found)
}

/// The shop behind tokens of our own issuer alone; the superuser still has a password.
pub fn server() -> Result<Postgres> {
    server_for("/^sg:.*$")
}

/// The same behind tokens of subjects like these (as in `pg_ident.conf`), which are mapped to the shop's role.
pub fn server_for(subjects: &str) -> Result<Postgres> {
    server_at(subjects, "db.internal", "127.0.0.1/32", Vec::new())
}

/// The same under a name, for clients of these addresses, with these settings besides.
pub fn server_at(subjects: &str, name: &str, clients: &str, mut settings: Vec<String>) -> Result<Postgres> {
    settings.push("log_connections = on".into());
    let options = Options {
        settings,
        tls: Some(name.into()),
        ..Options::default()
    };
    let server = shop::server(Major::V18, options)?;
    let module = server.write("validator.so", &std::fs::read(validator()?)?)?;
    server.write("pg_ident.conf", format!("agents {subjects} {ROLE}\n").as_bytes())?;
    let hba = format!(
        "host all postgres 127.0.0.1/32 scram-sha-256\n\
         hostssl all all {clients} oauth issuer=\"https://issuer.invalid\" scope=\"db\" map=agents\n"
    );
    server.write("pg_hba.conf", hba.as_bytes())?;
    let module = module.to_str().context("a path in UTF-8")?;
    server.reconfigure(&[("oauth_validator_libraries", module)])?;
    Ok(server)
}

/// The shop's configuration with a token of our own for this audience as the Target's credential.
pub fn configuration(server: &Postgres, local: u16, audience: &str, role: &str) -> String {
    let credential = format!("credential: {{token: {{audience: {audience:?}, scopes: [db], username: {role}}}}}");
    shop::configuration(server.port, local, "", "")
        .replace("tls: {mode: Disabled}", &shop::tls_by(server.authority.pem()))
        .replace("credential: {secret: {name: shop-agent}}", &credential)
}

/// Makes the server trust this broker's keys, for this audience.
pub fn trust(server: &Postgres, broker: &Running, audience: &str) -> Result<()> {
    let front = broker.front();
    trust_issuer(
        server,
        &broker.issuer_url,
        &front.issuer.jwks(front.clock.now()),
        audience,
    )
}

/// Makes the server trust the keys of any issuer, for this audience.
pub fn trust_issuer(server: &Postgres, issuer: &str, jwks: &Value, audience: &str) -> Result<()> {
    let trust = json!({"issuer": issuer, "audience": audience, "jwks": jwks});
    server.write("sidegate_validator.json", trust.to_string().as_bytes())?;
    Ok(())
}
