//! The state machine: who may move a request where, what is remembered, what is capped.

#![allow(clippy::unwrap_used)]

use super::store::RequestFolder;
use super::*;
use crate::audit::tests::{told, Obstacle};
use crate::clock::ManualClock;
use crate::state::StateDir;
use sidegate_policies::api::access_policy::Approver;
use sidegate_policies::api::access_request::{ApproverSet, RequestedOperation};
use sidegate_policies::api::lockdown::{Freeze, LockdownAction};
use sidegate_policies::wire::{DenyEntry, DenySet};
use sidegate_policies::yaml::{load, Source};

const CONFIG: &str = r#"
apiVersion: sidegate.dev/v1alpha1
kind: Target
metadata: {name: shop, namespace: data}
spec:
  protocol: Postgres
  address: {host: db.example, port: 5432}
  credential: {none: {}}
  listen: {port: 15432}
---
apiVersion: sidegate.dev/v1alpha1
kind: AccessPolicy
metadata: {name: p, namespace: data}
spec:
  targetRefs: [{name: shop}]
  subjects: [{serviceAccount: {namespace: data, name: agent}, podSelector: {matchLabels: {tier: one}}}]
  rules:
  - {name: two, effect: Ask, sql: {commands: [Delete]}, ask: {approvers: [{group: leads}], exclude: [{user: "unix:owner"}], count: 2, validFor: 10m}}
  - {name: one, effect: Ask, sql: {commands: [Update]}, ask: {approvers: [{user: "unix:ann"}, {user: "unix:bob"}]}}
"#;

struct Bench {
    state: StateDir,
    clock: Arc<ManualClock>,
    approvals: Approvals,
    index: Index,
    free: Denied,
    _temp: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::open(&temp.path().join("state")).unwrap();
        let clock = Arc::new(ManualClock::starting_now());
        let audit = crate::audit::tests::audit(&state, clock.clone());
        let approvals = Approvals::over(Arc::new(RequestFolder::open(&state).unwrap()), clock.clone(), audit);
        Bench {
            state,
            clock,
            approvals,
            index: index(CONFIG),
            free: Denied::default(),
            _temp: temp,
        }
    }

    fn ask(&self, digest: char, rules: &[&str]) -> Result<ApprovalState, ApprovalError> {
        self.approvals
            .ask(&agent("u1"), question(digest, rules), &self.index, &self.free)
    }

    fn claim(&self, name: &str, digest: char, nonce: &str) -> ApprovalState {
        let claim = ApprovalClaim {
            session: "s".to_owned(),
            operation: 1,
            digest: digest.to_string().repeat(64),
            nonce: nonce.to_owned(),
        };
        self.approvals
            .claim(&agent("u1"), name, &claim, &self.index, &self.free)
            .unwrap()
    }

    fn settle(&self, name: &str, state: RequestState, nonce: &str) -> Result<ApprovalState, ApprovalError> {
        let outcome = ApprovalOutcome {
            state,
            nonce: nonce.to_owned(),
        };
        self.approvals.outcome(&agent("u1"), name, &outcome)
    }

    fn approve(&self, name: &str, who: &str) -> Result<Arc<Stored>, ApprovalError> {
        self.approvals
            .decide(name, &person(who, &["leads"]), Verdict::Approve, None)
    }

    fn granted(&self, digest: char) -> String {
        let name = self.ask(digest, &["one"]).unwrap().name;
        assert_eq!(self.approve(&name, "ann").unwrap().state(), RequestState::Granted);
        name
    }

    fn state_of(&self, name: &str) -> RequestState {
        self.find(name).unwrap().state()
    }

    fn find(&self, name: &str) -> Option<Arc<Stored>> {
        self.approvals.list().into_iter().find(|stored| stored.name() == name)
    }

    fn sweep(&self) {
        self.approvals.sweep(&self.index, &self.free).unwrap();
    }
}

fn index(config: &str) -> Index {
    let loaded = load(&[Source {
        name: "t".to_owned(),
        text: config.to_owned(),
    }]);
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    Index::new(loaded.objects, 1, "local".to_owned(), "k".to_owned())
}

fn agent(uid: &str) -> Subject {
    Subject {
        namespace: "data".to_owned(),
        service_account: "agent".to_owned(),
        pod: "p".to_owned(),
        pod_uid: uid.to_owned(),
        labels: [("tier".to_owned(), "one".to_owned())].into(),
    }
}

fn person(name: &str, groups: &[&str]) -> Person {
    Person {
        name: format!("unix:{name}"),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        is_agent: false,
    }
}

fn question(digest: char, rules: &[&str]) -> ApprovalAsk {
    ApprovalAsk {
        target: "data/shop".to_owned(),
        session: "s".to_owned(),
        operation: RequestedOperation {
            protocol: "Postgres".to_owned(),
            action: "UPDATE".to_owned(),
            summary: String::new(),
            text: "UPDATE x".to_owned(),
            parameters: Vec::new(),
            earlier: Vec::new(),
            hidden_values: 0,
        },
        digest: digest.to_string().repeat(64),
        approver_sets: rules
            .iter()
            .map(|rule| ApproverSet {
                rule: format!("data/p/{rule}"),
                approvers: vec![Approver::Anyone(Default::default())],
                exclude: Vec::new(),
                count: 1,
            })
            .collect(),
        valid_for_seconds: 3600,
        bundle: "b".to_owned(),
    }
}

#[test]
fn approvers_come_from_the_brokers_own_rules_never_from_the_sidecar() {
    let bench = Bench::new();
    let name = bench.ask('a', &["one"]).unwrap().name;
    let refused = bench
        .approvals
        .decide(&name, &person("mallory", &[]), Verdict::Approve, None);
    assert!(matches!(refused, Err(ApprovalError::NotAllowed(_))));
    assert_eq!(bench.approve(&name, "ann").unwrap().state(), RequestState::Granted);
}

#[test]
fn the_same_digest_and_subject_share_one_request_and_another_pod_does_not_see_it() {
    let bench = Bench::new();
    let first = bench.ask('a', &["one"]).unwrap();
    assert_eq!(bench.ask('a', &["one"]).unwrap().name, first.name);
    assert_ne!(bench.ask('b', &["one"]).unwrap().name, first.name);
    let other = bench
        .approvals
        .ask(&agent("u2"), question('a', &["one"]), &bench.index, &bench.free);
    assert_ne!(other.unwrap().name, first.name);
    assert!(matches!(
        bench.approvals.get(&agent("u2"), &first.name),
        Err(ApprovalError::NotFound)
    ));
    assert!(matches!(
        bench.approvals.withdraw(&agent("u2"), &first.name),
        Err(ApprovalError::NotFound)
    ));
}

#[test]
fn two_different_people_must_agree_where_the_rule_says_two() {
    let bench = Bench::new();
    let name = bench.ask('a', &["two"]).unwrap().name;
    assert_eq!(bench.approve(&name, "ann").unwrap().state(), RequestState::Pending);
    assert!(
        matches!(bench.approve(&name, "ann"), Err(ApprovalError::NotAllowed(_))),
        "not twice"
    );
    assert!(
        matches!(bench.approve(&name, "owner"), Err(ApprovalError::NotAllowed(_))),
        "excluded"
    );
    assert_eq!(bench.approve(&name, "eve").unwrap().state(), RequestState::Granted);
}

#[test]
fn every_asking_rule_must_be_met_and_the_shortest_validity_holds() {
    let bench = Bench::new();
    let asked = bench.ask('a', &["two", "one"]).unwrap();
    assert_eq!(asked.until_ms, bench.clock.now_ms() + 600_000);
    bench.approve(&asked.name, "eve").unwrap();
    assert_eq!(
        bench.approve(&asked.name, "dan").unwrap().state(),
        RequestState::Pending,
        "ann or bob is missing"
    );
    assert_eq!(
        bench.approve(&asked.name, "bob").unwrap().state(),
        RequestState::Granted
    );
}

#[test]
fn the_agents_own_user_never_decides() {
    let bench = Bench::new();
    let name = bench.ask('a', &["one"]).unwrap().name;
    let mut agent = person("ann", &[]);
    agent.is_agent = true;
    for verdict in [Verdict::Approve, Verdict::Deny] {
        let refused = bench.approvals.decide(&name, &agent, verdict, None);
        assert!(matches!(refused, Err(ApprovalError::NotAllowed(_))));
    }
    assert_eq!(bench.state_of(&name), RequestState::Pending);
}

#[test]
fn a_decision_is_final() {
    let bench = Bench::new();
    let name = bench.granted('a');
    let after = bench.approvals.decide(&name, &person("bob", &[]), Verdict::Deny, None);
    assert!(matches!(after, Err(ApprovalError::NotPending(RequestState::Granted))));
}

#[test]
fn a_denial_is_remembered_for_its_validity_and_nobody_is_asked_again() {
    let bench = Bench::new();
    let name = bench.ask('a', &["one"]).unwrap().name;
    bench
        .approvals
        .decide(&name, &person("ann", &[]), Verdict::Deny, Some("no".to_owned()))
        .unwrap();
    let again = bench.ask('a', &["one"]).unwrap();
    assert_eq!(
        (again.name.as_str(), again.state),
        (name.as_str(), RequestState::Denied)
    );
    bench.clock.advance_ms(15 * 60_000 + 1);
    let later = bench.ask('a', &["one"]).unwrap();
    assert_ne!(later.name, name);
    assert_eq!(later.state, RequestState::Pending);
}

#[test]
fn one_grant_runs_once_whatever_claims_it() {
    let bench = Bench::new();
    let name = bench.granted('a');
    let won = bench.claim(&name, 'a', "n1");
    assert!(won.won && won.state == RequestState::Claimed);
    assert!(bench.claim(&name, 'a', "n1").won, "the same claim again");
    assert!(!bench.claim(&name, 'a', "n2").won);
    assert!(
        bench.settle(&name, RequestState::Done, "n2").is_err(),
        "not the claimer"
    );
    assert!(
        bench.settle(&name, RequestState::Granted, "n1").is_err(),
        "not an ending"
    );
    assert_eq!(
        bench.settle(&name, RequestState::Failed, "n1").unwrap().state,
        RequestState::Failed
    );
    assert!(!bench.claim(&name, 'a', "n1").won, "an error spends the grant too");
}

#[test]
fn a_claim_without_outcome_becomes_unknown_and_never_runs_again() {
    let bench = Bench::new();
    let name = bench.granted('a');
    bench.claim(&name, 'a', "n1");
    bench.clock.advance_ms(59_999);
    bench.sweep();
    assert_eq!(bench.state_of(&name), RequestState::Claimed);
    bench.clock.advance_ms(1);
    bench.sweep();
    assert_eq!(bench.state_of(&name), RequestState::Unknown);
    assert!(!bench.claim(&name, 'a', "n1").won);
}

#[test]
fn pending_requests_and_grants_expire() {
    let bench = Bench::new();
    let pending = bench.ask('a', &["one"]).unwrap().name;
    bench.clock.advance_ms(60_000);
    let granted = bench.granted('b');
    bench.clock.advance_ms(14 * 60_000);
    assert!(matches!(
        bench.approve(&pending, "ann"),
        Err(ApprovalError::NotPending(RequestState::Expired))
    ));
    bench.sweep();
    assert_eq!(
        bench.state_of(&granted),
        RequestState::Granted,
        "validity counts from the decision"
    );
    bench.clock.advance_ms(60_000);
    assert!(!bench.claim(&granted, 'b', "n").won, "expired before any sweep");
    bench.sweep();
    assert_eq!(bench.state_of(&granted), RequestState::Expired);
}

#[test]
fn withdrawing_a_deleted_object_a_policy_change_and_a_lockdown_all_mean_never_sent() {
    let bench = Bench::new();
    let withdrawn = bench.granted('a');
    assert_eq!(
        bench.approvals.withdraw(&agent("u1"), &withdrawn).unwrap().state,
        RequestState::Cancelled
    );
    assert!(!bench.claim(&withdrawn, 'a', "n").won);

    let deleted = bench.granted('b');
    std::fs::remove_file(bench.state.path(&format!("approvals/{deleted}.json"))).unwrap();
    assert!(!bench.claim(&deleted, 'b', "n").won);
    assert_eq!(bench.state_of(&deleted), RequestState::Void);

    let frozen = bench.granted('c');
    let entry = DenyEntry {
        lockdown: "x".to_owned(),
        freeze: Freeze::Everything(Default::default()),
        action: LockdownAction::Close,
        until_ms: None,
    };
    let denied = Denied {
        set: DenySet {
            revision: 1,
            entries: vec![entry],
        },
    };
    let asked = bench
        .approvals
        .ask(&agent("u1"), question('z', &["one"]), &bench.index, &denied);
    assert!(matches!(asked, Err(ApprovalError::Locked(_))));
    bench.approvals.sweep(&bench.index, &denied).unwrap();
    assert_eq!(bench.state_of(&frozen), RequestState::Void);

    let changed = bench.granted('d');
    let edited = index(&CONFIG.replace("commands: [Update]", "commands: [Update, Insert]"));
    let claim = ApprovalClaim {
        session: "s".to_owned(),
        operation: 1,
        digest: "d".repeat(64),
        nonce: "n".to_owned(),
    };
    let lost = bench
        .approvals
        .claim(&agent("u1"), &changed, &claim, &edited, &bench.free)
        .unwrap();
    assert_eq!((lost.won, lost.state), (false, RequestState::Void));

    let untouched = bench.granted('e');
    let unrelated = index(&CONFIG.replace("commands: [Delete]", "commands: [Delete, Truncate]"));
    bench.approvals.sweep(&unrelated, &bench.free).unwrap();
    assert_eq!(
        bench.state_of(&untouched),
        RequestState::Granted,
        "an unrelated edit voids nothing"
    );
}

#[test]
fn floods_are_capped_at_twenty_open_and_thirty_new_per_minute() {
    let bench = Bench::new();
    let letters: Vec<char> = ('a'..='z').chain('A'..='Z').collect();
    for letter in &letters[..20] {
        bench.ask(*letter, &["one"]).unwrap();
    }
    assert!(matches!(bench.ask('!', &["one"]), Err(ApprovalError::Flood(_))));
    for stored in bench.approvals.list() {
        bench.approvals.withdraw(&agent("u1"), stored.name()).unwrap();
    }
    for letter in &letters[20..30] {
        bench.ask(*letter, &["one"]).unwrap();
    }
    assert!(matches!(bench.ask('?', &["one"]), Err(ApprovalError::Flood(_))));
    bench.clock.advance_ms(60_001);
    bench.ask('?', &["one"]).unwrap();
}

#[test]
fn finished_requests_are_forgotten_after_a_day_and_states_survive_a_restart() {
    let bench = Bench::new();
    let name = bench.granted('a');
    bench.claim(&name, 'a', "n");
    let folder = RequestFolder::open(&bench.state).unwrap();
    let audit = Arc::clone(&bench.approvals.audit);
    let again = Approvals::over(Arc::new(folder), bench.clock.clone(), audit);
    assert_eq!(again.list()[0].state(), RequestState::Claimed);
    bench.settle(&name, RequestState::Done, "n").unwrap();
    bench.clock.advance_ms(KEEP_MS - 1);
    bench.sweep();
    assert!(bench.find(&name).is_some());
    bench.clock.advance_ms(1);
    bench.sweep();
    assert!(bench.find(&name).is_none());
    assert!(!bench.state.path(&format!("approvals/{name}.json")).exists());
}

#[test]
fn a_swap_of_an_older_version_loses() {
    let bench = Bench::new();
    let name = bench.granted('a');
    let folder = RequestFolder::open(&bench.state).unwrap();
    let first = Stored::clone(&bench.find(&name).unwrap());
    folder.swap(first.clone()).unwrap();
    assert!(matches!(folder.swap(first), Err(SwapError::Changed(_))));
}

#[test]
fn concurrent_claims_have_one_winner() {
    let bench = Bench::new();
    let name = bench.granted('a');
    let winners: usize = std::thread::scope(|scope| {
        let claims: Vec<_> = (0..8)
            .map(|number| {
                let (bench, name) = (&bench, &name);
                scope.spawn(move || bench.claim(name, 'a', &format!("n{number}")).won)
            })
            .collect();
        claims
            .into_iter()
            .filter_map(|claim| claim.join().ok())
            .filter(|won| *won)
            .count()
    });
    assert_eq!(winners, 1);
}

#[test]
fn a_word_that_cannot_be_recorded_was_not_given_and_a_claim_that_cannot_is_not_won() {
    let bench = Bench::new();
    let asked = bench.ask('a', &["one"]).unwrap();
    let granted = bench.granted('b');
    let obstacle = Obstacle::new(&bench.approvals.audit, &bench.state);
    for verdict in [Verdict::Approve, Verdict::Deny] {
        let refused = bench.approvals.decide(&asked.name, &person("ann", &[]), verdict, None);
        let refused = refused.unwrap_err();
        assert!(matches!(refused, ApprovalError::Unrecorded(_)), "{refused}");
    }
    let claim = ApprovalClaim {
        session: "s".to_owned(),
        operation: 1,
        digest: "b".repeat(64),
        nonce: "n".to_owned(),
    };
    let claimed = bench
        .approvals
        .claim(&agent("u1"), &granted, &claim, &bench.index, &bench.free);
    assert!(matches!(claimed, Err(ApprovalError::Unrecorded(_))), "{claimed:?}");
    let stored = bench.find(&asked.name).unwrap();
    assert_eq!(
        (stored.state(), stored.status().decisions.len()),
        (RequestState::Pending, 0)
    );
    assert_eq!(bench.find(&granted).unwrap().state(), RequestState::Granted);
    drop(obstacle);
    let reason = Some("looks right".to_owned());
    let decided = bench
        .approvals
        .decide(&asked.name, &person("ann", &[]), Verdict::Approve, reason);
    assert_eq!(decided.unwrap().state(), RequestState::Granted);
    assert!(bench.claim(&granted, 'b', "n").won);
    let told = told(&bench.state);
    assert!(
        told.contains(&("approval.approved".to_owned(), "looks right".to_owned())),
        "{told:?}"
    );
    assert!(told.iter().any(|(event, _)| event == "grant.claimed"), "{told:?}");
}

#[test]
fn a_store_that_cannot_be_swept_is_looked_at_less_and_less_often() {
    assert_eq!(pause(0), TICK);
    let pauses: Vec<Duration> = (1..40).map(pause).collect();
    assert!(pauses[..4].windows(2).all(|pair| pair[1] > pair[0]), "{pauses:?}");
    assert!(pauses
        .iter()
        .skip(6)
        .all(|pause| *pause >= LONGEST_PAUSE * 3 / 4 && *pause <= LONGEST_PAUSE));
}
