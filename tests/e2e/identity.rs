//! Who is calling, on a real API server: a pod's token, the live pod and one key are a session; anything less is
//! nobody. Ends with the whole path: a bound token becomes a login at PostgreSQL 18 without a secret anywhere.

use anyhow::{ensure, Result};
use serde_json::{json, Value};
use sidegate_broker::jwt::PublicKey;
use sidegate_tests::bearer;
use sidegate_tests::cluster::Cluster;
use sidegate_tests::postgres::Postgres;
use sidegate_tests::psql::psql;
use sidegate_tests::shop::{DATABASE, ROLE};
use sidegate_tests::{ports, wire};

use crate::outage::number;
use crate::site::{effective_rights, key, may, until, Agent, Site, BROKER};

/// The audience the database expects.
const DATABASE_AUDIENCE: &str = "postgres://shop.data.svc";

/// What is said to a token of this agent's pod, as the audit would have it.
pub fn said(agent: &Agent<'_>, token: &str) -> Result<String> {
    said_by(&agent.site, token, &key()?)
}

/// The same at this broker, where it comes with a proof of this key.
pub fn said_by(site: &Site, token: &str, key: &PublicKey) -> Result<String> {
    Ok(match site.attest(token, key) {
        Ok(who) => format!("attested {}", who.subject.pod),
        Err(refused) => refused.to_string(),
    })
}

/// A pending pod of the right shape is attested, with what the API server knows of it.
pub fn a_pending_pod_of_the_right_shape_is_attested(cluster: &Cluster) -> Result<()> {
    let agent = Agent::new(cluster)?;
    let who = agent.site.attest(&agent.token()?, &key()?)?;
    ensure!(who.subject.pod_uid == agent.uid, "{who:?}");
    ensure!(
        who.subject.account() == format!("{}/support", agent.namespace),
        "{who:?}"
    );
    ensure!(
        who.subject.labels.get("agent").is_some_and(|label| label == "triage"),
        "{who:?}"
    );
    let account: Value = serde_json::from_str(&agent.kubectl(&["get", "serviceaccount", "support", "-o", "json"])?)?;
    ensure!(account["metadata"]["uid"] == who.account_uid.as_str(), "{who:?}");
    Ok(())
}

/// A token for somebody else, one bound to nothing, and one of a pod that is gone are nobody's.
pub fn another_token_is_nobodys(cluster: &Cluster) -> Result<()> {
    let agent = Agent::new(cluster)?;
    let foreign = said(&agent, &agent.token_for("https://somebody.else")?)?;
    ensure!(foreign == "token: audience missing or not ours", "{foreign}");
    let unbound = agent.kubectl(&["create", "token", "support", "--audience", agent.site.audience()])?;
    let unbound = said(&agent, unbound.trim())?;
    ensure!(unbound == "token: pod claims missing: not bound to a pod", "{unbound}");
    let token = agent.token()?;
    agent.delete_pod()?;
    let gone = said(&agent, &token)?;
    ensure!(gone == "review: not authenticated", "{gone}");
    Ok(())
}

/// A pod in which the agent could read the token is nobody, whatever its token says.
pub fn a_pod_of_another_shape_is_nobody(cluster: &Cluster) -> Result<()> {
    let mount = json!([{"name": "sidegate-token", "mountPath": "/token"}]);
    let mounts = Agent::with(cluster, |pod| pod["spec"]["containers"][0]["volumeMounts"] = mount)?;
    let refused = said(&mounts, &mounts.token()?)?;
    ensure!(
        refused == "shape: the token is mounted by something besides the sidecar",
        "{refused}"
    );
    let shares = Agent::with(cluster, |pod| pod["spec"]["shareProcessNamespace"] = json!(true))?;
    let refused = said(&shares, &shares.token()?)?;
    ensure!(
        refused == "shape: something else in the pod reaches for the sidecar",
        "{refused}"
    );
    // A debugger that comes later: the pod was right when it was admitted.
    let debugged = Agent::new(cluster)?;
    let token = debugged.token()?;
    ensure!(said(&debugged, &token)?.starts_with("attested"), "before");
    debugged.debug(&json!({"name": "debug", "image": "example.invalid/debug", "targetContainerName": "sidegate"}))?;
    let refused = said(&debugged, &token)?;
    ensure!(
        refused == "shape: something else in the pod reaches for the sidecar",
        "{refused}"
    );
    Ok(())
}

/// A second key for a running instance is refused; a restart that the cluster shows brings a new one.
pub fn a_second_key_waits_for_a_restart(cluster: &Cluster) -> Result<()> {
    let agent = Agent::new(cluster)?;
    let (first, second) = (key()?, key()?);
    let token = agent.token()?;
    agent.site.attest(&token, &first)?;
    let refused = agent
        .site
        .attest(&token, &second)
        .map(|_| ())
        .map_err(|refused| refused.to_string());
    ensure!(
        refused.as_ref().is_err_and(|why| why.contains("RestartNotSeen")),
        "{refused:?}"
    );
    let event = until(
        "an Event says so",
        || {
            agent.kubectl(&[
                "get",
                "events",
                "--field-selector",
                "involvedObject.name=agent",
                "-o",
                "json",
            ])
        },
        |events| events.contains("KeyConflict"),
    )?;
    ensure!(event.contains(&agent.uid), "{event}");
    // The kubelet reports the container late: that is no restart, and the pinned key goes on.
    agent.report(0, "containerd://a")?;
    ensure!(
        agent.site.attest(&token, &second).is_err(),
        "an id that came late let a second key in"
    );
    agent.site.attest(&token, &first)?;
    agent.report(1, "containerd://b")?;
    agent.site.attest(&token, &second)?;
    ensure!(
        agent.site.attest(&token, &first).is_err(),
        "the key of the dead instance"
    );
    // The pin is a Lease of the broker's namespace, so that every replica and the next start knows it.
    let lease = cluster.kubectl(
        &[
            "get",
            "lease",
            &agent.uid,
            "--namespace",
            "sidegate-system",
            "-o",
            "json",
        ],
        "",
    )?;
    let lease: Value = serde_json::from_str(&lease)?;
    ensure!(
        lease["spec"]["holderIdentity"] == second.thumbprint().as_str(),
        "{lease}"
    );
    Ok(())
}

/// A pod that is ending keeps the key it has and gets no other.
pub fn an_ending_pod_keeps_its_key(cluster: &Cluster) -> Result<()> {
    let agent = Agent::with(cluster, |pod| {
        pod["metadata"]["finalizers"] = json!(["sidegate.test/held"])
    })?;
    let (first, second) = (key()?, key()?);
    let token = agent.token()?;
    let who = agent.site.attest(&token, &first)?;
    agent.kubectl(&["delete", "pod", "agent", "--wait=false"])?;
    agent.site.attest(&token, &first)?;
    ensure!(
        agent.site.attest(&token, &second).is_err(),
        "a new key for a pod that is ending"
    );
    let attestor = &agent.site.broker.front().attestor;
    ensure!(
        agent.site.runtime.block_on(attestor.still(&who)).is_ok(),
        "its stream would end"
    );
    agent.kubectl(&[
        "patch",
        "pod",
        "agent",
        "--type=merge",
        "-p",
        r#"{"metadata":{"finalizers":null}}"#,
    ])?;
    until(
        "its stream ends with it",
        || Ok(agent.site.runtime.block_on(attestor.still(&who)).is_err()),
        |gone| *gone,
    )?;
    Ok(())
}

/// The broker may read what it needs, list no Secret, and make nobody's token.
pub fn the_broker_may_no_more_than_it_needs(cluster: &Cluster) -> Result<()> {
    let _installed = Agent::new(cluster)?;
    let everywhere = ["--all-namespaces"];
    for (verb, resource) in [
        ("list", "targets"),
        ("watch", "lockdowns"),
        ("watch", "tokenissuers"),
        ("patch", "tokenissuers/status"),
        ("patch", "targets/status"),
        ("get", "pods"),
        ("create", "tokenreviews"),
    ] {
        ensure!(
            may(cluster, BROKER, &[verb, resource, everywhere[0]])?,
            "{verb} {resource}"
        );
    }
    for (verb, resource) in [
        ("get", "secrets"),
        ("list", "secrets"),
        ("watch", "secrets"),
        ("create", "serviceaccounts/token"),
        ("impersonate", "users"),
        ("create", "pods"),
        ("create", "pods/exec"),
        ("update", "targets"),
        ("create", "lockdowns"),
        ("delete", "lockdowns"),
        ("create", "tokenissuers"),
        ("update", "tokenissuers"),
        ("list", "configmaps"),
        ("create", "clusterrolebindings"),
    ] {
        for place in [everywhere[0], "--namespace=sidegate-system"] {
            ensure!(
                !may(cluster, BROKER, &[verb, resource, place])?,
                "{verb} {resource} {place}"
            );
        }
    }
    Ok(())
}

/// Everything the broker may do in its own namespace and everywhere: a change of the chart shows here.
pub fn its_effective_rights_are_the_golden_ones(cluster: &Cluster) -> Result<()> {
    let _installed = Agent::new(cluster)?;
    let rights = effective_rights(cluster, BROKER)?;
    let golden = include_str!("rights.txt");
    ensure!(rights == golden, "tests/e2e/rights.txt differs from:\n{rights}");
    Ok(())
}

/// The Target and the policy, in the agent's own namespace.
fn shop(agent: &Agent<'_>, server: &Postgres, local: u16) -> Result<String> {
    let authority = serde_json::to_string(server.authority.pem())?;
    let (namespace, port) = (&agent.namespace, server.port);
    Ok(format!(
        r#"apiVersion: sidegate.dev/v1alpha1
kind: Target
metadata: {{name: shop, namespace: {namespace}}}
spec:
  protocol: Postgres
  address: {{host: 127.0.0.1, port: {port}}}
  tls: {{caBundle: {{inline: {authority}}}}}
  credential: {{token: {{audience: "{DATABASE_AUDIENCE}", scopes: [db], username: {ROLE}}}}}
  listen: {{port: {local}}}
---
apiVersion: sidegate.dev/v1alpha1
kind: AccessPolicy
metadata: {{name: support, namespace: {namespace}}}
spec:
  targetRefs: [{{name: shop}}]
  subjects: [{{serviceAccount: {{namespace: {namespace}, name: support}}, podSelector: {{matchLabels: {{agent: triage}}}}}}]
  rules:
    - {{name: read, effect: Allow, sql: {{commands: [Select], tables: ["app.*"]}}}}
  masks:
    - columns: [app.people.ssn]
      as: {{keepLast: {{count: 4}}}}
"#
    ))
}

/// A pod-bound token becomes a lease and a login by OAUTHBEARER, with no secret anywhere; the pod is deleted, the next
/// exchange is refused and the open session is gone.
pub fn a_bound_token_is_a_login_until_its_pod_is_gone(cluster: &Cluster) -> Result<()> {
    let agent = Agent::new(cluster)?;
    let (server, local) = (bearer::server()?, ports::free()?);
    bearer::trust(&server, &agent.site.broker, DATABASE_AUDIENCE)?;
    agent.apply(&shop(&agent, &server, local)?)?;
    let sidecar = agent.sidecar()?;
    let read = || {
        psql(
            local,
            DATABASE,
            &["SELECT current_user, name, ssn FROM app.people WHERE id = 1"],
        )
    };
    let first = until("a masked row", read, |said| said.code == 0)?;
    ensure!(
        first.out == format!("{ROLE}|Ada|*******8841"),
        "{first:?}\n{}",
        server.log()
    );
    ensure!(server.log().contains("method=oauth"), "{}", server.log());
    let secrets = agent.kubectl(&["get", "secrets", "-o", "name"])?;
    ensure!(secrets.trim().is_empty(), "there is a secret: {secrets}");

    let mut open = wire::Wire::login(local, DATABASE)?;
    ensure!(open.alive()?, "the session does not live");
    let token = agent.token()?;
    let nobody = r#"sidegate_broker_exchanges_total{reason="review",result="refused"}"#;
    let counted = || Ok(number(&agent.site, nobody)?.unwrap_or(0));
    let before = counted()?;
    agent.delete_pod()?;
    until(
        "the open session ends",
        || Ok(open.alive().unwrap_or(false)),
        |alive| !alive,
    )?;
    ensure!(sidecar.authority().metrics.cut.get() >= 1, "what ended the session");
    // Its sidecar tries again and again.
    until("its exchanges are refused and counted", counted, |now| *now > before)?;
    let refused = said(&agent, &token)?;
    ensure!(refused == "review: not authenticated", "{refused}");
    let after = until("a new session is refused", read, |said| said.code != 0)?;
    ensure!(after.err.contains("FATAL"), "{after:?}");
    agent.end(sidecar);
    Ok(())
}
