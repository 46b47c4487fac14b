//! Where the recorder's secrets come from: record keys, session keys and the nonce of a log.
//!
//! Behind a trait so that tests write the same log twice, byte for byte; the system's generator is the only one
//! outside tests. Refuses rather than answer with weak bytes.
//! Invariant: what is drawn is used once and wiped after use.

use aws_lc_rs::signature::Ed25519KeyPair;
use sidegate_policies::record::SessionKey;
use zeroize::Zeroizing;

use super::CannotRecord;

/// A source of secret random bytes.
pub trait Random: Send + Sync + 'static {
    /// Fills `out`; false if it cannot, and then `out` must not be used.
    fn fill(&self, out: &mut [u8]) -> bool;
}

/// The system's generator.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&self, out: &mut [u8]) -> bool {
        aws_lc_rs::rand::fill(out).is_ok()
    }
}

/// A fresh key that signs one segment.
pub(super) fn record_key(random: &dyn Random) -> Result<Ed25519KeyPair, CannotRecord> {
    let seed = secret(random)?;
    Ed25519KeyPair::from_seed_unchecked(seed.as_ref()).map_err(|_| CannotRecord::Encoding)
}

/// A fresh key that seals one session.
pub(super) fn session_key(random: &dyn Random) -> Result<SessionKey, CannotRecord> {
    SessionKey::from_bytes(secret(random)?).map_err(|_| CannotRecord::Encoding)
}

fn secret(random: &dyn Random) -> Result<Zeroizing<[u8; 32]>, CannotRecord> {
    let mut out = Zeroizing::new([0u8; 32]);
    let filled = random.fill(out.as_mut());
    filled.then_some(out).ok_or(CannotRecord::Encoding)
}
