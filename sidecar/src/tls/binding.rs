//! `tls-server-end-point` (RFC 5929): the hash that ties a SCRAM login to the server's certificate.
//!
//! The hash is the one of the certificate's signature, MD5 and SHA-1 replaced by SHA-256. Signatures without a hash
//! of their own (Ed25519) define no binding: none is offered, and a server that insists is refused.

use aws_lc_rs::digest;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The binding of a certificate in DER.
pub fn server_end_point(der: &[u8]) -> Option<Vec<u8>> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let algorithm = match certificate.signature_algorithm.algorithm.to_id_string().as_str() {
        // RSA: md5, sha1, sha256; ECDSA: sha1, sha256.
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.113549.1.1.11" => &digest::SHA256,
        "1.2.840.10045.4.1" | "1.2.840.10045.4.3.2" => &digest::SHA256,
        // RSA and ECDSA with sha384, sha512, sha224.
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => &digest::SHA384,
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => &digest::SHA512,
        "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" => &digest::SHA224,
        _ => return None,
    };
    Some(digest::digest(algorithm, der).as_ref().to_vec())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_binding_is_the_hash_of_the_signature() {
        let make = |algorithm| {
            let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let params = rcgen::CertificateParams::new(vec!["db".to_owned()]).unwrap();
            params.self_signed(&key).unwrap().der().to_vec()
        };
        let p256 = make(&rcgen::PKCS_ECDSA_P256_SHA256);
        assert_eq!(
            server_end_point(&p256).unwrap(),
            digest::digest(&digest::SHA256, &p256).as_ref()
        );
        assert_eq!(
            server_end_point(&make(&rcgen::PKCS_ECDSA_P384_SHA384)).unwrap().len(),
            48
        );
        assert_eq!(server_end_point(&make(&rcgen::PKCS_ED25519)), None);
        assert_eq!(server_end_point(b"not a certificate"), None);
    }
}
