//! A sidecar as the broker sees it: a connection over TLS, a key with proofs, an exchange and a stream.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use anyhow::{bail, ensure, Context, Result};
use bytes::{Bytes, BytesMut};
use http::{Method, Request, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{json, Value};
use sidegate_broker::clock::{Clock, SystemClock};
use sidegate_broker::jwt::{sha256_base64url, SigningKey};
use sidegate_policies::wire::{ToBroker, ToSidecar};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// A connection to the front face.
pub type Connection = http2::SendRequest<BoxBody<Bytes, std::convert::Infallible>>;

static NEXT: AtomicU64 = AtomicU64::new(1);

/// A TLS setting for all sidecars of one broker: what each makes once is not measured ten thousand times.
pub fn tls(ca: &str) -> Result<Arc<rustls::ClientConfig>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes())?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// Connects.
pub async fn connect(url: &str, tls: Arc<rustls::ClientConfig>) -> Result<Connection> {
    let address = url.strip_prefix("https://").context("an https URL")?;
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from("127.0.0.1")?;
    let stream = tokio_rustls::TlsConnector::from(tls).connect(name, stream).await?;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    #[allow(clippy::disallowed_methods)] // it ends with the connection, and with the bench
    tokio::spawn(connection);
    Ok(sender)
}

/// One pod's sidecar.
pub struct Sidecar {
    base: String,
    key: SigningKey,
    /// What the broker gave for the next proof.
    pub nonce: Option<String>,
    session: Option<String>,
}

impl Sidecar {
    /// With a key of its own.
    pub fn new(base: &str) -> Sidecar {
        let key = SigningKey::generate().and_then(|key| SigningKey::from_pkcs8(&key));
        Sidecar {
            base: base.to_owned(),
            key: key.unwrap_or_else(|_| std::process::abort()),
            nonce: None,
            session: None,
        }
    }

    fn proof(&self, path: &str) -> Result<String> {
        let mut claims = json!({
            "htm": "POST", "htu": format!("{}{path}", self.base), "iat": SystemClock.now(),
            "jti": format!("proof-{}", NEXT.fetch_add(1, Ordering::Relaxed)),
        });
        if let Some(nonce) = &self.nonce {
            claims["nonce"] = nonce.as_str().into();
        }
        if let Some(session) = &self.session {
            claims["ath"] = sha256_base64url(session.as_bytes()).into();
        }
        let header = json!({"alg": "ES256", "typ": "dpop+jwt", "jwk": self.key.public().required_members()});
        Ok(self.key.sign_parts(&header, &claims)?)
    }

    /// Exchanges the pod's token for a session, with one retry for the nonce.
    pub async fn exchange(&mut self, connection: &mut Connection, token: &str) -> Result<()> {
        let body = format!(
            "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange&subject_token={token}\
             &subject_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Ajwt"
        );
        self.session = None;
        for _ in 0..2 {
            let request = Request::builder()
                .method(Method::POST)
                .uri(format!("{}/token", self.base))
                .header("dpop", self.proof("/token")?)
                .header("content-type", "application/x-www-form-urlencoded")
                .body(Full::new(Bytes::from(body.clone())).boxed())?;
            connection.ready().await?;
            let response = connection.send_request(request).await?;
            let status = response.status();
            if let Some(nonce) = response.headers().get("dpop-nonce") {
                self.nonce = Some(nonce.to_str()?.to_owned());
            }
            let bytes = response.into_body().collect().await?.to_bytes();
            let answer: Value = serde_json::from_slice(&bytes)?;
            if status == StatusCode::OK {
                self.session = answer["access_token"].as_str().map(str::to_owned);
                return Ok(());
            }
            ensure!(answer["error"] == "use_dpop_nonce", "{status}: {answer}");
        }
        bail!("the nonce was refused twice");
    }

    /// Opens the stream.
    pub async fn stream(&mut self, connection: &mut Connection) -> Result<Stream> {
        let (up, mut lines) = mpsc::channel::<Bytes>(4);
        let body = StreamBody::new(futures_util::stream::poll_fn(move |context| {
            lines
                .poll_recv(context)
                .map(|line| line.map(|bytes| Ok(Frame::data(bytes))))
        }));
        let session = self.session.as_deref().context("no session")?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("{}/v1/stream", self.base))
            .header("dpop", self.proof("/v1/stream")?)
            .header("authorization", format!("DPoP {session}"))
            .body(BodyExt::boxed(body))?;
        connection.ready().await?;
        let response = connection.send_request(request).await?;
        ensure!(response.status() == StatusCode::OK, "the stream: {}", response.status());
        let stream = Stream {
            up,
            body: response.into_body(),
            buffer: BytesMut::new(),
        };
        // Nothing is offered to who does not say what it holds.
        let hello = ToBroker::Hello {
            protocol: 1,
            release: "bench".to_owned(),
            bundle: None,
            revisions: Default::default(),
            deny_revision: 0,
        };
        stream.say(&hello).await?;
        Ok(stream)
    }
}

/// An open stream.
pub struct Stream {
    up: mpsc::Sender<Bytes>,
    body: Incoming,
    buffer: BytesMut,
}

impl Stream {
    /// The next line.
    pub async fn next(&mut self) -> Result<ToSidecar> {
        loop {
            if let Some(at) = self.buffer.iter().position(|byte| *byte == b'\n') {
                return Ok(serde_json::from_slice(&self.buffer.split_to(at + 1))?);
            }
            let frame = self.body.frame().await.context("the broker ended the stream")??;
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }

    /// Sends a line.
    pub async fn say(&self, line: &ToBroker) -> Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        Ok(self.up.send(text.into()).await?)
    }
}
