//! Replay names the columns of each answer, whichever way the agent asked for it, numbers those that nobody had described,
//! and shows no value under a mask.

use sidegate_broker::records::SessionKeys;
use sidegate_policies::record::replay::{replay, sessions, Transcript};
use sidegate_tests::postgres::Major;
use sidegate_tests::shop::{Shop, DATABASE};
use sidegate_tests::wire::{bind, describe, execute, parse, query, sync, Wire};

const PEOPLE: &str = "SELECT id, name, ssn AS number FROM app.people WHERE id < 3 ORDER BY id";
const ROWS: [&str; 2] = ["1 | Ada | *******8841", "2 | Ben | *******9923"];

/// What replay shows of every answer: the lines behind each statement.
fn told(state: &std::path::Path) -> String {
    let root = state.join("records");
    let keys = SessionKeys::open(&root).unwrap();
    let mut text = String::new();
    for session in sessions(&root).unwrap() {
        let mut transcript = Transcript::default();
        replay(&root, session, &|id| keys.get(id), &mut |event| {
            text.push_str(&transcript.tell(&event));
            Ok(())
        })
        .unwrap();
    }
    text
}

/// Asks in every way; answers how often the people were asked for.
fn ask(port: u16) -> usize {
    let mut wire = Wire::login(port, DATABASE).unwrap();
    let mut asked = 0;
    let mut ask = |messages: &[Vec<u8>]| {
        let frames = wire.ask(messages).unwrap();
        assert!(frames.iter().all(|frame| frame.kind != b'E'), "{frames:?}");
        asked += 1;
    };
    ask(&[query(PEOPLE)]);
    // A new statement, described as a portal, as a statement, and not at all.
    let unnamed = [parse("", PEOPLE), bind("", "", &[], 0)].concat();
    ask(&[unnamed.clone(), describe(b'P', ""), execute("", 0), sync()]);
    ask(&[
        parse("", PEOPLE),
        describe(b'S', ""),
        bind("", "", &[], 0),
        execute("", 0),
        sync(),
    ]);
    ask(&[unnamed, execute("", 0), sync()]);
    // One statement run again and again, the last time in binary.
    ask(&[
        parse("again", PEOPLE),
        bind("", "again", &[], 0),
        execute("", 0),
        sync(),
    ]);
    for format in [0, 0, 1] {
        ask(&[bind("", "again", &[], format), execute("", 0), sync()]);
    }
    // Nothing of these is masked, so the gate needs no description either, and nobody has one.
    ask(&[
        parse("", "SELECT id, 'x' FROM app.people WHERE id = 1"),
        bind("", "", &[], 0),
        execute("", 0),
        sync(),
    ]);
    ask(&[
        parse("n", "SELECT 7, 8, 9"),
        bind("", "n", &[], 1),
        execute("", 0),
        sync(),
    ]);
    asked - 2
}

async fn named(major: Major) {
    let shop = Shop::start(major).await.unwrap();
    let port = shop.port;
    let asked = tokio::task::spawn_blocking(move || ask(port)).await.unwrap();
    let state = shop.world.stop().await;
    let told = told(&state.path().join("state"));
    for line in ["id | name | number", ROWS[0], ROWS[1]] {
        assert_eq!(told.matches(line).count(), asked, "{line} in\n{told}");
    }
    for lines in [
        ["column 1 | column 2\n", "| 1 | x\n"],
        [
            "column 1 | column 2 | column 3\n",
            "| \\x00000007 | \\x00000008 | \\x00000009\n",
        ],
    ] {
        for line in lines {
            assert_eq!(told.matches(line).count(), 1, "{line} in\n{told}");
        }
    }
    assert!(!told.contains("531-22-8841") && !told.contains("531-22"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replay_names_the_columns_on_15() {
    named(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replay_names_the_columns_on_18() {
    named(Major::V18).await;
}
