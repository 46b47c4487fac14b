//! Follows objects of one kind: the list first, then its changes, and the list anew whenever the watch was lost.
//!
//! Refuses nothing. The invariants: a list counts when it is whole, so that what was deleted unheard of goes with it;
//! where versions are told, everything up to that version was told before.

use std::time::Duration;

use futures_util::StreamExt as _;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::runtime::watcher::{self, Event};
use kube::runtime::WatchStreamExt as _;
use kube::Api;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{answered, Failed};

/// Objects of a list come in pages of so many.
const PAGE: u32 = 500;
/// A watch lasts so long; one that says nothing for longer, not even that, is dead.
const SILENT: Duration = Duration::from_secs(300);
/// Between watches, and after a failure twice as long each time, up to the second figure.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);

/// What became of the objects.
pub enum Change<T> {
    /// These are there, and no others.
    All(Vec<T>),
    /// This one is new, or another than before.
    Put(T),
    /// This one is gone.
    Gone(T),
}

/// Tells every change of one object, by its name: of nothing else need the caller be allowed to hear.
pub async fn follow_one<K>(
    api: Api<K>,
    name: &str,
    stop: CancellationToken,
    told: impl FnMut(Result<Change<K>, watcher::Error>),
) where
    K: kube::Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    follow_those(api, only, stop, |object| object, told).await;
}

/// Tells every change until told to stop. Only what `kept` keeps of an object waits for its list to be whole.
pub async fn follow<K, T>(
    api: Api<K>,
    stop: CancellationToken,
    kept: impl Fn(K) -> T,
    told: impl FnMut(Result<Change<T>, watcher::Error>),
) where
    K: kube::Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    follow_those(api, watcher::Config::default(), stop, kept, told).await;
}

/// The same of those that a selector finds.
pub async fn follow_those<K, T>(
    api: Api<K>,
    which: watcher::Config,
    stop: CancellationToken,
    kept: impl Fn(K) -> T,
    mut told: impl FnMut(Result<Change<T>, watcher::Error>),
) where
    K: kube::Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let events = watcher::watcher(api, which).default_backoff();
    let mut events = std::pin::pin!(events);
    let mut listed = Vec::new();
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => event,
        };
        match event {
            Some(Ok(Event::Init)) => listed.clear(),
            Some(Ok(Event::InitApply(object))) => listed.push(kept(object)),
            Some(Ok(Event::InitDone)) => told(Ok(Change::All(std::mem::take(&mut listed)))),
            Some(Ok(Event::Apply(object))) => told(Ok(Change::Put(kept(object)))),
            Some(Ok(Event::Delete(object))) => told(Ok(Change::Gone(kept(object)))),
            Some(Err(error)) => told(Err(error)),
            None => return,
        }
    }
}

/// A change, if there is one, and the version up to which everything was told.
pub type Step<T> = (Option<Change<T>>, u64);

/// Like [`follow`], with the version that each change brings one to: lists, events and bookmarks all have theirs. When
/// `wanted` becomes higher than that, somebody has seen more: then it lists anew.
pub async fn follow_versions<K, T>(
    api: Api<K>,
    stop: CancellationToken,
    mut wanted: watch::Receiver<u64>,
    kept: impl Fn(K) -> T,
    mut told: impl FnMut(Result<Step<T>, Failed>),
) where
    K: kube::Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let mut version: Option<String> = None;
    let mut pause = PAUSE;
    loop {
        let turned = tokio::select! {
            () = stop.cancelled() => return,
            turned = turn(&api, &mut version, &mut wanted, &kept, &mut told) => turned,
        };
        pause = match turned {
            Ok(()) => PAUSE,
            Err(error) => {
                if error.is(410) {
                    version = None;
                }
                told(Err(error));
                pause.saturating_mul(2).min(LONGEST)
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// The list, if there is none yet, and a watch from there until it ends.
async fn turn<K, T>(
    api: &Api<K>,
    version: &mut Option<String>,
    wanted: &mut watch::Receiver<u64>,
    kept: &impl Fn(K) -> T,
    told: &mut impl FnMut(Result<Step<T>, Failed>),
) -> Result<(), Failed>
where
    K: kube::Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let from = match version.take() {
        Some(from) => from,
        None => {
            let (listed, at) = list(api, kept).await?;
            told(Ok((Some(Change::All(listed)), number(&at))));
            at
        }
    };
    *version = Some(from.clone());
    let mut at = from.clone();
    let events = answered(api.watch(&WatchParams::default(), &from)).await?;
    let mut events = std::pin::pin!(events);
    loop {
        let event = tokio::select! {
            more = seen_elsewhere(wanted) => {
                if more > number(&at) {
                    *version = None;
                    return Ok(());
                }
                continue;
            }
            event = tokio::time::timeout(SILENT, events.next()) => event,
        };
        let version_of = |object: &K| object.meta().resource_version.clone().unwrap_or_default();
        let change = match event {
            Ok(Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)))) => {
                at = version_of(&object);
                Some(Change::Put(kept(object)))
            }
            Ok(Some(Ok(WatchEvent::Deleted(object)))) => {
                at = version_of(&object);
                Some(Change::Gone(kept(object)))
            }
            Ok(Some(Ok(WatchEvent::Bookmark(mark)))) => {
                at = mark.metadata.resource_version;
                None
            }
            Ok(Some(Ok(WatchEvent::Error(status)))) => {
                return Err(Failed::Refused {
                    code: status.code,
                    message: status.message,
                })
            }
            Ok(Some(Err(error))) => return Err(Failed::Absent(error.to_string())),
            Ok(None) | Err(_) => return Ok(()),
        };
        *version = Some(at.clone());
        told(Ok((change, number(&at))));
    }
}

async fn list<K, T>(api: &Api<K>, kept: &impl Fn(K) -> T) -> Result<(Vec<T>, String), Failed>
where
    K: kube::Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let mut listed = Vec::new();
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let part = answered(api.list(&page)).await?;
        listed.extend(part.items.into_iter().map(kept));
        match part.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok((listed, part.metadata.resource_version.unwrap_or_default())),
        }
    }
}

/// What somebody has seen, when somebody says so.
async fn seen_elsewhere(wanted: &mut watch::Receiver<u64>) -> u64 {
    if wanted.changed().await.is_err() {
        return std::future::pending().await;
    }
    *wanted.borrow_and_update()
}

/// Versions are compared as numbers within a kind, as Kubernetes documents since 1.35 and etcd always had it.
fn number(version: &str) -> u64 {
    version.parse().unwrap_or(0)
}
