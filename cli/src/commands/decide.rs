//! `sidegate approve` and `sidegate deny`: a person's word on one waiting operation. Who decides is told by the
//! kernel's peer credentials on the control socket, or by the API server's admission, never by an argument.

use std::process::ExitCode;

use anyhow::{bail, Result};
use clap::Args;
use hyper::Method;
use jiff::Timestamp;
use serde_json::{json, Value};
use sidegate_broker::control::Decide;
use sidegate_policies::api::access_request::{PersonDecision, RequestState, Verdict};
use sidegate_policies::api::AccessRequest;
use sidegate_policies::approval::counting;
use sidegate_policies::quantity::Span;

use super::Usage;
use crate::cluster::{Cluster, ClusterArgs, Kind, Refused, Where, ACCESS_REQUESTS};
use crate::control;
use crate::instance::state_folder;
use crate::out::{visible, Out, Tone};
use crate::StateArg;

/// Who we are, as the API server sees it.
const REVIEWS: Kind = Kind {
    group: "authentication.k8s.io",
    version: "v1",
    kind: "SelfSubjectReview",
    plural: "selfsubjectreviews",
};
/// Other people may decide while we do; a word is never put over theirs.
const ROUNDS: usize = 5;

/// Arguments of `approve` and `deny`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sidegate requests
  sidegate approve ar-7k2f9c --reason 'checked with the customer'
  sidegate deny ar-7k2f9c --reason 'wrong order'
  kubectl sidegate approve ar-7k2f9cqy -n data --reason 'checked with the customer'")]
pub struct DecideArgs {
    /// The request, as `sidegate requests` names it.
    name: String,
    /// Why; kept with the request and in the record.
    #[arg(long)]
    reason: Option<String>,
    /// How long the grant may be used, such as 5m; never longer than the rule says. In a cluster only.
    #[arg(long = "for", value_name = "TIME")]
    usable_for: Option<String>,
    #[command(flatten)]
    state: StateArg,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Decides a request.
pub fn run(args: DecideArgs, approve: bool, out: &Out) -> Result<ExitCode> {
    let verdict = if approve { Verdict::Approve } else { Verdict::Deny };
    let usable_for = args.usable_for.as_deref().map(str::parse::<Span>);
    let request = match args.cluster.connect()? {
        Some(cluster) => {
            let given = Given {
                verdict,
                reason: args.reason,
                usable_for: usable_for
                    .transpose()
                    .map_err(|error| Usage(format!("--for: {error}")))?,
            };
            decided(&cluster, &args.name, &given)?
        }
        None if usable_for.is_some() => {
            return Err(Usage("--for holds for a cluster's requests".to_owned()).into());
        }
        None => {
            let path = format!("/requests/{}/decide", args.name);
            let body = Decide {
                verdict,
                reason: args.reason,
            };
            control::call(&state_folder(args.state.state), Method::POST, &path, Some(&body))?
        }
    };
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

/// What a person says.
struct Given {
    verdict: Verdict,
    reason: Option<String>,
    usable_for: Option<Span>,
}

/// Adds a word to the request's decisions; admission has the last say about who spoke, and computes the state.
fn decided(cluster: &Cluster, name: &str, given: &Given) -> Result<AccessRequest> {
    let place = Where::Namespace(&cluster.namespace);
    let asked = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let reviewed: Value = cluster.create(REVIEWS, Where::Everywhere, &asked)?;
    let user = reviewed.pointer("/status/userInfo").cloned().unwrap_or_default();
    let ourselves = user.get("username").and_then(Value::as_str).unwrap_or_default();
    let groups: Vec<String> = serde_json::from_value(user.get("groups").cloned().unwrap_or_else(|| json!([])))?;
    for _ in 0..ROUNDS {
        let Some(mut request) = cluster.get::<Value>(ACCESS_REQUESTS, place, name)? else {
            bail!(
                "there is no AccessRequest {name} in namespace {} (list them: `sidegate requests -n NAMESPACE`)",
                cluster.namespace
            );
        };
        let typed: AccessRequest = serde_json::from_value(request.clone())?;
        let word = PersonDecision {
            by: ourselves.to_owned(),
            groups: counting(&typed.spec, &groups),
            verdict: given.verdict,
            reason: given.reason.clone(),
            at: format!("{:.3}", Timestamp::now()),
        };
        let mut status = typed.status.unwrap_or_default();
        status.decisions.push(word);
        status.usable_for = given.usable_for.or(status.usable_for);
        if let Some(request) = request.as_object_mut() {
            request.insert("status".to_owned(), serde_json::to_value(status)?);
        }
        match cluster.replace_status(ACCESS_REQUESTS, place, &request) {
            // Somebody else's word came first: ours goes after it.
            Err(error) if Refused::code_of(&error) == Some(409) => {}
            decided => return decided,
        }
    }
    bail!("{name} changes all the time; try again")
}
