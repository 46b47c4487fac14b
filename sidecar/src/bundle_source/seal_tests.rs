//! Seals, right and changed in one thing each. The signer here is the tests' own; the broker's is under test where
//! both run.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{EcdsaKeyPair, ECDSA_P256_SHA256_ASN1_SIGNING};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair as CertificateKey,
    KeyUsagePurpose,
};
use sidegate_policies::seal::{Revisions, USAGE};

use super::*;
use crate::secret::base64url;

pub(crate) const POD: &str = "7a1b9c52";

/// An authority and a key that seals under it.
pub(crate) struct Signer {
    /// To be pinned.
    pub ca_pem: String,
    authority: Issuer<'static, CertificateKey>,
    key: EcdsaKeyPair,
    chain: Vec<String>,
}

fn authority() -> (Issuer<'static, CertificateKey>, String) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = CertificateKey::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), pem)
}

impl Signer {
    pub fn new() -> Self {
        let (authority, ca_pem) = authority();
        let usage = ExtendedKeyUsagePurpose::Other(USAGE.to_vec());
        let (key, chain) = leaf(&authority, vec![usage], |_| {});
        Signer {
            ca_pem,
            authority,
            key,
            chain,
        }
    }

    pub fn seal(&self, statement: &Statement) -> Seal {
        seal_with(&self.key, &self.chain, statement)
    }
}

fn leaf(
    authority: &Issuer<'static, CertificateKey>,
    usages: Vec<ExtendedKeyUsagePurpose>,
    change: impl FnOnce(&mut CertificateParams),
) -> (EcdsaKeyPair, Vec<String>) {
    let key = CertificateKey::generate().unwrap();
    let mut params = CertificateParams::default();
    params.extended_key_usages = usages;
    change(&mut params);
    let certificate = params.signed_by(&key, authority).unwrap();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key.serialize_der()).unwrap();
    (key, vec![base64url(certificate.der())])
}

fn seal_with(key: &EcdsaKeyPair, chain: &[String], statement: &Statement) -> Seal {
    let statement = serde_json::to_string(statement).unwrap();
    let signature = key.sign(&SystemRandom::new(), &signed(&statement)).unwrap();
    Seal {
        signature: base64url(signature.as_ref()),
        statement,
        chain: chain.to_vec(),
    }
}

pub(crate) fn statement(version: &str) -> Statement {
    Statement {
        version: version.to_owned(),
        pod_uid: POD.to_owned(),
        sealed_ms: jiff::Timestamp::now().as_millisecond(),
        cluster: "local".to_owned(),
        revisions: Revisions::of("Target", 7),
        deny_revision: 0,
        deny_digest: sidegate_policies::seal::deny_digest(&Default::default()),
    }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

#[test]
fn only_the_brokers_seal_for_this_pod_over_exactly_this_statement_is_one() {
    let signer = Signer::new();
    let seals = Seals::pinned(&signer.ca_pem).unwrap();
    let good = signer.seal(&statement("v1"));
    assert_eq!(seals.check(&good, POD, now()).unwrap().version, "v1");

    let mut altered = good.clone();
    altered.statement = altered.statement.replace("v1", "v2");
    assert_eq!(seals.check(&altered, POD, now()), Err(SealRefused::Signature));
    let mut bare = good.clone();
    let signature = signer
        .key
        .sign(&SystemRandom::new(), good.statement.as_bytes())
        .unwrap();
    bare.signature = base64url(signature.as_ref());
    assert_eq!(
        seals.check(&bare, POD, now()),
        Err(SealRefused::Signature),
        "without the context"
    );
    assert_eq!(seals.check(&good, "other", now()), Err(SealRefused::Pod));
    let nobody = signer.seal(&Statement {
        pod_uid: String::new(),
        ..statement("v1")
    });
    assert_eq!(
        seals.check(&nobody, "", now()),
        Err(SealRefused::Pod),
        "a pod without a UID is nobody"
    );
    let empty = Seal {
        chain: Vec::new(),
        ..good.clone()
    };
    assert_eq!(seals.check(&empty, POD, now()), Err(SealRefused::Form));
    let long = Seal {
        chain: vec![good.chain[0].clone(); 5],
        ..good.clone()
    };
    assert_eq!(seals.check(&long, POD, now()), Err(SealRefused::Form));
    let unread = Seal {
        signature: "*".to_owned(),
        ..good
    };
    assert_eq!(seals.check(&unread, POD, now()), Err(SealRefused::Form));
}

#[test]
fn a_certificate_of_another_authority_for_another_use_or_out_of_date_seals_nothing() {
    let (signer, other) = (Signer::new(), Signer::new());
    let seals = Seals::pinned(&signer.ca_pem).unwrap();
    let refused = |seal: &Seal, now_ms: i64| match seals.check(seal, POD, now_ms) {
        Err(SealRefused::Chain(why)) => why,
        other => panic!("{other:?}"),
    };
    refused(&other.seal(&statement("v1")), now());
    // The broker's TLS leaf is under the same authority, and seals nothing.
    let (key, chain) = leaf(&signer.authority, vec![ExtendedKeyUsagePurpose::ServerAuth], |_| {});
    refused(&seal_with(&key, &chain, &statement("v1")), now());
    let (key, chain) = leaf(&signer.authority, Vec::new(), |_| {});
    refused(&seal_with(&key, &chain, &statement("v1")), now());
    let usage = ExtendedKeyUsagePurpose::Other(USAGE.to_vec());
    let (key, chain) = leaf(&signer.authority, vec![usage], |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    refused(&seal_with(&key, &chain, &statement("v1")), now());
    let good = signer.seal(&statement("v1"));
    refused(&good, 0);
    // A stolen seal key of another authority does not help with this one's certificate.
    let mixed = seal_with(&other.key, &signer.chain, &statement("v1"));
    assert_eq!(seals.check(&mixed, POD, now()), Err(SealRefused::Signature));
}
