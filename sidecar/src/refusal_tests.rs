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
        r#"{"decision":"ask","reason":"approval_required","rule":"refunds","policy":"data/support","retry":"same-after-approval","ticket":"ar-7k2f9c","expires":"2026-09-21T14:13:20Z","id":"sg-7k2f9c"}"#
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
