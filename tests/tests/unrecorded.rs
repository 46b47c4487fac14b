//! A record that takes nothing stops statements and not sessions: each fails with 58000, the server's transaction as
//! well, nothing of it was run, and all goes on when the record does.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sidegate_policies::record::verify::{verify_store, Options, Verdict};
use sidegate_tests::postgres::Major;
use sidegate_tests::shop::{Shop, DATABASE};
use sidegate_tests::wire::{bind, execute, parse, query, shape, state, sync, Wire};

/// A journal that can be taken away: new segments cannot be made meanwhile.
struct Journal {
    here: PathBuf,
    away: PathBuf,
}

impl Journal {
    fn of(world: &Path) -> Journal {
        let logs = std::fs::read_dir(world.join("journal")).unwrap();
        let here = logs.map(|log| log.unwrap().path()).next().unwrap();
        let away = here.with_file_name("away");
        Journal { here, away }
    }

    fn take(&self) {
        std::fs::rename(&self.here, &self.away).unwrap();
    }

    fn give_back(&self) {
        std::fs::rename(&self.away, &self.here).unwrap();
    }
}

/// A statement whose text fills a fifth of a segment, and does not compress.
fn large() -> Vec<u8> {
    let mut noise = vec![0u8; 900_000];
    aws_lc_rs::rand::fill(&mut noise).unwrap();
    let noise: String = noise.iter().map(|byte| char::from(b'A' + byte % 26)).collect();
    query(&format!("SELECT n FROM app.numbers WHERE n < 2 AND '{noise}' <> ''"))
}

/// Fills the segment until the record takes no more.
fn fill(wire: &mut Wire) -> Vec<String> {
    for _ in 0..20 {
        let frames = wire.ask(&[large()]).unwrap();
        if state(&frames).is_some() {
            return shape(&frames);
        }
    }
    panic!("the record takes everything");
}

/// Waits until the collector holds everything: the upload that failed meanwhile is tried again some seconds later, and a
/// collector that heard nothing for five is a reason of its own to refuse.
fn collected(shop: &Shop) {
    let log = shop.world.sidecar.authority().log().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while log.status().received < log.status().written {
        assert!(Instant::now() < deadline, "{:?}", log.status());
        shop.server.sql(DATABASE, "SELECT 1").unwrap();
    }
}

fn insert(id: u32) -> String {
    format!("INSERT INTO app.items (id, label) VALUES ({id}, 'x')")
}

fn extended(sql: &str) -> Vec<u8> {
    [parse("", sql), bind("", "", &[], 0), execute("", 0)].concat()
}

fn whole_life(shop: &Shop, journal: &Journal) {
    let mut wire = Wire::login(shop.port, DATABASE).unwrap();
    assert!(wire.alive().unwrap());
    journal.take();
    assert_eq!(fill(&mut wire), ["E 58000", "Z I"]);
    // Batches fail one by one, whatever they are made of.
    wire.send(
        &[
            query(&insert(9001)),
            query(&insert(9002)),
            extended(&insert(9003)),
            sync(),
        ]
        .concat(),
    )
    .unwrap();
    for _ in 0..3 {
        assert_eq!(shape(&wire.until_ready().unwrap()), ["E 58000", "Z I"]);
    }
    // Behind a failed extended message everything up to Sync is void, a query too.
    let batch = [
        extended(&insert(9004)),
        query(&insert(9005)),
        extended(&insert(9006)),
        sync(),
    ];
    assert_eq!(shape(&wire.ask(&batch).unwrap()), ["E 58000", "Z I"]);
    let named = [
        parse("kept", "SELECT 1"),
        bind("", "kept", &[], 0),
        execute("", 0),
        sync(),
    ];
    assert_eq!(shape(&wire.ask(&named).unwrap()), ["E 58000", "Z I"]);
    journal.give_back();
    collected(shop);
    assert!(wire.alive().unwrap());
    let gone = wire.ask(&[bind("", "kept", &[], 0), sync()]).unwrap();
    assert_eq!(state(&gone).as_deref(), Some("26000"), "the server never heard of it");

    // In a transaction the server fails with us.
    assert_eq!(shape(&wire.ask(&[query("BEGIN")]).unwrap()), ["C BEGIN", "Z T"]);
    wire.ask(&[query(&insert(9007))]).unwrap();
    journal.take();
    assert_eq!(fill(&mut wire), ["E 58000", "Z E"]);
    journal.give_back();
    collected(shop);
    let after = wire.ask(&[query(&insert(9008))]).unwrap();
    assert_eq!(shape(&after), ["E 25P02", "Z E"], "the server says so itself");
    assert_eq!(shape(&wire.ask(&[query("COMMIT")]).unwrap()), ["C ROLLBACK", "Z I"]);
    assert!(wire.alive().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_statements_and_not_the_session() {
    for major in [Major::V15, Major::V18] {
        let shop = Shop::start(major).await.unwrap();
        let journal = Journal::of(shop.world.state().parent().unwrap());
        let life = tokio::task::spawn_blocking(move || {
            whole_life(&shop, &journal);
            let count = "SELECT count(*) FROM app.items WHERE id > 9000";
            let ran = shop.server.sql(DATABASE, count).unwrap();
            assert_eq!(ran.trim(), "0", "something ran unrecorded");
            collected(&shop);
            shop
        });
        let shop = life.await.unwrap();
        let folder = shop.world.stop().await;
        let report = verify_store(&folder.path().join("state/records"), &Options::default()).unwrap();
        assert_eq!(report.exit_code(), 0, "{report:#?}");
        assert!(report.sessions.iter().all(|session| session.verdict == Verdict::Valid));
    }
}
