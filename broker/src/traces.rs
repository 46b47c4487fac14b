//! Traces: the broker's spans, sent to an OpenTelemetry collector over OTLP (http/protobuf). The only module that names
//! its libraries.
//!
//! Off unless the standard variables name a collector. Refuses other protocols, and a collector that cannot be meant; one
//! that cannot be reached costs traces and nothing else. Invariant: only the spans of [`crate::spans`] are sent, so that
//! no log line, and nothing a library says of itself, leaves this way.

mod collector;

use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry::KeyValue;
use opentelemetry_otlp::{SpanExporter, WithHttpConfig as _};
use opentelemetry_sdk::trace::{SdkTracerProvider, Tracer};
use opentelemetry_sdk::Resource;
use tokio::runtime::Handle;
use tracing::{Metadata, Subscriber};
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::Layer;

use collector::Collector;

/// What a collector is given at the end, for what was not sent yet.
const LAST: Duration = Duration::from_secs(2);
/// What a collector may take for one request, unless the variables say otherwise.
const PATIENCE: Duration = Duration::from_secs(10);
/// How the broker calls itself, unless the variables say otherwise.
const SERVICE: &str = "sidegate-broker";

/// A variable of the environment.
pub type Variable<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Traces that are sent.
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// What the environment asks for; nothing: no traces. Sending runs on `runtime`, and waits for nobody.
    ///
    /// # Errors
    /// Where it asks for something that is not built, or that cannot be read.
    pub fn from_env(variable: Variable<'_>, runtime: &Handle) -> Result<Option<Traces>, String> {
        let Some(settings) = Settings::read(variable)? else {
            return Ok(None);
        };
        let collector = Collector::new(settings.authorities.as_deref(), settings.patience, runtime.clone())?;
        let exporter = SpanExporter::builder().with_http().with_http_client(collector).build();
        let exporter = exporter.map_err(|error| format!("traces: {error}"))?;
        let mut resource =
            Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        if !settings.named {
            resource = resource.with_service_name(SERVICE);
        }
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build();
        Ok(Some(Traces { provider }))
    }

    /// Takes what [`crate::spans`] makes, and nothing else.
    pub fn layer<S>(&self) -> impl Layer<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let layer: OpenTelemetryLayer<S, Tracer> =
            tracing_opentelemetry::layer().with_tracer(self.provider.tracer(SERVICE));
        let layer = layer
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false);
        layer.with_filter(FilterFn::new(is_span))
    }

    /// Sends what is left, for a moment. The runtime must still be there.
    pub fn end(self) {
        let _ = self.provider.shutdown_with_timeout(LAST);
    }
}

/// Whether this is a span of ours, for the layer that sends them.
pub fn is_span(metadata: &Metadata<'_>) -> bool {
    metadata.target() == crate::spans::TARGET
}

/// What the environment says of traces, beside what the library reads for itself.
#[derive(Debug, PartialEq, Eq)]
struct Settings {
    /// A file with the authorities that vouch for the collector.
    authorities: Option<String>,
    patience: Duration,
    /// Whether the service has a name already.
    named: bool,
}

impl Settings {
    fn read(variable: Variable<'_>) -> Result<Option<Settings>, String> {
        // An empty variable is one that is not set.
        let any = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let of_traces = |name: &str| {
            let own = any(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"));
            own.or_else(|| any(&format!("OTEL_EXPORTER_OTLP_{name}")))
        };
        let disabled = any("OTEL_SDK_DISABLED").is_some_and(|value| value.trim().eq_ignore_ascii_case("true"));
        let exporter = any("OTEL_TRACES_EXPORTER");
        let Some(endpoint) = of_traces("ENDPOINT").filter(|_| !disabled && exporter.as_deref() != Some("none")) else {
            return Ok(None);
        };
        if exporter.as_deref().is_some_and(|exporter| exporter != "otlp") {
            return Err("OTEL_TRACES_EXPORTER: `otlp` and `none` are built".to_owned());
        }
        if of_traces("PROTOCOL").is_some_and(|protocol| protocol != "http/protobuf") {
            return Err("OTEL_EXPORTER_OTLP_PROTOCOL: `http/protobuf` is the one that is built".to_owned());
        }
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err("OTEL_EXPORTER_OTLP_ENDPOINT: write http://HOST[:PORT] or https://HOST[:PORT]".to_owned());
        }
        let patience = match of_traces("TIMEOUT") {
            None => PATIENCE,
            Some(text) => {
                let milliseconds = text
                    .trim()
                    .parse()
                    .map_err(|_| "OTEL_EXPORTER_OTLP_TIMEOUT: write milliseconds")?;
                Duration::from_millis(milliseconds)
            }
        };
        Ok(Some(Settings {
            authorities: of_traces("CERTIFICATE"),
            patience,
            named: any("OTEL_SERVICE_NAME").is_some(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Settings>, String> {
        let find = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Settings::read(&find)
    }

    #[test]
    fn nothing_is_sent_unless_a_collector_is_named() {
        let named = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[("OTEL_SERVICE_NAME", "broker")]), Ok(None));
        assert_eq!(read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]), Ok(None));
        assert_eq!(read(&[named, ("OTEL_SDK_DISABLED", "true")]), Ok(None));
        assert_eq!(read(&[named, ("OTEL_TRACES_EXPORTER", "none")]), Ok(None));
        assert!(read(&[named]).unwrap().is_some());
        let own = [("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://collector/v1/traces")];
        assert!(read(&own).unwrap().is_some());
    }

    #[test]
    fn what_is_not_built_is_refused_and_not_left_out() {
        let named = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        for wrong in [
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ] {
            let refused = read(&[named, wrong]).unwrap_err();
            assert!(
                refused.starts_with(&wrong.0.replace("TRACES_PROTOCOL", "PROTOCOL")),
                "{refused}"
            );
        }
        assert!(read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318")]).is_err());
    }
}
