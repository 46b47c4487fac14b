//! What people apply with kubectl: in force in a moment, said in conditions, and never more permissive for being
//! wrong or half there.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{ensure, Result};
use serde_json::{json, Value};
use sidegate_tests::cluster::Cluster;
use sidegate_tests::postgres::{Major, Options, Postgres};
use sidegate_tests::psql::{psql, Said};
use sidegate_tests::shop::{self, DATABASE, PASSWORD, ROLE};
use sidegate_tests::{ports, wire};

use crate::site::{until, Agent, BROKER, NAMESPACE};

/// An agent with a sidecar, and the shop whose login is a Secret.
pub struct Shop<'a> {
    pub agent: Agent<'a>,
    pub server: Arc<Postgres>,
    pub local: u16,
}

impl<'a> Shop<'a> {
    fn start(cluster: &'a Cluster) -> Result<Shop<'a>> {
        Shop::of(Agent::new(cluster)?)
    }

    /// A shop for this agent.
    pub fn of(agent: Agent<'a>) -> Result<Shop<'a>> {
        Ok(Shop {
            agent,
            server: Arc::new(shop::server(Major::V15, Options::default())?),
            local: ports::free()?,
        })
    }

    fn target(&self) -> String {
        self.target_by("secret: {name: shop-agent}")
    }

    /// The Target, entered by this credential.
    pub fn target_by(&self, credential: &str) -> String {
        let (namespace, port, local) = (&self.agent.namespace, self.server.port, self.local);
        format!(
            r#"apiVersion: sidegate.dev/v1alpha1
kind: Target
metadata: {{name: shop, namespace: {namespace}}}
spec:
  protocol: Postgres
  address: {{host: 127.0.0.1, port: {port}}}
  tls: {{mode: Disabled}}
  credential: {{{credential}}}
  listen: {{port: {local}}}
"#
        )
    }

    /// A policy of this name with one rule.
    pub fn policy(&self, name: &str, rule: &str) -> String {
        let namespace = &self.agent.namespace;
        format!(
            r#"apiVersion: sidegate.dev/v1alpha1
kind: AccessPolicy
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  targetRefs: [{{name: shop}}]
  subjects: [{{serviceAccount: {{namespace: {namespace}, name: support}}}}]
  rules: [{rule}]
"#
        )
    }

    fn secret(&self) -> Result<()> {
        let (user, password) = (format!("username={ROLE}"), format!("password={PASSWORD}"));
        let literal = |text: &str| format!("--from-literal={text}");
        let (user, password) = (literal(&user), literal(&password));
        self.agent
            .kubectl(&["create", "secret", "generic", "shop-agent", &user, &password])
            .map(|_| ())
    }

    /// What the Secret's owner runs, as the condition says it.
    fn grant(&self) -> Result<()> {
        let account = BROKER.trim_start_matches("system:serviceaccount:");
        let account = format!("--serviceaccount={account}");
        self.agent.kubectl(&[
            "create",
            "role",
            "sidegate-secrets-shop-agent",
            "--verb=get",
            "--resource=secrets",
            "--resource-name=shop-agent",
        ])?;
        self.agent
            .kubectl(&[
                "create",
                "rolebinding",
                "sidegate-secrets-shop-agent",
                "--role=sidegate-secrets-shop-agent",
                &account,
            ])
            .map(|_| ())
    }

    /// Everything for a read to be allowed.
    pub fn open(&self) -> Result<()> {
        self.secret()?;
        self.grant()?;
        let objects = format!("{}---\n{}", self.target(), self.policy("support", READ));
        self.agent.apply(&objects)
    }

    pub fn ask(&self, text: &str) -> Result<Said> {
        psql(self.local, DATABASE, &[text])
    }
}

const READ: &str = r#"{name: read, effect: Allow, sql: {commands: [Select], tables: ["app.*"]}}"#;
pub const NAME: &str = "SELECT name FROM app.people WHERE id = 1";

/// A Secret that its owner did not grant is not read, and the condition says what to run; granted, it is a login.
pub fn a_secret_is_read_by_name_where_its_owner_granted_it(cluster: &Cluster) -> Result<()> {
    let shop = Shop::start(cluster)?;
    let agent = &shop.agent;
    shop.secret()?;
    agent.apply(&format!("{}---\n{}", shop.target(), shop.policy("support", READ)))?;
    let sidecar = agent.sidecar()?;
    let refused = until(
        "the condition",
        || agent.condition("target", "shop", "ResolvedRefs"),
        |condition| condition["reason"] == "SecretNotGranted",
    )?;
    let message = refused["message"].as_str().unwrap_or_default();
    ensure!(
        message.contains("create role sidegate-secrets-shop-agent --verb=get --resource=secrets"),
        "{message}"
    );
    ensure!(
        message.contains("--serviceaccount=sidegate-system:sidegate-broker"),
        "{message}"
    );
    let denied = until("a refusal", || shop.ask(NAME), |said| said.err.contains("FATAL"))?;
    ensure!(!denied.err.contains(PASSWORD) && denied.out.is_empty(), "{denied:?}");
    shop.grant()?;
    let read = until("the login", || shop.ask(NAME), |said| said.code == 0)?;
    ensure!(read.out == "Ada", "{read:?}");
    until(
        "the condition heals",
        || agent.condition("target", "shop", "ResolvedRefs"),
        |condition| condition["status"] == "True",
    )?;
    agent.end(sidecar);
    Ok(())
}

/// A policy is in force a moment after `kubectl apply`, and gone a moment after `kubectl delete`.
pub fn a_policy_is_in_force_when_it_is_applied(cluster: &Cluster) -> Result<()> {
    let shop = Shop::start(cluster)?;
    let agent = &shop.agent;
    shop.open()?;
    let sidecar = agent.sidecar()?;
    until("the read", || shop.ask(NAME), |said| said.code == 0)?;
    let programmed = until(
        "Programmed",
        || agent.condition("accesspolicy", "support", "Programmed"),
        |condition| condition["status"] == "True",
    )?;
    ensure!(programmed["message"] == "1/1 pods", "{programmed}");
    let table = agent.kubectl(&["get", "accesspolicies"])?;
    ensure!(table.contains(" 1/1 ") && table.contains("True"), "{table}");

    let deny = r#"{name: never, effect: Deny, sql: {commands: [Select]}, message: Not today.}"#;
    let applied = Instant::now();
    agent.apply(&shop.policy("freeze", deny))?;
    let refused = until("the Deny", || shop.ask(NAME), |said| said.code != 0)?;
    println!(
        "applied to enforced, kubectl and psql included: {} ms",
        applied.elapsed().as_millis()
    );
    ensure!(refused.refused() && refused.err.contains("Not today."), "{refused:?}");
    agent.kubectl(&["delete", "accesspolicy", "freeze"])?;
    until("the Deny is gone", || shop.ask(NAME), |said| said.code == 0)?;
    agent.end(sidecar);
    Ok(())
}

/// Half of an application: what refers to nothing says so and heals by itself; what cannot be read withholds its Target.
pub fn what_is_wrong_says_so_and_allows_nothing(cluster: &Cluster) -> Result<()> {
    let shop = Shop::start(cluster)?;
    let agent = &shop.agent;
    shop.secret()?;
    shop.grant()?;
    let condition = |name: &str, kind: &str| agent.condition("accesspolicy", name, kind);
    agent.apply(&shop.policy("support", READ))?;
    let dangling = until(
        "the reference dangles",
        || condition("support", "ResolvedRefs"),
        |condition| condition["status"] == "False",
    )?;
    ensure!(
        dangling["message"]
            == format!(
                "spec.targetRefs[0].name: there is no Target {}/shop (yet)",
                agent.namespace
            )
            .as_str(),
        "{dangling}"
    );
    agent.apply(&shop.target())?;
    until(
        "it heals",
        || condition("support", "ResolvedRefs"),
        |condition| condition["status"] == "True",
    )?;
    let sidecar = agent.sidecar()?;
    until("the read", || shop.ask(NAME), |said| said.code == 0)?;

    // The API server cannot know the facts of a protocol: this passes admission.
    let broken = r#"{name: typo, effect: Deny, sql: {commands: [Select]}, when: "sql.tabels.size() > 1"}"#;
    agent.apply(&shop.policy("broken", broken))?;
    let refused = until(
        "it is not accepted",
        || condition("broken", "Accepted"),
        |condition| condition["status"] == "False",
    )?;
    ensure!(
        refused["message"]
            .as_str()
            .is_some_and(|message| message.starts_with("spec.rules[0].when: ")),
        "{refused}"
    );
    until("its Target is withheld", || shop.ask(NAME), |said| said.code != 0)?;
    let withheld = until(
        "the Target says why",
        || agent.condition("target", "shop", "Programmed"),
        |condition| condition["reason"] == "Withheld",
    )?;
    ensure!(
        withheld["message"]
            .as_str()
            .is_some_and(|message| message.contains("broken")),
        "{withheld}"
    );
    agent.kubectl(&["delete", "accesspolicy", "broken"])?;
    until("it is back", || shop.ask(NAME), |said| said.code == 0)?;
    agent.end(sidecar);
    Ok(())
}

/// A Target of another issuer is offered once its TokenIssuer is there, right and open to its namespace; until then it
/// says what is missing.
pub fn a_target_says_whether_its_issuer_is_there(cluster: &Cluster) -> Result<()> {
    let agent = Agent::new(cluster)?;
    let (namespace, local) = (&agent.namespace, ports::free()?);
    let issuer = format!("corp-{namespace}");
    let apply = |preset: &str, team: &str| {
        let object = json!({
            "apiVersion": "sidegate.dev/v1alpha1", "kind": "TokenIssuer", "metadata": {"name": issuer},
            "spec": {
                "preset": preset, "issuer": "https://sso.example/realms/corp",
                "allowedNamespaces": {"selector": {"matchLabels": {"kubernetes.io/metadata.name": team}}},
            },
        });
        agent.apply(&object.to_string())
    };
    let target = json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "Target", "metadata": {"name": "ledger", "namespace": namespace},
        "spec": {
            "protocol": "Postgres", "address": {"host": "db.example", "port": 5432}, "listen": {"port": local},
            "credential": {"token": {"issuer": issuer, "audience": "ledger", "username": "reader"}},
        },
    });
    agent.apply(&target.to_string())?;
    let says = |reason: &'static str| {
        let what = format!("the Target says {reason}");
        let look = || agent.condition("target", "ledger", "ResolvedRefs");
        until(&what, look, |condition| condition["reason"] == reason)
    };
    says("IssuerNotFound")?;
    apply("Keycloak", "elsewhere")?;
    says("IssuerNotAllowed")?;
    apply("Keycloak", namespace)?;
    says("ResolvedRefs")?;
    let accepted = || agent.condition("tokenissuer", &issuer, "Accepted");
    until("it is accepted", accepted, |condition| condition["status"] == "True")?;
    let table = agent.kubectl(&["get", "ti", &issuer])?;
    ensure!(table.contains("Keycloak") && table.contains("True"), "{table}");
    // What the schema cannot tell the broker can, and the Target is offered to nobody.
    apply("Vault", namespace)?;
    let refused = until("it is not accepted", accepted, |condition| {
        condition["status"] == "False"
    })?;
    let message = refused["message"].as_str().unwrap_or_default();
    ensure!(message.contains("spec.values.mount: preset Vault wants"), "{refused}");
    says("IssuerNotFound")?;
    ensure!(
        apply("Keycloack", namespace).is_err(),
        "the API server takes a preset that does not exist"
    );
    agent.kubectl(&["delete", "tokenissuer", &issuer]).map(|_| ())
}

/// What a TokenIssuer refers to lies in the broker's own namespace and is read by name, where it was granted; until
/// then the issuer says what to run, and its Targets are offered to nobody without the authorities.
pub fn an_issuers_secret_and_authorities_are_granted_by_name(cluster: &Cluster) -> Result<()> {
    let agent = Agent::new(cluster)?;
    let (namespace, local) = (&agent.namespace, ports::free()?);
    let name = format!("idp-{namespace}");
    let issuer = json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "TokenIssuer", "metadata": {"name": name},
        "spec": {
            "preset": "Keycloak", "issuer": "https://sso.example/realms/corp", "values": {"clientId": "ledger"},
            "clientSecretRef": {"name": name, "key": "secret"},
            "caBundle": {"configMap": {"name": name, "key": "ca.crt"}},
            "allowedNamespaces": {"selector": {}},
        },
    });
    let target = json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "Target", "metadata": {"name": "ledger", "namespace": namespace},
        "spec": {
            "protocol": "Postgres", "address": {"host": "db.example", "port": 5432}, "listen": {"port": local},
            "credential": {"token": {"issuer": name, "audience": "ledger", "username": "reader"}},
        },
    });
    agent.apply(&issuer.to_string())?;
    agent.apply(&target.to_string())?;
    let says = |kind: &'static str, name: &str, reason: &'static str| {
        let look = || agent.condition(kind, name, "ResolvedRefs");
        let said = until(reason, look, |condition| condition["reason"] == reason)?;
        anyhow::Ok(said["message"].as_str().unwrap_or_default().to_owned())
    };
    let home = |arguments: &[&str]| {
        let all = [&["--namespace", NAMESPACE], arguments].concat();
        cluster.kubectl(&all, "").map(|_| ())
    };
    let account = format!(
        "--serviceaccount={}",
        BROKER.trim_start_matches("system:serviceaccount:")
    );
    let grant = |resource: &str| {
        let (role, resource, named) = (
            format!("sidegate-{resource}-{name}"),
            format!("--resource={resource}"),
            format!("--resource-name={name}"),
        );
        home(&["create", "role", &role, "--verb=get", &resource, &named])?;
        home(&["create", "rolebinding", &role, &format!("--role={role}"), &account])
    };
    let refused = says("tokenissuer", &name, "ConfigMapNotGranted")?;
    let wanted =
        format!("kubectl -n {NAMESPACE} create role sidegate-configmaps-{name} --verb=get --resource=configmaps");
    ensure!(refused.contains(&wanted), "{refused}");
    says("target", "ledger", "CaBundleNotFound")?;
    grant("configmaps")?;
    says("tokenissuer", &name, "ConfigMapNotFound")?;
    let pem = "--from-literal=ca.crt=-----BEGIN CERTIFICATE-----";
    home(&["create", "configmap", &name, pem])?;
    let refused = says("tokenissuer", &name, "SecretNotGranted")?;
    let wanted = format!("kubectl -n {NAMESPACE} create role sidegate-secrets-{name} --verb=get --resource=secrets");
    ensure!(refused.contains(&wanted), "{refused}");
    says("target", "ledger", "ResolvedRefs")?;
    grant("secrets")?;
    says("tokenissuer", &name, "SecretNotFound")?;
    home(&["create", "secret", "generic", &name, "--from-literal=secret=x"])?;
    says("tokenissuer", &name, "ResolvedRefs")?;
    for kind in ["secrets", "configmaps"] {
        home(&["delete", "rolebinding,role", &format!("sidegate-{kind}-{name}")])?;
    }
    home(&["delete", "secret,configmap", &name])?;
    agent.kubectl(&["delete", "tokenissuer", &name]).map(|_| ())
}

/// Our keys are written into the ConfigMap that a TokenIssuer names, as soon as they are other ones; into one that the
/// chart does not grant only where somebody else does.
pub fn keys_are_published_in_the_config_map_of_the_chart(cluster: &Cluster) -> Result<()> {
    let agent = Agent::new(cluster)?;
    let name = format!("keys-{}", agent.namespace);
    let apply = |map: &str| {
        let issuer = json!({
            "apiVersion": "sidegate.dev/v1alpha1", "kind": "TokenIssuer", "metadata": {"name": name},
            "spec": {
                "preset": "Keycloak", "issuer": "https://sso.example/realms/corp",
                "publish": {"configMap": {"name": map}}, "allowedNamespaces": {"selector": {}},
            },
        });
        agent.apply(&issuer.to_string())
    };
    let says = |reason: &'static str| {
        let look = || agent.condition("tokenissuer", &name, "Published");
        until(reason, look, |condition| condition["reason"] == reason)
    };
    apply(&name)?;
    let refused = says("ConfigMapNotGranted")?;
    let message = refused["message"].as_str().unwrap_or_default();
    let wanted =
        format!("create role sidegate-configmaps-{name} --verb=get,patch --resource=configmaps --resource-name={name}");
    ensure!(message.contains(&wanted), "{message}");
    apply("sidegate-broker-keys")?;
    says("Published")?;
    let map = [
        "get",
        "configmap",
        "sidegate-broker-keys",
        "--namespace",
        NAMESPACE,
        "--output=json",
    ];
    let map: Value = serde_json::from_str(&cluster.kubectl(&map, "")?)?;
    let entry =
        |name: &str| -> Result<Value> { Ok(serde_json::from_str(map["data"][name].as_str().unwrap_or_default())?) };
    let front = agent.site.broker.front();
    ensure!(entry("jwks")? == front.issuer.jwks(front.clock.now()), "{map}");
    ensure!(
        entry("openid-configuration")?["issuer"] == agent.site.audience(),
        "{map}"
    );
    agent.kubectl(&["delete", "tokenissuer", &name]).map(|_| ())
}

/// A Lockdown that is applied cuts the open session, and lets it be again when it is deleted.
pub fn a_lockdown_cuts_when_it_is_applied(cluster: &Cluster) -> Result<()> {
    let shop = Shop::start(cluster)?;
    let agent = &shop.agent;
    shop.open()?;
    let sidecar = agent.sidecar()?;
    until("the read", || shop.ask(NAME), |said| said.code == 0)?;
    let mut open = wire::Wire::login(shop.local, DATABASE)?;
    ensure!(open.alive()?, "the session does not live");
    let name = format!("cut-{}", agent.namespace);
    let lockdown = json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "Lockdown", "metadata": {"name": name},
        "spec": {"reason": "drill", "freeze": [{"serviceAccount": {"namespace": agent.namespace, "name": "support"}}]},
    });
    let applied = Instant::now();
    agent.apply(&lockdown.to_string())?;
    until(
        "the open session ends",
        || Ok(open.alive().unwrap_or(false)),
        |alive| !alive,
    )?;
    println!("applied to cut, kubectl included: {} ms", applied.elapsed().as_millis());
    let refused = shop.ask(NAME)?;
    ensure!(
        refused.code != 0 && refused.err.contains("a lockdown is in force"),
        "{refused:?}"
    );
    let programmed = until(
        "Programmed",
        || agent.condition("lockdown", &name, "Programmed"),
        |condition| condition["status"] == "True",
    )?;
    ensure!(programmed["reason"] == "Programmed", "{programmed}");
    agent.kubectl(&["delete", "lockdown", &name])?;
    until("it is lifted", || shop.ask(NAME), |said| said.code == 0)?;
    agent.end(sidecar);
    Ok(())
}

/// The authority of a Target's certificate comes from a ConfigMap that its owner granted.
pub fn an_authority_is_read_from_a_granted_config_map(cluster: &Cluster) -> Result<()> {
    let mut shop = Shop::start(cluster)?;
    let options = Options {
        tls: Some("db.internal".into()),
        ..Options::default()
    };
    shop.server = Arc::new(shop::server(Major::V15, options)?);
    let agent = &shop.agent;
    shop.secret()?;
    shop.grant()?;
    let target = shop.target().replace(
        "tls: {mode: Disabled}",
        "tls: {caBundle: {configMap: {name: db-ca, key: ca.crt}}}",
    );
    agent.apply(&format!("{target}---\n{}", shop.policy("support", READ)))?;
    let reason = |wanted: &'static str| {
        until(
            wanted,
            || agent.condition("target", "shop", "ResolvedRefs"),
            move |condition| condition["reason"] == wanted,
        )
    };
    let refused = reason("ConfigMapNotGranted")?;
    let message = refused["message"].as_str().unwrap_or_default();
    ensure!(
        message
            .contains("create role sidegate-configmaps-db-ca --verb=get --resource=configmaps --resource-name=db-ca"),
        "{message}"
    );
    let account = format!(
        "--serviceaccount={}",
        BROKER.trim_start_matches("system:serviceaccount:")
    );
    agent.kubectl(&[
        "create",
        "role",
        "db-ca",
        "--verb=get",
        "--resource=configmaps",
        "--resource-name=db-ca",
    ])?;
    agent.kubectl(&["create", "rolebinding", "db-ca", "--role=db-ca", &account])?;
    reason("ConfigMapNotFound")?;
    let pem = format!("--from-literal=ca.crt={}", shop.server.authority.pem());
    agent.kubectl(&["create", "configmap", "db-ca", &pem])?;
    reason("ResolvedRefs")?;
    let sidecar = agent.sidecar()?;
    let read = until("the read over verified TLS", || shop.ask(NAME), |said| said.code == 0)?;
    ensure!(read.out == "Ada", "{read:?}");
    agent.end(sidecar);
    Ok(())
}

/// A Target lends itself to the namespaces it names, for as long as they have the label.
pub fn a_target_is_lent_to_the_namespaces_it_admits(cluster: &Cluster) -> Result<()> {
    let mut shop = Shop::start(cluster)?;
    // 15 does not take the setting that tells when it has read its files.
    shop.server = Arc::new(shop::server(Major::V18, Options::default())?);
    let agent = &shop.agent;
    let data = cluster.namespace()?;
    let place = |objects: String| {
        let (home, lent) = (&agent.namespace, format!("namespace: {data}}}\nspec:"));
        objects.replace(&format!("namespace: {home}}}\nspec:"), &lent)
    };
    let mut target = place(shop.target()).replace(
        "credential: {secret: {name: shop-agent}}",
        "credential: {none: {username: shop_agent}}",
    );
    target.push_str("  allowedNamespaces: {selector: {matchLabels: {team: support}}}\n");
    agent.apply(&format!("{target}---\n{}", place(shop.policy("support", READ))))?;
    shop.server.write("pg_hba.conf", b"host all all 127.0.0.1/32 trust\n")?;
    shop.server.reconfigure(&[("log_connections", "on")])?;
    let sidecar = agent.sidecar()?;
    until("the read", || shop.ask(NAME), |said| said.code == 0)?;
    let mut open = wire::Wire::login(shop.local, DATABASE)?;
    cluster.kubectl(&["label", "namespace", &agent.namespace, "team-"], "")?;
    until(
        "the open session ends",
        || Ok(open.alive().unwrap_or(false)),
        |alive| !alive,
    )?;
    ensure!(shop.ask(NAME)?.code != 0, "a new session after the label went");
    cluster.kubectl(&["label", "namespace", &agent.namespace, "team=support"], "")?;
    until("it is lent again", || shop.ask(NAME), |said| said.code == 0)?;
    agent.end(sidecar);
    Ok(())
}

/// The floor of the security team holds, whatever the owners of a Target allow.
pub fn a_cluster_policy_is_a_floor(cluster: &Cluster) -> Result<()> {
    let shop = Shop::start(cluster)?;
    let agent = &shop.agent;
    shop.open()?;
    let sidecar = agent.sidecar()?;
    until("the read", || shop.ask(NAME), |said| said.code == 0)?;
    let name = format!("floor-{}", agent.namespace);
    let floor = json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "ClusterAccessPolicy", "metadata": {"name": name},
        "spec": {
            "targetRefs": [{"namespace": agent.namespace, "name": "shop"}],
            "rules": [{"name": "nobody", "effect": "Deny", "sql": {"tables": ["app.people"]}, "message": "Not the people."}],
        },
    });
    agent.apply(&floor.to_string())?;
    let refused = until("the floor", || shop.ask(NAME), |said| said.code != 0)?;
    ensure!(refused.err.contains("Not the people."), "{refused:?}");
    until(
        "Programmed",
        || agent.condition("clusteraccesspolicy", &name, "Programmed"),
        |condition| condition["message"] == "1/1 pods",
    )?;
    agent.kubectl(&["delete", "clusteraccesspolicy", &name])?;
    until("it is gone", || shop.ask(NAME), |said| said.code == 0)?;
    agent.end(sidecar);
    Ok(())
}
