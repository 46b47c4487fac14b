//! The server's own log says whose session it is: application_name keeps our prefix, whatever the agent sets.

use sidegate_tests::ports;
use sidegate_tests::postgres::{Major, Options};
use sidegate_tests::shop::{self, DATABASE, ROLE};
use sidegate_tests::wire::{query, state, Wire};

/// Texts that an agent may send, and whether they pass.
const ATTEMPTS: [(&str, bool); 8] = [
    ("SET application_name = 'reports'", true),
    ("SET LOCAL application_name TO 'reports'", true),
    ("RESET application_name", true),
    ("SELECT current_setting('application_name')", true),
    ("SELECT set_config('application_name', 'another-agent', false)", false),
    (
        "SELECT set_config('Application_Name', 'another-agent', false), 1",
        false,
    ),
    ("SET application_name = 'another-agent'; SELECT 1", false),
    (
        "SELECT n, set_config('application_name', 'x', false) FROM app.numbers LIMIT 1",
        false,
    ),
];

async fn keeps(major: Major) {
    let server = shop::server(major, Options::default()).unwrap();
    let port = ports::free().unwrap();
    let config = shop::configuration(server.port, port, "", "");
    let world = shop::setup(config).start().await.unwrap();
    let mut wire = Wire::login(port, DATABASE).unwrap();
    for (text, passes) in ATTEMPTS {
        let refused = state(&wire.ask(&[query(text)]).unwrap());
        assert_eq!(refused.as_deref(), (!passes).then_some("42501"), "{text}");
        let names = server
            .sql(
                "postgres",
                &format!("SELECT application_name FROM pg_stat_activity WHERE usename = '{ROLE}'"),
            )
            .unwrap();
        assert!(
            !names.is_empty() && names.lines().all(|name| name.starts_with("sg:")),
            "{text}: {names}"
        );
    }
    drop(wire);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_keeps_its_name_on_15() {
    keeps(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_keeps_its_name_on_18() {
    keeps(Major::V18).await;
}
