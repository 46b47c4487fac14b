//! Checking seals: whether the broker, under the authority this sidecar has pinned, vouched for a bundle for this pod.
//!
//! Refuses a chain that does not lead to the pinned authority, a certificate for anything but seals, a signature that is
//! not over exactly this statement, and another pod's seal. The invariant: nothing of a statement is used before all of
//! it was checked.

use std::time::Duration;

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use sidegate_policies::seal::{signed, Seal, Statement, USAGE_DER};
use webpki::{EndEntityCert, KeyUsage};

use crate::secret::from_base64url;
use crate::tls::client::store;
use crate::tls::TlsError;

/// What seal keys and authorities sign with.
const ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    webpki::aws_lc_rs::ECDSA_P256_SHA256,
    webpki::aws_lc_rs::ECDSA_P384_SHA384,
];
/// A leaf, a certificate that crosses from one authority to the next, and room for two more.
const CHAIN_LIMIT: usize = 4;
/// Largest certificate and statement.
const PART_LIMIT: usize = 64 * 1024;

/// Why a seal is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealRefused {
    /// It cannot be read.
    #[error("the seal cannot be read")]
    Form,
    /// Its certificate does not lead to the pinned authority, or is for something else.
    #[error("the seal's certificate is not one: {0}")]
    Chain(String),
    /// The signature is not over this statement.
    #[error("the seal's signature is wrong")]
    Signature,
    /// It was made for another pod.
    #[error("the seal is another pod's")]
    Pod,
}

/// Checks seals against the pinned authorities.
pub struct Seals {
    anchors: Vec<TrustAnchor<'static>>,
}

impl Seals {
    /// Under exactly these authorities, in PEM.
    pub fn pinned(ca_pem: &str) -> Result<Self, TlsError> {
        Ok(Seals {
            anchors: store(ca_pem)?.roots,
        })
    }

    /// What a seal says, if it is this pod's and the broker's; `now_ms` is milliseconds since 1970 (test
    /// `only_the_brokers_seal_for_this_pod_over_exactly_this_statement_is_one`).
    pub fn check(&self, seal: &Seal, pod_uid: &str, now_ms: i64) -> Result<Statement, SealRefused> {
        if seal.chain.len() > CHAIN_LIMIT || seal.statement.len() > PART_LIMIT {
            return Err(SealRefused::Form);
        }
        let certificate = |text: &String| {
            let der = from_base64url(text).filter(|der| der.len() <= PART_LIMIT);
            der.map(CertificateDer::from).ok_or(SealRefused::Form)
        };
        let chain = seal.chain.iter().map(certificate).collect::<Result<Vec<_>, _>>()?;
        let (own, above) = chain.split_first().ok_or(SealRefused::Form)?;
        let refused = |error: webpki::Error| SealRefused::Chain(error.to_string());
        let own = EndEntityCert::try_from(own).map_err(refused)?;
        let now = UnixTime::since_unix_epoch(Duration::from_millis(u64::try_from(now_ms).unwrap_or(0)));
        let usage = KeyUsage::required(&USAGE_DER);
        own.verify_for_usage(ALGORITHMS, &self.anchors, above, now, usage, None, None)
            .map_err(refused)?;
        let signature = from_base64url(&seal.signature).ok_or(SealRefused::Form)?;
        own.verify_signature(
            webpki::aws_lc_rs::ECDSA_P256_SHA256,
            &signed(&seal.statement),
            &signature,
        )
        .map_err(|_| SealRefused::Signature)?;
        let statement: Statement = serde_json::from_str(&seal.statement).map_err(|_| SealRefused::Form)?;
        match statement.pod_uid == pod_uid && !pod_uid.is_empty() {
            true => Ok(statement),
            false => Err(SealRefused::Pod),
        }
    }
}

#[cfg(test)]
#[path = "seal_tests.rs"]
pub(crate) mod tests;
