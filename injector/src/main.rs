//! `sidegate-injector`: the webhook that puts sidecars into agents' pods.
//!
//! Logs JSON lines to stderr, never a value of a variable; the first line of standard output says where it listens; ends
//! on SIGTERM or SIGINT. Exit codes: 0 ended as asked, 1 could not start, 2 wrong usage or configuration.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sidegate_injector::app::{start, InjectorConfig};
use sidegate_injector::install::Install;
use tokio::signal::unix::{signal, SignalKind};
use tracing_subscriber::EnvFilter;

/// Sidegate's injector: answers the API server's reviews of new pods.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// Where it listens.
    #[arg(long, value_name = "ADDR", default_value = "[::]:8446")]
    listen: SocketAddr,
    /// PEM of its certificate, which the webhook configuration's caBundle must verify.
    #[arg(long, value_name = "FILE")]
    tls_cert: PathBuf,
    /// PEM of the certificate's key.
    #[arg(long, value_name = "FILE")]
    tls_key: PathBuf,
    /// What sidecars are told of their broker: brokerUrl, brokerCaPem, audience, nameServers, clusterDomain.
    #[arg(long, value_name = "FILE")]
    install: PathBuf,
    /// How the API server is reached. Default: the service account of this pod.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The injector's own namespace, whose pods are left alone.
    #[arg(long, value_name = "NAME", default_value = "sidegate-system")]
    namespace: String,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("SIDEGATE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .json()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let install = match Install::from_file(&arguments.install) {
        Ok(install) => install,
        Err(message) => return fail(&message, 2),
    };
    let config = InjectorConfig {
        listen: arguments.listen,
        certificate: arguments.tls_cert,
        key: arguments.tls_key,
        install,
        kubeconfig: arguments.kubeconfig,
        namespace: arguments.namespace,
    };
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run(config)),
        Err(error) => fail(&error.to_string(), 1),
    }
}

async fn run(config: InjectorConfig) -> ExitCode {
    let running = match start(config).await {
        Ok(running) => running,
        Err(error) => return fail(&error.to_string(), 1),
    };
    let line = serde_json::json!({"listen": running.address});
    // Whoever does not read it needs no address.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
        return fail("signals cannot be received", 1);
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    running.shutdown().await;
    ExitCode::SUCCESS
}

fn fail(message: &str, code: u8) -> ExitCode {
    let _ = writeln!(std::io::stderr().lock(), "sidegate-injector: {message}");
    ExitCode::from(code)
}
