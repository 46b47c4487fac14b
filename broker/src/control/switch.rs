//! The kill switch in a person's hand: what is frozen or unfrozen is on record.
//!
//! Freezing takes effect whether or not it can be recorded, unfreezing only if it can: neither fails open.

use sidegate_policies::api::lockdown::LockdownSpec;
use sidegate_policies::record::Kind;

use crate::audit::{Audit, Event, Unrecorded};
use crate::clock::rfc3339;
use crate::lockdown::{Ended, LockdownError, Lockdowns};

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

/// Says which lockdowns their own time ended, also before this start. An end is told until it is on record: twice
/// rather than never.
pub fn say_ended(audit: &Audit, lockdowns: &Lockdowns) {
    for Ended {
        name,
        at_ms,
        late,
        defined,
    } in lockdowns.take_ended()
    {
        let at = rfc3339(at_ms);
        let detail = match (late, defined) {
            (false, _) => format!("at {at}"),
            (true, true) => format!("at {at}; noticed only when the broker started"),
            (true, false) => format!("at {at} or earlier: it was no longer there when the broker started"),
        };
        audit.note(Event {
            object: &name,
            detail: &detail,
            ..Event::new(Kind::Lockdown, "lockdown.ended")
        });
    }
    if lockdowns.end_waits() && audit.flush().is_ok() {
        lockdowns.ends_recorded();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use sidegate_policies::api::lockdown::Freeze;

    use super::*;
    use crate::audit::tests::{audit, told, Obstacle};
    use crate::clock::{Clock, ManualClock};
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
            lockdowns: opened(&state, &clock),
            _temp: temp,
            state,
            clock,
        }
    }

    /// The lockdowns as a start of the broker opens them.
    fn opened(state: &Arc<StateDir>, clock: &Arc<ManualClock>) -> Lockdowns {
        let lockdowns = Lockdowns::open(state.clone(), clock.clone()).unwrap();
        lockdowns.configure(Vec::new()).unwrap();
        lockdowns
    }

    /// What is on record about ends.
    fn ends(desk: &Desk) -> Vec<String> {
        let mut said = said(desk);
        said.retain(|event| event.starts_with("ended"));
        said
    }

    /// Locks for a second and answers when that ends.
    fn locked_for_a_second(desk: &Desk, name: &str) -> String {
        let at = rfc3339(desk.clock.now_ms().saturating_add(1000));
        let until = Some(at.clone());
        let short = LockdownSpec { until, ..everything() };
        freeze(&desk.audit, &desk.lockdowns, 7, name, short).unwrap();
        at
    }

    impl Desk {
        fn restart(&mut self) {
            self.lockdowns = opened(&self.state, &self.clock);
            say_ended(&self.audit, &self.lockdowns);
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
        let mut desk = desk();
        let at = locked_for_a_second(&desk, "short");
        for _ in 0..2 {
            desk.clock.advance_ms(1001);
            desk.lockdowns.refresh().unwrap();
            say_ended(&desk.audit, &desk.lockdowns);
        }
        desk.restart();
        assert_eq!(ends(&desk), [format!("ended: at {at}")]);
        // One that a person lifts ends by that person's word.
        freeze(&desk.audit, &desk.lockdowns, 7, "long", everything()).unwrap();
        thaw(&desk.audit, &desk.lockdowns, 7, "long").unwrap();
        locked_for_a_second(&desk, "lifted");
        thaw(&desk.audit, &desk.lockdowns, 7, "lifted").unwrap();
        desk.clock.advance_ms(1001);
        desk.restart();
        assert_eq!(ends(&desk).len(), 1);
    }

    #[test]
    fn a_lockdown_that_ends_while_no_broker_runs_is_said_late_and_once_with_its_true_time() {
        let mut desk = desk();
        let at = locked_for_a_second(&desk, "short");
        desk.clock.advance_ms(1_000_000);
        for _ in 0..3 {
            desk.restart();
        }
        assert_eq!(
            ends(&desk),
            [format!("ended: at {at}; noticed only when the broker started")]
        );
        // One whose file went as well may have been lifted before its time.
        let at = locked_for_a_second(&desk, "gone");
        std::fs::remove_file(desk.state.path("lockdowns/gone.yaml")).unwrap();
        desk.clock.advance_ms(1_000_000);
        desk.restart();
        let late = format!("ended: at {at} or earlier: it was no longer there when the broker started");
        assert_eq!(ends(&desk).last(), Some(&late));
    }

    #[test]
    fn a_lockdown_that_never_was_in_force_never_ends() {
        let mut desk = desk();
        let until = Some(rfc3339(desk.clock.now_ms().saturating_sub(1)));
        let past = LockdownSpec { until, ..everything() };
        freeze(&desk.audit, &desk.lockdowns, 7, "past", past).unwrap();
        desk.clock.advance_ms(1001);
        desk.restart();
        assert_eq!(ends(&desk), Vec::<String>::new());
    }

    #[test]
    fn an_end_that_was_not_on_record_when_the_broker_died_is_said_by_the_next() {
        let mut desk = desk();
        let at = locked_for_a_second(&desk, "short");
        desk.clock.advance_ms(1001);
        let obstacle = Obstacle::new(&desk.audit, &desk.state);
        desk.lockdowns.refresh().unwrap();
        say_ended(&desk.audit, &desk.lockdowns);
        assert!(desk.lockdowns.end_waits());
        drop(obstacle);
        desk.restart();
        let late = format!("ended: at {at}; noticed only when the broker started");
        assert_eq!(ends(&desk), [format!("ended: at {at}"), late]);
        assert!(!desk.lockdowns.end_waits());
    }

    #[test]
    fn a_lockdown_of_the_configuration_that_ends_meanwhile_is_told_too_and_an_unreadable_file_ends_none() {
        let mut desk = desk();
        let at = rfc3339(desk.clock.now_ms().saturating_add(1000));
        let yaml = format!(
            "apiVersion: sidegate.dev/v1alpha1\nkind: Lockdown\nmetadata: {{name: planned}}\n\
             spec: {{reason: r, until: \"{at}\", freeze: [{{everything: {{}}}}]}}\n"
        );
        let source = sidegate_policies::yaml::Source {
            name: "x.yaml".to_owned(),
            text: yaml,
        };
        let loaded = sidegate_policies::yaml::load(&[source]);
        assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
        let planned: Vec<_> = loaded.objects.lockdowns.into_iter().map(|one| one.object).collect();
        desk.lockdowns.configure(planned.clone()).unwrap();
        locked_for_a_second(&desk, "written");
        let broken = desk.state.path("lockdowns/broken.yaml");
        std::fs::write(&broken, "kind: [").unwrap();
        desk.lockdowns.refresh().unwrap();
        std::fs::remove_file(&broken).unwrap();
        desk.clock.advance_ms(1001);
        desk.lockdowns = Lockdowns::open(desk.state.clone(), desk.clock.clone()).unwrap();
        say_ended(&desk.audit, &desk.lockdowns);
        assert_eq!(ends(&desk), Vec::<String>::new(), "the configuration is not read yet");
        desk.lockdowns.configure(planned).unwrap();
        say_ended(&desk.audit, &desk.lockdowns);
        let late = format!("ended: at {at}; noticed only when the broker started");
        assert_eq!(ends(&desk), [late.clone(), late]);
    }
}
