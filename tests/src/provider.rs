//! What doubles of identity providers are made of: a server over real TLS that a test answers for, and the check of an
//! assertion by its issuer's own discovery and keys.
//!
//! One request per connection, each on a thread of its own; everything ends with the process. Believes nothing that is
//! not proved.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{bail, ensure, Context, Result};
use aws_lc_rs::signature::{UnparsedPublicKey, ECDSA_P256_SHA256_FIXED};
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;

use crate::authority::{Authority, Leaf};

/// A server that answers as a test says.
pub struct Provider {
    /// Where it is.
    pub origin: String,
    /// Its certificate's authority.
    pub ca_pem: String,
}

/// One request, as it came.
pub struct Request {
    /// Its method.
    pub method: String,
    /// Its path and query.
    pub path: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Request {
    /// A header, by its name in small letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// Where it was sent.
    pub fn origin(&self) -> String {
        format!("https://{}", self.header("host").unwrap_or_default())
    }

    /// Its body as JSON; null where it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Its body as a form.
    pub fn form(&self) -> BTreeMap<String, String> {
        pairs(&String::from_utf8_lossy(&self.body))
    }
}

/// The pairs of a form or a query, decoded.
pub fn pairs(text: &str) -> BTreeMap<String, String> {
    let decoded = |text: &str| {
        let (mut bytes, mut rest) = (Vec::new(), text.bytes());
        while let Some(byte) = rest.next() {
            let hex = [rest.clone().next(), rest.clone().nth(1)]
                .into_iter()
                .flatten()
                .collect::<Vec<u8>>();
            let value = std::str::from_utf8(&hex)
                .ok()
                .and_then(|hex| u8::from_str_radix(hex, 16).ok());
            match value.filter(|_| byte == b'%') {
                Some(value) => {
                    bytes.push(value);
                    rest.nth(1);
                }
                None => bytes.push(byte),
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decoded(name), decoded(value))).collect()
}

impl Provider {
    /// Starts one on 127.0.0.1.
    pub fn start(answer: impl Fn(&Request) -> (u16, Option<Value>) + Send + Sync + 'static) -> Result<Provider> {
        let authority = Authority::new()?;
        let Leaf { certificate, key } = authority.leaf(&["127.0.0.1"])?;
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes())?];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let origin = format!("https://{}", listener.local_addr()?);
        let (tls, answer) = (Arc::new(tls), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (tls, answer) = (Arc::clone(&tls), Arc::clone(&answer));
                // A client that breaks off is its own affair.
                std::thread::spawn(move || drop(serve(stream, tls, &*answer)));
            }
        });
        Ok(Provider {
            origin,
            ca_pem: authority.pem().to_owned(),
        })
    }
}

fn serve(stream: TcpStream, tls: Arc<ServerConfig>, answer: &dyn Fn(&Request) -> (u16, Option<Value>)) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut stream = StreamOwned::new(ServerConnection::new(tls)?, stream);
    let request = read(&mut stream)?;
    let (status, body) = answer(&request);
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    write!(
        stream,
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )?;
    stream.conn.send_close_notify();
    stream.flush()?;
    Ok(())
}

fn read(stream: &mut impl Read) -> Result<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().context("a method")?, words.next().context("a path")?);
    let headers = headers(&mut reader)?;
    let length = headers.get("content-length").map_or(Ok(0), |length| length.parse())?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Request {
        method,
        path,
        headers,
        body,
    })
}

fn headers(reader: &mut impl BufRead) -> Result<BTreeMap<String, String>> {
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            return Ok(headers);
        };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
}

/// Who signs assertions, and how its certificate is verified.
#[derive(Clone)]
pub struct Trust {
    /// The issuer's URL.
    pub issuer: String,
    /// Its authority.
    pub ca_pem: String,
}

/// The claims of an assertion about an agent that proves itself for this audience, and lives so long.
pub fn verify(jwt: &str, trust: &Trust, audience: &str, life: u64) -> Result<Value> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    verify_by(&published(trust)?, jwt, trust, audience, (life, now))
}

/// The issuer's keys, by its own discovery.
pub fn published(trust: &Trust) -> Result<Value> {
    let discovery = get(trust, "/.well-known/openid-configuration")?;
    ensure!(
        discovery["issuer"] == trust.issuer.as_str(),
        "another issuer's discovery"
    );
    let keys = discovery["jwks_uri"]
        .as_str()
        .and_then(|uri| uri.strip_prefix(&trust.issuer));
    get(trust, keys.context("keys elsewhere")?)
}

fn part(text: &str) -> Result<Value> {
    Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text)?)?)
}

/// The id of the key that signed a token, as it says.
pub fn kid(jwt: &str) -> Result<String> {
    let head = part(jwt.split('.').next().unwrap_or_default())?;
    Ok(head["kid"].as_str().context("no kid")?.to_owned())
}

/// The same by these keys, at this time in seconds since 1970.
pub fn verify_by(jwks: &Value, jwt: &str, trust: &Trust, audience: &str, (life, now): (u64, u64)) -> Result<Value> {
    let parts: Vec<&str> = jwt.split('.').collect();
    let [head, body, signature] = parts.as_slice() else {
        bail!("not three segments")
    };
    let (head, claims) = (part(head)?, part(body)?);
    ensure!(head["alg"] == "ES256", "alg {}", head["alg"]);
    let mut keys = jwks["keys"].as_array().into_iter().flatten();
    let key = keys.find(|key| key["kid"] == head["kid"]).context("no such key")?;
    let mut point = vec![4];
    for coordinate in ["x", "y"] {
        point.extend(URL_SAFE_NO_PAD.decode(key[coordinate].as_str().context("a coordinate")?)?);
    }
    let (message, _) = jwt.rsplit_once('.').context("a signature")?;
    let verified = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
    let verified = verified.verify(message.as_bytes(), &URL_SAFE_NO_PAD.decode(signature)?);
    ensure!(verified.is_ok(), "bad signature");
    ensure!(claims["iss"] == trust.issuer.as_str(), "iss {}", claims["iss"]);
    ensure!(claims["aud"] == audience, "aud {}", claims["aud"]);
    let agent = claims["sub"].as_str().is_some_and(|sub| sub.starts_with("sg:"));
    ensure!(agent, "sub {}", claims["sub"]);
    let lives = claims["exp"]
        .as_u64()
        .is_some_and(|exp| exp > now && exp <= now + life + 5);
    ensure!(lives, "exp {}", claims["exp"]);
    Ok(claims)
}

/// One GET at the issuer, over TLS verified by its authority.
fn get(trust: &Trust, path: &str) -> Result<Value> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trust.ca_pem.as_bytes())?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let host = trust.issuer.strip_prefix("https://").context("https")?;
    let stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let name = host.split(':').next().context("a host")?.to_owned().try_into()?;
    let mut stream = StreamOwned::new(ClientConnection::new(Arc::new(tls), name)?, stream);
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
    )?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    ensure!(line.starts_with("HTTP/1.1 200"), "{line}");
    let headers = headers(&mut reader)?;
    let mut body = vec![0; headers.get("content-length").context("a length")?.parse()?];
    reader.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}
