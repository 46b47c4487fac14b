//! Secrets and masked values that an agent writes into its statements: the server gets them, nobody is shown them.

use sidegate_broker::records::SessionKeys;
use sidegate_policies::record::replay::{replay, Content};
use sidegate_policies::record::verify::{verify_store, Options};
use sidegate_tests::people::People;
use sidegate_tests::postgres::Major;
use sidegate_tests::psql::psql_async;
use sidegate_tests::shop::{Shop, DATABASE};
use sidegate_tests::wire::{bind, execute, parse, query, shape, state, sync, Wire};
use std::path::Path;

const RULES: &str = "    - {name: write-people, effect: Allow, sql: {commands: [Insert, Update], tables: [app.people]}}
    - {name: roles, effect: Allow, sql: {commands: [Create]}}
    - {name: ask, effect: Ask, sql: {commands: [Delete], tables: [app.people]}, ask: {approvers: [{anyone: {}}]}}
    - {name: delete, effect: Allow, sql: {commands: [Delete], tables: [app.people]}}";

/// Texts with a canary that must not be shown, and how each is answered: none, or an SQLSTATE.
const TEXTS: [(&str, &[&str]); 9] = [
    (
        "INSERT INTO app.people (id, name, ssn) VALUES (11, 'Shown Vera', 'canary-ssn-1')",
        &[],
    ),
    // The same shape: its analysis comes from the first.
    (
        "INSERT INTO app.people (id, name, ssn) VALUES (1200000, 'Shown Walt', 'canary-ssn-longer-2')",
        &[],
    ),
    (
        "UPDATE app.people SET ssn = 'canary-ssn-3' WHERE id = 11 AND name = 'Shown Vera'",
        &[],
    ),
    ("SELECT id FROM app.people WHERE ssn = 'canary-ssn-4'", &["42501"]),
    ("SELEC 'canary-text-5'", &["42501"]),
    ("SELECT 1 FROM t WHERE a = 'canary-text-6", &["42501"]),
    ("ALTER ROLE shop_agent PASSWORD 'canary-role-7'", &["42501"]),
    // The policy allows it, the server does not.
    ("CREATE ROLE shown_role LOGIN PASSWORD 'canary-role-8'", &["42501"]),
    (
        "PREPARE p AS INSERT INTO app.people VALUES ($1, $2, $3); EXECUTE p(13, 'x', 'canary-ssn-9')",
        &[],
    ),
];

/// Everything readable of every session's record.
fn told(records: &Path) -> String {
    let keys = SessionKeys::open(records).unwrap();
    let report = verify_store(records, &Options::default()).unwrap();
    let mut text = String::new();
    for session in &report.sessions {
        let id = session.session.parse().unwrap();
        replay(records, id, &|id| keys.get(id), &mut |event| {
            match &event.content {
                Content::Json(json) => text.push_str(&json.to_string()),
                Content::Bytes { bytes, .. } => text.push_str(&String::from_utf8_lossy(bytes)),
                _ => {}
            }
            text.push('\n');
            Ok(())
        })
        .unwrap();
    }
    text
}

async fn nowhere(major: Major) {
    let shop = Shop::with(major, RULES, "").await.unwrap();
    for (text, states) in TEXTS {
        let statements: Vec<&str> = text.split("; ").collect();
        let said = psql_async(shop.port, DATABASE, &statements).await.unwrap();
        assert_eq!(said.states(), states, "{text}: {said:?}");
    }
    let people = People::at(&shop.world.broker.control_socket);
    let shop = tokio::task::spawn_blocking(move || {
        let mut wire = Wire::login(shop.port, DATABASE).unwrap();
        let bound = [
            parse("", "UPDATE app.people SET ssn = $1 WHERE id = 2"),
            bind("", "", &[Some("canary-bound-10")], 0),
            execute("", 0),
            sync(),
        ];
        assert!(shape(&wire.ask(&bound).unwrap()).contains(&"C UPDATE 1".to_owned()));
        // What a person is asked: everything but the secret, and that one is hidden.
        wire.ask(&[query("BEGIN")]).unwrap();
        wire.ask(&[query("UPDATE app.people SET ssn = 'canary-before-11' WHERE id = 1")])
            .unwrap();
        let asked = "UPDATE app.people SET ssn = 'canary-held-12', name = 'Shown Zoe' WHERE id = 1; \
                     DELETE FROM app.people WHERE id = 99";
        let frames = wire.ask(&[query(asked)]).unwrap();
        assert_eq!(state(&frames).as_deref(), Some("42501"), "{:?}", shape(&frames));
        let request = people.only().unwrap();
        let operation = &request["spec"]["operation"];
        assert_eq!(operation["text"], asked.replace("canary-held-12", "***"));
        assert_eq!(
            operation["earlier"][0],
            "UPDATE app.people SET ssn = '***' WHERE id = 1"
        );
        assert_eq!(operation["hiddenValues"], 1);
        shop
    });
    let shop = shop.await.unwrap();
    let kept = shop.server.sql(
        DATABASE,
        "SELECT string_agg(ssn, ' ' ORDER BY id) FROM app.people WHERE id IN (2, 11, 13, 1200000)",
    );
    assert_eq!(
        kept.unwrap(),
        "canary-bound-10 canary-ssn-3 canary-ssn-9 canary-ssn-longer-2",
        "the server gets what was sent"
    );
    let folder = shop.world.stop().await;
    let told = told(&folder.path().join("state/records"));
    let lines: Vec<&str> = told.lines().filter(|line| line.contains("canary-")).collect();
    assert!(lines.is_empty(), "{}", lines.join("\n"));
    for shown in ["Shown Vera", "Shown Walt", "1200000", "shown_role", "Shown Zoe"] {
        assert!(told.contains(shown), "{shown} is not in\n{told}");
    }
}

/// What detectors find in a statement of plain columns, and in its values: nobody is shown it, the server gets it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_detector_finds_in_texts_and_values_is_shown_to_nobody() {
    let rules = "    - {name: ask, effect: Ask, sql: {commands: [Insert], tables: [app.items]}, ask: {approvers: [{anyone: {}}], holdFor: 1s}}";
    let detect = "    - {detect: [Email, CreditCard], as: {keepLast: {count: 4}}}";
    let shop = Shop::with(Major::V15, rules, detect).await.unwrap();
    let people = People::at(&shop.world.broker.control_socket);
    let shop = tokio::task::spawn_blocking(move || {
        let mut wire = Wire::login(shop.port, DATABASE).unwrap();
        let values = [
            Some("canary-1@example.org"),
            Some("Shown Vera, 4111 1111 1111 1111"),
            None,
        ];
        let bound = |name: &str| [bind("", name, &values, 0), execute("", 0), sync()];
        let parsed = parse("s", "SELECT $1::text AS one, $2::text AS two, $3::text AS three");
        wire.ask(&[vec![parsed], bound("s").to_vec()].concat()).unwrap();
        let again = shape(&wire.ask(&bound("s")).unwrap());
        let got: Vec<&String> = again.iter().filter(|line| *line == "D").collect();
        assert_eq!(got.len(), 1, "{again:?}");
        wire.ask(&[query("SELECT 'canary-2@example.org', 'Shown Walt'")])
            .unwrap();
        let asked = [
            parse(
                "",
                "INSERT INTO app.items (id, label) VALUES (71, $1 || 'canary-3@example.org')",
            ),
            bind("", "", &[Some("canary-4@example.org")], 0),
            execute("", 0),
            sync(),
        ];
        wire.ask(&asked).unwrap();
        let request = people.only().unwrap();
        let operation = &request["spec"]["operation"];
        assert_eq!(
            operation["text"],
            "INSERT INTO app.items (id, label) VALUES (71, $1 || '***')"
        );
        assert_eq!(operation["parameters"][0], "***", "{operation}");
        assert_eq!(operation["hiddenValues"], 2);
        shop
    });
    let shop = shop.await.unwrap();
    let folder = shop.world.stop().await;
    let told = told(&folder.path().join("state/records"));
    let lines: Vec<&str> = told
        .lines()
        // Four digits alone stand in a digest now and then.
        .filter(|line| line.contains("canary-") || line.contains("4111 1111"))
        .collect();
    assert!(lines.is_empty(), "{}", lines.join("\n"));
    for shown in ["Shown Vera, ***", "Shown Walt", "'***'"] {
        assert!(told.contains(shown), "{shown} is not in\n{told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_in_a_statement_is_shown_to_nobody_on_15() {
    nowhere(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_in_a_statement_is_shown_to_nobody_on_18() {
    nowhere(Major::V18).await;
}
