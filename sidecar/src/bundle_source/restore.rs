//! Starting on what was kept: listeners and refusals before the broker answers.
//!
//! Refuses whatever [`super::kept`] refuses, and a bundle that does not compile; the sidecar then starts as on its first
//! day. Invariant: nothing is allowed by it. It says what exists, what is frozen, and how far the store was read, so
//! that neither goes back; sessions open once the broker has spoken to this process.

use std::path::PathBuf;
use std::sync::Arc;

use super::apply::Enforcer;
use super::kept::{self, Kept};

/// Puts into force what was kept for the pod of this UID, if it is good; says what became of it.
pub async fn restore(enforcer: Arc<Enforcer>, folder: PathBuf, pod_uid: String) {
    if pod_uid.is_empty() {
        // Local mode, whose broker starts beside it.
        tracing::debug!("nobody says which pod this is: nothing kept is looked at");
        return;
    }
    let tasks = enforcer.authority.tasks.clone();
    let metrics = enforcer.authority.metrics.clone();
    let work = move || -> Result<bool, String> {
        let now = jiff::Timestamp::now().as_millisecond();
        let kept = kept::read(&folder, &enforcer.seals, &pod_uid, now).map_err(|error| error.to_string())?;
        let Some(kept) = kept else { return Ok(false) };
        let Kept { body, deny, statement } = kept;
        let version = statement.version.clone();
        let bundle = enforcer
            .compile(&version, &body, &statement)
            .map_err(|error| error.to_string())?;
        // The deny set first, as on the stream.
        drop(enforcer.authority.deny.apply(deny, &enforcer.authority.sessions));
        drop(enforcer.enforce(bundle));
        Ok(true)
    };
    match tasks.blocking(work).await {
        Ok(Ok(true)) => {
            tracing::info!("what was in force before is kept in force, and refuses until the broker speaks")
        }
        Ok(Ok(false)) => tracing::debug!("nothing was kept"),
        Ok(Err(error)) => {
            metrics.kept_refused.up();
            tracing::error!(error, "what was kept is not taken");
        }
        Err(_) => tracing::error!("what was kept could not be looked at"),
    }
}
