//! What `docs/injection.md` shows can be used as it stands.

use sidegate_injector::install::Install;
use sidegate_policies::check::check_apart;
use sidegate_policies::yaml::{self, Source};

use crate::folder;

/// The page's blocks of YAML.
fn blocks() -> Vec<String> {
    let page = std::fs::read_to_string(folder().join("../../../docs/injection.md")).unwrap();
    // What stands behind `yaml` says what a block is, and how it is tried on an API server.
    let blocks = page
        .split("```yaml")
        .skip(1)
        .map(|rest| rest.split_once('\n').unwrap().1);
    blocks
        .map(|rest| rest.split("```").next().unwrap().to_owned())
        .collect()
}

#[test]
fn what_the_page_shows_is_accepted() {
    let blocks = blocks();
    let holding = |word: &str| {
        let found = blocks.iter().find(|block| block.contains(word));
        found.unwrap_or_else(|| panic!("no block with {word}")).clone()
    };
    Install::read(&holding("brokerUrl:")).unwrap();
    let loaded = yaml::load(&[Source {
        name: "docs/injection.md".to_owned(),
        text: holding("kind: InjectionProfile"),
    }]);
    assert_eq!(loaded.problems, []);
    assert_eq!(check_apart(&loaded.objects).problems, []);
    assert_eq!(loaded.objects.injection_profiles.len(), 1);
}

#[test]
fn the_charts_webhook_fails_closed_and_has_no_selector_that_a_pod_could_dodge() {
    let chart = folder().join("../../../charts/sidegate/templates/webhooks.yaml");
    let chart = std::fs::read_to_string(chart).unwrap();
    let entry = chart
        .split("  - name: ")
        .find(|entry| entry.starts_with("pods.sidegate.dev\n"))
        .unwrap();
    assert!(entry.contains("\n    failurePolicy: Fail\n"));
    assert!(entry.contains("\n    reinvocationPolicy: IfNeeded\n"));
    assert!(!entry.contains("objectSelector:"));
    let closed = chart.matches("    failurePolicy: Fail\n").count();
    assert_eq!(
        closed,
        chart.matches("admissionReviewVersions:").count(),
        "each of them"
    );
}

#[test]
fn an_installation_that_could_not_be_trusted_is_refused() {
    let good = blocks().into_iter().find(|block| block.contains("brokerUrl:")).unwrap();
    for (from, to, field) in [
        ("brokerUrl: https:", "brokerUrl: http:", "brokerUrl"),
        ("audience: https:", "audience: http:", "audience"),
        ("BEGIN CERTIFICATE", "BEGIN NOTHING", "brokerCaPem"),
        ("  ...\n", "  -----BEGIN PRIVATE KEY-----\n", "brokerCaPem"),
        ("[10.96.0.10]", "[kube-dns]", "nameServers"),
        ("clusterDomain:", "clusterDomian:", "clusterDomian"),
    ] {
        let wrong = good.replacen(from, to, 1);
        assert_ne!(wrong, good, "{from}");
        let problems = Install::read(&wrong).unwrap_err();
        assert!(
            problems.iter().any(|problem| problem.starts_with(field)),
            "{problems:?}"
        );
    }
}
