//! `sidegate-injector`: the webhook that puts sidecars into agents' pods.
//!
//! Logs JSON lines to stderr, never a value of a variable; the first line of standard output says where it listens; ends
//! on SIGTERM or SIGINT. Exit codes: 0 ended as asked, 1 could not start, 2 wrong usage or configuration.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sidegate_injector::app::{
    start, Certificates, Files, InjectorConfig, InstallFrom, Lives, Wanted, EVICT_EVERY, WATCH_EVERY,
};
use sidegate_injector::install::{name_servers, Install};
use tokio::signal::unix::{signal, SignalKind};
use tracing_subscriber::EnvFilter;

/// Sidegate's injector: answers the API server's reviews of new pods.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// Where it listens.
    #[arg(long, value_name = "ADDR", default_value = "[::]:8446")]
    listen: SocketAddr,
    /// Where it says, in plain HTTP, whether it lives and is ready.
    #[arg(long, value_name = "ADDR")]
    health_listen: Option<SocketAddr>,
    /// The address by which it calls itself before it says that it is ready: the pod's.
    #[arg(long, value_name = "IP", env = "POD_IP")]
    own_address: Option<IpAddr>,
    /// PEM of a certificate that somebody else renews; it is read again when it changes. Without it the replicas make
    /// their own, in a Secret, and write the caBundle of the webhook configurations.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// PEM of that certificate's key.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The Secret that holds the webhook's own certificates. It must exist.
    #[arg(long, value_name = "NAME", default_value = "sidegate-webhook")]
    webhook_secret: String,
    /// Another host name or address by which the API server calls, besides the Service's; may be repeated.
    #[arg(long, value_name = "HOST")]
    webhook_host: Vec<String>,
    /// What the webhook configurations, the Service and the Lease are called.
    #[arg(long, value_name = "NAME", default_value = "sidegate-injector")]
    name: String,
    /// The broker's front face, as sidecars call it. Its authority is read from ConfigMap sidegate-broker-ca.
    #[arg(long, value_name = "URL", required_unless_present = "install")]
    broker_url: Option<String>,
    /// The audience of sidecars' tokens: the broker's issuer URL.
    #[arg(long, value_name = "URL", required_unless_present = "install")]
    audience: Option<String>,
    /// A name server for sidecars, IP[:PORT]; may be repeated. Default: those of this pod.
    #[arg(long, value_name = "ADDR", conflicts_with = "install")]
    name_server: Vec<String>,
    /// What names that end in `.svc` are completed with.
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    cluster_domain: String,
    /// All of it in one file: brokerUrl, brokerCaPem, audience, nameServers, clusterDomain.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["broker_url", "audience"])]
    install: Option<PathBuf>,
    /// How the API server is reached. Default: the service account of this pod.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The injector's own namespace, whose pods are left alone.
    #[arg(long, value_name = "NAME", default_value = "sidegate-system")]
    namespace: String,
    /// Its leader tells in the status of InjectionProfiles how many pods have no valid sidecar, and what their networkPolicy
    /// would make. Of two releases side by side one does.
    #[arg(long)]
    report_profiles: bool,
    /// Its leader evicts pods of labelled namespaces that have no valid sidecar and would have one if they were made anew: one in
    /// ten seconds, as far as disruption budgets let it, never a pod without a controller or of a Job.
    #[arg(long)]
    evict_unprotected: bool,
}

impl Arguments {
    fn certificates(&self) -> Certificates {
        if let (Some(certificate), Some(key)) = (self.tls_cert.clone(), self.tls_key.clone()) {
            return Certificates::Files(Files { certificate, key });
        }
        let (name, namespace) = (&self.name, &self.namespace);
        let service = [
            format!("{name}.{namespace}.svc"),
            format!("{name}.{namespace}.svc.{}", self.cluster_domain),
            format!("{name}.{namespace}"),
            name.clone(),
        ];
        Certificates::SelfManaged(Wanted {
            secret: self.webhook_secret.clone(),
            names: service.into_iter().chain(self.webhook_host.iter().cloned()).collect(),
            lives: Lives::default(),
        })
    }

    fn install(&self) -> Result<InstallFrom, String> {
        if let Some(file) = &self.install {
            return Install::from_file(file).map(InstallFrom::Given);
        }
        let mut servers = self.name_server.clone();
        if servers.is_empty() {
            let own = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
            servers = name_servers(&own);
        }
        let (url, audience) = (self.broker_url.clone(), self.audience.clone());
        let (url, audience) = (url.unwrap_or_default(), audience.unwrap_or_default());
        let install = Install::unpublished(url, audience, servers, self.cluster_domain.clone());
        install
            .map(InstallFrom::Published)
            .map_err(|problems| problems.join("; "))
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("SIDEGATE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .json()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let install = match arguments.install() {
        Ok(install) => install,
        Err(message) => return fail(&message, 2),
    };
    let config = InjectorConfig {
        listen: arguments.listen,
        health_listen: arguments.health_listen,
        own_address: arguments.own_address,
        certificates: arguments.certificates(),
        install,
        kubeconfig: arguments.kubeconfig,
        namespace: arguments.namespace,
        name: arguments.name,
        replica: sidegate_cluster::leader::name(&uuid::Uuid::now_v7().to_string()),
        watch_every: WATCH_EVERY,
        report_profiles: arguments.report_profiles,
        evict_every: arguments.evict_unprotected.then_some(EVICT_EVERY),
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
    let line = serde_json::json!({"listen": running.address, "health": running.health});
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
