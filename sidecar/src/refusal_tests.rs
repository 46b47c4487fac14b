//! Goldens of the refusal template: one line per reason, plus its limits.

use super::*;

fn fixed(reason: Reason) -> Refusal {
    let mut refusal = Refusal::new(reason, "statement");
    refusal.id = RefusalId(*b"sg-7k2f9c");
    refusal
}

fn rule() -> RuleRef {
    RuleRef {
        policy: "data/support".into(),
        rule: "refunds".into(),
    }
}

#[test]
fn every_reason_has_its_golden_line() {
    let lines: Vec<String> = Reason::ALL.iter().map(|reason| fixed(*reason).text()).collect();
    let golden = include_str!("refusal_golden.txt");
    let expected: Vec<&str> = golden.lines().collect();
    assert_eq!(lines, expected, "\n{}\n", lines.join("\n"));
}

#[test]
fn a_ticket_says_when_and_what_to_send() {
    let mut refusal = fixed(Reason::ApprovalRequired).by(Some(rule()));
    refusal.ticket = Some(Box::new(Ticket {
        name: "ar-7k2f9c".into(),
        until_ms: 1_790_000_000_123,
    }));
    assert_eq!(
        refusal.text(),
        "Sidegate refused this statement (rule refunds, policy data/support): it waits for a person. It was not \
         sent. A person must approve it: ticket ar-7k2f9c. After approval send exactly the same again, before \
         2026-09-21T14:13:20Z. [sg-7k2f9c]"
    );
    assert_eq!(
        refusal.machine(),
        r#"{"decision":"ask","reason":"approval_required","rule":"refunds","policy":"data/support","retry":"same-after-approval","ticket":"ar-7k2f9c","expires":"2026-09-21T14:13:20Z","next":"Have somebody run `sidegate approve ar-7k2f9c`, then repeat it; a change of any kind needs a new approval.","id":"sg-7k2f9c"}"#
    );
}

#[test]
fn what_already_ran_is_never_called_unsent() {
    for reason in Reason::ALL {
        for sent in [Sent::Yes { rows: 5 }, Sent::Undone, Sent::Unknown] {
            let text = fixed(reason).after(sent).text();
            assert!(text.starts_with("Sidegate stopped this statement"), "{text}");
            assert!(
                !text.contains("not sent") && !text.contains("Nothing was sent"),
                "{text}"
            );
            assert!(!text.contains("before anything was sent"), "{text}");
            assert!(text.contains("It took effect: "), "{text}");
        }
    }
}

#[test]
fn a_connection_or_a_session_is_never_called_unsent() {
    for reason in Reason::ALL {
        for (what, begins) in [
            (CONNECTION, "Sidegate refused this connection"),
            (SESSION, "Sidegate ended this session"),
        ] {
            let mut refusal = fixed(reason);
            let fresh = Refusal::new(reason, what);
            (refusal.what, refusal.sent) = (what, fresh.sent);
            let text = refusal.text();
            assert!(text.starts_with(begins), "{text}");
            assert!(!text.contains("not sent") && !text.contains("was sent"), "{text}");
            assert_eq!(text.contains("No session was opened."), what == CONNECTION, "{text}");
        }
    }
}

#[test]
fn the_next_step_is_a_sentence_of_its_own() {
    for reason in Reason::ALL {
        for refusal in [
            fixed(reason),
            fixed(reason).by(Some(rule())),
            fixed(reason).because("x").by(Some(rule())),
        ] {
            let (text, next) = (refusal.text(), refusal.next());
            assert!(!text.contains(next.trim_end_matches('.')), "{reason:?}: {next}");
            assert!(
                !next.contains(reason.advice().trim_end_matches('.')),
                "{reason:?}: {next}"
            );
            assert!(next.ends_with('.') && next.chars().count() <= QUOTE_LIMIT, "{next}");
        }
    }
    let default = RuleRef {
        policy: "".into(),
        rule: "default".into(),
    };
    for (refusal, next) in [
        (
            fixed(Reason::Denied).by(Some(default)),
            "Ask your operator for a rule that allows it; `sidegate explain` shows what is allowed.",
        ),
        (
            fixed(Reason::Denied).by(Some(rule())),
            "Do without it, or ask your operator about rule refunds of policy data/support.",
        ),
        (
            fixed(Reason::Denied).by(Some(rule())).because("Add a WHERE clause."),
            "Change what the message names, then send it again.",
        ),
        (fixed(Reason::Limit).hint("Ask for fewer rows"), "Ask for fewer rows."),
    ] {
        assert_eq!(refusal.next(), next);
    }
    let by_rule = fixed(Reason::Denied).by(Some(rule())).text();
    assert!(
        by_rule.contains("(rule refunds, policy data/support): the rule forbids it."),
        "{by_rule}"
    );
}

#[test]
fn what_may_be_sent_again_as_it_is_says_so() {
    let later = fixed(Reason::Limit).again(Retry::Later);
    assert!(
        later.text().contains("It was not sent. Try again in a minute."),
        "{}",
        later.text()
    );
    assert!(later.machine().contains(r#""retry":"later""#));
    let same = fixed(Reason::PlanMismatch).again(Retry::Same);
    assert!(
        same.text().contains("It was not sent. Send it again."),
        "{}",
        same.text()
    );
}

#[test]
fn quoted_text_is_cut_and_harmless() {
    let hostile = format!("a\r\nERROR: forged\u{202e}{}", "x".repeat(5_000));
    let text = fixed(Reason::Denied).because(hostile.as_str()).hint(hostile).text();
    assert!(text.chars().count() <= TEXT_LIMIT);
    assert!(!text.chars().any(|c| c.is_control() || is_bidi(c)));
    assert!(text.ends_with("[sg-7k2f9c]"));
}

#[test]
fn ids_differ_and_fit_the_form() {
    let (one, other) = (RefusalId::random(), RefusalId::random());
    assert_ne!(one, other);
    assert_eq!(one.as_str().len(), 9);
    assert!(one.as_str().starts_with("sg-"));
}
