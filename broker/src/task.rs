//! The only place that spawns: every task belongs to one owner, is told to stop, and is waited for.
//!
//! Refuses to spawn once stopping. A panic inside a task ends that task alone and is logged; it never takes the
//! broker down. Blocking file work goes through [`Tasks::blocking`], so that no runtime thread waits for a disk.

use std::future::Future;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// All tasks of one broker.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

/// Runs blocking work on a thread of its own and waits for it. `None` if the work panicked.
pub async fn blocking<T, F>(work: F) -> Option<T>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.ok()
}

impl Tasks {
    /// No tasks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Told when everything should end.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Runs a task until it ends by itself. It must listen to [`Tasks::stopping`].
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if self.stop.is_cancelled() {
            return;
        }
        self.tracker.spawn(async move {
            tracing::trace!(task = name, "started");
            future.await;
            tracing::trace!(task = name, "ended");
        });
    }

    /// Runs blocking work on a thread of its own and waits for it. `None` if the work panicked.
    pub async fn blocking<T, F>(&self, work: F) -> Option<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        self.tracker.spawn_blocking(work).await.ok()
    }

    /// Tells every task to end, and waits for them at most `patience`.
    pub async fn shutdown(&self, patience: std::time::Duration) {
        self.stop.cancel();
        self.tracker.close();
        if tokio::time::timeout(patience, self.tracker.wait()).await.is_err() {
            tracing::warn!(left = self.tracker.len(), "tasks did not end in time");
        }
    }
}
