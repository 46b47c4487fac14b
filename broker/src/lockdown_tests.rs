//! The kill switch on files.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::clock::{rfc3339, ManualClock};

/// A lockdown of this, without an end.
pub(crate) fn spec(freeze: Freeze) -> LockdownSpec {
    LockdownSpec {
        reason: "test".to_owned(),
        until: None,
        action: Default::default(),
        freeze: vec![freeze],
    }
}

fn subject() -> Subject {
    Subject {
        namespace: "agents".to_owned(),
        service_account: "support".to_owned(),
        pod: "pod-1".to_owned(),
        pod_uid: "u".to_owned(),
        labels: Default::default(),
    }
}

fn reference(namespace: &str, name: &str) -> NamespacedRef {
    NamespacedRef {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

struct Bench {
    temp: tempfile::TempDir,
    clock: Arc<ManualClock>,
}

impl Bench {
    fn new() -> Self {
        Bench {
            temp: tempfile::tempdir().unwrap(),
            clock: Arc::new(ManualClock::starting_now()),
        }
    }

    fn open(&self) -> Lockdowns {
        let state = StateDir::open(&self.temp.path().join("state")).unwrap();
        Lockdowns::open(Arc::new(state), self.clock.clone()).unwrap()
    }
}

#[test]
fn lock_and_unlock_raise_the_revision_and_it_survives_restarts() {
    let bench = Bench::new();
    let lockdowns = bench.open();
    let locked = lockdowns
        .lock("incident", spec(Freeze::Everything(Default::default())))
        .unwrap();
    assert!(matches!(
        lockdowns.lock("incident", spec(Freeze::Everything(Default::default()))),
        Err(LockdownError::Exists(_))
    ));
    drop(lockdowns);
    let again = bench.open();
    assert!(again.now().set.revision >= locked);
    assert_eq!(again.now().set.entries.len(), 1);
    let before = again.now().set.revision;
    let unlocked = again.unlock("incident").unwrap();
    assert!(unlocked > before);
    assert!(again.now().set.entries.is_empty());
    assert!(matches!(again.unlock("incident"), Err(LockdownError::Unknown(_))));
}

#[test]
fn each_kind_of_freeze_hits_what_it_names_and_nothing_else() {
    let subject = subject();
    let about = About {
        subject: Some(&subject),
        target: Some("data/shop"),
        secret: Some("data/shop-agent"),
        issuer: Some("sidegate"),
    };
    let hit = |freeze: Freeze| {
        let entry = DenyEntry {
            lockdown: "x".to_owned(),
            freeze,
            action: Default::default(),
            until_ms: None,
        };
        Denied {
            set: DenySet {
                revision: 1,
                entries: vec![entry],
            },
        }
        .frozen(about, 0)
        .is_some()
    };
    assert!(hit(Freeze::ServiceAccount(reference("agents", "support"))));
    assert!(hit(Freeze::Pod(reference("agents", "pod-1"))));
    assert!(hit(Freeze::Namespace("agents".to_owned())));
    assert!(hit(Freeze::Target(reference("data", "shop"))));
    assert!(hit(Freeze::Secret(reference("data", "shop-agent"))));
    assert!(hit(Freeze::Issuer("sidegate".to_owned())));
    assert!(hit(Freeze::Everything(Default::default())));
    assert!(!hit(Freeze::ServiceAccount(reference("agents", "other"))));
    assert!(!hit(Freeze::Pod(reference("agents", "pod-2"))));
    assert!(!hit(Freeze::Namespace("data".to_owned())));
    assert!(!hit(Freeze::Target(reference("agents", "shop"))));
    assert!(!hit(Freeze::Secret(reference("data", "shop"))));
    assert!(!hit(Freeze::Issuer("corp".to_owned())));
    assert!(!hit(Freeze::TokenId("sidegate".to_owned())));
}

#[test]
fn a_passed_until_lifts_the_lockdown_by_a_higher_revision() {
    let bench = Bench::new();
    let lockdowns = bench.open();
    let mut short = spec(Freeze::Everything(Default::default()));
    short.until = Some(rfc3339(bench.clock.now_ms() + 1000));
    let revision = lockdowns.lock("short", short).unwrap();
    bench.clock.advance_ms(1001);
    assert!(lockdowns.now().frozen(About::default(), bench.clock.now_ms()).is_none());
    assert!(lockdowns.refresh().unwrap() > revision);
}

#[test]
fn a_lockdown_file_that_cannot_be_read_freezes_everything() {
    let bench = Bench::new();
    let lockdowns = bench.open();
    write_private(&bench.temp.path().join("state/lockdowns/x.yaml"), b"kind: [").unwrap();
    lockdowns.refresh().unwrap();
    assert!(lockdowns.now().frozen(About::default(), 0).is_some());
    std::fs::remove_file(bench.temp.path().join("state/lockdowns/x.yaml")).unwrap();
    lockdowns.refresh().unwrap();
    assert!(lockdowns.now().frozen(About::default(), 0).is_none());
    std::fs::write(bench.temp.path().join("state/lockdowns/y.yaml"), "").unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(bench.temp.path().join("state/lockdowns/y.yaml"), open).unwrap();
    lockdowns.refresh().unwrap();
    assert!(lockdowns.now().frozen(About::default(), 0).is_some());
}

#[test]
fn more_than_ten_thousand_entries_freeze_everything() {
    let entry = DenyEntry {
        lockdown: "x".to_owned(),
        freeze: Freeze::TokenId("t".to_owned()),
        action: Default::default(),
        until_ms: None,
    };
    let denied = Denied {
        set: DenySet {
            revision: 1,
            entries: vec![entry; MAX_ENTRIES + 1],
        },
    };
    assert!(denied.frozen(About::default(), 0).is_some());
}

#[test]
fn a_cluster_is_locked_by_objects_alone() {
    let bench = Bench::new();
    let lockdowns = bench.open();
    lockdowns.configure_at(Vec::new(), 40).unwrap();
    let refused = lockdowns.lock("incident", spec(Freeze::Everything(Default::default())));
    assert!(matches!(refused, Err(LockdownError::Cluster)));
    assert!(lockdowns.now().set.entries.is_empty());
}

#[test]
fn in_a_cluster_the_revision_is_the_version_consumed_and_never_falls() {
    let bench = Bench::new();
    let lockdowns = bench.open();
    let object = everything("test");
    lockdowns.configure_at(vec![object.clone()], 100).unwrap();
    assert_eq!(lockdowns.now().set.revision, 100);
    // A list that catches up, with nothing new in it.
    lockdowns.configure_at(vec![object.clone()], 150).unwrap();
    assert_eq!(lockdowns.now().set.revision, 150);
    lockdowns.configure_at(Vec::new(), 160).unwrap();
    assert_eq!(
        (lockdowns.now().set.revision, lockdowns.now().set.entries.len()),
        (160, 0)
    );
    // A store that was restored from a copy.
    lockdowns.configure_at(vec![object], 9).unwrap();
    assert_eq!(
        (lockdowns.now().set.revision, lockdowns.now().set.entries.len()),
        (160, 1)
    );
    let mut elsewhere = lockdowns.elsewhere();
    lockdowns.held_elsewhere(160);
    assert!(!elsewhere.has_changed().unwrap(), "nothing to catch up with");
    lockdowns.held_elsewhere(161);
    assert_eq!(*elsewhere.borrow_and_update(), 161);
}

#[test]
fn a_restored_store_counts_as_newer_once_its_generation_is_raised() {
    let bench = Bench::new();
    let lockdowns = bench.open();
    lockdowns.configure_at(Vec::new(), 5_000).unwrap();
    let held = lockdowns.now().set.revision;
    drop(lockdowns);
    // The copy is older than what sidecars have seen: without another generation they would take nothing of it.
    let restored = bench.open().of_generation(1);
    restored.configure_at(Vec::new(), 40).unwrap();
    let first = restored.now().set.revision;
    assert!(first > held);
    restored.configure_at(Vec::new(), 41).unwrap();
    assert_eq!(restored.now().set.revision, first + 1);
    let mut elsewhere = restored.elsewhere();
    restored.held_elsewhere(held);
    assert!(!elsewhere.has_changed().unwrap(), "it is of the store before");
    restored.held_elsewhere(2 << VERSION_BITS);
    assert!(!elsewhere.has_changed().unwrap(), "it is of the store after");
    restored.held_elsewhere(first + 60);
    assert_eq!(*elsewhere.borrow_and_update(), 100, "a version of this store");
}
