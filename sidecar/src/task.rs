//! The only place that starts tasks: every one is tracked, and a panic in it ends that task alone.
//!
//! Sessions run on [`Lanes`], threads with an event loop each that share nothing: no session moves, so no two threads
//! wake each other for it, and neither bundles nor uploads delay it. Everything else runs where it was started.
//! A caught panic is counted in [`Tasks::panics`], which must stay zero: it means a defect, and status shows it.
//! Invariant: after [`Tasks::wait`] no task of this process half runs any more.

use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::task::TaskTracker;

/// Most threads for sessions where no quota says how many.
pub const LANES: usize = 2;

/// Starts and tracks tasks. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    panics: Arc<AtomicU64>,
    lanes: Option<Arc<Lanes>>,
}

/// The threads that sessions run on.
pub struct Lanes {
    lanes: Vec<Handle>,
    next: AtomicUsize,
    /// Dropped with this value: the threads end.
    _running: Vec<oneshot::Sender<()>>,
}

impl Lanes {
    /// How many this process should have, by its CPU quota and the node's cores.
    pub fn wanted() -> usize {
        let quota = std::fs::read_to_string("/sys/fs/cgroup/cpu.max").ok();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self::wanted_by(quota.as_deref(), cores)
    }

    /// As many as the CPU quota has cores, begun ones included. Where there is no quota, half of the node's cores, one
    /// or two: they are the agent's and not ours, and on two of them a second lane costs more than it brings (each
    /// operation takes a fifth more CPU). `quota` is the text of cgroup v2's `cpu.max`.
    fn wanted_by(quota: Option<&str>, cores: usize) -> usize {
        let granted = || {
            let (most, period) = quota?.trim().split_once(' ')?;
            let (most, period): (usize, usize) = (most.parse().ok()?, period.parse().ok()?);
            (period > 0).then(|| most.div_ceil(period).clamp(1, 64))
        };
        granted().unwrap_or_else(|| (cores / 2).clamp(1, LANES))
    }

    /// Starts as many threads.
    pub fn start(count: usize) -> io::Result<Lanes> {
        let (mut lanes, mut running) = (Vec::new(), Vec::new());
        for _ in 0..count.max(1) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            lanes.push(runtime.handle().clone());
            let (run, ended) = oneshot::channel::<()>();
            running.push(run);
            std::thread::Builder::new().name("session".to_owned()).spawn(move || {
                crate::record::batch_on_this_thread();
                let _ = runtime.block_on(ended);
                // Whatever blocking work is left must not hold up the end.
                runtime.shutdown_background();
            })?;
        }
        Ok(Lanes {
            lanes,
            next: AtomicUsize::new(0),
            _running: running,
        })
    }

    fn next(&self) -> Option<&Handle> {
        let at = self.next.fetch_add(1, Ordering::Relaxed);
        self.lanes.get(at.checked_rem(self.lanes.len())?)
    }
}

/// The task, or the blocking call, panicked or the runtime is going down.
#[derive(Debug, thiserror::Error)]
#[error("a task ended without a result")]
pub struct TaskLost;

impl Tasks {
    /// Tasks whose sessions run on these threads.
    pub fn on(lanes: Lanes) -> Tasks {
        Tasks {
            lanes: Some(Arc::new(lanes)),
            ..Tasks::default()
        }
    }

    /// Starts a task. A panic in it is caught, counted and logged.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> AbortHandle
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.start(self.guarded(name, future), None).abort_handle()
    }

    /// Starts a session on the next lane, or here where there are none. What it opens belongs to that lane; a stream
    /// that was accepted elsewhere has to be handed over as a `std` one.
    pub fn spawn_session<F>(&self, future: F) -> AbortHandle
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let lane = self.lanes.as_deref().and_then(Lanes::next);
        self.start(self.guarded("session", future), lane).abort_handle()
    }

    fn guarded<F>(&self, name: &'static str, future: F) -> impl Future<Output = ()> + Send + 'static
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let panics = self.panics.clone();
        async move {
            if AssertUnwindSafe(future).catch_unwind().await.is_err() {
                panics.fetch_add(1, Ordering::Relaxed);
                tracing::error!(task = name, "a task panicked; it ended alone");
            }
        }
    }

    /// Runs blocking work (a directory read, many hash rounds) off the runtime.
    pub async fn blocking<T, F>(&self, work: F) -> Result<T, TaskLost>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        if cfg!(fuzzing) {
            // A fuzzer's session goes the same way every time: nothing of it runs beside it.
            return Ok(work());
        }
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
            lanes: self.lanes.clone(),
        }
    }

    #[allow(clippy::disallowed_methods)] // the one spawner
    fn start<F>(&self, future: F, lane: Option<&Handle>) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        match lane {
            Some(lane) => self.tracker.spawn_on(future, lane),
            None => self.tracker.spawn(future),
        }
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

    #[test]
    fn lanes_follow_the_quota_and_leave_the_agent_its_cores() {
        assert_eq!(Lanes::wanted_by(Some("50000 100000\n"), 16), 1);
        assert_eq!(Lanes::wanted_by(Some("250000 100000\n"), 16), 3);
        assert_eq!(Lanes::wanted_by(Some("max 100000\n"), 16), 2);
        assert_eq!(Lanes::wanted_by(None, 4), 2);
        assert_eq!(Lanes::wanted_by(None, 2), 1);
        assert_eq!(Lanes::wanted_by(Some("nonsense"), 1), 1);
    }

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
    async fn sessions_take_turns_on_their_lanes_and_are_waited_for() {
        let tasks = Tasks::on(Lanes::start(2).unwrap());
        let (tell, mut told) = tokio::sync::mpsc::channel(4);
        for _ in 0..4 {
            let tell = tell.clone();
            tasks.spawn_session(async move {
                tokio::task::yield_now().await;
                let _ = tell.send(std::thread::current().id()).await;
            });
        }
        tasks.wait().await;
        drop(tell);
        let mut threads = std::collections::HashMap::new();
        while let Some(thread) = told.recv().await {
            *threads.entry(thread).or_insert(0) += 1;
        }
        assert_eq!(threads.into_values().collect::<Vec<_>>(), [2, 2]);
    }

    #[tokio::test]
    async fn a_panic_in_blocking_work_is_an_error() {
        let tasks = Tasks::default();
        assert!(tasks.blocking(|| panic!("test")).await.is_err());
        assert_eq!(tasks.blocking(|| 7).await.unwrap(), 7);
        assert_eq!(tasks.panics(), 1);
    }
}
