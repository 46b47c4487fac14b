//! `sidegate-sidecar`: configured by environment only, logs JSON lines to stderr, ends on SIGTERM or SIGINT. With the
//! argument `probe` it asks the one that runs beside it whether it serves; with `fence` it shuts every way out of the pod but
//! the sidecar's, and ends.
//!
//! Exit codes: 0 ended as asked or serves, 1 could not start, ended by itself or does not serve, 2 wrong configuration (every problem listed).

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use sidegate_sidecar::app::Sidecar;
use sidegate_sidecar::config::{SidecarConfig, RUN_DIR};
use sidegate_sidecar::fence;
use sidegate_sidecar::probe::{self, Probed};
use tikv_jemallocator::Jemalloc;
use tokio::signal::unix::{signal, SignalKind};
use tracing_subscriber::EnvFilter;
use zeroizing_alloc::ZeroAlloc;

/// Freed memory is overwritten, and so is what a growing buffer leaves behind: copies of credentials in buffers of libraries are out
/// of our reach otherwise (tests `nothing_of_a_token_is_left_once_its_lease_is_gone` and its neighbours).
#[global_allocator]
static ALLOCATOR: ZeroAlloc<Jemalloc> = ZeroAlloc(Jemalloc);

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        None => {}
        Some("probe") => return probe(),
        Some("fence") => return fenced(),
        Some(_) => {
            let usage = b"sidegate-sidecar: no argument, `probe` or `fence`; it is configured by its environment\n";
            // Nowhere else to say it.
            let _ = std::io::stderr().write_all(usage);
            return ExitCode::from(2);
        }
    }
    let filter = EnvFilter::try_from_env("SIDEGATE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .json()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    if let Err(error) = harden() {
        tracing::error!(%error, "the process cannot be made undumpable");
        return ExitCode::FAILURE;
    }
    let config = match SidecarConfig::from_env(|name| std::env::var(name).ok()) {
        Ok(config) => config,
        Err(problems) => {
            for problem in problems {
                tracing::error!(variable = problem.variable, message = problem.message, "configuration");
            }
            return ExitCode::from(2);
        }
    };
    tracing::info!(
        pod = config.pod.name,
        uid = config.pod.uid,
        ips = config.pod.ips,
        "starting"
    );
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(run(config))
}

/// What the kubelet runs: the exit code is the answer.
fn probe() -> ExitCode {
    let folder = std::env::var_os("SIDEGATE_RUN_DIR").map_or_else(|| PathBuf::from(RUN_DIR), PathBuf::from);
    match probe::ask(&folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let line = format!("not serving: {error}\n");
            let _ = std::io::stderr().write_all(line.as_bytes());
            ExitCode::FAILURE
        }
    }
}

/// Before any agent begins: without a fence that holds the pod does not start.
fn fenced() -> ExitCode {
    let users = std::env::var("SIDEGATE_FENCE_UIDS").ok();
    match fence::users(users.as_deref()).and_then(|users| fence::raise(&users)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let line = format!("no fence: {error}\n");
            let _ = std::io::stderr().write_all(line.as_bytes());
            ExitCode::FAILURE
        }
    }
}

async fn run(config: SidecarConfig) -> ExitCode {
    let (run_dir, waits) = (config.run_dir.clone(), config.waits);
    let running = match Sidecar::start(config).await {
        Ok(running) => running,
        Err(error) => {
            tracing::error!(%error, "not started");
            return ExitCode::FAILURE;
        }
    };
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
        tracing::error!("signals cannot be received");
        return ExitCode::FAILURE;
    };
    let serving = async {
        if waits {
            tracing::info!("waiting for a bundle: nothing of the agent's begins before");
            running.bundled().await;
        }
        let probed = Probed::open(Path::new(&run_dir))?;
        // From here on the kubelet's startup probe passes.
        tracing::info!("serving");
        probed.answer().await;
        Ok::<(), std::io::Error>(())
    };
    tokio::select! {
        served = serving => if let Err(error) = served {
            tracing::error!(%error, folder = %run_dir.display(), "probes cannot be answered");
            return ExitCode::FAILURE;
        },
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let left = running.shutdown().await;
    tracing::info!(left, "ended");
    ExitCode::SUCCESS
}

/// No core file and no debugger may read leases out of this process.
fn harden() -> Result<(), nix::errno::Errno> {
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0)?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|error| nix::errno::Errno::from_raw(error.raw_os_error()))
}
