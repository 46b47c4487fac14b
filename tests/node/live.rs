//! Running agents obey: what a security engineer types holds for sessions that are open, within a second.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{ensure, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::{json, Value};
use sidegate_tests::cluster::node::site::{Agents, Site, MASKED, READ, SHOP};

use crate::lifecycle::sidecar_of;

/// One session that asks again and again, and says when what came back changed. A session that ends is opened again.
const LOOP: &str = "import psycopg, time
connection, last = None, None
while True:
    try:
        if connection is None or connection.closed:
            connection = psycopg.connect('host=127.0.0.1 port=15432 user=agent dbname=shop', autocommit=True)
            print(time.time(), 'opened', flush=True)
        said = connection.execute('SELECT ssn FROM app.people WHERE id = 1').fetchone()[0]
    except psycopg.OperationalError as error:
        said = 'ended'
        if connection is not None:
            connection.close()
    except psycopg.Error as error:
        said = 'refused ' + (error.sqlstate or '')
    if said != last:
        print(time.time(), said, flush=True)
        last = said
    time.sleep(0.01)
";

/// The promise is a second, on a machine with time for it; the figures are printed. This much is asserted.
const LATEST: f64 = 5.0;

/// A namespace with an agent whose one session asks again and again.
pub fn watching<'a>(site: &'a Site) -> Result<Agents<'a>> {
    let agents = site.agents()?;
    agents.create(&agents.pod("agent", &site.python, &["python3", "-u", "-c", LOOP]))?;
    agents.ready("agent")?;
    seen(&agents, "*******8841", 0.0)?;
    Ok(agents)
}

/// When the session first said this after a time, in seconds since 1970, and everything it said.
pub fn seen(agents: &Agents<'_>, word: &str, after: f64) -> Result<f64> {
    let mut found = None;
    agents.until(&format!("the session says `{word}`"), || {
        let log = agents.kubectl(&["logs", "agent", "-c", "agent"])?;
        found = log.lines().find_map(|line| {
            let (at, said) = line.split_once(' ')?;
            let at: f64 = at.parse().ok()?;
            (at >= after && said.starts_with(word)).then_some(at)
        });
        Ok(found.is_some())
    })?;
    found.context("never")
}

/// Seconds since 1970.
pub fn now() -> Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}

/// Changes something, and answers how long after kubectl had ended the session obeyed, in seconds.
fn obeyed(agents: &Agents<'_>, what: &str, word: &str, change: impl FnOnce() -> Result<()>) -> Result<f64> {
    let began = now()?;
    change()?;
    let done = now()?;
    let late = seen(agents, word, began)? - done;
    println!("{what}: {:.0} ms after kubectl ended (bar: 1000)", late * 1000.0);
    Ok(late)
}

fn patch(agents: &Agents<'_>, patch: &Value) -> Result<()> {
    let patch = patch.to_string();
    let all = ["patch", "accesspolicy", "support", "--type=json", "-p", &patch];
    agents.kubectl(&all).map(drop)
}

/// A rule against what the agent reads.
pub fn forbid(agents: &Agents<'_>) -> Result<()> {
    let rule =
        json!({"name": "no-people", "effect": "Deny", "sql": {"commands": ["Select"], "tables": ["app.people"]}});
    patch(agents, &json!([{"op": "add", "path": "/spec/rules/1", "value": rule}]))
}

/// The policy as it was.
pub fn allow(agents: &Agents<'_>) -> Result<()> {
    patch(agents, &json!([{"op": "remove", "path": "/spec/rules/1"}]))
}

/// An AccessPolicy is changed: the open session is refused its next read, and is not ended; changed back, it reads on.
pub fn a_policy_holds_for_an_open_session(site: &Site) -> Result<()> {
    let agents = watching(site)?;
    let late = obeyed(&agents, "an edited policy", "refused", || forbid(&agents))?;
    ensure!(late < LATEST, "{late} s");
    let late = obeyed(&agents, "the policy as it was", "*******8841", || allow(&agents))?;
    ensure!(late < LATEST, "{late} s");
    let log = agents.kubectl(&["logs", "agent", "-c", "agent"])?;
    ensure!(log.matches("opened").count() == 1, "the session was ended: {log}");
    Ok(())
}

/// A Lockdown of the namespace: the open session is ended and no new one begins, until it is lifted.
pub fn a_lockdown_ends_an_open_session(site: &Site) -> Result<()> {
    let agents = watching(site)?;
    let name = agents.namespace.clone();
    let lockdown = json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "Lockdown", "metadata": {"name": name},
        "spec": {"reason": "drill", "freeze": [{"namespace": name}]},
    });
    let late = obeyed(&agents, "a Lockdown", "ended", || agents.create(&lockdown).map(|_| ()))?;
    ensure!(late < LATEST, "{late} s");
    let log = agents.kubectl(&["logs", "agent", "-c", "agent"])?;
    ensure!(
        log.matches("opened").count() == 1 && log.trim_end().ends_with("ended"),
        "{log}"
    );
    obeyed(&agents, "the Lockdown lifted", "opened", || {
        agents.kubectl(&["delete", "lockdown", &name]).map(|_| ())
    })?;
    Ok(())
}

/// The broker's authority is replaced while an agent asks a hundred times a second: its session stays. A sidecar that starts
/// again believes by the old pin of its pod who serves under the new authority, and so does a pod that is made now.
pub fn an_authority_is_replaced_under_load(site: &Site) -> Result<()> {
    let agents = watching(site)?;
    let rolled = site.broker(&["rotate", "--now", "--authority"])?;
    ensure!(rolled.starts_with("new authority: "), "{rolled}");
    agents.psql_pod("late")?;
    let said = agents.ask("late", SHOP, READ)?;
    ensure!(said == MASKED, "{said}");
    let log = agents.kubectl(&["logs", "agent", "-c", "agent"])?;
    ensure!(
        log.matches("opened").count() == 1 && log.trim_end().ends_with("*******8841"),
        "{log}"
    );
    let pod = agents.stored("pod", "agent")?;
    let sidecar = sidecar_of(pod["metadata"]["uid"].as_str().context("no UID")?)?;
    let killed = now()?;
    kill(Pid::from_raw(sidecar.cast_signed()), Signal::SIGKILL)?;
    seen(&agents, "*******8841", killed)?;
    Ok(())
}
