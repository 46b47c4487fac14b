//! Any flip, drop, duplicate, reorder, splice, truncation or overwrite of stored bytes is named by both verifiers,
//! which agree on every store: the library's, and the one in `tests/verifier` that shares no code with it.

use std::path::{Path, PathBuf};

use sidegate_policies::record::verify::{verify_store, Options};
use sidegate_policies::record::{Frame, Kind};
use sidegate_tests::recording::{left, operate, small_store, store, Recording};
use sidegate_tests::verifiers::{second, told};

/// What a mutated store must be called.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Named {
    /// Exactly this exit code.
    Exactly(u8),
    /// 20, 21 or 22.
    Damage,
}

struct Case {
    what: String,
    named: Named,
    root: PathBuf,
}

/// Makes one copy of the store per case.
struct Cases<'a> {
    pristine: &'a Path,
    scratch: &'a Path,
    made: Vec<Case>,
}

impl Cases<'_> {
    fn add(&mut self, what: String, named: Named, change: impl FnOnce(&Path)) {
        let root = self.scratch.join(format!("{:04}", self.made.len()));
        copy(&self.pristine.join("v1"), &root.join("v1"));
        change(&root);
        self.made.push(Case { what, named, root });
    }

    fn rewrite(&mut self, what: String, named: Named, object: &str, pieces: &[&[u8]]) {
        let bytes = pieces.concat();
        self.add(what, named, |root| std::fs::write(root.join(object), bytes).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_edit_of_a_stored_frame_is_named_by_both_verifiers() {
    let (state, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    small_store(state.path()).await.unwrap();
    let pristine = state.path().join("records");
    let mut cases = Cases {
        pristine: &pristine,
        scratch: scratch.path(),
        made: Vec::new(),
    };
    cases.add("nothing".into(), Named::Exactly(0), |_| {});
    let objects: Vec<String> = names(&pristine)
        .into_iter()
        .filter(|name| name.contains("/log/"))
        .collect();
    assert!(objects.len() >= 3, "{objects:?}");
    let other = std::fs::read(pristine.join(&objects[1])).unwrap();
    for object in &objects {
        edit_object(&mut cases, object, &other, object == objects.last().unwrap());
    }
    judge(cases.made);
}

fn edit_object(cases: &mut Cases<'_>, object: &str, other: &[u8], last_object: bool) {
    let bytes = std::fs::read(cases.pristine.join(object)).unwrap();
    let frames = frames(&bytes);
    let strange = frames_of(other)
        .into_iter()
        .find(|frame| !bytes.windows(frame.len()).any(|part| part == *frame));
    for (index, (from, to, kind)) in frames.iter().copied().enumerate() {
        let (before, frame, after) = (&bytes[..from], &bytes[from..to], &bytes[to..]);
        let name = |what: &str| format!("{what} of frame {index} ({}) in {object}", kind.as_str());
        // One byte of each part: length, kind, flags, log number, session, number, clocks, previous, payload, CRC.
        for at in [0, 2, 5, 6, 8, 20, 33, 41, 50, 60, 88, frame.len() - 1] {
            let mut flipped = frame.to_vec();
            flipped[at] ^= 1;
            cases.rewrite(
                name(&format!("flip of byte {at}")),
                Named::Damage,
                object,
                &[before, &flipped, after],
            );
        }
        let last = last_object && after.is_empty();
        let of_session = !kind.of_log();
        let dropped = match (last, of_session) {
            (true, _) => Named::Exactly(20),
            (_, true) if index > 0 => Named::Exactly(21),
            _ => Named::Damage,
        };
        if before.is_empty() && after.is_empty() {
            continue;
        }
        cases.rewrite(name("drop"), dropped, object, &[before, after]);
        cases.rewrite(
            name("duplicate"),
            Named::Exactly(22),
            object,
            &[before, frame, frame, after],
        );
        if let Some((_, next_end, _)) = frames.get(index + 1) {
            let next = &bytes[to..*next_end];
            cases.rewrite(
                name("swap"),
                Named::Exactly(22),
                object,
                &[before, next, frame, &bytes[*next_end..]],
            );
        }
        if let Some(strange) = strange {
            cases.rewrite(name("splice"), Named::Damage, object, &[before, strange, after]);
        }
        if last_object {
            cases.rewrite(name("cut before"), Named::Exactly(20), object, &[before]);
            cases.rewrite(
                name("cut inside"),
                Named::Exactly(20),
                object,
                &[before, &frame[..frame.len() / 2]],
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_edit_of_another_stored_file_is_named_by_both_verifiers() {
    let (state, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    small_store(state.path()).await.unwrap();
    let pristine = state.path().join("records");
    let mut cases = Cases {
        pristine: &pristine,
        scratch: scratch.path(),
        made: Vec::new(),
    };
    let names = names(&pristine);
    for name in &names {
        let length = std::fs::metadata(pristine.join(name)).unwrap().len() as usize;
        for at in [0, length / 3, length / 2, length - 2] {
            cases.add(format!("flip of byte {at} of {name}"), Named::Damage, |root| {
                let mut bytes = std::fs::read(root.join(name)).unwrap();
                bytes[at] ^= 1;
                std::fs::write(root.join(name), bytes).unwrap();
            });
        }
        // The only checkpoint gone is a store without checkpoint; a hash tile gone proves nothing less.
        let proves_nothing = name.contains("/tlog/checkpoint") || name.contains("/tlog/tile/0/");
        if !proves_nothing {
            cases.add(format!("removal of {name}"), Named::Damage, |root| {
                std::fs::remove_file(root.join(name)).unwrap();
            });
        }
        cases.add(format!("a stranger beside {name}"), Named::Damage, |root| {
            std::fs::write(root.join("v1/local/stranger"), b"x").unwrap();
        });
    }
    let objects: Vec<&String> = names.iter().filter(|name| name.contains("/log/")).collect();
    cases.add("two objects exchanged".into(), Named::Exactly(22), |root| {
        let (one, two) = (root.join(objects[0]), root.join(objects[1]));
        let (first, second) = (std::fs::read(&one).unwrap(), std::fs::read(&two).unwrap());
        std::fs::write(one, second).unwrap();
        std::fs::write(two, first).unwrap();
    });
    judge(cases.made);
}

#[tokio::test(flavor = "multi_thread")]
async fn open_and_unsealed_stores_get_the_same_verdicts() {
    let (state, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let records = store(state.path()).unwrap();
    let first = Recording::start(state.path(), records.clone(), 1).unwrap();
    let mut open = first.session().unwrap();
    operate(&mut open, 1, "select 1", b"1").unwrap();
    open.opened().await.unwrap();
    let mut closed = first.session().unwrap();
    closed.opened().await.unwrap();
    closed.close(left(0));
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while first.log.status().received < first.log.status().written {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
    let pristine = state.path().join("records");
    sidegate_tests::recording::last_checkpoint(records.clone()).await;
    let mut cases = Cases {
        pristine: &pristine,
        scratch: scratch.path(),
        made: Vec::new(),
    };
    cases.add("open".into(), Named::Exactly(0), |_| {});
    let landing = names(&pristine)
        .into_iter()
        .find(|name| name.contains("/landing/"))
        .unwrap();
    cases.add("open, tail cut after a checkpoint".into(), Named::Exactly(20), |root| {
        let bytes = std::fs::read(root.join(&landing)).unwrap();
        let (from, _, _) = *frames(&bytes).last().unwrap();
        std::fs::write(root.join(&landing), &bytes[..from]).unwrap();
    });
    cases.add("open, journal gone after a checkpoint".into(), Named::Damage, |root| {
        std::fs::remove_file(root.join(&landing)).unwrap();
    });
    first.kill().await;
    let second = Recording::start(state.path(), records.clone(), 2).unwrap();
    let orphan = open.id().to_string();
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while !records
        .sessions()
        .iter()
        .any(|found| found.id == orphan && found.orphan.is_some())
    {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
    let _kept = std::mem::ManuallyDrop::new(open);
    second.stop().await.unwrap();
    cases.add("killed and recovered".into(), Named::Exactly(10), |_| {});
    judge(cases.made);
}

/// Both verifiers on every case.
fn judge(cases: Vec<Case>) {
    let roots: Vec<&Path> = cases.iter().map(|case| case.root.as_path()).collect();
    let second = second(&[], &roots).unwrap();
    let mut wrong = Vec::new();
    for (case, theirs) in cases.iter().zip(&second) {
        let report = verify_store(&case.root, &Options::default()).unwrap();
        let code = report.exit_code();
        let named = match case.named {
            Named::Exactly(right) => code == right,
            Named::Damage => code >= 20,
        };
        if !named {
            wrong.push(format!(
                "{}: named {code}, not {:?}: {}",
                case.what,
                case.named,
                told(&report)
            ));
        }
        let ours = told(&report);
        if ours != *theirs {
            wrong.push(format!(
                "{}: the verifiers differ\n  first  {ours}\n  second {theirs}",
                case.what
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} cases:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
}

fn frames(bytes: &[u8]) -> Vec<(usize, usize, Kind)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Ok(frame) = Frame::parse(&bytes[at..]) {
        let end = at + frame.bytes.len();
        found.push((at, end, frame.header.kind));
        at = end;
    }
    found
}

fn frames_of(bytes: &[u8]) -> Vec<&[u8]> {
    frames(bytes)
        .into_iter()
        .map(|(from, to, _)| &bytes[from..to])
        .collect()
}

fn names(root: &Path) -> Vec<String> {
    let mut out = Vec::new();
    walk(&root.join("v1"), &mut |path| {
        out.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
    });
    out.sort();
    out
}

fn walk(folder: &Path, each: &mut dyn FnMut(&Path)) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => walk(&path, each),
            false => each(&path),
        }
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &target),
            false => drop(std::fs::copy(&path, &target).unwrap()),
        }
    }
}
