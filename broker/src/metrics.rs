//! What the broker counts, for Prometheus. The only module that names its library.
//!
//! Refuses every label that is not one of ours: labels are words of ours or names of configured objects, never what a caller said. The invariants:
//! counting never waits and decides nothing; gauges are read when they are asked for, so they are never old.

mod gauges;

use std::sync::Arc;
use std::time::Duration;

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use sidegate_cluster::numbers::Numbers;
use sidegate_policies::wire::NackClass;

use crate::attest::{NotAttested, Step, Timed};

/// Seconds an attestation may take: a look-up, an API server that answers, one that does not.
const ATTEST_BUCKETS: [f64; 9] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.0, 10.0];

/// Seconds until a sidecar has what it was sent.
const PUSH_BUCKETS: [f64; 9] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 1.0, 3.0, 10.0];

/// Everything counted in one broker.
pub struct Metrics {
    own: Numbers,
    providers: Providers,
    exchanges: IntCounterVec,
    attest: HistogramVec,
    push: Histogram,
    lockdown: Histogram,
    conflicts: IntCounter,
    leases: IntCounterVec,
    nacks: IntCounterVec,
    tls_not_after: IntGauge,
    over_budget: IntCounter,
    streams: IntGauge,
    egress: IntGaugeVec,
    classes: IntGauge,
    pinned: IntGauge,
    active: IntGaugeVec,
    waiting: IntGauge,
    revisions: IntGaugeVec,
    usable: IntGaugeVec,
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
        let own = Numbers::of("sidegate_broker")?;
        Ok(Metrics {
            providers: Providers::new(&own)?,
            exchanges: own.counters(
                "exchanges_total",
                "Calls of the token endpoint that came as far as attestation.",
                &["result", "reason"],
            )?,
            attest: own.histograms(
                "attest_seconds",
                "How long each step of an attestation took, and all of it, whatever came of it.",
                &ATTEST_BUCKETS,
                &["step"],
            )?,
            push: own.histogram(
                "push_seconds",
                "From the offer of a bundle until its sidecar enforces it.",
                &PUSH_BUCKETS,
            )?,
            lockdown: own.histogram(
                "lockdown_seconds",
                "From a deny set in force here until a sidecar enforces it and the sessions it ends are gone.",
                &PUSH_BUCKETS,
            )?,
            conflicts: own.counter("key_conflicts_total", "Second keys for a pinned instance, refused.")?,
            leases: own.counters("leases_total", "Leases asked for.", &["result"])?,
            nacks: own.counters("nacks_total", "Bundles that a sidecar did not take.", &["class"])?,
            tls_not_after: own.gauge(
                "tls_not_after_seconds",
                "When the certificate that is served ends, seconds since 1970.",
            )?,
            over_budget: own.counter(
                "over_budget_total",
                "Calls turned away because somebody called too often.",
            )?,
            streams: own.gauge("streams", "Sidecars connected now.")?,
            egress: own.gauges(
                "egress_enforced",
                "Pods of tier Enforced connected now, by what their sidecars measured of their fence.",
                &["state"],
            )?,
            pinned: own.gauge(
                "images_pinned",
                "1: a sidecar's image must be one of the allowed digests; 0: any image is taken.",
            )?,
            classes: own.gauge("bundle_classes", "Different bundles made of the present objects.")?,
            active: own.gauges("leases_active", "Leases out now.", &["kind"])?,
            waiting: own.gauge("requests_waiting", "Requests that wait for people.")?,
            revisions: own.gauges("revision", "Revision in force.", &["of"])?,
            usable: own.gauges(
                "key_usable_in_seconds",
                "Until the newest key of a ring may sign; 0 or less: it signs.",
                &["ring"],
            )?,
            own,
        })
    }

    /// An attestation, and what came of it.
    pub fn attested(&self, took: Duration, outcome: Result<(), &NotAttested>) {
        self.attest.with_label_values(&["all"]).observe(took.as_secs_f64());
        let (result, reason) = match outcome {
            Ok(()) => ("granted", "none"),
            Err(NotAttested::Token(_)) => ("refused", "token"),
            Err(NotAttested::Review(_)) => ("refused", "review"),
            Err(NotAttested::Pod(_)) => ("refused", "pod"),
            Err(NotAttested::Shape(_)) => ("refused", "shape"),
            Err(NotAttested::Image(_)) => ("refused", "image"),
            Err(NotAttested::Fence(_)) => ("refused", "fence"),
            Err(NotAttested::RestartNotSeen) => ("refused", "restart_not_seen"),
            Err(NotAttested::TooMany) => ("later", "too_many"),
            Err(NotAttested::Unavailable(_)) => ("later", "unavailable"),
        };
        if matches!(outcome, Err(NotAttested::RestartNotSeen)) {
            self.conflicts.inc();
        }
        self.exchanges.with_label_values(&[result, reason]).inc();
    }

    /// A lease was given, or not.
    pub fn lease(&self, granted: bool) {
        let result = if granted { "granted" } else { "refused" };
        self.leases.with_label_values(&[result]).inc();
    }

    /// A sidecar did not take its bundle.
    pub fn nack(&self, class: NackClass) {
        self.nacks.with_label_values(&[class.as_str()]).inc();
    }

    /// A sidecar enforces the bundle it was offered so long ago.
    pub fn pushed(&self, took: Duration) {
        self.push.observe(took.as_secs_f64());
    }

    /// A sidecar enforces the deny set that is in force here for so long.
    pub fn locked(&self, took: Duration) {
        self.lockdown.observe(took.as_secs_f64());
    }

    /// What the steps of attestation are told to.
    pub fn steps(&self) -> Arc<dyn Timed> {
        Arc::new(Steps(self.attest.clone()))
    }
}

/// Seconds by step.
struct Steps(HistogramVec);

impl Timed for Steps {
    fn took(&self, step: Step, time: Duration) {
        self.0.with_label_values(&[step.as_str()]).observe(time.as_secs_f64());
    }
}

/// What is counted of providers; their label is the name of a TokenIssuer, which an administrator chose.
struct Providers {
    requests: IntCounterVec,
    open: IntGaugeVec,
    age: IntGaugeVec,
}

impl Providers {
    fn new(own: &Numbers) -> prometheus::Result<Self> {
        Ok(Providers {
            requests: own.counters(
                "provider_requests_total",
                "Exchanges tried at a provider, by what came of them.",
                &["issuer", "class"],
            )?,
            open: own.gauges(
                "provider_circuit_open",
                "1: it failed too often and is left alone for now.",
                &["issuer"],
            )?,
            age: own.gauges(
                "jwks_age_seconds",
                "Since the keys of an issuer whose tokens are believed were read.",
                &["issuer"],
            )?,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::jwt::Refused;

    #[test]
    fn outcomes_are_counted_by_words_of_ours() {
        let metrics = Metrics::new().unwrap();
        metrics.attested(Duration::from_millis(3), Ok(()));
        metrics.attested(Duration::ZERO, Err(&NotAttested::RestartNotSeen));
        metrics.attested(Duration::ZERO, Err(&NotAttested::Token(Refused::Signature)));
        metrics.lease(true);
        metrics.nack(NackClass::Hash);
        for step in Step::ALL {
            metrics.steps().took(step, Duration::from_millis(2));
        }
        metrics.pushed(Duration::from_millis(20));
        metrics.locked(Duration::from_millis(200));
        metrics.tls_not_after.set(1_800_000_000);
        let text = String::from_utf8(metrics.own.text().unwrap().0).unwrap();
        for line in [
            r#"sidegate_broker_exchanges_total{reason="none",result="granted"} 1"#,
            r#"sidegate_broker_exchanges_total{reason="token",result="refused"} 1"#,
            "sidegate_broker_key_conflicts_total 1",
            r#"sidegate_broker_attest_seconds_count{step="all"} 3"#,
            r#"sidegate_broker_attest_seconds_count{step="review"} 1"#,
            r#"sidegate_broker_attest_seconds_count{step="key"} 1"#,
            r#"sidegate_broker_nacks_total{class="hash"} 1"#,
            r#"sidegate_broker_push_seconds_bucket{le="0.025"} 1"#,
            r#"sidegate_broker_lockdown_seconds_bucket{le="0.1"} 0"#,
            r#"sidegate_broker_lockdown_seconds_bucket{le="0.3"} 1"#,
            "sidegate_broker_tls_not_after_seconds 1800000000",
            r#"sidegate_broker_leases_total{result="granted"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
