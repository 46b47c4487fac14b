//! What the gate promises: denied unless allowed, recorded before it passes, cut at once, approved exactly once.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use bytes::Bytes;
use serde_json::json;
use sidegate_policies::api::access_policy::SqlCommand;
use sidegate_policies::api::access_request::RequestState;
use sidegate_policies::api::lockdown::{Everything, Freeze, LockdownAction};
use sidegate_policies::engine::TargetId;
use sidegate_policies::sql::facts::PartRelation;
use sidegate_policies::sql::{CommandSet, Part, RelationName, SqlFacts};
use sidegate_policies::wire::{DenyEntry, DenySet};

use super::*;
use crate::testing::{policy, target, Bench};
use crate::upstream::Upstream;

/// A statement as a room would resolve it.
#[derive(Clone)]
struct Statement {
    facts: SqlFacts,
    text: String,
    patience: Option<Duration>,
    masks: Option<Arc<MaskSet>>,
}

fn statement(command: SqlCommand, text: &str) -> Statement {
    let part = Part {
        command,
        relation: PartRelation::Known(RelationName::new("app", "orders")),
        rides_along: false,
    };
    let relation = RelationName::new("app", "orders");
    let known = sidegate_policies::engine::Fact::Known(vec![relation]);
    let facts = SqlFacts {
        statements: 1,
        parts: vec![part],
        commands: CommandSet::from_iter([command]),
        tables: known,
        ..SqlFacts::default()
    };
    Statement {
        facts,
        text: text.to_owned(),
        patience: None,
        masks: None,
    }
}

impl Frame for Statement {
    fn operation(&self) -> Operation<'_> {
        Operation {
            verb: Verb::Statement,
            action: "Query",
            completeness: Completeness::Exact,
            facts: Facts::Sql(&self.facts),
        }
    }

    fn described(&self) -> Described<'_> {
        Described {
            text: self.text.as_str().into(),
            ..Described::default()
        }
    }

    fn digest_fields(&self) -> Vec<Cow<'_, [u8]>> {
        vec![self.text.as_bytes().into()]
    }

    fn patience(&self) -> Option<Duration> {
        self.patience
    }

    fn masks(&self) -> Option<&Arc<MaskSet>> {
        self.masks.as_ref()
    }
}

impl From<Statement> for Bytes {
    fn from(statement: Statement) -> Bytes {
        statement.text.into()
    }
}

fn ask() -> serde_json::Value {
    json!({"approvers": [{"anyone": {}}], "holdFor": "60s", "validFor": "15m"})
}

fn rules() -> serde_json::Value {
    json!([
        {"name": "read", "effect": "Allow", "sql": {"commands": ["Select"], "tables": ["app.*"]}},
        {"name": "refunds", "effect": "Ask", "sql": {"commands": ["Update"], "tables": ["app.orders"]}, "ask": ask()},
        {"name": "never", "effect": "Deny", "sql": {"commands": ["Delete"]}, "message": "Deleting is not for agents."},
    ])
}

fn bench(limits: serde_json::Value) -> Bench {
    let bench = Bench::new();
    bench.enforce(json!([target("Postgres", 1, 1)]), json!([policy(rules(), limits)]));
    bench
}

fn gate(bench: &Bench) -> (Gate, crate::session::Entered) {
    let bundle = bench.authority.in_force().unwrap();
    let target = bundle.targets[&TargetId::new("data", "shop")].clone();
    let sessions = &bench.authority.sessions;
    let subject = bench.authority.subject().unwrap();
    let session = Arc::new(Session::new(sessions.next_number(), subject, target, None));
    let entered = sessions.enter(session.clone());
    (Gate::new(session, bench.authority.clone()), entered)
}

fn connected(bench: &Bench) -> (Gate, crate::session::Entered) {
    let (mut gate, entered) = gate(bench);
    gate.connect(&ConnectFacts::default())
        .unwrap_or_else(|refusal| panic!("{}", refusal.text()));
    (gate, entered)
}

fn refused<F>(admission: Admission<F>) -> Refusal {
    match admission {
        Admission::No(refusal) => refusal,
        Admission::Go(_) => panic!("admitted"),
        Admission::Hold(_) => panic!("held"),
    }
}

fn gone<F>(admission: Admission<F>) -> Admitted<F> {
    match admission {
        Admission::Go(admitted) => admitted,
        Admission::No(refusal) => panic!("{}", refusal.text()),
        Admission::Hold(_) => panic!("held"),
    }
}

fn held<F>(admission: Admission<F>) -> Held<F> {
    match admission {
        Admission::Hold(held) => held,
        Admission::Go(_) => panic!("admitted"),
        Admission::No(refusal) => panic!("{}", refusal.text()),
    }
}

fn freeze_everything(bench: &Bench, revision: u64) {
    let entry = DenyEntry {
        lockdown: "incident".into(),
        freeze: Freeze::Everything(Everything {}),
        action: LockdownAction::Close,
        until_ms: None,
    };
    let set = DenySet {
        revision,
        entries: vec![entry],
    };
    drop(bench.enforcer.deny(set).unwrap());
}

#[tokio::test]
async fn allowed_denied_and_unmatched_operations_get_their_answers() {
    let bench = bench(json!({}));
    let (mut gate, _entered) = connected(&bench);
    let admitted = gone(gate.admit(statement(SqlCommand::Select, "select 1")));
    assert_eq!(admitted.op().get(), 1);
    let refusal = refused(gate.admit(statement(SqlCommand::Delete, "delete")));
    assert_eq!(refusal.reason, Reason::Denied);
    assert_eq!(&*refusal.rule.clone().unwrap().rule, "never");
    assert!(
        refusal.text().contains("Deleting is not for agents."),
        "{}",
        refusal.text()
    );
    let refusal = refused(gate.admit(statement(SqlCommand::Drop, "drop table app.orders")));
    assert_eq!(refusal.reason, Reason::Denied);
}

#[tokio::test]
async fn rec_1_the_intent_is_recorded_before_a_byte_leaves() {
    let bench = bench(json!({}));
    let (mut gate, _entered) = connected(&bench);
    gate.recorder().opened().await.unwrap();
    let (near, mut far) = tokio::io::duplex(64);
    let mut upstream = Upstream::after_login(near);
    let admitted = gone(gate.admit(statement(SqlCommand::Select, "select 1")));
    let op = admitted.op();
    upstream.queue(admitted);
    assert!(upstream.has_unsent());
    upstream.flush(gate.recorder()).await.unwrap();
    let mut seen = [0u8; 8];
    tokio::io::AsyncReadExt::read_exact(&mut far, &mut seen).await.unwrap();
    assert_eq!(&seen, b"select 1");
    gate.outcome(op, Outcome::default());
    drop(gate);
    bench.until_recorded(Kind::Close).await;
    let kinds = bench.recorded.lock().unwrap().clone();
    let order: Vec<Kind> = kinds.into_iter().filter(|kind| !kind.of_log()).collect();
    assert_eq!(order, [Kind::Open, Kind::Intent, Kind::Outcome, Kind::Close]);
}

#[tokio::test]
async fn rec_1_without_a_log_nothing_opens_and_nothing_is_sent() {
    let bench = bench(json!({}));
    let (mut gate, _entered) = gate(&bench);
    let (near, _far) = tokio::io::duplex(64);
    let mut upstream = Upstream::after_login(near);
    // Never opened: there is no record, so the bytes stay.
    let admitted = gate.passive(Bytes::from_static(b"x"));
    upstream.queue(admitted.unwrap());
    assert!(upstream.flush(gate.recorder()).await.is_err());
}

#[tokio::test]
async fn res_8_short_of_memory_new_sessions_are_refused_first_and_then_operations() {
    let bench = bench(json!({}));
    let limit = bench.authority.memory.limit().unwrap();
    let bundle = bench.authority.in_force().unwrap();
    let target = bundle.targets[&TargetId::new("data", "shop")].clone();
    let fresh = |number| {
        let session = Session::new(number, crate::session::tests::subject(), target.clone(), None);
        Gate::new(Arc::new(session), bench.authority.clone())
    };
    let mut gate = fresh(1);
    gate.connect(&ConnectFacts::default()).unwrap();
    bench.authority.memory.measured(limit / 100 * 70);
    gone(gate.admit(statement(SqlCommand::Select, "select 1")));
    let refusal = fresh(2).connect(&ConnectFacts::default()).unwrap_err();
    assert_eq!(refusal.reason, Reason::Unavailable);
    assert!(refusal.text().contains("short of memory"), "{}", refusal.text());
    bench.authority.memory.measured(limit / 100 * 80);
    let Admission::No(refusal) = gate.admit(statement(SqlCommand::Select, "select 1")) else {
        panic!("an operation without room");
    };
    assert_eq!(refusal.reason, Reason::Unavailable);
    bench.authority.memory.measured(limit / 2);
    gone(gate.admit(statement(SqlCommand::Select, "select 1")));
    fresh(3).connect(&ConnectFacts::default()).unwrap();
}

#[tokio::test]
async fn nothing_opens_before_the_broker_spoke_or_once_it_is_silent() {
    let bench = bench(json!({}));
    let stale = Authority::new(
        Arc::new(bench.people.clone()),
        bench.authority.tasks.clone(),
        bench.authority.separation,
    );
    stale.records_to(bench.authority.log().unwrap());
    let bundle = bench.authority.in_force().unwrap();
    let target = bundle.targets[&TargetId::new("data", "shop")].clone();
    let session = Session::new(1, crate::session::tests::subject(), target, None);
    let mut gate = Gate::new(Arc::new(session), Arc::new(stale));
    let refusal = gate.connect(&ConnectFacts::default()).unwrap_err();
    assert_eq!(refusal.reason, Reason::Unavailable);
}

#[tokio::test]
async fn a_silent_broker_leaves_open_sessions_five_minutes_and_the_bundle_a_day() {
    let bench = bench(json!({}));
    let authority = &bench.authority;
    let (mut gate, _entered) = connected(&bench);
    let held = || authority.in_force();
    let look = |held, seconds| {
        let silent = Some(std::time::Duration::from_secs(seconds));
        crate::staleness::look(authority, held, silent, crate::staleness::Staleness::Fresh)
    };
    look(held(), 31);
    assert_eq!(gate.session().cut_reason(), None);
    gone(gate.admit(statement(SqlCommand::Select, "select 1")));
    look(held(), 301);
    assert_eq!(gate.session().cut_reason(), Some(Reason::Stale));
    let old = held();
    bench.enforce(json!([target("Postgres", 1, 1)]), json!([policy(rules(), json!({}))]));
    look(old, 86_401);
    assert!(authority.in_force().is_some(), "a bundle that came meanwhile");
    let generation = authority.generation();
    look(held(), 86_401);
    assert!(authority.in_force().is_none());
    assert!(
        authority.generation() > generation,
        "plans made by it are worth nothing"
    );
}

/// A row of the failure matrix: deny set over 10,000. Metrics: `cut`, `denied`.
#[tokio::test]
async fn more_frozen_things_than_can_be_looked_at_deny_everything_and_are_counted() {
    let bench = bench(json!({}));
    let (mut gate, _entered) = connected(&bench);
    let elsewhere = sidegate_policies::wire::DenyEntry {
        lockdown: "many".to_owned(),
        freeze: sidegate_policies::api::lockdown::Freeze::Namespace("elsewhere".to_owned()),
        action: Default::default(),
        until_ms: None,
    };
    let set = sidegate_policies::wire::DenySet {
        revision: 1,
        entries: vec![elsewhere; crate::revoke::ENTRY_LIMIT + 1],
    };
    drop(bench.enforcer.deny(set));
    let metrics = &bench.authority.metrics;
    assert_eq!(
        (metrics.cut.get(), gate.session().cut_reason()),
        (1, Some(Reason::Locked))
    );
    let denied = metrics.denied.get();
    assert_eq!(
        refused(gate.admit(statement(SqlCommand::Select, "select 1"))).reason,
        Reason::Locked
    );
    let (mut new, _entered) = self::gate(&bench);
    assert_eq!(
        new.connect(&ConnectFacts::default()).unwrap_err().reason,
        Reason::Locked
    );
    assert_eq!(metrics.denied.get(), denied + 2);
}

#[tokio::test]
async fn a_target_whose_policy_is_not_understood_is_denied_and_its_sessions_end() {
    let bench = bench(json!({}));
    let (mut gate, _entered) = connected(&bench);
    gone(gate.admit(statement(SqlCommand::Select, "select 1")));
    let mut newer = policy(rules(), json!({}));
    newer["spec"]["rules"][0]["http"] = json!({});
    bench.enforce(json!([target("Postgres", 1, 1)]), json!([newer]));
    assert_eq!(gate.session().cut_reason(), Some(Reason::PolicyGone));
    assert!(refused(gate.admit(statement(SqlCommand::Select, "select 1"))).reason == Reason::PolicyGone);
    let (mut new, _entered) = self::gate(&bench);
    let refusal = new.connect(&ConnectFacts::default()).unwrap_err();
    assert_eq!(refusal.reason, Reason::PolicyGone);
    assert!(refusal.text().contains("PolicyNotUnderstood"), "{}", refusal.text());
}

struct Leases(bool);

impl crate::staleness::Leased for Leases {
    fn holds(&self, _: &TargetId) -> bool {
        self.0
    }
}

#[tokio::test]
async fn each_column_refuses_and_ends_what_its_rows_say() {
    use crate::staleness::{look, Limits, Staleness};
    use sidegate_policies::api::injection_profile::Staleness::{Available, Default, Strict};
    // Seconds of silence, and, per column: whether a new session is let in, whether an open one lives.
    let rows = |leased| match leased {
        true => [
            (29, [(true, true), (true, true), (true, true)]),
            (31, [(false, true), (false, false), (true, true)]),
            (301, [(false, false), (false, false), (true, true)]),
            (86_401, [(false, false), (false, false), (false, false)]),
        ],
        false => [
            (29, [(true, true), (true, true), (true, true)]),
            (31, [(false, true), (false, false), (false, true)]),
            (301, [(false, false), (false, false), (false, false)]),
            (86_401, [(false, false), (false, false), (false, false)]),
        ],
    };
    let shop = TargetId::new("data", "shop");
    for leased in [true, false] {
        for (seconds, columns) in rows(leased) {
            for (how, wanted) in [Default, Strict, Available].into_iter().zip(columns) {
                let bench = Bench::meeting_silence(Limits::of(how));
                let targets = json!([target("Postgres", 1, 1)]);
                bench.enforce(targets, json!([policy(rules(), json!({}))]));
                bench.authority.leases_known_to(Arc::new(Leases(leased)));
                let (gate, _entered) = connected(&bench);
                let silent = Some(std::time::Duration::from_secs(seconds));
                let lets_in = bench.authority.lets_in(&shop, silent);
                look(&bench.authority, bench.authority.in_force(), silent, Staleness::Fresh);
                let lives = gate.session().cut_reason().is_none();
                assert_eq!((lets_in, lives), wanted, "{how:?}, {seconds} s, leased: {leased}");
                assert!(!bench.authority.lets_in(&shop, None), "a broker that never spoke");
            }
        }
    }
}

#[tokio::test]
async fn id_6_a_lockdown_refuses_the_next_operation_and_cuts_the_session() {
    let bench = bench(json!({}));
    let (mut gate, _entered) = connected(&bench);
    gone(gate.admit(statement(SqlCommand::Select, "select 1")));
    freeze_everything(&bench, 1);
    assert_eq!(gate.session().cut_reason(), Some(Reason::Locked));
    let refusal = refused(gate.admit(statement(SqlCommand::Select, "select 1")));
    assert_eq!(refusal.reason, Reason::Locked);
    assert_eq!(gate.passive(Bytes::new()).err().unwrap().reason, Reason::Locked);
    let (mut new, _entered) = self::gate(&bench);
    assert_eq!(
        new.connect(&ConnectFacts::default()).unwrap_err().reason,
        Reason::Locked
    );
}

#[tokio::test]
async fn pol_11_a_new_bundle_governs_the_next_operation() {
    let bench = bench(json!({}));
    let (mut gate, _entered) = connected(&bench);
    let select = statement(SqlCommand::Select, "select 1");
    let admitted = gone(gate.admit(select.clone()));
    let (decision, generation) = (admitted.decision().unwrap().clone(), gate.generation());
    gone(gate.admit_decided(select.clone(), &decision, generation));
    let denying = json!([
        {"name": "connect", "effect": "Allow", "sql": {"commands": ["Insert"], "tables": ["app.*"]}},
    ]);
    bench.enforce(json!([target("Postgres", 1, 1)]), json!([policy(denying, json!({}))]));
    assert_ne!(gate.generation(), generation);
    let refusal = refused(gate.admit_decided(select, &decision, generation));
    assert_eq!(refusal.reason, Reason::Denied);
    assert_eq!(gate.session().cut_reason(), None, "the session itself is still allowed");
}

#[tokio::test]
async fn what_repeated_operations_have_in_common_is_spelled_out_anew_once_anything_of_it_changed() {
    let bench = bench(json!({}));
    let (mut gate, _entered) = connected(&bench);
    let mut decision = || {
        let admitted = gone(gate.admit(statement(SqlCommand::Select, "select 1")));
        admitted.decision().unwrap().clone()
    };
    let (first, second) = (decision(), decision());
    let intents = Intents::default();
    let mut spelled = 0;
    let mut ask = |op, decision, generation| {
        let intent = || {
            spelled += 1;
            payload::Intent::default()
        };
        intents.members(OpId(op), decision, generation, intent).unwrap();
        spelled
    };
    assert_eq!(ask(1, &first, 1), 1);
    assert_eq!(ask(1, &first, 1), 1, "nothing changed");
    assert_eq!(ask(2, &first, 1), 2, "another operation");
    assert_eq!(ask(2, &second, 1), 3, "another decision");
    assert_eq!(ask(2, &second, 2), 4, "another bundle");
}

#[tokio::test]
async fn pol_11_a_target_or_grant_that_goes_away_cuts_its_sessions() {
    let bench = bench(json!({}));
    let (gate, _entered) = connected(&bench);
    bench.enforce(json!([target("Postgres", 1, 1)]), json!([]));
    assert_eq!(gate.session().cut_reason(), Some(Reason::PolicyGone));

    let bench = self::bench(json!({}));
    let (gate, _entered) = connected(&bench);
    bench.enforce(json!([target("Postgres", 2, 1)]), json!([policy(rules(), json!({}))]));
    assert_eq!(gate.session().cut_reason(), Some(Reason::PolicyGone), "another address");
}

#[tokio::test]
async fn more_operations_than_a_minute_allows_are_refused() {
    let bench = bench(json!({"perMinute": 2}));
    let (mut gate, _entered) = connected(&bench);
    gone(gate.admit(statement(SqlCommand::Select, "select 1")));
    gone(gate.admit(statement(SqlCommand::Select, "select 2")));
    let refusal = refused(gate.admit(statement(SqlCommand::Select, "select 3")));
    assert_eq!(refusal.reason, Reason::Limit);
}

#[tokio::test]
async fn apr_2_a_granted_operation_is_claimed_once_and_settled() {
    let bench = bench(json!({}));
    let (mut gate, _entered) = connected(&bench);
    let mut waiting = held(gate.admit(statement(SqlCommand::Update, "update app.orders set x = 1")));
    waiting.ask(&mut gate).await.unwrap();
    assert_eq!(&*waiting.ticket().unwrap().name, "ar-test01");
    bench.people.say(RequestState::Granted);
    let admitted = waiting
        .wait(&mut gate)
        .await
        .unwrap_or_else(|refusal| panic!("{}", refusal.text()));
    gate.outcome(admitted.op(), Outcome::default());
    let claims = bench.people.claims.lock().unwrap().clone();
    assert_eq!(claims.len(), 1);
    assert_eq!(claims[0].digest, bench.people.asked.lock().unwrap()[0].digest);
    // The same again asks again: the grant is spent.
    let again = held(gate.admit(statement(SqlCommand::Update, "update app.orders set x = 1")));
    let refusal = again.wait(&mut gate).await.err().unwrap();
    assert_eq!(refusal.reason, Reason::ApprovalExpired);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(bench.people.outcomes.lock().unwrap()[0].state, RequestState::Done);
}

#[tokio::test]
async fn apr_1_another_byte_is_another_digest() {
    let bench = bench(json!({}));
    let (mut gate, _entered) = connected(&bench);
    for text in [
        "update app.orders set x = 1",
        "update app.orders set x = 2",
        "update app.orders set x = 1",
    ] {
        let mut waiting = held(gate.admit(statement(SqlCommand::Update, text)));
        waiting.ask(&mut gate).await.unwrap();
    }
    let asked = bench.people.asked.lock().unwrap();
    assert_ne!(asked[0].digest, asked[1].digest);
    assert_eq!(asked[0].digest, asked[2].digest);
    assert_eq!(asked[0].approver_sets[0].rule, "data/support/refunds");
    assert_eq!(asked[0].valid_for_seconds, 900);
}

#[tokio::test(start_paused = true)]
async fn apr_6_patience_ends_in_a_ticket_and_silence_in_a_refusal() {
    let bench = bench(json!({}));
    let (mut gate, _entered) = connected(&bench);
    let mut impatient = statement(SqlCommand::Update, "update");
    impatient.patience = Some(Duration::from_secs(1));
    let started = tokio::time::Instant::now();
    let refusal = held(gate.admit(impatient)).wait(&mut gate).await.err().unwrap();
    assert_eq!(refusal.reason, Reason::ApprovalRequired);
    assert_eq!(&*refusal.ticket.unwrap().name, "ar-test01");
    assert!(started.elapsed() < Duration::from_secs(2));

    bench.people.down.store(true, std::sync::atomic::Ordering::SeqCst);
    let waiting = held(gate.admit(statement(SqlCommand::Update, "update")));
    assert_eq!(waiting.wait(&mut gate).await.err().unwrap().reason, Reason::Unavailable);
}

#[tokio::test]
async fn apr_6_a_no_is_a_no_and_a_lockdown_ends_the_hold() {
    let bench = bench(json!({}));
    let (mut gate, _entered) = connected(&bench);
    bench.people.say(RequestState::Denied);
    let waiting = held(gate.admit(statement(SqlCommand::Update, "update")));
    assert_eq!(
        waiting.wait(&mut gate).await.err().unwrap().reason,
        Reason::ApprovalDenied
    );

    bench.people.say(RequestState::Pending);
    let waiting = held(gate.admit(statement(SqlCommand::Update, "update")));
    let lock = async {
        tokio::task::yield_now().await;
        freeze_everything(&bench, 1);
    };
    let (answer, ()) = tokio::join!(waiting.wait(&mut gate), lock);
    assert_eq!(answer.err().unwrap().reason, Reason::Locked);
    assert!(bench.people.claims.lock().unwrap().is_empty());
    assert_eq!(bench.authority.metrics.held.get(), 0);
}

#[tokio::test]
async fn apr_1_a_policy_change_while_waiting_voids_the_hold() {
    let bench = bench(json!({}));
    let (mut gate, _entered) = connected(&bench);
    let mut waiting = held(gate.admit(statement(SqlCommand::Update, "update")));
    waiting.ask(&mut gate).await.unwrap();
    let mut changed = rules();
    changed[1]["ask"]["count"] = json!(2);
    bench.enforce(json!([target("Postgres", 1, 1)]), json!([policy(changed, json!({}))]));
    bench.people.say(RequestState::Granted);
    let refusal = waiting.wait(&mut gate).await.err().unwrap();
    assert_eq!(refusal.reason, Reason::ApprovalExpired);
    assert!(
        bench.people.claims.lock().unwrap().is_empty(),
        "never claimed, so never sent"
    );
}

#[tokio::test]
async fn a_withdrawn_request_is_taken_back() {
    let bench = bench(json!({}));
    let (mut gate, _entered) = connected(&bench);
    let mut waiting = held(gate.admit(statement(SqlCommand::Update, "update")));
    waiting.ask(&mut gate).await.unwrap();
    let ticket = waiting.ticket().unwrap();
    drop(waiting);
    gate.withdraw(&ticket).await;
    assert_eq!(*bench.people.withdrawn.lock().unwrap(), ["ar-test01"]);
}

#[tokio::test]
async fn what_is_too_long_to_show_cannot_be_approved() {
    let bench = bench(json!({}));
    let (mut gate, _entered) = connected(&bench);
    let long = "x".repeat(65 * 1024);
    let refusal = refused(gate.admit(statement(SqlCommand::Update, &long)));
    assert_eq!(refusal.reason, Reason::TooLarge);
}

#[tokio::test]
async fn pol_10_an_answer_is_never_masked_by_the_plan_of_an_older_bundle() {
    let bench = bench(json!({}));
    let (mut gate, _entered) = connected(&bench);
    let mut planned = statement(SqlCommand::Select, "select ssn from app.orders");
    planned.masks = Some(gate.masks());
    gone(gate.admit(planned.clone()));
    let mut masking = policy(rules(), json!({}));
    masking["spec"]["masks"] = json!([{"columns": ["app.orders.ssn"], "as": {"redact": {}}}]);
    bench.enforce(json!([target("Postgres", 1, 1)]), json!([masking]));
    let refusal = refused(gate.admit(planned.clone()));
    assert_eq!(refusal.reason, Reason::PlanMismatch);
    planned.masks = Some(gate.masks());
    gone(gate.admit(planned));
}

#[tokio::test(start_paused = true)]
async fn a_session_of_a_target_that_looks_once_at_its_credential_ends_after_a_day_of_work_unless_a_policy_says() {
    let ends = |credential: serde_json::Value, limits: serde_json::Value| {
        let bench = Bench::new();
        let mut target = target("Postgres", 1, 1);
        target["target"]["spec"]["credential"] = credential;
        bench.enforce(json!([target]), json!([policy(rules(), limits)]));
        let (gate, _entered) = connected(&bench);
        let deadline = *gate.session.deadline.borrow();
        deadline.map(|at| at.duration_since(tokio::time::Instant::now()).as_secs())
    };
    let secret = json!({"secret": {"name": "s"}});
    assert_eq!(ends(secret.clone(), json!({})), Some(8 * 3600));
    assert_eq!(ends(secret, json!({"maxSession": "10h"})), Some(10 * 3600));
    let vault = json!({"vault": {"issuer": "corp", "mount": "database", "role": "r"}});
    assert_eq!(ends(vault, json!({})), Some(8 * 3600));
    assert_eq!(ends(json!({"none": {}}), json!({})), None);
}
