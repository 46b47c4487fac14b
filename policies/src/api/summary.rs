//! What `kubectl get` shows of an object beyond single fields: short words for lists and unions, which no JSONPath can
//! say. The broker's leader writes them into `status.summary`.
//!
//! Works on what the server stored, so that an object that is not accepted has its words too. Refuses nothing; what is
//! not of the form it should be is left out. Invariant: a word is at most [`MAX`] characters long, and says how much it
//! leaves out.

use serde_json::{json, Map, Value};

/// Characters of one word at most.
pub const MAX: usize = 60;

/// The words of an object's `spec`, by the plural of its kind; none for kinds whose fields say everything.
pub fn of(plural: &str, spec: &Value) -> Option<Map<String, Value>> {
    let words = match plural {
        "targets" => json!({"address": address(spec), "credential": credential(spec)}),
        "accesspolicies" => json!({
            "targets": named(spec, "targetRefs", |reference| text(reference, "name")),
            "subjects": subjects(spec),
            "rules": rules(spec),
        }),
        "clusteraccesspolicies" => json!({
            "targets": floor(spec),
            "subjects": match spec.get("subjects") {
                None | Some(Value::Null) => "everyone".to_owned(),
                Some(_) => subjects(spec),
            },
            "rules": rules(spec),
        }),
        "lockdowns" => json!({"frozen": named(spec, "freeze", frozen)}),
        _ => return None,
    };
    match words {
        Value::Object(words) => Some(words),
        _ => None,
    }
}

fn text(value: &Value, field: &str) -> String {
    value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// `namespace/name` of a reference.
fn full(reference: &Value) -> String {
    format!("{}/{}", text(reference, "namespace"), text(reference, "name"))
}

fn address(spec: &Value) -> String {
    let address = spec.get("address").unwrap_or(&Value::Null);
    let port = address.get("port").and_then(Value::as_i64).unwrap_or_default();
    cut(format!("{}:{port}", text(address, "host")))
}

/// The one key of the union, and the name that matters with it.
fn credential(spec: &Value) -> String {
    let entry = spec
        .get("credential")
        .and_then(Value::as_object)
        .and_then(|all| all.iter().next());
    let Some((key, value)) = entry else {
        return String::new();
    };
    let name = match key.as_str() {
        "secret" => text(value, "name"),
        "token" => match text(value, "issuer").as_str() {
            "" => "sidegate".to_owned(),
            issuer => issuer.to_owned(),
        },
        "vault" | "sshCertificate" => format!("{}/{}", text(value, "issuer"), text(value, "role")),
        "awsIam" => text(value, "issuer"),
        _ => String::new(),
    };
    cut(format!("{key} {name}").trim_end().to_owned())
}

fn rules(spec: &Value) -> String {
    named(spec, "rules", |rule| text(rule, "name"))
}

fn floor(spec: &Value) -> String {
    let mut parts = all(spec, "targetRefs", full);
    if let Some(selector) = spec.get("targetSelector").filter(|selector| selector.is_object()) {
        parts.push(selected(selector));
    }
    match parts.is_empty() {
        true => "all".to_owned(),
        false => joined(&parts),
    }
}

fn subjects(spec: &Value) -> String {
    named(spec, "subjects", |subject| {
        let account = subject
            .get("serviceAccount")
            .filter(|account| account.is_object())
            .map(full);
        let labels = subject
            .get("podSelector")
            .filter(|labels| labels.is_object())
            .map(selected);
        match (account, labels) {
            (Some(account), Some(labels)) => format!("{account} ({labels})"),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => "any pod".to_owned(),
        }
    })
}

/// A label selector as `kubectl get -l` takes it.
fn selected(selector: &Value) -> String {
    let labels = selector
        .get("matchLabels")
        .and_then(Value::as_object)
        .into_iter()
        .flatten();
    let exact = labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
    let more = all(selector, "matchExpressions", |expression| {
        let (key, values) = (
            text(expression, "key"),
            all(expression, "values", |value| {
                value.as_str().unwrap_or_default().to_owned()
            }),
        );
        match text(expression, "operator").as_str() {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "DoesNotExist" => format!("!{key}"),
            _ => key,
        }
    });
    let parts: Vec<String> = exact.chain(more).collect();
    match parts.is_empty() {
        true => "any".to_owned(),
        false => parts.join(","),
    }
}

fn frozen(freeze: &Value) -> String {
    let entry = freeze.as_object().and_then(|all| all.iter().next());
    let Some((key, value)) = entry else {
        return String::new();
    };
    match (key.as_str(), value) {
        ("everything", _) => "everything".to_owned(),
        (key, Value::String(name)) => format!("{key} {name}"),
        (key, reference) => format!("{key} {}", full(reference)),
    }
}

fn all(value: &Value, field: &str, word: impl Fn(&Value) -> String) -> Vec<String> {
    let items = value.get(field).and_then(Value::as_array).into_iter().flatten();
    items.map(word).filter(|word| !word.is_empty()).collect()
}

fn named(spec: &Value, field: &str, word: impl Fn(&Value) -> String) -> String {
    joined(&all(spec, field, word))
}

/// As many as fit, and how many more there are.
fn joined(parts: &[String]) -> String {
    // Room for the count of what is left out.
    const ROOM: usize = MAX - 6;
    let mut said = String::new();
    for (at, part) in parts.iter().enumerate() {
        let comma = if at == 0 { "" } else { "," };
        let last = at.saturating_add(1) == parts.len();
        let most = if last { MAX } else { ROOM };
        if said
            .chars()
            .count()
            .saturating_add(part.chars().count())
            .saturating_add(1)
            > most
        {
            let left = parts.len().saturating_sub(at);
            return match at {
                0 if left == 1 => cut(part.clone()),
                0 => format!("{left} of them"),
                _ => format!("{said},+{left}"),
            };
        }
        said.push_str(comma);
        said.push_str(part);
    }
    said
}

fn cut(word: String) -> String {
    match word.chars().count() > MAX {
        true => word.chars().take(MAX.saturating_sub(1)).chain(['…']).collect(),
        false => word,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_unions_have_words() {
        let words = |plural: &str, spec: Value| Value::Object(of(plural, &spec).unwrap());
        let target = json!({
            "address": {"host": "orders-db.data.svc", "port": 5432},
            "credential": {"vault": {"issuer": "corp-vault", "mount": "database", "role": "support"}},
        });
        let said = json!({"address": "orders-db.data.svc:5432", "credential": "vault corp-vault/support"});
        assert_eq!(words("targets", target), said);
        for (credential, said) in [
            (json!({"secret": {"name": "db"}}), "secret db"),
            (json!({"token": {"audience": "a"}}), "token sidegate"),
            (json!({"awsIam": {"issuer": "aws"}}), "awsIam aws"),
            (json!({"none": {}}), "none"),
        ] {
            assert_eq!(words("targets", json!({"credential": credential}))["credential"], said);
        }
        let policy = json!({
            "targetRefs": [{"name": "orders-db"}, {"name": "users-db"}],
            "subjects": [
                {"serviceAccount": {"namespace": "agents", "name": "support"}, "podSelector": {"matchLabels": {"agent": "triage"}}},
                {"podSelector": {"matchExpressions": [{"key": "stage", "operator": "NotIn", "values": ["test"]}]}},
            ],
            "rules": [{"name": "read"}, {"name": "refunds"}],
        });
        let said = json!({
            "targets": "orders-db,users-db",
            "subjects": "agents/support (agent=triage),stage notin (test)",
            "rules": "read,refunds",
        });
        assert_eq!(words("accesspolicies", policy), said);
        let floor = words("clusteraccesspolicies", json!({"rules": [{"name": "no-ddl"}]}));
        assert_eq!(
            floor,
            json!({"targets": "all", "subjects": "everyone", "rules": "no-ddl"})
        );
        let some = json!({"targetRefs": [{"namespace": "data", "name": "x"}], "targetSelector": {"matchLabels": {"tier": "production"}}});
        assert_eq!(
            words("clusteraccesspolicies", some)["targets"],
            "data/x,tier=production"
        );
        let freeze = json!({"freeze": [{"target": {"namespace": "data", "name": "x"}}, {"namespace": "agents"}, {"everything": {}}]});
        assert_eq!(
            words("lockdowns", freeze)["frozen"],
            "target data/x,namespace agents,everything"
        );
        assert_eq!(of("tokenissuers", &json!({})), None);
    }

    #[test]
    fn a_word_is_short_and_says_what_it_leaves_out() {
        let rules: Vec<Value> = (0..40)
            .map(|number| json!({"name": format!("rule-{number}")}))
            .collect();
        let said = of("accesspolicies", &json!({"rules": rules})).unwrap();
        let said = said["rules"].as_str().unwrap();
        assert!(said.starts_with("rule-0,rule-1,") && said.ends_with(",+33"), "{said}");
        assert!(said.chars().count() <= MAX);
        let long = json!({"rules": [{"name": "x".repeat(80)}]});
        assert_eq!(
            of("accesspolicies", &long).unwrap()["rules"]
                .as_str()
                .unwrap()
                .chars()
                .count(),
            MAX
        );
        let both = json!({"rules": [{"name": "x".repeat(80)}, {"name": "y"}]});
        assert_eq!(of("accesspolicies", &both).unwrap()["rules"], "2 of them");
        let exact = json!({"rules": [{"name": "x".repeat(29)}, {"name": "y".repeat(29)}]});
        assert_eq!(
            of("accesspolicies", &exact).unwrap()["rules"].as_str().unwrap().len(),
            59
        );
    }
}
