//! Agents with stock clients reach databases through their own sidecars, and hold nothing to reach them with.

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};
use sidegate_tests::cluster::node::site::{Agents, Site, LEDGER, MASKED, READ, RELEASE, SHOP, SYSTEM};
use sidegate_tests::shop::PASSWORD;

/// The stock `psql`, without a password, reads masked rows of a database that is entered by a Secret; neither its
/// environment nor its files have the password, and it cannot reach the database by itself.
pub fn psql_reads_masked_rows_by_a_secret(site: &Site) -> Result<()> {
    let agents = site.agents()?;
    agents.psql_pod("agent")?;
    let said = agents.ask("agent", SHOP, READ)?;
    ensure!(said == MASKED, "{said}");
    let environment = agents.exec("agent", &["env"])?;
    ensure!(environment.contains("SIDEGATE_SHOP_PORT=15432"), "{environment}");
    ensure!(!environment.contains(PASSWORD), "{environment}");
    let tokens = agents.exec(
        "agent",
        &["sh", "-c", "ls -d /var/run/secrets /run/secrets 2>/dev/null; true"],
    )?;
    ensure!(tokens.is_empty(), "it has {tokens}");
    let direct = format!("postgresql://agent@shop.internal:{}/shop", site.shop.port);
    let refused = agents.exec("agent", &["psql", "-X", &direct, "-c", "SELECT 1"]);
    let refused = format!("{:#}", refused.err().context("it needs no gate")?);
    ensure!(refused.contains("password"), "{refused}");
    let log = site.shop.log();
    ensure!(log.contains("identity=\"shop_agent\""), "{log}");
    Ok(())
}

/// What Python's psycopg says of one row.
const PYTHON: &str = "import psycopg
with psycopg.connect('host=127.0.0.1 port=15433 user=agent dbname=shop') as connection:
    print('|'.join(connection.execute('SELECT current_user, name, ssn FROM app.people WHERE id = %s', (1,)).fetchone()))
";

/// Stock Python with psycopg reads masked rows of a PostgreSQL 18 that takes short-lived tokens alone (OAUTHBEARER).
pub fn python_reads_masked_rows_by_a_token(site: &Site) -> Result<()> {
    let agents = site.agents()?;
    agents.create(&agents.pod("agent", &site.python, &["/bin/sleep", "3600"]))?;
    agents.ready("agent")?;
    let said = agents.exec("agent", &["python3", "-c", PYTHON])?;
    ensure!(said == MASKED, "{said}");
    let log = site.ledger.log();
    ensure!(log.contains("method=oauth"), "{log}");
    ensure!(LEDGER == 15433, "the script's port");
    Ok(())
}

/// Workloads of every kind, as their owners write them.
fn workloads(agents: &Agents<'_>) -> [Value; 4] {
    let bare = agents.pod("bare", &agents.site.psql, &["/bin/sleep", "3600"]);
    let mut template = json!({"metadata": {"labels": {"app": "agent"}}, "spec": bare["spec"]});
    let namespace = &agents.namespace;
    let object = |kind: &str, name: &str, spec: Value| {
        json!({
            "apiVersion": if kind == "Job" { "batch/v1" } else { "apps/v1" }, "kind": kind,
            "metadata": {"name": name, "namespace": namespace}, "spec": spec,
        })
    };
    let selector = json!({"matchLabels": {"app": "agent"}});
    let deployment = object(
        "Deployment",
        "many",
        json!({"replicas": 1, "selector": selector, "template": template}),
    );
    let set = json!({"replicas": 1, "serviceName": "set", "selector": selector, "template": template});
    let set = object("StatefulSet", "set", set);
    template["spec"]["restartPolicy"] = json!("Never");
    template["spec"]["containers"][0]["command"] = json!(["/bin/true"]);
    let job = object("Job", "once", json!({"template": template}));
    [bare, deployment, set, job]
}

/// The pods that there are, once all four workloads have run.
fn run(agents: &Agents<'_>) -> Result<Vec<Value>> {
    for workload in workloads(agents) {
        agents.create(&workload)?;
    }
    agents.ready("bare")?;
    site_rolled_out(agents, "deployment/many")?;
    site_rolled_out(agents, "statefulset/set")?;
    agents.wait("job/once", "condition=Complete")?;
    let pods: Value = serde_json::from_str(&agents.kubectl(&["get", "pods", "-o", "json"])?)?;
    pods["items"].as_array().cloned().context("no list")
}

fn site_rolled_out(agents: &Agents<'_>, what: &str) -> Result<()> {
    agents.site.node.rolled_out(&agents.namespace, what)
}

/// A bare pod, a Deployment, a StatefulSet and a Job get their sidecar, first in line; the Job ends all the same.
pub fn every_workload_runs_with_its_sidecar_first(site: &Site) -> Result<()> {
    let agents = site.agents()?;
    let pods = run(&agents)?;
    ensure!(pods.len() == 4, "{} pods", pods.len());
    for pod in pods {
        let first = &pod["spec"]["initContainers"][0];
        ensure!(
            first["name"] == "sidegate" && first["restartPolicy"] == "Always",
            "{pod}"
        );
        let status = &pod["status"]["initContainerStatuses"][0];
        ensure!(status["restartCount"] == 0, "{status}");
    }
    Ok(())
}

/// The same objects in a namespace without the label run as they were written.
pub fn another_namespace_runs_untouched(site: &Site) -> Result<()> {
    let namespace = site.node.cluster.namespace()?;
    let agents = Agents { site, namespace };
    for pod in run(&agents)? {
        ensure!(pod["spec"].get("initContainers").is_none(), "{pod}");
        ensure!(!pod.to_string().contains("sidegate.dev"), "{pod}");
    }
    Ok(())
}

/// `helm test` has a pod with our own image ask for an agent's pod, shows what it said, and leaves nothing of itself.
pub fn helm_test_says_that_pods_get_their_sidecar_and_leaves_nothing(site: &Site) -> Result<()> {
    let cluster = &site.node.cluster;
    let said = cluster.helm(&["test", RELEASE, "--namespace", SYSTEM, "--timeout=60s"])?;
    let (out, err) = (
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr),
    );
    ensure!(
        said.status.success() && err.contains("would get its sidecar"),
        "{out}{err}{}",
        site.node.trouble(SYSTEM)
    );
    let ours = ["--selector=app.kubernetes.io/component=test", "-o", "name"];
    let left = [
        "get",
        "serviceaccounts,roles,rolebindings,pods,namespaces",
        "--all-namespaces",
    ];
    cluster.until("everything of the test is gone", || {
        Ok(cluster.kubectl(&[&left[..], &ours].concat(), "")?.is_empty())
    })
}
