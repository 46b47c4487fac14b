//! The program's traces, as a collector gets them: a real receiver of OTLP decodes what the real program sends.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::StatusCode;
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost_otlp::Message as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{json, Value};
use sidegate_broker::clock::ManualClock;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::client::Client;
use crate::provider::certificates;
use crate::world::{files, CONFIG, PASSWORD};

/// Longest wait for the program.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the collector wants to see, and nobody else may.
const COLLECTOR_KEY: &str = "canary-of-the-collector";

/// What came: heads and bodies of requests.
type Came = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// A receiver of OTLP over TLS or without it.
struct Receiver {
    address: String,
    ca_pem: String,
    came: Came,
}

impl Receiver {
    async fn start(secure: bool) -> Receiver {
        let (ca_pem, leaf, key) = certificates();
        let leaf = CertificateDer::from_pem_slice(leaf.as_bytes()).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if secure { "https" } else { "http" };
        let address = format!("{scheme}://{}", listener.local_addr().unwrap());
        let came = Came::default();
        let kept = Arc::clone(&came);
        #[allow(clippy::disallowed_methods)] // ends with the test's runtime
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                match secure {
                    true => take(acceptor.accept(stream).await.unwrap(), &kept).await,
                    false => take(stream, &kept).await,
                }
            }
        });
        Receiver { address, ca_pem, came }
    }

    /// Every span that came, by its name; of several the last one.
    fn spans(&self) -> BTreeMap<String, Span> {
        let mut spans = BTreeMap::new();
        for (_, body) in self.came.lock().unwrap().iter() {
            let request = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
            let groups = request.resource_spans.into_iter().flat_map(|group| group.scope_spans);
            for span in groups.flat_map(|group| group.spans) {
                spans.insert(span.name.clone(), span);
            }
        }
        spans
    }
}

/// Takes one request and answers it well.
async fn take(mut stream: impl AsyncRead + AsyncWrite + Unpin, came: &Came) {
    let mut bytes = Vec::new();
    loop {
        let mut part = [0; 8192];
        let length = stream.read(&mut part).await.unwrap();
        assert!(length > 0, "half a request");
        bytes.extend_from_slice(&part[..length]);
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let body = &bytes[end + 4..];
        if body.len() == length.unwrap().parse::<usize>().unwrap() {
            came.lock().unwrap().push((head, body.to_vec()));
            break;
        }
    }
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let _ = stream.shutdown().await;
}

/// The program, by its first line and its process.
struct Program {
    child: Child,
    told: Value,
    /// What it logs; a pipe that nobody reads would stop it.
    log: JoinHandle<String>,
    _temp: tempfile::TempDir,
}

impl Program {
    async fn start(variables: &[(&str, &str)]) -> Program {
        let temp = tempfile::tempdir().unwrap();
        files(temp.path(), CONFIG);
        let folder = |name: &str| temp.path().join(name).into_os_string();
        let mut child = Command::new(env!("CARGO_BIN_EXE_sidegate-broker"))
            .args(["--label", "tier=one"])
            .args([
                "--config".into(),
                folder("config"),
                "--secrets".into(),
                folder("secrets"),
            ])
            .args(["--state".into(), folder("state")])
            .env("SIDEGATE_LOG", "info,sidegate_broker=trace")
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut errors = child.stderr.take().unwrap();
        #[allow(clippy::disallowed_methods)] // joined when it has stopped
        let log = tokio::spawn(async move {
            let mut log = String::new();
            errors.read_to_string(&mut log).await.unwrap();
            log
        });
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = tokio::time::timeout(PATIENCE, lines.next_line())
            .await
            .unwrap()
            .unwrap();
        Program {
            child,
            log,
            told: serde_json::from_str(&first.expect("it ends at once")).unwrap(),
            _temp: temp,
        }
    }

    fn text(&self, name: &str) -> String {
        self.told[name].as_str().unwrap().to_owned()
    }

    /// A sidecar's session, and a lease of the Target with the Secret. Answers what none but the two may see.
    async fn used(&self) -> Vec<String> {
        let read = |name: &str| std::fs::read_to_string(Path::new(&self.text(name))).unwrap();
        let clock = Arc::new(ManualClock::starting_now());
        let mut client = Client::new(&self.text("frontUrl"), &read("ca"), clock);
        client.login(&read("tokenFile")).await;
        let lease = client.post("/v1/leases", json!({"target": "local/shop"})).await;
        assert_eq!(lease.status, StatusCode::OK, "{}", lease.body);
        let refused = client
            .post("/v1/leases", json!({"target": "local/canary-of-a-caller"}))
            .await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST);
        let last = |token: &str| token.trim().rsplit('.').next().unwrap().to_owned();
        let session = last(&client.session.unwrap());
        let own = ["canary-of-a-caller", COLLECTOR_KEY, PASSWORD].map(str::to_owned);
        [vec![last(&read("tokenFile")), session], own.to_vec()].concat()
    }

    /// Asks it to stop; answers how it ended and what it logged.
    async fn stop(mut self) -> (ExitStatus, String) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let status = status.expect("it does not end").unwrap();
        (status, self.log.await.unwrap())
    }
}

fn attribute<'a>(attributes: &'a [KeyValue], name: &str) -> &'a str {
    let found = attributes.iter().find(|attribute| attribute.key == name);
    match found.and_then(|found| found.value.as_ref()?.value.as_ref()) {
        Some(Any::StringValue(text)) => text,
        _ => "",
    }
}

/// A login and a lease become traces with their steps below them. Neither what is sent nor what is logged shows a
/// token, a password, what a caller wrote or the key of the collector.
#[tokio::test]
async fn a_call_is_a_trace_of_its_steps_and_shows_no_secret() {
    let receiver = Receiver::start(true).await;
    let temp = tempfile::tempdir().unwrap();
    let ca = temp.path().join("ca.pem");
    std::fs::write(&ca, &receiver.ca_pem).unwrap();
    let headers = format!("authorization=Bearer%20{COLLECTOR_KEY}");
    let program = Program::start(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &receiver.address),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", ca.to_str().unwrap()),
        ("OTEL_EXPORTER_OTLP_HEADERS", &headers),
        ("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=broker-0"),
    ])
    .await;
    let never = program.used().await;
    let uid = program.text("podUid");
    let (status, log) = program.stop().await;
    assert!(status.success(), "{log}");

    let spans = receiver.spans();
    let id = |name: &str| {
        spans
            .get(name)
            .unwrap_or_else(|| panic!("no {name}: {spans:?}"))
            .span_id
            .clone()
    };
    let under = |name: &str| spans[name].parent_span_id.clone();
    let (token, lease) = (id("POST /token"), id("POST /v1/leases"));
    assert!(under("POST /token").is_empty() && under("POST /v1/leases").is_empty());
    for step in ["attest token", "attest review", "attest pod", "attest key"] {
        assert_eq!(under(step), token, "{step}");
        assert_eq!(spans[step].trace_id, spans["POST /token"].trace_id);
    }
    // Of the two leases the last one was refused; the Secret was read for the first.
    assert_ne!(under("secret"), lease);
    assert!(!id("secret").is_empty() && !under("secret").is_empty());
    let refused = &spans["POST /v1/leases"].attributes;
    assert_eq!(attribute(refused, "sidegate.refused"), "invalid_target");
    assert_eq!(attribute(refused, "http.route"), "/v1/leases");
    assert_eq!(attribute(&spans["POST /token"].attributes, "k8s.pod.uid"), uid);

    for (head, body) in receiver.came.lock().unwrap().iter() {
        assert!(head.starts_with("POST /v1/traces HTTP/1.1"), "{head}");
        assert!(
            head.contains(&format!("authorization: Bearer {COLLECTOR_KEY}")),
            "{head}"
        );
        let request = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
        let resource = request.resource_spans[0].resource.clone().unwrap();
        assert_eq!(attribute(&resource.attributes, "service.name"), "sidegate-broker");
        assert_eq!(attribute(&resource.attributes, "k8s.pod.name"), "broker-0");
        for secret in &never {
            let shown = body.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!shown, "sent: {secret}");
        }
    }
    assert!(log.contains("started"), "the log was kept: {log}");
    // The audit names what was asked for.
    let logged = never.iter().filter(|secret| *secret != "canary-of-a-caller");
    for secret in logged.chain([&"sidegate_spans".to_owned()]) {
        assert!(!log.contains(secret), "logged: {secret}");
    }
}

/// One that refuses connections and one that never answers: calls are answered as ever, and the program ends as asked.
#[tokio::test]
async fn a_collector_that_is_away_costs_traces_alone() {
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (address, said) in [(closed, true), (mute.local_addr().unwrap(), false)] {
        let address = format!("http://{address}");
        let program = Program::start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &address)]).await;
        program.used().await;
        let (status, log) = program.stop().await;
        assert!(status.success(), "{log}");
        assert!(!said || log.contains("traces cannot be delivered"), "{log}");
    }
}

/// The one program that reads Secrets leaves no core file, whatever limit it was started with.
#[tokio::test]
async fn the_program_leaves_no_core() {
    let program = Program::start(&[]).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", program.child.id().unwrap())).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    let values: Vec<&str> = core.split_whitespace().skip(4).take(2).collect();
    assert_eq!(values, ["0", "0"], "{core}");
}

/// What is asked for and not built ends the program before it serves, and says which variable it is.
#[tokio::test]
async fn traces_that_cannot_be_sent_as_asked_stop_the_start() {
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere.pem"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_sidegate-broker"))
            .args(["--config", "/nowhere", "--state", "/nowhere"])
            .envs([
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector.invalid"),
                (name, value),
            ])
            .output();
        let output = tokio::time::timeout(PATIENCE, output).await.unwrap().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(name), "{said}");
    }
}
