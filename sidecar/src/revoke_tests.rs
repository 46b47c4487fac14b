//! What each kind of freeze touches, and that nothing thaws by itself.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::session::tests::subject;
use sidegate_policies::api::lockdown::Everything;
use sidegate_policies::api::meta::NamespacedRef;
use sidegate_policies::api::target::{SecretCredential, TargetProtocol};
use sidegate_policies::engine::TargetId;

fn named(namespace: &str, name: &str) -> NamespacedRef {
    NamespacedRef {
        namespace: namespace.into(),
        name: name.into(),
    }
}

fn entry(freeze: Freeze) -> DenyEntry {
    DenyEntry {
        lockdown: "incident".into(),
        freeze,
        action: LockdownAction::Close,
        until_ms: None,
    }
}

fn set(revision: u64, entries: Vec<DenyEntry>) -> DenySet {
    DenySet { revision, entries }
}

fn target() -> Arc<TargetState> {
    let mut target = TargetState::announced(TargetId::new("data", "shop"), TargetProtocol::Postgres, 1);
    target.spec.credential = Credential::Secret(SecretCredential {
        name: "shop-agent".into(),
        username_key: "username".into(),
        password_key: "password".into(),
    });
    Arc::new(target)
}

fn running(sessions: &Arc<Sessions>) -> (Arc<Session>, crate::session::Entered) {
    let session = Arc::new(Session::new(sessions.next_number(), subject(), target(), None));
    (session.clone(), sessions.enter(session))
}

#[test]
fn each_freeze_touches_what_it_names_and_nothing_else() {
    let hits = [
        Freeze::ServiceAccount(named("agents", "support")),
        Freeze::Pod(named("agents", "support-1")),
        Freeze::Namespace("agents".into()),
        Freeze::Target(named("data", "shop")),
        Freeze::Secret(named("data", "shop-agent")),
        Freeze::Everything(Everything {}),
    ];
    let misses = [
        Freeze::ServiceAccount(named("data", "support")),
        Freeze::Pod(named("agents", "support-2")),
        Freeze::Namespace("data".into()),
        Freeze::Target(named("agents", "shop")),
        Freeze::Secret(named("data", "other")),
        Freeze::Issuer("sidegate".into()),
    ];
    for freeze in hits {
        let sessions = Arc::new(Sessions::default());
        let (session, _entered) = running(&sessions);
        let deny = Revocations::default();
        let applied = deny.apply(set(1, vec![entry(freeze.clone())]), &sessions).unwrap();
        assert_eq!(applied.closing.len(), 1, "{freeze:?}");
        assert_eq!(session.cut_reason(), Some(Reason::Locked), "{freeze:?}");
    }
    for freeze in misses {
        let sessions = Arc::new(Sessions::default());
        let (session, _entered) = running(&sessions);
        let deny = Revocations::default();
        deny.apply(set(1, vec![entry(freeze.clone())]), &sessions).unwrap();
        assert_eq!(session.cut_reason(), None, "{freeze:?}");
    }
}

#[test]
fn a_lower_revision_thaws_nothing() {
    let sessions = Arc::new(Sessions::default());
    let deny = Revocations::default();
    deny.apply(set(5, vec![entry(Freeze::Everything(Everything {}))]), &sessions)
        .unwrap();
    let before = deny.generation();
    assert!(deny.apply(set(4, Vec::new()), &sessions).is_none());
    assert_eq!(deny.generation(), before);
    assert!(deny.frozen(&subject(), &target()).closes(0));
    deny.apply(set(6, Vec::new()), &sessions).unwrap();
    assert!(deny.generation() > before);
    assert!(!deny.frozen(&subject(), &target()).refuses(0));
}

#[test]
fn refuse_new_leaves_open_sessions_alone() {
    let sessions = Arc::new(Sessions::default());
    let (session, _entered) = running(&sessions);
    let deny = Revocations::default();
    let mut soft = entry(Freeze::Everything(Everything {}));
    soft.action = LockdownAction::RefuseNew;
    deny.apply(set(1, vec![soft]), &sessions).unwrap();
    assert_eq!(session.cut_reason(), None);
    let frozen = deny.frozen(&subject(), &target());
    assert!(frozen.refuses(0) && !frozen.closes(0));
}

#[test]
fn an_end_is_kept_to_the_millisecond() {
    let deny = Revocations::default();
    let mut timed = entry(Freeze::Everything(Everything {}));
    timed.until_ms = Some(1_000);
    deny.apply(set(1, vec![timed]), &Sessions::default()).unwrap();
    let frozen = deny.frozen(&subject(), &target());
    assert!(frozen.closes(999) && !frozen.closes(1_000));
}

#[test]
fn too_many_entries_freeze_everything() {
    let deny = Revocations::default();
    let entries = vec![entry(Freeze::Namespace("elsewhere".into())); ENTRY_LIMIT + 1];
    deny.apply(set(1, entries), &Sessions::default()).unwrap();
    assert!(deny.frozen(&subject(), &target()).closes(0));
}
