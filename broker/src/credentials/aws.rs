//! Logins at Amazon's databases: a signed `connect` request as password, by keys that STS gave for our assertion.
//!
//! Owns AWS's Signature Version 4 in the one form that is needed: a GET whose query is signed. Refuses keys that are not
//! whole. Invariants: for a database the keys stay in the broker, and what leaves it opens one user of one database for
//! [`LIFE`] at most; nothing is signed but this request. Only a Target that says `SigV4` is leased the keys themselves.

use std::fmt::Write as _;

use aws_lc_rs::digest::{digest, SHA256};
use aws_lc_rs::hmac;
use secrecy::ExposeSecret as _;
use sidegate_policies::api::target::{Address, AwsIamCredential, TokenCredential};
use sidegate_policies::api::TokenIssuer;
use sidegate_policies::presets::{url, Class};
use sidegate_policies::record::frame::hex;
use sidegate_policies::wire::LeaseMaterial;
use zeroize::Zeroizing;

use super::{Exchanged, Failure};

/// Seconds for which the signed request opens the database: what RDS allows.
pub const LIFE: i64 = 15 * 60;
/// What the signature of a request without a body covers: SHA-256 of nothing.
const NO_BODY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// What STS is asked by: the issuer with the role that this Target names, and a name for the cache.
pub fn wanted(aws: &AwsIamCredential, issuer: &TokenIssuer) -> (TokenCredential, TokenIssuer) {
    let mut issuer = issuer.clone();
    issuer.spec.values.insert("roleArn".to_owned(), aws.role_arn.clone());
    let token = TokenCredential {
        issuer: aws.issuer.clone(),
        // A name for people here: AWS's audience is the preset's.
        audience: aws.role_arn.clone(),
        scopes: Vec::new(),
        username: None,
    };
    (token, issuer)
}

/// The password of a user at an RDS or Aurora database. `now` in seconds since 1970.
///
/// # Errors
/// Where the keys lack a half.
pub fn password(
    aws: &AwsIamCredential,
    user: &str,
    address: &Address,
    keys: &Exchanged,
    now: i64,
) -> Result<Zeroizing<String>, Failure> {
    let [id, secret] = keys.more.as_slice() else {
        return Err(Failure::new(Class::Broken, "keys that are not whole"));
    };
    let request = Presigned {
        host: &format!("{}:{}", address.host.to_ascii_lowercase(), address.port),
        path: "/",
        query: &[("Action", "connect"), ("DBUser", user)],
        region: &aws.region,
        service: "rds-db",
        life: LIFE,
        body: NO_BODY,
    };
    let keys = Keys {
        id: id.expose_secret(),
        secret: secret.expose_secret(),
        session: Some(keys.expose()),
    };
    Ok(request.sign(&keys, now))
}

/// The keys themselves, for a Target whose requests are signed with them.
///
/// # Errors
/// Where they lack a half.
pub fn keys(aws: &AwsIamCredential, keys: &Exchanged) -> Result<LeaseMaterial, Failure> {
    let [id, secret] = keys.more.as_slice() else {
        return Err(Failure::new(Class::Broken, "keys that are not whole"));
    };
    Ok(LeaseMaterial::AwsKeys {
        access_key_id: id.expose_secret().to_owned(),
        secret_access_key: secret.expose_secret().to_owned(),
        session_token: keys.expose().to_owned(),
        region: aws.region.clone(),
    })
}

/// Temporary keys. No Debug: they are secret.
struct Keys<'a> {
    id: &'a str,
    secret: &'a str,
    session: Option<&'a str>,
}

/// A GET to be signed in its query.
struct Presigned<'a> {
    host: &'a str,
    path: &'a str,
    query: &'a [(&'a str, &'a str)],
    region: &'a str,
    service: &'a str,
    life: i64,
    /// SHA-256 of the body, or what the service wants in its place.
    body: &'a str,
}

impl Presigned<'_> {
    /// Host, path and signed query.
    fn sign(&self, keys: &Keys<'_>, now: i64) -> Zeroizing<String> {
        let (day, time) = stamps(now);
        let scope = format!("{day}/{}/{}/aws4_request", self.region, self.service);
        let (credential, life) = (format!("{}/{scope}", keys.id), self.life.to_string());
        let mut pairs = self.query.to_vec();
        pairs.extend([
            ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
            ("X-Amz-Credential", &credential),
            ("X-Amz-Date", &time),
            ("X-Amz-Expires", &life),
            ("X-Amz-SignedHeaders", "host"),
        ]);
        pairs.extend(keys.session.map(|session| ("X-Amz-Security-Token", session)));
        let mut pairs: Vec<_> = pairs
            .into_iter()
            .map(|(name, value)| format!("{}={}", url::encoded(name), url::encoded(value)))
            .collect();
        pairs.sort();
        let query = Zeroizing::new(pairs.join("&"));
        let canonical = Zeroizing::new(format!(
            "GET\n{}\n{}\nhost:{}\n\nhost\n{}",
            self.path, *query, self.host, self.body
        ));
        let hashed = hex(digest(&SHA256, canonical.as_bytes()).as_ref());
        let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{hashed}");
        let key = signing_key(keys.secret, &day, self.region, self.service);
        let signature = hex(mac(&key, &text).as_slice());
        let mut signed = Zeroizing::new(String::with_capacity(4096));
        let _ = write!(
            signed,
            "{}{}?{}&X-Amz-Signature={signature}",
            self.host, self.path, *query
        );
        signed
    }
}

fn mac(key: &[u8], text: &str) -> Zeroizing<Vec<u8>> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    Zeroizing::new(hmac::sign(&key, text.as_bytes()).as_ref().to_vec())
}

fn signing_key(secret: &str, day: &str, region: &str, service: &str) -> Zeroizing<Vec<u8>> {
    let mut key = Zeroizing::new(format!("AWS4{secret}").into_bytes());
    for part in [day, region, service, "aws4_request"] {
        key = mac(&key, part);
    }
    key
}

/// Day and time as AWS writes them: `20150830` and `20150830T123600Z`.
fn stamps(now: i64) -> (String, String) {
    let text = crate::clock::rfc3339(now.saturating_mul(1000));
    let whole = text.split('.').next().unwrap_or_default().trim_end_matches('Z');
    let plain: String = whole.chars().filter(|c| !matches!(c, '-' | ':')).collect();
    let day = plain.split('T').next().unwrap_or_default().to_owned();
    (day, format!("{plain}Z"))
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;

    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

    fn at(text: &str) -> i64 {
        crate::clock::parse_rfc3339(text).unwrap().div_euclid(1000)
    }

    /// Published by AWS: "Examples of how to derive a signing key", and the pre-signed request of S3's "Authenticating
    /// requests: using query parameters".
    #[test]
    fn requests_are_signed_as_aws_publishes_it() {
        let key = signing_key(
            "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
            "20150830",
            "us-east-1",
            "iam",
        );
        assert_eq!(
            hex(&key),
            "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9"
        );
        let request = Presigned {
            host: "examplebucket.s3.amazonaws.com",
            path: "/test.txt",
            query: &[],
            region: "us-east-1",
            service: "s3",
            life: 86_400,
            body: "UNSIGNED-PAYLOAD",
        };
        let keys = Keys {
            id: "AKIAIOSFODNN7EXAMPLE",
            secret: SECRET,
            session: None,
        };
        assert_eq!(
            *request.sign(&keys, at("2013-05-24T00:00:00Z")),
            "examplebucket.s3.amazonaws.com/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE\
             %2F20130524%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400\
             &X-Amz-SignedHeaders=host&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
        );
    }

    /// As another implementation, which Kong keeps for the same service, signs it; without a session token.
    #[test]
    fn a_login_at_a_database_is_signed_as_others_sign_it() {
        let request = Presigned {
            host: "test_database.test_cluster.us-east-1.rds.amazonaws.com:443",
            path: "/",
            query: &[("Action", "connect"), ("DBUser", "test_user")],
            region: "us-east-1",
            service: "rds-db",
            life: LIFE,
            body: NO_BODY,
        };
        let keys = Keys {
            id: "test_id",
            secret: "test_key",
            session: None,
        };
        let signed = request.sign(&keys, at("2022-11-04T06:26:11Z"));
        let signature = "ff72d46f1937c1f5917f69d694929ca814b781619b8d730451c7ffef050059b0";
        assert!(
            signed.ends_with(&format!("&X-Amz-Signature={signature}")),
            "{}",
            *signed
        );
    }

    #[test]
    fn what_is_signed_is_one_user_of_one_database_and_the_secret_is_not_in_it() {
        let aws: AwsIamCredential = serde_json::from_value(serde_json::json!({
            "issuer": "aws", "roleArn": "arn:aws:iam::123456789012:role/db", "region": "eu-central-1", "service": "Rds",
            "username": "support",
        }))
        .unwrap();
        let keys = |more: &[&str]| Exchanged {
            token: SecretString::from("session/token+1==".to_owned()),
            more: more.iter().map(|text| SecretString::from((*text).to_owned())).collect(),
            from_ms: 0,
            until_ms: 900_000,
            generation: 0,
            ending: None,
        };
        let address = |host: &str, port| Address {
            host: host.to_owned(),
            port,
        };
        let now = at("2026-11-29T12:00:00Z");
        let shop = address("Shop.eu-central-1.rds.amazonaws.com", 5432);
        let whole = keys(&["ASIAEXAMPLE", SECRET]);
        let signed = password(&aws, "support", &shop, &whole, now).unwrap();
        let begins = "shop.eu-central-1.rds.amazonaws.com:5432/?Action=connect&DBUser=support&X-Amz-Algorithm=";
        assert!(signed.starts_with(begins), "{}", *signed);
        assert!(signed.contains("&X-Amz-Expires=900&X-Amz-Security-Token=session%2Ftoken%2B1%3D%3D&"));
        assert!(!signed.contains("wJalr"), "the secret key is shown");
        let signature = |text: &str| text.rsplit('=').next().unwrap().to_owned();
        for other in [
            password(&aws, "admin", &shop, &whole, now),
            password(
                &aws,
                "support",
                &address("shop.eu-central-1.rds.amazonaws.com", 5433),
                &whole,
                now,
            ),
            password(&aws, "support", &shop, &keys(&["ASIAEXAMPLE", "another"]), now),
            password(&aws, "support", &shop, &whole, now + 1),
        ] {
            assert_ne!(signature(&other.unwrap()), signature(&signed));
        }
        for halves in [&[][..], &["ASIAEXAMPLE"][..]] {
            assert!(password(&aws, "support", &shop, &keys(halves), now).is_err());
        }
    }
}
