//! Host aliases of pods: which addresses are ours, and whether a name leads to two places.
//!
//! Refuses a name that an alias of ours leads to its Target and another alias leads elsewhere: which of both a client takes
//! is its resolver's choice. Invariant: every spelling of an address of ours that the server takes is known as one.

use serde_json::Value;

use super::rules::Wrong;
use super::shape::{list, text};

/// The first two parts of every address of ours: 127.71.0.0/16, which is loopback and commonly nobody's.
pub const OURS: [u8; 2] = [127, 71];

/// Whether a host alias is one of ours: its address is.
pub fn is_ours(alias: &Value) -> bool {
    // Older servers take leading zeros, and an IPv4 address in an IPv6 one.
    let plain = text(alias, "ip").rsplit(':').next().unwrap_or_default();
    let parts = plain.split('.').map(|part| part.trim_start_matches('0'));
    parts.take(OURS.len()).eq(OURS.map(|part| part.to_string()))
}

/// The names of an alias.
pub fn names(alias: &Value) -> impl Iterator<Item = &str> {
    list(alias, "hostnames").filter_map(Value::as_str)
}

/// Whether no name of ours stands in an alias of somebody else.
pub(super) fn judge(spec: &Value) -> Result<(), Wrong> {
    let ours =
        |name: &str| list(spec, "hostAliases").any(|alias| is_ours(alias) && names(alias).any(|own| own == name));
    for alias in list(spec, "hostAliases").filter(|alias| !is_ours(alias)) {
        if let Some(name) = names(alias).find(|name| ours(name)) {
            return Err(Wrong {
                rule: "hostAliases",
                message: format!(
                    "{name} leads to the sidecar and, by another of the pod's hostAliases, to {}; remove it there",
                    text(alias, "ip")
                ),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_spelling_of_an_address_of_ours_is_known() {
        for (ip, ours) in [
            ("127.71.0.1", true),
            ("127.71.255.255", true),
            ("127.071.3.4", true),
            ("0127.71.3.4", true),
            ("::ffff:127.71.3.4", true),
            ("127.0.0.1", false),
            ("127.7.1.1", false),
            ("127.710.1.1", false),
            ("10.127.71.1", false),
            ("::1", false),
            ("", false),
        ] {
            assert_eq!(is_ours(&json!({"ip": ip})), ours, "{ip}");
        }
    }

    #[test]
    fn a_name_of_ours_leads_nowhere_else() {
        let ours = json!({"ip": "127.71.3.4", "hostnames": ["db.data", "db"]});
        let judged = |other: Value| judge(&json!({"hostAliases": [other, ours]})).map_err(|wrong| wrong.rule);
        assert_eq!(
            judged(json!({"ip": "10.1.2.3", "hostnames": ["x", "db"]})),
            Err("hostAliases")
        );
        assert_eq!(
            judged(json!({"ip": "10.1.2.3", "hostnames": ["x", "db.other"]})),
            Ok(())
        );
        // Two Targets of one host share their address; others are made anew.
        assert_eq!(judged(json!({"ip": "127.71.9.9", "hostnames": ["db"]})), Ok(()));
        assert_eq!(judged(json!({"ip": "10.1.2.3"})), Ok(()));
    }
}
