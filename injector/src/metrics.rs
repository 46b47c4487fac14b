//! What the injector counts, for Prometheus. The only module that names its library.
//!
//! Refuses every label that is not a word of ours: nothing that a pod or its author said becomes one. Invariants:
//! counting never waits and decides nothing; gauges are read when they are asked for, so they are never old.

use std::time::Duration;

use prometheus::{Histogram, IntCounterVec, IntGauge, IntGaugeVec};
use sidegate_cluster::numbers::Numbers;

use crate::kubernetes::Counted;
use crate::review::Outcome;
use crate::standing::Reason;

/// Seconds an admission may take: the bar, the handler's end, the API server's.
const SECONDS: [f64; 9] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0];
/// Bytes of a patch.
const BYTES: [f64; 6] = [1_024.0, 4_096.0, 8_192.0, 16_384.0, 65_536.0, 1_048_576.0];

/// What turned a request away before it was understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Too large a body.
    Body,
    /// Too slow a body.
    Slow,
    /// Too many at once.
    InFlight,
    /// Too many of one source.
    Source,
    /// It took too long to answer.
    Time,
    /// It is no review.
    Malformed,
}

impl Limit {
    fn as_str(self) -> &'static str {
        match self {
            Limit::Body => "body",
            Limit::Slow => "slow",
            Limit::InFlight => "in_flight",
            Limit::Source => "source",
            Limit::Time => "time",
            Limit::Malformed => "malformed",
        }
    }
}

/// What became of a pod that was to be evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evicted {
    /// It goes.
    Gone,
    /// Its disruption budget keeps it for now.
    Kept,
    /// The API server said no, or nothing.
    Failed,
}

impl Evicted {
    fn as_str(self) -> &'static str {
        match self {
            Evicted::Gone => "evicted",
            Evicted::Kept => "kept",
            Evicted::Failed => "failed",
        }
    }
}

/// What is asked for when the numbers are read.
#[derive(Debug, Clone, Default)]
pub struct Now {
    /// When the certificate that is served ends, seconds since 1970.
    pub not_after: i64,
    /// Whether some live caBundle does not take what is served.
    pub mismatch: bool,
    /// When this injector last answered itself, seconds since 1970.
    pub probed: i64,
    /// Whether this replica leads.
    pub leads: bool,
    /// Seconds since each kind's watch was lost; 0: it is followed.
    pub ages: Vec<(&'static str, i64)>,
    /// Pods without a valid sidecar, where this replica counts them and could.
    pub unprotected: Option<Counted>,
}

/// Everything counted in one injector.
pub struct Metrics {
    own: Numbers,
    admissions: IntCounterVec,
    turned_away: IntCounterVec,
    evictions: IntCounterVec,
    seconds: Histogram,
    patch: Histogram,
    in_flight: IntGauge,
    not_after: IntGauge,
    mismatch: IntGauge,
    probed: IntGauge,
    leads: IntGauge,
    ages: IntGaugeVec,
    unprotected: IntGaugeVec,
    looked: IntGaugeVec,
}

impl Metrics {
    /// Nothing counted yet.
    ///
    /// # Errors
    /// Where two of them have one name: a mistake in this file.
    pub fn new() -> Result<Metrics, String> {
        Self::make().map_err(|error| error.to_string())
    }

    fn make() -> prometheus::Result<Metrics> {
        let own = Numbers::of("sidegate_injector")?;
        Ok(Metrics {
            admissions: own.counters(
                "admissions_total",
                "Reviews that were answered, by what became of them and why.",
                &["webhook", "outcome", "reason"],
            )?,
            turned_away: own.counters(
                "turned_away_total",
                "Requests that were not understood or not looked at.",
                &["limit"],
            )?,
            evictions: own.counters(
                "evictions_total",
                "Pods without a valid sidecar that were asked to go, where that is switched on, by what became of it.",
                &["outcome"],
            )?,
            seconds: own.histogram(
                "admission_seconds",
                "From a review's first byte to its answer.",
                &SECONDS,
            )?,
            patch: own.histogram("patch_bytes", "What was changed in pods that were injected.", &BYTES)?,
            in_flight: own.gauge("in_flight", "Reviews under way now.")?,
            not_after: own.gauge(
                "certificate_not_after_seconds",
                "When the certificate that is served ends, seconds since 1970; 0: there is none.",
            )?,
            mismatch: own.gauge(
                "ca_bundle_mismatch",
                "1: some webhook configuration does not take the certificate that is served.",
            )?,
            probed: own.gauge(
                "self_probe_seconds",
                "When this injector last answered itself as the API server would call it, seconds since 1970.",
            )?,
            leads: own.gauge(
                "leader",
                "1: this replica leads: it renews the certificates and counts unprotected pods.",
            )?,
            ages: own.gauges(
                "cache_age_seconds",
                "Since what is known of a kind was lost sight of; 0: it is followed.",
                &["kind"],
            )?,
            unprotected: own.gauges(
                "unprotected_pods",
                "Pods of labelled namespaces without a valid sidecar, by reason; told by the leader alone.",
                &["reason"],
            )?,
            looked: own.gauges(
                "unprotected_looked_seconds",
                "When pods without a valid sidecar were last counted, seconds since 1970; told by the leader alone.",
                &[],
            )?,
            own,
        })
    }

    /// A review was answered.
    pub fn answered(&self, webhook: &'static str, outcome: &Outcome, took: Duration) {
        let labels = [webhook, outcome.word, outcome.rule];
        self.admissions.with_label_values(&labels).inc();
        self.seconds.observe(took.as_secs_f64());
        if outcome.word == "injected" {
            // Sizes of patches are far below what a float counts exactly.
            self.patch
                .observe(f64::from(u32::try_from(outcome.patch).unwrap_or(u32::MAX)));
        }
    }

    /// A request was turned away.
    pub fn turned_away(&self, limit: Limit) {
        self.turned_away.with_label_values(&[limit.as_str()]).inc();
    }

    /// A pod was asked to go.
    pub fn evicted(&self, outcome: Evicted) {
        self.evictions.with_label_values(&[outcome.as_str()]).inc();
    }

    /// One more is under way, until the answer is dropped.
    pub fn begun(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    /// Everything in the text format, with the gauges as they are now; the second is its content type.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn text(&self, now: &Now) -> Result<(Vec<u8>, String), String> {
        self.not_after.set(now.not_after);
        self.mismatch.set(i64::from(now.mismatch));
        self.probed.set(now.probed);
        self.leads.set(i64::from(now.leads));
        for (kind, age) in &now.ages {
            self.ages.with_label_values(&[*kind]).set(*age);
        }
        // What is not known is not told: an old number would read as a good one.
        self.unprotected.reset();
        self.looked.reset();
        if let Some(counted) = &now.unprotected {
            for reason in Reason::ALL {
                let count = counted.pods.get(&reason).copied().unwrap_or(0);
                self.unprotected.with_label_values(&[reason.as_str()]).set(count);
            }
            self.looked.with_label_values::<&str>(&[]).set(counted.at);
        }
        self.own.text()
    }
}

/// A review under way.
pub struct InFlight(IntGauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}
