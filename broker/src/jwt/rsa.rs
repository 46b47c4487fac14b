//! RSA keys that sign assertions, for the providers that take nothing else.
//!
//! Refuses keys of fewer than 2048 bits and of a public exponent but 65537. The key is parsed once, not for every
//! signature; AWS-LC checks what it reads and signs in constant time. The invariant: the private half leaves this file
//! in its PKCS#8 form alone, to be kept in the ring.

use std::sync::Arc;

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use zeroize::Zeroizing;

use super::{Numbers, SigningFailed};

/// Keys change every month, and assertions live for minutes: 2048 bits, which every provider takes.
const SIZE: KeySize = KeySize::Rsa2048;
/// The fewest bits of a key that is read.
const MIN_BITS: usize = 2048;
/// 65537, as every provider expects it.
const EXPONENT: [u8; 3] = [1, 0, 1];

/// An RSA key that signs. No Debug: it is a secret.
#[derive(Clone)]
pub(super) struct RsaKey(Arc<KeyPair>);

impl RsaKey {
    /// A new key in its PKCS#8 form. Takes some hundred milliseconds of CPU.
    pub(super) fn generate() -> Result<Zeroizing<Vec<u8>>, SigningFailed> {
        let pair = KeyPair::generate(SIZE).map_err(|_| SigningFailed)?;
        let pkcs8: Pkcs8V1Der<'_> = pair.as_der().map_err(|_| SigningFailed)?;
        Ok(Zeroizing::new(pkcs8.as_ref().to_vec()))
    }

    /// Reads a key with its public numbers.
    pub(super) fn from_pkcs8(pkcs8: &[u8]) -> Result<(Self, Numbers), SigningFailed> {
        let pair = KeyPair::from_pkcs8(pkcs8).map_err(|_| SigningFailed)?;
        let public = pair.public_key();
        let exponent = public.exponent().big_endian_without_leading_zero();
        if public.modulus_len().saturating_mul(8) < MIN_BITS || exponent != EXPONENT {
            return Err(SigningFailed);
        }
        let modulus = public.modulus().big_endian_without_leading_zero();
        let numbers = Numbers::Rsa {
            n: URL_SAFE_NO_PAD.encode(modulus),
            e: URL_SAFE_NO_PAD.encode(EXPONENT),
        };
        Ok((RsaKey(Arc::new(pair)), numbers))
    }

    /// A signature by RS256 (RFC 7518 section 3.3), base64url.
    pub(super) fn sign(&self, message: &[u8]) -> Result<String, SigningFailed> {
        let mut signature = vec![0; self.0.public_modulus_len()];
        let signed = self
            .0
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature);
        signed.map_err(|_| SigningFailed)?;
        Ok(URL_SAFE_NO_PAD.encode(signature))
    }
}
