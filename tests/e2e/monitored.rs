//! What the chart makes for other operators, by their own kinds: the real API server with the kinds of Prometheus' operator and of
//! cert-manager takes it, and Prometheus' own parser reads its rules and the queries of its dashboard.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{ensure, Context, Result};
use sidegate_tests::cluster::{is_required, Cluster, User};
use sidegate_tests::postgres::cache;

use crate::site::until;

/// The golden file of everything that is off by default: `charts::what_is_off_by_default_is_rendered_as_its_golden_file`.
const RENDERED: &str = include_str!("charts_optional.yaml");

/// Each object is taken by its operator's own schema, which refuses a field that it does not know.
pub fn what_is_made_for_other_operators_is_of_their_kinds(cluster: &Cluster) -> Result<()> {
    let Some(parts) = parts()? else {
        return Ok(());
    };
    let kinds = parts.join("kinds");
    let path = kinds.to_str().context("a path that is text")?;
    let taken = taken(cluster, path);
    // Whoever looks at the cluster afterwards finds it as it was.
    cluster.kubectl(&["delete", "-f", path], "")?;
    taken
}

fn taken(cluster: &Cluster, kinds: &str) -> Result<()> {
    cluster.kubectl(&["create", "-f", kinds], "")?;
    cluster.kubectl(
        &["wait", "--for=condition=Established", "--timeout=60s", "-f", kinds],
        "",
    )?;
    // The file is of a release in namespace `system`.
    cluster.kubectl(&["create", "namespace", "system"], "")?;
    let tried = |objects: &str| -> Result<Output> {
        let apply = [
            "apply",
            "--server-side",
            "--dry-run=server",
            "--validate=strict",
            "-f",
            "-",
        ];
        cluster.ask(User::Admin, &apply, objects)
    };
    // An API server answers for a kind a moment after it says that it is established.
    let said = until(
        "the kinds are served",
        || tried(RENDERED),
        |said| !String::from_utf8_lossy(&said.stderr).contains("no matches for kind"),
    )?;
    ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    for kind in ["servicemonitor", "podmonitor", "prometheusrule", "certificate"] {
        let line = said.lines().find(|line| line.starts_with(&format!("{kind}.")));
        ensure!(
            line.is_some_and(|line| line.ends_with("serverside-applied (server dry run)")),
            "{kind}: {said}"
        );
    }
    for (right, wrong) in [
        ("  podMetricsEndpoints:", "  podMetricEndpoints:"),
        ("  endpoints:", "  endpoint:"),
        ("    - name: ", "    - nome: "),
        ("  dnsNames:", "  dnsName:"),
    ] {
        ensure!(RENDERED.contains(right), "{right} is nowhere in the file");
        let said = tried(&RENDERED.replace(right, wrong))?;
        let complaint = String::from_utf8_lossy(&said.stderr);
        ensure!(
            !said.status.success() && complaint.contains("field not declared in schema"),
            "{wrong} is taken: {complaint}"
        );
    }
    cluster.kubectl(&["delete", "namespace", "system", "--wait=false"], "")?;
    Ok(())
}

/// Prometheus loads the rules, and parses what the dashboard asks it.
pub fn prometheus_reads_the_rules_and_queries(_: &Cluster) -> Result<()> {
    let Some(parts) = parts()? else {
        return Ok(());
    };
    let read = |text: &str| -> Result<(bool, String)> {
        let mut reader = Command::new(parts.join("rules"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("the reader of rules")?;
        let _ = reader.stdin.take().context("its input")?.write_all(text.as_bytes());
        let output = reader.wait_with_output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8(said)?))
    };
    let expressions = RENDERED.matches("expr: ").count();
    let queries = RENDERED.matches("\"expr\": ").count();
    ensure!(expressions > 0 && queries > 0, "nothing is asked");
    let (good, said) = read(RENDERED)?;
    ensure!(
        good && said.trim() == format!("{expressions} rules, {queries} queries"),
        "{said}"
    );
    for (right, wrong) in [("expr: sum", "expr: sum("), ("\"expr\": \"sum", "\"expr\": \"sum(")] {
        ensure!(RENDERED.contains(right), "{right} is nowhere in the file");
        let (good, said) = read(&RENDERED.replacen(right, wrong, 1))?;
        ensure!(!good && said.contains("parse error"), "{wrong} is read: {said}");
    }
    Ok(())
}

/// What `need.sh monitoring` fetched and built. Where it could not, that is said: nothing here is of ours to fix.
fn parts() -> Result<Option<PathBuf>> {
    let parts = cache()?.join("monitoring");
    if parts.join("made-of").exists() {
        return Ok(Some(parts));
    }
    let why = "the kinds of other operators are not there: bash tests/setup/need.sh monitoring";
    ensure!(!is_required("monitoring"), "{why}");
    eprintln!("monitored: SKIPPED: {why}");
    Ok(None)
}
