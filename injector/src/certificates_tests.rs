//! A set through its life, over a manual time, as an API server would check it.

#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]

use super::*;
use crate::trust::verifies;

const START: i64 = 1_800_000_000;
const NAME: &str = "sidegate-injector.sidegate-system.svc";

fn names() -> Vec<String> {
    vec![NAME.to_owned(), "sidegate-injector".to_owned()]
}

fn takes(bundle: &str, served: &Set, now: i64) -> bool {
    verifies(&served.certified().unwrap().cert, bundle, NAME, now).is_ok()
}

#[test]
fn a_leaf_is_renewed_after_two_thirds_of_its_life_under_the_same_authority() {
    let lives = Lives::default();
    let first = Set::first(&names(), &lives, START).unwrap();
    assert!(takes(&first.bundle(), &first, START));
    assert!(first
        .due(&names(), &lives, Some(START), START + 40 * DAY - 1)
        .unwrap()
        .is_none());
    let next = first
        .due(&names(), &lives, Some(START), START + 42 * DAY)
        .unwrap()
        .unwrap();
    assert_eq!(next.bundle(), first.bundle());
    assert!(takes(&first.bundle(), &next, START + 42 * DAY));
    assert_eq!((first.generation, next.generation), (1, 2));
    let other = vec!["other.svc".to_owned()];
    let renamed = first.due(&other, &lives, None, START).unwrap().unwrap();
    assert!(!takes(&first.bundle(), &renamed, START), "it has the new name alone");
    assert!(renamed.due(&other, &lives, None, START).unwrap().is_none());
}

#[test]
fn an_authority_is_replaced_in_three_steps_each_taken_by_who_knows_the_step_before() {
    let lives = Lives::default();
    let first = Set::first(&names(), &lives, START).unwrap();
    let mut now = START + 8 * 365 * DAY;
    let announced = first.due(&names(), &lives, Some(START), now).unwrap().unwrap();
    assert_eq!(
        announced.leaf.certificate, first.leaf.certificate,
        "the leaf is the old one"
    );
    assert_ne!(announced.bundle(), first.bundle());
    let mut fresh = announced.clone();
    fresh.leaf = announced.authority.leaf(LEAF, names(), now, lives.leaf).unwrap();
    // Until every configuration has named it for long enough, nothing is signed by it, however long that takes.
    for (told, at) in [(None, now + DAY), (Some(now), now + lives.announced - 1)] {
        assert!(fresh.due(&names(), &lives, told, at).unwrap().is_none());
    }
    now += lives.announced;
    let switched = fresh
        .due(&names(), &lives, Some(now - lives.announced), now)
        .unwrap()
        .unwrap();
    assert!(takes(&announced.bundle(), &switched, now));
    assert!(
        !takes(&first.bundle(), &switched, now),
        "whoever was not told would refuse it"
    );
    assert!(
        takes(&switched.bundle(), &fresh, now),
        "a replica that is behind is still taken"
    );
    assert!(switched
        .due(&names(), &lives, Some(now), now + lives.withdrawn - 1)
        .unwrap()
        .is_none());
    let done = switched
        .due(&names(), &lives, Some(now), now + lives.withdrawn)
        .unwrap()
        .unwrap();
    assert!(takes(&done.bundle(), &switched, now));
    assert!(!takes(&done.bundle(), &fresh, now));
    assert!(done
        .due(&names(), &lives, Some(now), now + lives.withdrawn)
        .unwrap()
        .is_none());
}

#[test]
fn a_set_is_read_back_and_one_whose_parts_do_not_match_is_not() {
    let lives = Lives::default();
    let (one, two) = (
        Set::first(&names(), &lives, START).unwrap(),
        Set::first(&names(), &lives, START).unwrap(),
    );
    let text = one.print().unwrap();
    assert!(Set::parse(&text).unwrap() == one);
    assert!(Set::parse(&text[..text.len() - 1]).is_err());
    let mut mixed = one.clone();
    mixed.leaf.certificate.clone_from(&two.leaf.certificate);
    assert!(Set::parse(&mixed.print().unwrap()).is_err());
    assert!(!one.told().contains("BEGIN"), "{}", one.told());
}
