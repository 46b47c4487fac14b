//! A row or byte limit ends the answer with 54000 and the statement at the server; client, gate and server agree after.

use std::time::{Duration, Instant};

use sidegate_tests::postgres::{Major, Options};
use sidegate_tests::shop::{self, Shop, DATABASE};
use sidegate_tests::wire::{bind, describe, execute, number, parse, query, shape, state, sync, Wire};
use sidegate_tests::{ports, wire};

const LIMITS: &str = "  limits: {rows: 100, bytes: 8Ki}";
/// More rows than anybody waits for: the answer ends because the statement was cancelled, or the test fails by time.
const ENDLESS: &str = "SELECT a.n FROM app.numbers a, app.numbers b, app.numbers c";

async fn shop(major: Major) -> Shop {
    let options = Options {
        settings: vec!["log_statement = 'all'".into()],
        ..Options::default()
    };
    let (server, port) = (shop::server(major, options).unwrap(), ports::free().unwrap());
    let world = shop::setup(shop::configuration(server.port, port, "", LIMITS))
        .start()
        .await
        .unwrap();
    Shop { server, world, port }
}

fn over(frames: &[wire::Frame], rows: usize) {
    assert_eq!(state(frames).as_deref(), Some("54000"), "{:?}", shape(frames));
    assert_eq!(number(frames, b'D') + number(frames, b'd'), rows);
    assert_eq!((number(frames, b'E'), number(frames, b'C')), (1, 0));
    assert_eq!(frames.last().unwrap().kind, b'Z');
}

fn run(sql: &str) -> Vec<u8> {
    [parse("", sql), bind("", "", &[], 0), describe(b'P', ""), execute("", 0)].concat()
}

/// Each way to read too much, on one connection: it must be usable after each.
fn too_much(port: u16) {
    let mut wire = Wire::login(port, DATABASE).unwrap();
    let inside = wire.ask(&[query("SELECT n FROM app.numbers WHERE n <= 100")]).unwrap();
    assert_eq!((state(&inside), number(&inside, b'D')), (None, 100));
    for text in [
        "SELECT n FROM app.numbers",
        ENDLESS,
        "TABLE app.numbers; SELECT 1",
        "COPY app.numbers TO STDOUT",
    ] {
        over(&wire.ask(&[query(text)]).unwrap(), 100);
        assert!(wire.alive().unwrap(), "{text}");
        if !text.contains(';') {
            over(&wire.ask(&[run(text), sync()]).unwrap(), 100);
            assert!(wire.alive().unwrap(), "{text}, extended");
        }
    }
    let bytes = wire
        .ask(&[query("SELECT repeat('x', 1000) FROM app.numbers WHERE n <= 50")])
        .unwrap();
    over(&bytes, 8);
    assert!(wire.alive().unwrap());
    // The caps are the operation's, not one Execute's.
    let calls = [execute("", 60), execute("", 60), sync()];
    let suspended = [parse("", "SELECT n FROM app.numbers"), bind("", "", &[], 0)].concat();
    let frames = wire.ask(&[&[suspended][..], &calls].concat()).unwrap();
    assert_eq!((number(&frames, b's'), number(&frames, b'D')), (1, 100));
    assert_eq!(state(&frames).as_deref(), Some("54000"));
    assert!(wire.alive().unwrap());
}

/// Within a transaction and a pipeline the state is the server's own, and nothing that was answered by an error runs.
fn agreed(port: u16) {
    let mut wire = Wire::login(port, DATABASE).unwrap();
    wire.ask(&[query("BEGIN")]).unwrap();
    let frames = wire.ask(&[query(ENDLESS)]).unwrap();
    over(&frames, 100);
    assert_eq!(
        frames.last().unwrap().body,
        b"E",
        "the cancelled statement failed its transaction"
    );
    assert_eq!(shape(&wire.ask(&[query("COMMIT")]).unwrap()), ["C ROLLBACK", "Z I"]);
    for text in [ENDLESS, "SELECT n FROM app.numbers WHERE n <= 101"] {
        for round in 0..10 {
            let pipeline = [
                run(text),
                run("SELECT 1"),
                run("SELECT 2"),
                sync(),
                run("SELECT 3"),
                sync(),
            ];
            let frames = wire.ask(&pipeline).unwrap();
            over(&frames, 100);
            assert_eq!(
                number(&frames, b'2'),
                1,
                "nothing behind the error: {:?}",
                shape(&frames)
            );
            let rest = wire.until_ready().unwrap();
            assert_eq!(
                shape(&rest),
                ["1", "2", "T", "D", "C SELECT 1", "Z I"],
                "{text} round {round}"
            );
        }
    }
}

/// The endless statements were ended at the server, not left to run.
fn nothing_runs(shop: &Shop) {
    let active = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%app.numbers c%'
        AND pid <> pg_backend_pid()";
    let deadline = Instant::now() + Duration::from_secs(10);
    while shop.server.sql(DATABASE, active).unwrap() != "0" {
        assert!(Instant::now() < deadline, "a statement over its limit still runs");
    }
    assert!(shop.server.log().contains("canceling statement due to user request"));
}

async fn limited(major: Major) {
    let shop = shop(major).await;
    let port = shop.port;
    let clients = tokio::task::spawn_blocking(move || {
        too_much(port);
        agreed(port);
    });
    clients.await.unwrap();
    nothing_runs(&shop);
    shop.world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_ends_the_answer_and_the_statement_on_15() {
    limited(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_ends_the_answer_and_the_statement_on_18() {
    limited(Major::V18).await;
}
