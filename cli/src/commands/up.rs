//! `sidegate up`: broker and sidecar in one process on files, in the foreground, or around one program that runs
//! as the agent. The two halves talk through the broker's network API, over TLS, as they do in a cluster.
//!
//! Nothing starts on a configuration with a problem. On SIGINT or SIGTERM sessions end with words and records are
//! sealed before the process does.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use nix::sys::signal::{kill, Signal};
use nix::unistd::{Pid, Uid};
use sidegate_broker::app::Broker;
use sidegate_broker::config::{BrokerConfig, Identity, Machine, Separation, StartError};
use sidegate_policies::api::Target;
use sidegate_policies::wire::TargetStatus;
use sidegate_sidecar::app::Sidecar;
use sidegate_sidecar::authority;
use sidegate_sidecar::broker::Url;
use sidegate_sidecar::config::{PodFacts, SidecarConfig};
use sidegate_sidecar::task::Lanes;
use tokio::runtime::Handle;
use tokio::signal::unix::{signal, SignalKind};

use super::source;
use super::Usage;
use crate::agent::{self, EnvArg, RunAs};
use crate::instance::state_folder;
use crate::out::{visible, Out, Tone};
use crate::StateArg;

/// How long the first bundle may take before `up` gives up.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Arguments of `up`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sidegate up --config ./policies --secrets ./secrets
  sidegate up --config ./policies --secrets ./secrets --as agents/support -- psql
  sudo sidegate up --config ./policies --secrets ./secrets --run-as agent -- python3 agent.py

The program after `--` starts with a clean environment: PATH, HOME, TERM, LANG, LC_*, TZ, USER, then what the
Targets' `env` sets, then --env. Its exit code is the exit code of `up` (128 + n after signal n).
Secrets lie under --secrets as NAMESPACE/NAME/KEY, readable by their owner only.

Exit codes:
  0  stopped by a signal, or the program's own exit code
  1  could not start, or ended by a failure
  2  wrong usage or configuration; nothing was started")]
pub struct UpArgs {
    /// Folder with Targets and policies (*.yaml); may be given more than once. Changes are picked up.
    #[arg(long, required = true, value_name = "DIR")]
    config: Vec<PathBuf>,
    /// Folder with the targets' secrets, laid out NAMESPACE/NAME/KEY.
    #[arg(long, value_name = "DIR")]
    secrets: Option<PathBuf>,
    /// Who the agent is, as NAMESPACE/SERVICEACCOUNT.
    #[arg(long = "as", value_name = "NS/SA", default_value = "local/agent")]
    identity: String,
    /// A pod label of the agent, which policies may match.
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// A name server to ask for targets' names. Default: those of /etc/resolv.conf, read once.
    #[arg(long, value_name = "IP[:PORT]")]
    name_server: Vec<String>,
    /// Run the program as this OS user, who cannot read Sidegate's state. Needs root.
    #[arg(long, value_name = "USER")]
    run_as: Option<String>,
    /// A variable for the program, beside those the Targets set.
    #[arg(long, value_name = "NAME[=VALUE]")]
    env: Vec<EnvArg>,
    #[command(flatten)]
    state: StateArg,
    /// The agent's program and its arguments.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Runs an instance until it is told to stop or its program ends.
pub fn run(args: UpArgs, out: &Out) -> Result<ExitCode> {
    let configuration = source::read_valid(&args.config, out)?;
    source::print_problems(&configuration.warnings, Tone::Warn, out);
    let state = state_folder(args.state.state.clone());
    let run_as = args
        .run_as
        .as_deref()
        .map(|user| RunAs::prepare(user, &std::env::temp_dir()))
        .transpose();
    let run_as = run_as.map_err(|error| Usage(format!("{error:#}")))?;
    // Each half on threads of its own, as in a cluster: one cannot starve the other, and what each costs can be told.
    let broker = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("broker")
        .enable_all()
        .build()?;
    let sidecar = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = sidecar.block_on(serve(&args, &state, run_as.as_ref(), broker.handle(), out));
    if let Some(user) = &run_as {
        user.clean();
    }
    sidecar.shutdown_timeout(Duration::from_secs(1));
    broker.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn serve(args: &UpArgs, state: &Path, run_as: Option<&RunAs>, runtime: &Handle, out: &Out) -> Result<ExitCode> {
    let mut stop = Stop::new()?;
    let config = broker_config(args, state, run_as)?;
    let started = {
        let mut starting = std::pin::pin!(Broker::start(config));
        // Whatever the broker starts, it starts on its own threads.
        std::future::poll_fn(|cx| {
            let _entered = runtime.enter();
            starting.as_mut().poll(cx)
        })
        .await
    };
    let broker = match started {
        Ok(broker) => broker,
        Err(StartError::Config(problems)) => {
            source::print_problems(&problems, Tone::Bad, out);
            return Err(Usage(format!("{} problem(s) in the configuration", problems.len())).into());
        }
        Err(error) => return Err(error.into()),
    };
    let config = sidecar_config(args, state, run_as, &broker)?;
    let sidecar = Sidecar::start(config).await?;
    if !sidecar.ready(START_LIMIT).await {
        sidecar.shutdown().await;
        broker.shutdown().await;
        anyhow::bail!(
            "no policies came into force within {} s; see the log above",
            START_LIMIT.as_secs()
        );
    }
    let targets = targets(&broker, &sidecar);
    banner(&targets, args, state, run_as, out);
    let code = match args.command.is_empty() {
        true => {
            stop.wait().await;
            ExitCode::SUCCESS
        }
        false => run_agent(args, &broker.targets(), run_as, &mut stop).await?,
    };
    sidecar.shutdown().await;
    broker.shutdown().await;
    Ok(code)
}

/// Every Target: as the sidecar serves it, or with the broker's reason why it does not.
fn targets(broker: &sidegate_broker::app::Running, sidecar: &sidegate_sidecar::app::Running) -> Vec<TargetStatus> {
    let served = sidecar.status().borrow().targets.clone();
    let mut targets = broker.status().targets;
    for target in &mut targets {
        if let Some(own) = served.iter().find(|own| own.target == target.target) {
            target.clone_from(own);
        }
    }
    targets
}

fn pair(text: &str) -> Result<(String, String)> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => Ok((namespace.into(), name.into())),
        _ => Err(Usage(format!("--as {text}: write NAMESPACE/SERVICEACCOUNT")).into()),
    }
}

fn broker_config(args: &UpArgs, state: &Path, run_as: Option<&RunAs>) -> Result<BrokerConfig> {
    let (namespace, service_account) = pair(&args.identity)?;
    let mut labels = BTreeMap::new();
    for label in &args.label {
        let (key, value) = label
            .split_once('=')
            .ok_or_else(|| Usage(format!("--label {label}: write KEY=VALUE")))?;
        labels.insert(key.to_owned(), value.to_owned());
    }
    let separation = match run_as {
        Some(user) => Separation::User {
            uid: user.uid.as_raw(),
            name: user.name.clone(),
        },
        None => Separation::None,
    };
    let machine = Machine {
        config_dirs: args.config.clone(),
        secrets_dir: args.secrets.clone(),
        identity: Identity {
            namespace,
            service_account,
            labels,
            separation,
        },
    };
    let mut config = BrokerConfig::new(machine.into(), state.to_owned());
    // Local mode is the one place where a provider may live on this machine.
    config.loopback_providers = true;
    Ok(config)
}

fn sidecar_config(
    args: &UpArgs,
    state: &Path,
    run_as: Option<&RunAs>,
    broker: &sidegate_broker::app::Running,
) -> Result<SidecarConfig> {
    let local = broker.local().context("a broker of one machine")?;
    Ok(SidecarConfig {
        broker: Url::parse(&broker.front_url)?,
        broker_ca_pem: broker.ca_pem.clone(),
        token_file: local.token_file(),
        ports: Vec::new(),
        name_servers: name_servers(&args.name_server)?,
        cluster_domain: None,
        run_dir: state.join("run"),
        journal_dir: state.join("journal"),
        // Local mode is the one place where a Target may state a loopback literal.
        allow_loopback_literals: true,
        separation: match run_as {
            Some(_) => authority::Separation::User,
            None => authority::Separation::None,
        },
        lanes: Lanes::wanted(),
        memory_limit: None,
        metrics: Vec::new(),
        staleness: Default::default(),
        fenced: false,
        waits: false,
        pod: PodFacts::default(),
        agent_uid: Some(run_as.map_or_else(Uid::effective, |user| user.uid).as_raw()),
    })
}

fn name_servers(given: &[String]) -> Result<Vec<SocketAddr>> {
    if given.is_empty() {
        // Read once, at start: what the agent may write there later changes nothing (UPS-1).
        let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
        return Ok(servers
            .filter_map(|server| server.trim().parse().ok())
            .map(|ip| SocketAddr::new(ip, 53))
            .collect());
    }
    let server = |text: &String| {
        let with_port = text.parse::<SocketAddr>().ok();
        let address = with_port.or_else(|| text.parse().ok().map(|ip| SocketAddr::new(ip, 53)));
        address.ok_or_else(|| Usage(format!("--name-server {text}: write an IP address, or IP:PORT")).into())
    };
    given.iter().map(server).collect()
}

fn banner(targets: &[TargetStatus], args: &UpArgs, state: &Path, run_as: Option<&RunAs>, out: &Out) {
    out.remark(format!(
        "{} for agent {}",
        out.tone(Tone::Good, "Sidegate is ready"),
        args.identity
    ));
    for target in targets {
        let name = visible(&target.target);
        match &target.problem {
            Some(problem) => out.remark(format!("  {name}  {}", out.tone(Tone::Warn, visible(problem)))),
            None => {
                let local = target.listen.join(", ");
                out.remark(format!(
                    "  {name}  {} on {local} -> {}",
                    target.protocol,
                    visible(&target.address)
                ));
            }
        }
        for weak in &target.insecure {
            out.remark(format!(
                "  {name}  {}",
                out.tone(Tone::Warn, format!("insecure: {weak}"))
            ));
        }
    }
    match run_as {
        Some(user) => out.remark(format!(
            "  separated: the agent runs as {} and cannot read {}",
            user.name,
            state.display()
        )),
        None => out.remark(out.tone(
            Tone::Warn,
            format!(
                "  not separated: programs of this OS user can read {} (use --run-as)",
                state.display()
            ),
        )),
    }
}

async fn run_agent(args: &UpArgs, targets: &[Target], run_as: Option<&RunAs>, stop: &mut Stop) -> Result<ExitCode> {
    let variables = targets.iter().flat_map(|target| &target.spec.env);
    let variables: Vec<_> = variables
        .map(|variable| (variable.name.clone(), variable.value.clone()))
        .collect();
    let environment = agent::environment(std::env::vars_os(), &variables, &args.env, run_as)?;
    let command = agent::command(&args.command, environment, run_as)?;
    let mut child = tokio::process::Command::from(command).spawn().with_context(|| {
        format!(
            "starting {}",
            args.command.first().map(|c| c.to_string_lossy()).unwrap_or_default()
        )
    })?;
    let id = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    loop {
        tokio::select! {
            received = stop.next() => {
                // The terminal's own signals reach the whole group; a SIGTERM to us alone is passed on.
                if let (Some(Signal::SIGTERM), Some(pid)) = (received, id) {
                    let _ = kill(pid, Signal::SIGTERM);
                }
            }
            status = child.wait() => return Ok(ExitCode::from(agent::exit_code(status?))),
        }
    }
}

/// SIGINT, SIGTERM and SIGHUP as they arrive.
struct Stop {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Stop {
    fn new() -> Result<Self> {
        Ok(Stop {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Option<Signal> {
        tokio::select! {
            _ = self.interrupt.recv() => Some(Signal::SIGINT),
            _ = self.terminate.recv() => Some(Signal::SIGTERM),
            _ = self.hangup.recv() => Some(Signal::SIGTERM),
        }
    }

    async fn wait(&mut self) {
        self.next().await;
    }
}
