//! Our kinds on a real API server: their CRDs install, read well, take the examples and refuse what is wrong.

use anyhow::{ensure, Result};
use sidegate_policies::check::hostnames::{MAX, WRONG};
use sidegate_tests::cluster::{Cluster, User};

/// Our kinds by their plural names.
const KINDS: [&str; 7] = [
    "targets",
    "accesspolicies",
    "clusteraccesspolicies",
    "accessrequests",
    "lockdowns",
    "tokenissuers",
    "injectionprofiles",
];

/// Every CRD is established, and its names are nobody else's.
pub fn install_and_are_established(cluster: &Cluster) -> Result<()> {
    for kind in KINDS {
        let name = format!("customresourcedefinition/{kind}.sidegate.dev");
        for condition in ["Established", "NamesAccepted"] {
            // `kubectl wait` gives up on a definition so new that it has no conditions at all.
            let status = format!(r#"jsonpath={{.status.conditions[?(@.type=="{condition}")].status}}"#);
            let get = ["get", &name, "-o", &status];
            cluster.until(&format!("{name} is {condition}"), || {
                Ok(cluster.kubectl(&get, "")?.trim() == "True")
            })?;
        }
    }
    Ok(())
}

/// `kubectl explain` shows the words of the types, down to a field.
pub fn explain_reads_as_documented(cluster: &Cluster) -> Result<()> {
    for (path, words) in [
        ("targets", "What may be reached, how to log in"),
        ("targets.spec.address.host", "A DNS name, or an IP literal"),
        ("accesspolicies.spec.rules", "sql"),
        ("accessrequests.spec.operation", "How many values stay hidden"),
        ("lockdowns.spec.freeze", "serviceAccount"),
        ("tokenissuers.spec.preset", "How this provider is spoken to"),
        ("injectionprofiles.spec.image.digest", "64 hexadecimal digits"),
    ] {
        let said = cluster.kubectl(&["explain", path, "--api-version=sidegate.dev/v1alpha1"], "")?;
        let one_line = said.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(
            one_line.contains(words),
            "explain {path} says nothing of {words:?}:\n{said}"
        );
        ensure!(!said.contains("<no description>"), "explain {path}:\n{said}");
    }
    Ok(())
}

/// A Target with this specification.
fn target(spec: &str) -> String {
    format!("{{apiVersion: sidegate.dev/v1alpha1, kind: Target, metadata: {{name: wrong, namespace: default}}, spec: {{{spec}}}}}")
}

/// Host names that the checker refuses are refused by the definition itself, and what it takes is taken.
pub fn a_name_that_is_no_targets_is_refused(cluster: &Cluster) -> Result<()> {
    let named = |names: &str| {
        let spec = "protocol: TCP, address: {host: db.data, port: 5432}, credential: {none: {}}, listen: {port: 15432, hostnames:";
        target(&format!("{spec} [{names}]}}"))
    };
    let tried = |names: &str| -> Result<String> {
        let create = ["create", "--dry-run=server", "-f", "-"];
        let output = cluster.ask(User::Admin, &create, &named(names))?;
        ensure!(output.status.success() == output.stderr.is_empty(), "{output:?}");
        Ok(String::from_utf8(output.stderr)?)
    };
    for wrong in WRONG {
        let said = tried(&format!("db.data.svc, '{wrong}'"))?;
        ensure!(said.contains("spec.listen.hostnames"), "`{wrong}`: {said}");
    }
    let twice = tried("db, db")?;
    ensure!(twice.contains("Duplicate value"), "{twice}");
    let many: Vec<String> = (0..=MAX).map(|at| format!("db-{at}")).collect();
    let said = tried(&many.join(", "))?;
    ensure!(said.contains("must have at most 16 items"), "{said}");
    let right = format!("{}, kubernetes.example, localhost.example", many[..14].join(", "));
    ensure!(tried(&right)?.is_empty(), "{}", tried(&right)?);
    Ok(())
}

/// What the server says to a profile that says this.
fn profile(cluster: &Cluster, more: &str) -> Result<String> {
    let image = format!("{{repository: r/s, digest: 'sha256:{}'}}", "a".repeat(64));
    let text = format!(
        "{{apiVersion: sidegate.dev/v1alpha1, kind: InjectionProfile, metadata: {{name: wrong}}, spec: {{image: {image}, {more}}}}}"
    );
    let create = ["create", "--dry-run=server", "--validate=strict", "-f", "-"];
    let answer = cluster.ask(User::Admin, &create, &text)?;
    Ok(String::from_utf8_lossy(&answer.stderr).into_owned())
}

/// The server itself refuses what the schema can tell, and names the field.
pub fn what_is_wrong_is_refused_by_its_field(cluster: &Cluster) -> Result<()> {
    let good = "protocol: Postgres, address: {host: db.data, port: 5432}, credential: {secret: {name: db}}, listen: {port: 15432}";
    let taken = cluster.ask(User::Admin, &["create", "--dry-run=server", "-f", "-"], &target(good))?;
    ensure!(
        taken.status.success(),
        "the good one: {}",
        String::from_utf8_lossy(&taken.stderr)
    );
    for (from, to, field) in [
        ("port: 5432", "port: 70000", "spec.address.port"),
        ("protocol: Postgres", "protocol: Postgress", "spec.protocol"),
        ("host: db.data", "host: ''", "spec.address.host"),
        // Two ways to log in at once: a rule of the schema, not of a type.
        (
            "secret: {name: db}",
            "secret: {name: db}, token: {audience: a}",
            "spec.credential",
        ),
        ("listen:", "lisen: {port: 1}, listen:", "spec.lisen"),
    ] {
        let wrong = good.replace(from, to);
        ensure!(wrong != good, "{from} is not in the good one");
        let input = target(&wrong);
        let refused = cluster.ask(
            User::Admin,
            &["create", "--dry-run=server", "--validate=strict", "-f", "-"],
            &input,
        )?;
        let said = String::from_utf8_lossy(&refused.stderr);
        ensure!(!refused.status.success(), "taken: {wrong}");
        ensure!(said.contains(field), "{field} is not named for {to}: {said}");
    }
    for (more, field) in [
        ("tier: Enforced, fence: {allowUids: [1337]}", ""),
        ("tier: Separate", "spec.tier"),
        ("fence: {allowUids: [1337]}", "spec.fence.allowUids"),
        ("tier: Enforced, fence: {allowUids: [0]}", "spec.fence.allowUids[0]"),
        ("tier: Enforced, fence: {allowUids: [61937]}", "spec.fence.allowUids"),
        ("tier: Enforced, shapes: {privileged: Warn}", "spec.shapes"),
        ("tier: Enforced, agents: {dropNetRaw: false}", "spec.agents.dropNetRaw"),
    ] {
        let said = profile(cluster, more)?;
        let right = match field {
            "" => said.is_empty(),
            field => said.contains(field),
        };
        ensure!(right, "{more}: {said}");
    }
    Ok(())
}
