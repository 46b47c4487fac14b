//! PostgreSQL: the server's own grammar, an exhaustive walk of the tree, names resolved against a catalog
//! snapshot, lineage of every output column.
//!
//! The entry is [`analyse`]. What the walk does not know is `Opaque`, and Opaque is refused wherever a fact matters.

pub mod analysis;
pub mod catalog;
mod filtered;
pub mod lineage;
pub mod names;
pub mod parse;
pub mod plan;
pub mod prescan;
pub mod resolve;
#[cfg(test)]
mod shop;
pub mod walk;

pub use analysis::{
    Analysis, CopyStatement, DiscardWhat, Output, OutputColumn, SessionView, Source, Statement, StatementKind,
    TransactionVerb, Uses,
};
pub use catalog::{Catalog, CatalogBuilder};
