//! How old the broker's last word may be, and what ends when it is older: the table in `identity-and-broker.md`,
//! section 9, a column for each [`injection_profile::Staleness`].
//!
//! Refuses nothing itself: the gate asks [`Limits::judge`], the watcher ends what is overdue. Invariant: either clock
//! makes it stale, the monotonic one, which stands still while the host sleeps, and the wall clock, which jumps.

use std::sync::Arc;
use std::time::Duration;

use sidegate_policies::api::injection_profile;
use sidegate_policies::engine::TargetId;
use sidegate_policies::reason::Reason;
use tokio::time::{interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::authority::{Authority, InForce};

/// How often the watcher looks.
const EVERY: Duration = Duration::from_secs(1);

/// How long the broker may be silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From then on new sessions are refused.
    pub refuse: Duration,
    /// From then on open sessions are ended.
    pub close: Duration,
    /// From then on the bundle is void: everything is denied until another one comes.
    pub void: Duration,
    /// Targets with a valid lease are spared by the first two.
    pub spares_leased: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Limits::of(injection_profile::Staleness::Default)
    }
}

/// Who knows which targets have a lease that may be used now.
pub trait Leased: Send + Sync {
    /// Whether this one has.
    fn holds(&self, target: &TargetId) -> bool;
}

/// What the broker's silence means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Staleness {
    /// Nothing.
    Fresh,
    /// No new sessions.
    Refuse,
    /// No sessions at all.
    Close,
    /// No bundle either.
    Void,
}

impl Limits {
    /// A column of the table.
    pub fn of(how: injection_profile::Staleness) -> Self {
        let refuse = Duration::from_secs(30);
        let close = Duration::from_secs(5 * 60);
        let (close, spares_leased) = match how {
            injection_profile::Staleness::Default => (close, false),
            injection_profile::Staleness::Strict => (refuse, false),
            injection_profile::Staleness::Available => (close, true),
        };
        Limits {
            refuse,
            close,
            void: Duration::from_secs(24 * 3600),
            spares_leased,
        }
    }

    /// What a silence of this length means; `None`: the broker never spoke, or what it said counts no more.
    pub fn judge(&self, silent: Option<Duration>) -> Staleness {
        match silent {
            None => Staleness::Refuse,
            Some(silent) if silent >= self.void => Staleness::Void,
            Some(silent) if silent >= self.close => Staleness::Close,
            Some(silent) if silent >= self.refuse => Staleness::Refuse,
            Some(_) => Staleness::Fresh,
        }
    }
}

/// Watches until the sidecar stops.
pub async fn watch(authority: Arc<Authority>, stop: CancellationToken) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = Staleness::Fresh;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        // In this order: a bundle that comes meanwhile is not the one that was held through the silence.
        let held = authority.in_force();
        before = look(&authority, held, authority.silent(), before);
    }
}

/// One look: ends what this silence ends. Answers what it means.
pub(crate) fn look(
    authority: &Authority,
    held: Option<Arc<InForce>>,
    silent: Option<Duration>,
    before: Staleness,
) -> Staleness {
    let limits = authority.limits();
    let now = limits.judge(silent);
    if now != before && silent.is_some() {
        match now {
            // At every start, and after every silence that meant something.
            Staleness::Fresh => tracing::info!("the broker speaks"),
            _ => tracing::warn!(?silent, staleness = ?now, "the broker has been silent for long enough to matter"),
        }
    }
    if now >= Staleness::Close {
        // A lease chain that ends closes its sessions by itself.
        let spared = limits.spares_leased && now < Staleness::Void;
        authority.cut(Reason::Stale, |session| {
            session.cut_reason().is_none() && !(spared && authority.holds_lease(&session.target.id))
        });
    }
    if let (Staleness::Void, Some(held)) = (now, held) {
        authority.void(&held);
    }
    now
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_of_the_table_begins_where_it_says() {
        let limits = Limits::of(injection_profile::Staleness::Default);
        let at = |seconds: u64| limits.judge(Some(Duration::from_secs(seconds)));
        assert_eq!(limits.judge(None), Staleness::Refuse);
        assert_eq!((at(0), at(29)), (Staleness::Fresh, Staleness::Fresh));
        assert_eq!((at(30), at(299)), (Staleness::Refuse, Staleness::Refuse));
        assert_eq!((at(300), at(86_399)), (Staleness::Close, Staleness::Close));
        assert_eq!((at(86_400), at(1 << 40)), (Staleness::Void, Staleness::Void));
        let strict = Limits::of(injection_profile::Staleness::Strict);
        let at = |seconds: u64| strict.judge(Some(Duration::from_secs(seconds)));
        assert_eq!(
            (at(29), at(30), at(86_400)),
            (Staleness::Fresh, Staleness::Close, Staleness::Void)
        );
        let available = Limits::of(injection_profile::Staleness::Available);
        assert_eq!(
            available,
            Limits {
                spares_leased: true,
                ..limits
            }
        );
    }
}
