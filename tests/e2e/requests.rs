//! Approvals as objects: what an agent's sidecar holds, people of RBAC release, each with their own token.
//!
//! The API server's users are real ones of its token file; the rights are those of the chart's approver role. Where a test
//! says that the webhook is there, the injector under test answers for that namespace; elsewhere the admission policies of
//! the chart hold alone.

use std::process::Output;
use std::time::Instant;

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};
use sidegate_policies::api::access_request::{ApproverSet, RequestState, RequestedOperation};
use sidegate_policies::record::audit::read;
use sidegate_policies::record::layout::DirectoryStore;
use sidegate_policies::wire::{ApprovalAsk, ApprovalClaim, ApprovalOutcome};
use sidegate_tests::cli;
use sidegate_tests::cluster::{Cluster, User};
use sidegate_tests::shop::DATABASE;
use sidegate_tests::wire::{query, shape, state, Wire};

use crate::applied::Shop;
use crate::inject;
use crate::site::{until, Agent, BROKER};

/// An agent whose updates ask, its session, and what people say about it.
pub struct Asking<'a> {
    pub shop: Shop<'a>,
    sidecar: Option<sidegate_sidecar::app::Running>,
}

impl<'a> Asking<'a> {
    /// Updates ask, under these terms; leads and others have the approver's rights in the namespace.
    pub fn start(cluster: &'a Cluster, terms: &str) -> Result<Asking<'a>> {
        Asking::of(Agent::new(cluster)?, terms)
    }

    /// The same for this agent.
    pub fn of(agent: Agent<'a>, terms: &str) -> Result<Asking<'a>> {
        let shop = Shop::of(agent)?;
        shop.open()?;
        let rule = format!("{{name: refund, effect: Ask, sql: {{commands: [Update]}}, ask: {{{terms}}}}}");
        shop.agent.apply(&shop.policy("asking", &rule))?;
        shop.server
            .sql(DATABASE, "INSERT INTO app.items (id, label) VALUES (1, 'before')")?;
        let groups = ["--group=leads", "--group=others"];
        let account = format!("--serviceaccount={}:support", shop.agent.namespace);
        let bind = [
            "create",
            "rolebinding",
            "approvers",
            "--clusterrole=sidegate-approver",
            &account,
        ];
        shop.agent.kubectl(&[&bind[..], &groups].concat())?;
        let sidecar = shop.agent.sidecar()?;
        let asking = Asking {
            shop,
            sidecar: Some(sidecar),
        };
        asking.is_held_to_policies()?;
        asking.may_decide(User::Ann)?;
        Ok(asking)
    }

    fn cluster(&self) -> &'a Cluster {
        self.shop.agent.cluster
    }

    fn namespace(&self) -> &str {
        &self.shop.agent.namespace
    }

    /// The API server learns of admission policies by watching.
    fn is_held_to_policies(&self) -> Result<()> {
        let object = object(self.namespace()).to_string();
        self.cluster().until("the admission policies hold", || {
            let made = self
                .cluster()
                .ask(User::Admin, &["create", "--dry-run=server", "-f", "-"], &object)?;
            Ok(complaint(&made).contains("only the broker asks"))
        })
    }

    /// And of rights.
    fn may_decide(&self, user: User) -> Result<()> {
        let asked = [
            "auth",
            "can-i",
            "patch",
            "accessrequests",
            "--subresource=status",
            "-n",
            self.namespace(),
        ];
        self.cluster().until("the approver's rights hold", || {
            Ok(self.cluster().ask(user, &asked, "")?.status.success())
        })
    }

    /// From now on the webhook stamps who decides here; it learns of that by watching, like all else.
    fn stamped(&self, name: &str) -> Result<()> {
        inject::decides(self.cluster(), self.namespace())?;
        self.until_asked(name, "no asking rule names")
    }

    fn until_asked(&self, name: &str, answer: &str) -> Result<()> {
        let patch = add(&yes()).to_string();
        let mut arguments = vec![
            "patch",
            "accessrequest",
            name,
            "--subresource=status",
            "-n",
            self.namespace(),
        ];
        arguments.extend(["--type=json", "--dry-run=server", "-p", patch.as_str()]);
        self.cluster().until("the webhook is asked", || {
            Ok(complaint(&self.cluster().ask(User::Admin, &arguments, "")?).contains(answer))
        })
    }

    /// A session whose update is held, and the name of its request.
    pub fn held(&self, label: &str) -> Result<(Wire, String)> {
        let mut session = None;
        let mut login = || {
            session = Wire::login(self.shop.local, DATABASE).ok();
            Ok(session.is_some())
        };
        until("a session", &mut login, |there| *there)?;
        let mut wire = session.context("no session")?;
        wire.send(&query(&update(label)))?;
        let name = asked(&mut wire)?;
        Ok((wire, name))
    }

    pub fn label(&self) -> Result<String> {
        self.shop
            .server
            .sql(DATABASE, "SELECT label FROM app.items WHERE id = 1")
    }

    pub fn request(&self, name: &str) -> Result<Value> {
        let said = self.shop.agent.kubectl(&["get", "accessrequest", name, "-o", "json"])?;
        Ok(serde_json::from_str(&said)?)
    }

    pub fn becomes(&self, name: &str, wanted: &str) -> Result<Value> {
        let look = || self.request(name);
        until(wanted, look, |request| request["status"]["state"] == wanted)
    }

    /// What kubectl says to a patch of the status.
    fn patch(&self, user: User, name: &str, kind: &str, patch: &Value) -> Result<Output> {
        let (kind, patch) = (format!("--type={kind}"), patch.to_string());
        let mut arguments = vec![
            "patch",
            "accessrequest",
            name,
            "--subresource=status",
            "-n",
            self.namespace(),
        ];
        arguments.extend([kind.as_str(), "-p", patch.as_str()]);
        self.cluster().ask(user, &arguments, "")
    }

    /// Adds an entry to the decisions, as `kubectl patch` does.
    fn say(&self, user: User, name: &str, entry: &Value) -> Result<Output> {
        self.patch(user, name, "json", &add(entry))
    }

    /// The same as the administrator in somebody's place: the API server sees nobody else.
    fn say_as(&self, who: &[&str], name: &str, entry: &Value) -> Result<Output> {
        let patch = add(entry).to_string();
        let mut arguments = vec![
            "patch",
            "accessrequest",
            name,
            "--subresource=status",
            "-n",
            self.namespace(),
        ];
        arguments.extend(["--type=json", "-p", patch.as_str()]);
        arguments.extend(who);
        self.cluster().ask(User::Admin, &arguments, "")
    }

    /// Runs the `sidegate` binary with somebody's kubeconfig.
    fn sidegate(&self, user: User, arguments: &[&str]) -> Result<Output> {
        let kubeconfig = self.cluster().kubeconfig(user);
        let kubeconfig = kubeconfig.to_string_lossy();
        let arguments = [arguments, &["--kubeconfig", &kubeconfig]].concat();
        cli::run(&cli::path()?, self.shop.agent.folder(), &arguments)
    }

    fn end(mut self) {
        if let Some(sidecar) = self.sidecar.take() {
            self.shop.agent.end(sidecar);
        }
    }
}

fn update(label: &str) -> String {
    format!("UPDATE app.items SET label = '{label}' WHERE id = 1")
}

fn add(entry: &Value) -> Value {
    json!([{"op": "add", "path": "/status/decisions/-", "value": entry}])
}

/// Reads up to the notice that a statement is held; the name of its request.
fn asked(wire: &mut Wire) -> Result<String> {
    let frames = wire.until(b'N')?;
    let text = frames.last().and_then(|frame| frame.field(b'M')).unwrap_or_default();
    let name = text.split_whitespace().find(|word| word.starts_with("ar-"));
    Ok(name.context(text.clone())?.trim_end_matches(',').to_owned())
}

/// The held statement runs.
fn ran(wire: &mut Wire) -> Result<()> {
    let frames = wire.until_ready()?;
    ensure!(
        shape(&frames).contains(&"C UPDATE 1".to_owned()),
        "{:?}",
        shape(&frames)
    );
    Ok(())
}

/// The held statement is refused.
fn refused(wire: &mut Wire, wanted: &str) -> Result<()> {
    let frames = wire.until_ready()?;
    ensure!(state(&frames).as_deref() == Some(wanted), "{:?}", shape(&frames));
    Ok(())
}

fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn done(output: &Output) -> Result<String> {
    ensure!(output.status.success(), "{}", complaint(output));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn turned_down(output: &Output, why: &str) -> Result<()> {
    let said = complaint(output);
    ensure!(!output.status.success(), "taken, although: {why}");
    ensure!(said.contains(why), "not `{why}`: {said}");
    Ok(())
}

fn now() -> Result<String> {
    let output = std::process::Command::new("date")
        .args(["-u", "+%Y-%m-%dT%H:%M:%SZ"])
        .output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// A whole entry, as it is written where no webhook stamps it.
fn entry(by: &str, groups: &[&str]) -> Result<Value> {
    Ok(json!({"verdict": "Approve", "reason": "checked", "by": by, "groups": groups, "at": now()?}))
}

fn yes() -> Value {
    json!({"verdict": "Approve", "reason": "checked with the customer"})
}

/// A request that somebody made up.
fn object(namespace: &str) -> Value {
    json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "AccessRequest",
        "metadata": {"name": "ar-forged", "namespace": namespace, "annotations": {"sidegate.dev/request": "{}"}},
        "spec": {
            "subject": {"serviceAccount": {"namespace": namespace, "name": "support"}, "pod": "agent", "podUid": "u"},
            "target": {"namespace": namespace, "name": "shop"},
            "operation": {"protocol": "Postgres", "action": "UPDATE", "text": "SELECT 1"},
            "digest": "d", "rules": [], "approverSets": [], "expiresAt": "2030-01-01T00:00:00Z",
        },
    })
}

/// What a sidecar would ask about an update.
pub fn question(namespace: &str) -> ApprovalAsk {
    ApprovalAsk {
        target: format!("{namespace}/shop"),
        session: "s".to_owned(),
        operation: RequestedOperation {
            protocol: "Postgres".to_owned(),
            action: "UPDATE".to_owned(),
            summary: String::new(),
            text: update("asked"),
            parameters: Vec::new(),
            earlier: Vec::new(),
            hidden_values: 0,
        },
        digest: "a".repeat(64),
        approver_sets: vec![ApproverSet {
            rule: format!("{namespace}/asking/refund"),
            approvers: Vec::new(),
            exclude: Vec::new(),
            count: 1,
        }],
        valid_for_seconds: 600,
        bundle: "b".to_owned(),
    }
}

/// How it would claim the grant.
pub fn claim(digest: &str, nonce: &str) -> ApprovalClaim {
    ApprovalClaim {
        session: "s".to_owned(),
        operation: 1,
        digest: digest.to_owned(),
        nonce: nonce.to_owned(),
    }
}

/// How it would say that the operation ran.
pub fn ended(nonce: &str) -> ApprovalOutcome {
    ApprovalOutcome {
        state: RequestState::Done,
        nonce: nonce.to_owned(),
    }
}

/// Ann approves, with no webhook there.
pub fn approved(cluster: &Cluster, namespace: &str, name: &str) -> Result<()> {
    let patch = add(&entry("ann", &["leads"])?).to_string();
    let mut arguments = vec!["patch", "accessrequest", name, "--subresource=status", "-n", namespace];
    arguments.extend(["--type=json", "-p", patch.as_str()]);
    cluster.until("ann approves", || {
        Ok(cluster.ask(User::Ann, &arguments, "")?.status.success())
    })
}

const LEADS: &str = "approvers: [{group: leads}], holdFor: 60s, validFor: 10m";

/// A person's patch with nothing but a verdict and a reason releases the statement once; who decided is what the API
/// server knows; the broker's audit names them; the same statement asks anew.
pub fn a_held_statement_runs_once_when_a_person_adds_their_word(cluster: &Cluster) -> Result<()> {
    let asking = Asking::start(cluster, LEADS)?;
    let (mut wire, name) = asking.held("approved")?;
    asking.stamped(&name)?;
    let request = asking.request(&name)?;
    ensure!(
        request["status"] == json!({"state": "Pending", "decisions": []}),
        "{request}"
    );
    ensure!(request["spec"]["operation"]["text"] == update("approved"), "{request}");
    let owner = &request["metadata"]["ownerReferences"][0];
    ensure!(owner["kind"] == "Target" && owner["name"] == "shop", "{owner}");
    ensure!(asking.label()? == "before", "it was sent unapproved");
    done(&asking.say(User::Ann, &name, &yes())?)?;
    ran(&mut wire)?;
    ensure!(asking.label()? == "approved", "{}", asking.label()?);
    let request = asking.becomes(&name, "Done")?;
    let decision = &request["status"]["decisions"][0];
    ensure!(
        decision["by"] == "ann" && decision["groups"] == json!(["leads"]),
        "{decision}"
    );
    ensure!(request["status"]["recorded"] == 1, "{request}");
    let table = asking.shop.agent.kubectl(&["get", "accessrequests"])?;
    for column in [
        "FROM",
        "AGENT",
        "TARGET",
        "STATE",
        "DECIDED-BY",
        "AGE",
        "OPERATION",
        "UPDATE app.items SET",
    ] {
        ensure!(table.contains(column), "no {column}: {table}");
    }
    // The grant is spent, for the agent and for whoever writes the object.
    let again = asking.patch(User::Admin, &name, "merge", &json!({"status": {"state": "Granted"}}))?;
    ensure!(!again.status.success(), "a spent grant was granted again");
    wire.send(&query(&update("approved")))?;
    let second = asked(&mut wire)?;
    ensure!(second != name, "one approval, two uses");
    done(&asking.say(
        User::Ann,
        &second,
        &json!({"verdict": "Deny", "reason": "once is enough"}),
    )?)?;
    refused(&mut wire, "42501")?;
    asking.becomes(&second, "Denied")?;
    let said = audited(&asking)?;
    ensure!(
        said.contains(&("approval.approved".into(), "ann".into(), name)),
        "{said:?}"
    );
    ensure!(
        said.contains(&("approval.denied".into(), "ann".into(), second)),
        "{said:?}"
    );
    asking.end();
    Ok(())
}

/// Event, person and request of everything in the broker's own log.
fn audited(asking: &Asking<'_>) -> Result<Vec<(String, String, String)>> {
    let site = &asking.shop.agent.site;
    site.broker.front().audit.flush()?;
    let events = read(&DirectoryStore::new(&site.records()))?;
    let says = events.into_iter().map(|event| event.says);
    Ok(says
        .map(|says| {
            (
                says.event.into_owned(),
                says.subject.into_owned(),
                says.object.into_owned(),
            )
        })
        .collect())
}

/// The binary speaks for whoever its kubeconfig is, and as a plugin of kubectl; a denial is told the agent; what it lists
/// is what there is.
pub fn sidegate_approves_and_denies_with_a_kubeconfig(cluster: &Cluster) -> Result<()> {
    let asking = Asking::start(cluster, LEADS)?;
    let namespace = asking.namespace().to_owned();
    let (mut wire, name) = asking.held("by-hand")?;
    asking.stamped(&name)?;
    let listed = done(&asking.sidegate(User::Eve, &["requests", "-n", &namespace])?)?;
    for part in [
        &name,
        "UPDATE app.items SET label = 'by-hand' WHERE id = 1",
        "1 of group leads",
        "shop",
    ] {
        ensure!(listed.contains(part), "no {part}: {listed}");
    }
    let yaml = done(&asking.sidegate(User::Ann, &["requests", "-n", &namespace, "-o", "yaml"])?)?;
    ensure!(yaml.contains(&format!("name: {name}")), "{yaml}");
    let foreign = asking.sidegate(User::Eve, &["approve", &name, "-n", &namespace])?;
    turned_down(&foreign, "no asking rule names them")?;
    let said = done(&asking.sidegate(
        User::Ann,
        &["approve", &name, "-n", &namespace, "--reason", "checked", "--for", "1m"],
    )?)?;
    ensure!(said.contains("Approved"), "{said}");
    ran(&mut wire)?;
    let request = asking.becomes(&name, "Done")?;
    ensure!(
        request["status"]["decisions"][0]["by"] == "ann" && request["status"]["for"] == "1m",
        "{request}"
    );
    let late = asking.sidegate(User::Bob, &["deny", &name, "-n", &namespace])?;
    turned_down(&late, "nobody decides about it any more")?;

    wire.send(&query(&update("denied")))?;
    let second = asked(&mut wire)?;
    // As kubectl finds it: a program of this name on the path.
    let plugin = asking.shop.agent.folder().join("kubectl-sidegate");
    std::os::unix::fs::symlink(cli::path()?, &plugin)?;
    let home = asking.shop.agent.folder().join(".kube");
    std::fs::create_dir(&home)?;
    std::fs::copy(cluster.kubeconfig(User::Bob), home.join("config"))?;
    let deny = [
        "deny",
        &second,
        "-n",
        &namespace,
        "--reason",
        "wrong order",
        "-o",
        "json",
    ];
    let said = done(&cli::run(&plugin, asking.shop.agent.folder(), &deny)?)?;
    let said: Value = serde_json::from_str(&said)?;
    ensure!(
        said["status"]["state"] == "Denied" && said["status"]["decisions"][0]["by"] == "bob",
        "{said}"
    );
    refused(&mut wire, "42501")?;
    ensure!(asking.label()? == "by-hand", "{}", asking.label()?);
    // It is remembered: nobody is asked again.
    wire.send(&query(&update("denied")))?;
    refused(&mut wire, "42501")?;
    asking.end();
    Ok(())
}

/// What the agent's own account, an excluded person, and people whom no rule names say is refused: by the webhook in
/// words, and by the admission policy alone.
pub fn who_no_rule_names_decides_nothing(cluster: &Cluster) -> Result<()> {
    let everybody =
        "approvers: [{group: leads}, {group: 'system:serviceaccounts'}], exclude: [{user: bob}], holdFor: 60s";
    let asking = Asking::start(cluster, everybody)?;
    let (mut wire, name) = asking.held("nobody")?;
    let account = format!("system:serviceaccount:{}:support", asking.namespace());
    let beside = format!("system:serviceaccounts:{}", asking.namespace());
    let agent = [
        "--as",
        &account,
        "--as-group=system:serviceaccounts",
        "--as-group",
        &beside,
        "--as-group=system:authenticated",
    ];
    let all = |stamped: bool| -> Result<()> {
        let by = |name: &str, groups: &[&str]| if stamped { Ok(yes()) } else { entry(name, groups) };
        let own = asking.say_as(&agent, &name, &by(&account, &["system:serviceaccounts"])?)?;
        turned_down(&own, "own side never decides")?;
        turned_down(&asking.say(User::Bob, &name, &by("bob", &["leads"])?)?, "excludes")?;
        turned_down(
            &asking.say(User::Eve, &name, &by("eve", &["others"])?)?,
            "no asking rule names",
        )?;
        Ok(())
    };
    all(false)?;
    asking.stamped(&name)?;
    all(true)?;
    let request = asking.request(&name)?;
    ensure!(
        request["status"] == json!({"state": "Pending", "decisions": []}),
        "{request}"
    );
    done(&asking.say(User::Ann, &name, &yes())?)?;
    ran(&mut wire)?;
    asking.end();
    Ok(())
}

/// With no webhook at all: nobody speaks in another's name, with another's groups, twice, or over what others said; nobody
/// moves what is the broker's to move; and the broker's account does not decide. What is said truly counts.
pub fn forged_words_are_refused_without_the_webhook(cluster: &Cluster) -> Result<()> {
    let two = "approvers: [{group: leads}], count: 2, holdFor: 60s, validFor: 10m";
    let asking = Asking::start(cluster, two)?;
    let (mut wire, name) = asking.held("two")?;
    let forged = "in your own name";
    turned_down(&asking.say(User::Ann, &name, &entry("bob", &["leads"])?)?, forged)?;
    turned_down(&asking.say(User::Eve, &name, &entry("ann", &["leads"])?)?, forged)?;
    turned_down(
        &asking.say(User::Eve, &name, &entry("eve", &["leads"])?)?,
        "groups are those you are in",
    )?;
    let both = json!([entry("ann", &["leads"])?, entry("bob", &["leads"])?]);
    let both = json!({"status": {"decisions": both}});
    turned_down(&asking.patch(User::Ann, &name, "merge", &both)?, forged)?;
    let granted = json!({"status": {"state": "Granted"}});
    turned_down(&asking.patch(User::Ann, &name, "merge", &granted)?, forged)?;
    let claimed = json!({"status": {"state": "Claimed", "decisions": [entry("ann", &["leads"])?]}});
    turned_down(
        &asking.patch(User::Ann, &name, "merge", &claimed)?,
        "nobody decides about it any more",
    )?;
    let dated = json!({"status": {"validUntil": "2030-01-01T00:00:00Z", "decisions": [entry("ann", &["leads"])?]}});
    turned_down(&asking.patch(User::Ann, &name, "merge", &dated)?, "are the broker's")?;
    let broker = asking.say_as(
        &["--as", BROKER, "--as-group=system:masters"],
        &name,
        &entry(BROKER, &[])?,
    )?;
    turned_down(&broker, "the broker never decides")?;

    // A true word, with a state that is none: the broker computes it.
    let first = json!({"status": {"state": "Granted", "decisions": [entry("ann", &["leads"])?]}});
    done(&asking.patch(User::Ann, &name, "merge", &first)?)?;
    let stands = until(
        "it is computed anew",
        || asking.request(&name),
        |request| request["status"]["recorded"] == 1,
    )?;
    ensure!(stands["status"]["state"] == "Pending", "{stands}");
    turned_down(
        &asking.say(User::Ann, &name, &entry("ann", &["leads"])?)?,
        "one word a person",
    )?;
    let over = json!({"status": {"decisions": [entry("bob", &["leads"])?]}});
    turned_down(
        &asking.patch(User::Bob, &name, "merge", &over)?,
        "what others said stays as it is",
    )?;
    ensure!(asking.label()? == "before", "one of two was enough");
    done(&asking.say(User::Bob, &name, &entry("bob", &["leads"])?)?)?;
    ran(&mut wire)?;
    asking.becomes(&name, "Done")?;

    // Requests themselves are the broker's: nobody shows people one thing and runs another.
    let made = cluster.ask(
        User::Admin,
        &["create", "-f", "-"],
        &object(asking.namespace()).to_string(),
    )?;
    turned_down(&made, "only the broker asks")?;
    let edit = json!({"spec": {"operation": {"text": "SELECT 1"}}}).to_string();
    let inside = ["--namespace", asking.namespace(), "--type=merge", "-p"];
    let edited = cluster.ask(
        User::Admin,
        &[&["patch", "accessrequest", &name][..], &inside, &[&edit]].concat(),
        "",
    )?;
    turned_down(&edited, "operation of an AccessRequest never changes")?;
    let kept = json!({"metadata": {"annotations": {"sidegate.dev/request": "{}"}}}).to_string();
    let edited = cluster.ask(
        User::Admin,
        &[&["patch", "accessrequest", &name][..], &inside, &[&kept]].concat(),
        "",
    )?;
    turned_down(&edited, "is the broker's")?;
    asking.end();
    Ok(())
}

/// The webhook overwrites who spoke, and keeps what others said; it says what to do.
pub fn the_webhook_stamps_who_decided(cluster: &Cluster) -> Result<()> {
    let two = "approvers: [{group: leads}], count: 2, holdFor: 60s, validFor: 10m";
    let asking = Asking::start(cluster, two)?;
    let (mut wire, name) = asking.held("stamped")?;
    asking.stamped(&name)?;
    let mut forged = entry("bob", &["leads", "system:masters"])?;
    forged["at"] = json!("2001-01-01T00:00:00Z");
    done(&asking.say(User::Ann, &name, &forged)?)?;
    let request = asking.request(&name)?;
    let decision = &request["status"]["decisions"][0];
    ensure!(
        decision["by"] == "ann" && decision["groups"] == json!(["leads"]),
        "{decision}"
    );
    ensure!(
        !decision["at"].as_str().unwrap_or_default().starts_with("2001"),
        "{decision}"
    );
    ensure!(request["status"]["state"] == "Pending", "{request}");
    turned_down(&asking.say(User::Ann, &name, &yes())?, "has decided already")?;
    let over = json!({"status": {"decisions": [yes()]}});
    turned_down(
        &asking.patch(User::Bob, &name, "merge", &over)?,
        "what others said stays as it is",
    )?;
    // `kubectl edit --subresource=status` is a merge patch of the whole list.
    let whole = json!({"status": {"decisions": [decision, {"verdict": "Approve"}]}});
    done(&asking.patch(User::Bob, &name, "merge", &whole)?)?;
    ran(&mut wire)?;
    asking.becomes(&name, "Done")?;
    asking.end();
    Ok(())
}

/// A request that nobody decides in time expires, and so does a grant that nobody uses; a deleted one is revoked.
pub fn what_nobody_decides_or_uses_ends(cluster: &Cluster) -> Result<()> {
    let asking = Asking::start(cluster, "approvers: [{group: leads}], holdFor: 60s, validFor: 3s")?;
    let (mut wire, name) = asking.held("late")?;
    refused(&mut wire, "57014")?;
    asking.becomes(&name, "Expired")?;
    turned_down(
        &asking.say(User::Ann, &name, &entry("ann", &["leads"])?)?,
        "nobody decides about it any more",
    )?;
    let (mut wire, name) = asking.held("deleted")?;
    asking.shop.agent.kubectl(&["delete", "accessrequest", &name])?;
    let frames = wire.until_ready()?;
    ensure!(state(&frames).is_some(), "{:?}", shape(&frames));
    ensure!(asking.label()? == "before", "{}", asking.label()?);
    asking.end();
    // A ticket: the agent is told to come back, and does not.
    let asking = Asking::start(cluster, "approvers: [{group: leads}], holdFor: 1s, validFor: 5s")?;
    let (mut wire, name) = asking.held("unused")?;
    refused(&mut wire, "42501")?;
    done(&asking.say(User::Ann, &name, &entry("ann", &["leads"])?)?)?;
    let granted = until(
        "on record",
        || asking.request(&name),
        |request| request["status"]["recorded"] == 1,
    )?;
    ensure!(granted["status"]["validUntil"].is_string(), "{granted}");
    asking.becomes(&name, "Expired")?;
    wire.send(&query(&update("unused")))?;
    ensure!(asked(&mut wire)? != name, "an expired grant was used");
    asking.end();
    Ok(())
}

/// `sidegate lock` writes an object with the person's own rights; no webhook is asked, so it holds while the injector is
/// down; within a second the session is gone and the next one is refused. `unlock` lifts it.
pub fn sidegate_lock_cuts_while_the_injector_is_down(cluster: &Cluster) -> Result<()> {
    let asking = Asking::start(cluster, LEADS)?;
    let (mut wire, name) = asking.held("frozen")?;
    inject::decides_nowhere(cluster, asking.namespace())?;
    asking.until_asked(&name, "failed calling webhook \"decisions.sidegate.dev\"")?;
    let mut open = Wire::login(asking.shop.local, DATABASE)?;
    ensure!(open.alive()?, "the session does not live");
    let account = format!("{}/support", asking.namespace());
    let lock = ["lock", "--service-account", &account, "--reason", "drill"];
    turned_down(&asking.sidegate(User::Eve, &lock)?, "forbidden")?;
    ensure!(open.alive()?, "somebody without the right froze it");
    let started = Instant::now();
    let said = done(&asking.sidegate(User::Admin, &lock)?)?;
    let took = started.elapsed();
    ensure!(!open.alive().unwrap_or(false), "the session lives after: {said}");
    println!(
        "sidegate lock, from its start to confirmed and cut: {} ms",
        took.as_millis()
    );
    ensure!(said.contains("2 session(s) cut"), "{said}");
    let frames = wire.until_ready();
    ensure!(
        frames.is_err() || frames.is_ok_and(|frames| state(&frames).is_some()),
        "the held one ran"
    );
    asking.becomes(&name, "Void")?;
    let refused = asking.shop.ask("SELECT 1")?;
    ensure!(refused.err.contains("a lockdown is in force"), "{refused:?}");
    let lockdown = said.split_whitespace().next().unwrap_or_default();
    let said = done(&asking.sidegate(User::Admin, &["unlock", lockdown])?)?;
    ensure!(said.contains("Lifted"), "{said}");
    until("it is lifted", || asking.shop.ask("SELECT 1"), |said| said.code == 0)?;
    ensure!(asking.label()? == "before", "{}", asking.label()?);
    asking.end();
    Ok(())
}
