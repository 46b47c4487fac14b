//! A statement held for people is sent once they approve, and never otherwise: not after cancel, not after the agent
//! went away, not after the request expired or was denied. And what the policy says now holds for what is open now.

use std::time::{Duration, Instant};

use sidegate_tests::people::People;
use sidegate_tests::ports;
use sidegate_tests::postgres::{Major, Options};
use sidegate_tests::shop::{self, Shop, DATABASE};
use sidegate_tests::wire::{bind, cancel, describe, execute, parse, query, shape, state, sync, Frame, Wire};

const PATIENCE: Duration = Duration::from_secs(30);

/// Every UPDATE asks.
fn ask(times: &str) -> String {
    format!(
        "    - {{name: ask, effect: Ask, sql: {{commands: [Update]}}, ask: {{approvers: [{{anyone: {{}}}}], {times}}}}}"
    )
}

async fn shop(major: Major, rules: &str) -> Shop {
    // Everything the server is told stands in its log: a held text must not.
    let options = Options {
        settings: vec!["log_statement = 'all'".into(), "log_min_duration_statement = 0".into()],
        ..Options::default()
    };
    let (server, port) = (shop::server(major, options).unwrap(), ports::free().unwrap());
    server
        .sql(DATABASE, "INSERT INTO app.items (id, label) VALUES (1, 'before')")
        .unwrap();
    let config = shop::configuration(server.port, port, rules, "");
    let world = shop::setup(config).start().await.unwrap();
    Shop { server, world, port }
}

fn update(label: &str) -> String {
    format!("UPDATE app.items SET label = '{label}' WHERE id = 1")
}

/// Simple and extended, the ways a statement comes.
fn ways(label: &str) -> [Vec<u8>; 2] {
    let sql = update(label);
    let extended = [
        parse("", &sql),
        bind("", "", &[], 0),
        describe(b'P', ""),
        execute("", 0),
        sync(),
    ];
    [query(&sql), extended.concat()]
}

/// Reads up to the notice that the statement is held; answers the request's name.
fn held(wire: &mut Wire) -> String {
    let frames = wire.until(b'N').unwrap();
    let text = frames.last().unwrap().field(b'M').unwrap();
    let name = text.split_whitespace().find(|word| word.starts_with("ar-")).unwrap();
    name.trim_end_matches(',').to_owned()
}

fn becomes(people: &People, name: &str, wanted: &str) {
    let deadline = Instant::now() + PATIENCE;
    while people.state(name).unwrap() != wanted {
        assert!(
            Instant::now() < deadline,
            "{name} is {}, not {wanted}",
            people.state(name).unwrap()
        );
    }
}

fn never_sent(shop: &Shop, label: &str) {
    assert!(!shop.server.log().contains(label), "{label} reached the server");
    let kept = shop.server.sql(DATABASE, "SELECT label FROM app.items WHERE id = 1");
    assert_ne!(kept.unwrap(), label);
}

fn approved(shop: &Shop, people: &People) {
    for (at, message) in ways("approved").into_iter().enumerate() {
        let mut wire = Wire::login(shop.port, DATABASE).unwrap();
        wire.send(&message).unwrap();
        let name = held(&mut wire);
        assert!(!shop.server.log().contains("'approved'") || at > 0);
        people.approve(&name).unwrap();
        let frames = wire.until_ready().unwrap();
        assert!(
            shape(&frames).contains(&"C UPDATE 1".to_owned()),
            "{:?}",
            shape(&frames)
        );
        becomes(people, &name, "Done");
        assert!(wire.alive().unwrap());
        // The grant is spent: the same statement asks again.
        wire.send(&message).unwrap();
        let again = held(&mut wire);
        assert_ne!(again, name);
        people.deny(&again).unwrap();
        assert_eq!(state(&wire.until_ready().unwrap()).as_deref(), Some("42501"));
        assert!(wire.alive().unwrap());
    }
}

fn taken_back(shop: &Shop, people: &People) {
    for (at, message) in ways("taken-back").into_iter().enumerate() {
        let mut wire = Wire::login_as(shop.port, DATABASE, 2).unwrap();
        let (id, key) = wire.key.clone().unwrap();
        if at == 1 {
            wire.ask(&[query("BEGIN")]).unwrap();
        }
        wire.send(&message).unwrap();
        let name = held(&mut wire);
        cancel(shop.port, id, &key).unwrap();
        let frames = wire.until_ready().unwrap();
        assert_eq!(state(&frames).as_deref(), Some("57014"), "{:?}", shape(&frames));
        becomes(people, &name, "Cancelled");
        assert!(people.approve(&name).is_err(), "what was taken back cannot be approved");
        if at == 1 {
            assert_eq!(shape(&wire.ask(&[query("COMMIT")]).unwrap()), ["C ROLLBACK", "Z I"]);
        }
        assert!(wire.alive().unwrap());
        never_sent(shop, "taken-back");
    }
}

fn gone(shop: &Shop, people: &People) {
    for message in ways("gone") {
        let mut wire = Wire::login(shop.port, DATABASE).unwrap();
        wire.send(&message).unwrap();
        let name = held(&mut wire);
        drop(wire);
        // The session ends at the server too; only then is it certain that nobody waits any more.
        let others = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{}'", shop::ROLE);
        let deadline = Instant::now() + PATIENCE;
        let before = shop.world.broker.status().sessions;
        while shop.world.broker.status().sessions > 0 {
            assert!(
                Instant::now() < deadline,
                "{before} sessions stay: {:?}",
                shop.server.sql(DATABASE, &others)
            );
            std::thread::yield_now();
        }
        // The ticket stays for the next session of the same agent; approving it sends nothing.
        let _ = people.approve(&name);
        never_sent(shop, "'gone'");
    }
}

async fn holds(major: Major) {
    let shop = shop(major, &ask("holdFor: 60s")).await;
    let shop = tokio::task::spawn_blocking(move || {
        let people = People::at(&shop.world.broker.control_socket);
        approved(&shop, &people);
        taken_back(&shop, &people);
        gone(&shop, &people);
        shop
    });
    shop.await.unwrap().world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_statement_is_sent_after_approval_only_on_15() {
    holds(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_statement_is_sent_after_approval_only_on_18() {
    holds(Major::V18).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_expires_while_held_is_never_sent() {
    let shop = shop(Major::V18, &ask("holdFor: 60s, validFor: 1s")).await;
    let shop = tokio::task::spawn_blocking(move || {
        let people = People::at(&shop.world.broker.control_socket);
        let mut wire = Wire::login(shop.port, DATABASE).unwrap();
        for message in ways("expired") {
            wire.send(&message).unwrap();
            let name = held(&mut wire);
            let frames = wire.until_ready().unwrap();
            assert_eq!(state(&frames).as_deref(), Some("57014"), "{:?}", shape(&frames));
            becomes(&people, &name, "Expired");
            assert!(people.approve(&name).is_err(), "too late");
            assert!(wire.alive().unwrap());
            never_sent(&shop, "expired");
        }
        shop
    });
    shop.await.unwrap().world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patience_ends_in_a_ticket_and_the_retry_runs_once_it_is_approved() {
    let shop = shop(Major::V15, &ask("holdFor: 1s")).await;
    let shop = tokio::task::spawn_blocking(move || {
        let people = People::at(&shop.world.broker.control_socket);
        let mut wire = Wire::login(shop.port, DATABASE).unwrap();
        let message = query(&update("later"));
        wire.send(&message).unwrap();
        let name = held(&mut wire);
        let frames = wire.until_ready().unwrap();
        assert_eq!(state(&frames).as_deref(), Some("42501"));
        let told = frames.iter().find(|frame| frame.kind == b'E').unwrap();
        assert!(told.field(b'M').unwrap().contains(&name), "{:?}", told.field(b'M'));
        never_sent(&shop, "'later'");
        people.approve(&name).unwrap();
        let again = wire.ask(&[message]).unwrap();
        assert_eq!(state(&again), None, "{:?}", shape(&again));
        becomes(&people, &name, "Done");
        let kept = shop.server.sql(DATABASE, "SELECT label FROM app.items WHERE id = 1");
        assert_eq!(kept.unwrap(), "later");
        shop
    });
    shop.await.unwrap().world.stop().await;
}

/// Sends the messages until the answer has this state; how soon a policy is in force is not the session's matter.
fn until_state(wire: &mut Wire, messages: &[Vec<u8>], wanted: Option<&str>) -> Vec<Frame> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let frames = wire.ask(messages).unwrap();
        if state(&frames).as_deref() == wanted {
            return frames;
        }
        assert!(Instant::now() < deadline, "{:?}", shape(&frames));
    }
}

const NO_NUMBERS: &str = "    - {name: no-numbers, effect: Deny, sql: {tables: [app.numbers]}}";

/// What was prepared, bound and half read before the edit is judged again after it.
fn judged_again(shop: &Shop) {
    let configure = |rules: &str| {
        let config = shop::configuration(shop.server.port, shop.port, rules, "");
        shop.world.configure(&config).unwrap();
    };
    let mut wire = Wire::login(shop.port, DATABASE).unwrap();
    let prepared = parse("s", "SELECT n FROM app.numbers WHERE n <= 10");
    wire.ask(&[prepared, sync()]).unwrap();
    let run = [bind("", "s", &[], 0), execute("", 0), sync()];
    let simple = [query("SELECT n FROM app.numbers WHERE n = 1")];
    assert_eq!(state(&wire.ask(&run).unwrap()), None);
    let mut reading = Wire::login(shop.port, DATABASE).unwrap();
    reading.ask(&[query("BEGIN")]).unwrap();
    let portal = [bind("p", "s", &[], 0), execute("p", 2), sync()];
    reading
        .ask(&[&[parse("s", "SELECT n FROM app.numbers")][..], &portal].concat())
        .unwrap();
    reading
        .ask(&[query("DECLARE c CURSOR FOR SELECT n FROM app.numbers")])
        .unwrap();
    reading.ask(&[query("FETCH 2 FROM c")]).unwrap();

    configure(NO_NUMBERS);
    until_state(&mut wire, &run, Some("42501"));
    assert_eq!(state(&wire.ask(&simple).unwrap()).as_deref(), Some("42501"));
    assert!(wire.alive().unwrap(), "the session stays");
    let mut fresh = Wire::login(shop.port, DATABASE).unwrap();
    assert_eq!(state(&fresh.ask(&simple).unwrap()).as_deref(), Some("42501"));
    let rest = reading.ask(&[query("SAVEPOINT a")]).unwrap();
    assert_eq!(state(&rest), None);
    let rest = reading.ask(&[execute("p", 2), sync()]).unwrap();
    assert_eq!(shape(&rest), ["E 42501", "Z E"], "a half-read portal");
    reading.ask(&[query("ROLLBACK TO a")]).unwrap();
    let rest = reading.ask(&[query("FETCH 2 FROM c")]).unwrap();
    assert_eq!(shape(&rest), ["E 42501", "Z E"], "a half-read cursor");
    reading.ask(&[query("ROLLBACK")]).unwrap();

    configure("");
    let frames = until_state(&mut wire, &run, None);
    assert_eq!(
        shape(&frames)[11..],
        ["C SELECT 10", "Z I"],
        "the same prepared statement"
    );
}

/// The policy goes: every session ends with words it can act on, and none opens.
fn withdrawn(shop: &Shop) {
    let mut idle = Wire::login(shop.port, DATABASE).unwrap();
    let mut busy = Wire::login(shop.port, DATABASE).unwrap();
    busy.send(&query(
        "SELECT count(*) FROM app.numbers a, app.numbers b, app.numbers c WHERE a.n + b.n + c.n = 0",
    ))
    .unwrap();
    let config = shop::configuration(shop.server.port, shop.port, "", "");
    let (rest, policy) = config.rsplit_once("---\n").unwrap();
    assert!(policy.contains("AccessPolicy"));
    shop.world.configure(rest).unwrap();
    let mut told = Vec::new();
    for wire in [&mut idle, &mut busy] {
        let frames = wire.until_ready().unwrap();
        assert_eq!(shape(&frames).last().unwrap(), "E 57P01", "then the end of the stream");
        assert_eq!(frames.last().unwrap().field(b'S').as_deref(), Some("FATAL"));
        told.push(frames.last().unwrap().field(b'M'));
    }
    match Wire::login(shop.port, DATABASE) {
        Ok(_) => panic!("a session opened without a policy, after the others were told {told:?}"),
        Err(error) => assert!(!format!("{error:#}").is_empty()),
    }
    let left = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE usename = '{}' AND state = 'active'",
        shop::ROLE
    );
    let deadline = Instant::now() + PATIENCE;
    while shop.server.sql(DATABASE, &left).unwrap() != "0" {
        assert!(Instant::now() < deadline, "the busy one's statement still runs");
    }
}

async fn edited(major: Major) {
    let shop = shop(major, "").await;
    let shop = tokio::task::spawn_blocking(move || {
        judged_again(&shop);
        withdrawn(&shop);
        shop
    });
    shop.await.unwrap().world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edited_policy_holds_for_open_sessions_on_15() {
    edited(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edited_policy_holds_for_open_sessions_on_18() {
    edited(Major::V18).await;
}
