//! How long a certificate lives, as far as people need to know.

use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use jiff::Timestamp;
use x509_parser::pem::Pem;

/// What a bundle of certificates says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Life {
    /// Some certificate of it is good until then.
    Until(String),
    /// The last one ended then.
    Ended(String),
    /// There is none.
    None,
}

/// Of PEM.
pub fn life(pem: &str) -> Life {
    let ends = Pem::iter_from_buffer(pem.as_bytes()).filter_map(|block| {
        let block = block.ok()?;
        let certificate = block.parse_x509().ok()?;
        Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
    });
    match ends.max() {
        Some(end) if end > Timestamp::now() => Life::Until(end.to_string()),
        Some(end) => Life::Ended(end.to_string()),
        None => Life::None,
    }
}

/// Of PEM in base64, as webhook configurations have it.
pub fn life_of_base64(bundle: &str) -> Life {
    let pem = STANDARD
        .decode(bundle.trim())
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    pem.map_or(Life::None, |pem| life(&pem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_has_no_life() {
        for nothing in ["", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n", "x"] {
            assert_eq!(life(nothing), Life::None, "{nothing}");
            assert_eq!(life_of_base64(nothing), Life::None, "{nothing}");
        }
    }
}
