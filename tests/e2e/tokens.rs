//! Service-account tokens as the API server makes, reviews and ends them: what the broker's attestation rests on.

use anyhow::{ensure, Context, Result};
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine;
use serde_json::{json, Value};
use sidegate_tests::cluster::Cluster;

const AUDIENCE: &str = "https://sidegate.test";

/// A pod that no node runs; answers its namespace and UID.
fn pod(cluster: &Cluster) -> Result<(String, String)> {
    let namespace = cluster.namespace()?;
    let pod = cluster.create(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "agent", "namespace": namespace},
        "spec": {"containers": [{"name": "agent", "image": "example.invalid/agent"}], "nodeSelector": {"none": "has-it"}},
    }))?;
    let uid = pod["metadata"]["uid"].as_str().context("the pod has no UID")?;
    Ok((namespace, uid.to_owned()))
}

/// A token of the pod's service account, bound to the pod.
fn token(cluster: &Cluster, namespace: &str) -> Result<String> {
    cluster.bound_token(namespace, "default", AUDIENCE, "agent")
}

/// The status of a TokenReview.
fn review(cluster: &Cluster, token: &str, audience: &str) -> Result<Value> {
    let reviewed = cluster.create(&json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": token, "audiences": [audience]},
    }))?;
    Ok(reviewed["status"].clone())
}

/// The claims say which pod, which account and which audience, and nothing lives longer than asked for.
pub fn a_bound_token_names_its_pod(cluster: &Cluster) -> Result<()> {
    let (namespace, uid) = pod(cluster)?;
    let token = token(cluster, &namespace)?;
    let claims = token.split('.').nth(1).context("no claims")?;
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?;
    ensure!(claims["iss"] == cluster.server.as_str(), "{claims}");
    ensure!(claims["aud"] == json!([AUDIENCE]), "{claims}");
    ensure!(
        claims["sub"] == format!("system:serviceaccount:{namespace}:default").as_str(),
        "{claims}"
    );
    ensure!(
        claims["kubernetes.io"]["pod"] == json!({"name": "agent", "uid": uid}),
        "{claims}"
    );
    let life = claims["exp"]
        .as_i64()
        .zip(claims["iat"].as_i64())
        .map(|(end, start)| end - start);
    ensure!(life == Some(600), "{claims}");
    Ok(())
}

/// The audience is the reviewer's question: a token for another one is nobody's.
pub fn a_review_answers_the_audience_it_was_asked_for(cluster: &Cluster) -> Result<()> {
    let (namespace, uid) = pod(cluster)?;
    let token = token(cluster, &namespace)?;
    let ours = review(cluster, &token, AUDIENCE)?;
    ensure!(
        ours["authenticated"] == true && ours["audiences"] == json!([AUDIENCE]),
        "{ours}"
    );
    ensure!(
        ours["user"]["username"] == format!("system:serviceaccount:{namespace}:default").as_str(),
        "{ours}"
    );
    ensure!(
        ours["user"]["extra"]["authentication.kubernetes.io/pod-uid"] == json!([uid]),
        "{ours}"
    );
    let foreign = review(cluster, &token, "https://somebody.else")?;
    ensure!(foreign["authenticated"] != true, "{foreign}");
    Ok(())
}

/// A token that nobody presented before is refused as soon as its pod is gone.
pub fn a_token_dies_with_its_pod(cluster: &Cluster) -> Result<()> {
    let (namespace, _) = pod(cluster)?;
    let (seen, token) = (token(cluster, &namespace)?, token(cluster, &namespace)?);
    let before = review(cluster, &seen, AUDIENCE)?;
    ensure!(before["authenticated"] == true, "{before}");
    cluster.kubectl(
        &[
            "delete",
            "pod",
            "agent",
            "--namespace",
            &namespace,
            "--grace-period=0",
            "--force",
        ],
        "",
    )?;
    let after = review(cluster, &token, AUDIENCE)?;
    ensure!(after["authenticated"] != true, "{after}");
    Ok(())
}
