//! Follows objects of one kind: the list first, then its changes, and the list anew whenever the watch was lost.
//!
//! Refuses nothing. The invariant: a list counts when it is whole, so that what was deleted unheard of goes with it.

use std::future::Future;

use futures_util::StreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::runtime::WatchStreamExt as _;
use kube::Api;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

/// What became of the objects.
pub(super) enum Change<T> {
    /// These are there, and no others.
    All(Vec<T>),
    /// This one is new, or another than before.
    Put(T),
    /// This one is gone.
    Gone(T),
}

/// Tells every change of one object, by its name: of nothing else may this broker hear.
pub(super) async fn follow_one<K>(
    api: Api<K>,
    name: &str,
    stop: CancellationToken,
    told: impl FnMut(Result<Change<K>, watcher::Error>),
) where
    K: kube::Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let listing = || std::future::ready(());
    follow_those((api, only), stop, listing, |object| object, told).await;
}

/// Tells every change until told to stop. `listing` is run before each list. Only what `kept` keeps of an object waits
/// for its list to be whole.
pub(super) async fn follow<K, T, L>(
    api: Api<K>,
    stop: CancellationToken,
    listing: impl Fn() -> L,
    kept: impl Fn(K) -> T,
    told: impl FnMut(Result<Change<T>, watcher::Error>),
) where
    K: kube::Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
    L: Future<Output = ()>,
{
    follow_those((api, watcher::Config::default()), stop, listing, kept, told).await;
}

/// The same of those that a selector finds.
pub(super) async fn follow_those<K, T, L>(
    (api, which): (Api<K>, watcher::Config),
    stop: CancellationToken,
    listing: impl Fn() -> L,
    kept: impl Fn(K) -> T,
    mut told: impl FnMut(Result<Change<T>, watcher::Error>),
) where
    K: kube::Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
    L: Future<Output = ()>,
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
            Some(Ok(Event::Init)) => {
                listed.clear();
                listing().await;
            }
            Some(Ok(Event::InitApply(object))) => listed.push(kept(object)),
            Some(Ok(Event::InitDone)) => told(Ok(Change::All(std::mem::take(&mut listed)))),
            Some(Ok(Event::Apply(object))) => told(Ok(Change::Put(kept(object)))),
            Some(Ok(Event::Delete(object))) => told(Ok(Change::Gone(kept(object)))),
            Some(Err(error)) => told(Err(error)),
            None => return,
        }
    }
}
