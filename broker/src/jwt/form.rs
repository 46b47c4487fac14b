//! The form of a compact JWS, before anything is believed: three base64url segments, two JSON objects.
//!
//! Refuses size, padding, repeated members at any depth (also when spelled with escapes), and deep nesting.
//! The invariant: what leaves here says the same thing to every JSON parser.

use std::fmt;

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::Refused;

/// Longest token read.
pub const MAX_TOKEN: usize = 16 * 1024;
/// Deepest nesting read.
const MAX_DEPTH: u8 = 8;

/// A token taken apart; nothing in it is verified.
#[derive(Debug)]
pub struct Parts<'a> {
    /// Header members.
    pub header: Map<String, Value>,
    /// Claims.
    pub claims: Map<String, Value>,
    /// The signed text: header and claims as sent.
    pub message: &'a str,
    /// The signature as sent, base64url.
    pub signature: &'a str,
}

/// Step 1: takes a token apart.
pub fn split(token: &[u8]) -> Result<Parts<'_>, Refused> {
    if token.len() > MAX_TOKEN {
        return Err(Refused::TooLong);
    }
    let text = std::str::from_utf8(token).map_err(|_| Refused::NotThreeSegments)?;
    let (message, signature) = text.rsplit_once('.').ok_or(Refused::NotThreeSegments)?;
    let (header, claims) = message.split_once('.').ok_or(Refused::NotThreeSegments)?;
    if claims.contains('.') {
        return Err(Refused::NotThreeSegments);
    }
    URL_SAFE_NO_PAD.decode(signature).map_err(|_| Refused::NotBase64Url)?;
    Ok(Parts {
        header: object(header)?,
        claims: object(claims)?,
        message,
        signature,
    })
}

fn object(segment: &str) -> Result<Map<String, Value>, Refused> {
    let bytes = URL_SAFE_NO_PAD.decode(segment).map_err(|_| Refused::NotBase64Url)?;
    match strict(&bytes)? {
        Value::Object(map) => Ok(map),
        _ => Err(Refused::NotAnObject),
    }
}

/// Reads JSON strictly.
pub fn strict(bytes: &[u8]) -> Result<Value, Refused> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Strict(MAX_DEPTH)
        .deserialize(&mut reader)
        .map_err(|_| Refused::NotStrictJson)?;
    reader.end().map_err(|_| Refused::NotStrictJson)?;
    Ok(value)
}

/// Reads a value with so many levels left.
struct Strict(u8);

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without repeated members")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let depth = self.0.checked_sub(1).ok_or_else(|| A::Error::custom("too deep"))?;
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(Strict(depth))? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let depth = self.0.checked_sub(1).ok_or_else(|| A::Error::custom("too deep"))?;
        let mut members = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if members.contains_key(&key) {
                return Err(A::Error::custom("repeated member"));
            }
            members.insert(key, map.next_value_seed(Strict(depth))?);
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token(header: &str, claims: &str) -> String {
        let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.{}", encode(header), encode(claims), encode("signature"))
    }

    #[test]
    fn repeated_members_are_refused_at_any_depth_and_in_any_spelling() {
        for claims in [
            r#"{"a":1,"a":2}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"cnf":{"jkt":"x","jkt":"y"}}"#,
            r#"{"list":[{"a":1,"a":1}]}"#,
        ] {
            assert_eq!(
                split(token("{}", claims).as_bytes()).unwrap_err(),
                Refused::NotStrictJson
            );
        }
    }

    #[test]
    fn nesting_deeper_than_eight_is_refused() {
        let nested = |levels: usize| format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels));
        assert!(split(token("{}", &nested(8)).as_bytes()).is_ok());
        assert_eq!(
            split(token("{}", &nested(9)).as_bytes()).unwrap_err(),
            Refused::NotStrictJson
        );
    }

    #[test]
    fn anything_but_three_strict_segments_is_refused() {
        let good = token("{}", "{}");
        assert!(split(good.as_bytes()).is_ok());
        for bad in [
            String::new(),
            "..".to_owned(),
            good.replace('.', ""),
            format!("{good}.x"),
            format!("{good}="),
            format!("{good}\n"),
            format!(" {good}"),
            good.replace("e30", "e30="),
            token("[]", "{}"),
            token("{}", "7"),
            token("{} ", "{}{}"),
            "x".repeat(MAX_TOKEN + 1),
        ] {
            assert!(split(bad.as_bytes()).is_err(), "{bad:.40}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = split(&bytes);
            let _ = strict(&bytes);
        }

        #[test]
        fn one_changed_byte_never_panics_and_never_changes_what_others_read(at in 0usize..60, byte in any::<u8>()) {
            let mut bytes = token(r#"{"alg":"ES256"}"#, r#"{"iss":"a","exp":1,"cnf":{"jkt":"x"}}"#).into_bytes();
            let at = at.checked_rem(bytes.len()).unwrap();
            bytes[at] = byte;
            if let Ok(parts) = split(&bytes) {
                let again = serde_json::to_vec(&parts.claims).unwrap();
                prop_assert_eq!(strict(&again).unwrap(), Value::Object(parts.claims));
            }
        }
    }
}
