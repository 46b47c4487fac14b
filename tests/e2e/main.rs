//! What only a real Kubernetes API server can show, on one control plane of the tests' own.
//!
//! `make e2e` runs it. Without the binaries every test is registered as ignored and the reason is printed and kept in
//! `target/skipped.txt`; with `SIDEGATE_TEST_REQUIRE=cluster` their absence is a failure.

mod kinds;
mod plane;
mod tokens;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};
use sidegate_tests::cluster::{Cluster, Programs};

/// A test on the shared control plane.
type Test = fn(&Cluster) -> Result<()>;

const TESTS: &[(&str, Test)] = &[
    ("kinds::install_and_are_established", kinds::install_and_are_established),
    ("kinds::explain_reads_as_documented", kinds::explain_reads_as_documented),
    ("kinds::examples_are_accepted", kinds::examples_are_accepted),
    (
        "kinds::what_is_wrong_is_refused_by_its_field",
        kinds::what_is_wrong_is_refused_by_its_field,
    ),
    ("plane::a_user_may_what_was_granted", plane::a_user_may_what_was_granted),
    ("plane::helm_speaks_to_it", plane::helm_speaks_to_it),
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
];

/// The test that starts a control plane of its own.
const ALONE: &str = "plane::ends_with_its_owner";

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
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
    let alone = Trial::test(ALONE, move || {
        plane::ends_with_its_owner(&programs).map_err(|error| Failed::from(format!("{error:#}")))
    });
    let conclusion = libtest_mimic::run(&arguments, shared.chain([alone]).collect());
    // Its servers end before this process does, and say so if they do not.
    drop(cluster);
    conclusion.exit_code()
}

/// The shared control plane, with our kinds: what a test finds must not depend on which ran before.
fn started(programs: &Programs) -> Result<Cluster> {
    let mut cluster = Cluster::start(programs)?;
    cluster.kwok()?;
    cluster.kubectl(&["apply", "-f", &kinds::folder()], "")?;
    kinds::install_and_are_established(&cluster)?;
    Ok(cluster)
}

fn ignored() -> Vec<Trial> {
    let names = TESTS.iter().map(|(name, _)| *name).chain([ALONE]);
    names
        .map(|name| Trial::test(name, || Ok(())).with_ignored_flag(true))
        .collect()
}

/// Says what did not run and why.
fn skipped(arguments: &Arguments, why: &str) -> ExitCode {
    let trials = ignored();
    let line = format!("real-cluster: SKIPPED {} tests: {why}", trials.len());
    eprintln!("{line}");
    let required = std::env::var("SIDEGATE_TEST_REQUIRE").unwrap_or_default();
    if required.split(',').any(|word| word == "cluster") {
        return ExitCode::FAILURE;
    }
    let note = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/skipped.txt");
    if let Err(error) = std::fs::write(&note, format!("{line}\n")) {
        eprintln!("{}: {error}", note.display());
    }
    libtest_mimic::run(arguments, trials).exit_code()
}
