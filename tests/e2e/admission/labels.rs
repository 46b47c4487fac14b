//! Labels of namespaces, and what holds for the policies as a whole.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};
use sidegate_tests::cluster::User;

use super::created::{ATTEMPTS, FENCED};
use super::running::{GUARDED, WRITTEN};
use super::{says, Guarded};
use crate::site::until;

/// What the other tests meet, by policy.
const ELSEWHERE: [(&str, &str); 4] = [
    ("pods", "parameters: "),
    ("exec", "exec: "),
    ("forwards", "portForward: "),
    ("tokens", "token: "),
];

/// A namespace's labels, and what is said to whoever may use the profile.
const WRONG: [(&str, &str); 6] = [
    ("sidegate.dev/inject=on", "label: sidegate.dev/inject"),
    (
        "sidegate.dev/allow-pod-opt-out=yes",
        "label: sidegate.dev/allow-pod-opt-out",
    ),
    (
        "sidegate.dev/allow-port-forward=1",
        "label: sidegate.dev/allow-port-forward",
    ),
    ("sidegate.dev/admission=off", "label: sidegate.dev/admission"),
    ("sidegate.dev/profile=", "label: sidegate.dev/profile"),
    ("sidegate.dev/injekt=enabled", "label: there is no label"),
];

impl Guarded {
    /// An opted-in namespace of its own, with these labels besides, of which user dev is the admin.
    pub fn namespace(&self, more: &[&str]) -> Result<String> {
        let namespace = self.cluster.namespace()?;
        let mut label = vec!["label", "namespace", &namespace, "sidegate.dev/inject=enabled"];
        label.extend(more);
        self.cluster.kubectl(&label, "")?;
        self.admin_of(&namespace)?;
        Ok(namespace)
    }

    /// Lets user dev use a profile, and waits until the authorizer knows.
    fn lets_use(&self, profile: &str) -> Result<()> {
        let role = format!("use-{profile}");
        let rule = json!({
            "apiGroups": ["sidegate.dev"], "resources": ["injectionprofiles"], "resourceNames": [profile], "verbs": ["use"],
        });
        self.cluster.create(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": role}, "rules": [rule],
        }))?;
        let bound = format!("--clusterrole={role}");
        let binding = ["create", "clusterrolebinding", &role, &bound, "--user=dev"];
        self.cluster.kubectl(&binding, "")?;
        let object = format!("injectionprofiles.sidegate.dev/{profile}");
        until(
            "the right is known",
            || self.asked(User::Dev, &["auth", "can-i", "use", &object], ""),
            Result::is_ok,
        )
        .map(|_| ())
    }
}

/// Removal counts, and so does every way to the labels; whoever may use one profile does not get at namespaces of another;
/// a wrong value is answered with the right ones, whoever writes it.
pub fn labels_of_namespaces_are_changed_by_whoever_may_use_the_profile(guarded: &Guarded) -> Result<()> {
    let namespace = guarded.namespace(&[])?;
    let label = |change: &str| {
        guarded.asked(
            User::Dev,
            &["label", "--overwrite", "namespace", &namespace, change],
            "",
        )
    };
    for change in [
        "sidegate.dev/inject-",
        "sidegate.dev/inject=disabled",
        "sidegate.dev/profile=lenient",
        "sidegate.dev/admission=audit",
        "sidegate.dev/allow-pod-opt-out=true",
        "sidegate.dev/allow-port-forward=true",
    ] {
        let said = label(change)?.err().context(change)?;
        ensure!(says(&said, "use: whoever "), "{change}: {said}");
    }
    let path = format!("/api/v1/namespaces/{namespace}");
    let written = |part: &str, change: &dyn Fn(&mut Value)| -> Result<Result<String, String>> {
        let stored = guarded.cluster.kubectl(&["get", "--raw", &path], "")?;
        let mut object: Value = serde_json::from_str(&stored)?;
        change(&mut object);
        let path = format!("{path}{part}?dryRun=All");
        guarded.asked(User::Dev, &["replace", "--raw", &path, "-f", "-"], &object.to_string())
    };
    for part in ["", "/status", "/finalize"] {
        let said = written(part, &|object| object["metadata"]["labels"] = json!({}))?;
        let said = said.err().context(part)?;
        ensure!(says(&said, "use: whoever changes or removes"), "{part}: {said}");
        // Other labels are nobody's business here.
        let answer = written(part, &|object| object["metadata"]["labels"]["team"] = json!("x"))?;
        ensure!(answer.is_ok(), "{part}: {answer:?}");
    }
    guarded.lets_use("lenient")?;
    let answer = label("sidegate.dev/profile=lenient")?;
    ensure!(
        answer.is_err_and(|said| says(&said, "use: whoever changes or removes")),
        "away from a profile that dev may not use"
    );
    guarded.lets_use("default")?;
    for change in [
        "sidegate.dev/admission=audit",
        "sidegate.dev/admission-",
        "sidegate.dev/profile=lenient",
    ] {
        let answer = label(change)?;
        ensure!(answer.is_ok(), "{change}: {answer:?}");
    }
    let answer = label("sidegate.dev/profile=strict")?;
    ensure!(
        answer.is_err_and(|said| says(&said, "use: whoever labels")),
        "to a profile that dev may not use"
    );
    for (wrong, said) in WRONG {
        for user in [User::Dev, User::Admin] {
            let answer = guarded.asked(user, &["label", "--overwrite", "namespace", &namespace, wrong], "")?;
            ensure!(
                answer.as_ref().is_err_and(|answer| says(answer, said)),
                "{wrong}: {answer:?}"
            );
        }
    }
    let created = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {
        "name": "misspelt", "labels": {"sidegate.dev/inject": "on"},
    }});
    let answer = guarded.asked(User::Admin, &["create", "-f", "-"], &created.to_string())?;
    ensure!(
        answer.is_err_and(|said| says(&said, "label: sidegate.dev/inject") && said.contains("enabled or disabled")),
        "a namespace that is made with a wrong label"
    );
    let answer = label("sidegate.dev/inject-")?;
    ensure!(answer.is_ok(), "whoever may use both may remove it: {answer:?}");
    guarded.cluster.kubectl(&["delete", "namespace", &namespace], "")?;
    Ok(())
}

/// The beginnings of what the rules of a policy say.
fn sayings(policy: &Value) -> Vec<String> {
    let all = policy["spec"]["validations"].as_array().into_iter().flatten();
    let texts = all.map(|validation| {
        let message = validation["message"].as_str().unwrap_or_default();
        let expression = validation["messageExpression"].as_str().unwrap_or_default();
        let first = expression.strip_prefix('\'').and_then(|rest| rest.split('\'').next());
        first.unwrap_or(message).to_owned()
    });
    texts.collect()
}

/// Fail closed, deny, warn where a namespace only listens; the server finds no fault in an expression; and each rule is
/// met by an attempt of this suite that no other rule of its policy answers.
pub fn the_policies_are_sound_and_each_rule_has_an_attempt(guarded: &Guarded) -> Result<()> {
    let get = |kind: &str| -> Result<Vec<Value>> {
        let said = guarded.cluster.kubectl(&["get", kind, "-o", "json"], "")?;
        let list: Value = serde_json::from_str(&said)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    };
    let checked = |policies: &Vec<Value>| {
        let mut policies = policies.iter();
        policies.all(|policy| policy["status"]["observedGeneration"] == policy["metadata"]["generation"])
    };
    let policies = until(
        "the expressions are checked",
        || get("validatingadmissionpolicies"),
        checked,
    )?;
    let mut met: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let labels = WRONG.iter().map(|(_, says)| ("namespaces", *says));
    let uses = ["use: whoever labels", "use: whoever changes or removes"].map(|says| ("namespaces", says));
    let written = WRITTEN
        .iter()
        .chain(GUARDED)
        .flat_map(|(policy, _, all)| all.iter().map(move |one| (*policy, one.says)));
    let pods = ATTEMPTS.iter().chain(FENCED).map(|attempt| ("pods", attempt.says));
    for (policy, says) in pods.chain(written).chain(labels).chain(uses).chain(ELSEWHERE) {
        met.entry(policy).or_default().insert(says);
    }
    // AccessRequests have policies of their own, and a suite of their own; the one that comes with the kinds decides nothing.
    let own = |name: &Value| {
        let name = name.as_str().and_then(|name| name.strip_prefix("sidegate-"))?;
        (!["requests", "decisions", "params"].contains(&name)).then(|| name.to_owned())
    };
    for policy in &policies {
        let Some(name) = own(&policy["metadata"]["name"]) else {
            continue;
        };
        ensure!(policy["spec"]["failurePolicy"] == "Fail", "{name}");
        let warnings = &policy["status"]["typeChecking"]["expressionWarnings"];
        ensure!(warnings.is_null(), "{name}: {warnings:#}");
        let (sayings, met) = (sayings(policy), met.remove(name.as_str()).unwrap_or_default());
        for saying in &sayings {
            let said = saying.strip_prefix("sidegate: ").context("not a refusal of ours")?;
            let attempt = met
                .iter()
                .find(|says| said.starts_with(**says))
                .context(saying.clone())?;
            let answers = sayings
                .iter()
                .filter(|saying| saying["sidegate: ".len()..].starts_with(attempt));
            ensure!(answers.count() == 1, "{name}: `{attempt}` fits several rules");
        }
    }
    ensure!(met.is_empty(), "no such policies: {met:?}");
    for binding in get("validatingadmissionpolicybindings")? {
        if own(&binding["spec"]["policyName"]).is_none() {
            continue;
        }
        let name = binding["metadata"]["name"].as_str().unwrap_or_default();
        let wanted = match name.ends_with("-audit") {
            true => json!(["Warn", "Audit"]),
            false => json!(["Deny", "Audit"]),
        };
        ensure!(binding["spec"]["validationActions"] == wanted, "{binding}");
        let absent = &binding["spec"]["paramRef"]["parameterNotFoundAction"];
        ensure!(absent.is_null() || absent == "Deny", "{binding}");
    }
    Ok(())
}
