//! The session key: seals whatever may carry content, and keys the digests of content.
//!
//! AES-256-GCM, random per session, nonce = the frame's number in its session; kind, flags, session and number
//! are authenticated beside the payload, so a sealed payload fits no other place. It is handed to the broker
//! beside the `open` frame, never in it, and whoever deletes it has shredded the session: hashes are over sealed
//! bytes, so the chain still verifies. Never Debug, never Display.

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce, UnboundKey, AES_256_GCM};
use aws_lc_rs::hmac;
use zeroize::Zeroizing;

use crate::record::frame::{Header, FLAG_SEALED, FLAG_ZSTD};

/// Bytes that sealing adds.
pub const TAG_BYTES: usize = 16;
/// Most bytes a payload may have once it is decompressed.
pub const MAX_PLAIN: usize = 16 << 20;

/// The key of one session.
pub struct SessionKey {
    raw: Zeroizing<[u8; 32]>,
    aead: LessSafeKey,
}

/// Why a payload cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnsealError {
    /// The key is gone (shredded) or was never handed over.
    #[error("the session key is not available")]
    NoKey,
    /// The key does not fit the bytes.
    #[error("the payload does not open under the session key")]
    Sealed,
    /// The compressed bytes are broken, or too long.
    #[error("the payload does not decompress")]
    Compressed,
}

/// No key could be made or used: the random source or the cipher failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no session key")]
pub struct NoKey;

impl SessionKey {
    /// A fresh random key.
    pub fn generate() -> Result<SessionKey, NoKey> {
        let mut raw = Zeroizing::new([0u8; 32]);
        aws_lc_rs::rand::fill(raw.as_mut()).map_err(|_| NoKey)?;
        Self::from_bytes(raw)
    }

    /// A key handed over.
    pub fn from_bytes(raw: Zeroizing<[u8; 32]>) -> Result<SessionKey, NoKey> {
        let aead = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, raw.as_ref()).map_err(|_| NoKey)?);
        Ok(SessionKey { raw, aead })
    }

    /// The key itself, to hand it over or wrap it.
    pub fn expose(&self) -> &[u8; 32] {
        &self.raw
    }

    /// Seals `payload` in place and answers the tag that follows it.
    pub fn seal(&self, header: &Header, payload: &mut [u8]) -> Result<[u8; TAG_BYTES], NoKey> {
        let tag = self
            .aead
            .seal_in_place_separate_tag(nonce(header.number), Aad::from(header.associated_data()), payload)
            .map_err(|_| NoKey)?;
        tag.as_ref().try_into().map_err(|_| NoKey)
    }

    /// Opens a sealed payload.
    pub fn open(&self, header: &Header, payload: &[u8]) -> Result<Vec<u8>, UnsealError> {
        let mut buffer = payload.to_vec();
        let plain = self
            .aead
            .open_in_place(nonce(header.number), Aad::from(header.associated_data()), &mut buffer)
            .map_err(|_| UnsealError::Sealed)?
            .len();
        buffer.truncate(plain);
        Ok(buffer)
    }

    /// The key of content digests: a plain hash of a guessable text is guessed in seconds.
    pub fn digest_key(&self) -> hmac::Key {
        let root = hmac::Key::new(hmac::HMAC_SHA256, self.raw.as_ref());
        let derived = hmac::sign(&root, b"sidegate-record-digest-v1");
        hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref())
    }
}

/// The plain payload of a frame: unsealed with `key` if it is sealed, then decompressed if it is compressed.
pub fn plain(header: &Header, payload: &[u8], key: Option<&SessionKey>) -> Result<Vec<u8>, UnsealError> {
    let open = if header.flags & FLAG_SEALED != 0 {
        key.ok_or(UnsealError::NoKey)?.open(header, payload)?
    } else {
        payload.to_vec()
    };
    if header.flags & FLAG_ZSTD == 0 {
        return Ok(open);
    }
    let size = zstd::zstd_safe::get_frame_content_size(&open)
        .ok()
        .flatten()
        .and_then(|size| usize::try_from(size).ok())
        .filter(|size| *size <= MAX_PLAIN)
        .ok_or(UnsealError::Compressed)?;
    zstd::bulk::decompress(&open, size).map_err(|_| UnsealError::Compressed)
}

fn nonce(number: u64) -> Nonce {
    let mut bytes = [0u8; 12];
    if let Some(tail) = bytes.last_chunk_mut::<8>() {
        *tail = number.to_le_bytes();
    }
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::record::kind::Kind;

    fn header(number: u64, kind: Kind) -> Header {
        Header {
            kind,
            flags: FLAG_SEALED,
            log_number: 1,
            session: [1; 16],
            number,
            mono_ns: 0,
            wall_us: 0,
            previous: [0; 32],
        }
    }

    #[test]
    fn a_sealed_payload_fits_no_other_place() {
        let key = SessionKey::generate().unwrap();
        let mut bytes = b"select 1".to_vec();
        let tag = key.seal(&header(4, Kind::Intent), &mut bytes).unwrap();
        bytes.extend_from_slice(&tag);
        assert_ne!(&bytes[..8], b"select 1");
        assert_eq!(key.open(&header(4, Kind::Intent), &bytes).unwrap(), b"select 1");
        assert_eq!(key.open(&header(5, Kind::Intent), &bytes), Err(UnsealError::Sealed));
        assert_eq!(key.open(&header(4, Kind::Outcome), &bytes), Err(UnsealError::Sealed));
        let other = SessionKey::generate().unwrap();
        assert_eq!(other.open(&header(4, Kind::Intent), &bytes), Err(UnsealError::Sealed));
        assert_eq!(plain(&header(4, Kind::Intent), &bytes, None), Err(UnsealError::NoKey));
    }

    #[test]
    fn a_decompression_bomb_is_refused_by_its_declared_size() {
        let bomb = zstd::bulk::compress(&vec![0u8; MAX_PLAIN + 1], 1).unwrap();
        let mut header = header(0, Kind::Open);
        header.flags = FLAG_ZSTD;
        assert_eq!(plain(&header, &bomb, None), Err(UnsealError::Compressed));
    }
}
