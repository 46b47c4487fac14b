//! One named Secret that replicas share: as last heard of, and written only as it was read.
//!
//! Refuses to write over what it has not seen, and what its reader cannot read: then what was read before stays. The
//! invariants: what is in memory is what the API server held, never older than what was in memory before; it counts
//! as current only for a minute after the API server was last asked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::ByteString;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use zeroize::{Zeroize as _, Zeroizing};

use crate::watch::{follow_one, Change};
use crate::{answered, Failed, Unusable};

/// Asked anew so often, besides the watch: a watch that went silent looks like one with nothing to tell.
const EVERY: Duration = Duration::from_secs(10);
/// What was not confirmed for so long may have been replaced.
const STALE: Duration = Duration::from_secs(60);

/// The entries of a Secret. No Debug: they are secret.
pub type Entries = BTreeMap<String, Zeroizing<Vec<u8>>>;

/// Takes what the Secret holds now, or says why it cannot.
pub type Reader = Box<dyn Fn(&Entries) -> Result<(), String> + Send + Sync>;

/// One Secret of the own namespace.
pub struct Named {
    api: Api<Secret>,
    name: String,
    reader: Reader,
    known: Mutex<Known>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Known {
    entries: Entries,
    version: u64,
    /// When it was last changed, by our clock.
    taken: Option<Instant>,
    /// When the API server was last asked and said that this is what it holds.
    confirmed: Option<Instant>,
}

/// Why an entry was not written.
#[derive(Debug, thiserror::Error)]
pub enum NotPut {
    /// Somebody else wrote first. What they wrote was taken.
    #[error("another replica was first")]
    Changed,
    /// The API server.
    #[error(transparent)]
    Failed(#[from] Failed),
}

impl Named {
    /// A Secret that nobody has read yet; [`Named::run`] does.
    pub fn unread(client: Client, namespace: &str, name: String, reader: Reader) -> Arc<Self> {
        Arc::new(Named {
            api: Api::namespaced(client, namespace),
            name,
            reader,
            known: Mutex::default(),
            changed: watch::channel(0).0,
        })
    }

    /// Reads the Secret for the first time.
    ///
    /// # Errors
    /// It is not there, or holds what its reader cannot read.
    pub async fn open(client: Client, namespace: &str, name: String, reader: Reader) -> Result<Arc<Self>, Unusable> {
        let named = Named::unread(client, namespace, name, reader);
        match named.look().await {
            Ok(()) if named.known().confirmed.is_some() => Ok(named),
            Ok(()) => Err(Unusable(format!(
                "Secret {namespace}/{} does not hold what it should; put it back from a copy: it is not replaced",
                named.name
            ))),
            Err(error) if error.is(404) => Err(Unusable(format!(
                "Secret {namespace}/{0} is not there. The chart makes it; without the chart: kubectl -n {namespace} \
                 create secret generic {0}",
                named.name
            ))),
            Err(error) => Err(Unusable(format!("Secret {namespace}/{}: {error}", named.name))),
        }
    }

    /// One entry, as last heard of.
    pub fn entry(&self, name: &str) -> Option<Zeroizing<Vec<u8>>> {
        self.known().entries.get(name).cloned()
    }

    /// One entry, if this holds at the moment it is read: nothing is taken meanwhile.
    pub fn entry_if(&self, name: &str, holds: impl FnOnce() -> bool) -> Option<Option<Zeroizing<Vec<u8>>>> {
        let known = self.known();
        holds().then(|| known.entries.get(name).cloned())
    }

    /// Whether the API server said lately that this is what it holds.
    pub fn is_current(&self) -> bool {
        current(self.known().confirmed, Instant::now())
    }

    /// Told of every change.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Writes one entry where it still holds `before`, and takes it.
    ///
    /// # Errors
    /// Somebody else was first, or the API server does not take it.
    pub async fn put(&self, entry: &str, before: Option<&[u8]>, after: &[u8]) -> Result<(), NotPut> {
        let asked = Instant::now();
        let mut secret = answered(self.api.get(&self.name)).await?;
        let data = secret.data.get_or_insert_default();
        if data.get(entry).map(|value| value.0.as_slice()) != before {
            self.take(secret, Some(asked));
            return Err(NotPut::Changed);
        }
        if let Some(mut old) = data.insert(entry.to_owned(), ByteString(after.to_vec())) {
            old.0.zeroize();
        }
        let asked = Instant::now();
        let put = answered(self.api.replace(&self.name, &PostParams::default(), &secret)).await;
        wipe(secret);
        match put {
            Ok(secret) => {
                self.take(secret, Some(asked));
                Ok(())
            }
            Err(error) if error.is(409) => {
                self.look().await?;
                Err(NotPut::Changed)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Follows it until told to stop.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let told = |change: Result<Change<Secret>, _>| match change {
            Ok(Change::All(listed)) => listed.into_iter().for_each(|secret| self.take(secret, None)),
            Ok(Change::Put(secret)) => self.take(secret, None),
            // It may come back; what is in memory stops counting in a minute.
            Ok(Change::Gone(_)) => tracing::error!(secret = self.name, "a Secret that is needed was deleted"),
            Err(error) => tracing::warn!(secret = self.name, %error, "a Secret cannot be followed now"),
        };
        let watched = follow_one(self.api.clone(), &self.name, stop.clone(), told);
        let asked = async {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(EVERY) => {}
                }
                if let Err(error) = self.look().await {
                    tracing::warn!(secret = self.name, %error, "a Secret cannot be read now");
                }
            }
        };
        tokio::join!(watched, asked);
    }

    async fn look(&self) -> Result<(), Failed> {
        let asked = Instant::now();
        let secret = answered(self.api.get(&self.name)).await?;
        self.take(secret, Some(asked));
        Ok(())
    }

    /// Takes what the API server told; `asked`: as the answer to a question of then, and not by the watch.
    fn take(&self, secret: Secret, asked: Option<Instant>) {
        let (version, entries) = parts(secret);
        let mut known = self.known();
        let older = version < known.version && asked.is_none_or(|asked| known.taken.is_some_and(|taken| asked < taken));
        if older {
            return;
        }
        let first = known.taken.is_none();
        if first || entries != known.entries {
            if let Err(error) = (self.reader)(&entries) {
                tracing::error!(
                    secret = self.name,
                    error,
                    "a Secret cannot be read: what was read before stays"
                );
                return;
            }
            known.entries = entries;
            self.changed
                .send_modify(|generation| *generation = generation.wrapping_add(1));
        }
        known.version = version;
        known.taken = Some(Instant::now());
        known.confirmed = known.confirmed.max(asked);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn current(confirmed: Option<Instant>, now: Instant) -> bool {
    confirmed.is_some_and(|confirmed| now.saturating_duration_since(confirmed) < STALE)
}

/// Version and entries; resource versions of one object are compared as numbers, as Kubernetes documents.
fn parts(secret: Secret) -> (u64, Entries) {
    let version = secret.metadata.resource_version.as_deref().unwrap_or_default();
    let version = version.parse().unwrap_or(0);
    let entries = secret.data.unwrap_or_default().into_iter();
    (
        version,
        entries.map(|(name, value)| (name, Zeroizing::new(value.0))).collect(),
    )
}

fn wipe(secret: Secret) {
    drop(parts(secret));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn secret(version: u64, value: &str) -> Secret {
        let mut secret = Secret::default();
        secret.metadata.resource_version = Some(version.to_string());
        let data = secret.data.get_or_insert_default();
        data.insert("entry".to_owned(), ByteString(value.into()));
        secret
    }

    fn named(reader: Reader) -> Named {
        // Nothing is listening there, and nothing here asks.
        let config = kube::Config::new(http::Uri::from_static("http://127.0.0.1:1"));
        Named {
            api: Api::namespaced(Client::try_from(config).unwrap(), "sidegate-system"),
            name: "keys".to_owned(),
            reader,
            known: Mutex::default(),
            changed: watch::channel(0).0,
        }
    }

    fn held(named: &Named) -> String {
        String::from_utf8(named.entry("entry").unwrap().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn what_comes_late_takes_nothing_back() {
        let named = named(Box::new(|_| Ok(())));
        let early = Instant::now();
        named.take(secret(9, "nine"), Some(early));
        named.take(secret(10, "ten"), None);
        named.take(secret(9, "nine"), None);
        assert_eq!(held(&named), "ten", "an event that was under way");
        named.take(secret(9, "nine"), Some(early));
        assert_eq!(held(&named), "ten", "an answer that was under way");
        named.take(secret(11, "eleven"), None);
        assert_eq!(held(&named), "eleven");
        // Restored from a copy: whoever is asked afterwards tells the truth.
        named.take(secret(2, "two"), Some(Instant::now()));
        assert_eq!(held(&named), "two");
    }

    #[tokio::test]
    async fn what_cannot_be_read_stays_out_and_confirms_nothing() {
        let read = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&read);
        let named = named(Box::new(move |entries: &Entries| {
            count.fetch_add(1, Ordering::Relaxed);
            let torn = entries.get("entry").is_some_and(|entry| entry.is_empty());
            if torn {
                Err("torn".to_owned())
            } else {
                Ok(())
            }
        }));
        named.take(secret(1, "good"), Some(Instant::now()));
        let confirmed = named.known().confirmed;
        named.take(secret(2, ""), Some(Instant::now()));
        assert_eq!(held(&named), "good");
        assert_eq!(named.known().confirmed, confirmed);
        named.take(secret(1, "good"), Some(Instant::now()));
        assert_eq!(read.load(Ordering::Relaxed), 2, "the same is not read again");
    }

    #[tokio::test]
    async fn a_replica_that_is_behind_signs_nothing() {
        let named = named(Box::new(|_| Ok(())));
        assert!(!named.is_current(), "never read");
        named.take(secret(1, "one"), None);
        assert!(!named.is_current(), "a watch alone may be a silent one");
        let asked = Instant::now();
        named.take(secret(1, "one"), Some(asked));
        assert!(named.is_current());
        assert!(current(Some(asked), asked + STALE - Duration::from_millis(1)));
        assert!(!current(Some(asked), asked + STALE));
        assert!(EVERY * 3 < STALE, "one answer that is lost stops nobody");
    }
}
