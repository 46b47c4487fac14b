//! `sidegate approve` and `sidegate deny`: a person's word on one waiting operation. Who decides is told by the
//! kernel's peer credentials on the control socket, never by an argument.

use std::process::ExitCode;

use clap::Args;
use hyper::Method;
use sidegate_broker::control::Decide;
use sidegate_policies::api::access_request::{RequestState, Verdict};
use sidegate_policies::api::AccessRequest;

use crate::control;
use crate::instance::state_folder;
use crate::out::{visible, Out, Tone};
use crate::StateArg;

/// Arguments of `approve` and `deny`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sidegate requests
  sidegate approve ar-7k2f9c --reason 'checked with the customer'
  sidegate deny ar-7k2f9c --reason 'wrong order'")]
pub struct DecideArgs {
    /// The request, as `sidegate requests` names it.
    name: String,
    /// Why; kept with the request and in the record.
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    state: StateArg,
}

/// Decides a request.
pub fn run(args: DecideArgs, approve: bool, out: &Out) -> anyhow::Result<ExitCode> {
    let verdict = if approve { Verdict::Approve } else { Verdict::Deny };
    let path = format!("/requests/{}/decide", args.name);
    let body = Decide {
        verdict,
        reason: args.reason,
    };
    let request: AccessRequest = control::call(&state_folder(args.state.state), Method::POST, &path, Some(&body))?;
    if out.json() {
        out.document(&request)?;
        return Ok(ExitCode::SUCCESS);
    }
    let state = request.status.as_ref().map(|status| status.state).unwrap_or_default();
    let text = match state {
        RequestState::Pending => "Noted; more people must agree.".to_owned(),
        RequestState::Granted => "Approved. The operation runs once if the agent still wants it.".to_owned(),
        RequestState::Denied => "Denied. The same operation is refused without asking again for a while.".to_owned(),
        other => format!("Now {other:?}."),
    };
    out.line(format!(
        "{}  {text}",
        out.tone(Tone::Bold, visible(&request.metadata.name))
    ))?;
    Ok(ExitCode::SUCCESS)
}
