//! What a process counts, for Prometheus: its metrics are made, registered and printed here.
//!
//! Refuses two metrics of one name. The invariant: whatever was made here is in the text.

use prometheus::core::Collector;
use prometheus::{
    Encoder as _, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, Result, TextEncoder,
};

/// The metrics of one process.
pub struct Numbers(Registry);

impl Numbers {
    /// None yet; the names of all begin with this word.
    ///
    /// # Errors
    /// No metric may be called so.
    pub fn of(process: &str) -> Result<Self> {
        Ok(Numbers(Registry::new_custom(Some(process.to_owned()), None)?))
    }

    fn made<T: Collector + Clone + 'static>(&self, metric: Result<T>) -> Result<T> {
        let metric = metric?;
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    /// A counter.
    ///
    /// # Errors
    /// Here and below: the name is taken, or none.
    pub fn counter(&self, name: &str, help: &str) -> Result<IntCounter> {
        self.made(IntCounter::new(name, help))
    }

    /// A counter for each value of these labels.
    ///
    /// # Errors
    /// As [`Numbers::counter`].
    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
        self.made(IntCounterVec::new(Opts::new(name, help), labels))
    }

    /// A gauge.
    ///
    /// # Errors
    /// As [`Numbers::counter`].
    pub fn gauge(&self, name: &str, help: &str) -> Result<IntGauge> {
        self.made(IntGauge::new(name, help))
    }

    /// A gauge for each value of these labels.
    ///
    /// # Errors
    /// As [`Numbers::counter`].
    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec> {
        self.made(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    /// A histogram with these upper bounds.
    ///
    /// # Errors
    /// As [`Numbers::counter`].
    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram> {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.made(Histogram::with_opts(options))
    }

    /// A histogram with these upper bounds for each value of these labels.
    ///
    /// # Errors
    /// As [`Numbers::counter`].
    pub fn histograms(&self, name: &str, help: &str, buckets: &[f64], labels: &[&str]) -> Result<HistogramVec> {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.made(HistogramVec::new(options, labels))
    }

    /// All of them in the text format, and its content type.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn text(&self) -> std::result::Result<(Vec<u8>, String), String> {
        let (mut text, encoder) = (Vec::new(), TextEncoder::new());
        let written = encoder.encode(&self.0.gather(), &mut text);
        written.map_err(|error| error.to_string())?;
        Ok((text, encoder.format_type().to_owned()))
    }
}
