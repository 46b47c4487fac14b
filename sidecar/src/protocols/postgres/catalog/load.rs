//! Loads one snapshot: our own connection, the section queries, and a digest that tells whether anything changed.
//!
//! The connection has an empty search_path, so that the server qualifies every name it prints.

use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use sidegate_policies::sql::postgres::catalog::{Catalog, CatalogBuilder, CatalogError, QUERIES};
use tokio::io::AsyncWriteExt;

use super::super::auth::LoginError;
use super::super::codec::write;
use super::super::login::{self, ConnectError};
use crate::protocols::RoomContext;
use crate::target::TargetState;

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No connection.
    #[error("{0}")]
    Connect(#[from] ConnectError),
    /// A question failed.
    #[error("{0}")]
    Ask(#[from] LoginError),
    /// The answers do not make a snapshot.
    #[error("{0}")]
    Catalog(#[from] CatalogError),
    /// Work off the runtime was lost.
    #[error("the snapshot's computation was lost")]
    Lost,
}

/// A digest of all rows.
pub type Digest = [u8; 32];

/// Loads the sections; builds a snapshot only if they differ from `known`.
pub async fn load(
    target: &Arc<TargetState>,
    ctx: &RoomContext,
    database: &str,
    epoch: u64,
    known: Option<Digest>,
) -> Result<Option<(Catalog, Digest)>, LoadError> {
    let parameters = |role: &str| {
        [
            ("user", role),
            ("database", database),
            ("client_encoding", "UTF8"),
            ("standard_conforming_strings", "on"),
            ("search_path", ""),
            ("application_name", "sg:catalog"),
            ("default_transaction_read_only", "on"),
            ("statement_timeout", "10s"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    };
    let mut connected = login::connect(target, ctx, "postgres", 0, parameters).await?;
    let (mut builder, mut context) = (CatalogBuilder::new(epoch), Context::new(&SHA256));
    for (section, sql) in QUERIES {
        let rows = login::ask(&mut connected.stream, &mut connected.scanner, sql).await?;
        update(&mut context, section, &rows);
        builder.section(section, rows)?;
    }
    let _ = connected.stream.write_all(write::terminate().bytes()).await;
    let digest: Digest = context.finish().as_ref().try_into().map_err(|_| LoadError::Lost)?;
    if known == Some(digest) {
        return Ok(None);
    }
    let catalog = ctx
        .tasks
        .blocking(move || builder.finish())
        .await
        .map_err(|_| LoadError::Lost)??;
    Ok(Some((catalog, digest)))
}

fn update(context: &mut Context, section: &str, rows: &[Vec<Option<String>>]) {
    context.update(section.as_bytes());
    for row in rows {
        context.update(&[1]);
        for cell in row {
            match cell {
                None => context.update(&[0]),
                Some(text) => {
                    context.update(&[2]);
                    context.update(&u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
                    context.update(text.as_bytes());
                }
            }
        }
    }
}
