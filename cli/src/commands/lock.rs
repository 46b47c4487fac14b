//! `sidegate lock` and `sidegate unlock`: the kill switch. A lock is confirmed by the sidecar before the verb
//! returns, and the answer says how many sessions it cut and how fast.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use hyper::Method;
use sidegate_broker::control::{Lock, Locked, Unlock, Unlocked};
use sidegate_policies::api::lockdown::{Everything, Freeze, LockdownAction};
use sidegate_policies::api::meta::NamespacedRef;
use sidegate_policies::quantity::Span;

use super::Usage;
use crate::control;
use crate::instance::state_folder;
use crate::out::{visible, Out, Tone};
use crate::StateArg;

/// Arguments of `lock`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sidegate lock --service-account agents/support --reason 'suspected prompt injection'
  sidegate lock --target data/shop --for 1h --reason 'maintenance' --refuse-new
  sidegate lock --everything --reason 'incident 42'")]
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
    let body = Lock {
        freeze: args.what.freeze()?,
        reason: args.reason,
        action: if args.refuse_new {
            LockdownAction::RefuseNew
        } else {
            LockdownAction::Close
        },
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

/// Lifts freezes.
pub fn lift(args: UnlockArgs, out: &Out) -> Result<ExitCode> {
    let body = Unlock { names: args.names };
    let unlocked: Unlocked = control::call(&state_folder(args.state.state), Method::POST, "/unlock", Some(&body))?;
    if out.json() {
        out.document(&unlocked)?;
    } else if unlocked.names.is_empty() {
        out.line("Nothing was frozen.")?;
    } else {
        out.line(format!("Lifted: {}", visible(&unlocked.names.join(", "))))?;
    }
    Ok(ExitCode::SUCCESS)
}
