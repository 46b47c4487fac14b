//! What the leader keeps in order: pins of pods that are gone, and the list of images that sidecars may be.

use std::sync::Arc;

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};
use sidegate_broker::attest::{Attestor, NotAttested};
use sidegate_broker::clock::ManualClock;
use sidegate_broker::config::AdmissionOptions;
use sidegate_broker::kubernetes::{connect, Admission, PinSweeper};
use sidegate_tests::cluster::Cluster;

use crate::site::{key, Agent, NAMESPACE};

/// Attests this agent's pod at this attestor, with a key that is pinned then.
fn attest(agent: &Agent<'_>, attestor: &Attestor) -> Result<Result<(), NotAttested>> {
    let attested = agent.site.attest_by(attestor, &agent.token()?, &key()?);
    Ok(attested.map(|_| ()))
}

/// A pin outlives its pod by ten minutes, and a pod that is there keeps its pin.
pub fn a_pin_goes_after_its_pod_and_never_before(cluster: &Cluster) -> Result<()> {
    let (gone, stays) = (Agent::new(cluster)?, Agent::new(cluster)?);
    let site = &gone.site;
    for agent in [&gone, &stays] {
        attest(agent, &site.broker.front().attestor)??;
    }
    let pinned = |agent: &Agent<'_>| -> Result<bool> {
        let lease = [
            "get",
            "lease",
            &agent.uid,
            "--namespace",
            NAMESPACE,
            "--ignore-not-found",
            "-o",
            "name",
        ];
        Ok(!cluster.kubectl(&lease, "")?.trim().is_empty())
    };
    ensure!(pinned(&gone)? && pinned(&stays)?, "they were pinned");
    let clock = Arc::new(ManualClock::starting_now());
    let client = site.runtime.block_on(connect(&site.options()))?;
    let mut sweeper = PinSweeper::new(client, NAMESPACE, clock.clone());
    let mut round = || site.runtime.block_on(sweeper.round());
    round()?;
    clock.advance_ms(3_600_000);
    round()?;
    ensure!(pinned(&gone)? && pinned(&stays)?, "both pods are there");
    gone.delete_pod()?;
    round()?;
    clock.advance_ms(599_000);
    round()?;
    ensure!(pinned(&gone)?, "ten minutes are not over");
    clock.advance_ms(1_000);
    ensure!(round()? >= 1, "nothing was removed");
    ensure!(!pinned(&gone)?, "the pin of a pod that is gone");
    ensure!(pinned(&stays)?, "the pin of a pod that is there");
    Ok(())
}

/// A namespace of its own with a list of one image, which the broker may keep: the broker of this run keeps the list of its
/// own namespace, and pins nothing.
fn home(cluster: &Cluster, before: &str) -> Result<String> {
    let home = cluster.namespace()?;
    let inside = ["--namespace", home.as_str()];
    let kubectl = |arguments: &[&str]| cluster.kubectl(&[arguments, &inside].concat(), "");
    kubectl(&[
        "create",
        "configmap",
        "sidegate-admission",
        &format!("--from-literal=digests={before}"),
    ])?;
    let right = [
        "--verb=get,update",
        "--resource=configmaps",
        "--resource-name=sidegate-admission",
    ];
    kubectl(&[&["create", "role", "admission"][..], &right].concat())?;
    let account = format!("--serviceaccount={NAMESPACE}:sidegate-broker");
    kubectl(&["create", "rolebinding", "admission", "--role=admission", &account])?;
    Ok(home)
}

/// The list in this namespace has these entries, and the user that the install names.
fn says(cluster: &Cluster, home: &str, wanted: &[(&str, &str)]) -> Result<()> {
    let get = [
        "get",
        "configmap",
        "sidegate-admission",
        "--namespace",
        home,
        "-o",
        "json",
    ];
    let map: Value = serde_json::from_str(&cluster.kubectl(&get, "")?)?;
    for (key, wanted) in wanted {
        ensure!(map["data"][key] == *wanted, "{key}: {map}");
    }
    let uids = map["data"]["uids"].as_str().context("no uids")?;
    ensure!(uids.lines().any(|uid| uid == "64100"), "{map}");
    Ok(())
}

/// Where a digest is pinned, a pod of the right shape with another image is nobody; the digests of earlier releases stand
/// in a ConfigMap, which the leader keeps.
pub fn a_sidecar_of_another_image_is_nobody(cluster: &Cluster) -> Result<()> {
    let [now, before, never] = ["a", "b", "c"].map(|letter| format!("sha256:{}", letter.repeat(64)));
    let with = |image: String| {
        Agent::with(cluster, move |pod| {
            pod["spec"]["initContainers"][0]["image"] = json!(image);
        })
    };
    let ours = with(format!("example.invalid/sidegate:2@{now}"))?;
    let old = with(format!("example.invalid/sidegate@{before}"))?;
    let foreign = with(format!("example.invalid/sidegate@{never}"))?;
    let tagged = with("example.invalid/sidegate:2".to_owned())?;

    let home = home(cluster, &before)?;
    let mut options = ours.site.options();
    options.namespace.clone_from(&home);
    options.admission = AdmissionOptions {
        sidecar_digest: Some(now.clone()),
        uids: vec![64_100],
        break_glass_group: Some("platform".to_owned()),
    };
    let site = &ours.site;
    let client = site.runtime.block_on(connect(&options))?;
    let admission = site.runtime.block_on(Admission::open(
        &client,
        &options,
        site.audience(),
        Box::new(|| vec!["ca\n".to_owned()]),
    ));
    let whole = &site.broker.front().attestor;
    let attestor = Attestor {
        audience: whole.audience.clone(),
        issuers: whole.issuers.clone(),
        reviewer: whole.reviewer.clone(),
        pods: whole.pods.clone(),
        pins: whole.pins.clone(),
        notices: whole.notices.clone(),
        images: admission.clone(),
        strangers: Default::default(),
        looked: Default::default(),
        timed: whole.timed.clone(),
        clock: whole.clock.clone(),
    };
    cluster.until("the authorizer knows the Role", || {
        Ok(site.runtime.block_on(admission.round(true)).is_ok())
    })?;
    says(
        cluster,
        &home,
        &[
            ("digests", &format!("{now}\n{before}")),
            ("audience", site.audience()),
            ("breakGlassGroup", "platform"),
            ("brokerCa", "ca"),
        ],
    )?;
    for agent in [&ours, &old] {
        attest(agent, &attestor)??;
    }
    let refused = |agent: &Agent<'_>| -> Result<String> {
        Ok(attest(agent, &attestor)?
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default())
    };
    let why = refused(&foreign)?;
    ensure!(
        why == format!("image: {never} is none of the digests in ConfigMap sidegate-admission"),
        "{why}"
    );
    let why = refused(&tagged)?;
    ensure!(
        why == "image: `example.invalid/sidegate:2` is not named by digest",
        "{why}"
    );
    // Without a digest at install any image is taken, and the metrics say so.
    attest(&foreign, whole)??;
    ensure!(!whole.images.pinned(), "this run's broker pins nothing");
    Ok(())
}
