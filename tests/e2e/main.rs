//! What only a real Kubernetes API server can show, on one control plane of the tests' own.
//!
//! `make e2e` runs it. Without the binaries every test is registered as ignored and the reason is printed and kept in
//! `target/skipped.txt`; with `SIDEGATE_TEST_REQUIRE=cluster` their absence is a failure.

mod account_keys;
mod admission;
mod applied;
mod canary;
mod charts;
mod drawn;
mod fenced;
mod identity;
mod inject;
mod installed;
mod kept;
mod kinds;
mod looked;
mod monitored;
mod moved;
mod names;
mod numbers;
mod outage;
mod pages;
mod people;
mod plane;
mod relay;
mod replicas;
mod requests;
mod restored;
mod rings;
mod rolled;
mod site;
mod tokens;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};
use sidegate_tests::cluster::{is_required, Cluster, Programs};

/// A test on the shared control plane.
type Test = fn(&Cluster) -> Result<()>;

const TESTS: &[(&str, Test)] = &[
    ("kinds::install_and_are_established", kinds::install_and_are_established),
    ("kinds::explain_reads_as_documented", kinds::explain_reads_as_documented),
    ("pages::every_yaml_is_what_it_says", pages::every_yaml_is_what_it_says),
    (
        "kinds::what_is_wrong_is_refused_by_its_field",
        kinds::what_is_wrong_is_refused_by_its_field,
    ),
    (
        "kinds::a_name_that_is_no_targets_is_refused",
        kinds::a_name_that_is_no_targets_is_refused,
    ),
    ("plane::a_user_may_what_was_granted", plane::a_user_may_what_was_granted),
    ("plane::helm_speaks_to_it", plane::helm_speaks_to_it),
    (
        "plane::says_the_version_it_was_built_of",
        plane::says_the_version_it_was_built_of,
    ),
    (
        "plane::pods_run_on_a_node_that_kwok_plays",
        plane::pods_run_on_a_node_that_kwok_plays,
    ),
    (
        "tokens::a_bound_token_names_its_pod",
        tokens::a_bound_token_names_its_pod,
    ),
    (
        "tokens::a_review_answers_the_audience_it_was_asked_for",
        tokens::a_review_answers_the_audience_it_was_asked_for,
    ),
    ("tokens::a_token_dies_with_its_pod", tokens::a_token_dies_with_its_pod),
    (
        "inject::a_pod_of_a_labelled_namespace_is_stored_with_its_sidecar",
        inject::a_pod_of_a_labelled_namespace_is_stored_with_its_sidecar,
    ),
    (
        "inject::pods_of_a_deployment_are_injected_and_a_refusal_is_an_event",
        inject::pods_of_a_deployment_are_injected_and_a_refusal_is_an_event,
    ),
    (
        "inject::a_pod_of_another_namespace_is_untouched",
        inject::a_pod_of_another_namespace_is_untouched,
    ),
    (
        "inject::an_injected_pod_passes_the_restricted_standard",
        inject::an_injected_pod_passes_the_restricted_standard,
    ),
    (
        "inject::dry_run_and_server_side_apply_see_the_same_pod",
        inject::dry_run_and_server_side_apply_see_the_same_pod,
    ),
    (
        "inject::what_is_refused_says_what_to_change",
        inject::what_is_refused_says_what_to_change,
    ),
    (
        "inject::a_granted_target_is_in_the_environment",
        inject::a_granted_target_is_in_the_environment,
    ),
    (
        "inject::the_broker_attests_an_injected_pod",
        inject::the_broker_attests_an_injected_pod,
    ),
    (
        "fenced::a_pod_without_its_fence_is_nobody_and_its_profile_says_so",
        fenced::a_pod_without_its_fence_is_nobody_and_its_profile_says_so,
    ),
    (
        "fenced::a_fence_is_believed_when_it_was_measured_and_cooperative_never",
        fenced::a_fence_is_believed_when_it_was_measured_and_cooperative_never,
    ),
    (
        "inject::a_container_that_is_added_later_is_an_agents_too",
        inject::a_container_that_is_added_later_is_an_agents_too,
    ),
    (
        "inject::what_is_no_review_is_answered_with_no_review",
        inject::what_is_no_review_is_answered_with_no_review,
    ),
    (
        "drawn::a_deleted_pods_user_is_taken_back",
        drawn::a_deleted_pods_user_is_taken_back,
    ),
    (
        "identity::its_effective_rights_are_the_golden_ones",
        identity::its_effective_rights_are_the_golden_ones,
    ),
    (
        "applied::a_cluster_policy_is_a_floor",
        applied::a_cluster_policy_is_a_floor,
    ),
    (
        "applied::a_target_is_lent_to_the_namespaces_it_admits",
        applied::a_target_is_lent_to_the_namespaces_it_admits,
    ),
    (
        "applied::an_authority_is_read_from_a_granted_config_map",
        applied::an_authority_is_read_from_a_granted_config_map,
    ),
    (
        "charts::the_broker_installs_under_the_restricted_profile_and_leaves_its_records",
        charts::the_broker_installs_under_the_restricted_profile_and_leaves_its_records,
    ),
    (
        "charts::several_brokers_keep_their_names_and_one_store",
        charts::several_brokers_keep_their_names_and_one_store,
    ),
    (
        "charts::a_second_releases_broker_asks_once_the_first_one_knows_it",
        charts::a_second_releases_broker_asks_once_the_first_one_knows_it,
    ),
    (
        "charts::an_upgrade_leaves_the_keys_alone_and_uninstalling_removes_them",
        charts::an_upgrade_leaves_the_keys_alone_and_uninstalling_removes_them,
    ),
    ("charts::wrong_values_are_refused", charts::wrong_values_are_refused),
    (
        "charts::what_is_off_by_default_is_rendered_as_its_golden_file",
        charts::what_is_off_by_default_is_rendered_as_its_golden_file,
    ),
    (
        "monitored::what_is_made_for_other_operators_is_of_their_kinds",
        monitored::what_is_made_for_other_operators_is_of_their_kinds,
    ),
    (
        "monitored::prometheus_reads_the_rules_and_queries",
        monitored::prometheus_reads_the_rules_and_queries,
    ),
    (
        "charts::the_kinds_stay_when_their_chart_is_uninstalled",
        charts::the_kinds_stay_when_their_chart_is_uninstalled,
    ),
    (
        "identity::a_pending_pod_of_the_right_shape_is_attested",
        identity::a_pending_pod_of_the_right_shape_is_attested,
    ),
    ("identity::another_token_is_nobodys", identity::another_token_is_nobodys),
    (
        "identity::a_pod_of_another_shape_is_nobody",
        identity::a_pod_of_another_shape_is_nobody,
    ),
    (
        "identity::a_second_key_waits_for_a_restart",
        identity::a_second_key_waits_for_a_restart,
    ),
    (
        "identity::an_ending_pod_keeps_its_key",
        identity::an_ending_pod_keeps_its_key,
    ),
    (
        "identity::the_broker_may_no_more_than_it_needs",
        identity::the_broker_may_no_more_than_it_needs,
    ),
    (
        "identity::a_bound_token_is_a_login_until_its_pod_is_gone",
        identity::a_bound_token_is_a_login_until_its_pod_is_gone,
    ),
    (
        "applied::a_secret_is_read_by_name_where_its_owner_granted_it",
        applied::a_secret_is_read_by_name_where_its_owner_granted_it,
    ),
    (
        "applied::a_policy_is_in_force_when_it_is_applied",
        applied::a_policy_is_in_force_when_it_is_applied,
    ),
    (
        "applied::what_is_wrong_says_so_and_allows_nothing",
        applied::what_is_wrong_says_so_and_allows_nothing,
    ),
    (
        "applied::a_target_says_whether_its_issuer_is_there",
        applied::a_target_says_whether_its_issuer_is_there,
    ),
    (
        "applied::an_issuers_secret_and_authorities_are_granted_by_name",
        applied::an_issuers_secret_and_authorities_are_granted_by_name,
    ),
    (
        "applied::keys_are_published_in_the_config_map_of_the_chart",
        applied::keys_are_published_in_the_config_map_of_the_chart,
    ),
    (
        "applied::a_lockdown_cuts_when_it_is_applied",
        applied::a_lockdown_cuts_when_it_is_applied,
    ),
    (
        "numbers::a_lockdown_says_whom_it_reached_and_what_it_ended",
        numbers::a_lockdown_says_whom_it_reached_and_what_it_ended,
    ),
    (
        "people::who_may_reads_a_session_and_nobody_else_does",
        people::who_may_reads_a_session_and_nobody_else_does,
    ),
    (
        "people::kubectl_sidegate_reaches_the_broker_through_the_api_server",
        people::kubectl_sidegate_reaches_the_broker_through_the_api_server,
    ),
    (
        "looked::unprotected_lists_exactly_the_pods_without_a_valid_sidecar_by_reason",
        looked::unprotected_lists_exactly_the_pods_without_a_valid_sidecar_by_reason,
    ),
    (
        "looked::outdated_tells_what_would_be_another_now",
        looked::outdated_tells_what_would_be_another_now,
    ),
    (
        "looked::explain_tells_a_pod_and_a_statement_by_the_clusters_policies",
        looked::explain_tells_a_pod_and_a_statement_by_the_clusters_policies,
    ),
    (
        "names::names_lead_to_the_sidecar_in_what_the_server_stores",
        names::names_lead_to_the_sidecar_in_what_the_server_stores,
    ),
    (
        "looked::check_names_each_fix_and_status_says_what_became_of_objects",
        looked::check_names_each_fix_and_status_says_what_became_of_objects,
    ),
    (
        "looked::check_injection_asks_one_thing_and_fails_where_nobody_answers",
        looked::check_injection_asks_one_thing_and_fails_where_nobody_answers,
    ),
    (
        "people::a_certificate_of_the_clusters_clients_is_somebody",
        people::a_certificate_of_the_clusters_clients_is_somebody,
    ),
    (
        "requests::a_held_statement_runs_once_when_a_person_adds_their_word",
        requests::a_held_statement_runs_once_when_a_person_adds_their_word,
    ),
    (
        "requests::sidegate_approves_and_denies_with_a_kubeconfig",
        requests::sidegate_approves_and_denies_with_a_kubeconfig,
    ),
    (
        "requests::who_no_rule_names_decides_nothing",
        requests::who_no_rule_names_decides_nothing,
    ),
    (
        "requests::forged_words_are_refused_without_the_webhook",
        requests::forged_words_are_refused_without_the_webhook,
    ),
    (
        "requests::the_webhook_stamps_who_decided",
        requests::the_webhook_stamps_who_decided,
    ),
    (
        "requests::what_nobody_decides_or_uses_ends",
        requests::what_nobody_decides_or_uses_ends,
    ),
    (
        "requests::sidegate_lock_cuts_while_the_injector_is_down",
        requests::sidegate_lock_cuts_while_the_injector_is_down,
    ),
    (
        "kept::a_pin_goes_after_its_pod_and_never_before",
        kept::a_pin_goes_after_its_pod_and_never_before,
    ),
    (
        "kept::a_sidecar_of_another_image_is_nobody",
        kept::a_sidecar_of_another_image_is_nobody,
    ),
];

/// A test that starts a control plane of its own.
type Alone = fn(&Programs) -> Result<()>;

const ALONE: &[(&str, Alone)] = &[
    ("plane::ends_with_its_owner", plane::ends_with_its_owner),
    ("canary::a_secret_is_seen_by_nobody", canary::a_secret_is_seen_by_nobody),
    (
        "outage::sessions_outlive_an_absent_api_server_and_a_restarted_broker",
        outage::sessions_outlive_an_absent_api_server_and_a_restarted_broker,
    ),
    (
        "account_keys::tokens_of_both_keys_are_sessions_until_the_old_one_is_withdrawn",
        account_keys::tokens_of_both_keys_are_sessions_until_the_old_one_is_withdrawn,
    ),
    (
        "restored::a_restored_store_is_newer_once_its_generation_is_raised",
        restored::a_restored_store_is_newer_once_its_generation_is_raised,
    ),
    (
        "replicas::nothing_fails_while_brokers_restart_and_keys_rotate",
        rolled::nothing_fails_while_brokers_restart_and_keys_rotate,
    ),
    (
        "rings::nothing_fails_while_keys_of_months_rotate",
        rings::nothing_fails_while_keys_of_months_rotate,
    ),
    (
        "replicas::a_dead_leader_is_followed_by_one_that_rotates",
        replicas::a_dead_leader_is_followed_by_one_that_rotates,
    ),
    (
        "admission::without_its_parameters_nothing_passes_and_uninstalling_leaves_none",
        admission::without_its_parameters_nothing_passes_and_uninstalling_leaves_none,
    ),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    canary::listen();
    let programs = match Programs::find() {
        Ok(programs) => programs,
        Err(missing) => return skipped(&arguments, &missing.0),
    };
    if arguments.list {
        return libtest_mimic::run(&arguments, ignored()).exit_code();
    }
    let cluster = match started(&programs) {
        Ok(cluster) => Arc::new(cluster),
        Err(error) => {
            eprintln!("real-cluster: the control plane did not come up: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let shared = TESTS.iter().map(|(name, test)| {
        let cluster = cluster.clone();
        Trial::test(*name, move || {
            test(&cluster).map_err(|error| Failed::from(format!("{error:#}")))
        })
    });
    let alone = ALONE.iter().map(|(name, test)| {
        let programs = programs.clone();
        Trial::test(*name, move || {
            test(&programs).map_err(|error| Failed::from(format!("{error:#}")))
        })
    });
    let together = replicas::TESTS.iter().chain(moved::TESTS).map(|(name, test)| {
        let programs = programs.clone();
        Trial::test(*name, move || {
            replicas::run(&programs, *test).map_err(|error| Failed::from(format!("{error:#}")))
        })
    });
    let installed = installed::TESTS.iter().map(|(name, test)| {
        let programs = programs.clone();
        Trial::test(*name, move || {
            installed::run(&programs, *test).map_err(|error| Failed::from(format!("{error:#}")))
        })
    });
    let guarded = admission::TESTS.iter().map(|(name, test)| {
        let programs = programs.clone();
        Trial::test(*name, move || {
            admission::run(&programs, *test).map_err(|error| Failed::from(format!("{error:#}")))
        })
    });
    let all = shared.chain(alone).chain(together).chain(installed).chain(guarded);
    let conclusion = libtest_mimic::run(&arguments, all.collect());
    installed::stop();
    site::stop();
    replicas::stop();
    admission::stop();
    inject::stop();
    // Its servers end before this process does, and say so if they do not.
    drop(cluster);
    conclusion.exit_code()
}

/// The shared control plane, with our kinds: what a test finds must not depend on which ran before.
fn started(programs: &Programs) -> Result<Cluster> {
    let mut cluster = Cluster::start(programs)?;
    eprintln!("real-cluster: Kubernetes {}", cluster.version()?);
    cluster.kwok()?;
    charts::install_kinds(&cluster)?;
    kinds::install_and_are_established(&cluster)?;
    Ok(cluster)
}

fn ignored() -> Vec<Trial> {
    let names = TESTS
        .iter()
        .map(|(name, _)| *name)
        .chain(ALONE.iter().map(|(name, _)| *name))
        .chain(replicas::TESTS.iter().chain(moved::TESTS).map(|(name, _)| *name))
        .chain(installed::TESTS.iter().map(|(name, _)| *name))
        .chain(admission::TESTS.iter().map(|(name, _)| *name));
    names
        .map(|name| Trial::test(name, || Ok(())).with_ignored_flag(true))
        .collect()
}

/// Says what did not run and why.
fn skipped(arguments: &Arguments, why: &str) -> ExitCode {
    let trials = ignored();
    let line = format!("real-cluster: SKIPPED {} tests: {why}", trials.len());
    eprintln!("{line}");
    if is_required("cluster") {
        return ExitCode::FAILURE;
    }
    let note = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/skipped.txt");
    if let Err(error) = std::fs::write(&note, format!("{line}\n")) {
        eprintln!("{}: {error}", note.display());
    }
    libtest_mimic::run(arguments, trials).exit_code()
}
