//! What stands in for AWS's STS, as real programs over real TLS: MinIO, which verifies our assertion by our own discovery
//! and keys, and moto, which believes anybody and shows the shape of AWS's answers. `make interop` runs them.

#![allow(clippy::print_stdout)] // why a real server was not asked

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{digest, SHA1_FOR_LEGACY_USE_ONLY};
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use http::StatusCode;
use serde_json::{json, Value};
use sidegate_broker::clock::{Clock as _, SystemClock};
use tokio::process::{Child, Command};

use crate::client::{Answer, Client};
use crate::narrow::world;
use crate::oidc::free;
use crate::provider::{certificates, issuer_at};
use crate::world::World;

/// What AWS calls itself as an audience.
const AUDIENCE: &str = "sts.amazonaws.com";
/// Longest wait for a program to listen.
const PATIENCE: Duration = Duration::from_secs(120);

/// A program named by a variable; where it names none, that is said.
fn named(variable: &str) -> Option<PathBuf> {
    let found = std::env::var_os(variable).map(PathBuf::from);
    if found.is_none() {
        println!("SKIPPED: {variable} names no program; `make interop` fetches or builds it");
    }
    found
}

/// A folder with a certificate for 127.0.0.1, and the authority over it.
fn certified(folder: &Path) -> String {
    let (ca, cert, key) = certificates();
    std::fs::create_dir_all(folder.join("CAs")).unwrap();
    std::fs::write(folder.join("public.crt"), cert).unwrap();
    std::fs::write(folder.join("private.key"), key.serialize_pem()).unwrap();
    ca
}

/// A TokenIssuer that asks this port.
fn issuer(port: u16, ca: &str) -> String {
    issuer_at(&format!("https://127.0.0.1:{port}"), ca, "AwsSts", "{}", "")
}

fn started(command: &mut Command) -> Child {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.kill_on_drop(true).spawn().unwrap()
}

/// Waits until a program listens.
async fn listens(port: u16) {
    let began = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(began.elapsed() < PATIENCE, "it does not listen");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// One try, by the same key each time: another one would be another pod's.
async fn leased(world: &World, sidecar: &mut Client) -> Answer {
    sidecar.login(&world.token()).await;
    sidecar.post("/v1/leases", json!({"target": "local/ledger"})).await
}

fn keys(role: &str) -> Value {
    json!({"awsIam": {"issuer": "corp", "roleArn": role, "region": "eu-central-1", "service": "SigV4"}})
}

fn whole(answer: &Answer) {
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    let material = &answer.body["material"];
    for part in ["accessKeyId", "secretAccessKey", "sessionToken"] {
        assert!(!material[part].as_str().unwrap().is_empty(), "{part}");
    }
    let life = answer.body["expiresIn"].as_u64().unwrap();
    // The broker's clock stood still while the program started.
    assert!((60..=960).contains(&life), "{life}");
    println!("leased for {life} s");
}

/// The shape of AWS's answers, in XML whatever is asked for.
#[tokio::test]
async fn moto_gives_keys_for_our_assertion_in_the_shape_of_aws() {
    let Some(moto) = named("SIDEGATE_MOTO") else { return };
    let (temp, port) = (tempfile::tempdir().unwrap(), free());
    let ca = certified(temp.path());
    let _moto = started(
        Command::new(moto)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .args([
                "-c".into(),
                temp.path().join("public.crt"),
                "-k".into(),
                temp.path().join("private.key"),
            ]),
    );
    listens(port).await;
    let world = world(&issuer(port, &ca), keys("arn:aws:iam::123456789012:role/agents"), None).await;
    whole(&leased(&world, &mut world.client()).await);
}

/// The keys of a role whose provider verifies who the agent is; of one that expects another audience there are none.
#[tokio::test]
async fn minio_verifies_our_assertion_and_gives_keys_and_none_for_another_audience() {
    let Some(minio) = named("SIDEGATE_MINIO") else { return };
    let mut known = Duration::ZERO;
    for (client, given) in [(AUDIENCE, true), ("somebody-else", false)] {
        let (temp, port) = (tempfile::tempdir().unwrap(), free());
        let ca = certified(temp.path());
        let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, client.as_bytes());
        let role = format!("arn:minio:iam:::role/{}", URL_SAFE_NO_PAD.encode(hash.as_ref()));
        let world = world(&issuer(port, &ca), keys(&role), None).await;
        std::fs::write(temp.path().join("CAs/broker.crt"), &world.running.ca_pem).unwrap();
        let discovery = format!("{}/.well-known/openid-configuration", world.running.issuer_url);
        let _minio = started(
            Command::new(&minio)
                .args(["server", "--quiet", "--address", &format!("127.0.0.1:{port}")])
                .args([
                    "--certs-dir".into(),
                    temp.path().to_path_buf(),
                    temp.path().join("data"),
                ])
                .env("MINIO_ROOT_USER", "administrator")
                .env("MINIO_ROOT_PASSWORD", "administrator")
                .env("MINIO_IDENTITY_OPENID_CONFIG_URL", discovery)
                .env("MINIO_IDENTITY_OPENID_CLIENT_ID", client)
                .env("MINIO_IDENTITY_OPENID_ROLE_POLICY", "readwrite"),
        );
        listens(port).await;
        // It listens before it knows its roles, and refuses everybody until then.
        let mut sidecar = world.client();
        let began = Instant::now();
        if !given {
            // So a refusal counts only after twice the time in which the other one gave keys.
            tokio::time::sleep(known * 2 + Duration::from_secs(2)).await;
            let answer = leased(&world, &mut sidecar).await;
            assert_ne!(answer.status, StatusCode::OK, "{}", answer.body);
            break;
        }
        loop {
            let answer = leased(&world, &mut sidecar).await;
            if answer.status == StatusCode::OK || began.elapsed() >= PATIENCE {
                whole(&answer);
                known = began.elapsed();
                break;
            }
            // What was refused is remembered for a while, and the broker's clock must stay MinIO's: an assertion from the
            // future is none.
            tokio::time::sleep(Duration::from_secs(11)).await;
            world.clock.advance_ms(SystemClock.now_ms() - world.clock.now_ms());
        }
    }
}
