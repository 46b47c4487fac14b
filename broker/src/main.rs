//! `sidegate-broker`: the broker by itself, on files; `rotate --now`, the emergency rotation of its keys, and
//! `jwks`, which prints them.
//!
//! Refuses to start with any problem in its configuration, prints all of them with their places, and exits 2.
//! JSON logs go to standard error; the first line of standard output says where it listens.

mod jwks;
mod rotate;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sidegate_broker::config::{AdmissionOptions, ClusterOptions};
use sidegate_broker::traces::{is_span, Traces};
use sidegate_broker::{Broker, BrokerConfig, Identity, Machine, Place, Running, SharedRecords, StartError};
use tokio::signal::unix::{signal, SignalKind};
use tracing_subscriber::filter::{FilterExt as _, FilterFn, LevelFilter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// Sidegate's broker on files: says who a sidecar is, what it may reach, and with which credential.
#[derive(Parser)]
#[command(
    version,
    about,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Folder with *.yaml; may be repeated. Describes one machine with one agent.
    #[arg(
        long,
        required_unless_present = "kubernetes",
        conflicts_with = "kubernetes",
        value_name = "DIR"
    )]
    config: Vec<PathBuf>,
    /// Serve a cluster: identities, policies, Secrets and pins come from its API server.
    #[arg(long)]
    kubernetes: bool,
    /// How the API server is reached; default: the service account of this pod.
    #[arg(long, requires = "kubernetes", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The broker's own namespace, where pins are kept.
    #[arg(
        long,
        requires = "kubernetes",
        value_name = "NAME",
        default_value = "sidegate-system"
    )]
    namespace: String,
    /// What the broker's own objects begin with: Secret NAME-keys.
    #[arg(
        long,
        requires = "kubernetes",
        value_name = "NAME",
        default_value = sidegate_broker::config::DEFAULT_NAME
    )]
    name: String,
    /// The digest that sidecars' images must have (this release's; those of the two before it stay allowed). Default: any
    /// image is taken.
    #[arg(long, requires = "kubernetes", value_name = "sha256:HEX")]
    sidecar_digest: Option<String>,
    /// A user id that sidecars run as, for the admission policies; may be repeated.
    #[arg(long, requires = "kubernetes", value_name = "UID")]
    sidecar_uid: Vec<u32>,
    /// The group that may change what the admission policies protect.
    #[arg(long, requires = "kubernetes", value_name = "NAME")]
    break_glass_group: Option<String>,
    /// Folder laid out <namespace>/<name>/<key>, files 0600.
    #[arg(long, conflicts_with = "kubernetes", value_name = "DIR")]
    secrets: Option<PathBuf>,
    /// Private folder for keys, pins, approvals, records and the control socket.
    #[arg(long, required = true, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The record store of several brokers, on a volume that all of them write. Default: `records` in --state.
    #[arg(long, requires = "kubernetes", requires = "replica", value_name = "DIR")]
    records: Option<PathBuf>,
    /// Which of those brokers this is: the name that belongs to this --state, as a StatefulSet's pod keeps it.
    #[arg(long, requires = "records", value_name = "NAME")]
    replica: Option<String>,
    /// Address of the front face.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Address of the issuer's public face; with port 0 the last start's port is tried first.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    issuer_listen: SocketAddr,
    /// Where /livez, /readyz and /metrics are served, in plain HTTP. Default: nowhere.
    #[arg(long, value_name = "ADDR")]
    health_listen: Option<SocketAddr>,
    /// Where people's tools look at records (`kubectl sidegate sessions`), over TLS. Default: nowhere.
    #[arg(long, requires = "kubernetes", value_name = "ADDR")]
    people_listen: Option<SocketAddr>,
    /// What sidecars call the front face by. Default: https:// and its address.
    #[arg(long, value_name = "https://HOST[:PORT]")]
    front_url: Option<String>,
    /// The issuer's name in every token, as everything that trusts it has it byte for byte. Default: https:// and its
    /// address.
    #[arg(long, value_name = "https://HOST[:PORT]")]
    issuer_url: Option<String>,
    /// Raise it after the cluster's store was restored from a backup, or sidecars refuse its older revisions.
    #[arg(
        long,
        requires = "kubernetes",
        value_name = "NUMBER",
        default_value_t = 0,
        value_parser = clap::value_parser!(u64).range(..=sidegate_broker::lockdown::MAX_GENERATION)
    )]
    store_generation: u64,
    /// The agent, as NAMESPACE/NAME of its service account.
    #[arg(long = "as", value_name = "NAMESPACE/NAME", default_value = "local/agent")]
    identity: String,
    /// A label of the agent's pod; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Replace the keys of a running broker at once: new keys sign, the old ones are refused.
    Rotate(rotate::Arguments),
    /// Print the public keys of a running broker, for providers that hold an uploaded copy.
    Jwks(jwks::Arguments),
}

fn main() -> ExitCode {
    let mut arguments = Arguments::parse();
    if let Some(command) = arguments.command.take() {
        let done = match command {
            Command::Rotate(asked) => rotate::run(&asked),
            Command::Jwks(asked) => jwks::run(&asked),
        };
        return done.unwrap_or_else(|error| fail(&format!("{error:#}")));
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.to_string()),
    };
    let traces = match Traces::from_env(&|name| std::env::var(name).ok(), runtime.handle()) {
        Ok(traces) => traces,
        Err(message) => return fail(&message),
    };
    say(traces.as_ref());
    if let Err(error) = harden() {
        return fail(&format!("the process cannot be made undumpable: {error}"));
    }
    let config = match configuration(arguments) {
        Ok(config) => config,
        Err(message) => return fail(&message),
    };
    let done = runtime.block_on(run(config));
    if let Some(traces) = traces {
        traces.end();
    }
    done
}

/// No core file and no debugger may read keys and credentials out of this process.
fn harden() -> std::io::Result<()> {
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0)?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// Logs to standard error, traces to the collector: what is in one is not in the other.
fn say(traces: Option<&Traces>) {
    let filter = EnvFilter::try_from_env("SIDEGATE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // Without a hint of its own it would make everything up to TRACE be looked at, wherever it stands.
    let events = FilterFn::new(|metadata| !is_span(metadata)).with_max_level_hint(LevelFilter::TRACE);
    let lines = filter.and(events);
    let log = tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr);
    tracing_subscriber::registry()
        .with(log.with_filter(lines))
        .with(traces.map(Traces::layer))
        .init();
}

fn configuration(arguments: Arguments) -> Result<BrokerConfig, String> {
    let state = arguments.state.clone().ok_or("--state is missing")?;
    let (listen, issuer_listen) = (arguments.listen, arguments.issuer_listen);
    let (health_listen, store_generation) = (arguments.health_listen, arguments.store_generation);
    let people_listen = arguments.people_listen;
    let shared = arguments.records.clone().zip(arguments.replica.clone());
    let (front_url, issuer_url) = (arguments.front_url.clone(), arguments.issuer_url.clone());
    let place = match arguments.kubernetes {
        true => Place::Cluster(ClusterOptions {
            kubeconfig: arguments.kubeconfig,
            namespace: arguments.namespace,
            name: arguments.name,
            admission: AdmissionOptions {
                sidecar_digest: arguments.sidecar_digest,
                uids: arguments.sidecar_uid,
                break_glass_group: arguments.break_glass_group,
            },
        }),
        false => Place::Machine(machine(arguments)?),
    };
    let mut config = BrokerConfig::new(place, state);
    config.shared_records = shared.map(|(dir, replica)| SharedRecords { dir, replica });
    config.listen = listen;
    config.issuer_listen = issuer_listen;
    config.health_listen = health_listen;
    config.people_listen = people_listen;
    config.store_generation = store_generation;
    config.front_url = front_url;
    config.issuer_url = issuer_url;
    Ok(config)
}

fn machine(arguments: Arguments) -> Result<Machine, String> {
    let (namespace, service_account) = arguments
        .identity
        .split_once('/')
        .ok_or_else(|| format!("--as `{}`: write NAMESPACE/NAME", arguments.identity))?;
    let mut labels = BTreeMap::new();
    for label in &arguments.label {
        let (key, value) = label
            .split_once('=')
            .ok_or_else(|| format!("--label `{label}`: write KEY=VALUE"))?;
        labels.insert(key.to_owned(), value.to_owned());
    }
    Ok(Machine {
        config_dirs: arguments.config,
        secrets_dir: arguments.secrets,
        identity: Identity {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            labels,
            ..Identity::default()
        },
    })
}

async fn run(config: BrokerConfig) -> ExitCode {
    let running = match Broker::start(config).await {
        Ok(running) => running,
        Err(StartError::Config(problems)) => {
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            return fail(&lines.join("\n"));
        }
        Err(error) => return fail(&error.to_string()),
    };
    announce(&running);
    let stopped = async {
        let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
            return running.asked_to_stop().await;
        };
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            () = running.asked_to_stop() => {}
        }
    };
    stopped.await;
    running.shutdown().await;
    ExitCode::SUCCESS
}

/// One JSON line: what a sidecar's environment needs.
fn announce(running: &Running) {
    let mut line = serde_json::json!({
        "frontUrl": running.front_url,
        "issuer": running.issuer_url,
        "ca": running.ca_file,
        "control": running.control_socket,
    });
    // In a cluster the kubelet writes tokens, and pods are many.
    if let (Some(local), Some(line)) = (running.local(), line.as_object_mut()) {
        line.insert("tokenFile".to_owned(), serde_json::json!(local.token_file()));
        line.insert("podUid".to_owned(), local.pod_uid().into());
    }
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// Usage and configuration errors exit 2.
fn fail(message: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr().lock(), "sidegate-broker: {message}");
    ExitCode::from(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_argument_lets_a_provider_live_on_this_machine() {
        use clap::CommandFactory as _;
        for place in ["--kubernetes", "--config=/c"] {
            let arguments = Arguments::parse_from(["sidegate-broker", place, "--state=/s"]);
            let config = configuration(arguments).unwrap_or_else(|message| panic!("{message}"));
            assert!(!config.loopback_providers);
        }
        let named = Arguments::command();
        let named = named.get_arguments().map(|argument| argument.get_id().to_string());
        assert!(!named
            .into_iter()
            .any(|name| name.contains("loop") || name.contains("provider")));
    }
}
