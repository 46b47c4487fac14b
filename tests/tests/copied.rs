//! COPY from the agent is capped by the policy's limits, and the record proves what was copied without holding it.

use aws_lc_rs::hmac;
use sidegate_broker::records::SessionKeys;
use sidegate_policies::record::frame::hex;
use sidegate_tests::postgres::Major;
use sidegate_tests::shop::{Shop, DATABASE};
use sidegate_tests::told;
use sidegate_tests::wire::{bind, execute, message, number, parse, query, shape, state, sync, Frame, Wire};
use uuid::Uuid;

const LIMITS: &str = "  limits: {rows: 100, bytes: 8Ki}";
const TEXT: &str = "COPY app.items (id, label) FROM STDIN";
const CSV: &str = "COPY app.items (id, label) FROM STDIN (FORMAT csv, HEADER)";
const BINARY: &str = "COPY app.items (id) FROM STDIN (FORMAT binary)";

/// Rows from `from`, so many, with this label.
fn rows(from: usize, count: usize, label: &str) -> Vec<u8> {
    let rows: String = (from..from + count).map(|id| format!("{id}\t{label}\n")).collect();
    rows.into_bytes()
}

fn binary(from: u32, count: u32) -> Vec<u8> {
    let mut data = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
    for id in from..from + count {
        data.extend_from_slice(&[0, 1, 0, 0, 0, 4]);
        data.extend_from_slice(&id.to_be_bytes());
    }
    data.extend_from_slice(&[0xff, 0xff]);
    data
}

/// Sends a COPY of this data in messages of `piece` bytes and reads to the end.
fn copy(wire: &mut Wire, sql: &str, data: &[u8], piece: usize) -> Vec<Frame> {
    wire.send(&query(sql)).unwrap();
    wire.until(b'G').unwrap();
    send(wire, data, piece);
    wire.until_ready().unwrap()
}

fn send(wire: &mut Wire, data: &[u8], piece: usize) {
    for piece in data.chunks(piece) {
        wire.send(&message(b'd', piece)).unwrap();
    }
    wire.send(&message(b'c', &[])).unwrap();
}

/// The agent hears one error, with what became of the data, and the status is the server's.
fn over(frames: &[Frame], status: &str) {
    assert_eq!(shape(frames), ["E 54000", status]);
    let said = frames[0].field(b'M').unwrap();
    assert!(said.contains("It took effect: no."), "{said}");
}

fn stored(shop: &Shop) -> String {
    shop.server.sql(DATABASE, "SELECT count(*) FROM app.items").unwrap()
}

/// Each form, within its caps and just over them.
fn capped(port: u16) {
    let mut wire = Wire::login(port, DATABASE).unwrap();
    let mut csv = b"id,label\n".to_vec();
    for id in 1_000..1_100 {
        csv.extend_from_slice(format!("{id},\"two\nlines\"\n").as_bytes());
    }
    for piece in [1, 7, 64 * 1024] {
        let done = copy(&mut wire, TEXT, &rows(0, 100, "x"), piece);
        assert_eq!(shape(&done), ["C COPY 100", "Z I"]);
        let done = copy(&mut wire, CSV, &csv, piece);
        assert_eq!(shape(&done), ["C COPY 100", "Z I"]);
        let done = copy(&mut wire, BINARY, &binary(2_000, 100), piece);
        assert_eq!(shape(&done), ["C COPY 100", "Z I"]);
        let gone = wire.ask(&[query("DELETE FROM app.items WHERE id >= 0")]).unwrap();
        assert_eq!(state(&gone), None);
        over(&copy(&mut wire, TEXT, &rows(0, 101, "x"), piece), "Z I");
        assert!(wire.alive().unwrap());
        let longer = [&csv[..], b"2000,x"].concat();
        over(&copy(&mut wire, CSV, &longer, piece), "Z I");
        over(&copy(&mut wire, BINARY, &binary(0, 101), piece), "Z I");
        // Few rows, many bytes.
        over(&copy(&mut wire, TEXT, &rows(0, 9, &"y".repeat(1_000)), piece), "Z I");
        assert!(wire.alive().unwrap());
    }
    // What the server refuses by itself is told in its own words.
    let broken = copy(&mut wire, TEXT, b"one\tcolumn\ttoo\tmany\n", 64);
    assert_eq!(shape(&broken), ["E 22P04", "Z I"]);
    assert!(wire.alive().unwrap());
}

/// The state of a transaction and of a pipeline is the server's own.
fn agreed(port: u16) {
    let mut wire = Wire::login(port, DATABASE).unwrap();
    wire.ask(&[query("BEGIN")]).unwrap();
    over(&copy(&mut wire, TEXT, &rows(0, 101, "x"), 50), "Z E");
    assert_eq!(shape(&wire.ask(&[query("COMMIT")]).unwrap()), ["C ROLLBACK", "Z I"]);
    let started = [parse("", TEXT), bind("", "", &[], 0), execute("", 0), sync()].concat();
    for (count, said) in [(101, "E 54000"), (100, "C COPY 100")] {
        wire.send(&started).unwrap();
        wire.until(b'G').unwrap();
        send(&mut wire, &rows(0, count, "x"), 50);
        wire.send(&sync()).unwrap();
        assert_eq!(shape(&wire.until_ready().unwrap()), [said, "Z I"]);
        assert!(wire.alive().unwrap());
    }
    // The caps are the operation's: two COPYs of one string share them.
    wire.send(&query(&format!("{TEXT}; {TEXT}"))).unwrap();
    wire.until(b'G').unwrap();
    send(&mut wire, &rows(200, 60, "x"), 4096);
    let between = wire.until(b'G').unwrap();
    assert_eq!(number(&between, b'C'), 1);
    send(&mut wire, &rows(300, 41, "x"), 4096);
    over(&wire.until_ready().unwrap(), "Z I");
    assert!(wire.alive().unwrap());
}

/// The record of the one COPY that went through in the pipeline holds its size and a digest under the session's key.
fn recorded(state: &std::path::Path) {
    let keys = SessionKeys::open(&state.join("records")).unwrap();
    let events = told::events(state).unwrap();
    let mut proven = 0;
    for event in &events {
        let outcome = &event["event"];
        if outcome["tag"] != "COPY 100" || outcome["copiedBytes"] != rows(0, 100, "x").len() {
            continue;
        }
        let session: Uuid = event["sid"].as_str().unwrap().parse().unwrap();
        let key = keys.get(session).unwrap().digest_key();
        let digest = hex(hmac::sign(&key, &rows(0, 100, "x")).as_ref());
        assert_eq!(outcome["copiedDigest"], digest, "{outcome}");
        proven += 1;
    }
    assert_eq!(proven, 4, "three cuts of one COPY, and one in a pipeline");
    let stopped = events.iter().filter(|event| event["event"]["error"] == "54000");
    assert_eq!(stopped.count(), 15, "each COPY over a cap says so");
    assert!(events.iter().all(|event| !event.to_string().contains("two\\nlines")));
}

async fn copies(major: Major) {
    let shop = Shop::with(major, "", LIMITS).await.unwrap();
    let port = shop.port;
    tokio::task::spawn_blocking(move || {
        capped(port);
        agreed(port);
    })
    .await
    .unwrap();
    assert_eq!(stored(&shop), "100", "nothing of a COPY over its cap stays");
    assert!(shop
        .server
        .log()
        .contains("COPY from stdin failed: sidegate refused sg-"));
    let state = shop.world.stop().await;
    recorded(&state.path().join("state"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_in_is_capped_and_proven_on_15() {
    copies(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_in_is_capped_and_proven_on_18() {
    copies(Major::V18).await;
}
