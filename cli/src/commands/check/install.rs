//! The installation: broker, what it published, webhook, and whether the webhook answers for a pod.

use serde_json::{json, Value};
use sidegate_injector::standing::is_labelled;
use sidegate_policies::objects::Namespace;

use super::{Finding, Look};
use crate::cluster::{Refused, Where};
use crate::commands::certificate::{self, Life};
use crate::commands::seen::{self, list, text};

/// The webhook that makes sidecars.
pub const PODS_WEBHOOK: &str = "pods.sidegate.dev";

/// Findings about it.
pub fn findings(look: &Look<'_>) -> Vec<Finding> {
    let mut findings = vec![broker(look), authority(look), images(look)];
    findings.extend(webhook(look));
    findings.push(policies(look));
    findings
}

fn broker(look: &Look<'_>) -> Finding {
    const WHAT: &str = "broker";
    match look.cluster.brokers(look.home) {
        Ok(pods) => Finding::good(WHAT, format!("{} pod(s) ready in {}", pods.len(), look.home)),
        Err(error) if Refused::code_of(&error).is_some() => Finding::failed(WHAT, &error),
        Err(error) => Finding::bad(
            WHAT,
            error.to_string(),
            format!(
                "kubectl -n {} get pods,events; kubectl -n {} logs deployment/sidegate-broker",
                look.home, look.home
            ),
        ),
    }
}

/// What sidecars pin.
fn authority(look: &Look<'_>) -> Finding {
    const WHAT: &str = "broker's authority";
    let map = look
        .cluster
        .get::<Value>(seen::CONFIG_MAPS, Where::Namespace(look.home), "sidegate-broker-ca");
    let map = match map {
        Ok(map) => map.unwrap_or_default(),
        Err(error) => return Finding::failed(WHAT, &error),
    };
    match certificate::life(text(&map, "/data/ca.crt")) {
        Life::Until(until) => Finding::good(WHAT, format!("published, until {until}")),
        Life::Ended(until) => Finding::bad(
            WHAT,
            format!("ended {until}"),
            "sidegate-broker rotate --now --authority (docs/operate.md)",
        ),
        Life::None => Finding::bad(
            WHAT,
            format!("ConfigMap {}/sidegate-broker-ca holds no certificate", look.home),
            "the broker's leader writes it: look at its log",
        ),
    }
}

fn images(look: &Look<'_>) -> Finding {
    const WHAT: &str = "images of sidecars";
    match seen::belief(look.cluster, look.home) {
        Ok(Some(belief)) if !belief.digests.is_empty() => {
            Finding::good(WHAT, format!("{} digest(s) are believed", belief.digests.len()))
        }
        Ok(Some(_)) => Finding::warn(
            WHAT,
            "not pinned: whoever may create pods can run another program in the sidecar's place",
            "set sidecar.digest of the chart",
        ),
        Ok(None) => Finding::bad(
            WHAT,
            format!("ConfigMap {}/sidegate-admission says nothing", look.home),
            "the broker's leader writes it: look at its log",
        ),
        Err(error) => Finding::failed(WHAT, &error),
    }
}

fn webhook(look: &Look<'_>) -> Vec<Finding> {
    const WHAT: &str = "webhook";
    let all: Vec<Value> = match look.cluster.list(seen::WEBHOOKS, Where::Everywhere) {
        Ok(all) => all,
        Err(error) => return vec![Finding::failed(WHAT, &error)],
    };
    let ours =
        |configuration: &&Value| list(configuration, "/webhooks").any(|webhook| text(webhook, "/name") == PODS_WEBHOOK);
    // Releases of two revisions stand side by side, each with a configuration of its own.
    let findings = all.iter().filter(ours).flat_map(configured);
    let mut findings: Vec<Finding> = findings.collect();
    if findings.is_empty() {
        return vec![Finding::bad(
            WHAT,
            format!("no MutatingWebhookConfiguration has a webhook {PODS_WEBHOOK}: no pod gets a sidecar"),
            "set injector.enabled of the chart (docs/install.md)",
        )];
    }
    findings.push(answers(look));
    findings
}

/// What is to be said about the webhooks of one configuration.
fn configured(configuration: &Value) -> Vec<Finding> {
    let name = text(configuration, "/metadata/name");
    let mut findings = Vec::new();
    for webhook in list(configuration, "/webhooks").filter(|webhook| text(webhook, "/name").ends_with(".sidegate.dev"))
    {
        let what = format!("webhook {}", text(webhook, "/name"));
        if text(webhook, "/failurePolicy") != "Fail" {
            findings.push(Finding::bad(
                &what,
                "its failurePolicy is not Fail: while it is down, pods start without a sidecar",
                format!("set failurePolicy: Fail in MutatingWebhookConfiguration {name}"),
            ));
        }
        findings.push(bundle(&what, webhook, name));
    }
    findings
}

fn bundle(what: &str, webhook: &Value, name: &str) -> Finding {
    let bundle = text(webhook, "/clientConfig/caBundle");
    match certificate::life_of_base64(bundle) {
        Life::Until(until) => Finding::good(what, format!("its caBundle is good until {until}")),
        Life::Ended(until) => Finding::bad(
            what,
            format!("its caBundle ended {until}"),
            "renew the webhook's certificate",
        ),
        Life::None => Finding::bad(
            what,
            format!("MutatingWebhookConfiguration {name} has no caBundle"),
            "the injector's leader writes it, or cert-manager: docs/injection.md, its certificates",
        ),
    }
}

/// Asks for a pod, without making it.
pub fn answers(look: &Look<'_>) -> Finding {
    const WHAT: &str = "webhook answers";
    let namespace = match look.namespace {
        Some(namespace) => namespace.to_owned(),
        None => match look.cluster.list::<Value>(seen::NAMESPACES, Where::Everywhere) {
            Ok(all) => match all.iter().find(|stored| is_labelled(&Namespace::of(stored))) {
                Some(stored) => text(stored, "/metadata/name").to_owned(),
                None => {
                    return Finding::unknown(
                        WHAT,
                        "no namespace is labelled, so there is nothing to ask it about",
                        "kubectl label namespace NAME sidegate.dev/inject=enabled",
                    );
                }
            },
            Err(error) => return Finding::failed(WHAT, &error),
        },
    };
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "sidegate-check-"},
        "spec": {
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65_532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "agent", "image": "example.invalid/agent",
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    });
    match look.cluster.would_store(seen::PODS, Where::Namespace(&namespace), &pod) {
        Ok(stored) => {
            let has = list(&stored, "/spec/initContainers").any(|container| text(container, "/name") == "sidegate");
            match has {
                true => Finding::good(
                    WHAT,
                    format!("a pod of namespace {namespace} would get its sidecar (dry run)"),
                ),
                false => Finding::bad(
                    WHAT,
                    format!("a pod of namespace {namespace} would be stored without a sidecar (dry run)"),
                    "is the namespace labelled sidegate.dev/inject=enabled, and does the webhook's selector take it?",
                ),
            }
        }
        Err(error) => {
            let said = error.to_string();
            match Refused::code_of(&error) {
                Some(403) if said.contains("cannot create resource") => Finding::failed(WHAT, &error),
                _ if said.contains("failed calling webhook") => Finding::bad(
                    WHAT,
                    said,
                    format!("kubectl -n {} get pods,endpointslices; control plane to pod must be open on the webhook's port", look.home),
                ),
                _ => Finding::bad(WHAT, format!("a pod of namespace {namespace}: {said}"), "do what the refusal says"),
            }
        }
    }
}

/// What holds where the webhook is gone around.
fn policies(look: &Look<'_>) -> Finding {
    const WHAT: &str = "admission policies";
    let ours = look
        .cluster
        .selected::<Value>(seen::ADMISSION, Where::Everywhere, "app.kubernetes.io/name=sidegate");
    match ours {
        Ok(ours) if ours.is_empty() => Finding::warn(
            WHAT,
            "none of Sidegate's: where the webhook is gone around, pods start without a sidecar (and get no lease)",
            "set admissionPolicies.create of the chart",
        ),
        Ok(ours) => Finding::good(WHAT, format!("{} of Sidegate's are there", ours.len())),
        Err(error) => Finding::failed(WHAT, &error),
    }
}
