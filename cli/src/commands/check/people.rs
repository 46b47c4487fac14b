//! What the caller may do, and who may act as somebody else.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::Value;

use super::{Finding, Look};
use crate::cluster::{Kind, Where, Wish};
use crate::commands::seen::{list, text, Seen, PODS};

const ROLES: Kind = rbac("ClusterRole", "clusterroles");
const BINDINGS: Kind = rbac("ClusterRoleBinding", "clusterrolebindings");

const fn rbac(kind: &'static str, plural: &'static str) -> Kind {
    Kind {
        group: "rbac.authorization.k8s.io",
        version: "v1",
        kind,
        plural,
    }
}

/// Findings about them.
pub fn findings(look: &Look<'_>) -> Vec<Finding> {
    let mut findings = vec![rights(look)];
    findings.push(match impersonators(look) {
        Ok(finding) => finding,
        Err(error) => Finding::failed("impersonation", &error),
    });
    findings
}

/// Which verbs of this program the caller's rights are enough for.
fn rights(look: &Look<'_>) -> Finding {
    const WHAT: &str = "your rights";
    let ours = |verb, resource, subresource| Wish {
        verb,
        group: "sidegate.dev",
        resource,
        subresource,
        namespace: "",
    };
    let core = |verb, resource, subresource, namespace| Wish {
        verb,
        group: "",
        resource,
        subresource,
        namespace,
    };
    let sees: Vec<Wish<'_>> = Seen::kinds().map(Wish::list).collect();
    let verbs: [(&str, &[Wish<'_>]); 7] = [
        ("explain", &sees),
        ("outdated", &[&sees[..], &[Wish::list(PODS)]].concat()),
        (
            "unprotected",
            &[&sees[..], &[Wish::list(PODS), core("get", "configmaps", "", look.home)]].concat(),
        ),
        ("requests", &[ours("list", "accessrequests", "")]),
        ("approve, deny", &[ours("update", "accessrequests", "status")]),
        ("lock", &[ours("create", "lockdowns", "")]),
        (
            "sessions, replay",
            &[
                ours("list", "sessions", ""),
                ours("get", "sessions", "content"),
                core("create", "pods", "portforward", look.home),
            ],
        ),
    ];
    let (mut can, mut cannot) = (Vec::new(), Vec::new());
    for (verb, wishes) in verbs {
        let all: Result<Vec<bool>> = wishes.iter().map(|wish| look.cluster.may(wish)).collect();
        match all {
            Ok(all) if all.iter().all(|may| *may) => can.push(verb),
            Ok(_) => cannot.push(verb),
            Err(error) => return Finding::failed(WHAT, &error),
        }
    }
    match cannot.is_empty() {
        true => Finding::good(WHAT, format!("in every namespace: {}", can.join(", "))),
        false => Finding::warn(
            WHAT,
            format!("not in every namespace: {}", cannot.join(", ")),
            "requests, approve and deny work with -n where you may there; explain, outdated and unprotected read every namespace, lock is for the whole cluster (docs/kubectl.md)",
        ),
    }
}

/// Whoever may impersonate an approver is one: admission sees the impersonated user alone.
fn impersonators(look: &Look<'_>) -> Result<Finding> {
    let roles: Vec<Value> = look.cluster.list(ROLES, Where::Everywhere)?;
    let bindings: Vec<Value> = look.cluster.list(BINDINGS, Where::Everywhere)?;
    let names: BTreeSet<&str> = roles
        .iter()
        .filter(|role| impersonates(role))
        .map(|role| text(role, "/metadata/name"))
        .collect();
    let mut who = BTreeSet::new();
    for binding in bindings
        .iter()
        .filter(|binding| names.contains(text(binding, "/roleRef/name")))
    {
        for subject in list(binding, "/subjects") {
            let (kind, name, namespace) = (
                text(subject, "/kind"),
                text(subject, "/name"),
                text(subject, "/namespace"),
            );
            who.insert(match namespace {
                "" => format!("{kind} {name}"),
                namespace => format!("{kind} {namespace}/{name}"),
            });
        }
    }
    // The cluster's own administrators, who may everything.
    who.remove("Group system:masters");
    Ok(match who.is_empty() {
        true => Finding::good(
            "impersonation",
            "by ClusterRoles, nobody but system:masters may act as somebody else",
        ),
        false => Finding::warn(
            "impersonation",
            format!(
                "may act as somebody else, and so approve as anybody: {}",
                who.into_iter().collect::<Vec<_>>().join(", ")
            ),
            "see that each of them is meant to",
        ),
    })
}

fn impersonates(role: &Value) -> bool {
    let has = |rule: &Value, field: &str, words: &[&str]| {
        list(rule, field)
            .filter_map(Value::as_str)
            .any(|word| words.contains(&word))
    };
    list(role, "/rules").any(|rule| {
        has(rule, "/verbs", &["impersonate", "*"])
            && has(rule, "/resources", &["users", "groups", "serviceaccounts", "*"])
            && has(rule, "/apiGroups", &["", "*"])
    })
}
