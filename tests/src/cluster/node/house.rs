//! The namespaces a node lives in: the program executes itself inside them, and clears up when that has ended.
//!
//! Refuses, with the reason, where the machine cannot. Invariants: the process inside ends when the pipe to its input
//! closes, and everything there ends with it; what is removed afterwards bears this run's name.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{channel, Receiver};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Uid;
use tokio::signal::unix::{signal, SignalKind};
use uuid::Uuid;

use super::traces::{self, Traces};
use super::{Parts, Unavailable, ADDRESS};
use crate::cluster::settings::SERVICES;

/// Set for the process inside: the folder of the run.
const INSIDE: &str = "SIDEGATE_NODE_INSIDE";
/// The namespaces; the user's stays, because root is needed anyway.
const NAMESPACES: [&str; 8] = [
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "--mount",
    "--net",
    "--ipc",
    "--uts",
];

/// The folder of the run, in the process inside.
pub fn inside() -> Option<PathBuf> {
    std::env::var_os(INSIDE).map(PathBuf::from)
}

/// Whether this machine can have a node.
///
/// # Errors
/// Why not.
pub fn suits(parts: &Parts) -> Result<(), Unavailable> {
    if std::env::var("SIDEGATE_TEST_NODE").as_deref() != Ok("1") {
        return Err(Unavailable("set SIDEGATE_TEST_NODE=1 to run it (as root)".to_owned()));
    }
    if !Uid::effective().is_root() {
        return Err(Unavailable("it needs root".to_owned()));
    }
    if let Some(missing) = traces::missing_controllers() {
        return Err(Unavailable(format!("control groups lack the controller {missing}")));
    }
    // Without it an answer goes from pod to pod over the bridge, past what would give it the Service's address again.
    if !Path::new("/proc/sys/net/bridge").exists() {
        let why = "the kernel does not filter what crosses a bridge: modprobe br_netfilter";
        return Err(Unavailable(why.to_owned()));
    }
    // What the network needs, tried in namespaces that end at once.
    let tried =
        "busybox ip link add name sgv0 type veth && busybox ip link add name sgb0 type bridge && nft add table t";
    let mut command = Command::new("unshare");
    command
        .args(NAMESPACES)
        .args(["sh", "-c", tried])
        .envs(parts.variables());
    match command.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            Err(Unavailable(format!(
                "no namespaces with veth, bridge and nftables: {said}"
            )))
        }
        Err(error) => Err(Unavailable(format!("unshare: {error}"))),
    }
}

/// A node's place on the machine, seen from outside.
pub struct House {
    run: PathBuf,
    before: Traces,
    /// Told when somebody ends this process.
    told: Receiver<()>,
    /// Held for as long as the run lives: what nobody holds may be swept.
    _lock: Flock<File>,
}

impl House {
    /// Makes the folder and the control groups of a run, and sweeps up behind runs that were killed.
    pub fn build() -> Result<House> {
        sweep();
        let told = signals()?;
        let run = Path::new("/tmp").join(format!("{}{}", traces::PREFIX, Uuid::new_v4().simple()));
        let before = Traces::seen(&run)?;
        fs::create_dir(&run)?;
        // PostgreSQL's user must get to its data.
        fs::set_permissions(&run, fs::Permissions::from_mode(0o755))?;
        let lock = File::create(run.join("lock"))?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
        let house = House {
            run,
            before,
            told,
            _lock,
        };
        fs::create_dir(house.run.join("tmp"))?;
        fs::set_permissions(house.run.join("tmp"), fs::Permissions::from_mode(0o1777))?;
        traces::make_groups(&house.run)?;
        Ok(house)
    }

    /// The folder of the run.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// Executes this program inside; the answer's input must stay open for as long as it is to live.
    pub fn enter(&self, arguments: &[String]) -> Result<Child> {
        let mut command = Command::new("unshare");
        command
            .args(NAMESPACES)
            .arg(std::env::current_exe()?)
            .args(arguments)
            .env(INSIDE, &self.run)
            .env("TMPDIR", self.run.join("tmp"))
            .stdin(Stdio::piped());
        command.spawn().context("starting unshare")
    }

    /// Waits until what is inside ends; ends it when this process is told to end, and after this time.
    ///
    /// # Errors
    /// It was ended before it was done.
    pub fn wait(&self, child: &mut Child, longest: Option<Duration>) -> Result<ExitStatus> {
        let deadline = longest.map(|longest| Instant::now() + longest);
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if self.told.try_recv().is_ok() {
                end(child);
                bail!("told to end");
            }
            if deadline.is_some_and(|deadline| Instant::now() > deadline) {
                end(child);
                bail!(
                    "not done within {} s: it was ended",
                    longest.unwrap_or_default().as_secs()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Clears up, and answers what is different from before.
    pub fn leave(self) -> Result<Vec<String>> {
        traces::clear(&self.run)?;
        Ok(Traces::seen(&self.run)?.since(&self.before))
    }
}

/// Clears up behind a run whose own process could not.
pub fn clear_behind(run: &Path) -> Result<()> {
    traces::clear(run)
}

/// Clears up behind every run whose process is gone: nobody holds its lock.
fn sweep() {
    for entry in fs::read_dir("/tmp").into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(traces::PREFIX);
        let Some(lock) = ours.then(|| File::open(entry.path().join("lock")).ok()).flatten() else {
            continue;
        };
        if Flock::lock(lock, FlockArg::LockExclusiveNonblock).is_ok() {
            eprintln!("node: sweeping up behind {}", entry.path().display());
            if let Err(error) = traces::clear(&entry.path()) {
                eprintln!("node: {error:#}");
            }
        }
    }
}

/// SIGTERM and SIGINT, as messages: what is inside ends with this process, what is outside must be removed by it.
fn signals() -> Result<Receiver<()>> {
    let (tells, told) = channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut term, mut int) = {
        let _inside = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        });
        let _ = tells.send(());
    });
    Ok(told)
}

/// Ends what is inside, all at once.
pub fn end(child: &mut Child) {
    drop(child.stdin.take());
    // The death of unshare is the death of the first process inside, and that one of all others.
    let _ = child.kill();
    let _ = child.wait();
}

/// Makes the inside a place for a node. Only the first process of the namespaces may call this.
pub fn furnish(parts: &Parts) -> Result<()> {
    ensure!(std::process::id() == 1, "not in namespaces of its own");
    end_with_input();
    plain("mount", &["--make-rshared", "/"])?;
    let address = format!("{ADDRESS}/32");
    parts.run("busybox", &["ip", "link", "set", "lo", "up"])?;
    parts.run("busybox", &["ip", "addr", "add", &address, "dev", "lo"])?;
    let source = ADDRESS.to_string();
    parts.run(
        "busybox",
        &["ip", "route", "add", SERVICES, "dev", "lo", "src", &source],
    )?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    // Sockets, results and links for which there is no setting.
    for folder in ["/run", "/var/lib", "/var/log"] {
        plain("mount", &["-t", "tmpfs", "tmpfs", folder])?;
    }
    let covers = Path::new("/run/sidegate-settings");
    fs::create_dir(covers)?;
    for (setting, value) in traces::SETTINGS {
        let cover = covers.join(setting.replace('/', "."));
        fs::write(&cover, format!("{value}\n"))?;
        let (cover, setting) = (cover.display().to_string(), format!("/proc/sys/{setting}"));
        plain("mount", &["--bind", &cover, &setting])?;
    }
    Ok(())
}

/// Runs a program of the machine's own to its end.
pub(super) fn plain(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .context(program.to_owned())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        said.trim()
    );
    Ok(())
}

/// Whoever holds the other end decides how long this lives.
fn end_with_input() {
    std::thread::spawn(|| {
        let mut nothing = [0; 64];
        while std::io::stdin().read(&mut nothing).is_ok_and(|read| read > 0) {}
        std::process::exit(1);
    });
}
