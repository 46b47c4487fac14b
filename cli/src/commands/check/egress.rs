//! What the status of an InjectionProfile says of NetworkPolicies: listed as it stands there.
//!
//! Works out nothing by itself, for only the injector knows by which name servers and which broker. Refuses to pass an old
//! word for a new one: of another generation it is unknown. Invariant: whatever is listed is said to be made by nobody.

use serde_json::Value;

use super::Finding;
use crate::commands::seen::{list, text};

/// Findings about the profiles that ask for it; none where no profile does.
pub fn findings(profiles: &[Value], home: &str) -> Vec<Finding> {
    let asking = profiles
        .iter()
        .filter(|profile| !matches!(text(profile, "/spec/networkPolicy"), "" | "Off"));
    asking.flat_map(|profile| of(profile, home)).collect()
}

fn of(profile: &Value, home: &str) -> Vec<Finding> {
    let name = text(profile, "/metadata/name");
    let what = format!("network policies of profile {name}");
    let told = profile.pointer("/status/networkPolicy");
    let told = told.filter(|told| told.get("observedGeneration") == profile.pointer("/metadata/generation"));
    let Some(told) = told else {
        return vec![Finding::unknown(
            &what,
            "the injector has not said yet what they would be",
            format!("kubectl -n {home} logs deployment/sidegate-injector"),
        )];
    };
    let common = told.get("common").unwrap_or(&Value::Null);
    let selects = text(told, "/selects");
    let mut findings = vec![finding(
        &what,
        &format!("none is made (Audit); for pods {selects}, everywhere"),
        common,
    )];
    for namespace in list(told, "/namespaces") {
        let what = format!("{what} in namespace {}", text(namespace, "/name"));
        findings.push(finding(&what, "none is made (Audit); besides", namespace));
    }
    if let Some(omitted) = told
        .get("omitted")
        .and_then(Value::as_u64)
        .filter(|omitted| *omitted > 0)
    {
        let said = format!("{omitted} more namespace(s) of it are not listed: it would be too long");
        findings.push(Finding::unknown(&what, said, ""));
    }
    findings
}

fn finding(what: &str, said: &str, egress: &Value) -> Finding {
    let lines = |path: &str| -> Vec<&str> { list(egress, path).filter_map(Value::as_str).collect() };
    let (out, unsure, cut_off) = (lines("/egress"), lines("/unsure"), lines("/cutOff"));
    let mut said = match out.is_empty() {
        true => format!("{said}: nothing would be let out"),
        false => format!("{said}, would be let out: {}", out.join("; ")),
    };
    for (head, lines) in [("unsure", &unsure), ("WOULD BE CUT OFF", &cut_off)] {
        if !lines.is_empty() {
            said.push_str(&format!(". {head}: {}", lines.join("; ")));
        }
    }
    match (cut_off.is_empty(), unsure.is_empty()) {
        (false, _) => Finding::warn(what, said, "a policy of your own must let these out (docs/tiers.md)"),
        (true, false) => Finding::unknown(
            what,
            said,
            "look at these before you write such a policy (docs/tiers.md)",
        ),
        (true, true) => Finding::good(what, said),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::commands::check::Verdict;

    fn profile(mode: &str, observed: i64) -> Value {
        json!({
            "metadata": {"name": "default", "generation": 3},
            "spec": {"networkPolicy": mode},
            "status": {"networkPolicy": {
                "mode": "Audit", "observedGeneration": observed, "selects": "sidegate.dev/injected-by=default", "omitted": 2,
                "common": {"egress": ["TCP 8443 to pods of namespace home: broker"], "unsure": ["an address"]},
                "namespaces": [
                    {"name": "plain", "egress": ["TCP 5432 to 10.1.2.3/32: Target data/shop"]},
                    {"name": "named", "unsure": ["Target data/near"], "cutOff": ["Target data/far (db.example:5432): no host names"]},
                ],
            }},
        })
    }

    #[test]
    fn what_would_be_cut_off_is_a_warning_and_what_is_not_known_is_unknown() {
        let found = findings(&[profile("Audit", 3)], "home");
        let verdicts: Vec<Verdict> = found.iter().map(|finding| finding.verdict).collect();
        let wanted = [Verdict::Unknown, Verdict::Good, Verdict::Warn, Verdict::Unknown];
        assert_eq!(verdicts, wanted, "{found:?}");
        assert!(
            found
                .iter()
                .take(3)
                .all(|finding| finding.said.starts_with("none is made (Audit)")),
            "{found:?}"
        );
        let named = found.get(2).unwrap();
        assert!(named.what.ends_with("in namespace named"), "{named:?}");
        assert!(named.said.contains("WOULD BE CUT OFF: Target data/far"), "{named:?}");
    }

    #[test]
    fn an_older_word_is_no_word_and_who_does_not_ask_is_told_nothing() {
        let found = findings(&[profile("Audit", 2)], "home");
        assert_eq!(found.len(), 1);
        assert_eq!(found.first().unwrap().verdict, Verdict::Unknown);
        assert!(findings(&[profile("Off", 3), json!({"spec": {}})], "home").is_empty());
    }
}
