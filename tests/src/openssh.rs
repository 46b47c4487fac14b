//! OpenSSH's keys and certificates as bytes, for doubles of what signs them: without a good signature, as nobody here
//! checks one.
//!
//! It owns no key. What is written is what a test says, right or wrong.

#![allow(missing_docs)]

use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;

/// What a certificate says.
#[derive(Clone)]
pub struct Certificate {
    pub key: [u8; 32],
    pub kind: u32,
    pub principals: Vec<String>,
    pub after: u64,
    pub before: u64,
    pub critical: Vec<(String, String)>,
    pub extensions: Vec<String>,
}

/// A public key, as a file of OpenSSH has it.
pub fn public_key(key: &[u8; 32]) -> String {
    let blob = [text(b"ssh-ed25519"), text(key)].concat();
    format!("ssh-ed25519 {}", STANDARD.encode(blob))
}

impl Certificate {
    /// Its bytes (PROTOCOL.certkeys).
    pub fn blob(&self) -> Vec<u8> {
        let principals: Vec<u8> = self.principals.iter().flat_map(|name| text(name.as_bytes())).collect();
        let critical = self.critical.iter().map(|(name, value)| {
            let value = text(value.as_bytes());
            [text(name.as_bytes()), text(&value)].concat()
        });
        let critical = critical.collect::<Vec<_>>().concat();
        let extensions = self.extensions.iter();
        let extensions = extensions.map(|name| [text(name.as_bytes()), text(b"")].concat());
        let extensions = extensions.collect::<Vec<_>>().concat();
        [
            text(b"ssh-ed25519-cert-v01@openssh.com"),
            text(&[7; 32]),
            text(&self.key),
            1_u64.to_be_bytes().to_vec(),
            self.kind.to_be_bytes().to_vec(),
            text(b"vault-jwt"),
            text(&principals),
            self.after.to_be_bytes().to_vec(),
            self.before.to_be_bytes().to_vec(),
            text(&critical),
            text(&extensions),
            text(b""),
            text(&[text(b"ssh-ed25519"), text(&[9; 32])].concat()),
            text(&[text(b"ssh-ed25519"), text(&[0; 64])].concat()),
        ]
        .concat()
    }

    /// The line that a signer answers with.
    pub fn line(&self) -> String {
        format!("ssh-ed25519-cert-v01@openssh.com {}\n", STANDARD.encode(self.blob()))
    }
}

/// A length and what has it.
fn text(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    [length.to_be_bytes().as_slice(), bytes].concat()
}
