//! The broker client against a scripted broker.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::VecDeque;
use std::sync::Mutex;

use http::Request;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{json, Value};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::secret::from_base64url;

/// One scripted answer: status, error code, and the nonce it brings.
type Step = (u16, &'static str, &'static str);

/// A broker that answers by script and keeps the nonces of the proofs it saw.
struct Script {
    steps: Mutex<VecDeque<Step>>,
    seen: Mutex<Vec<Option<String>>>,
}

impl Script {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let proof = request.headers()["dpop"].to_str().unwrap();
        let claims = from_base64url(proof.split('.').nth(1).unwrap()).unwrap();
        let claims: Value = serde_json::from_slice(&claims).unwrap();
        let nonce = claims.get("nonce").map(|nonce| nonce.as_str().unwrap().to_owned());
        self.seen.lock().unwrap().push(nonce);
        let (status, error, nonce) = self.steps.lock().unwrap().pop_front().unwrap();
        Response::builder()
            .status(status)
            .header("dpop-nonce", nonce)
            .body(Full::new(Bytes::from(json!({"error": error}).to_string())))
            .unwrap()
    }
}

/// Calls once against this script; gives the outcome and the nonces the broker saw.
async fn call(steps: &[Step]) -> (Result<u16, CallError>, Vec<Option<String>>) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec()];
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("https://{}", listener.local_addr().unwrap())).unwrap();
    let script = Arc::new(Script {
        steps: Mutex::new(steps.iter().copied().collect()),
        seen: Mutex::default(),
    });
    let tasks = Tasks::default();
    let broker = Arc::clone(&script);
    let serving = tasks.spawn("scripted broker", async move {
        let (stream, _) = listener.accept().await.unwrap();
        let stream = TlsAcceptor::from(Arc::new(server)).accept(stream).await.unwrap();
        let service = service_fn(move |request| {
            let answer = broker.answer(&request);
            async move { Ok::<_, std::convert::Infallible>(answer) }
        });
        let executor = TokioExecutor::new();
        let connection = hyper::server::conn::http2::Builder::new(executor);
        let _ = connection.serve_connection(TokioIo::new(stream), service).await;
    });
    let identity = Identity::new(std::path::Path::new("/nonexistent")).unwrap();
    let connection = Connection::new(url, Arc::new(client), Arc::new(Names::new(&[])), tasks);
    let body = || Full::new(Bytes::from_static(b"x")).boxed();
    let answer = connection.call(&identity, Method::POST, "/token", None, "text/plain", body);
    let outcome = answer.await.map(|answer| answer.status().as_u16());
    serving.abort();
    let seen = std::mem::take(&mut *script.seen.lock().unwrap());
    (outcome, seen)
}

fn refused(outcome: Result<u16, CallError>) -> (u16, String) {
    match outcome {
        Err(CallError::Status { status, code }) => (status, code),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_call_is_repeated_once_for_the_nonce_and_for_nothing_else() {
    let nonces =
        |list: &[Option<&str>]| -> Vec<Option<String>> { list.iter().map(|nonce| nonce.map(str::to_owned)).collect() };
    for status in [400, 401] {
        let (outcome, seen) = call(&[(status, "use_dpop_nonce", "one"), (200, "", "one")]).await;
        assert_eq!((outcome.unwrap(), seen), (200, nonces(&[None, Some("one")])));
    }
    let twice = [(400, "use_dpop_nonce", "one"), (400, "use_dpop_nonce", "two")];
    let (outcome, seen) = call(&twice).await;
    assert_eq!(refused(outcome), (400, "use_dpop_nonce".to_owned()));
    assert_eq!(seen, nonces(&[None, Some("one")]), "never a third time");
    for other in [
        (400, "invalid_dpop_proof"),
        (401, "invalid_client"),
        (429, "temporarily_unavailable"),
        (503, "use_dpop_nonce"),
    ] {
        let (outcome, seen) = call(&[(other.0, other.1, "one")]).await;
        assert_eq!(refused(outcome), (other.0, other.1.to_owned()));
        assert_eq!(seen, nonces(&[None]), "a new nonce alone is no invitation");
    }
}
