//! Errors and notices of the server: what they may tell an agent from whom columns are hidden.
//!
//! Where the statement touches a masked column, the message becomes a canned text of its SQLSTATE, and every field that
//! can quote a value is dropped. Otherwise the fields pass through detectors, where a policy asks for them.
//! It keeps code and severity, so that a client reacts as it would have.

use super::super::codec::error::Fields;
use super::rows::Detect;

/// Fields that never carry a value: severities, code, place in the server's source. A function's RAISE may put anything
/// into the names of schema, table, column, type and constraint.
const KEPT: &[u8] = b"SVCMFLR";
/// Fields that may carry text from user code or values.
const TEXTS: &[u8] = b"MDHWqstcdn";

/// Replaces everything that may quote a value.
pub fn replace(fields: &mut Fields) {
    fields.keep(KEPT);
    let code = fields.text(b'C');
    fields.set(b'M', canned(&code).as_bytes());
}

/// Runs detectors over every text field.
pub fn detect(fields: &mut Fields, detectors: &dyn Detect) {
    let mut clean = Vec::new();
    for letter in TEXTS {
        let Some(text) = fields.get(*letter) else { continue };
        clean.clear();
        if detectors.replace(text, &mut clean) {
            fields.set(*letter, &clean);
        }
    }
}

/// The text for a SQLSTATE: of the code itself where agents act on it, else of its class.
fn canned(code: &str) -> &'static str {
    match code {
        "23505" => "duplicate key value violates a unique constraint",
        "23503" => "a foreign key constraint is violated",
        "23502" => "a column that must not be null is null",
        "23514" => "a check constraint is violated",
        "22P02" => "a value has the wrong form for its type",
        "22001" => "a value is too long for its type",
        "22003" => "a number is out of range",
        "22012" => "division by zero",
        "40001" => "could not serialize access due to concurrent update",
        "40P01" => "deadlock detected",
        "42P01" => "a relation does not exist",
        "42703" => "a column does not exist",
        "42883" => "a function or operator does not exist",
        "42601" => "syntax error",
        "42501" => "permission denied",
        "57014" => "canceling statement",
        "25P02" => "current transaction is aborted, commands ignored until end of transaction block",
        _ => by_class(code.get(..2).unwrap_or_default()),
    }
}

fn by_class(class: &str) -> &'static str {
    match class {
        "00" | "01" | "02" => "a notice of the server (its text is hidden because columns here are masked)",
        "22" => "a value is not usable here (the server's text is hidden because columns here are masked)",
        "23" => "a constraint is violated (the server's text is hidden because columns here are masked)",
        "53" | "54" => "the server is out of resources for this statement",
        "57" => "the server ended the statement",
        _ => "the server refused the statement (its text is hidden because columns here are masked)",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_field_that_can_quote_a_value_survives() {
        let mut fields = Fields::new("ERROR", "22P02", "invalid input syntax for type integer: \"canary\"");
        for letter in *b"DHWqpstncdP" {
            fields.set(letter, b"canary");
        }
        replace(&mut fields);
        let bytes = fields.frame(b'E');
        assert!(memchr::memmem::find(bytes.bytes(), b"canary").is_none());
        assert_eq!(fields.text(b'C'), "22P02");
    }
}
