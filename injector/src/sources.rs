//! How much of the injector one source may use: connections and requests by address, whoever it is.
//!
//! The API server cannot be told from others on most clusters, and an agent can reach the Service. Refuses what is over;
//! refusing costs a look at a small table. Where the last places of all are at stake, whoever has the most gives one back, so
//! that several who hold connections and say little keep nobody out. Invariant: the table is bounded, and a full one gives
//! what it does not know one share together, so that inventing addresses buys nothing.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio_util::sync::CancellationToken;

/// Requests of one source: as many a second, and as many at once after a rest. An API server at its fastest stays below.
const RATE: f64 = 3_000.0;
/// Connections of one source, of 2,048 in all.
const CONNECTIONS: usize = 512;
/// Sources that are told apart.
const SOURCES: usize = 1_024;
/// Whom nobody is told from.
const OTHERS: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

struct Source {
    left: f64,
    filled: Instant,
    /// What ends its connections, the oldest first.
    connections: BTreeMap<u64, CancellationToken>,
}

/// All sources.
#[derive(Default)]
pub struct Sources {
    table: Mutex<HashMap<IpAddr, Source>>,
    /// Of the next connection.
    next: AtomicU64,
}

/// A connection of a source, until it is dropped.
pub struct Connection {
    sources: Arc<Sources>,
    address: IpAddr,
    id: u64,
}

impl Sources {
    /// Counts a connection, which `end` ends; nothing: it has too many.
    pub fn connect(self: &Arc<Self>, address: IpAddr, now: Instant, end: CancellationToken) -> Option<Connection> {
        let mut table = self.table();
        let address = known(&mut table, address.to_canonical(), now);
        let source = table.get_mut(&address)?;
        if source.connections.len() >= CONNECTIONS {
            return None;
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        source.connections.insert(id, end);
        Some(Connection {
            sources: Arc::clone(self),
            address,
            id,
        })
    }

    /// Ends the oldest connection of whoever has the most: for the next one there is little room.
    pub fn make_room(&self) {
        let table = self.table();
        let most = table.values().max_by_key(|source| source.connections.len());
        // It is counted until it is over, and not asked twice.
        let asked = most.and_then(|source| source.connections.values().find(|end| !end.is_cancelled()));
        if let Some(end) = asked {
            end.cancel();
        }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<IpAddr, Source>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// Takes one request of its source; false: it asks too often.
    pub fn take(&self, now: Instant) -> bool {
        let mut table = self.sources.table();
        let Some(source) = table.get_mut(&self.address) else {
            return false;
        };
        source.fill(now);
        if source.left < 1.0 {
            return false;
        }
        source.left -= 1.0;
        true
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(source) = self.sources.table().get_mut(&self.address) {
            source.connections.remove(&self.id);
        }
    }
}

impl Source {
    fn fill(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.filled).as_secs_f64();
        self.left = (self.left + since * RATE).min(RATE);
        self.filled = now;
    }
}

/// The address under which a source is counted.
fn known(table: &mut HashMap<IpAddr, Source>, address: IpAddr, now: Instant) -> IpAddr {
    if table.len() >= SOURCES && !table.contains_key(&address) {
        // Whoever rests and holds nothing is forgotten: it would have all of its share again.
        table.retain(|_, source| {
            source.fill(now);
            !source.connections.is_empty() || source.left < RATE
        });
    }
    let full = table.len() >= SOURCES && !table.contains_key(&address);
    let address = if full { OTHERS } else { address };
    table.entry(address).or_insert(Source {
        left: RATE,
        filled: now,
        connections: BTreeMap::new(),
    });
    address
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(number: u32) -> IpAddr {
        Ipv4Addr::from(number).into()
    }

    fn connect(sources: &Arc<Sources>, number: u32, now: Instant) -> Option<Connection> {
        sources.connect(at(number), now, CancellationToken::new())
    }

    #[test]
    fn one_source_takes_its_share_and_leaves_that_of_others() {
        let (sources, start) = (Arc::new(Sources::default()), Instant::now());
        let busy = connect(&sources, 1, start).unwrap();
        let taken = (0..10_000).take_while(|_| busy.take(start)).count();
        assert_eq!(taken, 3_000);
        assert!(connect(&sources, 2, start).unwrap().take(start));
        assert!(busy.take(start + Duration::from_millis(1)), "it comes back with time");
        let many: Vec<_> = (0..600).filter_map(|_| connect(&sources, 1, start)).collect();
        assert_eq!(many.len(), 511, "with the first one, 512");
        assert!(connect(&sources, 2, start).is_some());
        drop(many);
        assert!(connect(&sources, 1, start).is_some());
    }

    #[test]
    fn inventing_addresses_buys_nothing() {
        let (sources, start) = (Arc::new(Sources::default()), Instant::now());
        let held: Vec<_> = (1..=2_000)
            .filter_map(|number| connect(&sources, number, start))
            .collect();
        assert!(sources.table().len() <= SOURCES + 1);
        assert_eq!(held.len(), 1_024 + 512, "those beyond share one share");
        drop(held);
        // They rest and hold nothing: a new one is told apart again.
        let late = connect(&sources, 9_999, start + Duration::from_secs(2)).unwrap();
        assert_eq!(late.address, at(9_999));
        assert_eq!(sources.table().len(), 1);
    }

    #[test]
    fn whoever_has_the_most_makes_room() {
        let (sources, start) = (Arc::new(Sources::default()), Instant::now());
        let hold = |number: u32, count: usize| -> Vec<(Connection, CancellationToken)> {
            let ends = (0..count).map(|_| CancellationToken::new());
            ends.filter_map(|end| Some((sources.connect(at(number), start, end.clone())?, end)))
                .collect()
        };
        let (few, many) = (hold(1, 20), hold(2, 30));
        let ended = |held: &[(Connection, CancellationToken)]| {
            let ended = held.iter().map(|(_, end)| end.is_cancelled());
            ended.collect::<Vec<_>>()
        };
        sources.make_room();
        sources.make_room();
        assert_eq!(ended(&many).iter().filter(|ended| **ended).count(), 2);
        assert!(ended(&many).starts_with(&[true, true]), "the oldest go");
        assert!(!ended(&few).contains(&true));
    }
}
