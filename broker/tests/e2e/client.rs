//! A sidecar's side of the front face: TLS with the pinned authority, HTTP/2, proofs and nonces.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{pem::PemObject, CertificateDer, ServerName};
use serde_json::{json, Value};
use sidegate_broker::clock::{Clock, ManualClock};
use sidegate_broker::jwt::{sha256_base64url, SigningKey};
use sidegate_policies::seal::Revisions;
use sidegate_policies::wire::{ToBroker, ToSidecar, TokenResponse};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

static NEXT: AtomicU64 = AtomicU64::new(1);

pub struct Client {
    pub base: String,
    ca: String,
    pub key: SigningKey,
    pub clock: Arc<ManualClock>,
    pub nonce: Option<String>,
    pub session: Option<String>,
}

pub type Body = BoxBody<Bytes, std::convert::Infallible>;

pub struct Answer {
    pub status: StatusCode,
    pub headers: http::HeaderMap,
    pub body: Value,
}

impl Answer {
    pub fn error(&self) -> &str {
        self.body["error"].as_str().unwrap_or_default()
    }
}

/// The test's time, in seconds: a broker whose clock was moved makes its certificate by that.
#[derive(Debug)]
struct Time(i64);

impl rustls::time_provider::TimeProvider for Time {
    fn current_time(&self) -> Option<rustls::pki_types::UnixTime> {
        let seconds = u64::try_from(self.0).ok()?;
        Some(rustls::pki_types::UnixTime::since_unix_epoch(
            std::time::Duration::from_secs(seconds),
        ))
    }
}

impl Client {
    pub fn new(base: &str, ca: &str, clock: Arc<ManualClock>) -> Self {
        Client {
            base: base.to_owned(),
            ca: ca.to_owned(),
            key: new_key(),
            clock,
            nonce: None,
            session: None,
        }
    }

    /// Another process with the same address and token, but a key of its own.
    pub fn twin(&self) -> Self {
        Client::new(&self.base, &self.ca, self.clock.clone())
    }

    pub async fn connect(&self) -> http2::SendRequest<Body> {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.ca.as_bytes()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_details(provider, Arc::new(Time(self.clock.now())))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let address = self.base.strip_prefix("https://").unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(tls))
            .connect(name, stream)
            .await
            .unwrap();
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
        #[allow(clippy::disallowed_methods)] // the test's own connection task ends with the test's runtime
        tokio::spawn(connection);
        sender
    }

    /// A proof with members changed.
    pub fn proof(&self, method: &str, path: &str, change: Value) -> String {
        let mut claims = json!({
            "htm": method, "htu": format!("{}{}", self.base, path.split('?').next().unwrap()),
            "iat": self.clock.now(), "jti": format!("proof-{}", NEXT.fetch_add(1, Ordering::Relaxed)),
        });
        if let Some(nonce) = &self.nonce {
            claims["nonce"] = nonce.as_str().into();
        }
        if let Some(session) = &self.session {
            claims["ath"] = sha256_base64url(session.as_bytes()).into();
        }
        claims
            .as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        let header = json!({"alg": "ES256", "typ": "dpop+jwt", "jwk": self.key.public().required_members()});
        self.key.sign_parts(&header, &claims).unwrap()
    }

    pub fn request(&self, method: Method, path: &str, proof: Option<String>) -> http::request::Builder {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(proof) = proof {
            request = request.header("dpop", proof);
        }
        if let Some(session) = &self.session {
            request = request.header("authorization", format!("DPoP {session}"));
        }
        request
    }

    pub async fn send(&mut self, request: Request<Body>) -> Answer {
        let mut sender = self.connect().await;
        let response = sender.send_request(request).await.unwrap();
        self.read(response).await
    }

    async fn read(&mut self, response: Response<Incoming>) -> Answer {
        let (parts, body) = response.into_parts();
        if let Some(nonce) = parts.headers.get("dpop-nonce") {
            self.nonce = Some(nonce.to_str().unwrap().to_owned());
        }
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        }
    }

    /// One call, with one retry for the nonce.
    pub async fn call(&mut self, method: Method, path: &str, body: Option<Value>) -> Answer {
        for _ in 0..2 {
            let proof = self.proof(method.as_str(), path, json!({}));
            let text = body.as_ref().map(Value::to_string).unwrap_or_default();
            let request = self
                .request(method.clone(), path, Some(proof))
                .header("content-type", "application/json")
                .body(full(text))
                .unwrap();
            let answer = self.send(request).await;
            if answer.error() != "use_dpop_nonce" {
                return answer;
            }
        }
        panic!("the nonce was refused twice");
    }

    pub async fn post(&mut self, path: &str, body: Value) -> Answer {
        self.call(Method::POST, path, Some(body)).await
    }

    /// `/token` with these pairs, with one retry for the nonce.
    pub async fn form(&mut self, pairs: &[(&str, &str)]) -> Answer {
        for _ in 0..2 {
            let proof = self.proof("POST", "/token", json!({}));
            let answer = self.form_with(pairs, Some(proof)).await;
            if answer.error() != "use_dpop_nonce" {
                return answer;
            }
        }
        panic!("the nonce was refused twice");
    }

    pub async fn form_with(&mut self, pairs: &[(&str, &str)], proof: Option<String>) -> Answer {
        let body: Vec<String> = pairs
            .iter()
            .map(|(name, value)| format!("{name}={}", encode(value)))
            .collect();
        let session = self.session.take();
        let request = self
            .request(Method::POST, "/token", proof)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(full(body.join("&")))
            .unwrap();
        self.session = session;
        self.send(request).await
    }

    pub async fn exchange(&mut self, token: &str) -> Answer {
        self.form(&exchange(token)).await
    }

    pub async fn login(&mut self, token: &str) {
        let answer = self.exchange(token).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        let token: TokenResponse = serde_json::from_value(answer.body).unwrap();
        self.session = Some(token.access_token);
    }

    /// A stream on which nothing was said yet.
    pub async fn mute_stream(&mut self) -> Stream {
        // The nonce may be a minute old by now: one cheap call renews it.
        self.call(Method::GET, "/v1/record-keys", None).await;
        let (up, mut lines) = mpsc::channel::<Bytes>(8);
        let body = StreamBody::new(futures_util::stream::poll_fn(move |context| {
            lines
                .poll_recv(context)
                .map(|line| line.map(|bytes| Ok(hyper::body::Frame::data(bytes))))
        }));
        let proof = self.proof("POST", "/v1/stream", json!({}));
        let request = self
            .request(Method::POST, "/v1/stream", Some(proof))
            .body(BodyExt::boxed(body))
            .unwrap();
        let mut sender = self.connect().await;
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        Stream {
            up,
            body: response.into_body(),
            buffer: Vec::new(),
            _sender: sender,
        }
    }

    /// A stream of a sidecar that holds nothing yet.
    pub async fn stream(&mut self) -> Stream {
        self.stream_holding(None, Revisions::default()).await
    }

    /// A stream of a sidecar that holds this bundle, which came from a store read so far.
    pub async fn stream_holding(&mut self, bundle: Option<String>, revisions: Revisions) -> Stream {
        let mut stream = self.mute_stream().await;
        stream
            .say(&ToBroker::Hello {
                protocol: 1,
                release: "test".to_owned(),
                bundle,
                deny_revision: 0,
                revisions,
            })
            .await;
        stream
    }
}

pub struct Stream {
    up: mpsc::Sender<Bytes>,
    body: Incoming,
    buffer: Vec<u8>,
    _sender: http2::SendRequest<Body>,
}

impl Stream {
    /// The next line; `None` once the broker ended the stream.
    pub async fn next(&mut self) -> Option<ToSidecar> {
        loop {
            if let Some(at) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=at).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(std::time::Duration::from_secs(20), self.body.frame());
            match frame.await.expect("the stream is silent") {
                Some(Ok(frame)) => self.buffer.extend_from_slice(&frame.into_data().unwrap_or_default()),
                _ => return None,
            }
        }
    }

    /// The next line that is not a heartbeat; a stream that says nothing else for half a minute is a failure.
    pub async fn news(&mut self) -> Option<ToSidecar> {
        for _ in 0..30 {
            match self.next().await {
                Some(ToSidecar::Heartbeat { .. }) => {}
                line => return line,
            }
        }
        panic!("nothing but heartbeats");
    }

    /// The version of the next bundle.
    pub async fn offered(&mut self) -> String {
        loop {
            if let Some(ToSidecar::Bundle { version, .. }) = self.news().await {
                return version;
            }
        }
    }

    pub async fn say(&mut self, line: &ToBroker) {
        self.say_json(&serde_json::to_value(line).unwrap()).await;
    }

    pub async fn say_json(&mut self, line: &Value) {
        let _ = self.up.send(format!("{line}\n").into()).await;
    }
}

pub fn exchange(token: &str) -> [(&'static str, &str); 3] {
    [
        ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
        ("subject_token", token),
        ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
    ]
}

pub fn full(text: String) -> Body {
    BodyExt::boxed(Full::new(Bytes::from(text)))
}

pub fn new_key() -> SigningKey {
    SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap()
}

fn encode(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    text.bytes()
        .map(|byte| {
            if plain(&byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}
