//! Whether the fence still stands: the sidecar may not read the table, so it asks it.
//!
//! Every ten seconds it dials the place where nobody is, for which the table has two agreed refusals. Refuses to take
//! silence, or any other answer, for a fence. The invariants: a state is what was measured last, and Unknown once that is
//! half a minute old; nothing decides by it here, it is told.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use sidegate_policies::wire::{Egress, Enforced, EGRESS_COUNTS};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{AGREED, NOWHERE};
use crate::authority::Authority;

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(10);
/// A table answers at once; a machine that is busy may take a moment.
const AT_ONCE: Duration = Duration::from_secs(2);

/// What was measured.
#[derive(Debug, Default)]
pub struct Canary(Mutex<Option<Seen>>);

#[derive(Debug, Clone, Copy)]
struct Seen {
    egress: Egress,
    at: Instant,
}

impl Canary {
    /// What to tell; nothing where there is no fence to look for.
    pub fn told(&self) -> Option<Egress> {
        self.told_after(Duration::ZERO)
    }

    fn told_after(&self, more: Duration) -> Option<Egress> {
        let seen = (*self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        let old = seen.at.elapsed().saturating_add(more) > EGRESS_COUNTS;
        Some(match old {
            true => Egress {
                state: Enforced::Unknown,
                ..seen.egress
            },
            false => seen.egress,
        })
    }

    /// Takes what was found, and answers whether it is another than before.
    fn take(&self, state: Enforced) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = seen.map(|seen| seen.egress).unwrap_or_default();
        let looks = before.looks.saturating_add(1);
        *seen = Some(Seen {
            egress: Egress { state, looks },
            at: Instant::now(),
        });
        before.state != state || before.looks == 0
    }
}

/// Looks again and again, until told to stop.
pub async fn watch(authority: Arc<Authority>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let state = look().await;
        if authority.canary.take(state) {
            match state {
                Enforced::True => tracing::info!("the fence stands"),
                Enforced::False => tracing::error!("the fence is gone, or another: agents may dial elsewhere"),
                Enforced::Unknown => tracing::warn!("whether the fence stands cannot be measured now"),
            }
        }
    }
}

/// One look; a fence that does not answer is asked once more, so that one lost packet is no alarm.
pub async fn look() -> Enforced {
    match asked().await {
        Enforced::True => Enforced::True,
        _ => asked().await,
    }
}

async fn asked() -> Enforced {
    let [reset, unreachable] = AGREED.map(|(port, agreed)| refused(port, agreed));
    let (reset, unreachable) = tokio::join!(reset, unreachable);
    reset.max(unreachable)
}

/// Whether a port gives the refusal that was agreed on.
async fn refused(port: u16, agreed: Errno) -> Enforced {
    let tried = timeout(AT_ONCE, TcpStream::connect(SocketAddr::from((NOWHERE, port)))).await;
    let error = match tried {
        Ok(Err(error)) => error.raw_os_error().map(Errno::from_raw),
        Ok(Ok(_)) | Err(_) => None,
    };
    match error {
        Some(errno) if errno == agreed => Enforced::True,
        // There was no dial at all.
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => Enforced::Unknown,
        _ => Enforced::False,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_counts_for_half_a_minute_and_silence_is_unknown() {
        let canary = Canary::default();
        assert_eq!(canary.told(), None, "nobody looks in tier Cooperative");
        assert!(canary.take(Enforced::True), "the first is news");
        assert!(!canary.take(Enforced::True));
        assert!(canary.take(Enforced::False));
        let told = |more| canary.told_after(Duration::from_secs(more)).unwrap();
        assert_eq!((told(0).state, told(0).looks), (Enforced::False, 3));
        assert_eq!(told(31).state, Enforced::Unknown);
        // Of two ports, the one that is wrong counts.
        assert_eq!(Enforced::True.max(Enforced::False), Enforced::False);
    }
}
