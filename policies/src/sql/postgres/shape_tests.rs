//! Promises of shapes.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use proptest::prelude::*;

use super::super::shop::{self, Shopper};
use super::super::{analyse, Analysis, Options};
use super::Shape;

/// Texts with places for literals: some harmless, most of them not.
const TEMPLATES: &[&str] = &[
    "SELECT id FROM app.users WHERE id = {}",
    "SELECT id, ssn FROM app.users WHERE id IN ({}, {}) AND name LIKE {} ORDER BY {}",
    "SELECT id FROM app.users WHERE id BETWEEN {} AND {} OR NOT name = {} LIMIT {}",
    "SELECT id FROM app.users WHERE {} = id AND {} = {}",
    "SELECT id, count(*) FROM app.users WHERE id > {} GROUP BY {}",
    "SELECT {} FROM app.orders WHERE status = {}",
    "SELECT ssn, id FROM app.users ORDER BY {}",
    "SELECT set_config({}, {}, false)",
    "SELECT nextval({}) FROM app.users WHERE id = {}",
    "SELECT id FROM app.users WHERE name = {}::regclass::text",
    "SELECT id FROM app.users WHERE id = (SELECT id FROM app.orders WHERE amount = {} LIMIT {})",
    "SELECT * FROM generate_series({}, {})",
    "SELECT id::numeric({}) FROM app.users WHERE id = {}",
    "SELECT id FROM app.users WHERE lower({}) = name",
    "INSERT INTO app.orders (id, user_id, status) VALUES ({}, {}, {}), ({}, {} + {}, lower({}))",
    "UPDATE app.orders SET amount = amount + {}, status = {} WHERE id = {} RETURNING id",
    "UPDATE app.orders SET amount = {} WHERE {} = {}",
    "DELETE FROM app.orders WHERE id = {} AND status <> {}",
    "DELETE FROM app.orders WHERE id = id + {}",
    "SELECT id FROM app.users WHERE id = {}; DELETE FROM app.orders WHERE id = {}",
    "SET statement_timeout = {}",
    "EXPLAIN SELECT id FROM app.users WHERE id = {}",
    "SELECT id FROM app.users WHERE id = {} UNION SELECT {}",
    "SELECT id FROM app.users /* {} */ WHERE id = {} -- {}",
    "SELECT id FROM app.docs WHERE tags[{}] = {} AND body -> {} = {}",
    "SELECT id FROM app.users TABLESAMPLE system ({}) WHERE id = {}",
    "SELECT id FROM app.users WHERE id = {} FETCH FIRST {} ROWS ONLY",
];

/// Literals that a careless scan takes for another kind, or for two.
const LITERALS: &[&str] = &[
    "1",
    "2",
    "7",
    "007",
    "2147483647",
    "2147483648",
    "1.5",
    "0x1F",
    "1_000",
    "-3",
    "'a'",
    "''",
    "'it''s'",
    "'1'",
    "'app.users'",
    "'search_path'",
    "'a\\'",
    "E'\\''",
    "$$x$$",
    "'a'\n'b'",
    "U&'\\0061'",
    "B'1'",
    "N'x'",
    "true",
    "NULL",
    "$1",
    "' -- '",
    "'/*'",
    "'x'::text",
    "id",
    "1 + 1",
];

fn analysed(text: &str) -> Analysis {
    analyse(text, &Options::default(), &shop::catalog(), &Shopper::default())
}

/// Everything an analysis says except where in the text it says it of.
fn meaning(analysis: &Analysis) -> String {
    let statements: Vec<_> = analysis
        .statements
        .iter()
        .map(|s| {
            format!(
                "{:?} {:?} {:?} {:?} {:?} {:?} {:?}",
                s.kind, s.action, s.facts, s.completeness, s.output, s.uses, s.parameters
            )
        })
        .collect();
    format!(
        "{statements:?} {:?} {:?} {:?}",
        analysis.facts, analysis.completeness, analysis.problem
    )
}

fn fill(template: &str, literals: &[usize]) -> String {
    let mut parts = template.split("{}");
    let mut text = parts.next().unwrap().to_owned();
    for (part, literal) in parts.zip(literals) {
        text.push_str(LITERALS[*literal]);
        text.push_str(part);
    }
    text
}

/// Whether an analysis kept of one text would be used for another.
fn borrows(kept: &str, other: &str) -> bool {
    let (Some(shape), Some(others)) = (Shape::of(kept), Shape::of(other)) else {
        return false;
    };
    let Some(pinned) = shape.pinned(kept, &analysed(kept).free) else {
        return false;
    };
    shape.key() == others.key() && others.agrees(other, &pinned)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn shapes_never_borrow_a_verdict(template in 0..TEMPLATES.len(),
                                     one in proptest::collection::vec(0..LITERALS.len(), 8),
                                     swap in proptest::collection::vec(any::<bool>(), 8),
                                     two in proptest::collection::vec(0..LITERALS.len(), 8)) {
        let other: Vec<_> = (0..8).map(|at| if swap[at] { two[at] } else { one[at] }).collect();
        let (kept, other) = (fill(TEMPLATES[template], &one), fill(TEMPLATES[template], &other));
        if borrows(&kept, &other) {
            prop_assert_eq!(meaning(&analysed(&kept)), meaning(&analysed(&other)), "{} / {}", kept, other);
        }
    }
}

/// What a scanner may take for the end of one token and the start of another.
const PIECES: &[&str] = &[
    "a",
    "e",
    "E",
    "u&",
    "U&",
    "n",
    "x",
    "b",
    "_",
    "9",
    "0",
    "1",
    "123456789",
    "1234567890",
    "0x1",
    "1_0",
    "1e5",
    "1.",
    ".5",
    "'",
    "''",
    "'a'",
    "'it''s'",
    "'\\'",
    "'é'",
    "\"",
    "\"a\"",
    "$",
    "$1",
    "$$",
    "$a$",
    "-",
    "--",
    "/",
    "*",
    "/*",
    "*/",
    "+",
    "<",
    "=",
    ">",
    "!",
    "~",
    "|",
    "%",
    "&",
    "@",
    "#",
    "^",
    "?",
    "`",
    ":",
    "::",
    ":=",
    "=>",
    ".",
    "..",
    ",",
    ";",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "\\",
    " ",
    "\n",
    "\r",
    "\t",
    "\u{b}",
    "\u{c}",
    "\0",
    "é",
    "\u{a0}",
    "\u{2028}",
    "select",
    "OR",
    "NULL",
];

/// Whether a text read without the scanner has the shape that its tokens give it.
fn agrees_with_the_scanner(text: &str) -> Result<(), TestCaseError> {
    if let Some(found) = super::plain_literals(text.as_bytes()) {
        prop_assert_eq!(Shape::without(text, found), Shape::scanned(text), "{:?}", text);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]
    #[test]
    fn a_plain_text_has_the_shape_its_tokens_give(pieces in proptest::collection::vec(0..PIECES.len(), 1..10),
                                                  noise in "[ -~]{0,24}",
                                                  template in 0..TEMPLATES.len(),
                                                  literals in proptest::collection::vec(0..LITERALS.len(), 8)) {
        let text: String = pieces.iter().map(|piece| PIECES[*piece]).collect();
        agrees_with_the_scanner(&text)?;
        agrees_with_the_scanner(&noise)?;
        agrees_with_the_scanner(&fill(TEMPLATES[template], &literals))?;
    }
}

/// Every text of two and three pieces: what stands between two tokens shows there.
#[test]
fn every_pair_of_pieces_has_the_shape_its_tokens_give() {
    let mut plain = 0;
    for one in PIECES {
        for two in PIECES {
            for around in ["", "1", " 'a'", "a"] {
                let text = format!("{around}{one}{two}{around}");
                plain += usize::from(super::plain_literals(text.as_bytes()).is_some());
                agrees_with_the_scanner(&text).unwrap();
            }
        }
    }
    assert!(plain > 1_000, "{plain} texts were plain");
}

#[test]
fn what_clients_paste_is_read_without_the_scanner() {
    for text in [
        "SELECT abalance FROM pgbench_accounts WHERE aid = 71234;",
        "UPDATE app.orders SET amount = amount + -5, status = 'it''s' WHERE id >= 1 AND name LIKE 'a%'",
        "INSERT INTO app.orders (id, status) VALUES (1, 'néw'), (2, '')",
        "SELECT abalance FROM pgbench_accounts WHERE aid = $1 AND bid IN ($2,$31)",
    ] {
        assert!(super::plain_literals(text.as_bytes()).is_some(), "{text}");
    }
}

#[test]
fn values_are_lifted_where_clients_paste_them() {
    for (one, two) in [
        (
            "SELECT abalance FROM app.orders WHERE id = 7;",
            "SELECT abalance FROM app.orders WHERE id = 8123;",
        ),
        (
            "UPDATE app.orders SET amount = amount + 5 WHERE id = 1",
            "UPDATE app.orders SET amount = amount + 77 WHERE id = 2",
        ),
        (
            "INSERT INTO app.orders (id, status) VALUES (1, 'new'), (2, 'it''s')",
            "INSERT INTO app.orders (id, status) VALUES (3, ''), (44, 'x')",
        ),
        (
            "SELECT id FROM app.users WHERE name = 'a' AND id IN (1, 2) LIMIT 10",
            "SELECT id FROM app.users WHERE name = 'b' AND id IN (3, 4) LIMIT 10",
        ),
    ] {
        assert!(borrows(one, two), "{one} / {two}");
    }
}

#[test]
fn what_carries_meaning_stays_in_the_key() {
    for (one, two) in [
        (
            "SELECT id FROM app.users WHERE id = 1 LIMIT 10",
            "SELECT id FROM app.users WHERE id = 1 LIMIT 11",
        ),
        (
            "SELECT ssn, id FROM app.users WHERE id = 1 ORDER BY 2",
            "SELECT ssn, id FROM app.users WHERE id = 1 ORDER BY 1",
        ),
        (
            "SELECT set_config('a', 'b', false)",
            "SELECT set_config('search_path', 'b', false)",
        ),
        (
            "SELECT id FROM app.users WHERE id = 1",
            "SELECT id FROM app.users WHERE id = '1'",
        ),
        (
            "SELECT id FROM app.users WHERE id = 1",
            "SELECT id FROM app.users WHERE id = 2147483648",
        ),
        (
            "SELECT id FROM app.users WHERE id = 1 AND name = 'x'",
            "SELECT id FROM app.users WHERE id = 1 AND name = 'x' -- '",
        ),
        (
            "DELETE FROM app.orders WHERE 1 = 1 AND id = 2",
            "DELETE FROM app.orders WHERE 1 = 2 AND id = 2",
        ),
    ] {
        assert!(!borrows(one, two), "{one} / {two}");
    }
    // A marker cannot be spelled in a text.
    assert_eq!(Shape::of("SELECT 1 FROM \"\0i\""), None);
}
