//! What the broker counts, for Prometheus. The only module that names its library.
//!
//! Refuses every label that is not one of ours: labels are words of enums, never what a caller said. The invariants:
//! counting never waits and decides nothing; gauges are read when they are asked for, so they are never old.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Encoder as _, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::attest::NotAttested;
use crate::front::Front;
use crate::rings::RingName;

/// Seconds an attestation may take: a look-up, an API server that answers, one that does not.
const ATTEST_BUCKETS: [f64; 9] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.0, 10.0];

/// Everything counted in one broker.
pub struct Metrics {
    registry: Registry,
    exchanges: IntCounterVec,
    attest: Histogram,
    conflicts: IntCounter,
    leases: IntCounterVec,
    nacks: IntCounter,
    over_budget: IntCounter,
    streams: IntGauge,
    classes: IntGauge,
    active: IntGauge,
    waiting: IntGauge,
    revisions: IntGaugeVec,
    usable: IntGaugeVec,
}

/// A counter, gauge or histogram that its own registry takes. What is written here is right, or no test passes.
fn made<T: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<T>) -> prometheus::Result<T> {
    let metric = metric?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
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
        let registry = Registry::new_custom(Some("sidegate_broker".to_owned()), None)?;
        let own = &registry;
        let vector =
            |name: &str, help: &str, labels: &[&str]| made(own, IntCounterVec::new(Opts::new(name, help), labels));
        let gauges =
            |name: &str, help: &str, labels: &[&str]| made(own, IntGaugeVec::new(Opts::new(name, help), labels));
        let counter = |name: &str, help: &str| made(own, IntCounter::new(name, help));
        let gauge = |name: &str, help: &str| made(own, IntGauge::new(name, help));
        let attest = HistogramOpts::new(
            "attest_seconds",
            "How long it took to attest a caller, or to refuse it.",
        );
        Ok(Metrics {
            exchanges: vector(
                "exchanges_total",
                "Calls of the token endpoint that came as far as attestation.",
                &["result", "reason"],
            )?,
            attest: made(own, Histogram::with_opts(attest.buckets(ATTEST_BUCKETS.to_vec())))?,
            conflicts: counter("key_conflicts_total", "Second keys for a pinned instance, refused.")?,
            leases: vector("leases_total", "Leases asked for.", &["result"])?,
            nacks: counter("nacks_total", "Bundles that a sidecar did not take.")?,
            over_budget: counter(
                "over_budget_total",
                "Calls turned away because somebody called too often.",
            )?,
            streams: gauge("streams", "Sidecars connected now.")?,
            classes: gauge("bundle_classes", "Different bundles made of the present objects.")?,
            active: gauge("leases_active", "Leases out now.")?,
            waiting: gauge("requests_waiting", "Requests that wait for people.")?,
            revisions: gauges("revision", "Revision in force.", &["of"])?,
            usable: gauges(
                "key_usable_in_seconds",
                "Until the newest key of a ring may sign; 0 or less: it signs.",
                &["ring"],
            )?,
            registry,
        })
    }

    /// An attestation, and what came of it.
    pub fn attested(&self, took: Duration, outcome: Result<(), &NotAttested>) {
        self.attest.observe(took.as_secs_f64());
        let (result, reason) = match outcome {
            Ok(()) => ("granted", "none"),
            Err(NotAttested::Token(_)) => ("refused", "token"),
            Err(NotAttested::Review(_)) => ("refused", "review"),
            Err(NotAttested::Pod(_)) => ("refused", "pod"),
            Err(NotAttested::Shape(_)) => ("refused", "shape"),
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
    pub fn nack(&self) {
        self.nacks.inc();
    }

    /// Everything in the text format, with the gauges as they are now; the second is its content type.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn text(&self, front: &Front) -> Result<(Vec<u8>, String), String> {
        let (now, now_ms) = (front.clock.now(), front.clock.now_ms());
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let index = front.index();
        self.streams.set(number(front.streams.list().len()));
        self.classes.set(number(index.classes()));
        self.active.set(number(front.leases.active(now_ms)));
        self.waiting.set(number(front.approvals.waiting()));
        for (of, revision) in [
            ("bundle", index.revision()),
            ("deny", front.lockdowns.now().set.revision),
        ] {
            let revision = i64::try_from(revision).unwrap_or(i64::MAX);
            self.revisions.with_label_values(&[of]).set(revision);
        }
        for ring in RingName::ALL {
            let usable = front.issuer.ring(ring).usable_from().saturating_sub(now);
            self.usable.with_label_values(&[ring.as_str()]).set(usable);
        }
        let refused = front.budget.refused();
        self.over_budget.inc_by(refused.saturating_sub(self.over_budget.get()));
        let mut text = Vec::new();
        let encoder = TextEncoder::new();
        let written = encoder.encode(&self.registry.gather(), &mut text);
        written.map_err(|error| error.to_string())?;
        Ok((text, encoder.format_type().to_owned()))
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
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&metrics.registry.gather(), &mut text)
            .unwrap();
        let text = String::from_utf8(text).unwrap();
        for line in [
            r#"sidegate_broker_exchanges_total{reason="none",result="granted"} 1"#,
            r#"sidegate_broker_exchanges_total{reason="token",result="refused"} 1"#,
            "sidegate_broker_key_conflicts_total 1",
            "sidegate_broker_attest_seconds_count 3",
            r#"sidegate_broker_leases_total{result="granted"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
