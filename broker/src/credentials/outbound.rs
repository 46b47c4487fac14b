//! The one way out of the broker to an identity provider: one request over verified TLS, and a small answer.
//!
//! Refuses anything but https, addresses that are this machine's or its link's, redirects (they are answers like
//! others, and never followed), compressed or large answers, and slow ones. Every connection is new and carries one
//! request: an assertion is never sent twice. Invariants: what was resolved is what is dialled; nothing of an answer
//! is logged.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use secrecy::ExposeSecret as _;
use sidegate_policies::address;
use sidegate_policies::presets::url::{self, Url};
use sidegate_policies::presets::Class;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::TlsConnector;
use tracing::Instrument as _;

use super::reply::Answer;
use super::request::Request;
use super::Failure;
use crate::spans;
use crate::task::Tasks;

/// Bytes of an answer, at most.
pub(super) const MAX_ANSWER: usize = 64 * 1024;
/// From the first to the last byte.
const DEADLINE: Duration = Duration::from_secs(10);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;

/// The way out.
pub struct Outbound {
    /// Whether a provider may live on this machine: in local mode and in tests.
    loopback: bool,
    tasks: Tasks,
    /// Read at first use.
    system: OnceLock<Option<Arc<RootCertStore>>>,
}

impl Outbound {
    /// A way out. `loopback` is decided in the composition root and nowhere else.
    pub fn new(loopback: bool, tasks: Tasks) -> Self {
        Outbound {
            loopback,
            tasks,
            system: OnceLock::new(),
        }
    }

    pub(super) fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Sends a request, and gives the whole answer.
    pub(super) async fn send(&self, request: &Request, ca_pem: Option<&str>) -> Result<Answer, Failure> {
        let span = spans::provider(url::read(&request.url).map_or("", |url| url.host));
        let exchange = self.exchange(request, ca_pem).instrument(span.clone());
        let answer = match tokio::time::timeout(DEADLINE, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(absent("no whole answer within 10 s")),
        };
        match &answer {
            Ok(answer) => span.record("http.response.status_code", answer.status),
            Err(failure) => span
                .record("sidegate.class", failure.class.as_str())
                .record("otel.status_code", "ERROR"),
        };
        answer
    }

    async fn exchange(&self, request: &Request, ca_pem: Option<&str>) -> Result<Answer, Failure> {
        let url = url::read(&request.url).map_err(|_| broken("the URL is not one to ask"))?;
        let stream = self.connect(&url, ca_pem).await?;
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_ANSWER)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|_| absent("the connection ended"))?;
        let stop = self.tasks.stopping();
        self.tasks.spawn("provider", async move {
            tokio::select! {
                () = stop.cancelled() => {}
                _ = tokio::time::timeout(DEADLINE, connection) => {}
            }
        });
        let request = message(&url, request).ok_or_else(|| broken("the request cannot be written"))?;
        let response = sender.send_request(request).await;
        let response = response.map_err(|error| match error.is_parse() {
            true => broken("no HTTP answer"),
            false => absent("the connection ended"),
        })?;
        read(response).await
    }

    async fn connect(&self, url: &Url<'_>, ca_pem: Option<&str>) -> Result<TlsStream<TcpStream>, Failure> {
        let tls = self.tls(ca_pem)?;
        let name =
            ServerName::try_from(url.host.to_owned()).map_err(|_| broken("no name a certificate could carry"))?;
        let mut stream = None;
        for address in self.resolve(url.host, url.port).await? {
            if let Ok(connected) = TcpStream::connect(address).await {
                stream = Some(connected);
                break;
            }
        }
        let stream = stream.ok_or_else(|| absent("it cannot be connected to"))?;
        let _ = stream.set_nodelay(true);
        let connected = TlsConnector::from(tls).connect(name, stream).await;
        connected.map_err(|_| absent("TLS is not what it should be"))
    }

    /// Every address, or none: a name that leads to this machine as well leads nowhere.
    ///
    /// The system's resolver is asked, other than in the sidecar (UPS-1): in the broker's own pod nobody but its
    /// operator writes `hosts` and `resolv.conf`, and names of services need its search list.
    async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
        let name = host.to_owned();
        let found = self
            .tasks
            .blocking(move || (name.as_str(), port).to_socket_addrs())
            .await;
        let Some(Ok(found)) = found else {
            return Err(absent("its name did not resolve"));
        };
        let found: Vec<SocketAddr> = found.take(MAX_ADDRESSES).collect();
        if found.iter().any(|address| !self.may_dial(address.ip())) {
            return Err(broken("its address is one of this machine or its link"));
        }
        Ok(found)
    }

    fn may_dial(&self, address: IpAddr) -> bool {
        let canonical = address.to_canonical();
        if canonical.is_loopback() {
            return self.loopback;
        }
        !address::is_special(canonical) && !hides_another(canonical)
    }

    fn tls(&self, ca_pem: Option<&str>) -> Result<Arc<ClientConfig>, Failure> {
        let roots = match ca_pem {
            Some(pem) => Some(Arc::new(
                authorities(pem).ok_or_else(|| broken("its caBundle cannot be read"))?,
            )),
            None => self.system.get_or_init(system).clone(),
        };
        let roots = roots.ok_or_else(|| broken("the system trusts no authority"))?;
        let config = client_tls(roots).map_err(|_| broken("TLS cannot be prepared"))?;
        Ok(Arc::new(config))
    }
}

/// TLS towards a server of HTTP/1.1 that one of these authorities vouches for.
pub(crate) fn client_tls(roots: Arc<RootCertStore>) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn absent(why: &str) -> Failure {
    Failure::new(Class::Retry, why)
}

fn broken(why: &str) -> Failure {
    Failure::new(Class::Broken, why)
}

/// IPv6 forms that hide another address, and the ranges they are taken from: no provider lives there.
fn hides_another(address: IpAddr) -> bool {
    let IpAddr::V6(v6) = address else { return false };
    let [a, b, c, d, ..] = v6.segments();
    address::forms(address).len() > 1 || (a, b) == (0x64, 0xff9b) || (a, b, c, d) == (0, 0, 0, 0)
}

fn message(url: &Url<'_>, request: &Request) -> Option<http::Request<Full<Bytes>>> {
    let path = if url.path.is_empty() { "/" } else { url.path };
    let host = url.origin.strip_prefix("https://")?;
    let mut message = http::Request::builder().method(request.method.clone()).uri(path);
    if let Some((name, value)) = &request.secret {
        let mut value = HeaderValue::from_str(value.expose_secret()).ok()?;
        value.set_sensitive(true);
        message = message.header(*name, value);
    }
    message
        .header(header::HOST, host)
        .header(header::CONTENT_TYPE, request.content_type)
        .header(header::ACCEPT, HeaderValue::from_static("application/json"))
        .header(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"))
        .header(header::USER_AGENT, HeaderValue::from_static("sidegate"))
        .header(header::CONNECTION, HeaderValue::from_static("close"))
        .body(Full::new(Bytes::copy_from_slice(request.body.as_bytes())))
        .ok()
}

async fn read(response: http::Response<Incoming>) -> Result<Answer, Failure> {
    let (parts, body) = response.into_parts();
    let coding = parts.headers.get(header::CONTENT_ENCODING);
    if coding.is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(broken("a compressed answer"));
    }
    let retry_after = parts.headers.get(header::RETRY_AFTER);
    let retry_after = retry_after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let body = Limited::new(body, MAX_ANSWER).collect().await;
    let body = body.map_err(|error| match error.is::<http_body_util::LengthLimitError>() {
        true => broken("an answer of more than 64 KiB"),
        false => absent("the answer broke off"),
    })?;
    Ok(Answer {
        status: parts.status.as_u16(),
        retry_after,
        body: body.to_bytes().to_vec(),
    })
}

/// The certificates of a PEM file; nothing: one cannot be read, or there is none.
pub(crate) fn authorities(pem: &str) -> Option<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.ok()?).ok()?;
    }
    (!roots.is_empty()).then_some(roots)
}

/// Whom the system trusts; nothing: nobody.
pub(crate) fn system() -> Option<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    // One unreadable certificate among many is not ours to judge; none at all is.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    (!roots.is_empty()).then(|| Arc::new(roots))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_is_never_this_machine_or_its_link() {
        let shipped = Outbound::new(false, Tasks::new());
        let local = Outbound::new(true, Tasks::new());
        for loopback in ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"] {
            let address: IpAddr = loopback.parse().unwrap();
            assert!(!shipped.may_dial(address) && local.may_dial(address), "{loopback}");
        }
        for special in [
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "100.100.100.200",
            "168.63.129.16",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::7f00:1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::1",
            "2001:0:7f00:1::1",
            "fd00:ec2::254",
        ] {
            let address: IpAddr = special.parse().unwrap();
            assert!(!shipped.may_dial(address) && !local.may_dial(address), "{special}");
        }
        for usual in ["10.1.2.3", "192.168.1.1", "203.0.113.7", "2001:db8::1", "fd12::1"] {
            assert!(shipped.may_dial(usual.parse().unwrap()), "{usual}");
        }
    }
}
