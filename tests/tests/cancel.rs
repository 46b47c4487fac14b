//! CancelRequest reaches the running statement of its own session and no other: not the next, not a stranger's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sidegate_tests::postgres::Major;
use sidegate_tests::shop::{Shop, DATABASE};
use sidegate_tests::wire::{bind, cancel, execute, number, parse, query, shape, state, sync, Frame, Wire};

/// Only a cancel ends it within anybody's patience.
const ENDLESS: &str = "SELECT count(*) FROM app.numbers a, app.numbers b, app.numbers c WHERE a.n + b.n + c.n = 0";
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks again until the answer is there: a request that overtakes its statement is void, as with any server.
fn cancelled(wire: &mut Wire, port: u16, messages: &[Vec<u8>]) -> Vec<Frame> {
    let (id, key) = wire.key.clone().unwrap();
    let answered = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !answered.load(Ordering::Acquire) {
                cancel(port, id, &key).unwrap();
            }
        });
        let frames = wire.ask(messages);
        answered.store(true, Ordering::Release);
        frames.unwrap()
    })
}

/// Waits until the server runs so many of the endless statements.
fn running(shop: &Shop, wanted: &str) {
    let count = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = '{ENDLESS}' AND pid <> pg_backend_pid()"
    );
    let deadline = Instant::now() + PATIENCE;
    while shop.server.sql(DATABASE, &count).unwrap() != wanted {
        assert!(Instant::now() < deadline, "never {wanted} running");
    }
}

/// Cancelled, with this status after it; how far the statement had come before is not the test's matter.
fn ended(frames: &[Frame], status: &[u8]) {
    let shape = shape(frames);
    assert_eq!(state(frames).as_deref(), Some("57014"), "{shape:?}");
    assert!(number(frames, b'D') == 0 && number(frames, b'C') == 0, "{shape:?}");
    assert_eq!(frames.last().unwrap().body, status, "{shape:?}");
}

fn hits_what_runs(port: u16, minor: u16) {
    let mut wire = Wire::login_as(port, DATABASE, minor).unwrap();
    let (id, key) = wire.key.clone().unwrap();
    assert_eq!(key.len(), if minor == 0 { 4 } else { 32 }, "protocol 3.{minor}");
    assert!(id <= i32::MAX as u32, "old drivers ignore a negative process id");
    let frames = cancelled(&mut wire, port, &[query(ENDLESS)]);
    ended(&frames, b"I");
    assert!(wire.alive().unwrap());
    let extended = [parse("", ENDLESS), bind("", "", &[], 0), execute("", 0), sync()];
    let frames = cancelled(&mut wire, port, &extended);
    ended(&frames, b"I");
    assert!(wire.alive().unwrap());
    wire.ask(&[query("BEGIN")]).unwrap();
    let frames = cancelled(&mut wire, port, &[query(ENDLESS)]);
    // The transaction failed with it.
    ended(&frames, b"E");
    wire.ask(&[query("ROLLBACK")]).unwrap();
    assert!(wire.alive().unwrap());
}

/// Requests at every moment of a short statement: it may be hit, whatever follows the request may not.
fn spares_the_next(port: u16) {
    let mut wire = Wire::login(port, DATABASE).unwrap();
    let (id, key) = wire.key.clone().unwrap();
    let mut hit = 0;
    for round in 0..60u32 {
        let rows = 1 + (round % 15) * 350;
        let short = format!("SELECT count(*) FROM app.numbers a, app.numbers b WHERE a.n <= {rows} AND b.n <= 200");
        wire.send(&query(&short)).unwrap();
        cancel(port, id, &key).unwrap();
        let frames = wire.until_ready().unwrap();
        hit += u32::from(state(&frames).as_deref() == Some("57014"));
        // Between statements there is nothing to hit.
        cancel(port, id, &key).unwrap();
        assert!(wire.alive().unwrap(), "round {round}");
    }
    assert!(hit > 0, "no request hit anything: the test proves nothing");
}

fn strangers_are_ignored(shop: &Shop) {
    let port = shop.port;
    let mut one = Wire::login_as(port, DATABASE, 2).unwrap();
    let mut two = Wire::login_as(port, DATABASE, 2).unwrap();
    let ((id, key), (other, other_key)) = (one.key.clone().unwrap(), two.key.clone().unwrap());
    one.send(&query(ENDLESS)).unwrap();
    running(shop, "1");
    let mut wrong = key.clone();
    wrong[31] ^= 1;
    for (id, key) in [
        (id, &wrong[..]),
        (id, &key[..4]),
        (id, &other_key),
        (other, &key),
        (id ^ 1, &key),
        (id, &[]),
    ] {
        cancel(port, id, key).unwrap();
    }
    // Its owner's own key, for a session in which nothing runs.
    cancel(port, other, &other_key).unwrap();
    running(shop, "1");
    assert!(two.alive().unwrap());
    cancel(port, id, &key).unwrap();
    ended(&one.until_ready().unwrap(), b"I");
    // A session that is gone took its key along.
    drop(two);
    one.send(&query(ENDLESS)).unwrap();
    running(shop, "1");
    cancel(port, other, &other_key).unwrap();
    running(shop, "1");
    cancel(port, id, &key).unwrap();
    ended(&one.until_ready().unwrap(), b"I");
    // The agent goes away: what it started ends with it.
    one.send(&query(ENDLESS)).unwrap();
    running(shop, "1");
    drop(one);
    running(shop, "0");
}

async fn cancels(major: Major) {
    let shop = Shop::start(major).await.unwrap();
    let shop = tokio::task::spawn_blocking(move || {
        hits_what_runs(shop.port, 0);
        hits_what_runs(shop.port, 2);
        spares_the_next(shop.port);
        strangers_are_ignored(&shop);
        shop
    });
    shop.await.unwrap().world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_hits_its_own_running_statement_only_on_15() {
    cancels(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_hits_its_own_running_statement_only_on_18() {
    cancels(Major::V18).await;
}
