//! Chains as a sidecar checks them, over a manual time.

#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::ServerCertVerifier as _;
use rustls::client::WebPkiServerVerifier;
use rustls::RootCertStore;
use rustls_pki_types::{ServerName, UnixTime};

use super::*;

const START: i64 = 1_800_000_000;

fn names() -> Vec<String> {
    vec!["sidegate-broker.sidegate-system.svc".to_owned(), "0.0.0.0".to_owned()]
}

/// Whether somebody who pinned this authority takes what is served.
fn takes(pinned: &str, served: &Material, name: &str, now: i64) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add(der(pinned).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
    let verifier = verifier.build().unwrap();
    let certified = served.certified().unwrap();
    let (leaf, rest) = certified.cert.split_first().unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now).unwrap()));
    verifier.verify_server_cert(leaf, rest, &name, &[], now).is_ok()
}

#[test]
fn who_pinned_an_old_authority_takes_what_three_newer_ones_serve() {
    let name = "sidegate-broker.sidegate-system.svc";
    let mut present = Material::first(&names(), START).unwrap();
    let mut pinned = vec![present.authority_pem().to_owned()];
    let mut now = START;
    for _ in 0..3 {
        now += 40 * DAY;
        present = present.rolled(&names(), now).unwrap();
        pinned.push(present.authority_pem().to_owned());
        for pem in &pinned {
            assert!(takes(pem, &present, name, now));
        }
    }
    assert!(!takes(&pinned[0], &present, "somebody.else", now));
    let foreign = Material::first(&names(), START).unwrap();
    assert!(!takes(foreign.authority_pem(), &present, name, now));
    // Without the certificate that leads there, the old one would lead nowhere.
    present.older.clear();
    assert!(!takes(&pinned[2], &present, name, now));
    assert!(takes(&pinned[3], &present, name, now));
}

#[test]
fn a_leaf_is_renewed_after_two_thirds_of_its_life_and_for_other_names() {
    let first = Material::first(&names(), START).unwrap();
    assert!(first.due(&names(), true, START + 20 * DAY - 1).unwrap().is_none());
    let next = first.due(&names(), true, START + 20 * DAY).unwrap().unwrap();
    assert_eq!(next.authority_pem(), first.authority_pem());
    assert_eq!(next.leaf_until(), START + 50 * DAY);
    let other = vec!["broker.example".to_owned()];
    let renamed = first.due(&other, true, START).unwrap().unwrap();
    assert!(takes(first.authority_pem(), &renamed, "broker.example", START));
    assert!(renamed.due(&other, true, START).unwrap().is_none());
}

#[test]
fn an_authority_is_replaced_after_two_thirds_of_its_life_where_it_may_be() {
    let first = Material::first(&names(), START).unwrap();
    let now = START + AUTHORITY / 3 * 2 + 3;
    let kept = first.due(&names(), false, now).unwrap().unwrap();
    assert_eq!(kept.authority_pem(), first.authority_pem());
    let next = first.due(&names(), true, now).unwrap().unwrap();
    assert_ne!(next.authority_pem(), first.authority_pem());
    assert!(takes(first.authority_pem(), &next, "localhost", now));
}

#[test]
fn a_new_authority_is_published_once_every_replica_serves_under_it() {
    let first = Material::first(&names(), START).unwrap();
    assert_eq!(first.published_pem(START), first.authority_pem());
    let next = first.rolled(&names(), START + DAY).unwrap();
    assert_eq!(next.published_pem(START + DAY + 119), first.authority_pem());
    assert_eq!(next.published_pem(START + DAY + 120), next.authority_pem());
}

#[test]
fn a_set_whose_parts_do_not_fit_is_not_served() {
    let (one, two) = (
        Material::first(&names(), START).unwrap(),
        Material::first(&names(), START).unwrap(),
    );
    let text = one.print().unwrap();
    let same = Material::parse(&text).unwrap();
    assert!(takes(one.authority_pem(), &same, "127.0.0.1", START));
    assert!(Material::parse(&text[..text.len() - 1]).is_err());
    let mut mixed = one.clone();
    mixed.leaf.certificate.clone_from(&two.leaf.certificate);
    assert!(mixed.certified().is_err());
    let mut torn = one.clone();
    torn.authority.certificate.clear();
    assert!(torn.certified().is_err());
}
