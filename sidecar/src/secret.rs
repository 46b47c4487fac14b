//! Wrappers around secret material: wiped when dropped, and impossible to print, clone or serialise.
//!
//! A [`Secret`] has no Debug, Display, Clone or Serialize; logs may show [`Secret::fingerprint`], eight hex digits of
//! its SHA-256. Copies inside hyper, rustls and serde buffers are out of reach here and are wiped by the allocator
//! (`.cargo/config.toml`).

use zeroize::Zeroizing;

/// Secret text. It cannot be printed:
///
/// ```compile_fail
/// let secret = sidegate_sidecar::secret::Secret::new(String::new());
/// println!("{secret:?}");
/// ```
///
/// nor copied:
///
/// ```compile_fail
/// let secret = sidegate_sidecar::secret::Secret::new(String::new());
/// let _copy = secret.clone();
/// ```
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over. The caller must not keep a copy.
    pub fn new(text: String) -> Self {
        Secret(Zeroizing::new(text))
    }

    /// The text itself; only for the code that proves it to the peer.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Eight hex digits of its SHA-256, fit for logs.
    pub fn fingerprint(&self) -> String {
        fingerprint(self.0.as_bytes())
    }
}

/// Eight hex digits of the SHA-256 of some bytes.
pub fn fingerprint(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    hex(digest.as_ref().get(..4).unwrap_or_default())
}

pub use sidegate_policies::record::frame::hex;

/// Base64url without padding.
pub fn base64url(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads base64url without padding.
pub fn from_base64url(text: &str) -> Option<Vec<u8>> {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_do_not_hold_the_secret() {
        let secret = Secret::new("hunter2".to_owned());
        assert_eq!(secret.fingerprint(), "f52fbd32");
        assert_eq!(secret.expose(), "hunter2");
    }
}
