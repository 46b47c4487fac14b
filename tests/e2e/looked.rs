//! `kubectl sidegate` on the real API server: what it says of pods, policies and the installation is what is there.
//!
//! The installation is a namespace of each test's own, with the ConfigMaps that a broker's leader would have filled.

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};
use sidegate_tests::cli;
use sidegate_tests::cluster::{Cluster, User};

use crate::inject::{is_asked, labelled, pod, site, AUDIENCE};

/// `kubectl sidegate`, as a user: exit code, what it prints, what it complains of.
pub fn run(cluster: &Cluster, user: User, arguments: &[&str]) -> Result<(Option<i32>, String, String)> {
    let home = tempfile::tempdir()?;
    let config = cluster.kubeconfig(user);
    let config = config.to_string_lossy();
    let mut all = arguments.to_vec();
    all.extend(["--kubeconfig", &config]);
    let output = cli::run(&cli::path()?, home.path(), &all)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
}

/// A namespace in which a broker would have said what a sidecar must show.
pub fn installed(cluster: &Cluster) -> Result<String> {
    let namespace = cluster.namespace()?;
    cluster.create(&json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "sidegate-admission", "namespace": namespace},
        "data": {"audience": AUDIENCE, "digests": "", "uids": "", "breakGlassGroup": ""},
    }))?;
    Ok(namespace)
}

fn named(mut pod: Value, name: &str) -> Value {
    pod["metadata"]["name"] = json!(name);
    pod
}

/// Pods without a valid sidecar, each with its reason, and the exit code.
type Listed = (Option<i32>, Vec<(String, String)>);

fn listed(cluster: &Cluster, home: &str, namespace: &str) -> Result<Listed> {
    let list = format!("unprotected -n {namespace} --sidegate-namespace {home} -o json");
    let list: Vec<&str> = list.split(' ').collect();
    let (code, out, err) = run(cluster, User::Admin, &list)?;
    let rows: Value = serde_json::from_str(&out).with_context(|| format!("{code:?} {out} {err}"))?;
    let rows = rows.as_array().context("no list")?.iter();
    let pair = |row: &Value| Some((row["pod"].as_str()?.to_owned(), row["reason"].as_str()?.to_owned()));
    Ok((code, rows.filter_map(pair).collect()))
}

/// kubectl as the administrator, in words.
fn kubectl(cluster: &Cluster, words: &str) -> Result<String> {
    let words: Vec<&str> = words.split(' ').collect();
    cluster.kubectl(&words, "")
}

/// Every pod of a labelled namespace that the broker would not believe is listed with its reason, and no other.
pub fn unprotected_lists_exactly_the_pods_without_a_valid_sidecar_by_reason(cluster: &Cluster) -> Result<()> {
    let _site = site(cluster)?;
    let home = installed(cluster)?;
    let namespace = cluster.namespace()?;
    cluster.create(&named(pod(&namespace, json!({})), "before"))?;
    let labels = "sidegate.dev/inject=enabled sidegate.dev/allow-pod-opt-out=true";
    kubectl(cluster, &format!("label namespace {namespace} {labels}"))?;
    is_asked(cluster, &namespace)?;
    cluster.create(&named(pod(&namespace, json!({})), "good"))?;
    let mut out = named(pod(&namespace, json!({})), "out");
    out["metadata"]["labels"] = json!({"sidegate.dev/inject": "false"});
    cluster.create(&out)?;
    cluster.create(&named(pod(&namespace, json!({"os": {"name": "windows"}})), "panes"))?;
    cluster.create(&named(pod(&namespace, json!({})), "prodded"))?;
    let debugger = r#"{"spec":{"ephemeralContainers":[{"name":"x","image":"x","targetContainerName":"sidegate"}]}}"#;
    let patch = "--subresource=ephemeralcontainers --type=strategic";
    kubectl(
        cluster,
        &format!("patch pod prodded --namespace {namespace} {patch} -p {debugger}"),
    )?;
    let pair = |(pod, reason): (&str, &str)| (pod.to_owned(), reason.to_owned());
    let wanted = [
        ("before", "older-than-label"),
        ("out", "opted-out"),
        ("panes", "windows"),
        ("prodded", "tampered"),
    ];
    let (code, found) = listed(cluster, &home, &namespace)?;
    ensure!(found == wanted.map(pair) && code == Some(1), "{code:?} {found:?}");

    let (code, found) = listed(cluster, &home, &audited(cluster)?)?;
    ensure!(
        found == [pair(("bare", "audit"))] && code == Some(1),
        "{code:?} {found:?}"
    );
    let (code, found) = listed(cluster, &home, &labelled(cluster, &[])?)?;
    ensure!(found.is_empty() && code == Some(0), "{code:?} {found:?}");
    let list = ["unprotected", "-n", &namespace, "--sidegate-namespace", &home];
    let (code, table, _) = run(cluster, User::Admin, &list)?;
    ensure!(
        code == Some(1) && table.contains("rollout restart"),
        "no remedy: {table}"
    );
    let (code, _, err) = run(cluster, User::Dev, &list)?;
    ensure!(code == Some(1) && err.contains("cannot list resource"), "{err}");
    Ok(())
}

/// A namespace that only audits, with a pod that would have been refused, and is younger than the label.
fn audited(cluster: &Cluster) -> Result<String> {
    let namespace = labelled(cluster, &["sidegate.dev/admission=audit"])?;
    let bare = named(pod(&namespace, json!({"hostNetwork": true})), "bare");
    cluster.until("the label is known to the webhook", || {
        let create = ["create", "--dry-run=server", "-f", "-"];
        let said = cluster.ask(User::Admin, &create, &bare.to_string())?;
        Ok(String::from_utf8_lossy(&said.stderr).contains("not protected"))
    })?;
    // Times are in seconds: one made in the label's own second could be older.
    cluster.until("a pod that is younger than the label", || {
        let made = cluster.create(&bare)?;
        let stored = kubectl(
            cluster,
            &format!("get namespace {namespace} -o json --show-managed-fields"),
        )?;
        let stored: Value = serde_json::from_str(&stored)?;
        let owners = stored["metadata"]["managedFields"].as_array().into_iter().flatten();
        let since = owners.filter_map(|owner| owner["time"].as_str()).max();
        let younger = made["metadata"]["creationTimestamp"].as_str() > since;
        if !younger {
            kubectl(
                cluster,
                &format!("delete pod bare --namespace {namespace} --grace-period=0 --force"),
            )?;
        }
        Ok(younger)
    })?;
    Ok(namespace)
}

/// A Target that came later and an edited profile are told, until the pod is made anew.
pub fn outdated_tells_what_would_be_another_now(cluster: &Cluster) -> Result<()> {
    let _site = site(cluster)?;
    let profile = format!("p-{}", &cluster.namespace()?[2..]);
    let write = |memory: &str| {
        let object = json!({
            "apiVersion": "sidegate.dev/v1alpha1", "kind": "InjectionProfile", "metadata": {"name": profile},
            "spec": {
                "image": {"repository": "example.invalid/sidecar", "digest": format!("sha256:{}", "b".repeat(64))},
                "resources": {"limits": {"memory": memory}},
            },
        });
        cluster.kubectl(&["apply", "-f", "-"], &object.to_string())
    };
    write("128Mi")?;
    let namespace = labelled(cluster, &[&format!("sidegate.dev/profile={profile}")])?;
    is_asked(cluster, &namespace)?;
    cluster.create(&pod(&namespace, json!({})))?;
    let ask = || -> Result<(Option<i32>, String)> {
        let (code, out, err) = run(cluster, User::Admin, &["outdated", "-n", &namespace])?;
        ensure!(err.is_empty(), "{err}");
        Ok((code, out))
    };
    let (code, out) = ask()?;
    ensure!(
        code == Some(0) && out.contains("would be made the same"),
        "{code:?} {out}"
    );
    write("256Mi")?;
    cluster.kubectl(&["apply", "-f", "-"], &target(&namespace))?;
    let (code, out) = ask()?;
    for words in [
        format!("profile {profile}@1, now {profile}@2"),
        format!("Target {namespace}/orders-db (port 15432) has no variables in it"),
    ] {
        ensure!(code == Some(1) && out.contains(&words), "{words} is not in {out}");
    }
    Ok(())
}

fn target(namespace: &str) -> String {
    format!(
        "{{apiVersion: sidegate.dev/v1alpha1, kind: Target, metadata: {{name: orders-db, namespace: {namespace}}}, spec: \
         {{protocol: Postgres, address: {{host: db.data, port: 5432}}, credential: {{secret: {{name: db}}}}, listen: \
         {{port: 15432}}, env: [{{name: PGHOST, value: 127.0.0.1}}]}}}}\n---\n{{apiVersion: sidegate.dev/v1alpha1, kind: \
         AccessPolicy, metadata: {{name: triage, namespace: {namespace}}}, spec: {{targetRefs: [{{name: orders-db}}], \
         subjects: [{{podSelector: {{matchLabels: {{agent: triage}}}}}}], rules: [{{name: read, effect: Allow, sql: \
         {{commands: [Select], tables: ['app.*']}}}}]}}}}\n"
    )
}

/// What a pod may reach and what its gate does not hold; and what becomes of a statement, with the exit codes of files.
pub fn explain_tells_a_pod_and_a_statement_by_the_clusters_policies(cluster: &Cluster) -> Result<()> {
    let _site = site(cluster)?;
    let home = installed(cluster)?;
    let namespace = labelled(cluster, &[])?;
    is_asked(cluster, &namespace)?;
    let own = json!({"containers": [
        {"name": "agent", "image": "example.invalid/agent", "env": [{"name": "PGHOST", "value": "orders-db.secret.example"}]},
    ]});
    cluster.create(&pod(&namespace, own))?;
    cluster.kubectl(&["apply", "-f", "-"], &target(&namespace))?;
    let at = ["--sidegate-namespace", &home, "-n", &namespace];
    let explain = |words: &[&str]| run(cluster, User::Admin, &[&["explain"][..], words, &at[..]].concat());
    let (code, out, err) = explain(&["pod/agent", "--target", &format!("{namespace}/orders-db")])?;
    for words in [
        "sidecar    valid",
        "tier       Cooperative: it holds no credential of a Target, and may still dial elsewhere",
        "127.0.0.1:15432",
        "it came later: it listens, but no variable says so until the pod is made anew",
        "container agent sets PGHOST itself: it does not lead here",
        "MAY CONNECT",
    ] {
        ensure!(out.contains(words), "`{words}` is not in:\n{out}\n{err}");
    }
    ensure!(
        code == Some(0) && !out.contains("secret.example"),
        "a value is shown: {out}"
    );
    ensure!(!out.to_lowercase().contains("enforced"), "it reads as enforced: {out}");
    let target = format!("{namespace}/orders-db");
    let (code, out, _) = explain(&["pod/agent", "SELECT 1", "--target", &target])?;
    ensure!(code == Some(0) && out.contains("ALLOWED"), "{code:?} {out}");
    let (code, out, _) = explain(&["pod/agent", "DROP TABLE app.orders", "--target", &target])?;
    ensure!(code == Some(3) && out.contains("DENIED"), "{code:?} {out}");
    // Another account's pod is not meant by the policy.
    let other = format!("{namespace}/default");
    let (code, out, _) = explain(&["--as", &other, "SELECT 1", "--target", &target])?;
    ensure!(code == Some(3) && out.contains("NoPolicy"), "{code:?} {out}");
    let (code, _, err) = explain(&["pod/nobody"])?;
    ensure!(code == Some(1) && err.contains("there is no pod"), "{err}");
    let (code, out, _) = explain(&["pod/agent", "-o", "json"])?;
    let told: Value = serde_json::from_str(&out)?;
    ensure!(
        code == Some(0) && told["pod"]["egressEnforced"] == "False" && told["pod"]["valid"] == true,
        "{out}"
    );
    // A profile that asks for a fence is no fence.
    let profile = format!("enforced-{namespace}");
    cluster.create(&json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "InjectionProfile", "metadata": {"name": profile},
        "spec": {
            "image": {"repository": "example.invalid/sidecar", "digest": format!("sha256:{}", "b".repeat(64))},
            "tier": "Enforced",
        },
    }))?;
    let label = format!("sidegate.dev/profile={profile}");
    kubectl(cluster, &format!("label namespace {namespace} {label}"))?;
    let (_, out, _) = explain(&["pod/agent"])?;
    let tier = out.lines().find(|line| line.starts_with("  tier ")).unwrap_or_default();
    ensure!(
        tier.contains("Enforced, egress enforced: ") && !tier.contains("True"),
        "{out}"
    );
    Ok(())
}

/// `check` says what is wrong with its fix, what is unknown as unknown, and ends well only where nothing is wrong;
/// `status` says what became of each object.
pub fn check_names_each_fix_and_status_says_what_became_of_objects(cluster: &Cluster) -> Result<()> {
    let _site = site(cluster)?;
    let home = installed(cluster)?;
    let namespace = labelled(cluster, &["pod-security.kubernetes.io/enforce=restricted"])?;
    let misspelt = cluster.namespace()?;
    cluster.kubectl(&["label", "namespace", &misspelt, "sidegate.dev/inject=yes"], "")?;
    let ask = ["check", "-n", &namespace, "--sidegate-namespace", &home, "-o", "json"];
    let (code, out, err) = run(cluster, User::Admin, &ask)?;
    let found: Value = serde_json::from_str(&out).with_context(|| format!("{out} {err}"))?;
    let of = |what: &str| -> Result<Value> {
        let mut found = found
            .as_array()
            .into_iter()
            .flatten()
            .filter(|finding| finding["what"] == what);
        found
            .next()
            .cloned()
            .with_context(|| format!("nothing about {what}: {out}"))
    };
    ensure!(of("server")?["verdict"] == "good", "{out}");
    ensure!(of("kinds")?["verdict"] == "good", "{out}");
    let broker = of("broker")?;
    ensure!(
        broker["verdict"] == "bad" && broker["fix"].as_str().unwrap_or_default().contains("get pods"),
        "{broker}"
    );
    ensure!(of("broker's authority")?["verdict"] == "bad", "{out}");
    ensure!(of("images of sidecars")?["verdict"] == "warn", "{out}");
    // Other suites install webhooks of theirs on this cluster meanwhile, some of them without an injector.
    let findings = found.as_array().into_iter().flatten();
    let mut webhooks = findings.filter(|finding| finding["what"] == "webhook pods.sidegate.dev");
    ensure!(webhooks.any(|finding| finding["verdict"] == "good"), "{out}");
    ensure!(of("webhook answers")?["verdict"] == "good", "{out}");
    ensure!(of("network policies")?["verdict"] == "unknown", "{out}");
    let wrong = of(&format!("namespace {misspelt}"))?;
    ensure!(
        wrong["verdict"] == "bad"
            && wrong["said"]
                .as_str()
                .unwrap_or_default()
                .contains("enabled or disabled"),
        "{wrong}"
    );
    let level = of(&format!("namespace {namespace}"))?;
    ensure!(
        level["said"]
            .as_str()
            .unwrap_or_default()
            .contains("pod security restricted"),
        "{level}"
    );
    ensure!(of("your rights")?["verdict"] == "good", "{out}");
    ensure!(code == Some(1), "{code:?}");
    let (code, out, _) = run(cluster, User::Dev, &["check", "--sidegate-namespace", &home])?;
    ensure!(
        out.contains("unknown") && out.contains("ask somebody who may look at it"),
        "{code:?} {out}"
    );

    cluster.kubectl(&["apply", "-f", "-"], &target(&namespace))?;
    let (code, out, err) = run(cluster, User::Admin, &["status", "--sidegate-namespace", &home])?;
    ensure!(code == Some(0), "{err}");
    for words in [
        format!("{namespace}/orders-db"),
        format!("{namespace}/triage"),
        "NAMESPACE".to_owned(),
        "EGRESS-ENFORCED".to_owned(),
        "no pod in namespace".to_owned(),
    ] {
        ensure!(out.contains(&words), "`{words}` is not in:\n{out}");
    }
    Ok(())
}

/// Who may do no more than create pods in a namespace learns whether they get their sidecar; not to know is a failure then.
pub fn check_injection_asks_one_thing_and_fails_where_nobody_answers(cluster: &Cluster) -> Result<()> {
    let _site = site(cluster)?;
    let (labelled, bare) = (labelled(cluster, &[])?, cluster.namespace()?);
    let ask = |user: User, namespace: &str| run(cluster, user, &["check", "--injection", "-n", namespace]);
    let (code, out, err) = ask(User::Dev, &labelled)?;
    ensure!(code == Some(1) && out.contains("unknown"), "{code:?} {out}{err}");
    let role = ["create", "role", "tester", "--verb=create", "--resource=pods"];
    let bind = ["create", "rolebinding", "tester", "--role=tester", "--user=dev"];
    for namespace in [&labelled, &bare] {
        for make in [&role[..], &bind] {
            cluster.kubectl(&[make, &["--namespace", namespace]].concat(), "")?;
        }
    }
    let (code, out, err) = ask(User::Dev, &labelled)?;
    ensure!(
        code == Some(0) && out.contains("would get its sidecar"),
        "{code:?} {out}{err}"
    );
    let (code, out, err) = ask(User::Dev, &bare)?;
    ensure!(
        code == Some(1) && out.contains("without a sidecar"),
        "{code:?} {out}{err}"
    );
    let (code, _, err) = run(cluster, User::Dev, &["check", "--injection"])?;
    ensure!(code == Some(2) && err.contains("--namespace"), "{code:?} {err}");
    Ok(())
}
