//! `sidegate requests`: operations that wait for a person, with the whole text a person decides about.

use std::process::ExitCode;

use clap::Args;
use sidegate_policies::api::access_policy::Approver;
use sidegate_policies::api::access_request::RequestState;
use sidegate_policies::api::AccessRequest;

use crate::cluster::{Cluster, ClusterArgs, Where, ACCESS_REQUESTS};
use crate::control;
use crate::instance::state_folder;
use crate::out::{visible, Out, Tone};
use crate::StateArg;

/// Arguments of `requests`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sidegate requests
  sidegate requests --all -o json
  kubectl sidegate requests -n data
  kubectl sidegate requests -A -o yaml")]
pub struct RequestsArgs {
    /// Show decided and expired ones too.
    #[arg(long)]
    all: bool,
    /// Requests of every namespace of the cluster.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    #[command(flatten)]
    state: StateArg,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Lists requests.
pub fn run(args: RequestsArgs, out: &Out) -> anyhow::Result<ExitCode> {
    let requests = if args.all_namespaces || args.cluster.chosen() {
        of_cluster(&args.cluster.cluster()?, args.all_namespaces, args.all)?
    } else {
        let path = format!("/requests?all={}", args.all);
        control::get::<Vec<AccessRequest>>(&state_folder(args.state.state), &path)?
    };
    if out.json() {
        out.document(&requests)?;
    } else if requests.is_empty() {
        out.line("Nothing waits for a person.")?;
    } else {
        for (at, request) in requests.iter().enumerate() {
            if at > 0 {
                out.line("")?;
            }
            print(request, out)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Requests of the namespace meant, or of all; finished ones only where they are wanted.
fn of_cluster(cluster: &Cluster, everywhere: bool, finished: bool) -> anyhow::Result<Vec<AccessRequest>> {
    let place = match everywhere {
        true => Where::Everywhere,
        false => Where::Namespace(&cluster.namespace),
    };
    let mut requests: Vec<AccessRequest> = cluster.list(ACCESS_REQUESTS, place)?;
    let open = |request: &AccessRequest| {
        let state = request.status.as_ref().map(|status| status.state).unwrap_or_default();
        matches!(
            state,
            RequestState::Pending | RequestState::Granted | RequestState::Claimed
        )
    };
    requests.retain(|request| finished || open(request));
    Ok(requests)
}

/// Prints one request: everything the decision binds to, before the name to decide it by.
pub fn print(request: &AccessRequest, out: &Out) -> anyhow::Result<()> {
    let spec = &request.spec;
    let state = request.status.as_ref().map(|status| status.state).unwrap_or_default();
    let name = out.tone(Tone::Bold, visible(&request.metadata.name));
    out.line(format!("{name}  {state:?}"))?;
    let subject = format!("{} (pod {})", spec.subject.service_account, spec.subject.pod);
    out.line(format!("  who      {}", visible(&subject)))?;
    out.line(format!("  target   {}", visible(&spec.target.to_string())))?;
    out.line(format!("  rules    {}", visible(&spec.rules.join(", "))))?;
    for earlier in &spec.operation.earlier {
        out.line(format!("  before   {}", visible(earlier)))?;
    }
    out.line(format!("  asks     {}", visible(&spec.operation.text)))?;
    for (at, value) in spec.operation.parameters.iter().enumerate() {
        out.line(format!("  ${:<7} {}", at.saturating_add(1), visible(value)))?;
    }
    if spec.operation.hidden_values > 0 {
        out.line(format!(
            "  hidden   {} value(s) are hidden: secrets, or masked",
            spec.operation.hidden_values
        ))?;
    }
    for set in &spec.approver_sets {
        let people: Vec<String> = set.approvers.iter().map(person).collect();
        out.line(format!("  approve  {} of {}", set.count, visible(&people.join(", "))))?;
    }
    out.line(format!("  until    {}", spec.expires_at))?;
    for decision in request.status.iter().flat_map(|status| &status.decisions) {
        let reason = decision
            .reason
            .as_deref()
            .map(|reason| format!(": {}", visible(reason)))
            .unwrap_or_default();
        out.line(format!(
            "  {:?} by {} at {}{reason}",
            decision.verdict,
            visible(&decision.by),
            decision.at
        ))?;
    }
    Ok(())
}

fn person(approver: &Approver) -> String {
    match approver {
        Approver::User(name) => name.clone(),
        Approver::Group(name) => format!("group {name}"),
        Approver::Anyone(_) => "anyone".to_owned(),
    }
}
