//! Who looks at what was recorded: people as the API server knows them, with the rights it gives them, on record.

use std::net::SocketAddr;
use std::process::{Command, Output};

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};
use sidegate_policies::record::audit::read;
use sidegate_policies::record::layout::DirectoryStore;
use sidegate_tests::authority::Authority;
use sidegate_tests::cli;
use sidegate_tests::cluster::{Cluster, User};
use sidegate_tests::http::get_over_tls;

use crate::applied::{Shop, NAME};
use crate::site::{site, until, Agent, Site, NAMESPACE};

/// A call of the people's face: status line and body.
fn call(site: &Site, token: &str, path: &str) -> Result<(String, String)> {
    let bearer = match token {
        "" => String::new(),
        token => format!("authorization: Bearer {token}\r\n"),
    };
    let request = (format!("GET {path}"), bearer);
    let asked = get_over_tls(address(site)?, &site.broker.ca_pem, None, (&request.0, &request.1));
    site.runtime.block_on(asked)
}

fn address(site: &Site) -> Result<SocketAddr> {
    site.broker.people_addr.context("no people's face")
}

/// Lets a user do something in a namespace.
fn grant(cluster: &Cluster, namespace: &str, user: &str, verb: &str, resource: &str) -> Result<()> {
    let name = format!(
        "{user}-{verb}-{}",
        resource.replace('/', "-").replace(".sidegate.dev", "")
    );
    let role = serde_json::json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name, "namespace": namespace},
        "rules": [{"apiGroups": ["sidegate.dev"], "resources": [resource], "verbs": [verb]}],
    });
    cluster.create(&role)?;
    let (role, user) = (format!("--role={name}"), format!("--user={user}"));
    let bind = ["create", "rolebinding", &name, &role, &user, "--namespace", namespace];
    cluster.kubectl(&bind, "").map(|_| ())
}

/// A person sees the sessions of a namespace where the API server says so, and what was said in them where it says that
/// too; each look is in the audit before a byte leaves.
pub fn who_may_reads_a_session_and_nobody_else_does(cluster: &Cluster) -> Result<()> {
    let shop = Shop::of(Agent::new(cluster)?)?;
    let (agent, site) = (&shop.agent, &shop.agent.site);
    shop.open()?;
    let sidecar = agent.sidecar()?;
    until("the read", || shop.ask(NAME), |said| said.code == 0)?;
    let namespace = agent.namespace.as_str();
    let list = format!("/v1/sessions?namespace={namespace}");

    for nobody in ["", "not-a-token"] {
        let (status, body) = call(site, nobody, &list)?;
        ensure!(status.contains(" 401 ") && !body.contains("support"), "{status} {body}");
    }
    let dev = cluster.token(User::Dev)?;
    let (status, body) = call(site, &dev, &list)?;
    let words = format!("User \\\"dev\\\" cannot list resource \\\"sessions\\\" in API group \\\"sidegate.dev\\\" in the namespace \\\"{namespace}\\\"");
    ensure!(status.contains(" 403 ") && body.contains(&words), "{status} {body}");

    grant(cluster, namespace, "dev", "list", "sessions")?;
    let (status, body) = until(
        "the right is known",
        || call(site, &dev, &list),
        |(status, _)| !status.contains(" 403 "),
    )?;
    ensure!(status.contains(" 200 "), "{status} {body}");
    let rows: Value = serde_json::from_str(&body)?;
    let rows = rows.as_array().context("no list")?;
    ensure!(!rows.is_empty(), "no session");
    let subject = format!("{namespace}/support");
    ensure!(
        rows.iter().all(|row| row["subject"] == subject.as_str()),
        "another namespace's: {body}"
    );
    // A right in one namespace is none in all of them.
    ensure!(call(site, &dev, "/v1/sessions")?.0.contains(" 403 "), "every namespace");

    let id = rows[rows.len() - 1]["id"].as_str().context("no id")?;
    let path = format!("/v1/sessions/{id}/replay?as=json");
    let (status, body) = call(site, &dev, &path)?;
    ensure!(
        status.contains(" 403 ") && body.contains("sessions/content"),
        "{status} {body}"
    );
    grant(cluster, namespace, "dev", "get", "sessions/content")?;
    let told = until(
        "the right is known",
        || call(site, &dev, &path),
        |(status, _)| !status.contains(" 403 "),
    )?;
    ensure!(told.0.contains(" 200 ") && told.1.contains(NAME), "{told:?}");
    let (status, text) = call(site, &dev, &format!("/v1/sessions/{id}/replay"))?;
    ensure!(
        status.contains(" 200 ") && text.contains(NAME) && text.contains("Ada"),
        "{status} {text}"
    );
    let (status, _) = call(site, &dev, "/v1/sessions/ffffffff/replay")?;
    ensure!(status.contains(" 404 "), "{status}");
    let (status, _) = call(site, &dev, &format!("/v1/sessions/{id}/replay?as=yaml"))?;
    ensure!(status.contains(" 400 "), "{status}");

    let audit = read(&DirectoryStore::new(site.broker.records().root()))?;
    let mut looked = Vec::new();
    for told in &audit {
        if told.says.event.starts_with("record.") && told.says.subject == "dev" {
            looked.push((told.says.event.to_string(), told.says.object.to_string()));
        }
    }
    for (event, object) in [
        ("record.refused", ""),
        ("record.listed", namespace),
        ("record.read", id),
    ] {
        ensure!(
            looked.iter().any(|(told, about)| told == event && about == object),
            "{event} {object} is not in the audit: {looked:?}"
        );
    }
    agent.end(sidecar);
    Ok(())
}

/// A certificate under the cluster's authority of clients is a login, as at a kubelet; one of another authority is none.
pub fn a_certificate_of_the_clusters_clients_is_somebody(cluster: &Cluster) -> Result<()> {
    let site = site(cluster)?;
    let ask = |authority: &Authority, user: &str, group: &str| {
        let leaf = authority.client(user, group)?;
        let asked = get_over_tls(
            address(&site)?,
            &site.broker.ca_pem,
            Some(&leaf),
            ("GET /v1/sessions", ""),
        );
        site.runtime.block_on(asked)
    };
    let (status, body) = ask(&cluster.authority, "ada", "people")?;
    ensure!(
        status.contains(" 403 ") && body.contains("User \\\"ada\\\""),
        "{status} {body}"
    );
    let (status, _) = ask(&cluster.authority, "root", "system:masters")?;
    ensure!(status.contains(" 200 "), "{status}");
    let stranger = ask(&Authority::new()?, "root", "system:masters");
    ensure!(stranger.is_err(), "a stranger's certificate: {stranger:?}");
    Ok(())
}

/// A broker's pod, as kubelets of others would run it; the broker itself is in this process.
fn broker_pod(cluster: &Cluster) -> Result<()> {
    cluster.node("brokers")?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "sidegate-broker-0", "namespace": NAMESPACE, "labels": {
            "app.kubernetes.io/name": "sidegate", "app.kubernetes.io/component": "broker",
        }},
        "spec": {"nodeName": "brokers", "containers": [{"name": "broker", "image": "example.invalid/broker"}]},
    });
    cluster.create(&pod)?;
    let wait = [
        "wait",
        "--for=condition=Ready",
        "--timeout=60s",
        "pod/sidegate-broker-0",
        "--namespace",
        NAMESPACE,
    ];
    cluster.kubectl(&wait, "").map(|_| ())
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// `kubectl sidegate`, where kubectl is on the path as on people's machines.
fn plugin(agent: &Agent<'_>, user: User, arguments: &[&str]) -> Result<(Option<i32>, String, String)> {
    let bin = agent.cluster.kubectl_on_path(agent.folder())?;
    let output = Command::new(cli::path()?)
        .args(arguments)
        .arg("--kubeconfig")
        .arg(agent.cluster.kubeconfig(user))
        .env_clear()
        .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
        .env("HOME", agent.folder())
        .output()?;
    Ok(said(&output))
}

/// `kubectl sidegate sessions`, `replay` and `explain --live` go through the API server's port-forward to the broker, as
/// the person of the kubeconfig, whose rights decide.
pub fn kubectl_sidegate_reaches_the_broker_through_the_api_server(cluster: &Cluster) -> Result<()> {
    let shop = Shop::of(Agent::new(cluster)?)?;
    let agent = &shop.agent;
    shop.open()?;
    let sidecar = agent.sidecar()?;
    until("the read", || shop.ask(NAME), |said| said.code == 0)?;
    broker_pod(cluster)?;
    let namespace = agent.namespace.as_str();
    let run = |user: User, arguments: &[&str]| plugin(agent, user, arguments);
    let list = ["sessions", "-n", namespace, "-o", "json"];
    let (code, out, err) = run(User::Dev, &list)?;
    ensure!(
        code == Some(1) && out.is_empty() && err.contains("cannot list resource \"pods\""),
        "{code:?} {err}"
    );
    let visitor = [
        "create",
        "rolebinding",
        "dev-visits",
        "--role=sidegate-broker-visitor",
        "--user=dev",
        "--namespace",
        NAMESPACE,
    ];
    cluster.kubectl(&visitor, "")?;
    let (code, _, err) = until(
        "the Role is known",
        || run(User::Dev, &list),
        |(_, _, err)| !err.contains("pods"),
    )?;
    ensure!(
        code == Some(1) && err.contains("cannot list resource \"sessions\""),
        "{code:?} {err}"
    );
    let reader = [
        "create",
        "rolebinding",
        "dev-reads",
        "--clusterrole=sidegate-record-reader",
        "--user=dev",
        "--namespace",
        namespace,
    ];
    cluster.kubectl(&reader, "")?;
    let (code, out, err) = until(
        "the Role is known",
        || run(User::Dev, &list),
        |(code, _, _)| *code == Some(0),
    )?;
    ensure!(code == Some(0), "{err}");
    let rows: Value = serde_json::from_str(&out)?;
    let id = rows[0]["id"].as_str().context("no session")?;
    let (code, out, err) = run(User::Dev, &["replay", &id[..30]])?;
    ensure!(
        code == Some(0) && out.contains(NAME) && out.contains("Ada"),
        "{code:?} {out} {err}"
    );
    let (code, out, _) = run(User::Admin, &["sessions", "-A"])?;
    ensure!(code == Some(0) && out.contains(id), "{out}");
    let (code, _, err) = run(User::Dev, &["sessions", "-A"])?;
    ensure!(code == Some(1) && err.contains("in all namespaces"), "{err}");
    let (code, _, err) = run(User::Dev, &["replay", "ffffffff"])?;
    ensure!(code == Some(1) && err.contains("knows no session"), "{err}");
    let (_, out, err) = run(User::Admin, &["explain", "pod/agent", "-n", namespace, "--live"])?;
    ensure!(
        out.contains("its sidecar listens") && out.contains("tier       Cooperative"),
        "{out} {err}"
    );
    agent.end(sidecar);
    Ok(())
}
