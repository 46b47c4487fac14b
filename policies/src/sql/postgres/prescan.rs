//! Linear checks of a statement text before the grammar sees it: length, NUL bytes, and a token scan that bounds
//! tokens, statements and nesting.
//!
//! The scan also tells whether the text is so small and flat that it may be parsed on the caller's own stack.
//! The nesting it reports is an upper estimate, never the tree's true depth; the walk measures that itself.
//! Nothing here judges meaning.

use super::parse::{Token, TokenKind};

/// Longest statement text.
pub const MAX_TEXT: usize = 1 << 20;
/// Most tokens of one text.
pub const MAX_TOKENS: usize = 100_000;
/// Most statements of one text.
pub const MAX_STATEMENTS: usize = 1_000;
/// Deepest nesting of one text, in the scan's estimate and in the tree.
pub const MAX_DEPTH: u32 = 1_000;
/// Longest text parsed on the caller's stack.
pub const INLINE_TEXT: usize = 4 << 10;
/// Deepest text parsed on the caller's stack.
const INLINE_DEPTH: u32 = 48;

/// A limit a text ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Limit {
    /// Longer than [`MAX_TEXT`].
    #[error("the statement text is longer than 1 MiB")]
    Length,
    /// More than [`MAX_TOKENS`].
    #[error("the statement text has more than 100000 tokens")]
    Tokens,
    /// More than [`MAX_STATEMENTS`].
    #[error("the string holds more than 1000 statements")]
    Statements,
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("the statement is nested deeper than 1000 levels")]
    Depth,
    /// Too many texts wait to be parsed.
    #[error("too many statements are waiting to be parsed")]
    Busy,
}

impl Limit {
    /// Whether the statement is too complex (54001) rather than too large (54000).
    pub fn is_complexity(self) -> bool {
        matches!(self, Limit::Depth)
    }
}

/// What the scan saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scan {
    /// Tokens, comments included.
    pub tokens: usize,
    /// Statements, empty ones not counted.
    pub statements: usize,
    /// Upper estimate of the nesting.
    pub depth: u32,
}

impl Scan {
    /// Whether a text may be parsed on the caller's stack.
    pub fn fits_inline(&self, text: &str) -> bool {
        text.len() <= INLINE_TEXT && self.depth <= INLINE_DEPTH
    }
}

/// Checks what needs no token.
pub fn check_bytes(text: &str) -> Result<(), Limit> {
    if text.len() > MAX_TEXT {
        return Err(Limit::Length);
    }
    Ok(())
}

/// Counts tokens, statements and nesting.
///
/// Every token that can put one node under another adds to the chain of its bracket level: operators, opening
/// brackets and keywords. A comma ends a chain, for items of a list stand side by side, but not one of set
/// operations, which reach across the commas of their arms.
pub fn scan(tokens: &[Token]) -> Result<Scan, Limit> {
    if tokens.len() > MAX_TOKENS {
        return Err(Limit::Tokens);
    }
    let mut scan = Scan {
        tokens: tokens.len(),
        ..Scan::default()
    };
    let mut levels: Vec<Level> = Vec::new();
    let mut level = Level::default();
    let mut in_statement = false;
    for token in tokens {
        match token.kind {
            TokenKind::Comment => continue,
            TokenKind::Semicolon if levels.is_empty() => {
                in_statement = false;
                level = Level::default();
                continue;
            }
            TokenKind::Open => {
                levels.push(level);
                level = Level {
                    below: level.depth().saturating_add(1),
                    ..Level::default()
                };
            }
            TokenKind::Close => level = levels.pop().unwrap_or_default().and_chain(),
            TokenKind::Comma | TokenKind::Semicolon => level.chain = 0,
            TokenKind::SetOperation => level.sets = level.sets.saturating_add(1),
            TokenKind::Nesting => level.chain = level.chain.saturating_add(1),
            TokenKind::Integer
            | TokenKind::Text
            | TokenKind::Constant
            | TokenKind::Name
            | TokenKind::Parameter
            | TokenKind::Flat => {}
        }
        if !in_statement {
            in_statement = true;
            scan.statements = scan.statements.saturating_add(1);
        }
        scan.depth = scan.depth.max(level.depth());
    }
    match scan {
        Scan { statements, .. } if statements > MAX_STATEMENTS => Err(Limit::Statements),
        // The estimate counts keywords too, so it is allowed twice the depth before the text is turned away unparsed.
        Scan { depth, .. } if depth > MAX_DEPTH.saturating_mul(2) => Err(Limit::Depth),
        scan => Ok(scan),
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Level {
    below: u32,
    chain: u32,
    sets: u32,
}

impl Level {
    fn depth(self) -> u32 {
        self.below.saturating_add(self.chain).saturating_add(self.sets)
    }

    /// A closed bracket may be indexed, called or cast again: it counts as a link of its own level's chain.
    fn and_chain(mut self) -> Self {
        self.chain = self.chain.saturating_add(1);
        self
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::parse::tokens;
    use super::*;

    fn scanned(text: &str) -> Result<Scan, Limit> {
        scan(&tokens(text).unwrap())
    }

    #[test]
    fn flat_texts_are_inline_and_deep_ones_are_not() {
        let flat = "SELECT abalance FROM pgbench_accounts WHERE aid = 42";
        assert!(scanned(flat).unwrap().fits_inline(flat));
        let columns = format!("SELECT {} FROM t", vec!["t.a AS \"t0_a\""; 100].join(", "));
        assert!(scanned(&columns).unwrap().fits_inline(&columns));
        for deep in [
            format!("SELECT {}1", "1+".repeat(100)),
            format!("SELECT {}1{}", "(".repeat(100), ")".repeat(100)),
            format!("SELECT 1{}", " UNION SELECT 1, 2".repeat(60)),
            format!("SELECT x{}", "[1]".repeat(60)),
            format!("SELECT {}true", "NOT ".repeat(60)),
            format!("SELECT x{}", "::text".repeat(60)),
            format!("SELECT x{}", " IS NULL".repeat(60)),
        ] {
            assert!(!scanned(&deep).unwrap().fits_inline(&deep), "{deep}");
        }
    }

    #[test]
    fn limits_hold() {
        assert_eq!(scanned(&"x ".repeat(MAX_TOKENS + 1)), Err(Limit::Tokens));
        assert_eq!(scanned(&"select 1;".repeat(MAX_STATEMENTS + 1)), Err(Limit::Statements));
        assert_eq!(scanned(&"(".repeat(5_000)), Err(Limit::Depth));
        assert_eq!(check_bytes(&" ".repeat(MAX_TEXT + 1)), Err(Limit::Length));
        assert_eq!(scanned(";; ;select 1;;").unwrap().statements, 1);
    }
}
