//! What presets promise: every file is read, and one that could not be filled in safely is refused.

use super::*;

#[test]
fn every_file_is_a_preset_and_every_preset_a_file() {
    for (name, text) in FILES {
        Preset::read(name, text).unwrap_or_else(|why| panic!("{name}: {why}"));
    }
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/presets");
    let files = std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
    let files = files
        .filter(|path| path.extension().is_some_and(|end| end == "yaml"))
        .count();
    assert_eq!((all().len(), files), (FILES.len(), FILES.len()));
}

const GOOD: &str = r#"
about: x
values: {tenant: Required}
steps:
- post: "{issuerOrigin}/{tenant}/token"
  encoding: Form
  fields: {grant_type: x, client_assertion: "{assertion}", scope: "{scope?}"}
  assertion: {audience: "{issuer}", life: 60s}
  reply: {token: /access_token}
"#;

#[test]
fn what_could_not_be_filled_in_safely_is_refused() {
    Preset::read("X", GOOD).unwrap();
    for (from, to, says) in [
        (
            "grant_type: x",
            "grant_type: 'x-{scope}'",
            "a placeholder is a whole value",
        ),
        ("grant_type: x", "grant_type: '{secret}'", "no such placeholder"),
        ("grant_type: x", "grant_type: '{}'", "is no placeholder"),
        ("grant_type: x", "grant_type: '{previous}'", "in the first step"),
        (
            "encoding: Form",
            "encoding: Form\n  previousIn: x-vault-token",
            "in a later step",
        ),
        ("encoding: Form", "encoding: Form\n  previousIn: cookie", "is not known"),
        ("{tenant}/token", "token", "no step asks for it"),
        ("{tenant}/token", "x{tenant}/token", "a whole segment"),
        ("{tenant}/token", "{tenant}x/token", "a whole segment"),
        (
            "{tenant}/token",
            "{audience}/{tenant}/token",
            "no URL somebody configured",
        ),
        ("{issuerOrigin}/", "https://evil.example/", "a URL begins with"),
        (
            "{issuerOrigin}/",
            "{issuerOrigin}.evil.example/",
            "no URL somebody configured",
        ),
        ("{tenant}/token", "{tenant}/token?x=y", "no part of a path"),
        ("{scope?}", "{scope}", "`?` stands where"),
        ("'{issuer}'", "'{issuer?}'", "`?` stands where"),
        ("{issuerOrigin}/{tenant}/token", "{tenant}", "is no endpoint"),
        ("life: 60s", "life: 6m", "at most 5m"),
        (
            "audience: '{issuer}'",
            "audience: '{assertion}'",
            "what the TokenIssuer says",
        ),
        (
            "audience: '{issuer}'",
            "audience: '{audience}'",
            "what the TokenIssuer says",
        ),
        ("token: /access_token", "token: access_token", "no JSON pointer"),
        ("encoding: Form", "encoding: Xml", "Form"),
        ("encoding: Form", "encoding: Form\n  secret: x", "no such field"),
        (
            "life: 60s}\n",
            "life: 60s}\n  login: {by: Basic, id: '{issuer}'}\n",
            "an id of the values",
        ),
        (
            "life: 60s}\n",
            "life: 60s}\n  login: {by: Post, id: '{tenant}', instead: [client_id]}\n",
            "fields that are there",
        ),
        (
            "  assertion: {audience: \"{issuer}\", life: 60s}\n",
            "",
            "without an assertion",
        ),
    ] {
        let good = GOOD.replace("audience: \"{issuer}\"", "audience: '{issuer}'");
        let wrong = good.replace(&from.replace("audience: \"{issuer}\"", "audience: '{issuer}'"), to);
        assert_ne!(wrong, good, "{from}");
        let why = Preset::read("X", &wrong).err().unwrap_or_default();
        assert!(why.contains(says), "{to}: {why}");
    }
    let step = GOOD.split_once("steps:\n").unwrap().1;
    assert!(Preset::read("X", &format!("{GOOD}{step}{step}")).is_ok());
    assert!(Preset::read("X", &format!("{GOOD}{step}{step}{step}")).is_err());
}

#[test]
fn a_segment_cannot_leave_its_place() {
    let preset = Preset::read("X", GOOD).unwrap();
    let url = |tenant: &str| {
        let values = [("tenant".to_owned(), tenant.to_owned())].into();
        preset.steps[0]
            .post
            .url("https://login.example:8443/some/path", &values)
    };
    assert_eq!(url("a").unwrap(), "https://login.example:8443/a/token");
    assert_eq!(
        url("a/b?c#d e").unwrap(),
        "https://login.example:8443/a%2Fb%3Fc%23d%20e/token"
    );
    assert_eq!((url(".."), url("."), url("")), (None, None, None));
}
