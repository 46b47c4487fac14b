//! `make cluster`: a node that stays until it is told to go, and a port of 127.0.0.1 that leads to its API server.
//!
//! Owns the keeper's process, its state file, and the way in: a Unix socket, which crosses namespaces because it lies in a
//! folder. Refuses a second cluster beside the first. Invariant: when the keeper ends, however it is told to, everything
//! ends with it, and `down` shows that nothing is left.

use std::fs;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::{json, Value};

use super::house::{self, House};
use super::site::{Agents, Site, LEDGER, SHOP};
use super::{Parts, ADDRESS, PORT};
use crate::cluster::Programs;
use crate::postgres::cache;

/// Longest time from nothing to a running agent.
const START: Duration = Duration::from_secs(300);
/// Longest time to clear up.
const END: Duration = Duration::from_secs(60);
/// The agents' namespace.
const AGENTS: &str = "agents";

/// Where everything about the running cluster lies.
fn state() -> Result<PathBuf> {
    Ok(cache()?.join("running"))
}

/// The keeper that runs, if one does: its process and the folder of its run.
fn running() -> Result<Option<(Pid, PathBuf)>> {
    let file = state()?.join("keeper.json");
    let Ok(text) = fs::read_to_string(file) else {
        return Ok(None);
    };
    let kept: Value = serde_json::from_str(&text)?;
    let pid = i32::try_from(kept["pid"].as_i64().context("no pid")?)?;
    Ok(Some((
        Pid::from_raw(pid),
        PathBuf::from(kept["run"].as_str().context("no run")?),
    )))
}

/// Whether a process is a keeper: numbers are used again.
fn keeps(pid: Pid) -> bool {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    words.split(|byte| *byte == 0).any(|word| word == b"keep")
}

/// Starts a keeper in the background, shows what it does until the cluster is up, and says how to use it.
pub fn up() -> Result<()> {
    if let Some((pid, _)) = running()?.filter(|(pid, _)| keeps(*pid)) {
        bail!("a cluster runs already (process {pid}): make cluster-down ends it");
    }
    down()?;
    let state = state()?;
    fs::create_dir_all(&state)?;
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700))?;
    let log = fs::File::create(state.join("log"))?;
    let mut keeper = Command::new(std::env::current_exe()?)
        .arg("keep")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()?;
    let (deadline, ready, mut shown) = (Instant::now() + START, state.join("ready"), 0);
    loop {
        let text = fs::read_to_string(state.join("log")).unwrap_or_default();
        eprint!("{}", text.get(shown..).unwrap_or_default());
        shown = text.len();
        if ready.exists() {
            break;
        }
        if let Some(status) = keeper.try_wait()? {
            bail!("the cluster did not come up ({status})");
        }
        if Instant::now() > deadline {
            down()?;
            bail!("the cluster did not come up within {} s", START.as_secs());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    print!("{}", fs::read_to_string(ready)?);
    Ok(())
}

/// Ends the keeper and shows that nothing is left; answers whether there was one.
pub fn down() -> Result<bool> {
    let state = state()?;
    let Some((pid, run)) = running()? else {
        return Ok(false);
    };
    if keeps(pid) {
        kill(pid, Signal::SIGTERM)?;
        let deadline = Instant::now() + END;
        while keeps(pid) {
            ensure!(
                Instant::now() < deadline,
                "the keeper (process {pid}) does not end; see {}",
                state.display()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    let said = fs::read_to_string(state.join("left")).ok();
    // One that was killed cleared nothing up.
    house::clear_behind(&run)?;
    fs::remove_dir_all(&state)?;
    match said {
        Some(left) if !left.is_empty() => bail!("the cluster left something behind:\n{left}"),
        Some(_) => println!("cluster: gone; no process, mount, control group, link or folder is left"),
        None => println!("cluster: its keeper had been killed; its control groups and its folder are removed"),
    }
    Ok(true)
}

/// The keeper: holds the namespaces' first process, and forwards the port.
pub fn keep() -> Result<()> {
    let state = state()?;
    let house = House::build()?;
    let kept = json!({"pid": std::process::id(), "run": house.run()});
    fs::write(state.join("keeper.json"), kept.to_string())?;
    let port = forward(house.run().join("api.sock"))?;
    fs::write(house.run().join("port"), port.to_string())?;
    let mut child = house.enter(&["keep".to_owned()])?;
    let ended = house.wait(&mut child, None);
    house::end(&mut child);
    let left = house.leave()?;
    fs::write(state.join("left"), left.join("\n"))?;
    match ended {
        Ok(status) => bail!("the cluster ended by itself: {status}"),
        Err(_told) => Ok(()),
    }
}

/// Accepts on a port of 127.0.0.1 and hands each connection to a socket.
fn forward(socket: PathBuf) -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if let Ok(other) = UnixStream::connect(&socket) {
                join(stream, other);
            }
        }
    });
    Ok(port)
}

/// Copies both ways, on two threads, until either side ends.
fn join(tcp: TcpStream, unix: UnixStream) {
    let (Ok(mut from), Ok(mut to)) = (tcp.try_clone(), unix.try_clone()) else {
        return;
    };
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let (mut from, mut to) = (unix, tcp);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
}

/// What runs inside: the site, one agent, and the other end of the way in; it never ends by itself.
pub fn inside(programs: &Programs, parts: &Parts, run: &Path, images: &Path) -> Result<()> {
    house::furnish(parts)?;
    let listener = UnixListener::bind(run.join("api.sock"))?;
    let site = Site::start(programs, parts, run, images)?;
    let agents = site.agents_named(AGENTS)?;
    agents.psql_pod("agent")?;
    eprintln!("node: the agent is ready");
    std::thread::spawn(move || {
        for unix in listener.incoming().flatten() {
            if let Ok(tcp) = TcpStream::connect((ADDRESS, PORT)) {
                join(tcp, unix);
            }
        }
    });
    tell(&agents, run)?;
    loop {
        // Services that somebody makes get their names; the pipe's end ends this process.
        let _ = site.node.name_services();
        std::thread::sleep(Duration::from_secs(2));
    }
}

/// Writes a kubeconfig and a kubectl, and what to do with them.
fn tell(agents: &Agents<'_>, run: &Path) -> Result<()> {
    let state = state()?;
    let cluster = &agents.site.node.cluster;
    let port = fs::read_to_string(run.join("port"))?;
    let (authority, token) = cluster.admin()?;
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "sidegate",
        "clusters": [{"name": "sidegate", "cluster": {
            "server": format!("https://127.0.0.1:{port}"),
            "certificate-authority-data": base64::Engine::encode(&base64::engine::general_purpose::STANDARD, authority),
        }}],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "sidegate", "context": {"cluster": "sidegate", "user": "admin", "namespace": AGENTS}}],
    });
    let (kubeconfig, kubectl) = (state.join("kubeconfig"), state.join("kubectl"));
    fs::write(&kubeconfig, config.to_string())?;
    fs::set_permissions(&kubeconfig, fs::Permissions::from_mode(0o600))?;
    let kube = cluster.programs.path("kube");
    let script = format!("#!/bin/sh\nexec '{}' kubectl \"$@\"\n", kube.display());
    fs::write(&kubectl, script)?;
    fs::set_permissions(&kubectl, fs::Permissions::from_mode(0o755))?;
    let text = format!(
        "\nA cluster with Sidegate runs. `make cluster-down` removes it.\n\n  export KUBECONFIG={}\n  alias kubectl={}\n\n\
         Try:\n  kubectl get pods -A\n  kubectl exec agent -c agent -- psql -h 127.0.0.1 -p {SHOP} -U anybody -d shop -c \
         'SELECT name, ssn FROM app.people'\n  kubectl edit accesspolicy support     # say Deny, and read again\n\n\
         The same rows behind short-lived tokens, on PostgreSQL 18: -p {LEDGER}. The agent has no password and no token.\n",
        kubeconfig.display(),
        kubectl.display(),
    );
    fs::write(state.join("ready.new"), text)?;
    fs::rename(state.join("ready.new"), state.join("ready"))?;
    Ok(())
}
