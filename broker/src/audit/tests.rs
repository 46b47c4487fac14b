//! What is recorded is durable and chained; what cannot be recorded is refused, and said.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use sidegate_policies::record::audit::read;
use sidegate_policies::record::layout::{DirectoryStore, LogPath};

use super::*;
use crate::clock::ManualClock;
use crate::records::RecordsOptions;

/// An audit over a fresh record store in this state.
pub(crate) fn audit(state: &StateDir, clock: Arc<ManualClock>) -> Arc<Audit> {
    let issuer = Issuer::open(state, "https://127.0.0.1:1".to_owned(), "local".to_owned(), clock.now()).unwrap();
    let records = Records::open(RecordsOptions::new(state.dir("records").unwrap(), "local")).unwrap();
    records.set_ring(&issuer.record_ring()).unwrap();
    let clock: Arc<dyn Clock> = clock;
    Audit::start(state, &records, &Arc::new(issuer), &clock, &Separation::None).unwrap()
}

/// What is on the disk: event and detail of each.
pub(crate) fn told(state: &StateDir) -> Vec<(String, String)> {
    let events = read(&DirectoryStore::new(&state.path("records"))).unwrap();
    let said = events.into_iter().map(|event| event.says);
    said.map(|says| (says.event.into_owned(), says.detail.into_owned()))
        .collect()
}

/// While this lives, the audit log cannot be written: a folder stands where its next journal must be made.
pub(crate) struct Obstacle(PathBuf);

impl Obstacle {
    pub(crate) fn new(audit: &Audit, state: &StateDir) -> Obstacle {
        audit.settle(u64::MAX).unwrap();
        lock(&audit.log).own.seal().unwrap();
        let id = String::from_utf8(state.read("broker.id").unwrap().unwrap()).unwrap();
        let start = state.counter("audit").unwrap();
        let journal = LogPath::new("local", BROKER, &id, start).unwrap().landing();
        let path = state.path("records").join(journal);
        std::fs::create_dir_all(&path).unwrap();
        Obstacle(path)
    }
}

impl Drop for Obstacle {
    fn drop(&mut self) {
        std::fs::remove_dir(&self.0).unwrap();
    }
}

fn event(name: &'static str) -> Event<'static> {
    Event::new(Kind::Decided, name)
}

#[test]
fn what_cannot_be_recorded_is_refused_and_later_said_to_have_had_no_effect() {
    let temp = tempfile::tempdir().unwrap();
    let state = StateDir::open(&temp.path().join("state")).unwrap();
    let audit = audit(&state, Arc::new(ManualClock::starting_now()));
    audit.record(event("one")).unwrap();
    assert_eq!(told(&state), [("one".to_owned(), String::new())]);
    let obstacle = Obstacle::new(&audit, &state);
    let refused = audit.record(event("two")).unwrap_err().to_string();
    assert!(refused.starts_with("it cannot be recorded: "), "{refused}");
    assert_eq!(told(&state).len(), 1);
    audit.keep();
    assert_eq!(audit.records.alarms().len(), 1, "{:?}", audit.records.alarms());
    audit.keep();
    assert_eq!(audit.records.alarms().len(), 1, "one alarm until it works again");
    drop(obstacle);
    audit.record(event("three")).unwrap();
    let told = told(&state);
    let names: Vec<&str> = told.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["one", "two", "two", "three"]);
    assert!(told[2].1.ends_with("it had no effect"), "{told:?}");
}

#[test]
fn a_flood_of_notes_fills_no_memory_and_keeps_no_decision_out() {
    let temp = tempfile::tempdir().unwrap();
    let state = StateDir::open(&temp.path().join("state")).unwrap();
    let audit = audit(&state, Arc::new(ManualClock::starting_now()));
    for _ in 0..MAX_WAITING + 100 {
        audit.note(Event::new(Kind::Refused, "token.refused"));
    }
    assert_eq!(lock(&audit.waiting).events.len(), MAX_WAITING);
    audit.record(event("approval.denied")).unwrap();
    let told = told(&state);
    assert_eq!(told.len(), MAX_WAITING + 1);
    assert_eq!(told[MAX_WAITING].0, "approval.denied");
}

#[test]
fn a_long_field_is_cut_between_characters() {
    assert_eq!(field("short"), "short");
    let cut = field(&"é".repeat(MAX_FIELD));
    assert!(cut.ends_with("é…") && cut.len() <= MAX_FIELD + 3);
}
