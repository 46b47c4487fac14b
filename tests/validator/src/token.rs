//! The judgement itself: signature first, then issuer, audience, time and subject.

use aws_lc_rs::signature::{UnparsedPublicKey, ECDSA_P256_SHA256_FIXED};
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine;
use serde_json::Value;

/// In the server's data folder.
const TRUST: &str = "sidegate_validator.json";

/// The token's subject, or why the token is no good.
pub fn judge(token: &str) -> Result<String, String> {
    let trust = std::fs::read(TRUST).map_err(|error| format!("{TRUST}: {error}"))?;
    let trust: Value = serde_json::from_slice(&trust).map_err(|error| format!("{TRUST}: {error}"))?;
    let claims = signed(token, &trust["jwks"])?;
    for (claim, expected) in [("iss", &trust["issuer"]), ("aud", &trust["audience"])] {
        if !expected.is_string() || claims[claim] != *expected {
            return Err(format!("{claim} is {}, not {expected}", claims[claim]));
        }
    }
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_err(|error| error.to_string())?
        .as_secs();
    // RFC 9068 wants `iat` and no `nbf`.
    match (
        claims["nbf"].as_u64().or(claims["iat"].as_u64()),
        claims["exp"].as_u64(),
    ) {
        (Some(from), Some(until)) if from <= now + 5 && now < until => {}
        times => return Err(format!("valid {times:?}, now {now}")),
    }
    let subject = claims["sub"].as_str().filter(|subject| !subject.is_empty());
    subject.map(str::to_owned).ok_or_else(|| "no subject".to_owned())
}

/// The claims, once a key of the set has signed them.
fn signed(token: &str, jwks: &Value) -> Result<Value, String> {
    let parts: Vec<&str> = token.split('.').collect();
    let [header, claims, signature] = parts[..] else {
        return Err("not three parts".to_owned());
    };
    let bytes = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|error| error.to_string());
    let json = |part: &str| serde_json::from_slice::<Value>(&bytes(part)?).map_err(|error| error.to_string());
    let header = json(header)?;
    if header["alg"] != "ES256" || header["typ"] != "at+jwt" {
        return Err(format!("not an access token signed with ES256: {header}"));
    }
    let mut keys = jwks["keys"].as_array().into_iter().flatten();
    let key = keys.find(|key| key["kid"] == header["kid"] && key["kid"].is_string() && key["crv"] == "P-256");
    let key = key.ok_or_else(|| format!("no key {}", header["kid"]))?;
    let coordinate = |name: &str| bytes(key[name].as_str().unwrap_or_default());
    let point = [vec![4], coordinate("x")?, coordinate("y")?].concat();
    let text = token.rsplit_once('.').map_or("", |(text, _)| text);
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
        .verify(text.as_bytes(), &bytes(signature)?)
        .map_err(|_| "the signature does not fit".to_owned())?;
    json(claims)
}
