//! Credentials that no protocol uses yet, at the lease: certificates over a key of the sidecar, and keys of a role. A
//! configuration that names them is refused; here the broker stands on objects that were changed behind its back.

#![allow(clippy::print_stdout)] // what a real server made

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use http::StatusCode;
use serde_json::{json, Value};
use sidegate_broker::attest::{PodView, Pods, Unavailable};
use sidegate_broker::clock::{rfc3339, Clock as _, SystemClock};
use sidegate_broker::ground::Ground;
use sidegate_policies::api::lockdown::{Freeze, LockdownAction, LockdownSpec};
use sidegate_policies::api::target::Credential;

use crate::client::{Answer, Client};
use crate::exchanges::verifier;
use crate::openssh::{public_key, Certificate};
use crate::ports;
use crate::provider::{issuer_at, Provider, Reply, Seen};
use crate::real_vault::RealVault;
use crate::world::{World, CONFIG};

const KEY: [u8; 32] = [3; 32];
const ROLE: &str = "arn:aws:iam::123456789012:role/agents/support";

/// The pods of the ground, at these addresses.
struct Addressed(Arc<dyn Pods>, Vec<IpAddr>);

impl Pods for Addressed {
    fn pod<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<PodView>, Unavailable>> {
        Box::pin(async move {
            let found = self.0.pod(namespace, name).await?;
            let ips = Some(self.1.clone());
            Ok(found.map(|pod| PodView { ips, ..pod }))
        })
    }
}

/// A broker whose Target `ledger` is logged in to by this, in a pod at these addresses.
pub async fn world(issuer: &str, credential: Value, addresses: Option<Vec<IpAddr>>) -> World {
    let target = "---\napiVersion: sidegate.dev/v1alpha1\nkind: Target\nmetadata: {name: ledger, namespace: local}\nspec:\n  \
                  protocol: Postgres\n  address: {host: db.example, port: 5435}\n  credential: {secret: {name: shop-agent}}\n  \
                  listen: {port: 15435}\n";
    let named = CONFIG.replace("{name: warehouse}]", "{name: warehouse}, {name: ledger}]");
    let credential: Credential = serde_json::from_value(credential).unwrap();
    let change = |ground: &mut Ground| {
        let targets = ground.objects.targets.iter_mut().map(|located| &mut located.object);
        let ledger = targets.into_iter().find(|target| target.metadata.name == "ledger");
        ledger.unwrap().spec.credential = credential;
        if let Some(addresses) = addresses {
            let pods = Arc::clone(&ground.attestor.pods);
            ground.attestor.pods = Arc::new(Addressed(pods, addresses));
        }
    };
    World::start_on(&format!("{named}{target}{issuer}"), change).await
}

fn ssh() -> Value {
    json!({"sshCertificate": {"issuer": "corp", "mount": "ssh", "role": "agents", "principals": ["deploy"]}})
}

fn vault(provider: &Provider) -> String {
    provider.issuer_by("Vault", "", "{mount: jwt, role: sidegate}", "")
}

fn right(now: i64) -> Certificate {
    let now = u64::try_from(now).unwrap();
    Certificate {
        key: KEY,
        kind: 1,
        principals: vec!["deploy".to_owned()],
        after: now - 30,
        before: now + 300,
        critical: vec![("source-address".to_owned(), "10.0.0.7/32".to_owned())],
        extensions: vec!["permit-pty".to_owned()],
    }
}

/// A Vault that signs this.
async fn signer(certificate: Arc<Mutex<Option<Certificate>>>) -> Provider {
    Provider::start(move |seen: &Seen, _| match seen.path.as_str() {
        "/v1/auth/jwt/login" => Reply::Json(
            200,
            json!({"auth": {"client_token": "hvs.canary-login", "lease_duration": 3600, "renewable": true}}),
        ),
        "/v1/ssh/sign/agents" if seen.headers["x-vault-token"] == "hvs.canary-login" => {
            let signed = certificate.lock().unwrap().as_ref().map(Certificate::line);
            match signed {
                Some(line) => Reply::Json(200, json!({"data": {"serial_number": "1", "signed_key": line}})),
                None => Reply::Json(503, json!({"errors": ["canary: Vault is sealed"]})),
            }
        }
        _ => Reply::Json(403, json!({"errors": ["canary: permission denied"]})),
    })
    .await
}

async fn lease(client: &mut Client, key: Option<&[u8; 32]>) -> Answer {
    let asked = json!({"target": "local/ledger", "publicKey": key.map(public_key)});
    client.post("/v1/leases", asked).await
}

/// The sidecar's key is certified for the Target's users, its pod's address and five minutes, by a login of our
/// assertion; another certificate than the one asked for is not leased, and what is frozen gets none.
#[tokio::test]
async fn a_key_of_the_sidecar_is_certified_for_named_users_from_its_own_address() {
    let certificate = Arc::new(Mutex::new(None));
    let provider = signer(Arc::clone(&certificate)).await;
    let address = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));
    let world = world(&vault(&provider), ssh(), Some(vec![address])).await;
    let mut sidecar = world.sidecar().await;
    let sealed = lease(&mut sidecar, Some(&KEY)).await;
    assert_eq!(sealed.error(), "temporarily_unavailable", "{}", sealed.body);

    let right = right(world.clock.now_ms() / 1000);
    *certificate.lock().unwrap() = Some(right.clone());
    let given = lease(&mut sidecar, Some(&KEY)).await;
    assert_eq!(given.status, StatusCode::OK, "{}", given.body);
    let material = json!({"kind": "sshCertificate", "certificate": right.line().trim()});
    assert_eq!(
        (&given.body["material"], &given.body["expiresIn"]),
        (&material, &json!(300))
    );
    let seen = provider.seen();
    let jwt = seen[0].form()["jwt"].clone();
    let claims = verifier(&world).verify(&jwt, &provider.origin, 60).await.unwrap();
    assert!(claims["sub"].as_str().unwrap().starts_with("sg:local:"));
    let asked: Value = serde_json::from_str(&seen.last().unwrap().body).unwrap();
    let wanted = json!({
        "public_key": public_key(&KEY), "cert_type": "user", "ttl": "300s", "valid_principals": "deploy",
        "extensions": {"permit-pty": ""}, "critical_options": {"source-address": "10.0.0.7/32"},
    });
    assert_eq!(asked, wanted);

    assert_eq!(lease(&mut sidecar, None).await.error(), "credential_refused", "no key");
    assert_eq!(
        lease(&mut sidecar, Some(&[4; 32])).await.error(),
        "credential_refused",
        "another key"
    );
    *certificate.lock().unwrap() = Some(Certificate {
        extensions: vec!["permit-agent-forwarding".to_owned()],
        ..right.clone()
    });
    assert_eq!(
        lease(&mut sidecar, Some(&KEY)).await.error(),
        "credential_refused",
        "forwarding"
    );

    *certificate.lock().unwrap() = Some(right);
    let frozen = LockdownSpec {
        reason: "test".to_owned(),
        until: None,
        action: LockdownAction::Close,
        freeze: vec![Freeze::Issuer("corp".to_owned())],
    };
    world.running.front().lockdowns.lock("drill", frozen).unwrap();
    assert_eq!(lease(&mut sidecar, Some(&KEY)).await.error(), "locked");
}

/// As a real Vault signs it, with a key of its own making and its own habits: what it says is what was asked for, and what
/// its role does not let it say is not leased.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_vault_certifies_a_key_of_the_sidecar_as_it_was_asked_and_no_other() {
    let Some(program) = RealVault::program() else { return };
    let (temp, port) = (tempfile::tempdir().unwrap(), ports::free().unwrap());
    let vault = RealVault::start(&program, temp.path(), port).unwrap();
    let issuer = issuer_at(
        &vault.origin,
        &vault.ca_pem,
        "Vault",
        "{mount: jwt, role: sidegate}",
        "",
    );
    let address = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));
    let world = world(&issuer, ssh(), Some(vec![address])).await;
    vault.trust(&world.running.issuer_url, &world.running.ca_pem).unwrap();
    vault.run(&["secrets", "enable", "ssh"]).unwrap();
    vault
        .run(&["write", "ssh/config/ca", "generate_signing_key=true"])
        .unwrap();
    let role = |allowed: &str| {
        let words = [
            "write",
            "ssh/roles/agents",
            "key_type=ca",
            "allow_user_certificates=true",
            "allowed_critical_options=source-address",
            "allowed_extensions=permit-pty",
            &format!("allowed_users={allowed}"),
        ];
        vault.run(&words).unwrap();
    };
    role("deploy");
    let mut sidecar = world.sidecar().await;
    // A key as OpenSSH makes them: Vault reads it.
    let key = aws_lc_rs::signature::Ed25519KeyPair::generate().unwrap();
    let key: [u8; 32] = aws_lc_rs::signature::KeyPair::public_key(&key)
        .as_ref()
        .try_into()
        .unwrap();
    let given = lease(&mut sidecar, Some(&key)).await;
    assert_eq!(given.status, StatusCode::OK, "{}", given.body);
    let life = given.body["expiresIn"].as_u64().unwrap();
    assert!((200..=300).contains(&life), "{life}");
    let certificate = temp.path().join("key-cert.pub");
    std::fs::write(&certificate, given.body["material"]["certificate"].as_str().unwrap()).unwrap();
    // What OpenSSH itself reads in it.
    let read = std::process::Command::new("ssh-keygen")
        .arg("-Lf")
        .arg(&certificate)
        .output();
    let read = String::from_utf8_lossy(&read.unwrap().stdout).into_owned();
    for part in ["user certificate", "deploy", "source-address 10.0.0.7/32", "permit-pty"] {
        assert!(read.contains(part), "{part}: {read}");
    }
    println!("{read}");
    role("somebody-else");
    assert_eq!(lease(&mut sidecar, Some(&key)).await.error(), "credential_refused");
}

/// Without an address to bind it to, a certificate would open its users from anywhere.
#[tokio::test]
async fn a_pod_without_an_address_yet_gets_no_certificate() {
    let provider = signer(Arc::default()).await;
    let world = world(&vault(&provider), ssh(), Some(Vec::new())).await;
    let mut sidecar = world.sidecar().await;
    assert_eq!(lease(&mut sidecar, Some(&KEY)).await.error(), "temporarily_unavailable");
    assert!(provider.seen().is_empty(), "nobody was asked");
}

/// The keys of the role that the Target names are leased with their end, whether STS answers in JSON or in XML.
#[tokio::test]
async fn keys_of_a_role_are_leased_for_signing_requests_as_long_as_sts_gives_them() {
    let until = SystemClock.now() + 600;
    let time = rfc3339(until * 1000);
    let provider = Provider::start(move |_, number| {
        let json = json!({"AssumeRoleWithWebIdentityResponse": {"AssumeRoleWithWebIdentityResult": {"Credentials": {
            "AccessKeyId": "ASIAEXAMPLE", "SecretAccessKey": "canary/secret", "SessionToken": "canary//token==",
            "Expiration": until,
        }}}});
        let xml = format!(
            "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
             <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>ASIAEXAMPLE</AccessKeyId>\
             <SecretAccessKey>canary/secret</SecretAccessKey><SessionToken>canary//token==</SessionToken>\
             <Expiration>{time}</Expiration></Credentials></AssumeRoleWithWebIdentityResult>\
             </AssumeRoleWithWebIdentityResponse>"
        );
        match number {
            1 => Reply::Json(200, json),
            _ => Reply::Raw(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{xml}", xml.len()).into_bytes()),
        }
    })
    .await;
    let issuer = provider.issuer_by("AwsSts", "", "{}", "");
    let credential =
        json!({"awsIam": {"issuer": "corp", "roleArn": ROLE, "region": "eu-central-1", "service": "SigV4"}});
    let world = world(&issuer, credential, None).await;
    let mut sidecar = world.sidecar().await;
    let mut refused = Value::Null;
    for times in 1..=2 {
        let asked = json!({"target": "local/ledger", "refused": refused});
        let given = sidecar.post("/v1/leases", asked).await;
        assert_eq!(given.status, StatusCode::OK, "{}", given.body);
        let material = json!({
            "kind": "awsKeys", "accessKeyId": "ASIAEXAMPLE", "secretAccessKey": "canary/secret",
            "sessionToken": "canary//token==", "region": "eu-central-1",
        });
        assert_eq!(given.body["material"], material);
        let life = given.body["expiresIn"].as_i64().unwrap();
        assert!((540..=600).contains(&life), "{life}");
        // What the Target refused is asked for anew.
        refused = given.body["id"].clone();
        assert_eq!(provider.seen().len(), times);
    }
    assert_eq!(provider.seen()[0].form()["RoleArn"], ROLE);
}
