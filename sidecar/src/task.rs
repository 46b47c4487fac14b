//! The only place that starts tasks: every one is tracked, and a panic in it ends that task alone.
//!
//! A caught panic is counted in [`Tasks::panics`], which must stay zero: it means a defect, and status shows it.
//! Invariant: after [`Tasks::wait`] no task of this process half runs any more.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::task::TaskTracker;

/// Starts and tracks tasks. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    panics: Arc<AtomicU64>,
}

/// The task, or the blocking call, panicked or the runtime is going down.
#[derive(Debug, thiserror::Error)]
#[error("a task ended without a result")]
pub struct TaskLost;

impl Tasks {
    /// Starts a task. A panic in it is caught, counted and logged.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> AbortHandle
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let panics = self.panics.clone();
        let guarded = async move {
            if AssertUnwindSafe(future).catch_unwind().await.is_err() {
                panics.fetch_add(1, Ordering::Relaxed);
                tracing::error!(task = name, "a task panicked; it ended alone");
            }
        };
        self.start(guarded).abort_handle()
    }

    /// Runs blocking work (a directory read, many hash rounds) off the runtime.
    pub async fn blocking<T, F>(&self, work: F) -> Result<T, TaskLost>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let result = self.tracker.spawn_blocking(work).await;
        result.map_err(|lost| {
            if lost.is_panic() {
                self.panics.fetch_add(1, Ordering::Relaxed);
            }
            TaskLost
        })
    }

    /// Tasks that are waited for by themselves; their panics count with these.
    pub fn apart(&self) -> Tasks {
        Tasks {
            tracker: TaskTracker::new(),
            panics: self.panics.clone(),
        }
    }

    #[allow(clippy::disallowed_methods)] // the one spawner
    fn start<F>(&self, future: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tracker.spawn(future)
    }

    /// Panics caught so far.
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// Tasks running now.
    pub fn running(&self) -> usize {
        self.tracker.len()
    }

    /// Waits until every task has ended. Tasks may still be started meanwhile and are waited for too.
    pub async fn wait(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// Lets hyper start its connection tasks through [`Tasks`].
impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        self.spawn("http", async move {
            future.await;
        });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_one_task_and_is_counted() {
        let tasks = Tasks::default();
        let (tell, told) = tokio::sync::oneshot::channel();
        tasks.spawn("bad", async { panic!("test") });
        tasks.spawn("good", async move { tell.send(()).unwrap() });
        told.await.unwrap();
        tasks.wait().await;
        assert_eq!(tasks.panics(), 1);
        assert_eq!(tasks.running(), 0);
    }

    #[tokio::test]
    async fn a_panic_in_blocking_work_is_an_error() {
        let tasks = Tasks::default();
        assert!(tasks.blocking(|| panic!("test")).await.is_err());
        assert_eq!(tasks.blocking(|| 7).await.unwrap(), 7);
        assert_eq!(tasks.panics(), 1);
    }
}
