//! `sidegate lock` and `sidegate unlock`: the kill switch. A lock is confirmed by the sidecars before the verb
//! returns, and the answer says how many sessions it cut and how fast. In a cluster a lock is a Lockdown object, written
//! with the person's own rights.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use hyper::Method;
use jiff::Timestamp;
use serde_json::{json, Value};
use sidegate_broker::control::{Lock, Locked, Unlock, Unlocked};
use sidegate_policies::api::lockdown::{Everything, Freeze, LockdownAction};
use sidegate_policies::api::meta::NamespacedRef;
use sidegate_policies::api::{LockdownSpec, API_VERSION};
use sidegate_policies::quantity::Span;

use super::seen::text;
use super::Usage;
use crate::cluster::{Cluster, ClusterArgs, Where, LOCKDOWNS};
use crate::control;
use crate::instance::state_folder;
use crate::out::{visible, Out, Tone};
use crate::StateArg;

/// So long sidecars of a cluster may take to confirm before the person is told how many have not.
const CONFIRMED: Duration = Duration::from_secs(5);

/// Arguments of `lock`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sidegate lock --service-account agents/support --reason 'suspected prompt injection'
  sidegate lock --target data/shop --for 1h --reason 'maintenance' --refuse-new
  sidegate lock --everything --reason 'incident 42'
  kubectl sidegate lock --pod agents/triage-0 --reason 'suspected prompt injection'")]
pub struct LockArgs {
    #[command(flatten)]
    what: What,
    /// How long, such as 30m or 1h. Default: until unlocked.
    #[arg(long = "for", value_name = "TIME")]
    duration: Option<String>,
    /// Refuse new sessions only; open ones go on.
    #[arg(long)]
    refuse_new: bool,
    /// Why; shown to people, never to the agent.
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    state: StateArg,
    #[command(flatten)]
    cluster: LockPlace,
}

/// Which cluster is meant; `--namespace` is something to freeze here.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cluster (instead of this machine)")]
struct LockPlace {
    /// The kubeconfig. Default: $KUBECONFIG, else ~/.kube/config, else this pod's service account.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<std::path::PathBuf>,
    /// The kubeconfig's context. Default: the current one.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

impl From<LockPlace> for ClusterArgs {
    fn from(place: LockPlace) -> Self {
        ClusterArgs {
            kubeconfig: place.kubeconfig,
            context: place.context,
            namespace: None,
        }
    }
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct What {
    /// A service account.
    #[arg(long, value_name = "NS/SA")]
    service_account: Vec<String>,
    /// A pod.
    #[arg(long, value_name = "NS/POD")]
    pod: Vec<String>,
    /// A whole namespace.
    #[arg(long, value_name = "NS")]
    namespace: Vec<String>,
    /// A Target.
    #[arg(long, value_name = "NS/NAME")]
    target: Vec<String>,
    /// Every Target that logs in with this Secret.
    #[arg(long, value_name = "NS/NAME")]
    secret: Vec<String>,
    /// Every Target that takes tokens of this issuer.
    #[arg(long, value_name = "NAME")]
    issuer: Vec<String>,
    /// One issued token, by its `jti`.
    #[arg(long, value_name = "JTI")]
    token: Vec<String>,
    /// Everything.
    #[arg(long)]
    everything: bool,
}

/// Arguments of `unlock`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sidegate unlock lock-3f9a
  sidegate unlock --all")]
pub struct UnlockArgs {
    /// Lockdowns, as `sidegate status` names them.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    names: Vec<String>,
    /// Every lockdown.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    state: StateArg,
    #[command(flatten)]
    cluster: LockPlace,
}

fn pair(text: &str) -> Result<NamespacedRef> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(NamespacedRef {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            })
        }
        _ => Err(Usage(format!("`{text}`: write NAMESPACE/NAME")).into()),
    }
}

/// What was given under one option, and what it freezes.
type Named<'a> = (&'a Vec<String>, fn(NamespacedRef) -> Freeze);

impl What {
    fn freeze(&self) -> Result<Vec<Freeze>> {
        let mut freeze = Vec::new();
        let pairs: [Named<'_>; 4] = [
            (&self.service_account, Freeze::ServiceAccount),
            (&self.pod, Freeze::Pod),
            (&self.target, Freeze::Target),
            (&self.secret, Freeze::Secret),
        ];
        for (given, make) in pairs {
            for text in given {
                freeze.push(make(pair(text)?));
            }
        }
        freeze.extend(self.namespace.iter().cloned().map(Freeze::Namespace));
        freeze.extend(self.issuer.iter().cloned().map(Freeze::Issuer));
        freeze.extend(self.token.iter().cloned().map(Freeze::TokenId));
        freeze.extend(self.everything.then_some(Freeze::Everything(Everything {})));
        Ok(freeze)
    }
}

/// Freezes something.
pub fn run(args: LockArgs, out: &Out) -> Result<ExitCode> {
    let duration = args.duration.as_deref().map(str::parse::<Span>).transpose();
    let duration = duration.map_err(|error| Usage(format!("--for: {error}")))?;
    let freeze = args.what.freeze()?;
    let action = if args.refuse_new {
        LockdownAction::RefuseNew
    } else {
        LockdownAction::Close
    };
    if let Some(cluster) = ClusterArgs::from(args.cluster).connect()? {
        let spec = LockdownSpec {
            reason: args.reason,
            until: duration.map(until).transpose()?,
            action,
            freeze,
        };
        return lock_cluster(&cluster, &spec, out);
    }
    let body = Lock {
        freeze,
        reason: args.reason,
        action,
        for_seconds: duration.map(|span| span.0.as_secs()),
    };
    let locked: Locked = control::call(&state_folder(args.state.state), Method::POST, "/lock", Some(&body))?;
    if out.json() {
        out.document(&locked)?;
    } else {
        let took = Duration::from_micros(locked.took_us);
        let name = out.tone(Tone::Bold, visible(&locked.name));
        out.line(format!(
            "{name}  frozen; {} session(s) cut, confirmed in {took:.1?}",
            locked.sessions_closed
        ))?;
    }
    if let Some(why) = &locked.unrecorded {
        out.remark(format!("it is in force, but {}", visible(why)));
    }
    if locked.acknowledged < locked.sidecars {
        out.remark(format!(
            "{} of {} sidecar(s) confirmed so far; the others apply it when they are reachable again",
            locked.acknowledged, locked.sidecars
        ));
        return Ok(ExitCode::from(1));
    }
    Ok(ExitCode::SUCCESS)
}

fn until(span: Span) -> Result<String> {
    let until = Timestamp::now().checked_add(span.0);
    let until = until.map_err(|error| Usage(format!("--for: {error}")))?;
    Ok(format!("{until:.0}"))
}

/// Creates the object, which is in force as soon as brokers hear of it, and waits for what the leader says of it.
fn lock_cluster(cluster: &Cluster, spec: &LockdownSpec, out: &Out) -> Result<ExitCode> {
    let object = json!({
        "apiVersion": API_VERSION, "kind": "Lockdown", "metadata": {"generateName": "lock-"}, "spec": spec,
    });
    let created: Value = cluster.create(LOCKDOWNS, Where::Everywhere, &object)?;
    let name = text(&created, "/metadata/name");
    let confirmed = |object: &Value| matches!(reached(object), Some((matched, acked)) if matched == acked);
    // It is in force whether or not we may look at it.
    let seen = cluster.follow(LOCKDOWNS, Where::Everywhere, name, CONFIRMED, confirmed);
    let object = match &seen {
        Ok(Some(object)) => object,
        _ => &created,
    };
    if out.json() {
        out.document(object)?;
    } else {
        let number = |field: &str| object.pointer(&format!("/status/{field}")).and_then(Value::as_u64);
        let cut = number("sessionsClosed").unwrap_or(0);
        let took = number("p99Millis").map_or_else(String::new, |ms| format!(", confirmed within {ms} ms"));
        let shown = out.tone(Tone::Bold, visible(name));
        out.line(format!("{shown}  frozen; {cut} session(s) cut{took}"))?;
    }
    if let Err(error) = &seen {
        out.remark(format!(
            "it is in force as soon as the broker hears of it; it cannot be followed: {error:#}"
        ));
        return Ok(ExitCode::from(1));
    }
    match reached(object) {
        Some((matched, acked)) if matched == acked => Ok(ExitCode::SUCCESS),
        Some((matched, acked)) => {
            out.remark(format!(
                "{acked} of {matched} sidecar(s) confirmed so far; the others apply it when they are reachable again"
            ));
            Ok(ExitCode::from(1))
        }
        None => {
            out.remark("no broker has said anything about it yet: is one running?");
            Ok(ExitCode::from(1))
        }
    }
}

/// How many sidecars a Lockdown concerns, and how many of them enforce it, as the leader wrote.
fn reached(object: &Value) -> Option<(u64, u64)> {
    let number = |path: &str| object.pointer(path).and_then(Value::as_u64);
    Some((number("/status/matched")?, number("/status/acked")?))
}

/// Lifts freezes.
pub fn lift(args: UnlockArgs, out: &Out) -> Result<ExitCode> {
    if let Some(cluster) = ClusterArgs::from(args.cluster).connect()? {
        return lift_cluster(&cluster, args.names, out);
    }
    let body = Unlock { names: args.names };
    let unlocked: Unlocked = control::call(&state_folder(args.state.state), Method::POST, "/unlock", Some(&body))?;
    if out.json() {
        out.document(&unlocked)?;
    } else {
        say_lifted(&unlocked.names, out)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Deletes the objects; none named: all.
fn lift_cluster(cluster: &Cluster, names: Vec<String>, out: &Out) -> Result<ExitCode> {
    let names = if names.is_empty() {
        let all: Vec<Value> = cluster.list(LOCKDOWNS, Where::Everywhere)?;
        all.iter()
            .map(|object| text(object, "/metadata/name").to_owned())
            .collect()
    } else {
        names
    };
    let mut lifted = Vec::new();
    let mut missing = Vec::new();
    for name in names {
        match cluster.delete(LOCKDOWNS, Where::Everywhere, &name)? {
            true => lifted.push(name),
            false => missing.push(name),
        }
    }
    if out.json() {
        out.document(&json!({"names": lifted}))?;
    } else {
        say_lifted(&lifted, out)?;
    }
    if missing.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    out.remark(format!("there is no Lockdown {}", visible(&missing.join(", "))));
    Ok(ExitCode::from(1))
}

fn say_lifted(names: &[String], out: &Out) -> Result<()> {
    match names.is_empty() {
        true => out.line("Nothing was frozen.")?,
        false => out.line(format!("Lifted: {}", visible(&names.join(", "))))?,
    }
    Ok(())
}
