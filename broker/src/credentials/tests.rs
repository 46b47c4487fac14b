//! What exchanges promise: the golden request of every preset, what an answer means, and what is kept for how long.

use std::collections::BTreeMap;
use std::path::Path;

use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use serde_json::{json, Value};
use sidegate_policies::api::token_issuer::SubjectForm;
use sidegate_policies::presets::{Field, Need, Revoke};
use tokio::sync::watch;

use super::cache::{Cache, Found, MAX};
use super::reply::{judge, Answer};
use super::request::Facts;
use super::*;

fn spec(preset: &Preset) -> TokenIssuerSpec {
    let value = |name: &String, need: &Need| {
        let text = match need {
            Need::Endpoint | Need::OptionalEndpoint => "https://idp.example:8443/as/token".to_owned(),
            // What could break out of a form, a JSON text or a path, if anything could.
            Need::Required | Need::Optional | Need::Target => format!("a {name}&x=\"1\"/ö"),
        };
        (name.clone(), text)
    };
    TokenIssuerSpec {
        preset: preset.name.clone(),
        issuer: "https://idp.example:8443/realms/corp".to_owned(),
        values: preset.values.iter().map(|(name, need)| value(name, need)).collect(),
        subject: SubjectForm::default(),
        alg: None,
        client_secret_ref: None,
        publish: None,
        allowed_namespaces: sidegate_policies::api::target::AllowedNamespaces {
            selector: Default::default(),
        },
        ca_bundle: None,
    }
}

/// Every request of a preset as text for people, with every value and then with none that may be left out.
fn requests(preset: &Preset) -> String {
    let mut text = format!("# {}: {}\n", preset.name, preset.about);
    let full = spec(preset);
    let mut bare = full.clone();
    bare.values
        .retain(|name, _| !matches!(preset.values.get(name), Some(Need::Optional | Need::OptionalEndpoint)));
    let mut variants = vec![(&full, "read write", None)];
    let leaves_out = |field: &Field| matches!(field, Field::Filled { optional: true, .. });
    if preset
        .steps
        .iter()
        .flat_map(|step| step.fields.values())
        .any(leaves_out)
    {
        variants.push((&bare, "", None));
    }
    if preset.client_ids().next().is_some() {
        variants.push((&full, "read write", Some("s3:cr&t \"ö")));
    }
    for (spec, scope, secret) in variants {
        let revoke = preset.revoke.iter().map(|Revoke(step)| step);
        let last = preset.steps.len();
        for (at, step) in preset.steps.iter().chain(revoke).enumerate() {
            if at == last && step.post.url(&spec.issuer, &spec.values).is_none() {
                continue;
            }
            let facts = Facts {
                spec,
                audience: "orders-db",
                scope,
                pod_uid: "00000000-0000-4000-8000-000000000001",
                assertion: "ASSERTION.a-b_c.SIGNATURE",
                previous: "PREVIOUS",
                secret,
            };
            let request = facts.request(step).unwrap();
            if at == last {
                text.push_str("\n(when it is over)");
            }
            if secret.is_some() {
                text.push_str("\n(with a client's secret)");
            }
            let shown = request.secret.as_ref().map(|(name, login)| {
                let login = login.expose_secret();
                if !login.starts_with("Basic ") {
                    return format!("{name}: {login}\n");
                }
                let pair = STANDARD.decode(login.strip_prefix("Basic ").unwrap()).unwrap();
                format!("authorization: Basic of {}\n", String::from_utf8(pair).unwrap())
            });
            text.push_str(&format!(
                "\nPOST {}\ncontent-type: {}\n{}\n",
                request.url,
                request.content_type,
                shown.unwrap_or_default()
            ));
            text.push_str(&match request.content_type {
                "application/json" => request.body.to_string(),
                _ => request.body.replace('&', "\n&"),
            });
            text.push('\n');
            if let Some(assertion) = step.assertion.as_ref().filter(|_| step.asserts(secret.is_some())) {
                let claim = |field: &Field| facts.fill(field).unwrap().unwrap().to_owned();
                let or = |field: &Option<Field>, own: &str| match field {
                    Some(field) => claim(field),
                    None => own.to_owned(),
                };
                text.push_str(&format!(
                    "\nassertion: {:?} iss={} sub={} aud={} life={}s\n",
                    assertion.alg,
                    or(&assertion.issuer, "(our issuer URL)"),
                    or(&assertion.subject, "(the agent)"),
                    claim(&assertion.audience),
                    assertion.life.0.as_secs(),
                ));
            }
        }
    }
    text
}

#[test]
fn every_preset_sends_what_its_golden_file_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/exchange");
    let write = std::env::var_os("SIDEGATE_WRITE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    for preset in presets::all() {
        let (path, text) = (folder.join(format!("{}.txt", preset.name)), requests(preset));
        if write {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        if std::fs::read_to_string(&path).ok().as_ref() != Some(&text) {
            wrong.push(preset.name.clone());
        }
    }
    assert!(
        wrong.is_empty(),
        "{wrong:?} differ; SIDEGATE_WRITE_GOLDEN=1 writes them anew, for review"
    );
}

#[test]
fn a_value_can_neither_add_a_field_nor_leave_its_segment() {
    for preset in presets::all() {
        for step in &preset.steps {
            let spec = spec(preset);
            let facts = Facts {
                spec: &spec,
                audience: "a&scope=all",
                scope: "s",
                pod_uid: "p",
                assertion: "j",
                previous: "q",
                secret: None,
            };
            let request = facts.request(step).unwrap();
            let named: Vec<String> = match request.content_type {
                "application/json" => {
                    let body: BTreeMap<String, serde_json::Value> = serde_json::from_str(&request.body).unwrap();
                    let lists: Vec<&String> = body
                        .iter()
                        .filter(|(_, value)| value.is_array())
                        .map(|(name, _)| name)
                        .collect();
                    assert_eq!(lists, step.lists.iter().collect::<Vec<_>>(), "{}", preset.name);
                    body.into_keys().collect()
                }
                _ => {
                    let pairs = request
                        .body
                        .split('&')
                        .map(|pair| pair.split('=').next().unwrap().to_owned());
                    pairs.collect()
                }
            };
            assert_eq!(
                named,
                step.fields.keys().cloned().collect::<Vec<_>>(),
                "{}",
                preset.name
            );
            let path = request.url.strip_prefix("https://idp.example:8443/").unwrap();
            assert!(!path.contains(['?', '#', '"', ' ']), "{}", request.url);
        }
    }
}

#[test]
fn what_has_no_value_is_not_sent() {
    let preset = presets::find("Vault").unwrap();
    let mut spec = spec(preset);
    let refused = |spec: &TokenIssuerSpec, assertion: &str| {
        let facts = Facts {
            spec,
            audience: "a",
            scope: "",
            pod_uid: "p",
            assertion,
            previous: "",
            secret: None,
        };
        facts.request(&preset.steps[0]).is_err()
    };
    assert!(!refused(&spec, "jwt"));
    assert!(refused(&spec, ""), "no assertion");
    spec.values.remove("mount");
    assert!(refused(&spec, "jwt"), "no mount");
}

const NOW: i64 = 1_800_000_000;

fn answer(status: u16, body: &Value) -> Answer {
    Answer {
        status,
        retry_after: None,
        body: body.to_string().into_bytes(),
    }
}

fn jwt(claims: &Value) -> String {
    use base64::Engine as _;
    let encode = |text: String| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
    format!(
        "{}.{}.sig",
        encode(json!({"alg": "ES256"}).to_string()),
        encode(claims.to_string())
    )
}

/// The life that Keycloak's answer gives, or the class of its failure.
fn judged(status: u16, body: &Value) -> Result<i64, Class> {
    let step = &presets::find("Keycloak").unwrap().steps[0];
    let judged = judge(step, &answer(status, body), "orders-db", NOW);
    judged.map(|given| given.life).map_err(|failure| failure.class)
}

#[test]
fn a_token_lives_as_long_as_the_shortest_life_anybody_names() {
    let with = |more: Value| {
        let mut body = json!({"access_token": "opaque", "token_type": "Bearer"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        judged(200, &body)
    };
    assert_eq!(with(json!({"expires_in": 900})), Ok(900));
    assert_eq!(with(json!({"expires_in": "900"})), Ok(900));
    assert_eq!(with(json!({"token_type": "bearer", "expires_in": 900.9})), Ok(900));
    assert_eq!(with(json!({})), Ok(300), "nobody says");
    let exp = |exp: i64| jwt(&json!({"exp": NOW + exp}));
    assert_eq!(with(json!({"access_token": exp(60), "expires_in": 900})), Ok(60));
    assert_eq!(with(json!({"access_token": exp(3600)})), Ok(300));
    assert_eq!(with(json!({"access_token": exp(60)})), Ok(60));
    for wrong in [json!(0), json!(-1), json!("soon"), json!({}), json!(null), json!(1e300)] {
        let outcome = with(json!({"expires_in": wrong}));
        assert!(
            outcome == Err(Class::Broken) || wrong == json!(1e300),
            "{wrong}: {outcome:?}"
        );
    }
    assert_eq!(
        with(json!({"access_token": exp(-1), "expires_in": 900})),
        Err(Class::Broken)
    );
    assert_eq!(
        with(json!({"access_token": jwt(&json!({"exp": "x"})), "expires_in": 900})),
        Err(Class::Broken)
    );
}

#[test]
fn an_end_may_be_a_time_or_seconds() {
    let mut step = presets::find("Keycloak").unwrap().steps[0].clone();
    step.reply.expires_in = None;
    step.reply.expires_at = Some("/expireTime".to_owned());
    let life = |end: Value| {
        let body = json!({"access_token": "t", "token_type": "Bearer", "expireTime": end});
        judge(&step, &answer(200, &body), "orders-db", NOW)
            .map(|given| given.life)
            .map_err(|failure| failure.class)
    };
    assert_eq!(life(json!(crate::clock::rfc3339((NOW + 60) * 1000))), Ok(60));
    assert_eq!(life(json!(NOW + 61)), Ok(61));
    assert_eq!(life(json!("tomorrow")), Err(Class::Broken));
}

#[test]
fn an_answer_that_is_not_the_one_asked_for_is_broken() {
    let good = json!({"access_token": "t", "token_type": "Bearer", "expires_in": 60});
    assert_eq!(judged(200, &good), Ok(60));
    assert_eq!(judged(201, &good), Ok(60));
    for status in [100, 204, 206, 301, 302, 303, 307, 308] {
        assert_eq!(judged(status, &good), Err(Class::Broken), "{status}");
    }
    for (member, value) in [
        ("token_type", json!("N_A")),
        ("token_type", json!("DPoP")),
        ("token_type", json!(null)),
        ("access_token", json!("")),
        ("access_token", json!(7)),
        ("access_token", json!("a b")),
        ("access_token", json!("a\r\nx: y")),
        ("access_token", json!("x".repeat(16 * 1024 + 1))),
        ("access_token", json!(jwt(&json!({"aud": "another"})))),
        ("access_token", json!(jwt(&json!({"aud": ["another", 7]})))),
        ("access_token", json!(jwt(&json!({"aud": 7})))),
    ] {
        let mut wrong = good.clone();
        wrong[member] = value.clone();
        assert_eq!(judged(200, &wrong), Err(Class::Broken), "{member}: {value}");
    }
    for aud in [json!("orders-db"), json!(["x", "orders-db"])] {
        let mut right = good.clone();
        right["access_token"] = jwt(&json!({"aud": aud})).into();
        assert_eq!(judged(200, &right), Ok(60));
    }
    let step = &presets::find("Keycloak").unwrap().steps[0];
    let prose = Answer {
        status: 200,
        retry_after: None,
        body: b"<html>secret words</html>".to_vec(),
    };
    let failure = judge(step, &prose, "orders-db", NOW).err().unwrap();
    assert_eq!(failure.class, Class::Broken);
    assert!(!failure.to_string().contains("secret"), "{failure}");
}

#[test]
fn errors_have_the_class_the_preset_gives_them_and_else_that_of_their_status() {
    for (status, class) in [
        (400, Class::Final),
        (401, Class::Final),
        (404, Class::Final),
        (408, Class::Retry),
        (425, Class::Retry),
        (429, Class::Retry),
        (500, Class::Retry),
        (503, Class::Retry),
    ] {
        let said = judged(status, &json!({"error": "x", "error_description": "temporarily"}));
        assert_eq!(said, Err(class), "{status}");
    }
    let step = &presets::find("Entra").unwrap().steps[0];
    for (code, class) in [
        (70021, Class::Propagation),
        (700_024, Class::Reassert),
        (1, Class::Final),
    ] {
        let body = json!({"error": "invalid_client", "error_codes": [code], "error_description": "canary words"});
        let failure = judge(step, &answer(400, &body), "orders-db", NOW).err().unwrap();
        assert_eq!(failure.class, class, "{code}");
        assert!(!failure.to_string().contains("canary"), "{failure}");
    }
}

proptest::proptest! {
    /// Whatever a provider sends: it ends in a token that can stand in a header, or in a class.
    #[test]
    fn no_answer_gives_what_cannot_be_shown(status in proptest::prop_oneof![proptest::strategy::Just(200_u16), 0_u16..700], token in ".{0,40}", body in proptest::collection::vec(0_u8..=255, 0..200)) {
        let good = json!({"access_token": token, "token_type": "Bearer", "expires_in": 60}).to_string().into_bytes();
        for preset in presets::all() {
            for step in &preset.steps {
                for body in [&body, &good] {
                    let answer = Answer { status, retry_after: None, body: body.clone() };
                    if let Ok(given) = judge(step, &answer, "orders-db", NOW) {
                        let token = given.token.expose_secret();
                        proptest::prop_assert!(matches!(status, 200 | 201) && given.life > 0);
                        proptest::prop_assert!(!token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()));
                    }
                }
            }
        }
    }
}

fn held(until_ms: i64, generation: u64) -> Arc<Exchanged> {
    Arc::new(Exchanged {
        token: SecretString::from("t".to_owned()),
        more: Vec::new(),
        from_ms: 0,
        until_ms,
        generation,
        ending: None,
    })
}

fn key(number: usize) -> Key {
    digest(&[&number.to_string()])
}

#[test]
fn a_token_is_given_again_until_half_of_its_life_under_the_same_deny_set() {
    let mut cache = Cache::default();
    cache.keep(key(1), &held(600_000, 7));
    let is_held = |cache: &Cache, generation, now, anew| {
        matches!(cache.find(&key(1), generation, now, anew), Some(Ok(Found::Held(_))))
    };
    assert!(is_held(&cache, 7, 299_999, false));
    assert!(
        !is_held(&cache, 7, 300_000, false),
        "a caller that renews gets a new one"
    );
    assert!(!is_held(&cache, 8, 1, false), "a Lockdown came");
    assert!(!is_held(&cache, 7, 1, true), "the Target refused it");
    let held = held(600_000, 7);
    assert_eq!(held.life(60, 0), Some(60), "not beyond the caller's own token");
    assert_eq!(held.life(6_000, 0), Some(600));
    assert_eq!(held.life(6_000, 599_500), None);
}

#[test]
fn what_ends_first_makes_room_and_what_runs_does_not() {
    let mut cache = Cache::default();
    for number in 0..MAX {
        cache.keep(key(number), &held(1_000_000 + i64::try_from(number).unwrap(), 0));
    }
    let (_tell, told) = watch::channel(None);
    assert!(cache.begin(key(MAX), told.clone(), 0));
    assert_eq!(cache.len(), MAX);
    assert!(cache.find(&key(0), 0, 1, false).is_none() && cache.find(&key(1), 0, 1, false).is_some());
    for number in 0..MAX {
        cache.begin(key(number), told.clone(), 0);
    }
    assert_eq!(cache.len(), MAX, "bounded, whatever runs");
    let (gone, lost) = watch::channel(None);
    drop(gone);
    let mut cache = Cache::default();
    cache.begin(key(1), lost, 0);
    assert!(
        cache.find(&key(1), 0, 0, false).is_none(),
        "whose task is gone tells nobody"
    );
}
