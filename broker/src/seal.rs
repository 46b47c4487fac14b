//! The seal key: what the broker vouches for, so that a bundle is known for its own wherever it was kept meanwhile.
//!
//! Made in this process and never written anywhere; its certificate is under the broker's authority, for seals and
//! nothing else, and lives as long as the TLS leaf it is made with. Refuses nothing. The invariant: a seal names one
//! pod, one body, one deny set and one time.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{EcdsaKeyPair, KeyPair as _, ECDSA_P256_SHA256_ASN1_SIGNING};
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use rcgen::{DnType, ExtendedKeyUsagePurpose, KeyUsagePurpose, PublicKeyData};
use sidegate_policies::engine::Subject;
use sidegate_policies::seal::{deny_digest, signed, Seal, Statement, USAGE};
use sidegate_policies::wire::DenySet;

use crate::authority::material::{Material, MaterialError, Sealing};
use crate::index::Offer;

/// Why nothing was sealed: the library would not sign.
#[derive(Debug, thiserror::Error)]
#[error("a bundle could not be sealed")]
pub struct NotSealed;

/// Seals bundles, with the key made last.
#[derive(Default)]
pub struct Sealer(ArcSwapOption<SealKey>);

/// A key with its certificate. No Debug: it is a secret.
pub struct SealKey {
    key: EcdsaKeyPair,
    /// DER, base64url: the key's certificate and those between it and the authority.
    chain: Vec<String>,
}

/// A public key as certificates hold it.
struct Public<'a>(&'a EcdsaKeyPair);

impl PublicKeyData for Public<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl Sealer {
    /// A new key under this authority, in place of the present one.
    pub fn renew(&self, material: &Material) -> Result<(), MaterialError> {
        self.0.store(Some(Arc::new(SealKey::certified(material.sealing()?)?)));
        Ok(())
    }

    /// Seals what is offered to a pod, beside the deny set it was sent.
    pub fn seal(&self, offer: &Offer, who: &Subject, denied: &DenySet, now_ms: i64) -> Result<Seal, NotSealed> {
        let statement = Statement {
            version: offer.version.clone(),
            pod_uid: who.pod_uid.clone(),
            sealed_ms: now_ms,
            cluster: offer.bundle.cluster.clone(),
            revisions: offer.revisions.clone(),
            deny_revision: denied.revision,
            deny_digest: deny_digest(denied),
        };
        let statement = serde_json::to_string(&statement).map_err(|_| NotSealed)?;
        let key = self.0.load_full().ok_or(NotSealed)?;
        let signature = key.key.sign(&SystemRandom::new(), &signed(&statement));
        Ok(Seal {
            signature: URL_SAFE_NO_PAD.encode(signature.map_err(|_| NotSealed)?),
            statement,
            chain: key.chain.clone(),
        })
    }
}

impl SealKey {
    /// A new key with a certificate.
    fn certified(with: Sealing) -> Result<Self, MaterialError> {
        let Sealing {
            mut params,
            authority,
            above,
        } = with;
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING);
        let key = key.map_err(|_| MaterialError::Damaged("no key for seals can be made"))?;
        params
            .distinguished_name
            .push(DnType::CommonName, "Sidegate bundle seal");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(USAGE.to_vec())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&Public(&key), &authority)?;
        let own = std::iter::once(certificate.der().as_ref());
        let chain = own.chain(above.iter().map(|certificate| certificate.as_ref()));
        Ok(SealKey {
            chain: chain.map(|der| URL_SAFE_NO_PAD.encode(der)).collect(),
            key,
        })
    }
}
