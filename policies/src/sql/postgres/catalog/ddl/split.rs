//! Cuts a script into statements, as psql would: strings, quoted names, dollar quotes, comments, parentheses and the
//! `BEGIN ATOMIC` bodies of functions hold their semicolons.
//!
//! It judges nothing. Invariant: every byte of the script belongs to one piece, to a comment or to white space, so
//! nothing is lost between pieces.

/// One piece of a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece<'t> {
    /// The line it begins on, from 1.
    pub line: u64,
    /// What it is.
    pub kind: Kind<'t>,
}

/// What a piece is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind<'t> {
    /// A statement, without its semicolon.
    Sql(&'t str),
    /// A line for psql itself, such as `\connect`.
    Meta(&'t str),
}

/// A script while it is cut.
pub(super) struct Script<'t> {
    text: &'t str,
    at: usize,
    line: u64,
}

/// What was seen of one statement.
#[derive(Default)]
struct Seen {
    parentheses: u32,
    /// Open BEGIN and CASE of a function's body.
    blocks: u32,
    words: u32,
    create: bool,
    routine: bool,
}

impl<'t> Script<'t> {
    pub fn new(text: &'t str) -> Self {
        // A byte order mark is no part of the first statement.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Script { text, at: 0, line: 1 }
    }

    fn rest(&self) -> &'t str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn byte(&self) -> Option<u8> {
        self.rest().bytes().next()
    }

    /// Goes on by some bytes, counting lines.
    fn skip(&mut self, bytes: usize) {
        let end = self.at.saturating_add(bytes).min(self.text.len());
        let passed = self.text.as_bytes().get(self.at..end).unwrap_or_default();
        let lines = passed.iter().filter(|byte| **byte == b'\n').count();
        self.line = self.line.saturating_add(u64::try_from(lines).unwrap_or(u64::MAX));
        self.at = end;
    }

    /// Goes on to behind the next occurrence of something, or to the end.
    fn skip_past(&mut self, needle: &str) {
        let rest = self.rest();
        let bytes = rest
            .find(needle)
            .map_or(rest.len(), |at| at.saturating_add(needle.len()));
        self.skip(bytes);
    }

    /// Skips white space and comments; false where there are none.
    fn skip_blank(&mut self) -> bool {
        let rest = self.rest();
        if rest.starts_with("--") {
            self.skip_past("\n");
        } else if rest.starts_with("/*") {
            self.skip_block_comment();
        } else if rest.starts_with(|first: char| first.is_ascii_whitespace() || first == '\x0b') {
            self.skip(1);
        } else {
            return false;
        }
        true
    }

    fn skip_block_comment(&mut self) {
        let mut depth = 0u32;
        while !self.rest().is_empty() {
            if self.rest().starts_with("/*") {
                depth = depth.saturating_add(1);
                self.skip(2);
            } else if self.rest().starts_with("*/") {
                depth = depth.saturating_sub(1);
                self.skip(2);
                if depth == 0 {
                    return;
                }
            } else {
                self.skip(1);
            }
        }
    }

    /// Skips the data lines of a COPY FROM STDIN.
    pub fn skip_copy_data(&mut self) {
        self.skip_past("\n");
        while !self.rest().is_empty() {
            let line = self.rest().lines().next().unwrap_or_default();
            self.skip_past("\n");
            if line.trim_end() == "\\." {
                return;
            }
        }
    }

    /// The next statement or line for psql.
    pub fn next(&mut self) -> Option<Piece<'t>> {
        while self.skip_blank() || self.byte() == Some(b';') {
            if self.byte() == Some(b';') {
                self.skip(1);
            }
        }
        let (start, line) = (self.at, self.line);
        let kind = match self.byte()? {
            b'\\' => {
                let text = self.rest().lines().next().unwrap_or_default();
                self.skip_past("\n");
                Kind::Meta(text.trim_end())
            }
            _ => {
                let mut seen = Seen::default();
                while self.step(&mut seen) {}
                let text = self.text.get(start..self.at).unwrap_or_default();
                self.skip(1);
                Kind::Sql(text)
            }
        };
        Some(Piece { line, kind })
    }

    /// Goes over one token; false at the semicolon that ends the statement and at the end.
    fn step(&mut self, seen: &mut Seen) -> bool {
        if self.skip_blank() {
            return true;
        }
        let Some(byte) = self.byte() else { return false };
        match byte {
            b';' if seen.parentheses == 0 && seen.blocks == 0 => return false,
            b'(' => seen.parentheses = seen.parentheses.saturating_add(1),
            b')' => seen.parentheses = seen.parentheses.saturating_sub(1),
            b'\'' => return self.string(false),
            b'"' => {
                self.skip(1);
                self.skip_past("\"");
                return true;
            }
            b'$' => return self.dollar(),
            byte if is_word(byte) => return self.word(seen),
            _ => {}
        }
        self.skip(1);
        true
    }

    /// A string, with its doubled quotes.
    fn string(&mut self, escapes: bool) -> bool {
        self.skip(1);
        loop {
            match self.byte() {
                Some(b'\\') if escapes => self.skip(2),
                Some(b'\'') if self.rest().starts_with("''") => self.skip(2),
                Some(b'\'') | None => break,
                Some(_) => self.skip(1),
            }
        }
        self.skip(1);
        true
    }

    fn dollar(&mut self) -> bool {
        let rest = self.rest();
        let inner = rest.get(1..).unwrap_or_default();
        let tag = inner.find(|next: char| !(next.is_alphanumeric() || next == '_'));
        let delimiter = match tag {
            Some(end) if inner.get(end..).is_some_and(|rest| rest.starts_with('$')) => {
                rest.get(..end.saturating_add(2))
            }
            _ => None,
        };
        match delimiter {
            // `$1` is a parameter.
            Some(delimiter) if !inner.starts_with(|first: char| first.is_ascii_digit()) => {
                self.skip(delimiter.len());
                self.skip_past(delimiter);
            }
            _ => self.skip(1),
        }
        true
    }

    fn word(&mut self, seen: &mut Seen) -> bool {
        let rest = self.rest();
        let length = rest
            .bytes()
            .position(|byte| !(is_word(byte) || byte == b'$'))
            .unwrap_or(rest.len());
        let word = rest.get(..length).unwrap_or_default().to_ascii_lowercase();
        self.skip(length);
        if word == "e" && self.byte() == Some(b'\'') {
            return self.string(true);
        }
        seen.words = seen.words.saturating_add(1);
        match word.as_str() {
            "create" if seen.words == 1 => seen.create = true,
            "function" | "procedure" if seen.create && seen.words <= 4 => seen.routine = true,
            "begin" if seen.routine && seen.parentheses == 0 => seen.blocks = seen.blocks.saturating_add(1),
            "case" if seen.blocks > 0 => seen.blocks = seen.blocks.saturating_add(1),
            "end" => seen.blocks = seen.blocks.saturating_sub(1),
            _ => {}
        }
        true
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn pieces(text: &str) -> Vec<(u64, String)> {
        let mut script = Script::new(text);
        let mut found = Vec::new();
        while let Some(piece) = script.next() {
            match piece.kind {
                Kind::Sql(sql) => {
                    if sql.starts_with("COPY") {
                        script.skip_copy_data();
                    }
                    found.push((piece.line, sql.to_owned()));
                }
                Kind::Meta(line) => found.push((piece.line, line.to_owned())),
            }
        }
        found
    }

    #[test]
    fn semicolons_inside_belong_to_their_statement() {
        let whole = [
            "SELECT ';', E'it\\';', E'it''s \\';', \"a;b\", $$;$$, $x$ ; $$ ; $x$, $1",
            "CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2)",
            "CREATE OR REPLACE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END",
            "/* ; /* ; */ */ SELECT 1 -- ;\n + 2",
        ];
        for text in whole {
            let found = pieces(&format!("{text};\nSELECT 'next'"));
            assert_eq!(found.len(), 2, "{text}: {found:?}");
            assert_eq!(found[1].1, "SELECT 'next'");
        }
    }

    #[test]
    fn pieces_know_their_lines_and_data_is_skipped() {
        let script =
            "-- a dump\n\\restrict abc\n\nSET x = 1;\nCOPY t (a) FROM stdin;\n1\tone; two\n\\.\n\n  SELECT\n 1;;";
        let found = pieces(script);
        let expected = [
            (2, "\\restrict abc"),
            (4, "SET x = 1"),
            (5, "COPY t (a) FROM stdin"),
            (9, "SELECT\n 1"),
        ];
        assert_eq!(found, expected.map(|(line, text)| (line, text.to_owned())));
    }

    #[test]
    fn what_never_ends_is_one_piece() {
        for text in [
            "SELECT 'a;b",
            "SELECT $a$ ; $b$",
            "SELECT /* ;",
            "SELECT \"x;",
            "SELECT (1;2",
            "BEGIN",
        ] {
            assert_eq!(pieces(text).len(), 1, "{text}");
        }
        assert!(pieces(" ;; -- nothing").is_empty());
    }
}
