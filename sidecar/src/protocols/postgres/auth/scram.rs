//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, the client's side, sans IO.
//!
//! It refuses rounds outside 4,096 to 600,000, a nonce that does not extend ours, and a missing or wrong server
//! signature. The costly step is its own call, so that it runs off the runtime; its result may be cached.

use std::num::NonZeroU32;

use aws_lc_rs::{constant_time, digest, hmac, pbkdf2, rand};
use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use zeroize::Zeroizing;

/// The fewest rounds we accept: fewer would let a fake server try weak passwords cheaply.
pub const MIN_ROUNDS: u32 = 4_096;
/// The most rounds we compute.
pub const MAX_ROUNDS: u32 = 600_000;

/// What is wrong with the exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// A message that does not have the form of its step.
    #[error("malformed SCRAM message")]
    Malformed,
    /// A nonce that does not extend ours.
    #[error("the server's nonce does not extend ours")]
    Nonce,
    /// Too few or too many rounds.
    #[error("{0} rounds are outside 4,096 to 600,000")]
    Rounds(u32),
    /// The server's signature is wrong: it does not know the password.
    #[error("the server's signature is wrong")]
    Signature,
    /// The system's random numbers are not available.
    #[error("no random numbers")]
    Random,
}

/// How the exchange is bound to the TLS channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChannelBinding {
    /// No TLS: `n`.
    Unsupported,
    /// TLS, but the server did not offer binding: `y`.
    NotOffered,
    /// tls-server-end-point.
    EndPoint(Vec<u8>),
}

impl ChannelBinding {
    fn header(&self) -> &'static str {
        match self {
            ChannelBinding::Unsupported => "n,,",
            ChannelBinding::NotOffered => "y,,",
            ChannelBinding::EndPoint(_) => "p=tls-server-end-point,,",
        }
    }
}

/// A salted password, zeroed when dropped. On the heap: an array that is moved leaves itself behind, unwiped (test
/// `nothing_of_a_password_is_left_once_its_lease_is_gone`).
pub type Salted = Zeroizing<Vec<u8>>;

/// After our first message.
pub struct Started {
    binding: ChannelBinding,
    nonce: String,
}

/// Salt and rounds the server named; the salted password comes next.
pub struct Challenged {
    binding: ChannelBinding,
    first_bare: String,
    server_first: String,
    nonce: String,
    /// The salt.
    pub salt: Vec<u8>,
    /// The rounds, within bounds.
    pub rounds: u32,
}

/// After our last message; the server must prove itself.
pub struct Proven {
    signature: hmac::Tag,
}

/// Starts an exchange: state and our first message.
pub fn start(binding: ChannelBinding) -> Result<(Started, String), ScramError> {
    let mut random = [0u8; 24];
    rand::fill(&mut random).map_err(|_| ScramError::Random)?;
    Ok(start_with(binding, STANDARD.encode(random)))
}

fn start_with(binding: ChannelBinding, nonce: String) -> (Started, String) {
    let first = format!("{}n=,r={nonce}", binding.header());
    (Started { binding, nonce }, first)
}

impl Started {
    /// Takes the server's first message.
    pub fn challenge(self, server_first: &str) -> Result<Challenged, ScramError> {
        let mut parts = server_first.splitn(3, ',');
        let mut part = |key: &str| {
            parts
                .next()
                .and_then(|part| part.strip_prefix(key))
                .ok_or(ScramError::Malformed)
        };
        let (nonce, salt, rounds) = (part("r=")?, part("s=")?, part("i=")?);
        if !nonce.starts_with(&self.nonce) || nonce.len() <= self.nonce.len() {
            return Err(ScramError::Nonce);
        }
        let salt = STANDARD.decode(salt).map_err(|_| ScramError::Malformed)?;
        let rounds: u32 = rounds
            .split(',')
            .next()
            .unwrap_or_default()
            .parse()
            .map_err(|_| ScramError::Malformed)?;
        if !(MIN_ROUNDS..=MAX_ROUNDS).contains(&rounds) {
            return Err(ScramError::Rounds(rounds));
        }
        Ok(Challenged {
            first_bare: format!("n=,r={}", self.nonce),
            server_first: server_first.to_owned(),
            nonce: nonce.to_owned(),
            binding: self.binding,
            salt,
            rounds,
        })
    }
}

/// The costly step: PBKDF2 over the prepared password. Runs off the runtime.
pub fn salt_password(password: &str, salt: &[u8], rounds: u32) -> Salted {
    // A password that the profile does not allow is used as it is, as the server does.
    let prepared = stringprep::saslprep(password).map(|text| Zeroizing::new(text.into_owned()));
    let prepared = prepared.unwrap_or_else(|_| Zeroizing::new(password.to_owned()));
    let mut salted = Zeroizing::new(vec![0u8; 32]);
    let rounds = NonZeroU32::new(rounds).unwrap_or(NonZeroU32::MIN);
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        rounds,
        salt,
        prepared.as_bytes(),
        salted.as_mut_slice(),
    );
    salted
}

impl Challenged {
    /// Our last message.
    pub fn prove(self, salted: &[u8]) -> (Proven, String) {
        let mac = |key: &[u8], text: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text);
        let mut bound = self.binding.header().as_bytes().to_vec();
        if let ChannelBinding::EndPoint(hash) = &self.binding {
            bound.extend_from_slice(hash);
        }
        let without_proof = format!("c={},r={}", STANDARD.encode(bound), self.nonce);
        let message = format!("{},{},{without_proof}", self.first_bare, self.server_first);
        let client_key = mac(salted, b"Client Key");
        let stored_key = digest::digest(&digest::SHA256, client_key.as_ref());
        let signature = mac(stored_key.as_ref(), message.as_bytes());
        let proof: Zeroizing<Vec<u8>> = Zeroizing::new(
            client_key
                .as_ref()
                .iter()
                .zip(signature.as_ref())
                .map(|(key, sign)| key ^ sign)
                .collect(),
        );
        let server_key = mac(salted, b"Server Key");
        let expected = mac(server_key.as_ref(), message.as_bytes());
        let last = format!("{without_proof},p={}", STANDARD.encode(proof.as_slice()));
        (Proven { signature: expected }, last)
    }
}

impl Proven {
    /// Checks the server's signature.
    pub fn check(self, server_final: &str) -> Result<(), ScramError> {
        let given = server_final.strip_prefix("v=").ok_or(ScramError::Malformed)?;
        let given = STANDARD
            .decode(given.split(',').next().unwrap_or_default())
            .map_err(|_| ScramError::Malformed)?;
        constant_time::verify_slices_are_equal(&given, self.signature.as_ref()).map_err(|_| ScramError::Signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 7677, whose user name PostgreSQL leaves out; recomputed for an empty one by its server side.
    fn exchange(rounds: u32, password: &str) -> Result<(), ScramError> {
        let (started, first) = start_with(ChannelBinding::Unsupported, "rOprNGfwEbeRWgbNEkqO".to_owned());
        assert_eq!(first, "n,,n=,r=rOprNGfwEbeRWgbNEkqO");
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let server_first = format!("r=rOprNGfwEbeRWgbNEkqO%hv,s=W22ZaJ0SNY7soEsUEjb6gQ==,i={rounds}");
        let challenged = started.challenge(&server_first)?;
        let (proven, last) = challenged.prove(&salt_password("pencil", &salt, rounds));
        // The server's side, from the password it knows.
        let salted = salt_password(password, &salt, rounds);
        let key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, salted.as_slice()), b"Server Key");
        let message = format!(
            "n=,r=rOprNGfwEbeRWgbNEkqO,{server_first},{}",
            last.split(",p=").next().unwrap()
        );
        let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.as_ref()), message.as_bytes());
        proven.check(&format!("v={}", STANDARD.encode(signature.as_ref())))
    }

    #[test]
    fn a_server_that_does_not_know_the_password_is_refused() {
        assert_eq!(exchange(4096, "pencil"), Ok(()));
        assert_eq!(exchange(4096, "pencil2"), Err(ScramError::Signature));
    }

    #[test]
    fn rounds_outside_the_bounds_are_refused_before_they_are_computed() {
        for rounds in [0, 1, 4095, 600_001, u32::MAX] {
            assert_eq!(exchange(rounds, "pencil"), Err(ScramError::Rounds(rounds)));
        }
    }

    #[test]
    fn a_nonce_that_does_not_extend_ours_is_refused() {
        for nonce in ["other", "mine"] {
            let (started, _) = start_with(ChannelBinding::NotOffered, "mine".to_owned());
            let refused = started.challenge(&format!("r={nonce},s=AAAA,i=4096")).err();
            assert_eq!(refused, Some(ScramError::Nonce));
        }
    }

    #[test]
    fn the_channel_binding_is_part_of_what_is_proven() {
        let (started, first) = start_with(ChannelBinding::EndPoint(vec![1, 2, 3]), "n".to_owned());
        assert!(first.starts_with("p=tls-server-end-point,,"));
        let (_, last) = started.challenge("r=nx,s=AAAA,i=4096").unwrap().prove(&[0; 32]);
        let bound = [b"p=tls-server-end-point,,".as_slice(), &[1, 2, 3]].concat();
        assert!(last.starts_with(&format!("c={},r=nx,p=", STANDARD.encode(bound))));
    }
}
