//! What generated rules say of name servers, broker and Targets: the whole of it once, as a status holds it, and each promise
//! about what is left out.
//!
//! Refused: a rule where there can be none. Invariant: what is not let out is said.

use serde_json::json;

use super::*;
use crate::yaml::{load, Source};

const SERVERS: [&str; 2] = ["10.96.0.10", "[fd00::10]:5353"];

fn target(name: &str, host: &str) -> String {
    format!(
        "---\napiVersion: sidegate.dev/v1alpha1\nkind: Target\nmetadata: {{name: {name}, namespace: data}}\nspec: {{protocol: \
         Postgres, address: {{host: '{host}', port: 5432}}, credential: {{none: {{}}}}, listen: {{port: 15432}}, \
         allowedNamespaces: {{selector: {{matchLabels: {{team: agents}}}}}}}}\n"
    )
}

fn policy(name: &str, targets: &[&str], subjects: &str) -> String {
    let targets: Vec<String> = targets.iter().map(|name| format!("{{name: {name}}}")).collect();
    format!(
        "---\napiVersion: sidegate.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: {name}, namespace: data}}\nspec: \
         {{targetRefs: [{}], subjects: [{subjects}], rules: [{{name: r, effect: Allow, sql: {{commands: [Select]}}}}]}}\n",
        targets.join(", ")
    )
}

fn objects(text: &str) -> Objects {
    let namespaces = ["agents", "others"].map(|name| {
        format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{team: {name}}}}}\n")
    });
    let text = format!("{text}{}", namespaces.concat());
    let name = "all.yaml".to_owned();
    let mut objects = load(&[Source { name, text }]).objects;
    assert_eq!(objects.namespaces.len(), 2);
    objects
        .namespaces
        .sort_by(|one, other| one.object.name.cmp(&other.object.name));
    objects
}

fn spec(more: &serde_json::Value) -> InjectionProfileSpec {
    let mut spec = json!({"image": {"repository": "r", "digest": format!("sha256:{}", "a".repeat(64))}});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(spec).unwrap()
}

fn told(text: &str, broker: &str, more: &serde_json::Value, namespaces: &[&str]) -> Told {
    let servers = SERVERS.map(str::to_owned);
    let place = Place {
        broker_url: broker,
        name_servers: &servers,
        cluster_domain: "cluster.local",
    };
    audit(&objects(text), &place, ("default", &spec(more)), namespaces)
}

const BROKER: &str = "https://sidegate-broker.sidegate-system.svc:8443";
const TRIAGE: &str = "{serviceAccount: {namespace: agents, name: triage}}";

/// The whole of it, as the status holds it.
#[test]
fn rules_lead_to_name_servers_the_broker_and_every_granted_target_and_say_what_they_cannot() {
    let text = [
        target("literal", "10.1.2.3"),
        target("same", "10.1.2.3"),
        target("six", "2001:db8::5"),
        target("service", "orders.data.svc"),
        target("long", "Pod-0.orders.shop.SVC.cluster.local."),
        target("outside", "db.example.com"),
        target("short", "orders.data"),
        policy(
            "all",
            &["literal", "same", "six", "service", "long", "outside", "short"],
            TRIAGE,
        ),
    ];
    let told = told(&text.concat(), BROKER, &json!({}), &["agents"]);
    let wanted = json!({
        "mode": "Audit",
        "selects": "sidegate.dev/injected-by=default",
        "common": {
            "egress": [
                "UDP and TCP 53 to 10.96.0.10/32: name server",
                "UDP and TCP 5353 to fd00::10/128: name server",
                "UDP and TCP 53 to pods k8s-app=kube-dns of namespace kube-system: name server, where it is the cluster's own",
                "TCP 8443 to pods of namespace sidegate-system: broker",
            ],
            "unsure": [
                "an address that is a Service's own: a network plugin may compare that of the pod behind it, with its port",
            ],
        },
        "namespaces": [{
            "name": "agents",
            "egress": [
                "TCP 5432 to 10.1.2.3/32: Target data/literal, Target data/same",
                "TCP 5432 to 2001:db8::5/128: Target data/six",
                "TCP, any port, to pods of namespace data: Target data/service (orders.data.svc:5432)",
                "TCP, any port, to pods of namespace shop: Target data/long (Pod-0.orders.shop.SVC.cluster.local.:5432)",
            ],
            "unsure": [
                "Target data/long (Pod-0.orders.shop.SVC.cluster.local.:5432): the pods and the port behind that Service are \
                 not known here; one without a selector leads elsewhere",
                "Target data/service (orders.data.svc:5432): the pods and the port behind that Service are not known here; \
                 one without a selector leads elsewhere",
            ],
            "cutOff": [
                "Target data/outside (db.example.com:5432): a NetworkPolicy knows addresses and pods, no host names",
                "Target data/short (orders.data:5432): a NetworkPolicy knows addresses and pods, no host names",
            ],
        }],
        "omitted": 0,
    });
    assert_eq!(serde_json::to_value(&told).unwrap(), wanted);
}

#[test]
fn a_target_is_left_out_only_where_no_pod_of_the_namespace_could_be_granted_it() {
    let lines = |subjects: &str| {
        let text = [target("literal", "10.1.2.3"), policy("one", &["literal"], subjects)];
        let told = told(&text.concat(), BROKER, &json!({}), &["agents", "others"]);
        let lines = told.namespaces.iter().map(|found| found.egress.lines());
        lines.collect::<Vec<_>>()
    };
    // The Target admits namespace agents alone; labels are whatever somebody gives a pod.
    assert_eq!(lines("{podSelector: {matchLabels: {app: triage}}}"), [1, 0]);
    assert_eq!(lines(TRIAGE), [1, 0]);
    assert_eq!(lines("{serviceAccount: {namespace: others, name: triage}}"), [0, 0]);
}

#[test]
fn what_agents_keep_and_a_broker_outside_would_be_cut_off_and_that_is_said() {
    let keep = json!({"agents": {
        "clusterToken": "Keep", "cloudIdentity": "Keep",
        "exemptContainers": [{"name": "mesh", "imagePrefix": "r/mesh"}],
    }});
    let cut_off = told("", "https://gate.example.com", &keep, &[]).common.cut_off;
    for words in [
        "broker gate.example.com:443: ",
        "clusterToken",
        "cloudIdentity",
        "container mesh ",
    ] {
        assert!(cut_off.iter().any(|line| line.contains(words)), "{words}: {cut_off:?}");
    }
    assert_eq!(cut_off.len(), 4);
    let literal = told("", "https://[fd00::1]:9443", &json!({}), &[]).common;
    assert!(
        literal.egress.contains(&"TCP 9443 to fd00::1/128: broker".to_owned()),
        "{literal:?}"
    );
    assert!(literal.cut_off.is_empty());
}

#[test]
fn what_is_too_long_is_counted_and_never_silently_left_out() {
    let names: Vec<String> = (0..100).map(|number| format!("t{number}")).collect();
    let mut text: String = names.iter().map(|name| target(name, "db.example.com")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    text.push_str(&policy("all", &names, TRIAGE));
    let told = told(&text, BROKER, &json!({}), &["agents"; 20]);
    let first = &told.namespaces[0].egress.cut_off;
    assert_eq!(first.len(), MAX_LINES);
    assert_eq!(first.last().unwrap(), "and 37 more");
    assert_eq!((told.namespaces.len(), told.omitted), (15, 5));
    let size = serde_json::to_string(&told).unwrap().len();
    assert!(size < 512 << 10, "{size}");
}
