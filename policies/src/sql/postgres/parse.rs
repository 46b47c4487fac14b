//! The only file that names `pg_query`: tokens and trees of PostgreSQL's own grammar, within limits.
//!
//! A tree never leaves the stack it was built on: [`with_tree`] parses, runs the caller's closure over the tree and
//! drops it there. Small flat texts use the caller's stack; everything else one of two gates, each of which lets one
//! text at a time onto a named thread with 256 MiB of reserved stack, because decoding and dropping a deep tree
//! recurse and an overflow would abort the process. A panic of the library is caught and reported as a problem.
//! The library's own summaries (tables, functions, fingerprint) are never used: they miss nodes.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Condvar, Mutex, PoisonError};

use super::prescan::{self, Limit};

pub use pg_query::protobuf as pb;
pub use pg_query::protobuf::node::Node as NodeEnum;

/// Texts longer than this take the gate for large texts, so that they cannot hold up the others.
const LARGE_TEXT: usize = 64 << 10;
/// Stack reserved (not committed) for a parse thread.
const STACK: usize = 256 << 20;
/// Most texts that wait at one gate.
const MAX_WAITING: usize = 256;

/// Session settings the grammar depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Dialect {
    /// `standard_conforming_strings`: a backslash in `'…'` is an ordinary character.
    pub standard_conforming_strings: bool,
}

impl Default for Dialect {
    fn default() -> Self {
        Dialect {
            standard_conforming_strings: true,
        }
    }
}

/// Why there is no tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// A limit.
    #[error(transparent)]
    Limit(#[from] Limit),
    /// The grammar's own message.
    #[error("{0}")]
    Syntax(String),
    /// A NUL byte, which the server would take as the end of the text.
    #[error("the statement text contains a NUL byte")]
    Nul,
    /// The parser failed on a text it should have judged.
    #[error("the statement could not be read: {0}")]
    Internal(&'static str),
}

/// What a token means to the scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// A comment.
    Comment,
    /// `;`.
    Semicolon,
    /// `,`.
    Comma,
    /// `(` or `[`.
    Open,
    /// `)` or `]`.
    Close,
    /// UNION, INTERSECT, EXCEPT.
    SetOperation,
    /// Anything that may put one node under another.
    Nesting,
    /// An integer constant in the range of int4, however it is written.
    Integer,
    /// A string constant in quotes of its own: `'…'`, `E'…'` or `$$…$$`.
    Text,
    /// Any other constant: a number beyond int4, bits, a string with Unicode escapes.
    Constant,
    /// A name, quoted or not.
    Name,
    /// `$1`.
    Parameter,
    /// Keywords and signs that only separate.
    Flat,
}

/// One token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
    /// Its meaning to the scan.
    pub kind: TokenKind,
}

/// The tokens of a text.
pub fn tokens(text: &str) -> Result<Vec<Token>, ParseError> {
    if text.bytes().all(|byte| byte.is_ascii_whitespace()) {
        return Ok(Vec::new());
    }
    let tokens = guarded(|| pg_query::scan_tokens(text))?.map_err(error)?;
    Ok(tokens.iter().map(token).collect())
}

fn token(token: &pb::ScanToken) -> Token {
    use pb::Token as T;
    let kind = match T::try_from(token.token) {
        Ok(T::SqlComment | T::CComment) => TokenKind::Comment,
        Ok(T::Ascii59) => TokenKind::Semicolon,
        Ok(T::Ascii44) => TokenKind::Comma,
        Ok(T::Ascii40 | T::Ascii91) => TokenKind::Open,
        Ok(T::Ascii41 | T::Ascii93) => TokenKind::Close,
        Ok(T::Union | T::Intersect | T::Except) => TokenKind::SetOperation,
        Ok(T::Iconst) => TokenKind::Integer,
        Ok(T::Sconst) => TokenKind::Text,
        Ok(T::Fconst | T::Usconst | T::Bconst | T::Xconst) => TokenKind::Constant,
        Ok(T::Ident | T::Uident) => TokenKind::Name,
        Ok(T::Param) => TokenKind::Parameter,
        Ok(T::As | T::And | T::Ascii46 | T::Asc | T::Desc) => TokenKind::Flat,
        _ => TokenKind::Nesting,
    };
    Token {
        start: usize::try_from(token.start).unwrap_or_default(),
        end: usize::try_from(token.end).unwrap_or_default(),
        kind,
    }
}

/// Parses a text and runs `judge` over its statements, all on one stack; the tree is dropped before this returns.
pub fn with_tree<T: Send>(
    text: &str,
    dialect: Dialect,
    judge: impl FnOnce(&[pb::RawStmt]) -> T + Send,
) -> Result<T, ParseError> {
    prescan::check_bytes(text)?;
    if text.as_bytes().contains(&0) {
        return Err(ParseError::Nul);
    }
    let inline = match tokens(text) {
        Ok(tokens) => prescan::scan(&tokens)?.fits_inline(text),
        // The scan knows only the default dialect; another one may read the same text without an error.
        Err(ParseError::Syntax(_)) if dialect != Dialect::default() => false,
        Err(error) => return Err(error),
    };
    if inline && dialect == Dialect::default() {
        return parse_and(text, dialect, judge);
    }
    let gate = if text.len() > LARGE_TEXT { &LARGE } else { &SMALL };
    gate.run(|| parse_and(text, dialect, judge))
}

fn parse_and<T>(text: &str, dialect: Dialect, judge: impl FnOnce(&[pb::RawStmt]) -> T) -> Result<T, ParseError> {
    let mut options = pg_query::ParserOptions::DEFAULT;
    if !dialect.standard_conforming_strings {
        options |= pg_query::ParserOptions::DISABLE_STANDARD_CONFORMING_STRINGS;
    }
    let tree = guarded(|| pg_query::parse(text, options))?.map_err(error)?.protobuf;
    if tree.stmts.len() > prescan::MAX_STATEMENTS {
        return Err(Limit::Statements.into());
    }
    guarded(|| judge(&tree.stmts))
}

fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, ParseError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| ParseError::Internal("the parser gave up on it"))
}

fn error(error: pg_query::Error) -> ParseError {
    use pg_query::Error as E;
    match error {
        E::Parse(message) | E::Scan(message) => ParseError::Syntax(super::literals::message(message)),
        E::Conversion(_) => ParseError::Nul,
        _ => ParseError::Internal("its tree could not be read"),
    }
}

/// Lets one text at a time onto a thread of its own.
struct Gate {
    name: &'static str,
    state: Mutex<GateState>,
    freed: Condvar,
}

struct GateState {
    busy: bool,
    waiting: usize,
}

static SMALL: Gate = Gate::new("sql-parse");
static LARGE: Gate = Gate::new("sql-parse-large");

impl Gate {
    const fn new(name: &'static str) -> Self {
        Gate {
            name,
            state: Mutex::new(GateState {
                busy: false,
                waiting: 0,
            }),
            freed: Condvar::new(),
        }
    }

    fn run<T: Send>(&self, work: impl FnOnce() -> Result<T, ParseError> + Send) -> Result<T, ParseError> {
        let _turn = self.enter()?;
        std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name(self.name.to_owned())
                .stack_size(STACK)
                .spawn_scoped(scope, work)
                .map_err(|_| ParseError::Internal("no thread to read it on"))?
                .join()
                .map_err(|_| ParseError::Internal("the parser gave up on it"))?
        })
    }

    fn enter(&self) -> Result<Turn<'_>, ParseError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.busy {
            if state.waiting >= MAX_WAITING {
                return Err(Limit::Busy.into());
            }
            state.waiting = state.waiting.saturating_add(1);
            state = self
                .freed
                .wait_while(state, |state| state.busy)
                .unwrap_or_else(PoisonError::into_inner);
            state.waiting = state.waiting.saturating_sub(1);
        }
        state.busy = true;
        Ok(Turn(self))
    }
}

struct Turn<'a>(&'a Gate);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).busy = false;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<usize, ParseError> {
        with_tree(text, Dialect::default(), <[pb::RawStmt]>::len)
    }

    #[test]
    fn hostile_texts_leave_the_process_alive() {
        let limit = |result| matches!(result, Err(ParseError::Limit(_) | ParseError::Syntax(_)));
        assert!(limit(parse(&"(".repeat(1_000_000))));
        assert!(limit(parse(&format!(
            "select {}1{}",
            "(".repeat(400_000),
            ")".repeat(400_000)
        ))));
        // Each of these is deep in a different way; whatever the verdict, it has to come back.
        let _ = parse(&format!("select {}1", "1 + ".repeat(4_000)));
        let _ = parse(&format!("select {}1", "1 || ".repeat(1_900)));
        let _ = parse(&format!("select {}1{}", "(select ".repeat(900), ")".repeat(900)));
        let _ = parse(&format!("select 1{}", " union select 1".repeat(1_900)));
        let _ = parse(&format!("select {}true", "not ".repeat(1_900)));
        let _ = parse(&format!("select x{}", "::text".repeat(900)));
        let _ = parse(&format!("select {}1{}", "f(".repeat(900), ")".repeat(900)));
        let _ = parse(&format!("select * from a{}", " join b on true".repeat(500)));
        assert_eq!(parse("select 1"), Ok(1));
    }

    #[test]
    fn the_grammar_message_is_quoted_and_nul_is_refused() {
        assert_eq!(
            parse("selec 1"),
            Err(ParseError::Syntax("syntax error at or near \"selec\"".to_owned()))
        );
        assert_eq!(parse("select 1\0; drop table x"), Err(ParseError::Nul));
        assert_eq!(parse("  "), Ok(0));
    }

    #[test]
    fn the_session_dialect_decides_where_a_string_ends() {
        let text = r"select '\'; drop table x; --'";
        assert_eq!(parse(text), Ok(2));
        let off = Dialect {
            standard_conforming_strings: false,
        };
        assert_eq!(with_tree(text, off, <[pb::RawStmt]>::len), Ok(1));
    }

    #[test]
    fn a_panic_of_the_judge_is_a_problem_and_not_an_abort() {
        let result = with_tree("select 1", Dialect::default(), |_| panic!("odd tree"));
        assert!(matches!(result as Result<(), _>, Err(ParseError::Internal(_))));
    }
}
