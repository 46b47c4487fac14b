//! OAUTHBEARER (RFC 7628) towards a PostgreSQL 18 server: one message with the token, only within verified TLS.
//!
//! It never asks an issuer the server names: the token comes from the lease, or the login fails (UPS-7).

use zeroize::Zeroizing;

/// The only message of the exchange.
pub fn initial_response(token: &str) -> Zeroizing<String> {
    Zeroizing::new(format!("n,,\u{1}auth=Bearer {token}\u{1}\u{1}"))
}

/// What a client answers to the server's error document, so that the server ends the login with its error.
pub const ABORT: &[u8] = b"\x01";

/// Whether a token may stand in the message: RFC 6750's characters only.
pub fn token_is_clean(token: &str) -> bool {
    !token.is_empty()
        && token
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_cannot_carry_a_second_field() {
        assert!(token_is_clean("eyJhbGciOi.J9-_~+/=="));
        assert!(!token_is_clean("a\u{1}host=evil"));
        assert_eq!(initial_response("t").as_str(), "n,,\u{1}auth=Bearer t\u{1}\u{1}");
    }
}
