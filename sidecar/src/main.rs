//! `sidegate-sidecar`: configured by environment only, logs JSON lines to stderr, ends on SIGTERM or SIGINT.
//!
//! Exit codes: 0 ended as asked, 1 could not start or ended by itself, 2 wrong configuration (every problem listed).

use std::process::ExitCode;

use sidegate_sidecar::app::Sidecar;
use sidegate_sidecar::config::SidecarConfig;
use tokio::signal::unix::{signal, SignalKind};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
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

async fn run(config: SidecarConfig) -> ExitCode {
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
    tokio::select! {
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
