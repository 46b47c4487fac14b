//! Users that a Vault makes for one lease: our assertion, a child token, a user under it, and the end of both.

use std::sync::atomic::{AtomicI64, AtomicU16, AtomicUsize, Ordering};
use std::sync::Arc;

use http::{Method, StatusCode};
use serde_json::{json, Value};
use sidegate_policies::api::lockdown::{Freeze, LockdownAction, LockdownSpec};
use sidegate_policies::record::audit::read;
use sidegate_policies::record::layout::DirectoryStore;

use crate::client::{Answer, Client};
use crate::exchanges::verifier;
use crate::provider::{Provider, Reply, Seen};
use crate::world::{World, CONFIG};

/// What the double says when it is not as it should be.
#[derive(Default)]
struct Script {
    /// The path that fails, by its end, and how.
    failing: std::sync::Mutex<Option<(&'static str, Reply)>>,
    children: AtomicUsize,
    logins: AtomicUsize,
    /// Seconds the user may still live; 0: no end.
    left: AtomicI64,
    /// Status of creating children under the first login.
    first_login: AtomicU16,
}

impl Script {
    fn fail(&self, path: &'static str, reply: Reply) {
        *self.failing.lock().unwrap() = Some((path, reply));
    }

    /// Answers as a Vault 1.20 does, in form.
    fn answer(&self, seen: &Seen) -> Reply {
        if let Some((path, reply)) = &*self.failing.lock().unwrap() {
            if seen.path.ends_with(path) {
                return reply.clone();
            }
        }
        let token = seen.headers.get("x-vault-token").map(String::as_str);
        let body: Value = serde_json::from_str(&seen.body).unwrap_or_default();
        let auth = |token: &str, life: i64| {
            json!({
                "request_id": "1", "lease_id": "", "renewable": false, "lease_duration": 0, "data": null,
                "wrap_info": null, "warnings": null,
                "auth": {"client_token": token, "accessor": "a", "policies": ["default", "db"], "token_policies": ["default", "db"],
                         "metadata": {}, "lease_duration": life, "renewable": true, "entity_id": "", "token_type": "service", "orphan": false},
            })
        };
        let left = match self.left.load(Ordering::SeqCst) {
            0 => 900,
            left => left,
        };
        match (seen.method.as_str(), seen.path.as_str(), token) {
            ("POST", "/v1/auth/jwt/login", None) => {
                let number = self.logins.fetch_add(1, Ordering::SeqCst);
                Reply::Json(200, auth(&format!("hvs.login-{number}"), 3600))
            }
            ("POST", "/v1/auth/token/create", Some(login)) if login.starts_with("hvs.login-") => {
                let refused = self.first_login.load(Ordering::SeqCst);
                if login == "hvs.login-0" && refused != 0 {
                    return Reply::Json(refused, json!({"errors": ["permission denied"]}));
                }
                assert_eq!(
                    (&body["ttl"], &body["renewable"]),
                    (&json!("900s"), &json!(true)),
                    "{body}"
                );
                let number = self.children.fetch_add(1, Ordering::SeqCst);
                Reply::Json(200, auth(&format!("hvs.child-{number}"), 900))
            }
            ("GET", "/v1/team/database/creds/reader", Some(child)) if child.starts_with("hvs.child-") => {
                let number = child.trim_start_matches("hvs.child-");
                Reply::Json(
                    200,
                    json!({
                        "request_id": "2", "lease_id": format!("team/database/creds/reader/{number}"), "renewable": true,
                        "lease_duration": 3600, "data": {"username": format!("v-reader-{number}"), "password": format!("canary-{number}")},
                        "wrap_info": null, "warnings": null, "auth": null,
                    }),
                )
            }
            ("POST", "/v1/auth/token/renew-self", Some(token)) => Reply::Json(
                200,
                auth(token, if token.starts_with("hvs.login-") { 3600 } else { 900 }),
            ),
            ("POST", "/v1/sys/leases/renew", Some(child)) if child.starts_with("hvs.child-") => {
                assert_eq!(body["increment"], 900);
                Reply::Json(
                    200,
                    json!({"lease_id": body["lease_id"], "renewable": true, "lease_duration": left}),
                )
            }
            ("POST", "/v1/sys/leases/revoke", Some(child)) if child.starts_with("hvs.child-") => {
                assert_eq!(body["sync"], true);
                Reply::Raw(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec())
            }
            ("POST", "/v1/auth/token/revoke-self", Some(child)) if child.starts_with("hvs.child-") => {
                Reply::Raw(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec())
            }
            _ => Reply::Json(403, json!({"errors": ["canary: permission denied"]})),
        }
    }
}

const CREDENTIAL: &str = "{vault: {issuer: corp, mount: team/database, role: reader}}";

fn config(provider: &Provider) -> String {
    let target = format!(
        "---\napiVersion: sidegate.dev/v1alpha1\nkind: Target\nmetadata: {{name: ledger, namespace: local}}\nspec:\n  \
         protocol: Postgres\n  address: {{host: db.example, port: 5435}}\n  credential: {CREDENTIAL}\n  \
         listen: {{port: 15435}}\n"
    );
    let named = CONFIG.replace("{name: warehouse}]", "{name: warehouse}, {name: ledger}]");
    let issuer = provider.issuer_by("Vault", "", "{mount: jwt, role: sidegate}", "");
    format!("{named}{target}{issuer}")
}

async fn world() -> (World, Provider, Arc<Script>) {
    let script = Arc::<Script>::default();
    let answers = Arc::clone(&script);
    let provider = Provider::start(move |seen, _| answers.answer(seen)).await;
    let world = World::try_start(&config(&provider)).await;
    (world.unwrap_or_else(|error| panic!("{error:?}")), provider, script)
}

async fn lease(client: &mut Client) -> Answer {
    client.post("/v1/leases", json!({"target": "local/ledger"})).await
}

async fn renewed(client: &mut Client, id: &Value) -> Answer {
    client
        .post("/v1/leases", json!({"target": "local/ledger", "renew": id}))
        .await
}

/// Whether the user of this number was removed and its token revoked, in that order.
fn removed(seen: &[Seen], number: usize) -> bool {
    let by = |path: &str| {
        let child = format!("hvs.child-{number}");
        let found = |one: &Seen| one.path == path && one.headers.get("x-vault-token") == Some(&child);
        seen.iter().position(found)
    };
    let (user, token) = (by("/v1/sys/leases/revoke"), by("/v1/auth/token/revoke-self"));
    user.zip(token).is_some_and(|(user, token)| user < token)
}

/// What the audit has of leases and exchanges: event and detail. The broker is stopped for it.
async fn told(world: World) -> Vec<(String, String)> {
    let World { temp, running, .. } = world;
    running.shutdown().await;
    let store = DirectoryStore::new(&temp.path().join("state/records"));
    let events = read(&store).unwrap().into_iter();
    let events = events.map(|event| (event.says.event.into_owned(), event.says.detail.into_owned()));
    let told: Vec<_> = events.collect();
    let text = format!("{told:?}");
    assert!(!text.contains("canary") && !text.contains("hvs."), "{text}");
    told
}

fn lockdown(freeze: Freeze, action: LockdownAction) -> LockdownSpec {
    LockdownSpec {
        reason: "test".to_owned(),
        until: None,
        action,
        freeze: vec![freeze],
    }
}

#[tokio::test]
async fn a_user_made_for_a_lease_goes_on_as_far_as_the_vault_lets_it_and_is_removed_when_handed_back() {
    let (world, provider, script) = world().await;
    let mut sidecar = world.sidecar().await;
    let first = lease(&mut sidecar).await;
    assert_eq!(
        first.body["material"],
        json!({"kind": "password", "user": "v-reader-0", "password": "canary-0"}),
        "{}",
        first.body
    );
    assert_eq!(first.body["expiresIn"], 900);
    let seen = provider.seen();
    let jwt = seen[0].form()["jwt"].clone();
    let claims = verifier(&world).verify(&jwt, &provider.origin, 60).await.unwrap();
    assert!(claims["sub"].as_str().unwrap().starts_with("sg:local:"));
    // Another lease is another user under another token of the same login.
    let second = lease(&mut sidecar).await;
    assert_eq!(second.body["material"]["user"], "v-reader-1", "{}", second.body);
    assert_eq!(script.logins.load(Ordering::SeqCst), 1);

    let id = first.body["id"].clone();
    let longer = renewed(&mut sidecar, &id).await;
    assert_eq!(
        (&longer.body["id"], &longer.body["material"], &longer.body["expiresIn"]),
        (&id, &json!({"kind": "kept"}), &json!(900)),
        "{}",
        longer.body
    );
    // Nothing is made anew for it; token and user are renewed, by the token that made it.
    assert_eq!(script.children.load(Ordering::SeqCst), 2);
    script.left.store(60, Ordering::SeqCst);
    assert_eq!(
        renewed(&mut sidecar, &id).await.body["expiresIn"],
        60,
        "its max_ttl is near"
    );
    // The login is renewed before it would take its children along; the sidecar's own session is another matter.
    script.left.store(0, Ordering::SeqCst);
    for _ in 0..3 {
        world.clock.advance_ms(650_000);
        sidecar.login(&world.token()).await;
        let longer = renewed(&mut sidecar, &second.body["id"]).await;
        assert_eq!(longer.body["expiresIn"], 900, "{}", longer.body);
    }
    let login = |one: &Seen| one.path == "/v1/auth/token/renew-self" && one.headers["x-vault-token"] == "hvs.login-0";
    assert!(provider.seen().iter().any(login));
    // What ended by itself is removed as well, and goes on no more.
    provider.until(|seen| removed(seen, 0)).await;
    assert_eq!(renewed(&mut sidecar, &id).await.error(), "temporarily_unavailable");
    assert!(!removed(&provider.seen(), 1));
    world.clock.advance_ms(901_000);
    provider.until(|seen| removed(seen, 1)).await;
    sidecar.login(&world.token()).await;
    let third = lease(&mut sidecar).await;
    assert_eq!(third.body["material"]["user"], "v-reader-2", "{}", third.body);
    let path = format!("/v1/leases/{}", third.body["id"].as_str().unwrap());
    assert_eq!(
        sidecar.call(Method::DELETE, &path, None).await.status,
        StatusCode::NO_CONTENT
    );
    provider.until(|seen| removed(seen, 2)).await;
    let told = told(world).await;
    // Of the last one nothing need be on record yet: the broker stopped at once.
    let ended = ("credential.ended".to_owned(), "the user is removed".to_owned());
    assert!(told.contains(&ended), "{told:?}");
    assert!(told.iter().any(|(event, _)| event == "lease.renewed"), "{told:?}");
}

#[tokio::test]
async fn a_user_made_for_a_lease_is_removed_with_its_pod_its_grant_and_by_a_lockdown() {
    let (world, provider, _) = world().await;
    let lockdowns = Arc::clone(&world.running.front().lockdowns);
    let mut sidecar = world.sidecar().await;
    let first = lease(&mut sidecar).await;
    assert_eq!(first.status, StatusCode::OK, "{}", first.body);
    // Sessions go on under this one, and so does the user; the lease does not.
    let issuer = Freeze::Issuer("corp".to_owned());
    lockdowns
        .lock("softly", lockdown(issuer.clone(), LockdownAction::RefuseNew))
        .unwrap();
    assert_eq!(renewed(&mut sidecar, &first.body["id"]).await.error(), "locked");
    assert_eq!(lease(&mut sidecar).await.error(), "locked");
    assert!(!removed(&provider.seen(), 0));
    lockdowns
        .lock("at-once", lockdown(issuer, LockdownAction::Close))
        .unwrap();
    provider.until(|seen| removed(seen, 0)).await;
    lockdowns.unlock("softly").unwrap();
    lockdowns.unlock("at-once").unwrap();

    // Another role in the Target: what was made under the old one is nobody's any more.
    let second = lease(&mut sidecar).await;
    assert_eq!(second.status, StatusCode::OK, "{}", second.body);
    let text = config(&provider).replace("role: reader", "role: writer");
    std::fs::write(world.path("config/all.yaml"), text).unwrap();
    provider.until(|seen| removed(seen, 1)).await;
    assert_eq!(
        renewed(&mut sidecar, &second.body["id"]).await.error(),
        "temporarily_unavailable"
    );
    std::fs::write(world.path("config/all.yaml"), config(&provider)).unwrap();
    let third = loop {
        let answer = lease(&mut sidecar).await;
        if answer.status == StatusCode::OK {
            break answer;
        }
        tokio::task::yield_now().await;
    };
    let user = third.body["material"]["user"].as_str().unwrap();
    let number = user.trim_start_matches("v-reader-").parse().unwrap();
    // The instance that held it is no more.
    world.running.local().unwrap().restarted().unwrap();
    provider.until(|seen| removed(seen, number)).await;
}

#[tokio::test]
async fn a_lease_goes_on_for_its_own_target_alone_and_one_that_was_refused_there_is_ended() {
    let (world, provider, _) = world().await;
    let mut sidecar = world.sidecar().await;
    let first = lease(&mut sidecar).await;
    let id = &first.body["id"];
    let other = json!({"target": "local/shop", "renew": id});
    // A Secret is read anew, whoever asks for what.
    let other = sidecar.post("/v1/leases", other).await;
    assert_eq!(other.body["material"]["user"], "agent_ro");
    let unknown = renewed(&mut sidecar, &json!("nobody-knows-it")).await;
    assert_eq!(
        (unknown.status, unknown.error()),
        (StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable")
    );
    let crossed = renewed(&mut sidecar, &other.body["id"]).await;
    assert_eq!(
        crossed.error(),
        "temporarily_unavailable",
        "the Secret's lease is no user's"
    );
    assert!(!removed(&provider.seen(), 0));
    // What its Target refused is ended, and a new login is made for the next one.
    let refused = json!({"target": "local/ledger", "refused": id});
    let fresh = sidecar.post("/v1/leases", refused).await;
    assert_eq!(fresh.body["material"]["user"], "v-reader-1", "{}", fresh.body);
    provider.until(|seen| removed(seen, 0)).await;
}

#[tokio::test]
async fn a_vault_that_is_down_or_says_no_gives_no_user_and_leaves_nothing_behind() {
    for (path, made) in [("/login", false), ("/create", false), ("/creds/reader", true)] {
        for (reply, error) in [
            (
                Reply::Json(503, json!({"errors": ["canary: Vault is sealed"]})),
                "temporarily_unavailable",
            ),
            (Reply::Raw(Vec::new()), "temporarily_unavailable"),
            (
                Reply::Json(403, json!({"errors": ["canary: permission denied"]})),
                "credential_refused",
            ),
            (
                Reply::Json(400, json!({"errors": ["canary: unknown role"]})),
                "credential_refused",
            ),
            (Reply::Json(307, json!({})), "credential_refused"),
            (Reply::Json(200, json!({"canary": 1})), "credential_refused"),
            (
                Reply::Json(
                    200,
                    json!({"auth": {"client_token": "", "lease_duration": 900}, "lease_id": "", "lease_duration": 1,
                    "renewable": true, "data": {"username": "u", "password": "p"}}),
                ),
                "credential_refused",
            ),
        ] {
            let (world, provider, script) = world().await;
            script.fail(path, reply);
            let mut sidecar = world.sidecar().await;
            let answer = lease(&mut sidecar).await;
            assert_eq!(answer.error(), error, "{path}: {}", answer.body);
            assert_eq!(world.running.status().leases, 0);
            if made {
                let revoked = |one: &Seen| one.path.ends_with("/revoke-self");
                provider.until(|seen| seen.iter().any(revoked)).await;
            }
            told(world).await;
        }
    }
}

#[tokio::test]
async fn a_login_that_was_revoked_at_the_vault_is_made_anew_once() {
    let (world, _, script) = world().await;
    let mut sidecar = world.sidecar().await;
    script.first_login.store(403, Ordering::SeqCst);
    let answer = lease(&mut sidecar).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    assert_eq!(script.logins.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn what_cannot_be_removed_now_is_removed_when_the_vault_is_back() {
    let (world, provider, script) = world().await;
    let mut sidecar = world.sidecar().await;
    let answer = lease(&mut sidecar).await;
    script.fail("/revoke", Reply::Json(503, json!({"errors": []})));
    let path = format!("/v1/leases/{}", answer.body["id"].as_str().unwrap());
    sidecar.call(Method::DELETE, &path, None).await;
    let tried = |one: &Seen| one.path.ends_with("/revoke");
    provider.until(|seen| seen.iter().any(tried)).await;
    script.fail("/nothing", Reply::Never);
    // The token goes only after the user has: it is what the user can be removed with.
    provider.until(|seen| removed(seen, 0)).await;
    assert!(provider.seen().iter().filter(|one| tried(one)).count() >= 2);
}
