//! The segment footer: what a `seal` frame says and how it is signed.
//!
//! The payload is `{"signed":"…","signature":"…"}`, both base64url; `signed` is the exact JSON text that was
//! signed behind a domain line. A footer binds the frames since the previous one (Merkle root over their hashes),
//! the previous footer, the next public key, the heads of all open sessions, the clocks and its own place.
//! Invariant: a payload that is not byte for byte what `sign` writes is refused, so nothing in it is malleable.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair, UnparsedPublicKey, ED25519};
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine;
use serde::{Deserialize, Serialize};

/// What is signed before the JSON text.
pub const DOMAIN: &[u8] = b"sidegate-seal-v1\n";

/// A segment ends at this size, in bytes.
pub const SEGMENT_BYTES: u64 = 4 << 20;
/// A segment ends so many nanoseconds after its first frame: with the checkpoints, edits show after at most twice that.
pub const SEGMENT_NS: u64 = 10_000_000_000;

/// A footer's content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Footer {
    /// Segment number, from 0.
    pub segment: u64,
    /// Hash of the log's `boot` frame, hex.
    pub log: String,
    /// First log number of the segment.
    pub first: u64,
    /// Last log number before the footer itself.
    pub last: u64,
    /// RFC 6962 root over the frame hashes of `first..=last`, hex.
    pub root: String,
    /// Hash of the previous `seal` frame, hex; zeros for the first segment.
    pub previous: String,
    /// Public key that signs the next footer, base64url.
    pub next_key: String,
    /// Heads of the sessions still open.
    pub heads: Vec<Head>,
    /// Clocks, as in the footer's own frame header.
    pub mono_ns: u64,
    /// Wall clock, as in the frame header.
    pub wall_us: u64,
    /// Number of this frame in the chain of session zero.
    pub number: u64,
}

/// The head of an open session.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Head {
    /// Session id.
    pub session: String,
    /// Number of its last frame.
    pub number: u64,
    /// Hash of that frame, hex.
    pub hash: String,
}

/// Why a footer is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FooterError {
    /// Not the form that is written.
    #[error("the segment footer has a wrong form")]
    Form,
    /// The signature does not verify.
    #[error("the segment footer's signature does not verify")]
    Signature,
    /// The signer failed.
    #[error("the segment footer could not be signed")]
    Signer,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    signed: String,
    signature: String,
}

impl Footer {
    /// The payload of the `seal` frame.
    pub fn sign(&self, key: &Ed25519KeyPair) -> Result<Vec<u8>, FooterError> {
        let text = serde_json::to_vec(self).map_err(|_| FooterError::Form)?;
        let signature = key.try_sign(&message(&text)).map_err(|_| FooterError::Signer)?;
        let envelope = Envelope {
            signed: URL_SAFE_NO_PAD.encode(&text),
            signature: URL_SAFE_NO_PAD.encode(signature.as_ref()),
        };
        serde_json::to_vec(&envelope).map_err(|_| FooterError::Form)
    }

    /// Reads a payload without judging its signature.
    pub fn read(payload: &[u8]) -> Result<SignedFooter, FooterError> {
        let envelope: Envelope = serde_json::from_slice(payload).map_err(|_| FooterError::Form)?;
        if serde_json::to_vec(&envelope).map_err(|_| FooterError::Form)? != payload {
            return Err(FooterError::Form);
        }
        let text = URL_SAFE_NO_PAD
            .decode(&envelope.signed)
            .map_err(|_| FooterError::Form)?;
        let signature = URL_SAFE_NO_PAD
            .decode(&envelope.signature)
            .map_err(|_| FooterError::Form)?;
        let footer: Footer = serde_json::from_slice(&text).map_err(|_| FooterError::Form)?;
        Ok(SignedFooter {
            footer,
            text,
            signature,
        })
    }
}

/// A footer with the bytes that were signed.
#[derive(Debug, Clone)]
pub struct SignedFooter {
    /// The content.
    pub footer: Footer,
    text: Vec<u8>,
    signature: Vec<u8>,
}

impl SignedFooter {
    /// Judges the signature under `public_key`.
    pub fn verify(&self, public_key: &[u8; 32]) -> Result<(), FooterError> {
        UnparsedPublicKey::new(&ED25519, public_key)
            .verify(&message(&self.text), &self.signature)
            .map_err(|_| FooterError::Signature)
    }
}

/// The public half of a key.
pub fn public_key(key: &Ed25519KeyPair) -> [u8; 32] {
    let mut out = [0u8; 32];
    if let Some(bytes) = key.public_key().as_ref().first_chunk::<32>() {
        out = *bytes;
    }
    out
}

/// base64url without padding.
pub fn encode_key(key: &[u8; 32]) -> String {
    URL_SAFE_NO_PAD.encode(key)
}

/// A public key from base64url without padding.
pub fn decode_key(text: &str) -> Option<[u8; 32]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

fn message(text: &[u8]) -> Vec<u8> {
    [DOMAIN, text].concat()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn any_flip_in_a_footer_is_named() {
        let key = Ed25519KeyPair::generate().unwrap();
        let footer = Footer {
            heads: vec![Head {
                session: "s".into(),
                number: 1,
                hash: "00".into(),
            }],
            ..Footer::default()
        };
        let payload = footer.sign(&key).unwrap();
        let read = Footer::read(&payload).unwrap();
        assert_eq!(read.footer, footer);
        read.verify(&public_key(&key)).unwrap();
        for at in 0..payload.len() {
            let mut bad = payload.clone();
            bad[at] ^= 1;
            let good = Footer::read(&bad).and_then(|read| read.verify(&public_key(&key)));
            assert!(good.is_err(), "byte {at}");
        }
    }
}
