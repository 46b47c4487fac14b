//! PostgreSQL: the server's own grammar, an exhaustive walk of the tree, names resolved against a catalog
//! snapshot, lineage of every output column.
//!
//! The entry is [`analyse`]. What the walk does not know is `Opaque`, and Opaque is refused wherever a fact matters.

pub mod analysis;
pub mod catalog;
mod commands;
mod effects;
mod filtered;
pub mod functions;
pub mod guc;
pub mod lineage;
pub mod literals;
mod merge;
pub mod names;
pub mod parse;
pub mod plan;
pub mod prescan;
pub mod resolve;
pub mod shape;
#[cfg(any(test, fuzzing))]
pub mod shop;
mod statements;
pub mod walk;

pub use analysis::{
    Analysis, CopyStatement, DiscardWhat, Output, OutputColumn, SessionView, Source, Statement, StatementKind,
    TransactionVerb, Uses,
};
pub use catalog::{Catalog, CatalogBuilder};

use parse::ParseError;

use crate::engine::operation::Completeness;

/// What the analysis has to know about server and session beyond names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Options {
    /// The server's major version, such as 15.
    pub server_major: u32,
    /// The session's `standard_conforming_strings`, as the server last reported it.
    pub standard_conforming_strings: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            server_major: 18,
            standard_conforming_strings: true,
        }
    }
}

/// Analyses one statement string.
pub fn analyse(text: &str, options: &Options, catalog: &Catalog, view: &dyn SessionView) -> Analysis {
    let dialect = parse::Dialect {
        standard_conforming_strings: options.standard_conforming_strings,
    };
    let analysed = parse::with_tree(text, dialect, |tree| {
        let free = match tree {
            [only] => only.stmt.as_deref().map(shape::free).unwrap_or_default(),
            _ => Vec::new(),
        };
        (statements::all(text, tree, options, catalog, view), free)
    });
    match analysed {
        Ok((statements, free)) => {
            let problem = statements.iter().find_map(|(_, problem)| problem.clone());
            let statements: Vec<_> = statements.into_iter().map(|(statement, _)| statement).collect();
            let worst = statements.iter().map(|statement| statement.completeness).max();
            Analysis {
                facts: merge::string(&statements, view),
                completeness: worst.unwrap_or(Completeness::Exact),
                limit: problem.as_ref().and_then(|problem| problem.limit),
                free: if problem.is_some() { Vec::new() } else { free },
                problem: problem.map(|problem| problem.message),
                statements,
            }
        }
        Err(error) => opaque(&error, view),
    }
}

/// Whether a text is so short and flat that its analysis takes well under a millisecond, on the caller's own stack. So
/// is a short one that does not scan or runs into a limit: its verdict stands. Anything else may wait for its turn on
/// a thread with a large stack.
pub fn is_small(text: &str) -> bool {
    if text.len() > prescan::INLINE_TEXT {
        return false;
    }
    let Ok(tokens) = parse::tokens(text) else {
        return true;
    };
    prescan::scan(&tokens).map_or(true, |scan| scan.fits_inline(text))
}

/// A string the grammar or a limit turned away: nothing is known of it.
fn opaque(error: &ParseError, view: &dyn SessionView) -> Analysis {
    Analysis {
        statements: Vec::new(),
        facts: statements::unknown_facts(view),
        completeness: Completeness::Opaque,
        problem: Some(error.to_string()),
        free: Vec::new(),
        limit: match error {
            ParseError::Limit(limit) => Some(*limit),
            ParseError::Syntax(_) | ParseError::Nul | ParseError::Internal(_) => None,
        },
    }
}

#[cfg(test)]
mod tests;
