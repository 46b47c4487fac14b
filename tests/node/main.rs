//! What only a real node can show: injected pods under a kubelet, with our own images and the stock clients of agents.
//!
//! `make node` runs it, as root. It executes itself in namespaces of its own, and when that has ended it looks whether
//! anything is left. Where there can be no node every test is registered as ignored and the reason is printed and kept in
//! `target/skipped.txt`; with `SIDEGATE_TEST_REQUIRE=node` that is a failure.

mod agents;
mod fenced;
mod guarded;
mod heap;
mod lifecycle;
mod live;
mod names;
mod numbers;
mod several;
mod waiting;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};
use sidegate_tests::cluster::node::house::{self, House};
use sidegate_tests::cluster::node::site::Site;
use sidegate_tests::cluster::node::{keeper, Parts};
use sidegate_tests::cluster::{is_required, Programs, Unavailable};

/// A test on the shared node.
type Test = fn(&Site) -> Result<()>;

const TESTS: &[(&str, Test)] = &[
    (
        "agents::psql_reads_masked_rows_by_a_secret",
        agents::psql_reads_masked_rows_by_a_secret,
    ),
    (
        "agents::python_reads_masked_rows_by_a_token",
        agents::python_reads_masked_rows_by_a_token,
    ),
    (
        "agents::every_workload_runs_with_its_sidecar_first",
        agents::every_workload_runs_with_its_sidecar_first,
    ),
    (
        "agents::another_namespace_runs_untouched",
        agents::another_namespace_runs_untouched,
    ),
    (
        "agents::helm_test_says_that_pods_get_their_sidecar_and_leaves_nothing",
        agents::helm_test_says_that_pods_get_their_sidecar_and_leaves_nothing,
    ),
    (
        "fenced::an_agent_gets_out_by_its_sidecar_alone_and_a_fence_that_is_gone_is_told",
        fenced::an_agent_gets_out_by_its_sidecar_alone_and_a_fence_that_is_gone_is_told,
    ),
    (
        "guarded::a_running_sidecar_is_left_alone",
        guarded::a_running_sidecar_is_left_alone,
    ),
    (
        "guarded::a_running_agent_is_debugged_and_updated",
        guarded::a_running_agent_is_debugged_and_updated,
    ),
    (
        "heap::nothing_of_a_password_is_left_in_a_sidecar_once_its_lease_is_gone",
        heap::nothing_of_a_password_is_left_in_a_sidecar_once_its_lease_is_gone,
    ),
    (
        "lifecycle::an_init_container_reads_and_a_job_finishes",
        lifecycle::an_init_container_reads_and_a_job_finishes,
    ),
    (
        "lifecycle::a_restarted_sidecar_keeps_its_ports",
        lifecycle::a_restarted_sidecar_keeps_its_ports,
    ),
    (
        "lifecycle::an_agent_keeps_its_database_while_it_stops",
        lifecycle::an_agent_keeps_its_database_while_it_stops,
    ),
    (
        "live::a_policy_holds_for_an_open_session",
        live::a_policy_holds_for_an_open_session,
    ),
    (
        "live::a_lockdown_ends_an_open_session",
        live::a_lockdown_ends_an_open_session,
    ),
    (
        "live::an_authority_is_replaced_under_load",
        live::an_authority_is_replaced_under_load,
    ),
    (
        "names::a_client_that_nobody_changed_reads_masked_rows",
        names::a_client_that_nobody_changed_reads_masked_rows,
    ),
    (
        "numbers::from_label_to_first_masked_row",
        numbers::from_label_to_first_masked_row,
    ),
    (
        "numbers::how_much_later_a_pod_is_ready",
        numbers::how_much_later_a_pod_is_ready,
    ),
    (
        "waiting::a_pod_waits_for_the_broker_where_its_profile_says_so",
        waiting::a_pod_waits_for_the_broker_where_its_profile_says_so,
    ),
    (
        "several::a_release_grows_to_two_brokers_and_outlives_the_one_that_leads",
        several::a_release_grows_to_two_brokers_and_outlives_the_one_that_leads,
    ),
];
/// What this program is asked instead of running tests.
const VERBS: [&str; 4] = ["suits", "up", "down", "keep"];
/// What the outer process checks when the inner one has ended.
const CLEAN: &str = "house::nothing_is_left_behind";
/// Longest time for all of it.
const LONGEST: Duration = Duration::from_secs(600);

fn main() -> ExitCode {
    if let Some(word) = std::env::args().nth(1).filter(|word| VERBS.contains(&word.as_str())) {
        return match kept(&word) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("cluster: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let arguments = Arguments::from_args();
    let (programs, parts) = match found() {
        Ok(found) => found,
        Err(missing) => return skipped(&arguments, &missing),
    };
    if let Some(run) = house::inside() {
        return inner(arguments, &programs, &parts, &run);
    }
    if let Err(missing) = house::suits(&parts) {
        return skipped(&arguments, &missing);
    }
    if arguments.list {
        return libtest_mimic::run(&arguments, ignored()).exit_code();
    }
    match outer() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn found() -> Result<(Programs, Parts), Unavailable> {
    let parts = Parts::find()?;
    Ok((Programs::find()?, parts))
}

/// `make cluster` and `make cluster-down`: the same site without tests, kept by a process of its own.
fn kept(word: &str) -> Result<()> {
    match word {
        "up" => {
            let (_, parts) = found().map_err(|missing| anyhow::anyhow!(missing.0))?;
            house::suits(&parts).map_err(|missing| anyhow::anyhow!(missing.0))?;
            keeper::up()
        }
        // Whether anything would run here, so that nobody builds images for nothing.
        "suits" => {
            let (_, parts) = found().map_err(|missing| anyhow::anyhow!(missing.0))?;
            house::suits(&parts).map_err(|missing| anyhow::anyhow!(missing.0))
        }
        "down" => {
            if !keeper::down()? {
                println!("cluster: none runs");
            }
            Ok(())
        }
        _ => match house::inside() {
            None => keeper::keep(),
            Some(run) => {
                let (programs, parts) = found().map_err(|missing| anyhow::anyhow!(missing.0))?;
                keeper::inside(&programs, &parts, &run, &images())
            }
        },
    }
}

/// Has the suite run inside, and looks what is left of it.
fn outer() -> Result<ExitCode> {
    let house = House::build()?;
    let words: Vec<String> = std::env::args().skip(1).collect();
    let ended = house.enter(&words).and_then(|mut child| {
        let ended = house.wait(&mut child, Some(LONGEST));
        house::end(&mut child);
        ended
    });
    let left = house.leave();
    let clean = Trial::test(CLEAN, move || match left {
        Ok(left) if left.is_empty() => Ok(()),
        Ok(left) => Err(Failed::from(left.join("\n"))),
        Err(error) => Err(Failed::from(format!("{error:#}"))),
    });
    let quiet = Arguments::default();
    let conclusion = libtest_mimic::run(&quiet, vec![clean]);
    match ended?.success() {
        true => Ok(conclusion.exit_code()),
        false => Ok(ExitCode::FAILURE),
    }
}

/// The suite itself.
fn inner(mut arguments: Arguments, programs: &Programs, parts: &Parts, run: &Path) -> ExitCode {
    // Tests mostly wait; more at once would be measured by each other.
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(2));
    let started = house::furnish(parts).and_then(|()| Site::start(programs, parts, run, &images()));
    let site = match started {
        Ok(site) => Arc::new(site),
        Err(error) => {
            eprintln!("node: it did not come up: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    match site.node.cluster.version() {
        Ok(version) => eprintln!("real-node: Kubernetes {version}"),
        Err(error) => {
            eprintln!("node: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    let trials = TESTS.iter().map(|(name, test)| {
        let site = Arc::clone(&site);
        Trial::test(*name, move || {
            test(&site).map_err(|error| Failed::from(format!("{error:#}")))
        })
    });
    // One after another: what is measured, and what changes the release under everybody, at the end.
    let alone = |trial: &Trial| {
        ["numbers::", "waiting::", "several::"]
            .iter()
            .any(|first| trial.name().starts_with(first))
    };
    let (alone, others): (Vec<Trial>, Vec<Trial>) = trials.partition(alone);
    let first = libtest_mimic::run(&arguments, others);
    arguments.test_threads = Some(1);
    let second = libtest_mimic::run(&arguments, alone);
    drop(site);
    match first.has_failed() || second.has_failed() {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

/// Where `images/build.sh` left our images for tests.
fn images() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    // target/PROFILE/deps/node-...
    let target = own.ancestors().nth(3).map(Path::to_path_buf).unwrap_or_default();
    std::env::var_os("SIDEGATE_TEST_IMAGES").map_or_else(|| target.join("images-proof"), PathBuf::from)
}

fn ignored() -> Vec<Trial> {
    let names = TESTS.iter().map(|(name, _)| *name).chain([CLEAN]);
    names
        .map(|name| Trial::test(name, || Ok(())).with_ignored_flag(true))
        .collect()
}

/// Says what did not run and why.
fn skipped(arguments: &Arguments, why: &Unavailable) -> ExitCode {
    let trials = ignored();
    let line = format!("real-node: SKIPPED {} tests: {}", trials.len(), why.0);
    eprintln!("{line}");
    if is_required("node") {
        return ExitCode::FAILURE;
    }
    let note = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/skipped.txt");
    // The suite on the API server writes there first.
    let before = std::fs::read_to_string(&note).unwrap_or_default();
    let others: String = before
        .lines()
        .filter(|line| !line.starts_with("real-node:"))
        .map(|line| format!("{line}\n"))
        .collect();
    if let Err(error) = std::fs::write(&note, format!("{others}{line}\n")) {
        eprintln!("{}: {error}", note.display());
    }
    libtest_mimic::run(arguments, trials).exit_code()
}
