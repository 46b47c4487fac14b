//! `sidegate explain`: what an agent may do, or what becomes of one statement and why, from files or from what a cluster
//! holds. It decides with the engine a sidecar decides with and starts nothing.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use serde_json::Value;
use sidegate_policies::api::access_policy::Limits;
use sidegate_policies::api::Lockdown;
use sidegate_policies::engine::explain::{self, Access, Hit, RuleLine, RuleTrace};
use sidegate_policies::engine::{Subject, TargetId};
use sidegate_policies::explanation::{decided, mask_words, Explanation, Outcome};

use super::offline::{self, Offline, Schema, SchemaNote, World};
use super::seen::Seen;
use super::{explain_pod, HomeArg, Usage};
use crate::cluster::ClusterArgs;
use crate::out::{visible, Out, Tone};

/// Arguments of `explain`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sidegate explain --config ./policies --as agents/support
  sidegate explain --config ./policies --as agents/support --schema schema.sql \"SELECT 1\"
  sidegate explain --config ./policies --as agents/support --schema schema.sql - < query.sql
  kubectl sidegate explain pod/triage-7 -n agents
  kubectl sidegate explain pod/triage-7 -n agents --target data/shop --schema schema.sql \"SELECT 1\"
  kubectl sidegate explain --as agents/support --target data/shop \"DROP TABLE app.orders\"

The schema is SQL, such as `pg_dump --schema-only` prints, or the answer of `sidegate policy
schema-query`. What of it is not understood is said and stays unknown; rights in the database are
not looked at. Without a schema only the server's own names are known. Nothing is sent to any
database. In a cluster, what the API server holds is judged, read with your own rights; with --live the
pod's sidecar is asked too, by way of the broker.

Exit codes:
  0  allowed
  2  wrong usage or configuration
  3  denied
  4  needs a person's approval
  5  no statement that can be judged: a syntax error, a limit, a construct that is not understood")]
pub struct ExplainArgs {
    /// Folder with Targets and policies (*.yaml); may be given more than once.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "context", "namespace"])]
    config: Vec<PathBuf>,
    /// Who the agent is, as NAMESPACE/SERVICEACCOUNT.
    #[arg(long = "as", value_name = "NS/SA", default_value = "local/agent")]
    identity: String,
    /// A pod label of the agent, which policies may match.
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// The Target, where the configuration has more than one.
    #[arg(long, value_name = "NS/NAME")]
    target: Option<String>,
    /// The database's schema: *.sql or *.json.
    #[arg(long, value_name = "FILE")]
    schema: Option<PathBuf>,
    /// The server's major version. Default: the one of a *.json schema, else 18.
    #[arg(long, value_name = "MAJOR")]
    postgres: Option<u32>,
    /// The database, as `sql.database` in rules. Default: the Target's first.
    #[arg(long, value_name = "NAME")]
    database: Option<String>,
    /// The role Sidegate logs in as, as `sql.role` in rules.
    #[arg(long, value_name = "NAME", default_value = "")]
    role: String,
    /// The session's search_path. Default: "$user",public.
    #[arg(long, value_name = "SCHEMA,...", value_delimiter = ',')]
    search_path: Option<Vec<String>>,
    /// A pod of the cluster, as `pod/NAME`; then the statement, or `-` to read it from standard input. Without a
    /// statement: everything this agent may do.
    #[arg(value_name = "pod/NAME | STATEMENT", num_args = 0..=2)]
    words: Vec<String>,
    /// Ask the pod's sidecar what it serves, too.
    #[arg(long)]
    live: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    home: HomeArg,
}

/// Explains.
pub fn run(args: &ExplainArgs, out: &Out) -> Result<ExitCode> {
    let (pod, statement) = words(&args.words)?;
    if args.live && (pod.is_none() || statement.is_some()) {
        return Err(Usage("--live goes with pod/NAME, and with no statement".to_owned()).into());
    }
    let cluster = match args.config.is_empty() {
        true => args.cluster.connect()?,
        false => None,
    };
    match (cluster, pod) {
        (Some(cluster), Some(name)) if statement.is_some() => {
            let subject = explain_pod::subject_of(&cluster, name)?;
            let (offline, lockdowns) = Seen::read(&cluster)?.offline();
            judge(args, (&subject, None), (&offline, &lockdowns), statement, out)
        }
        (Some(cluster), Some(name)) => {
            let seen = Seen::read(&cluster)?;
            let told = explain_pod::Told::read(&cluster, &seen, &args.home.sidegate_namespace, name, args.live)?;
            let (offline, lockdowns) = seen.offline();
            judge(
                args,
                (&told.subject, Some(&told)),
                (&offline, &lockdowns),
                statement,
                out,
            )
        }
        (Some(cluster), None) => {
            let subject = offline::subject(&args.identity, &args.label)?;
            let (offline, lockdowns) = Seen::read(&cluster)?.offline();
            judge(args, (&subject, None), (&offline, &lockdowns), statement, out)
        }
        (None, Some(_)) => Err(Usage("pod/NAME is a pod of a cluster: kubectl sidegate explain".to_owned()).into()),
        (None, None) if args.config.is_empty() => {
            let usage = "name a configuration with --config DIR, or a cluster with --context or --kubeconfig";
            Err(Usage(usage.to_owned()).into())
        }
        (None, None) => {
            let subject = offline::subject(&args.identity, &args.label)?;
            let (offline, lockdowns) = Offline::read(&args.config, out)?;
            judge(args, (&subject, None), (&offline, &lockdowns), statement, out)
        }
    }
}

/// The pod, if the first word names one, and the statement, if there is one.
fn words(words: &[String]) -> Result<(Option<&str>, Option<&str>), Usage> {
    let pod = |word: &'_ String| word.starts_with("pod/") || word.starts_with("pods/");
    match words {
        [] => Ok((None, None)),
        [only] if pod(only) => Ok((only.split_once('/').map(|(_, name)| name), None)),
        [only] => Ok((None, Some(only))),
        [first, statement] if pod(first) => Ok((first.split_once('/').map(|(_, name)| name), Some(statement))),
        _ => Err(Usage("write one statement, in quotes".to_owned())),
    }
}

fn judge(
    args: &ExplainArgs,
    (subject, pod): (&Subject, Option<&explain_pod::Told>),
    (offline, lockdowns): (&Offline, &[Lockdown]),
    statement: Option<&str>,
    out: &Out,
) -> Result<ExitCode> {
    let wanted = args.target.as_deref().map(offline::target).transpose()?;
    let world = offline.world(subject, lockdowns)?;
    if let Some(missing) = wanted
        .as_ref()
        .filter(|id| world.targets.iter().all(|(known, _)| known != *id))
    {
        return Err(Usage(format!("there is no Target {missing}")).into());
    }
    let Some(statement) = statement else {
        return everything(&world, wanted.as_ref(), pod, out);
    };
    let target = match wanted {
        Some(target) => target,
        None => only(&world)?,
    };
    let schema = Schema::read(args.schema.as_deref(), args.postgres)?;
    let database = args
        .database
        .as_deref()
        .or(offline.database(&target))
        .unwrap_or_default();
    let setting = schema.setting(database, &args.role, args.search_path.as_deref());
    let statement = match statement {
        "-" => read_input()?,
        text => text.to_owned(),
    };
    let told = world.explain(&target, Some(&statement), &setting).map_err(Usage)?;
    if out.json() {
        out.document(&Document {
            subject: subject.account(),
            target: target.to_string(),
            statement: &statement,
            schema: schema.file(),
            schema_notes: &schema.notes,
            explanation: &told,
        })?;
    } else {
        schema.remark(out);
        print(&told, &format!("{} on {target}", subject.account()), &statement, out)?;
    }
    Ok(exit_code(told.outcome))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    subject: String,
    target: String,
    statement: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<String>,
    schema_notes: &'a [SchemaNote],
    #[serde(flatten)]
    explanation: &'a Explanation,
}

fn exit_code(outcome: Outcome) -> ExitCode {
    ExitCode::from(match outcome {
        Outcome::Allowed => 0,
        Outcome::Denied => 3,
        Outcome::NeedsApproval => 4,
        Outcome::Invalid => 5,
    })
}

fn read_input() -> Result<String> {
    let mut text = String::new();
    std::io::stdin().lock().read_to_string(&mut text)?;
    Ok(text)
}

/// The Target that is meant where none is named: the only one this subject is given, or the only one there is.
fn only(world: &World<'_>) -> Result<TargetId, Usage> {
    let given: Vec<&TargetId> = world
        .targets
        .iter()
        .filter(|(_, not)| not.is_none())
        .map(|(id, _)| id)
        .collect();
    let all: Vec<&TargetId> = world.targets.iter().map(|(id, _)| id).collect();
    match (given.as_slice(), all.as_slice()) {
        ([only], _) | ([], [only]) => Ok((*only).clone()),
        ([], []) => Err(Usage("there is no Target".to_owned())),
        (_, all) => {
            let names: Vec<String> = all.iter().map(ToString::to_string).collect();
            Err(Usage(format!("name one with --target: {}", names.join(", "))))
        }
    }
}

/// What one statement comes to, for people.
fn print(told: &Explanation, who: &str, statement: &str, out: &Out) -> Result<()> {
    let (tone, word) = match told.outcome {
        Outcome::Allowed => (Tone::Good, "ALLOWED"),
        Outcome::Denied => (Tone::Bad, "DENIED"),
        Outcome::NeedsApproval => (Tone::Warn, "NEEDS APPROVAL"),
        Outcome::Invalid => (Tone::Bad, "INVALID"),
    };
    out.line(format!("{}  {who}", out.tone(tone, word)))?;
    for line in statement.trim().lines() {
        out.line(format!("  {}", visible(line)))?;
    }
    let answer = &told.answer;
    let by = match answer.rules.as_slice() {
        [] => String::new(),
        [only] if only == "default" => " by default".to_owned(),
        rules => format!(" by {}", rules.join(", ")),
    };
    let message = answer.message.as_deref().map(visible);
    out.line(match (message, told.outcome) {
        (Some(message), _) => format!("\nDecided{by}: {message}"),
        (None, Outcome::Allowed) if answer.rules.is_empty() => "\nOnly Observe-mode policies concern it".to_owned(),
        (None, _) => format!("\nDecided{by}"),
    })?;
    if answer.open {
        out.line("Bind values are not known here: a rule that reads them may still decide otherwise.")?;
    }
    if let Some(observed) = told.observed {
        out.line(format!("Observe-mode policies would have said: {observed}"))?;
    }
    section("What would have to change", &told.change, out)?;
    print_columns(told, out)?;
    print_facts(told, out)?;
    print_rules(&told.rules, |rule| decided(told, rule), out)?;
    let limits = limits(&told.limits);
    if matches!(told.outcome, Outcome::Allowed | Outcome::NeedsApproval) && !limits.is_empty() {
        section("Limits", &[limits], out)?;
    }
    Ok(())
}

fn section(title: &str, lines: &[String], out: &Out) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    out.line(format!("\n{}", out.tone(Tone::Bold, title)))?;
    for line in lines {
        out.line(format!("  - {}", visible(line)))?;
    }
    Ok(())
}

fn print_columns(told: &Explanation, out: &Out) -> Result<()> {
    if !told.columns.is_empty() {
        out.line(format!("\n{}", out.tone(Tone::Bold, "What the agent sees")))?;
        let row = |line: &sidegate_policies::explanation::OutputLine| {
            let masked = match (&line.how, &line.policy) {
                (Some(how), Some(policy)) => format!("{}  ({policy})", mask_words(how)),
                _ => "as it is".to_owned(),
            };
            vec![format!("  {}", visible(&line.name)), visible(&line.source), masked]
        };
        let rows: Vec<Vec<String>> = told.columns.iter().map(row).collect();
        out.table(&["  COLUMN", "FROM", "SHOWN"], &rows)?;
    }
    if !told.detectors.is_empty() {
        let found = told.detectors.iter().map(|line| format!("{:?}", line.detect));
        let found = found.collect::<Vec<_>>().join(", ");
        out.line(format!(
            "  and in every text, wherever it comes from, masked when found: {found}"
        ))?;
    }
    Ok(())
}

/// Facts that say something; the JSON form has them all.
fn print_facts(told: &Explanation, out: &Out) -> Result<()> {
    let writes = ["Update", "Delete"];
    let commands = told
        .facts
        .get("sql.commands")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let filters = commands
        .iter()
        .filter_map(Value::as_str)
        .any(|command| writes.contains(&command));
    let mut rows = Vec::new();
    for (name, value) in &told.facts {
        let text = match value {
            Value::Null | Value::Bool(false) if !(*name == "sql.filtered" && filters) => continue,
            Value::Array(items) if items.is_empty() => continue,
            Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
            Value::String(text) if text.is_empty() || text == "none" => continue,
            Value::Number(count) if *name == "sql.statements" && count.as_u64() == Some(1) => continue,
            Value::Number(count) if *name == "sql.params" && count.as_u64() == Some(0) => continue,
            Value::Bool(true) if *name == "sql.filtered" && !filters => continue,
            other => plain(other),
        };
        rows.push(vec![format!("  {name}"), visible(&text)]);
    }
    if !rows.is_empty() {
        out.line(format!("\n{}", out.tone(Tone::Bold, "What rules see")))?;
        out.table(&["  FACT", "VALUE"], &rows)?;
    }
    Ok(())
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn print_rules(rules: &[RuleTrace], decided: impl Fn(&RuleTrace) -> bool, out: &Out) -> Result<()> {
    if rules.is_empty() {
        return Ok(());
    }
    out.line(format!(
        "\n{}",
        out.tone(Tone::Bold, "Rules, in the order of evaluation")
    ))?;
    let row = |rule: &RuleTrace| {
        let outcome = match rule.outcome {
            Hit::Hit => "matches",
            Hit::Miss => "no match",
            Hit::Unknown => "unknown",
            Hit::Later => "later",
        };
        let mark = if decided(rule) { "> " } else { "  " };
        let observe = if rule.observe { " (observe)" } else { "" };
        let why = match &rule.when {
            Some(when) => format!("{}  [when {when}]", rule.why),
            None => rule.why.clone(),
        };
        vec![
            format!("{mark}{outcome}"),
            format!("{:?}{observe}", rule.effect),
            format!("{}/{}", rule.policy, rule.rule),
            visible(&why),
        ]
    };
    let rows: Vec<Vec<String>> = rules.iter().map(row).collect();
    Ok(out.table(&["  OUTCOME", "EFFECT", "RULE", "WHY"], &rows)?)
}

fn limits(limits: &Limits) -> String {
    let mut parts = Vec::new();
    parts.extend(limits.rows.map(|rows| format!("{rows} rows")));
    parts.extend(limits.bytes.map(|bytes| bytes.to_string()));
    parts.extend(limits.per_minute.map(|count| format!("{count} operations a minute")));
    parts.extend(limits.max_session.map(|span| format!("sessions of {span}")));
    parts.join(", ")
}

/// What one subject may do on one Target, or why not.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Standing {
    target: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_served: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    access: Option<Access>,
}

/// Everything a subject may do.
fn everything(
    world: &World<'_>,
    wanted: Option<&TargetId>,
    pod: Option<&explain_pod::Told>,
    out: &Out,
) -> Result<ExitCode> {
    let mut standings = Vec::new();
    for (id, reason) in world
        .targets
        .iter()
        .filter(|(id, _)| wanted.is_none_or(|wanted| wanted == id))
    {
        let frozen = world.frozen(id).map(|name| format!("it is frozen by Lockdown {name}"));
        let not_served = reason.clone().or(frozen);
        let access = match not_served {
            Some(_) => None,
            None => explain::access(&world.set, world.subject, Some(id), jiff::Timestamp::now()).pop(),
        };
        standings.push(Standing {
            target: id.to_string(),
            not_served,
            access,
        });
    }
    let who = world.subject.account();
    if out.json() {
        let mut document = serde_json::json!({"subject": who, "targets": standings});
        if let (Some(pod), Some(document)) = (pod, document.as_object_mut()) {
            document.insert("pod".to_owned(), pod.document(world));
        }
        out.document(&document)?;
    } else {
        if let Some(pod) = pod {
            pod.print(world, out)?;
            out.line("")?;
        }
        for (at, standing) in standings.iter().enumerate() {
            if at > 0 {
                out.line("")?;
            }
            print_standing(standing, &who, out)?;
        }
        if standings.is_empty() {
            out.line("There is no Target.")?;
        }
    }
    let effects = |wanted: &str| {
        let mut all = standings.iter().filter_map(|standing| standing.access.as_ref());
        all.any(|access| access.connect.effect == wanted)
    };
    Ok(match (effects("allow"), effects("ask")) {
        (true, _) => ExitCode::SUCCESS,
        (false, true) => exit_code(Outcome::NeedsApproval),
        (false, false) => exit_code(Outcome::Denied),
    })
}

fn print_standing(standing: &Standing, who: &str, out: &Out) -> Result<()> {
    let target = &standing.target;
    let Some(access) = &standing.access else {
        let reason = standing.not_served.as_deref().unwrap_or("no policy is about it");
        let no = out.tone(Tone::Bad, "NOT SERVED");
        out.line(format!("{no}  {who} on {target}: {}", visible(reason)))?;
        return Ok(());
    };
    let (tone, word) = match access.connect.effect {
        "allow" => (Tone::Good, "MAY CONNECT"),
        "ask" => (Tone::Warn, "NEEDS APPROVAL TO CONNECT"),
        _ => (Tone::Bad, "MAY NOT CONNECT"),
    };
    let head = format!("{}  {who} on {target} ({})", out.tone(tone, word), access.protocol);
    out.line(match &access.connect.message {
        Some(message) => format!("{head}: {}", visible(message)),
        None => head,
    })?;
    if access.observe_only {
        out.line("Only Observe-mode policies concern this agent: everything passes, and is recorded.")?;
    }
    rule_lines("Denied", &access.denied, out)?;
    rule_lines("Needs approval", &access.asked, out)?;
    rule_lines("Allowed", &access.allowed, out)?;
    let columns = access
        .masks
        .iter()
        .map(|line| format!("{}: {}  ({})", line.columns, mask_words(&line.how), line.policy));
    let found = access.detectors.iter();
    let found = found.map(|line| format!("{:?}, wherever it is found: {}", line.detect, mask_words(&line.how)));
    section("Masked", &columns.chain(found).collect::<Vec<_>>(), out)?;
    let caps = limits(&access.limits);
    if !caps.is_empty() {
        section("Limits", &[caps], out)?;
    }
    out.line("\nWhat no rule allows is denied; a Deny wins over everything, an Ask over an Allow.")?;
    Ok(())
}

fn rule_lines(title: &str, lines: &[RuleLine], out: &Out) -> Result<()> {
    let told = lines.iter().map(|line| {
        let mut text = line.what.clone();
        if let Some(when) = &line.when {
            text.push_str(&format!(", when {when}"));
        }
        if !line.approvers.is_empty() {
            text.push_str(&format!("; asks {}", line.approvers.join(", ")));
        }
        let observe = if line.observe { ", observed only" } else { "" };
        format!("{text}  ({}/{}{observe})", line.policy, line.rule)
    });
    section(title, &told.collect::<Vec<_>>(), out)
}
