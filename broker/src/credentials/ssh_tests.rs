//! Certificates as a Vault signs them, with one thing changed, and cut at every byte.

use super::*;

#[path = "../../../tests/src/openssh.rs"]
mod openssh;

use openssh::Certificate as Written;

const NOW: u64 = 1_800_000_000;
const SOURCES: &str = "10.0.0.7/32,fd00::7/128";

fn right() -> Written {
    Written {
        key: [3; 32],
        kind: 1,
        principals: vec!["deploy".to_owned(), "backup".to_owned()],
        after: NOW - 30,
        before: NOW + LIFE,
        critical: vec![(SOURCE.to_owned(), SOURCES.to_owned())],
        extensions: vec![TERMINAL.to_owned()],
    }
}

fn judged(line: &str) -> Result<u64, String> {
    let principals = ["backup".to_owned(), "deploy".to_owned()];
    let asked = Asked {
        key: &[3; 32],
        principals: &principals,
        sources: SOURCES,
        now: NOW,
    };
    let signed = asked.judge(line.trim_end());
    signed.map(|signed| signed.until).map_err(|failure| failure.why)
}

#[test]
fn a_certificate_that_says_anything_else_than_was_asked_for_is_not_leased() {
    assert_eq!(judged(&right().line()), Ok(NOW + LIFE));
    let bare = Written {
        extensions: Vec::new(),
        ..right()
    };
    assert_eq!(judged(&bare.line()), Ok(NOW + LIFE), "less than was asked for");
    type Change = fn(&mut Written);
    let changes: [(&str, Change); 12] = [
        ("of a host", |cert| cert.kind = 2),
        ("another key", |cert| cert.key = [4; 32]),
        ("other users", |cert| cert.principals.clear()),
        ("other users", |cert| cert.principals.push("root".to_owned())),
        ("other users", |cert| drop(cert.principals.pop())),
        ("critical", |cert| cert.critical.clear()),
        ("critical", |cert| cert.critical[0].1 = "0.0.0.0/0".to_owned()),
        ("critical", |cert| {
            cert.critical.push(("force-command".to_owned(), "sh".to_owned()));
        }),
        ("more than a terminal", |cert| {
            cert.extensions.push("permit-agent-forwarding".to_owned());
        }),
        ("not good now", |cert| cert.before = NOW),
        ("not good now", |cert| cert.after = NOW + 3600),
        ("too long", |cert| cert.before = NOW + 3600),
    ];
    for (why, change) in changes {
        let mut wrong = right();
        change(&mut wrong);
        let refused = judged(&wrong.line()).unwrap_err();
        assert!(refused.contains(why), "{why}: {refused}");
    }
}

#[test]
fn a_certificate_that_is_cut_longer_or_of_another_form_is_refused() {
    let blob = right().blob();
    for length in 0..blob.len() {
        assert!(Certificate::read(&blob[..length]).is_none(), "{length}");
    }
    assert!(Certificate::read(&[blob.clone(), vec![0]].concat()).is_none());
    let line = right().line();
    for wrong in [
        "",
        "ssh-ed25519-cert-v01@openssh.com",
        &line.replace("ed25519", "rsa"),
        &line.replace('A', "?"),
    ] {
        assert!(judged(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn nothing_but_an_ed25519_key_is_certified() {
    assert_eq!(public_key(&openssh::public_key(&[3; 32])).ok(), Some(vec![3; 32]));
    let short = format!("ssh-ed25519 {}", STANDARD.encode(b"\0\0\0\x0bssh-ed25519\0\0\0\x01x"));
    for wrong in ["", "ssh-ed25519", "ssh-rsa AAAA", &short] {
        assert!(public_key(wrong).is_err(), "{wrong}");
    }
}
