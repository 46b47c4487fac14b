//! The only place that spawns: every task belongs to the injector, is told to stop, and is waited for.
//!
//! Refuses to spawn once stopping. A panic inside a task ends that task alone.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// All tasks of one injector.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// Told when everything should end.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Runs a task until it ends by itself. It must listen to [`Tasks::stopping`].
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        if !self.stop.is_cancelled() {
            self.tracker.spawn(future);
        }
    }

    /// Tells every task to end, and waits for them at most `patience`.
    pub async fn shutdown(&self, patience: Duration) {
        self.stop.cancel();
        self.tracker.close();
        if tokio::time::timeout(patience, self.tracker.wait()).await.is_err() {
            tracing::warn!(left = self.tracker.len(), "tasks did not end in time");
        }
    }
}
