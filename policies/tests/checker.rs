//! What the checker promises: everything that could not work is a problem with its field, before anything starts.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::path::Path;

use sidegate_policies::check::{check, hostnames, Checked};
use sidegate_policies::yaml::{load, Source};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn checked(text: &str) -> Checked {
    let loaded = load(&[Source {
        name: "a.yaml".to_owned(),
        text: text.to_owned(),
    }]);
    assert_eq!(loaded.problems, [], "{text}");
    check(&loaded.objects)
}

fn target(spec: &str) -> String {
    format!(
        "apiVersion: sidegate.dev/v1alpha1\nkind: Target\nmetadata: {{name: shop, namespace: data}}\nspec:\n  {}\n",
        spec.replace('\n', "\n  ")
    )
}

const POSTGRES: &str = "protocol: Postgres
address: {host: db.data.svc, port: 5432}
credential: {secret: {name: shop-agent}}
listen: {port: 15432}";

const TCP: &str = "protocol: TCP
address: {host: 10.1.2.3, port: 9000}
credential: {none: {}}
listen: {port: 15432}";

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: sidegate.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: p, namespace: data}}\nspec:\n  \
         targetRefs: [{{name: shop}}]\n  subjects: [{{serviceAccount: {{namespace: data, name: bot}}}}]\n  {}\n",
        spec.replace('\n', "\n  ")
    )
}

/// The text has exactly one problem, and it is about this field.
#[track_caller]
fn one(text: &str, field: &str) {
    let problems = checked(text).problems;
    let fields: Vec<_> = problems.iter().map(|problem| problem.field.as_str()).collect();
    assert_eq!(fields, [field], "{problems:#?}\n{text}");
    assert!(problems[0].line.is_some() && problems[0].file.as_deref() == Some("a.yaml"));
}

#[track_caller]
fn changed(base: &str, from: &str, to: &str, field: &str) {
    assert!(base.contains(from), "{from}");
    one(&target(&base.replace(from, to)), field);
}

#[test]
fn good_targets_have_no_problems() {
    assert_eq!(checked(&target(POSTGRES)).problems, []);
    assert_eq!(checked(&target(TCP)).problems, []);
}

#[test]
fn places_that_cannot_be_are_refused() {
    changed(POSTGRES, "5432}\ncred", "0}\ncred", "spec.address.port");
    changed(POSTGRES, "15432", "65536", "spec.listen.port");
    changed(POSTGRES, "db.data.svc", "0177.0.0.1", "spec.address.host");
    changed(POSTGRES, "db.data.svc", "'127.1'", "spec.address.host");
    changed(POSTGRES, "db.data.svc", "169.254.169.254", "spec.address.host");
}

#[test]
fn names_that_no_hosts_file_may_lead_to_a_sidecar_are_refused() {
    let named = |names: &str| target(&POSTGRES.replace("15432}", &format!("15432, hostnames: [{names}]}}")));
    for wrong in hostnames::WRONG {
        one(&named(&format!("db.data.svc, '{wrong}'")), "spec.listen.hostnames[1]");
    }
    one(&named("db.data, db, db.data"), "spec.listen.hostnames[2]");
    let many = |count: usize| (0..count).map(|at| format!("db-{at}, ")).collect::<String>();
    one(&named(&many(hostnames::MAX + 1)), "spec.listen.hostnames");
    let right = checked(&named(&format!("{}kubernetes.example, localhost.example", many(14))));
    assert_eq!(right.problems, []);
    // The checker of one machine says that there they mean nothing.
    let fields: Vec<_> = right.warnings.iter().map(|warning| warning.field.as_str()).collect();
    assert_eq!(fields, ["spec.listen.hostnames"]);
}

#[test]
fn logins_that_cannot_work_are_refused() {
    let token = POSTGRES.replace("secret: {name: shop-agent}", "token: {audience: a, username: u}");
    assert_eq!(checked(&target(&token)).problems, []);
    changed(
        &token,
        "protocol: Postgres",
        "protocol: Postgres\ntls: {mode: Disabled}",
        "spec.credential.token",
    );
    changed(&token, ", username: u", "", "spec.credential.token.username");
    changed(
        &token,
        "audience: a",
        "audience: a, issuer: Corp",
        "spec.credential.token.issuer",
    );
    changed(
        &token,
        "audience: a",
        "audience: a, scopes: [read, 'a b']",
        "spec.credential.token.scopes[1]",
    );
    let bare = "protocol: Postgres\ntls: {mode: Disabled}";
    changed(
        POSTGRES,
        "protocol: Postgres",
        &format!("{bare}\nweakLogin: InsideTLS"),
        "spec.weakLogin",
    );
    changed(
        POSTGRES,
        "name: shop-agent",
        "name: shop-agent, passwordKey: ../x",
        "spec.credential.secret.passwordKey",
    );
    changed(
        POSTGRES,
        "secret: {name: shop-agent}",
        "none: {}",
        "spec.credential.none.username",
    );
    changed(
        POSTGRES,
        "protocol: Postgres",
        "protocol: Postgres\ncarries: [TLS]",
        "spec.carries",
    );
    changed(
        POSTGRES,
        "protocol: Postgres",
        "protocol: Postgres\ndatabases: [a, a]",
        "spec.databases[1]",
    );
}

#[test]
fn raw_streams_take_no_login_statements_or_masks() {
    changed(TCP, "none: {}", "secret: {name: x}", "spec.credential");
    changed(TCP, "protocol: TCP", "protocol: TCP\ndatabases: [a]", "spec.databases");
    let with = |spec: &str| format!("{}---\n{}", target(TCP), policy(spec));
    assert_eq!(checked(&with("rules: [{name: a, effect: Allow}]")).problems, []);
    let ask = "rules: [{name: a, effect: Ask, ask: {approvers: [{user: a}]}}]";
    assert_eq!(
        checked(&with(ask)).problems,
        [],
        "a raw stream may be held when it opens"
    );
    one(
        &with("rules: [{name: a, effect: Allow, sql: {commands: [Select]}}]"),
        "spec.rules[0].sql",
    );
    one(&with("masks: [{detect: [Email], as: {redact: {}}}]"), "spec.masks");
    one(&with("limits: {rows: 5}"), "spec.limits.rows");
}

#[test]
fn targets_that_cannot_live_together_are_refused() {
    let other = target(POSTGRES).replace("name: shop,", "name: other,");
    one(&format!("{}---\n{other}", target(POSTGRES)), "spec.listen.port");
    let env = |value: &str| format!("{POSTGRES}\nenv: [{{name: PGHOST, value: \"{value}\"}}]");
    let second = target(&env("b"))
        .replace("name: shop,", "name: other,")
        .replace("15432", "15433");
    one(&format!("{}---\n{second}", target(&env("a"))), "spec.env[0].value");
    let same = second.replace("value: \"b\"", "value: \"a\"");
    assert_eq!(checked(&format!("{}---\n{same}", target(&env("a")))).problems, []);
}

#[test]
fn variables_are_checked() {
    let env = |entry: &str| target(&format!("{POSTGRES}\nenv: [{entry}]"));
    one(&env("{name: 1A, value: x}"), "spec.env[0].name");
    one(&env("{name: SIDEGATE_X, value: x}"), "spec.env[0].name");
    one(&env("{name: A, value: $(B)}"), "spec.env[0].value");
    one(&env("{name: A, value: x}, {name: A, value: y}"), "spec.env[1].name");
}

#[test]
fn lockdowns_are_readable() {
    let lockdown = |spec: &str| {
        format!("apiVersion: sidegate.dev/v1alpha1\nkind: Lockdown\nmetadata: {{name: l}}\nspec: {{{spec}}}\n")
    };
    one(&lockdown("reason: r, freeze: []"), "spec.freeze");
    one(
        &lockdown("reason: r, until: tomorrow, freeze: [{everything: {}}]"),
        "spec.until",
    );
    one(&lockdown("reason: '', freeze: [{everything: {}}]"), "spec.reason");
}

#[test]
fn what_may_still_come_is_a_warning() {
    let lonely = checked(&policy("rules: [{name: a, effect: Deny}]"));
    assert_eq!(lonely.problems, []);
    assert_eq!(lonely.warnings[0].field, "spec.targetRefs[0].name");
    let ca = "protocol: Postgres\ntls: {caBundle: {configMap: {name: ca, key: ca.crt}}}";
    let missing = checked(&target(&POSTGRES.replace("protocol: Postgres", ca)));
    assert_eq!((missing.problems.len(), missing.warnings.len()), (0, 1));
    let foreign =
        policy("rules: [{name: a, effect: Deny}]").replace("namespace: data, name: bot", "namespace: x, name: bot");
    let foreign = checked(&format!("{}---\n{foreign}", target(POSTGRES)));
    assert_eq!(foreign.warnings[0].field, "spec.subjects[0].serviceAccount.namespace");
}

#[test]
fn nothing_the_design_names_is_ignored() {
    let loaded = |text: &str| {
        let source = Source {
            name: "a.yaml".into(),
            text: text.to_owned(),
        };
        load(&[source]).problems
    };
    for (text, field) in [
        (target(&POSTGRES.replace("Postgres", "MySQL")), "spec.protocol"),
        (
            target(&POSTGRES.replace("protocol: Postgres", "protocol: Postgres\nopenapi: x")),
            "spec.openapi",
        ),
        (
            target(&format!("{POSTGRES}\nrecording: {{durability: Synced}}")),
            "spec.recording.durability",
        ),
        (policy("rows: [{table: a.b, where: x}]"), "spec.rows"),
        (
            policy("masks: [{columns: [a.b.c], as: {redact: {}}, at: Read}]"),
            "spec.masks[0].at",
        ),
        (
            policy("rules: [{name: a, effect: Allow, http: {methods: [GET]}}]"),
            "spec.rules[0].http",
        ),
        (
            policy("rules: [{name: a, effect: Ask, ask: {approvers: [{user: a}], grant: {shape: {maxUses: 2}}}}]"),
            "spec.rules[0].ask.grant",
        ),
        (profile("  tier: Separate\n"), "spec.tier"),
        (token_issuer("users: {}"), "spec.users"),
    ] {
        let problems = loaded(&text);
        assert_eq!(problems.len(), 1, "{problems:#?}");
        assert_eq!(problems[0].field, field);
        assert!(problems[0].message.starts_with("not built yet: "), "{}", problems[0]);
    }
    let floor = "apiVersion: sidegate.dev/v1alpha1\nkind: ClusterAccessPolicy\nmetadata: {name: c}\nspec: {rows: []}\n";
    assert!(loaded(floor)[0].message.starts_with("not built yet"));
}

/// An InjectionProfile with some more in its specification.
fn profile(more: &str) -> String {
    format!(
        "apiVersion: sidegate.dev/v1alpha1\nkind: InjectionProfile\nmetadata: {{name: default}}\nspec:\n  image: \
         {{repository: registry.example/sidecar, digest: \"sha256:{}\"}}\n{more}",
        "a".repeat(64)
    )
}

#[test]
fn a_profile_is_read_with_its_defaults() {
    let found = check_one(&profile(""));
    assert_eq!(found, Vec::<(String, String)>::new());
    let loaded = load(&[Source {
        name: "p.yaml".to_owned(),
        text: profile("  resources: {requests: {cpu: 100m}}\n"),
    }]);
    let spec = &loaded.objects.injection_profiles[0].object.spec;
    assert_eq!(spec.resources.requests.cpu.to_string(), "100m");
    assert_eq!(
        spec.resources.requests.memory.to_string(),
        "32Mi",
        "one field keeps the others"
    );
    assert_eq!(spec.run_as.uid, 61_937);
}

#[test]
fn a_profile_cannot_ask_for_a_fence_with_a_gap() {
    let enforced = |more: &str| check_one(&profile(&format!("  tier: Enforced\n{more}")));
    let good = "  fence: {allowUids: [1337, 2102]}\n  shapes: {windows: Deny}\n";
    assert_eq!(enforced(good), Vec::<(String, String)>::new());
    for (more, field) in [
        ("  shapes: {privileged: Warn}\n", "spec.shapes.privileged"),
        ("  shapes: {hostPath: Warn}\n", "spec.shapes.hostPath"),
        ("  agents: {dropNetRaw: false}\n", "spec.agents.dropNetRaw"),
        ("  runAs: {uid: 65533}\n", "spec.runAs.uid"),
        ("  fence: {allowUids: [0]}\n", "spec.fence.allowUids[0]"),
        ("  fence: {allowUids: [1337, 65533]}\n", "spec.fence.allowUids[1]"),
        ("  fence: {allowUids: [61938]}\n", "spec.fence.allowUids[0]"),
        ("  fence: {allowUids: [1337, 1337]}\n", "spec.fence.allowUids[1]"),
    ] {
        let found = enforced(more);
        assert!(found.iter().any(|(at, _)| at == field), "{more}: {found:?}");
    }
    let found = check_one(&profile("  fence: {allowUids: [1337]}\n"));
    assert_eq!(found.len(), 1, "{found:?}");
    let found = check_one(&profile("  tier: Separate\n"));
    assert!(
        found.iter().any(|(_, message)| message.contains("not built yet")),
        "{found:?}"
    );
}

#[test]
fn each_thing_wrong_with_a_profile_is_named_by_its_field() {
    for (more, field) in [
        ("  runAs: {uid: 65532}\n", "spec.runAs.uid"),
        ("  runAs: {uid: 0}\n", "spec.runAs.uid"),
        ("  runAs: {alternateUid: 61937}\n", "spec.runAs.alternateUid"),
        ("  resources: {limits: {memory: 8Mi}}\n", "spec.resources.limits.memory"),
        (
            "  resources: {requests: {memory: 1Gi}}\n",
            "spec.resources.requests.memory",
        ),
        (
            "  resources: {guaranteed: {cpu: 25m}}\n",
            "spec.resources.guaranteed.cpu",
        ),
        ("  resources: {requests: {cpu: some}}\n", "spec.resources.requests.cpu"),
        ("  resources: {limits: {cpu: 25m}}\n", "spec.resources.limits.cpu"),
        (
            "  resources: {requests: {cpu: 2}, limits: {cpu: 1}}\n",
            "spec.resources.requests.cpu",
        ),
        ("  journal: {sizeLimit: 1Mi}\n", "spec.journal.sizeLimit"),
        ("  staleness: Lax\n", "spec.staleness"),
        ("  onBrokerUnavailable: Start\n", "spec.onBrokerUnavailable"),
        ("  allowAnnotations: [image]\n", "spec.allowAnnotations[0]"),
        (
            "  agents: {exemptContainers: [{name: proxy, imagePrefix: proxy}]}\n",
            "spec.agents.exemptContainers[0].imagePrefix",
        ),
        (
            "  agents: {exemptContainers: [{name: sidegate, imagePrefix: a/b}]}\n",
            "spec.agents.exemptContainers[0].name",
        ),
    ] {
        let found = check_one(&profile(more));
        assert!(found.iter().any(|(at, _)| at == field), "{more}: {found:?}");
    }
    let tagged = profile("").replace("sidecar,", "sidecar:v1,");
    assert_eq!(check_one(&tagged)[0].0, "spec.image.repository");
    let loose = profile("").replace("sha256:", "");
    assert_eq!(check_one(&loose)[0].0, "spec.image.digest");
}

/// Field and message of every problem with one document.
fn check_one(text: &str) -> Vec<(String, String)> {
    let loaded = load(&[Source {
        name: "p.yaml".to_owned(),
        text: text.to_owned(),
    }]);
    let checked = check(&loaded.objects);
    let all = loaded.problems.into_iter().chain(checked.problems);
    all.map(|problem| (problem.field, problem.message)).collect()
}

fn token_issuer(more: &str) -> String {
    format!(
        "apiVersion: sidegate.dev/v1alpha1\nkind: TokenIssuer\nmetadata: {{name: corp}}\nspec:\n  preset: Keycloak\n  \
         issuer: https://sso.example/realms/corp\n  allowedNamespaces: {{selector: {{matchLabels: {{team: a}}}}}}\n  {more}\n"
    )
}

#[test]
fn token_issuers_that_could_only_fail_at_an_exchange_are_refused() {
    let good = token_issuer("");
    assert_eq!(checked(&good).problems, []);
    for (from, to, field) in [
        ("name: corp", "name: sidegate", "metadata.name"),
        ("preset: Keycloak", "preset: Keycloack", "spec.preset"),
        ("https://sso", "http://sso", "spec.issuer"),
        (
            "https://sso.example/realms/corp",
            "https://169.254.169.254",
            "spec.issuer",
        ),
        (
            "preset: Keycloak",
            "preset: Vault\n  values: {mount: jwt}",
            "spec.values.role",
        ),
        (
            "preset: Keycloak",
            "preset: Vault\n  values: {mount: '..', role: a}",
            "spec.values.mount",
        ),
        (
            "preset: Keycloak",
            "preset: Keycloak\n  values: {realm: x}",
            "spec.values.realm",
        ),
        (
            "preset: Keycloak",
            "preset: Generic\n  values: {tokenEndpoint: 'http://x.example'}",
            "spec.values.tokenEndpoint",
        ),
        (
            "preset: Keycloak",
            "preset: Keycloak\n  caBundle: {inline: x}",
            "spec.caBundle.inline",
        ),
        (
            "preset: Keycloak",
            "preset: Keycloak\n  caBundle: {configMap: {name: A, key: ca.crt}}",
            "spec.caBundle.configMap.name",
        ),
        (
            "preset: Keycloak",
            "preset: Keycloak\n  publish: {directory: keys}",
            "spec.publish.directory",
        ),
        (
            "preset: Keycloak",
            "preset: Keycloak\n  publish: {configMap: {name: A}}",
            "spec.publish.configMap.name",
        ),
        // A secret without a client, with a preset that has no place for it, and a client without its secret.
        (
            "preset: Keycloak",
            "preset: Keycloak\n  clientSecretRef: {name: a, key: b}",
            "spec.clientSecretRef",
        ),
        (
            "preset: Keycloak",
            "preset: OpenAI\n  values: {provider: a, serviceAccount: b}\n  clientSecretRef: {name: a, key: b}",
            "spec.clientSecretRef",
        ),
        (
            "preset: Keycloak",
            "preset: Keycloak\n  values: {clientId: a}\n  clientSecretRef: {name: a, key: 'b/c'}",
            "spec.clientSecretRef.key",
        ),
        (
            "preset: Keycloak",
            "preset: Keycloak\n  values: {clientId: a}",
            "spec.values.clientId",
        ),
    ] {
        assert!(good.contains(from), "{from}");
        one(&good.replace(from, to), field);
    }
}

#[test]
fn a_target_says_why_it_cannot_have_a_token() {
    let spec = POSTGRES.replace(
        "secret: {name: shop-agent}",
        "token: {issuer: corp, audience: a, username: u}",
    );
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: data, labels: {team: a}}\n";
    let why = |issuer: &str, namespace: &str| {
        let checked = checked(&format!("{}---\n{issuer}---\n{namespace}", target(&spec)));
        assert_eq!(checked.problems, []);
        let warnings = checked.warnings.iter();
        let about = warnings.filter(|warning| warning.field == "spec.credential.token.issuer");
        about
            .map(|warning| warning.message.clone())
            .collect::<Vec<_>>()
            .join("; ")
    };
    let keycloak = token_issuer("");
    assert_eq!(why(&keycloak, namespace), "");
    assert!(why("", namespace).contains("there is no TokenIssuer corp (yet)"));
    assert!(why(&keycloak, "").contains("does not admit Targets of namespace data"));
    let google = keycloak.replace("preset: Keycloak", "preset: Google\n  values: {provider: x}");
    assert!(why(&google, namespace).contains("wants scopes"));
    let aws = keycloak.replace("preset: Keycloak", "preset: AwsSts");
    assert!(why(&aws, namespace).contains("gives keys to sign with, and credential.token wants a token"));
    // Each credential takes its own kind of TokenIssuer, and says so where it is not that one.
    let warned = |credential: &str, issuer: &str, field: &str| {
        let spec = POSTGRES.replace("secret: {name: shop-agent}", credential);
        let checked = checked(&format!("{}---\n{issuer}---\n{namespace}", target(&spec)));
        assert_eq!(checked.problems, []);
        let found = checked.warnings.iter().find(|warning| warning.field == field);
        found.map(|warning| warning.message.clone()).unwrap_or_default()
    };
    let vault = keycloak.replace("preset: Keycloak", "preset: Vault\n  values: {mount: jwt, role: r}");
    let user = "vault: {issuer: corp, mount: database, role: r}";
    assert_eq!(warned(user, &vault, "spec.credential.vault.issuer"), "");
    assert!(warned(user, &keycloak, "spec.credential.vault.issuer").contains("wants a token of Vault"));
    let login =
        "awsIam: {issuer: corp, roleArn: 'arn:aws:iam::123456789012:role/r', region: r, service: Rds, username: u}";
    assert_eq!(warned(login, &aws, "spec.credential.awsIam.issuer"), "");
    assert!(warned(login, &vault, "spec.credential.awsIam.issuer").contains("wants keys to sign with"));
    let pinned = keycloak.replace("preset: Keycloak", "preset: AwsSts\n  values: {roleArn: x}");
    one(&pinned, "spec.values.roleArn");
}

#[test]
fn every_example_loads_clean() {
    let mut sources = Vec::new();
    for entry in std::fs::read_dir(root().join("examples/quickstart")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            sources.push(Source {
                name: path.display().to_string(),
                text: std::fs::read_to_string(&path).unwrap(),
            });
        }
    }
    assert!(sources.len() >= 4);
    let loaded = load(&sources);
    assert_eq!(loaded.problems, []);
    let checked = check(&loaded.objects);
    assert_eq!((checked.problems, checked.warnings), (Vec::new(), Vec::new()));
    assert_eq!(loaded.objects.targets.len(), 1);
    assert_eq!(loaded.objects.cluster_policies.len(), 1);
}

#[test]
fn the_policy_guide_loads_clean() {
    let guide = std::fs::read_to_string(root().join("docs/policies.md")).unwrap();
    let blocks: Vec<&str> = guide
        .split("```yaml\n")
        .skip(1)
        .map(|block| block.split("```").next().unwrap())
        .collect();
    assert!(blocks.len() >= 5);
    let source = Source {
        name: "docs/policies.md".to_owned(),
        text: blocks.join("---\n"),
    };
    let loaded = load(&[source]);
    assert_eq!(loaded.problems, []);
    assert_eq!(check(&loaded.objects).problems, []);
}
#[test]
fn rules_that_cannot_be_enforced_are_refused() {
    let with = |spec: &str| format!("{}---\n{}", target(POSTGRES), policy(spec));
    let rule = |rest: &str| with(&format!("rules: [{{name: a, {rest}}}]"));
    one(&rule("effect: Ask"), "spec.rules[0].ask");
    one(
        &rule("effect: Allow, ask: {approvers: [{user: a}]}"),
        "spec.rules[0].ask",
    );
    one(
        &rule("effect: Ask, ask: {approvers: []}"),
        "spec.rules[0].ask.approvers",
    );
    one(
        &rule("effect: Ask, ask: {approvers: [{user: a}], count: 6}"),
        "spec.rules[0].ask.count",
    );
    one(
        &rule("effect: Ask, ask: {approvers: [{user: a}], holdFor: 11m}"),
        "spec.rules[0].ask.holdFor",
    );
    one(
        &rule("effect: Ask, ask: {approvers: [{user: a}], holdFor: 0s}"),
        "spec.rules[0].ask.holdFor",
    );
    one(
        &rule("effect: Ask, ask: {approvers: [{user: a}], validFor: 25h}"),
        "spec.rules[0].ask.validFor",
    );
    one(
        &rule("effect: Ask, ask: {approvers: [{user: ''}]}"),
        "spec.rules[0].ask.approvers[0]",
    );
    one(
        &rule("effect: Ask, ask: {approvers: [{user: a}], exclude: [{anyone: {}}]}"),
        "spec.rules[0].ask.exclude[0]",
    );
    one(
        &rule("effect: Deny, sql: {tables: [orders]}"),
        "spec.rules[0].sql.tables[0]",
    );
    one(
        &rule("effect: Deny, sql: {columns: [app.orders]}"),
        "spec.rules[0].sql.columns[0]",
    );
    one(
        &rule(&format!("effect: Deny, message: {}", "x".repeat(201))),
        "spec.rules[0].message",
    );
    one(
        &with("rules: [{name: a, effect: Deny}, {name: a, effect: Deny}]"),
        "spec.rules[1].name",
    );
    one(
        &with("masks: [{columns: [a.b.c], detect: [Email], as: {redact: {}}}]"),
        "spec.masks[0]",
    );
    one(&with("masks: [{as: {redact: {}}}]"), "spec.masks[0]");
    one(
        &with("masks: [{columns: [a.b.c], as: {keepLast: {count: 65}}}]"),
        "spec.masks[0].as",
    );
    one(
        &with("masks: [{columns: [a.b.c], as: {keepFirst: {count: -1}}}]"),
        "spec.masks[0].as",
    );
    one(&with("limits: {rows: 0}"), "spec.limits.rows");
    one(&with("limits: {maxSession: 0s}"), "spec.limits.maxSession");
}

#[test]
fn conditions_are_checked_at_load() {
    let with = |when: &str| {
        let rule = format!("rules: [{{name: a, effect: Deny, when: '{when}'}}]");
        format!("{}---\n{}", target(POSTGRES), policy(&rule))
    };
    assert_eq!(checked(&with("!sql.filtered")).problems, []);
    for wrong in [
        "sql.nothing",
        "sql.filtered ==",
        "sql.filtered + 1",
        "subject.namespace",
        "who == 1",
    ] {
        one(&with(wrong), "spec.rules[0].when");
    }
}

#[test]
fn a_cluster_policy_never_allows() {
    let text = "apiVersion: sidegate.dev/v1alpha1\nkind: ClusterAccessPolicy\nmetadata: {name: c}\nspec:\n  rules: [{name: a, effect: Allow}]\n";
    one(text, "spec.rules[0].effect");
}

#[test]
fn a_user_of_a_vault_is_named_by_a_path_that_leads_nowhere_else() {
    let vault = POSTGRES.replace(
        "{secret: {name: shop-agent}}",
        "{vault: {issuer: corp, mount: team/database, role: reader}}",
    );
    assert_eq!(checked(&target(&vault)).problems, []);
    for mount in [
        "''",
        "/database",
        "database/",
        "a//b",
        "../sys",
        "a/../b",
        "'a b'",
        "'a?b'",
        "'a%2fb'",
    ] {
        changed(&vault, "team/database", mount, "spec.credential.vault.mount");
    }
    for role in ["''", "a/b", "..", "'a b'"] {
        changed(&vault, "reader", role, "spec.credential.vault.role");
    }
    changed(
        &vault,
        "issuer: corp",
        "issuer: sidegate",
        "spec.credential.vault.issuer",
    );
    let raw = TCP.replace("none: {}", "vault: {issuer: corp, mount: database, role: r}");
    one(&target(&raw), "spec.credential");
}

#[test]
fn a_login_by_aws_names_a_role_a_region_and_a_user_and_wants_verified_tls() {
    let aws = POSTGRES.replace(
        "{secret: {name: shop-agent}}",
        "{awsIam: {issuer: aws, roleArn: 'arn:aws:iam::123456789012:role/db', region: eu-central-1, service: Rds, username: agent}}",
    );
    assert_eq!(checked(&target(&aws)).problems, []);
    for arn in [
        "''",
        "arn:aws:iam::123456789012:user/db",
        "arn:aws:iam::123:role/db",
        "arn:aws:iam::123456789012:role/",
        "arn:aws:sts::123456789012:role/db",
        "'arn:aws:iam::123456789012:role/d b'",
    ] {
        changed(
            &aws,
            "'arn:aws:iam::123456789012:role/db'",
            arn,
            "spec.credential.awsIam.roleArn",
        );
    }
    changed(&aws, "eu-central-1", "EU", "spec.credential.awsIam.region");
    changed(&aws, ", username: agent", "", "spec.credential.awsIam.username");
    changed(&aws, "issuer: aws", "issuer: sidegate", "spec.credential.awsIam.issuer");
    let plain = format!("{aws}\ntls: {{mode: Disabled}}");
    one(&target(&plain), "spec.credential.awsIam");
}

#[test]
fn what_no_protocol_uses_yet_is_refused_on_those_that_are_built() {
    let by = |credential: &str| target(&POSTGRES.replace("{secret: {name: shop-agent}}", credential));
    let keys = "{awsIam: {issuer: aws, roleArn: 'arn:aws:iam::123456789012:role/db', region: eu-central-1, \
                service: SigV4, username: agent}}";
    one(&by(keys), "spec.credential.awsIam.service");
    let certificate = "{sshCertificate: {issuer: vault, mount: ssh, role: agents, principals: [deploy]}}";
    one(&by(certificate), "spec.credential.sshCertificate");
}
