//! What is kept, and each way in which it may not be taken.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::os::unix::fs::MetadataExt;

use sidegate_policies::api::lockdown::{Freeze, LockdownAction};
use sidegate_policies::wire::DenyEntry;

use super::super::signing::{statement, Signer, POD};
use super::*;

const BODY: &str = r#"{"cluster":"local"}"#;

/// One thing is frozen.
fn frozen() -> DenySet {
    DenySet {
        revision: 4,
        entries: vec![DenyEntry {
            lockdown: "incident".to_owned(),
            freeze: Freeze::Namespace("agents".to_owned()),
            action: LockdownAction::Close,
            until_ms: None,
        }],
    }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

fn sealed(signer: &Signer, body: &str, deny: &DenySet, sealed_ms: i64) -> (Statement, Seal) {
    let statement = Statement {
        sealed_ms,
        deny_revision: deny.revision,
        deny_digest: deny_digest(deny),
        ..statement(&bundle::version(body.as_bytes()))
    };
    let seal = signer.seal(&statement);
    (statement, seal)
}

/// A folder in which this is kept.
fn folder(signer: &Signer, change: impl FnOnce(&mut Contents)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut contents = Contents {
        format: FORMAT,
        boot: boot(),
        body: BODY.to_owned(),
        deny: frozen(),
        seal: sealed(signer, BODY, &frozen(), now()).1,
    };
    change(&mut contents);
    store(&folder.path().join("run"), &contents).unwrap();
    folder
}

fn look(folder: &tempfile::TempDir, seals: &Seals, now_ms: i64) -> Result<Option<Kept>, NotTaken> {
    read(&folder.path().join("run"), seals, POD, now_ms)
}

#[test]
fn what_was_kept_comes_back_with_its_deny_set_and_is_private() {
    let signer = Signer::new();
    let seals = Seals::pinned(&signer.ca_pem).unwrap();
    let folder = folder(&signer, |_| {});
    let kept = look(&folder, &seals, now()).unwrap().unwrap();
    assert_eq!((kept.body.as_str(), &kept.deny), (BODY, &frozen()));
    let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().mode() & 0o777;
    assert_eq!((mode("run"), mode("run/last-known-good.zst")), (0o700, 0o600));
    let nothing = tempfile::tempdir().unwrap();
    assert!(look(&nothing, &seals, now()).unwrap().is_none());
}

#[test]
fn an_altered_torn_foreign_or_planted_file_is_not_taken() {
    let (signer, other) = (Signer::new(), Signer::new());
    let seals = Seals::pinned(&signer.ca_pem).unwrap();
    let refused = |change: &dyn Fn(&mut Contents)| {
        let folder = folder(&signer, change);
        look(&folder, &seals, now()).unwrap_err().to_string()
    };
    let body = refused(&|contents| contents.body.push(' '));
    assert_eq!(body, "its body is not the one that was sealed");
    let thawed = refused(&|contents| contents.deny.entries.clear());
    assert_eq!(thawed, "its deny set is not the one that was sealed");
    let older = refused(&|contents| contents.deny.revision = 3);
    assert_eq!(older, "its deny set is not the one that was sealed");
    let planted = refused(&|contents| contents.seal = sealed(&other, BODY, &frozen(), now()).1);
    assert!(planted.starts_with("the seal's certificate is not one"), "{planted}");
    let form = refused(&|contents| contents.format = 2);
    assert_eq!(form, "it cannot be read: another release wrote it");

    let folder = folder(&signer, |_| {});
    let run = folder.path().join("run");
    let foreign = read(&run, &seals, "another-pod", now()).unwrap_err().to_string();
    assert_eq!(foreign, "the seal is another pod's");
    let file = run.join(NAME);
    let whole = fs::read(&file).unwrap();
    for length in [0, 1, whole.len() / 2, whole.len() - 1] {
        fs::write(&file, &whole[..length]).unwrap();
        let torn = read(&run, &seals, POD, now()).unwrap_err();
        assert!(matches!(torn, NotTaken::Torn(_)), "{length}: {torn}");
    }
    fs::write(&file, zstd::bulk::compress(&vec![0; PLAIN_LIMIT + 1], 1).unwrap()).unwrap();
    assert!(matches!(
        read(&run, &seals, POD, now()).unwrap_err(),
        NotTaken::Torn("no size")
    ));
}

#[test]
fn what_is_a_day_old_by_either_clock_or_from_the_future_is_not_taken() {
    let signer = Signer::new();
    let seals = Seals::pinned(&signer.ca_pem).unwrap();
    let day = 24 * 3_600_000;
    let folder = folder(&signer, |_| {});
    assert!(look(&folder, &seals, now() + day - 60_000).unwrap().is_some());
    assert!(matches!(look(&folder, &seals, now() + day), Err(NotTaken::Old(_))));
    assert!(
        look(&folder, &seals, now() - 30_000).unwrap().is_some(),
        "clocks differ"
    );
    assert!(matches!(
        look(&folder, &seals, now() - 120_000),
        Err(NotTaken::Future(_))
    ));
    // The wall clock says it is fresh; this boot says it was written a day ago.
    let set_back = self::folder(&signer, |contents| {
        let boot = contents.boot.as_mut().unwrap();
        boot.after_ms -= day;
    });
    assert!(matches!(look(&set_back, &seals, now()), Err(NotTaken::Old(_))));
    let another_boot = self::folder(&signer, |contents| {
        let boot = contents.boot.as_mut().unwrap();
        (boot.id, boot.after_ms) = ("another".to_owned(), boot.after_ms - day);
    });
    assert!(look(&another_boot, &seals, now()).unwrap().is_some());
}

#[tokio::test]
async fn only_a_bundle_with_the_deny_set_it_was_sealed_beside_is_kept_and_the_latest_wins() {
    let signer = Signer::new();
    let seals = Seals::pinned(&signer.ca_pem).unwrap();
    let temp = tempfile::tempdir().unwrap();
    let run = temp.path().join("run");
    let keeper = Keeper::new(run.clone());
    let kept = || keeper.waiting.lock().unwrap().take();
    let (statement, seal) = sealed(&signer, BODY, &DenySet::default(), now());
    keeper.bundle(BODY.to_owned(), (&statement, seal.clone()), &frozen());
    assert!(kept().is_none(), "sealed beside another deny set");

    // A bundle that waits is kept under the newer seal.
    let (newer, again) = sealed(&signer, BODY, &frozen(), now());
    keeper.bundle(BODY.to_owned(), (&statement, seal), &DenySet::default());
    keeper.resealed(newer.clone(), again.clone(), &frozen());
    write(&run, kept().unwrap()).unwrap();
    assert_eq!(read(&run, &seals, POD, now()).unwrap().unwrap().deny, frozen());

    // One that is written already gets it too, and another one's seal is nobody's.
    let (thawed, last) = sealed(&signer, BODY, &DenySet::default(), now());
    keeper.resealed(thawed, last, &DenySet::default());
    write(&run, kept().unwrap()).unwrap();
    assert_eq!(
        read(&run, &seals, POD, now()).unwrap().unwrap().deny,
        DenySet::default()
    );
    let (foreign, seal) = sealed(&signer, "{}", &frozen(), now());
    keeper.resealed(foreign, seal, &frozen());
    write(&run, kept().unwrap()).unwrap_err();
    assert_eq!(read(&run, &seals, POD, now()).unwrap().unwrap().body, BODY);
}

#[test]
fn a_bundle_that_was_compiled_while_something_was_frozen_is_kept_under_its_next_seal() {
    let signer = Signer::new();
    let seals = Seals::pinned(&signer.ca_pem).unwrap();
    let temp = tempfile::tempdir().unwrap();
    let run = temp.path().join("run");
    let keeper = Keeper::new(run.clone());
    let (statement, seal) = sealed(&signer, BODY, &DenySet::default(), now());
    keeper.bundle(BODY.to_owned(), (&statement, seal), &frozen());
    let (again, seal) = sealed(&signer, BODY, &frozen(), now());
    keeper.resealed(again, seal, &frozen());
    let keep = keeper.waiting.lock().unwrap().take().unwrap();
    write(&run, keep).unwrap();
    let kept = read(&run, &seals, POD, now()).unwrap().unwrap();
    assert_eq!((kept.body.as_str(), kept.deny), (BODY, frozen()));
}
