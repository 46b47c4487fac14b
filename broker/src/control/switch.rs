//! The kill switch in a person's hand: what is frozen or unfrozen is on record.
//!
//! Freezing takes effect whether or not it can be recorded, unfreezing only if it can: neither fails open.

use sidegate_policies::api::lockdown::LockdownSpec;
use sidegate_policies::record::Kind;

use crate::audit::{Audit, Event, Unrecorded};
use crate::lockdown::{LockdownError, Lockdowns};

/// Freezes: on record first. Where that fails it freezes all the same, because refusing to would fail open; the
/// person is told, and the event is written as soon as the log takes it. Answers the deny set's revision.
pub fn freeze(
    audit: &Audit,
    lockdowns: &Lockdowns,
    uid: u32,
    name: &str,
    spec: LockdownSpec,
) -> Result<(u64, Option<Unrecorded>), LockdownError> {
    let frozen = serde_json::to_string(&spec.freeze).unwrap_or_default();
    let detail = format!("{frozen}: {}", spec.reason);
    let by = format!("uid:{uid}");
    let event = Event {
        subject: &by,
        object: name,
        detail: &detail,
        ..Event::new(Kind::Lockdown, "lockdown.locked")
    };
    let unrecorded = audit.record_or_note(event);
    let revision = lockdowns.lock(name, spec).inspect_err(|error| {
        audit.note(Event {
            detail: &format!("it failed: {error}"),
            ..event
        });
    })?;
    Ok((revision, unrecorded))
}

/// Unfreezes: on record first, or not at all. Answers the deny set's revision.
pub fn thaw(audit: &Audit, lockdowns: &Lockdowns, uid: u32, name: &str) -> Result<u64, LockdownError> {
    let by = format!("uid:{uid}");
    let event = Event {
        subject: &by,
        object: name,
        ..Event::new(Kind::Lockdown, "lockdown.unlocked")
    };
    audit.record(event)?;
    lockdowns.unlock(name).inspect_err(|error| {
        audit.note(Event {
            detail: &format!("it failed: {error}"),
            ..event
        });
    })
}

/// Says which lockdowns their own time ended.
pub fn say_ended(audit: &Audit, lockdowns: &Lockdowns) {
    for name in lockdowns.take_ended() {
        audit.note(Event {
            object: &name,
            ..Event::new(Kind::Lockdown, "lockdown.ended")
        });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use sidegate_policies::api::lockdown::Freeze;

    use super::*;
    use crate::audit::tests::{audit, told, Obstacle};
    use crate::clock::{rfc3339, Clock, ManualClock};
    use crate::lockdown::tests::spec;
    use crate::lockdown::About;
    use crate::state::StateDir;

    struct Desk {
        _temp: tempfile::TempDir,
        state: Arc<StateDir>,
        clock: Arc<ManualClock>,
        audit: Arc<Audit>,
        lockdowns: Lockdowns,
    }

    fn desk() -> Desk {
        let temp = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDir::open(&temp.path().join("state")).unwrap());
        let clock = Arc::new(ManualClock::starting_now());
        Desk {
            audit: audit(&state, clock.clone()),
            lockdowns: Lockdowns::open(state.clone(), clock.clone()).unwrap(),
            _temp: temp,
            state,
            clock,
        }
    }

    fn everything() -> LockdownSpec {
        spec(Freeze::Everything(Default::default()))
    }

    fn said(desk: &Desk) -> Vec<String> {
        desk.audit.keep();
        let events = told(&desk.state).into_iter();
        events
            .filter_map(|(event, detail)| Some(format!("{}: {detail}", event.strip_prefix("lockdown.")?)))
            .collect()
    }

    #[test]
    fn what_cannot_be_recorded_is_frozen_all_the_same_and_stays_frozen() {
        let desk = desk();
        let frozen = |desk: &Desk| {
            let now = desk.clock.now_ms();
            desk.lockdowns.now().frozen(About::default(), now).is_some()
        };
        let obstacle = Obstacle::new(&desk.audit, &desk.state);
        let (_, unrecorded) = freeze(&desk.audit, &desk.lockdowns, 7, "incident", everything()).unwrap();
        assert!(unrecorded.is_some() && frozen(&desk));
        let refused = thaw(&desk.audit, &desk.lockdowns, 7, "incident");
        assert!(matches!(refused, Err(LockdownError::Unrecorded(_))), "{refused:?}");
        assert!(frozen(&desk));
        drop(obstacle);
        let events = said(&desk);
        let late = "locked: it is in force, though not recorded in time".to_owned();
        assert!(events.contains(&late), "{events:?}");
        thaw(&desk.audit, &desk.lockdowns, 7, "incident").unwrap();
        assert!(!frozen(&desk));
    }

    #[test]
    fn a_lockdown_that_its_time_ends_is_said_to_have_ended_once() {
        let desk = desk();
        let until = Some(rfc3339(desk.clock.now_ms().saturating_add(1000)));
        let short = LockdownSpec { until, ..everything() };
        freeze(&desk.audit, &desk.lockdowns, 7, "short", short).unwrap();
        for _ in 0..2 {
            desk.clock.advance_ms(1001);
            desk.lockdowns.refresh().unwrap();
            say_ended(&desk.audit, &desk.lockdowns);
        }
        let ended = said(&desk).iter().filter(|event| event.starts_with("ended")).count();
        assert_eq!(ended, 1);
        // One that a person lifts ends by that person's word.
        freeze(&desk.audit, &desk.lockdowns, 7, "long", everything()).unwrap();
        thaw(&desk.audit, &desk.lockdowns, 7, "long").unwrap();
        assert_eq!(desk.lockdowns.take_ended(), Vec::<String>::new());
    }
}
