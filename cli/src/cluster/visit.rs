//! A visit to a broker of the cluster: through a port-forward of the API server, which kubectl makes, over the broker's own
//! TLS, as the person whom the kubeconfig names.
//!
//! Refuses a server whose certificate is not under the authority that the release published, and a kubeconfig that
//! impersonates, for the broker knows nothing of that. The invariants: whoever may not forward to the broker's pods gets
//! nowhere; the person's token or key is used for nothing but this, and goes nowhere before the server is certified.

use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{anyhow, bail, ensure, Context, Result};
use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use http::header::{HeaderValue, AUTHORIZATION, HOST};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use kube::client::ConfigExt as _;
use kube::Config;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::ExposeSecret as _;
use serde::de::DeserializeOwned;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};
use tower::{Layer as _, ServiceExt as _};

use super::{Cluster, ClusterArgs, Where};
use crate::commands::seen::{text, CONFIG_MAPS};
use crate::commands::Usage;

/// Where brokers await people, on the loopback of their pods.
const PORT: u16 = 8447;
/// Within this a broker begins to answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// A broker that sends nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(60);
/// Bytes of a list at most.
const LARGEST: usize = 64 << 20;

/// What a broker says where it refuses.
#[derive(Deserialize)]
struct Complaint {
    error: String,
}

/// A broker said no.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Turned {
    /// The HTTP status.
    pub code: u16,
    /// Its words.
    pub message: String,
}

impl Cluster {
    /// What a broker answers, whole.
    ///
    /// # Errors
    /// It cannot be reached, or refuses ([`Turned`]).
    pub fn ask_broker<T: DeserializeOwned>(&self, home: &str, pod: &str, path: &str) -> Result<T> {
        let mut all = Vec::new();
        self.visit(home, pod, path, &mut |piece| {
            if all.len().saturating_add(piece.len()) > LARGEST {
                return Err(io::Error::other("the broker's answer is too long"));
            }
            all.write_all(piece)
        })?;
        serde_json::from_slice(&all).context("the broker is of another release")
    }

    /// The same in pieces, as they come.
    ///
    /// # Errors
    /// As [`Cluster::ask_broker`]; what `each` fails with.
    pub fn visit(
        &self,
        home: &str,
        pod: &str,
        path: &str,
        each: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<()> {
        let map: Option<Value> = self.get(CONFIG_MAPS, Where::Namespace(home), "sidegate-broker-ca")?;
        let authority = map.as_ref().map(|map| text(map, "/data/ca.crt")).unwrap_or_default();
        ensure!(
            !authority.is_empty(),
            "ConfigMap {home}/sidegate-broker-ca has no ca.crt (yet): the broker's leader writes it"
        );
        let tls = tls(&self.config, authority)?;
        self.wait(async {
            let reached = async {
                let token = token(&self.config).await?;
                let forward = Forward::start(&self.chosen, home, pod).await?;
                let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, forward.port)).await?;
                let connector = tokio_rustls::TlsConnector::from(tls);
                // The certificate is for loopback, where a port-forward ends.
                let stream = connector.connect("localhost".try_into()?, stream).await;
                anyhow::Ok((token, forward, stream.context("the broker's TLS")?))
            };
            let (token, _forward, stream) = tokio::time::timeout(PATIENCE, reached)
                .await
                .map_err(|_| anyhow!("the broker does not answer within {} s", PATIENCE.as_secs()))??;
            exchange(stream, path, token, each).await
        })
    }
}

/// A port-forward that lives as long as this value.
struct Forward {
    _kubectl: Child,
    /// Held open: it says something of each connection, and would end where nobody can hear it.
    _told: Lines<BufReader<ChildStdout>>,
    port: u16,
}

impl Forward {
    /// Starts one, and waits until it says where it listens.
    async fn start(chosen: &ClusterArgs, home: &str, pod: &str) -> Result<Forward> {
        let mut command = Command::new("kubectl");
        if let Some(kubeconfig) = &chosen.kubeconfig {
            command.arg("--kubeconfig").arg(kubeconfig);
        }
        if let Some(context) = &chosen.context {
            command.args(["--context", context]);
        }
        let (pod, port) = (format!("pod/{pod}"), format!(":{PORT}"));
        command.args(["port-forward", "--address=127.0.0.1", "--namespace", home, &pod, &port]);
        let started = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let mut kubectl = started.context("kubectl, which forwards the port, is not on the PATH")?;
        let out = kubectl.stdout.take().context("kubectl has no output")?;
        let mut lines = BufReader::new(out).lines();
        // `Forwarding from 127.0.0.1:40123 -> 8447`
        while let Some(line) = lines.next_line().await? {
            let local = line
                .strip_prefix("Forwarding from 127.0.0.1:")
                .and_then(|rest| rest.split(' ').next());
            if let Some(port) = local.and_then(|port| port.parse().ok()) {
                return Ok(Forward {
                    _kubectl: kubectl,
                    _told: lines,
                    port,
                });
            }
        }
        let mut said = String::new();
        if let Some(mut complaint) = kubectl.stderr.take() {
            complaint.read_to_string(&mut said).await?;
        }
        bail!("kubectl port-forward: {}", said.trim())
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    path: &str,
    token: Option<HeaderValue>,
    each: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<()> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut request = Request::get(path)
        .header(HOST, "localhost")
        .body(Empty::<Bytes>::new())?;
    if let Some(token) = token {
        request.headers_mut().insert(AUTHORIZATION, token);
    }
    let answer = async {
        let response = tokio::time::timeout(PATIENCE, sender.send_request(request)).await;
        let response =
            response.map_err(|_| anyhow!("the broker does not answer within {} s", PATIENCE.as_secs()))??;
        let status = response.status();
        let mut body = response.into_body();
        let mut said = Vec::new();
        while let Some(frame) = tokio::time::timeout(SILENCE, body.frame()).await? {
            // An answer that is broken off says so here: a part is never taken for the whole.
            let Ok(piece) = frame.context("the broker broke off its answer")?.into_data() else {
                continue;
            };
            match status.is_success() {
                true => each(&piece)?,
                false if said.len() < 65_536 => said.extend_from_slice(&piece),
                false => {}
            }
        }
        if status.is_success() {
            return Ok(());
        }
        let message = match serde_json::from_slice::<Complaint>(&said) {
            Ok(complaint) => complaint.error,
            Err(_) => format!("the broker answered {status}"),
        };
        bail!(Turned {
            code: status.as_u16(),
            message,
        })
    };
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        ended = connection => {
            ended?;
            answer.await
        }
    }
}

fn tls(config: &Config, authority: &str) -> Result<Arc<rustls::ClientConfig>> {
    let who = &config.auth_info;
    if who.impersonate.is_some() {
        return Err(Usage("the kubeconfig impersonates somebody, which the broker does not know of".to_owned()).into());
    }
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority.as_bytes()) {
        roots.add(certificate.context("ConfigMap sidegate-broker-ca")?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let secret = who.client_key_data.as_ref().map(|key| key.expose_secret());
    let certificate = pem(
        who.client_certificate_data.as_deref(),
        who.client_certificate.as_deref(),
    );
    let key = pem(secret, who.client_key.as_deref());
    let config = match (certificate?, key?) {
        (Some(certificate), Some(key)) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&certificate).collect();
            builder.with_client_auth_cert(chain?, PrivateKeyDer::from_pem_slice(&key)?)?
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// PEM that a kubeconfig has in place (base64) or in a file.
fn pem(data: Option<&str>, file: Option<&str>) -> Result<Option<Vec<u8>>> {
    match (data, file) {
        (Some(data), _) => Ok(Some(
            STANDARD
                .decode(data.trim())
                .context("the kubeconfig's certificate data")?,
        )),
        (None, Some(file)) => Ok(Some(std::fs::read(file).with_context(|| file.to_owned())?)),
        (None, None) => Ok(None),
    }
}

/// The header by which the API server would know the person, if that is how it knows them: also where a program gives it.
async fn token(config: &Config) -> Result<Option<HeaderValue>> {
    let Some(layer) = config.auth_layer().context("the kubeconfig's login")? else {
        return Ok(None);
    };
    let told = tower::service_fn(|request: Request<Empty<Bytes>>| async move {
        Ok::<_, tower::BoxError>(Response::new(request.headers().get(AUTHORIZATION).cloned()))
    });
    let asked = layer.layer(told).oneshot(Request::new(Empty::new())).await;
    let asked = asked.map_err(|error| anyhow!("the kubeconfig's login: {error}"))?;
    Ok(asked.into_body())
}
