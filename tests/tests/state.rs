//! After any refusal, at any place in a pipeline or transaction, client, gate and server agree on the state.
//!
//! The yardstick is the server itself: a refused statement must leave exactly the shape of answer that a statement
//! with a syntax error leaves on a direct line; only the SQLSTATE differs (42501 for 42601).

use sidegate_tests::postgres::{Major, Options, Postgres};
use sidegate_tests::shop::{self, Shop, DATABASE};
use sidegate_tests::wire::{bind, describe, execute, parse, query, shape, sync, Wire};

/// A server that lets the tests in without a password, for the direct run.
fn direct(major: Major) -> Postgres {
    let options = Options {
        hba: vec!["host all all 127.0.0.1/32 trust".into()],
        ..Options::default()
    };
    let server = shop::server(major, options).unwrap();
    server.sql(DATABASE, "CREATE ROLE whoever LOGIN SUPERUSER").unwrap();
    server
}

const REFUSED: &str = "DROP TABLE app.items";
const BROKEN: &str = "DROP TABL app.items";

/// What a client sends in one conversation: writes, each a list of messages.
type Writes = Vec<Vec<Vec<u8>>>;

fn insert(n: i32) -> Vec<u8> {
    query(&format!("INSERT INTO app.items (id) VALUES ({n})"))
}

/// Parse, Bind, Describe and Execute of the unnamed statement and portal.
fn extended(sql: &str) -> Vec<u8> {
    [parse("", sql), bind("", "", &[], 0), describe(b'P', ""), execute("", 0)].concat()
}

fn count() -> Vec<Vec<u8>> {
    vec![query("SELECT count(*) FROM app.items")]
}

fn simple(bad: &str) -> Vec<(&'static str, Writes)> {
    let one = |sql: &str| vec![query(sql)];
    vec![
        ("simple, idle", vec![one(bad), one("SELECT 1")]),
        (
            "simple, in a transaction",
            vec![
                one("BEGIN"),
                vec![insert(1)],
                one(bad),
                one("SELECT 1"),
                one("COMMIT"),
                count(),
            ],
        ),
        (
            "simple, savepoint",
            vec![
                one("BEGIN"),
                one("SAVEPOINT a"),
                one(bad),
                one("ROLLBACK TO a"),
                vec![insert(2)],
                one("COMMIT"),
                one("DELETE FROM app.items WHERE id = 2"),
            ],
        ),
    ]
}

fn pipelined(bad: &str) -> Vec<(&'static str, Writes)> {
    let run = |sql: &str| vec![extended(sql), sync()];
    let good = "INSERT INTO app.items (id) VALUES (3)";
    vec![
        ("extended, idle", vec![run(bad), run("SELECT 1")]),
        (
            "pipeline: good, bad, good, one Sync",
            vec![
                vec![extended(good), extended(bad), extended("SELECT 1"), sync()],
                count(),
            ],
        ),
        (
            "pipeline: a Sync after each",
            vec![[run("SELECT 1"), run(bad), run("SELECT 2")].concat(), vec![], vec![]],
        ),
        (
            "extended in a transaction",
            vec![run("BEGIN"), run(good), run(bad), run("COMMIT"), count()],
        ),
        (
            "named statement, then a bad one under another name",
            vec![
                vec![parse("s", "SELECT 1"), sync()],
                vec![parse("t", bad), sync()],
                vec![bind("", "s", &[], 1), execute("", 0), sync()],
                vec![bind("", "t", &[], 0), execute("", 0), sync()],
            ],
        ),
        (
            "the unnamed statement does not survive a bad one",
            vec![
                vec![parse("", "SELECT 1"), sync()],
                vec![parse("", bad), sync()],
                vec![bind("", "", &[], 0), execute("", 0), sync()],
            ],
        ),
    ]
}

/// An empty write reads one more ReadyForQuery.
fn conversations(bad: &str) -> Vec<(&'static str, Writes)> {
    [simple(bad), pipelined(bad)].concat()
}

/// Runs every conversation on a connection of its own.
fn run(port: u16, bad: &str) -> Vec<(&'static str, Vec<Vec<String>>)> {
    let mut all = Vec::new();
    for (name, writes) in conversations(bad) {
        let mut wire = Wire::login(port, DATABASE).unwrap();
        let mut answers = Vec::new();
        for write in writes {
            answers.push(shape(&wire.ask(&write).unwrap()));
        }
        all.push((name, answers));
    }
    all
}

async fn agrees(major: Major) {
    let shop = Shop::start(major).await.unwrap();
    let port = shop.port;
    let (gated, server) = tokio::task::spawn_blocking(move || {
        let server = direct(major);
        (run(port, REFUSED), run(server.port, BROKEN))
    })
    .await
    .unwrap();
    for ((name, gated), (_, server)) in gated.into_iter().zip(server) {
        let expected: Vec<Vec<String>> = server
            .iter()
            .map(|shape| shape.iter().map(|part| part.replace("E 42601", "E 42501")).collect())
            .collect();
        assert_eq!(gated, expected, "{name}");
    }
    shop.world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_statement_is_a_failed_statement_on_15() {
    agrees(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_statement_is_a_failed_statement_on_18() {
    agrees(Major::V18).await;
}
