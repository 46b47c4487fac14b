//! Rings over a manual time: published before used, kept after, never lost.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use serde_json::json;

use super::*;
use crate::jwt::{accept, Refused, Slot, Trust};

struct Bench {
    _temp: tempfile::TempDir,
    state: StateDir,
}

const START: i64 = 1_800_000_000;
const URL: &str = "https://127.0.0.1:1";

impl Bench {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::open(&temp.path().join("state")).unwrap();
        Bench { _temp: temp, state }
    }

    fn open(&self, name: RingName, now: i64) -> Ring {
        Ring::open(&self.state, name, now).unwrap()
    }

    fn refused(&self, name: RingName) -> String {
        let refused = Ring::open(&self.state, name, START).err().unwrap();
        assert!(matches!(refused, StartError::State(StateError::Broken { .. })));
        refused.to_string()
    }
}

/// One look of the background task; true if something changed.
fn tick(ring: &Ring, now: i64) -> bool {
    let changing = ring.change();
    let next = ring.due(&changing, now).unwrap();
    let changed = next.is_some();
    if let Some(next) = next {
        ring.put(&changing, next).unwrap();
    }
    changed
}

fn replace(ring: &Ring, now: i64) {
    let changing = ring.change();
    let next = ring.fresh(&changing, now).unwrap();
    ring.put(&changing, next).unwrap();
}

fn sign(ring: &Ring, now: i64) -> String {
    let claims = json!({
        "iss": URL, "aud": URL, "sub": "sg:local:x", "iat": now, "nbf": now, "exp": now + 900, "jti": "a",
        "client_id": "c", "cnf": {"jkt": "t"},
    });
    ring.sign("at+jwt", &claims, now).unwrap()
}

fn verify(ring: &Ring, token: &str, now: i64) -> Result<(), Refused> {
    let trust = Trust {
        issuer: URL,
        keys: &ring.verifying(now),
        algorithms: crate::issuer::ALGORITHMS,
        audience: URL,
        denied: &|_| false,
    };
    accept(Slot::Session, token.as_bytes(), trust, now).map(drop)
}

fn kid_of(token: &str) -> String {
    let header = URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap();
    let header: Value = serde_json::from_slice(&header).unwrap();
    header["kid"].as_str().unwrap().to_owned()
}

fn kids(ring: &Ring, now: i64) -> Vec<String> {
    ring.published(now).into_iter().map(|key| key.kid.unwrap()).collect()
}

#[test]
fn a_kid_is_the_thumbprint_and_the_first_key_signs_at_once() {
    let ring = Bench::new().open(RingName::Access, START);
    let key = ring.published(START).pop().unwrap();
    assert_eq!(key.kid.as_deref(), Some(key.thumbprint().as_str()));
    assert_eq!(kid_of(&sign(&ring, START)), key.thumbprint());
}

#[test]
fn a_key_is_published_before_its_first_use_and_signs_only_once_usable() {
    for name in [RingName::Access, RingName::Federation] {
        let bench = Bench::new();
        let ring = bench.open(name, START);
        let Schedule { every, ahead, .. } = name.schedule();
        let algorithms = name.algorithms();
        let first = kids(&ring, START);
        assert_eq!(first.len(), algorithms.len());
        assert!(!tick(&ring, START + every - ahead - 1), "too early");
        assert!(tick(&ring, START + every - ahead));
        let now = START + every - ahead;
        let published = kids(&ring, now);
        assert_eq!(published.len(), 2 * first.len(), "published");
        for (at, alg) in algorithms.iter().enumerate() {
            let signer = |now| kid_of(&ring.sign_by(*alg, "JWT", &json!({}), now).unwrap());
            for now in [now, START + every - 1] {
                assert_eq!(signer(now), first[at], "not used yet");
            }
            assert_eq!(signer(START + every), published[first.len() + at]);
        }
        assert!(!tick(&ring, START + every), "one successor at a time");
    }
}

#[test]
fn an_old_key_verifies_through_the_overlap_and_not_after() {
    let bench = Bench::new();
    let ring = bench.open(RingName::Access, START);
    let Schedule { every, ahead, after } = RingName::Access.schedule();
    tick(&ring, START + every - ahead);
    let switch = START + every;
    let last = sign(&ring, switch - 1);
    let retired = switch + after.unwrap();
    // A token lives 15 minutes at most: none is refused for its key.
    verify(&ring, &last, switch + 899).unwrap();
    assert_ne!(verify(&ring, &last, retired - 1), Err(Refused::UnknownKey));
    // By the clock, whether or not the background task has looked.
    assert_eq!(verify(&ring, &last, retired), Err(Refused::UnknownKey));
    assert!(!ring.holds(&kid_of(&last), retired));
    assert!(tick(&ring, retired));
    assert_eq!(ring.list().len(), 1);
    let text = bench.state.read("keys/access.ring").unwrap().unwrap();
    assert!(
        !String::from_utf8(text).unwrap().contains(&kid_of(&last)),
        "gone from the disk too"
    );
}

#[test]
fn two_rotations_keep_one_signer_and_never_leave_a_gap() {
    let bench = Bench::new();
    let ring = bench.open(RingName::Access, START);
    let mut signers = Vec::new();
    let mut previous: Option<String> = None;
    for minute in 0..(49 * 60) {
        let now = START + minute * 60;
        tick(&ring, now);
        if let Some(token) = previous {
            verify(&ring, &token, now).unwrap();
        }
        let token = sign(&ring, now);
        let kid = kid_of(&token);
        if signers.last() != Some(&kid) {
            signers.push(kid);
        }
        previous = Some(token);
        assert!(ring.list().len() <= 2);
    }
    assert_eq!(signers.len(), 3);
}

#[test]
fn after_a_long_pause_the_old_key_signs_until_the_new_one_was_published_long_enough() {
    let bench = Bench::new();
    drop(bench.open(RingName::Access, START));
    let now = START + 40 * DAY;
    let ring = bench.open(RingName::Access, now);
    tick(&ring, now);
    let old = kid_of(&sign(&ring, now));
    assert_eq!(old, kids(&ring, now)[0]);
    assert_ne!(kid_of(&sign(&ring, now + 2 * HOUR)), old);
}

#[test]
fn a_clock_set_back_signs_nothing_rather_than_with_an_unpublished_key() {
    let ring = Bench::new().open(RingName::Access, START);
    assert_eq!(ring.sign("at+jwt", &json!({}), START - 1), Err(SigningFailed));
}

#[test]
fn a_restart_keeps_every_key_with_its_times() {
    let bench = Bench::new();
    for name in RingName::ALL {
        let Schedule { every, ahead, .. } = name.schedule();
        let ring = bench.open(name, START);
        let now = START + every - ahead;
        tick(&ring, now);
        assert_eq!(ring.list().len(), 2 * name.algorithms().len());
        let (before, token) = (ring.list(), sign(&ring, now));
        drop(ring);
        let again = bench.open(name, now + 1);
        assert_eq!(again.list(), before);
        verify(&again, &token, now + 1).unwrap();
        assert_eq!(kid_of(&sign(&again, now + 1)), kid_of(&token));
    }
}

#[test]
fn a_ring_without_an_rsa_key_gets_one_that_is_published_before_it_signs() {
    let bench = Bench::new();
    bench.state.dir("keys").unwrap();
    let old = SigningKey::generate().unwrap();
    bench.state.write("keys/federation.p8", &old).unwrap();
    let ring = bench.open(RingName::Federation, START);
    let by_rsa = |now| ring.sign_by(Alg::Rs256, "JWT", &json!({}), now);
    assert_eq!(by_rsa(START), Err(SigningFailed), "never by a key of another algorithm");
    let before = kid_of(&sign(&ring, START));
    assert!(tick(&ring, START));
    let Schedule { ahead, .. } = RingName::Federation.schedule();
    assert_eq!(kids(&ring, START).len(), 2);
    assert_eq!(by_rsa(START + ahead - 1), Err(SigningFailed));
    assert!(by_rsa(START + ahead).is_ok());
    assert_eq!(
        kid_of(&sign(&ring, START + ahead)),
        before,
        "the other key stays as it was"
    );
}

#[test]
fn the_single_key_of_an_older_release_is_taken_over_and_signs_on() {
    let bench = Bench::new();
    bench.state.dir("keys").unwrap();
    let pkcs8 = SigningKey::generate().unwrap();
    let kid = SigningKey::from_pkcs8(&pkcs8).unwrap().public().thumbprint();
    bench.state.write("keys/access.p8", &pkcs8).unwrap();
    let ring = bench.open(RingName::Access, START);
    assert_eq!(kid_of(&sign(&ring, START)), kid);
    assert_eq!(bench.state.read("keys/access.p8").unwrap(), None);
    // A crash between the ring and the removal: the ring counts, and the key goes at the next start.
    drop(ring);
    bench
        .state
        .write("keys/access.p8", &SigningKey::generate().unwrap())
        .unwrap();
    let ring = bench.open(RingName::Access, START);
    assert_eq!(kids(&ring, START), [kid]);
    assert_eq!(bench.state.read("keys/access.p8").unwrap(), None);
}

#[test]
fn a_torn_or_altered_ring_starts_nothing_and_is_not_replaced() {
    let bench = Bench::new();
    let ring = bench.open(RingName::Access, START);
    replace(&ring, START + 5);
    let good = bench.state.read("keys/access.ring").unwrap().unwrap();
    for cut in [0, 1, good.len() / 2, good.len() - 1] {
        bench.state.write("keys/access.ring", &good[..cut]).unwrap();
        let said = bench.refused(RingName::Access);
        assert!(said.contains("access.ring") && said.contains("not replaced"), "{said}");
        assert_eq!(bench.state.read("keys/access.ring").unwrap().unwrap(), &good[..cut]);
    }
    let text = String::from_utf8(good.clone()).unwrap();
    let other = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
    for altered in [
        text.replace("\"access\"", "\"record\""),
        text.replace("\"version\":1", "\"version\":2"),
        text.replace(&kids(&ring, START)[0], &other.public().thumbprint()),
        text.replace("\"pkcs8\":\"M", "\"pkcs8\":\"N"),
        "{\"version\":1,\"ring\":\"access\",\"keys\":[]}".to_owned(),
    ] {
        assert_ne!(altered, text);
        bench.state.write("keys/access.ring", altered.as_bytes()).unwrap();
        bench.refused(RingName::Access);
    }
    bench.state.write("keys/access.ring", &good).unwrap();
    bench.open(RingName::Access, START);
}

#[test]
fn a_crash_while_writing_leaves_the_old_ring_whole() {
    let bench = Bench::new();
    let ring = bench.open(RingName::Access, START);
    let before = ring.list();
    drop(ring);
    bench
        .state
        .write("keys/.access.ring.new", b"{\"version\":1,\"ri")
        .unwrap();
    let ring = bench.open(RingName::Access, START + 1);
    assert_eq!(ring.list(), before);
    assert!(tick(&ring, START + DAY), "and the left-over stands in nobody's way");
}

#[test]
fn what_the_disk_does_not_take_is_not_in_force() {
    let bench = Bench::new();
    let ring = bench.open(RingName::Access, START);
    let before = ring.list();
    std::fs::create_dir(bench.state.path("keys/.access.ring.new")).unwrap();
    let changing = ring.change();
    let next = ring.fresh(&changing, START + 1).unwrap();
    assert!(matches!(ring.put(&changing, next), Err(RingError::State(_))));
    assert_eq!(ring.list(), before);
}

#[test]
fn the_emergency_leaves_one_new_key_and_refuses_what_the_old_ones_signed() {
    let bench = Bench::new();
    let ring = bench.open(RingName::Access, START);
    let now = START + DAY - HOUR;
    tick(&ring, now);
    let (old, token) = (kids(&ring, now), sign(&ring, now));
    replace(&ring, now);
    assert_eq!(verify(&ring, &token, now), Err(Refused::UnknownKey));
    let new = kids(&ring, now);
    assert_eq!(
        (new.len(), old.contains(&new[0])),
        (1, false),
        "the one in waiting is gone too"
    );
    verify(&ring, &sign(&ring, now), now).unwrap();
    assert_eq!(bench.open(RingName::Access, now).list(), ring.list(), "durable");
}

#[test]
fn record_keys_are_never_dropped_and_superseded_ones_cannot_sign() {
    let bench = Bench::new();
    let ring = bench.open(RingName::Record, START);
    let every = RingName::Record.schedule().every;
    let mut now = START;
    for _ in 0..3 {
        now += every;
        assert!(tick(&ring, now));
    }
    replace(&ring, now + 1);
    assert_eq!(ring.list().len(), 5);
    assert!(ring.list().iter().all(|key| key.retire_at.is_none()));
    assert_eq!(kids(&ring, now + 100 * every).len(), 5);
    let file = String::from_utf8(bench.state.read("keys/record.ring").unwrap().unwrap()).unwrap();
    assert_eq!(file.matches("pkcs8").count(), 1, "only the newest can sign");
    let again = bench.open(RingName::Record, now + 1);
    assert_eq!(again.list(), ring.list());
    assert_eq!(kid_of(&sign(&again, now + 1)), kids(&again, now + 1)[4]);
}

/// A home whose owner was last heard of too long ago, or who was overtaken by another replica.
struct Elsewhere {
    current: bool,
}

impl Home for Elsewhere {
    fn put(&self, _: RingName, _: &ArcSwap<Keys>, _: &Arc<Keys>, _: Keys) -> Result<(), RingError> {
        Err(RingError::Changed)
    }

    fn is_current(&self) -> bool {
        self.current
    }

    fn rotates(&self) -> bool {
        true
    }
}

#[test]
fn a_home_that_is_behind_signs_nothing_and_still_verifies() {
    let memory = || Arc::new(ArcSwap::from_pointee(Keys::first(RingName::Access, START).unwrap()));
    let current = Ring::at(RingName::Access, memory(), Arc::new(Elsewhere { current: true }));
    let token = sign(&current, START);
    let behind = Ring::at(
        RingName::Access,
        Arc::clone(&current.keys),
        Arc::new(Elsewhere { current: false }),
    );
    assert_eq!(behind.sign("at+jwt", &json!({}), START), Err(SigningFailed));
    verify(&behind, &token, START).unwrap();
    // What the home does not take is not in force.
    let before = current.list();
    let changing = current.change();
    let next = current.fresh(&changing, START + 1).unwrap();
    assert!(matches!(current.put(&changing, next), Err(RingError::Changed)));
    assert_eq!(current.list(), before);
}

#[test]
fn a_change_is_planned_on_what_was_there_when_it_began() {
    let bench = Bench::new();
    let ring = bench.open(RingName::Access, START);
    let changing = ring.change();
    let before = ring.keys();
    // As when another replica's keys arrive meanwhile.
    ring.keys
        .store(Arc::new(Keys::first(RingName::Access, START + 9).unwrap()));
    let next = ring.due(&changing, START + DAY).unwrap().unwrap();
    assert!(before.missing_in(&next).is_empty());
}
