//! An identity provider's double over real TLS: it believes nothing of an assertion that our own discovery and keys do
//! not prove, and answers as a test tells it, well or badly.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};

use aws_lc_rs::signature::{
    RsaPublicKeyComponents, UnparsedPublicKey, ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256,
};
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use http::Method;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{json, Value};
use sidegate_broker::clock::{Clock, ManualClock};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{watch, Semaphore};

use crate::client::Client;

/// One request, as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Seen {
    /// The fields of a form or a JSON object.
    pub fn form(&self) -> BTreeMap<String, String> {
        if self.headers["content-type"] == "application/json" {
            return serde_json::from_str(&self.body).unwrap();
        }
        let decode = |text: &str| {
            let mut bytes = Vec::new();
            let mut rest = text.bytes();
            while let Some(byte) = rest.next() {
                if byte == b'%' {
                    let hex = [rest.next().unwrap(), rest.next().unwrap()];
                    bytes.push(u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap());
                } else {
                    bytes.push(byte);
                }
            }
            String::from_utf8(bytes).unwrap()
        };
        let pairs = self.body.split('&').map(|pair| pair.split_once('=').unwrap());
        pairs.map(|(name, value)| (decode(name), decode(value))).collect()
    }
}

/// What to answer.
#[derive(Clone)]
pub enum Reply {
    Json(u16, Value),
    /// These bytes instead of an HTTP answer.
    Raw(Vec<u8>),
    /// Nothing, for as long as anybody waits.
    Never,
    /// The answer once the test lets it go.
    Held(Arc<Semaphore>, Value),
}

/// What an answer is made by.
type Answers = Box<dyn Fn(&Seen, usize) -> Reply + Send>;

pub struct Provider {
    pub origin: String,
    pub ca_pem: String,
    state: Arc<State>,
}

struct State {
    answers: Mutex<Answers>,
    seen: watch::Sender<Vec<Seen>>,
}

pub fn good() -> Value {
    json!({
        "access_token": "canary-of-the-provider", "token_type": "Bearer", "expires_in": 120,
        "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
    })
}

/// An authority and a leaf of it for 127.0.0.1.
pub fn certificates() -> (String, String, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let leaf_key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&leaf_key, &issuer).unwrap();
    (ca.pem(), leaf.pem(), leaf_key)
}

impl Provider {
    pub async fn start(answers: impl Fn(&Seen, usize) -> Reply + Send + 'static) -> Self {
        use rustls::pki_types::pem::PemObject as _;
        let (ca_pem, leaf, key) = certificates();
        let leaf = rustls::pki_types::CertificateDer::from_pem_slice(leaf.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("https://{}", listener.local_addr().unwrap());
        let state = Arc::new(State {
            answers: Mutex::new(Box::new(answers)),
            seen: watch::channel(Vec::new()).0,
        });
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let serving = Arc::clone(&state);
        #[allow(clippy::disallowed_methods)] // ends with the test's runtime
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, state) = (acceptor.clone(), Arc::clone(&serving));
                #[allow(clippy::disallowed_methods)]
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve(stream, &state).await;
                    }
                });
            }
        });
        Provider { origin, ca_pem, state }
    }

    pub fn answer(&self, answers: impl Fn(&Seen, usize) -> Reply + Send + 'static) {
        *self.state.answers.lock().unwrap() = Box::new(answers);
    }

    /// Requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.borrow().clone()
    }

    /// Waits for so many requests.
    pub async fn asked(&self, times: usize) {
        let mut seen = self.state.seen.subscribe();
        let waited = tokio::time::timeout(
            std::time::Duration::from_secs(20),
            seen.wait_for(|seen| seen.len() >= times),
        );
        waited.await.expect("the provider is not asked").unwrap();
    }

    /// Waits until what was asked so far is such.
    pub async fn until(&self, such: impl Fn(&[Seen]) -> bool) {
        let mut seen = self.state.seen.subscribe();
        let waited = tokio::time::timeout(std::time::Duration::from_secs(20), seen.wait_for(|seen| such(seen)));
        let found = waited.await.map(drop);
        found.unwrap_or_else(|_| panic!("never: {:#?}", self.seen()));
    }

    /// A TokenIssuer of the preset Generic at this provider, with more lines of its spec.
    pub fn issuer(&self, more: &str) -> String {
        let values = format!("{{tokenEndpoint: '{}/as/token'}}", self.origin);
        self.issuer_by("Generic", "", &values, more)
    }

    /// A TokenIssuer of any preset at this provider; `path` is that of its issuer URL.
    pub fn issuer_by(&self, preset: &str, path: &str, values: &str, more: &str) -> String {
        issuer_at(&format!("{}{path}", self.origin), &self.ca_pem, preset, values, more)
    }
}

/// A TokenIssuer of any preset at this URL, under this authority.
pub fn issuer_at(url: &str, ca_pem: &str, preset: &str, values: &str, more: &str) -> String {
    let pem = ca_pem.trim_end().replace('\n', "\n      ");
    format!(
        "---\napiVersion: sidegate.dev/v1alpha1\nkind: TokenIssuer\nmetadata: {{name: corp}}\nspec:\n  \
         preset: {preset}\n  issuer: {url}\n  values: {values}\n  \
         allowedNamespaces: {{selector: {{}}}}\n  caBundle:\n    inline: |\n      {pem}\n  {more}\n"
    )
}

async fn serve(mut stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>, state: &State) {
    let mut bytes = Vec::new();
    let request = loop {
        if let Some(request) = parse(&bytes) {
            break request;
        }
        let mut part = [0; 8192];
        match stream.read(&mut part).await {
            Ok(length) if length > 0 => bytes.extend_from_slice(&part[..length]),
            _ => return,
        }
    };
    let mut number = 0;
    state.seen.send_modify(|seen| {
        seen.push(request.clone());
        number = seen.len();
    });
    let reply = (state.answers.lock().unwrap())(&request, number);
    let bytes = match reply {
        Reply::Json(status, body) => json_answer(status, &body),
        Reply::Raw(bytes) => bytes,
        Reply::Never => return std::future::pending().await,
        Reply::Held(gate, body) => {
            gate.acquire().await.unwrap().forget();
            json_answer(200, &body)
        }
    };
    let _ = stream.write_all(&bytes).await;
    let _ = stream.shutdown().await;
}

fn json_answer(status: u16, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let length = body.len();
    format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

fn parse(bytes: &[u8]) -> Option<Seen> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let first = lines.next()?;
    let (method, path) = first.strip_suffix(" HTTP/1.1")?.split_once(' ')?;
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers: BTreeMap<String, String> = headers
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length: usize = match (method, headers.get("content-length")) {
        ("GET", None) => 0,
        (_, length) => length?.parse().ok()?,
    };
    (body.len() == length).then(|| Seen {
        method: method.to_owned(),
        path: path.to_owned(),
        headers,
        body: body.to_owned(),
    })
}

/// Verifies assertions as a strict provider does: by the issuer's own discovery and keys, once each.
pub struct Verifier {
    pub issuer: String,
    pub ca_pem: String,
    pub clock: Arc<ManualClock>,
    pub used: HashSet<String>,
    /// What assertions must be signed with.
    pub alg: &'static str,
}

impl Verifier {
    /// The claims of an assertion that proves itself for this audience.
    pub async fn verify(&mut self, assertion: &str, audience: &str, life: i64) -> Result<Value, String> {
        let parts: Vec<&str> = assertion.split('.').collect();
        let [head, body, signature] = parts.as_slice() else {
            return Err("not three segments".to_owned());
        };
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|error| error.to_string());
        let read = |text: &str| serde_json::from_slice::<Value>(&decode(text)?).map_err(|error| error.to_string());
        let (head, claims) = (read(head)?, read(body)?);
        if head["alg"] != self.alg || head["typ"] != "JWT" || head.as_object().unwrap().len() != 3 {
            return Err(format!("header {head}"));
        }
        let mut back = Client::new(&self.issuer, &self.ca_pem, self.clock.clone());
        let discovery = back
            .call(Method::GET, "/.well-known/openid-configuration", None)
            .await
            .body;
        if discovery["issuer"] != self.issuer.as_str() {
            return Err(format!("discovery {discovery}"));
        }
        let jwks = discovery["jwks_uri"]
            .as_str()
            .unwrap()
            .strip_prefix(&self.issuer)
            .unwrap()
            .to_owned();
        let jwks = back.call(Method::GET, &jwks, None).await.body;
        let keys = jwks["keys"].as_array().unwrap();
        let key = keys.iter().find(|key| key["kid"] == head["kid"]).ok_or("no such key")?;
        let number = |name: &str| decode(key[name].as_str().unwrap_or_default());
        let (message, _) = assertion.rsplit_once('.').unwrap();
        let (message, signature) = (message.as_bytes(), decode(signature)?);
        let verified = match (self.alg, key["alg"].as_str()) {
            ("ES256", Some("ES256")) => {
                let point = [vec![4], number("x")?, number("y")?].concat();
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, &signature)
            }
            ("RS256", Some("RS256")) => RsaPublicKeyComponents {
                n: number("n")?,
                e: number("e")?,
            }
            .verify(&RSA_PKCS1_2048_8192_SHA256, message, &signature),
            other => return Err(format!("{other:?}")),
        };
        verified.map_err(|_| "bad signature")?;
        let members: Vec<&String> = claims.as_object().unwrap().keys().collect();
        if members != ["aud", "exp", "iat", "iss", "jti", "sub"] {
            return Err(format!("claims {members:?}"));
        }
        let (iat, exp) = (claims["iat"].as_i64().unwrap(), claims["exp"].as_i64().unwrap());
        if claims["aud"] != audience || exp - iat != life || (self.clock.now() - iat).abs() > 5 {
            return Err(format!("{claims}"));
        }
        if !self.used.insert(claims["jti"].as_str().unwrap().to_owned()) {
            return Err("used before".to_owned());
        }
        Ok(claims)
    }
}
