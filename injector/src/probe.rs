//! Whether the API server would be answered: this injector calls itself as it would be called.
//!
//! Refuses readiness for as long as a live caBundle does not take what is served. Invariant: it dials the pod's own
//! address, never the Service, whose first endpoint would wait for itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::kubernetes::Configurations;
use crate::served::Served;
use crate::trust::dial;

/// Called so often while everything is well, and so often while not.
const EVERY: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(500);

/// What the last call showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// Nothing, or why the API server would not be answered.
    pub verdict: Result<(), String>,
    /// When it was last answered well, seconds since 1970; 0: never.
    pub good: i64,
}

impl Default for Readiness {
    fn default() -> Self {
        Readiness {
            verdict: Err("starting".to_owned()),
            good: 0,
        }
    }
}

/// Calls itself until the injector stops.
pub async fn keep(
    own: SocketAddr,
    configurations: Arc<Configurations>,
    served: Arc<Served>,
    ready: watch::Sender<Readiness>,
    stop: CancellationToken,
) {
    let (mut live, mut swapped) = (configurations.watch(), served.watch());
    loop {
        let verdict = call(own, &configurations).await;
        let well = verdict.is_ok();
        if ready.borrow().verdict != verdict {
            match &verdict {
                Ok(()) => tracing::info!("ready"),
                Err(why) => tracing::warn!(why, "not ready"),
            }
        }
        ready.send_modify(|readiness| {
            readiness.verdict = verdict;
            if well {
                readiness.good = now();
            }
        });
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(if well { EVERY } else { AGAIN }) => {}
            Ok(()) = live.changed() => {}
            Ok(()) = swapped.changed() => {}
        }
    }
}

async fn call(own: SocketAddr, configurations: &Configurations) -> Result<(), String> {
    for (name, bundle) in configurations.live().trusted()? {
        dial(own, &bundle, &name)
            .await
            .map_err(|error| format!("called as {name}: {error}"))?;
    }
    Ok(())
}

/// Seconds since 1970: certificates are judged by whoever calls, so by no other clock than the system's.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
