//! One change in a valid token at a time: every row of the acceptance table has its refusal here.

#![allow(clippy::unwrap_used)]

use serde_json::{json, Value};

use super::*;

const NOW: i64 = 1_800_000_000;
const ISSUER: &str = "https://cluster.example";
const OURS: &str = "sidegate";

struct Bench {
    key: SigningKey,
    keys: KeySet,
}

impl Bench {
    fn new() -> Self {
        let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
        let keys = KeySet::new(vec![key.public().clone()]);
        Bench { key, keys }
    }

    fn accept(&self, slot: Slot, token: &str) -> Result<Accepted, Refused> {
        let trust = Trust {
            issuer: ISSUER,
            keys: &self.keys,
            algorithms: &[Alg::Es256],
            audience: OURS,
            denied: &|id| id == "frozen",
        };
        accept(slot, token.as_bytes(), trust, NOW)
    }

    fn header(&self, slot: Slot) -> Value {
        let kid = self.key.public().kid.clone().unwrap();
        match slot {
            Slot::ServiceAccount | Slot::ClientAssertion => json!({"alg": "ES256", "kid": kid}),
            Slot::Session | Slot::TargetAccess => json!({"alg": "ES256", "kid": kid, "typ": "at+jwt"}),
            Slot::DpopProof => {
                json!({"alg": "ES256", "typ": "dpop+jwt", "jwk": self.key.public().required_members()})
            }
        }
    }

    /// A valid token of the slot with members changed (`null` removes).
    fn token(&self, slot: Slot, header: Value, claims: Value) -> String {
        let header = merge(self.header(slot), header);
        self.key.sign_parts(&header, &merge(valid(slot), claims)).unwrap()
    }

    fn refusal(&self, slot: Slot, header: Value, claims: Value) -> Option<Refused> {
        self.accept(slot, &self.token(slot, header, claims)).err()
    }
}

fn merge(mut base: Value, change: Value) -> Value {
    for (name, value) in change.as_object().unwrap() {
        if value.is_null() {
            base.as_object_mut().unwrap().remove(name);
        } else {
            base.as_object_mut().unwrap().insert(name.clone(), value.clone());
        }
    }
    base
}

fn valid(slot: Slot) -> Value {
    match slot {
        Slot::ServiceAccount | Slot::ClientAssertion => json!({
            "iss": ISSUER, "sub": "system:serviceaccount:agents:support", "aud": [OURS],
            "iat": NOW - 10, "nbf": NOW - 10, "exp": NOW + 3590, "jti": "id-1",
            "kubernetes.io": {"namespace": "agents", "serviceaccount": {"name": "support", "uid": "sa-uid"},
                              "pod": {"name": "pod-1", "uid": "pod-uid"}}
        }),
        Slot::TargetAccess => json!({
            "iss": ISSUER, "sub": "sg:local:sa-uid", "aud": "warehouse", "iat": NOW, "nbf": NOW, "exp": NOW + 300,
            "jti": "id-3", "client_id": "system:serviceaccount:agents:support", "act": {"sub": "sg:local:sa-uid"}
        }),
        Slot::Session => json!({
            "iss": ISSUER, "sub": "sg:local:sa-uid", "aud": OURS, "iat": NOW, "nbf": NOW, "exp": NOW + 300,
            "jti": "id-2", "client_id": "system:serviceaccount:agents:support", "cnf": {"jkt": "thumb"}
        }),
        Slot::DpopProof => json!({"htm": "POST", "htu": "https://b/token", "iat": NOW, "jti": "id-3"}),
    }
}

const SLOTS: [Slot; 5] = [
    Slot::ServiceAccount,
    Slot::ClientAssertion,
    Slot::Session,
    Slot::TargetAccess,
    Slot::DpopProof,
];
const OURS_ONLY: [Slot; 3] = [Slot::ServiceAccount, Slot::ClientAssertion, Slot::Session];

#[test]
fn a_valid_token_of_each_slot_is_accepted() {
    let bench = Bench::new();
    for slot in SLOTS {
        assert_eq!(bench.refusal(slot, json!({}), json!({})), None, "{slot:?}");
    }
}

#[test]
fn step_1_form_a_token_over_16_kib_is_refused() {
    let bench = Bench::new();
    let long = json!({"padding": "x".repeat(MAX_TOKEN)});
    assert_eq!(bench.refusal(Slot::Session, json!({}), long), Some(Refused::TooLong));
}

#[test]
fn step_2_header_only_the_pinned_algorithm_is_accepted() {
    let bench = Bench::new();
    for slot in SLOTS {
        for alg in ["none", "None", "HS256", "ES384", "RS256", "es256", ""] {
            assert_eq!(
                bench.refusal(slot, json!({"alg": alg}), json!({})),
                Some(Refused::Algorithm),
                "{slot:?} {alg}"
            );
        }
        assert_eq!(
            bench.refusal(slot, json!({"alg": 7}), json!({})),
            Some(Refused::Algorithm)
        );
    }
}

#[test]
fn step_2_header_typ_is_exactly_the_slots() {
    let bench = Bench::new();
    for (slot, typ) in [
        (Slot::ServiceAccount, json!("at+jwt")),
        (Slot::ServiceAccount, json!("jwt")),
        (Slot::ServiceAccount, json!(1)),
        (Slot::Session, json!("JWT")),
        (Slot::Session, json!("application/at+jwt")),
        (Slot::Session, json!("AT+JWT")),
        (Slot::DpopProof, json!("JWT")),
    ] {
        assert_eq!(
            bench.refusal(slot, json!({"typ": typ}), json!({})),
            Some(Refused::Type),
            "{slot:?}"
        );
    }
    for slot in [Slot::Session, Slot::DpopProof] {
        assert_eq!(
            bench.refusal(slot, json!({"typ": null}), json!({})),
            Some(Refused::Type)
        );
    }
    assert_eq!(
        bench.refusal(Slot::ServiceAccount, json!({"typ": "JWT"}), json!({})),
        None
    );
}

#[test]
fn step_2_header_members_that_steer_a_library_are_refused() {
    let bench = Bench::new();
    for slot in SLOTS {
        for member in ["crit", "b64", "zip", "jku", "x5u", "x5c"] {
            assert_eq!(
                bench.refusal(slot, json!({member: "x"}), json!({})),
                Some(Refused::HeaderMember),
                "{member}"
            );
        }
    }
    for slot in OURS_ONLY {
        let jwk = json!({"jwk": bench.key.public().required_members()});
        assert_eq!(bench.refusal(slot, jwk, json!({})), Some(Refused::HeaderKey));
    }
}

#[test]
fn step_2_header_a_proofs_key_is_public_and_of_its_curve() {
    let bench = Bench::new();
    let with = |change: Value| json!({"jwk": merge(bench.key.public().required_members(), change)});
    for change in [
        json!({"d": "AAAA"}),
        json!({"kty": "oct", "k": "AAAA"}),
        json!({"crv": "P-384"}),
        json!({"x": "AAAA"}),
        json!({"use": "enc"}),
        json!({"key_ops": ["sign"]}),
        json!({"alg": "ES384"}),
    ] {
        assert_eq!(
            bench.refusal(Slot::DpopProof, with(change.clone()), json!({})),
            Some(Refused::HeaderKey),
            "{change}"
        );
    }
    assert_eq!(
        bench.refusal(Slot::DpopProof, json!({"jwk": null}), json!({})),
        Some(Refused::HeaderKey)
    );
}

#[test]
fn step_3_issuer_equals_byte_for_byte() {
    let bench = Bench::new();
    for iss in [
        json!(null),
        json!("https://cluster.example/"),
        json!("https://CLUSTER.example"),
        json!([ISSUER]),
        json!({"0": ISSUER}),
        json!(7),
    ] {
        for slot in OURS_ONLY {
            assert_eq!(
                bench.refusal(slot, json!({}), json!({"iss": iss})),
                Some(Refused::Issuer),
                "{iss}"
            );
        }
    }
}

#[test]
fn step_4_key_is_found_by_id_and_pinned_to_one_algorithm() {
    let mut bench = Bench::new();
    assert_eq!(
        bench.refusal(Slot::Session, json!({"kid": "other"}), json!({})),
        Some(Refused::UnknownKey)
    );
    assert_eq!(
        bench.refusal(Slot::Session, json!({"kid": 1}), json!({})),
        Some(Refused::UnknownKey)
    );
    assert_eq!(bench.refusal(Slot::Session, json!({"kid": null}), json!({})), None);
    let second = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
    bench.keys = KeySet::new(vec![bench.key.public().clone(), second.public().clone()]);
    assert_eq!(
        bench.refusal(Slot::Session, json!({"kid": null}), json!({})),
        Some(Refused::UnknownKey)
    );
}

#[test]
fn step_4_key_with_wrong_purpose_voids_itself_and_not_the_set() {
    let bench = Bench::new();
    let good = bench.key.public().jwk();
    let short = json!({"kty": "RSA", "n": URL_SAFE_NO_PAD.encode([255u8; 128]), "e": "AQAB", "kid": "short"});
    let set = json!({"keys": [
        merge(good.clone(), json!({"d": "AAAA", "kid": "private"})),
        {"kty": "oct", "k": "AAAA", "kid": "symmetric"},
        merge(good.clone(), json!({"use": "enc", "kid": "enc"})),
        merge(good.clone(), json!({"key_ops": ["verify", "sign"], "kid": "ops"})),
        merge(good.clone(), json!({"alg": "ES384", "kid": "alg"})),
        short, "text", good,
    ]});
    let (keys, void) = KeySet::from_jwks(&set);
    assert_eq!(keys.iter().count(), 1);
    assert_eq!(
        void,
        [
            KeyVoid::Private,
            KeyVoid::Private,
            KeyVoid::Purpose,
            KeyVoid::Purpose,
            KeyVoid::Purpose,
            KeyVoid::Short,
            KeyVoid::Shape
        ]
    );
}

#[test]
fn step_4_signature_of_another_key_or_over_other_bytes_is_refused() {
    let bench = Bench::new();
    let other = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
    for slot in SLOTS {
        let forged = other.sign_parts(&bench.header(slot), &valid(slot)).unwrap();
        assert_eq!(bench.accept(slot, &forged).unwrap_err(), Refused::Signature);
        let token = bench.token(slot, json!({}), json!({}));
        let (message, signature) = token.rsplit_once('.').unwrap();
        let (header, _) = message.split_once('.').unwrap();
        let claims = URL_SAFE_NO_PAD.encode(merge(valid(slot), json!({"more": 1})).to_string());
        let changed = format!("{header}.{claims}.{signature}");
        assert_eq!(bench.accept(slot, &changed).unwrap_err(), Refused::Signature);
        assert_eq!(
            bench.accept(slot, &format!("{message}.")).unwrap_err(),
            Refused::Signature
        );
    }
}

#[test]
fn step_4_rs256_verifies_where_it_is_pinned_and_only_there() {
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    use aws_lc_rs::rsa::{KeyPair, KeySize};
    use aws_lc_rs::signature::KeyPair as _;
    let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let _: Pkcs8V1Der<'_> = pair.as_der().unwrap();
    let public = pair.public_key();
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let jwk = json!({"kty": "RSA", "kid": "r", "n": encode(public.modulus().big_endian_without_leading_zero()),
                     "e": encode(public.exponent().big_endian_without_leading_zero())});
    let (keys, void) = KeySet::from_jwks(&json!({"keys": [jwk]}));
    assert!(void.is_empty());
    let header = json!({"alg": "RS256", "kid": "r"});
    let message = format!(
        "{}.{}",
        encode(header.to_string().as_bytes()),
        encode(valid(Slot::ServiceAccount).to_string().as_bytes())
    );
    let mut signature = vec![0; pair.public_modulus_len()];
    let rng = aws_lc_rs::rand::SystemRandom::new();
    pair.sign(
        &aws_lc_rs::signature::RSA_PKCS1_SHA256,
        &rng,
        message.as_bytes(),
        &mut signature,
    )
    .unwrap();
    let token = format!("{message}.{}", encode(&signature));
    let judge = |algorithms: &[Alg]| {
        let trust = Trust {
            issuer: ISSUER,
            keys: &keys,
            algorithms,
            audience: OURS,
            denied: &|_| false,
        };
        accept(Slot::ServiceAccount, token.as_bytes(), trust, NOW).map(|_| ())
    };
    assert_eq!(judge(&[Alg::Rs256]), Ok(()));
    assert_eq!(judge(&[Alg::Es256]), Err(Refused::Algorithm));
}

#[test]
fn step_5_audience_must_be_ours_and_alone() {
    let bench = Bench::new();
    for aud in [
        json!(null),
        json!("other"),
        json!(7),
        json!({"0": OURS}),
        json!([]),
        json!([OURS, 7]),
        json!([OURS, "other"]),
        json!([OURS, OURS]),
        json!("Sidegate"),
    ] {
        for slot in OURS_ONLY {
            assert_eq!(
                bench.refusal(slot, json!({}), json!({"aud": aud})),
                Some(Refused::Audience),
                "{aud}"
            );
        }
    }
    for aud in [json!(OURS), json!([OURS])] {
        assert_eq!(
            bench.refusal(Slot::ServiceAccount, json!({}), json!({"aud": aud})),
            None
        );
    }
}

#[test]
fn step_6_times_are_integers_and_required() {
    let bench = Bench::new();
    for slot in SLOTS {
        for claims in [
            json!({"iat": null}),
            json!({"iat": "1800000000"}),
            json!({"iat": 1_800_000_000.5}),
            json!({"exp": 1_800_000_100.5}),
            json!({"exp": "soon"}),
            json!({"nbf": true}),
        ] {
            assert_eq!(
                bench.refusal(slot, json!({}), claims.clone()),
                Some(Refused::TimeForm),
                "{slot:?} {claims}"
            );
        }
    }
    for slot in OURS_ONLY {
        assert_eq!(
            bench.refusal(slot, json!({}), json!({"exp": null})),
            Some(Refused::TimeForm)
        );
    }
}

#[test]
fn step_6_times_bound_expiry_start_age_and_life() {
    let bench = Bench::new();
    for slot in OURS_ONLY {
        for (claims, refusal) in [
            (json!({"exp": NOW - 5}), Some(Refused::Expired)),
            (json!({"exp": NOW - 4}), None),
            (json!({"nbf": NOW + 61}), Some(Refused::NotYet)),
            (json!({"nbf": NOW + 60}), None),
            (json!({"iat": NOW + 61, "exp": NOW + 200}), Some(Refused::IssuedAhead)),
            (json!({"iat": NOW - 90_000, "exp": NOW + 1}), Some(Refused::Life)),
            (json!({"exp": NOW + 90_000}), Some(Refused::Life)),
        ] {
            // An expiry before the issue is refused as well, so move both.
            let mut claims = claims;
            if claims.get("iat").is_none() {
                claims = merge(claims, json!({"iat": NOW - 20}));
            }
            assert_eq!(
                bench.refusal(slot, json!({}), claims.clone()),
                refusal,
                "{slot:?} {claims}"
            );
        }
    }
    let proof = |iat: i64| bench.refusal(Slot::DpopProof, json!({}), json!({"iat": iat}));
    assert_eq!(proof(NOW - 61), Some(Refused::Life));
    assert_eq!(proof(NOW - 60), None);
    assert_eq!(proof(NOW + 61), Some(Refused::IssuedAhead));
}

#[test]
fn step_7_claims_sub_has_the_slots_grammar_and_agrees_with_the_pod() {
    let bench = Bench::new();
    for sub in [
        json!(null),
        json!("system:serviceaccount:agents"),
        json!("system:serviceaccount:agents:support:x"),
        json!("system:node:agents:support"),
        json!("system:serviceaccount:other:support"),
        json!("system:serviceaccount:agents:other"),
    ] {
        let refusal = bench.refusal(Slot::ServiceAccount, json!({}), json!({"sub": sub}));
        assert_eq!(refusal, Some(Refused::Subject), "{sub}");
    }
    for sub in [
        json!(null),
        json!("sg:local"),
        json!("system:serviceaccount:agents:support"),
        json!("x:y:z"),
    ] {
        assert_eq!(
            bench.refusal(Slot::Session, json!({}), json!({"sub": sub})),
            Some(Refused::Subject)
        );
    }
}

#[test]
fn step_7_claims_an_unbound_or_secret_bound_service_account_token_is_refused() {
    let bench = Bench::new();
    let account = json!({"name": "support", "uid": "sa-uid"});
    for bound in [
        json!(null),
        json!({"namespace": "agents", "serviceaccount": account}),
        json!({"namespace": "agents", "serviceaccount": account, "secret": {"name": "s", "uid": "u"}}),
        json!({"namespace": "agents", "serviceaccount": account, "node": {"name": "n", "uid": "u"}}),
        json!({"namespace": "agents", "serviceaccount": account, "pod": {"name": "p"}}),
        json!({"namespace": "agents", "serviceaccount": account, "pod": {"name": "p", "uid": ""}}),
    ] {
        assert_eq!(
            bench.refusal(Slot::ServiceAccount, json!({}), json!({"kubernetes.io": bound})),
            Some(Refused::NotPodBound),
            "{bound}"
        );
    }
}

#[test]
fn step_7_claims_a_frozen_or_missing_token_id_is_refused() {
    let bench = Bench::new();
    for slot in SLOTS {
        for jti in [json!("frozen"), json!(""), json!(7), json!("x".repeat(257))] {
            assert_eq!(
                bench.refusal(slot, json!({}), json!({"jti": jti})),
                Some(Refused::TokenId),
                "{slot:?}"
            );
        }
    }
    for slot in [Slot::Session, Slot::DpopProof] {
        assert_eq!(
            bench.refusal(slot, json!({}), json!({"jti": null})),
            Some(Refused::TokenId)
        );
    }
}

#[test]
fn step_7_claims_a_token_carrying_a_delegation_is_never_a_plain_one() {
    let bench = Bench::new();
    for slot in SLOTS {
        for member in ["act", "may_act", "azp"] {
            if slot == Slot::TargetAccess && member == "act" {
                continue;
            }
            assert_eq!(
                bench.refusal(slot, json!({}), json!({member: {"sub": "x"}})),
                Some(Refused::Delegation),
                "{slot:?} {member}"
            );
        }
    }
    for claims in [
        json!({"cnf": null}),
        json!({"cnf": {"jkt": 1}}),
        json!({"cnf": {"jkt": "a", "x5t#S256": "b"}}),
        json!({"client_id": null}),
    ] {
        assert_eq!(
            bench.refusal(Slot::Session, json!({}), claims),
            Some(Refused::Delegation)
        );
    }
}

#[test]
fn a_target_token_is_for_one_audience_that_is_not_us_and_names_its_actor() {
    let bench = Bench::new();
    let refusal = |claims| bench.refusal(Slot::TargetAccess, json!({}), claims);
    for aud in [
        json!(null),
        json!(OURS),
        json!([OURS]),
        json!(["a", "b"]),
        json!(["a", OURS]),
        json!(""),
        json!(7),
    ] {
        assert_eq!(refusal(json!({"aud": aud})), Some(Refused::Audience), "{aud}");
    }
    for claims in [
        json!({"act": null}),
        json!({"act": "x"}),
        json!({"act": {"sub": 7}}),
        json!({"act": {"sub": "x", "act": {"sub": "y"}}}),
        json!({"cnf": {"jkt": 7}}),
        json!({"client_id": null}),
    ] {
        assert_eq!(refusal(claims.clone()), Some(Refused::Delegation), "{claims}");
    }
    assert_eq!(refusal(json!({"sub": "somebody"})), Some(Refused::Subject));
    assert_eq!(refusal(json!({"jti": "frozen"})), Some(Refused::TokenId));
    assert_eq!(refusal(json!({"cnf": {"jkt": "x"}})), None);
}

#[test]
fn a_token_of_one_slot_is_refused_in_every_other() {
    let bench = Bench::new();
    for slot in SLOTS {
        for other in SLOTS {
            let twins = [Slot::ServiceAccount, Slot::ClientAssertion];
            if slot == other || (twins.contains(&slot) && twins.contains(&other)) {
                continue;
            }
            let token = bench.token(slot, json!({}), json!({}));
            assert!(bench.accept(other, &token).is_err(), "{slot:?} in {other:?}");
        }
    }
}

#[test]
fn only_this_module_names_the_jwt_library() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let name = ["json", "webtoken"].concat();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") && path != root.join("jwt.rs") {
                assert!(
                    !std::fs::read_to_string(&path).unwrap().contains(&name),
                    "{}",
                    path.display()
                );
            }
        }
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic_in_any_slot(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
        fuzz_jwt(&bytes);
    }
}
