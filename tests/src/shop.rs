//! The shop: the schema, login and policy that most suites share. `app.people.ssn` is masked to its last four
//! characters; reading is allowed, `app.items` may be written with a WHERE clause, everything else is refused.

use anyhow::Result;

use crate::ports;
use crate::postgres::{Major, Options, Postgres};
use crate::world::{Setup, World};

/// The tables, also used by the clients of other languages.
pub const SCHEMA: &str = include_str!("../clients/schema.sql");
/// The database.
pub const DATABASE: &str = "shop";
/// What Sidegate logs in with: unique, so that the canary scan can look for it.
pub const PASSWORD: &str = "canary-gate-5d1e77aa02";
/// The role.
pub const ROLE: &str = "shop_agent";

/// A shop with a gate before it.
pub struct Shop {
    /// The database server.
    pub server: Postgres,
    /// Sidegate.
    pub world: World,
    /// Where the agent connects.
    pub port: u16,
}

/// Starts a server with the shop's schema and role; the role may do everything, so that the gate decides.
pub fn server(major: Major, options: Options) -> Result<Postgres> {
    let server = Postgres::with(major, options)?;
    server.sql("postgres", &format!("CREATE DATABASE {DATABASE}"))?;
    server.sql(DATABASE, SCHEMA)?;
    server.sql(DATABASE, &format!("CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'"))?;
    server.sql(
        DATABASE,
        &format!("GRANT ALL ON SCHEMA app TO {ROLE}; GRANT ALL ON ALL TABLES IN SCHEMA app TO {ROLE}"),
    )?;
    server.sql(DATABASE, &format!("ALTER TABLE app.items OWNER TO {ROLE}"))?;
    Ok(server)
}

/// The shop's configuration; `extra` is appended to the policy's `spec` (rules first, as YAML list items).
pub fn configuration(server: u16, local: u16, rules: &str, rest: &str) -> String {
    format!(
        r#"apiVersion: v1
kind: Namespace
metadata: {{name: agents, labels: {{team: support}}}}
---
apiVersion: sidegate.dev/v1alpha1
kind: Target
metadata: {{name: shop, namespace: data}}
spec:
  protocol: Postgres
  address: {{host: 127.0.0.1, port: {server}}}
  tls: {{mode: Disabled}}
  databases: [{DATABASE}]
  credential: {{secret: {{name: shop-agent}}}}
  listen: {{port: {local}}}
  allowedNamespaces: {{selector: {{matchLabels: {{team: support}}}}}}
---
apiVersion: sidegate.dev/v1alpha1
kind: AccessPolicy
metadata: {{name: support, namespace: data}}
spec:
  targetRefs: [{{name: shop}}]
  subjects: [{{serviceAccount: {{namespace: agents, name: support}}}}]
  rules:
    - {{name: read, effect: Allow, sql: {{commands: [Select, Explain], tables: ["app.*"]}}}}
    - {{name: write-items, effect: Allow, sql: {{commands: [Insert, Update, Delete], tables: [app.items]}}}}
    - {{name: never-unfiltered, effect: Deny, sql: {{commands: [Update, Delete]}}, when: "!sql.filtered", message: Add a WHERE clause.}}
{rules}
  masks:
    - columns: [app.people.ssn]
      as: {{keepLast: {{count: 4}}}}
{rest}"#
    )
}

/// What a Target says of TLS to a server for which the authority of this PEM vouches, in place of `tls: {mode: Disabled}`.
pub fn tls_by(pem: &str) -> String {
    format!("tls: {{caBundle: {{inline: {}}}}}", serde_json::json!(pem))
}

impl Shop {
    /// Starts the whole with the plain policy.
    pub async fn start(major: Major) -> Result<Shop> {
        Shop::with(major, "", "").await
    }

    /// Starts the whole; see [`configuration`].
    pub async fn with(major: Major, rules: &str, rest: &str) -> Result<Shop> {
        let server = server(major, Options::default())?;
        let port = ports::free()?;
        let config = configuration(server.port, port, rules, rest);
        let world = setup(config).start().await?;
        Ok(Shop { server, world, port })
    }
}

/// A setup with the shop's secret.
pub fn setup(config: String) -> Setup {
    Setup::new(config)
        .secret("data/shop-agent/username", ROLE)
        .secret("data/shop-agent/password", PASSWORD)
}
