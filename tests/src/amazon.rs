//! Strict doubles of AWS: an STS that gives keys for an assertion, and an RDS database that lets in who shows a request
//! signed with them, before a real PostgreSQL that trusts it.
//!
//! STS believes nothing of an assertion that the broker's own discovery and keys do not prove, and wants its request word
//! for word. The database recomputes the signature by itself, for its own address, and refuses a request that is not for
//! the role that logs in, is not signed by these keys, or comes outside of its time. Both keep why they refused.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{bail, ensure, Context, Result};
use aws_lc_rs::digest::{digest, SHA256};
use aws_lc_rs::hmac;
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{json, Value};
use sidegate_policies::record::frame::hex;
use tokio::io::{copy_bidirectional, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::authority::{Authority, Leaf};
use crate::provider::{pairs, verify, Provider, Request, Trust};

/// The role that may be assumed.
pub const ROLE_ARN: &str = "arn:aws:iam::123456789012:role/agents/support";
/// The region of both.
pub const REGION: &str = "eu-central-1";
/// The keys that STS gives.
const KEY: (&str, &str, &str) = ("ASIAEXAMPLE", "canary-secret-key/+a", "canary-session/+==");
/// SHA-256 of nothing.
const NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Both doubles.
pub struct Amazon {
    /// Where STS is, and its authority.
    pub sts: Provider,
    /// Where the database is.
    pub database: SocketAddr,
    /// The authority of the database's certificate.
    pub authority: Authority,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    trust: Option<Trust>,
    failing: Option<(u16, &'static str)>,
    given: usize,
    logins: usize,
    refused: Vec<String>,
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Amazon {
    /// Starts both, before the PostgreSQL at this port.
    #[allow(clippy::disallowed_methods)] // its tasks end with the test's runtime
    pub async fn start(postgres: u16) -> Result<Amazon> {
        let state = Arc::<Mutex<State>>::default();
        let answering = Arc::clone(&state);
        let sts = Provider::start(move |request| sts(&answering, request))?;
        let authority = Authority::new()?;
        let Leaf { certificate, key } = authority.leaf(&["127.0.0.1"])?;
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes())?];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        tls.alpn_protocols = vec![b"postgresql".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let database = listener.local_addr()?;
        let serving = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (acceptor, state) = (acceptor.clone(), Arc::clone(&serving));
                tokio::spawn(async move {
                    if let Err(error) = login(client, acceptor, database, postgres, &state).await {
                        locked(&state).refused.push(format!("{error:#}"));
                    }
                });
            }
        });
        Ok(Amazon {
            sts,
            database,
            authority,
            state,
        })
    }

    /// Makes STS believe the assertions of this issuer.
    pub fn trust(&self, issuer: &str, ca_pem: &str) {
        locked(&self.state).trust = Some(Trust {
            issuer: issuer.to_owned(),
            ca_pem: ca_pem.to_owned(),
        });
    }

    /// Has STS answer with this status and code from now on, or as it should.
    pub fn fail(&self, how: Option<(u16, &'static str)>) {
        locked(&self.state).failing = how;
    }

    /// How often keys were given, and how often somebody logged in with them.
    pub fn counts(&self) -> (usize, usize) {
        let state = locked(&self.state);
        (state.given, state.logins)
    }

    /// Why anybody was refused.
    pub fn refused(&self) -> Vec<String> {
        locked(&self.state).refused.clone()
    }

    /// The TokenIssuer `aws` at it, as a document of a configuration.
    pub fn issuer(&self) -> String {
        let pem = serde_json::to_string(&self.sts.ca_pem).unwrap_or_default();
        format!(
            "\n---\napiVersion: sidegate.dev/v1alpha1\nkind: TokenIssuer\nmetadata: {{name: aws}}\nspec:\n  preset: AwsSts\n  \
             issuer: {}\n  allowedNamespaces: {{selector: {{}}}}\n  caBundle: {{inline: {pem}}}\n",
            self.sts.origin
        )
    }
}

fn error(code: &str) -> Value {
    json!({"Error": {"Code": code, "Message": "canary: AWS's own words", "Type": "Sender"}, "RequestId": "1"})
}

fn sts(state: &Mutex<State>, request: &Request) -> (u16, Option<Value>) {
    let (failing, trust) = {
        let state = locked(state);
        (state.failing, state.trust.clone())
    };
    if let Some((status, code)) = failing {
        return (status, Some(error(code)));
    }
    match trust
        .context("nobody is trusted")
        .and_then(|trust| assumed(request, &trust))
    {
        Ok(answer) => {
            locked(state).given += 1;
            (200, Some(answer))
        }
        Err(why) => {
            locked(state).refused.push(format!("sts: {why:#}"));
            (400, Some(error("InvalidParameterValue")))
        }
    }
}

fn assumed(request: &Request, trust: &Trust) -> Result<Value> {
    ensure!(
        request.method == "POST" && request.path == "/",
        "{} {}",
        request.method,
        request.path
    );
    // Without it AWS answers in XML.
    ensure!(request.header("accept") == Some("application/json"), "accept");
    ensure!(request.header("authorization").is_none(), "it is not signed");
    let mut form = request.form();
    let token = form.remove("WebIdentityToken").context("no token")?;
    let session = form.remove("RoleSessionName").context("no session name")?;
    ensure!((2..=64).contains(&session.len()), "session name {session}");
    let rest: Vec<(&str, &str)> = form
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let wanted = [
        ("Action", "AssumeRoleWithWebIdentity"),
        ("DurationSeconds", "900"),
        ("RoleArn", ROLE_ARN),
        ("Version", "2011-06-15"),
    ];
    ensure!(rest == wanted, "{rest:?}");
    let claims = verify(&token, trust, "sts.amazonaws.com", 300)?;
    let ends = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() + 900;
    Ok(json!({"AssumeRoleWithWebIdentityResponse": {
        "AssumeRoleWithWebIdentityResult": {
            "AssumedRoleUser": {"Arn": format!("{ROLE_ARN}/{session}"), "AssumedRoleId": "AROAEXAMPLE:1"},
            "Audience": "sts.amazonaws.com", "Provider": trust.issuer, "SubjectFromWebIdentityToken": claims["sub"],
            "Credentials": {
                "AccessKeyId": KEY.0, "SecretAccessKey": KEY.1, "SessionToken": KEY.2, "Expiration": ends as f64,
            },
        },
        "ResponseMetadata": {"RequestId": "1"},
    }}))
}

/// One login: TLS, the password in clear as RDS wants it, and then the real server, which trusts us.
async fn login(
    mut client: TcpStream,
    acceptor: TlsAcceptor,
    own: SocketAddr,
    postgres: u16,
    state: &Mutex<State>,
) -> Result<()> {
    let mut asked = [0; 8];
    client.read_exact(&mut asked).await?;
    ensure!(asked == [0, 0, 0, 8, 4, 210, 22, 47], "no TLS asked for");
    client.write_all(b"S").await?;
    let mut client = acceptor.accept(client).await?;
    let length = client.read_u32().await?;
    ensure!((8..10_000).contains(&length), "a startup message of {length} bytes");
    let mut startup = vec![0; length as usize - 4];
    client.read_exact(&mut startup).await?;
    client.write_all(&[b'R', 0, 0, 0, 8, 0, 0, 0, 3]).await?;
    ensure!(client.read_u8().await? == b'p', "no password");
    let mut password = vec![0; client.read_u32().await? as usize - 4];
    client.read_exact(&mut password).await?;
    let password = String::from_utf8(password)?;
    let mut words = startup[4..].split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let user = loop {
        match (words.next(), words.next()) {
            (Some(name), Some(value)) if name == "user" => break value,
            (Some(_), Some(_)) => {}
            _ => bail!("no user"),
        }
    };
    if let Err(why) = signed(password.trim_end_matches('\0'), &own.to_string(), &user) {
        let told = b"SFATAL\0C28P01\0MPAM authentication failed\0\0";
        client.write_all(b"E").await?;
        client.write_u32(told.len() as u32 + 4).await?;
        client.write_all(told).await?;
        client.shutdown().await?;
        return Err(why);
    }
    locked(state).logins += 1;
    let mut server = TcpStream::connect(("127.0.0.1", postgres)).await?;
    server.write_u32(length).await?;
    server.write_all(&startup).await?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

/// Whether this is a request to connect as `user` to us, signed with the keys, and in time.
fn signed(password: &str, own: &str, user: &str) -> Result<()> {
    let (unsigned, signature) = password.rsplit_once("&X-Amz-Signature=").context("no signature")?;
    let (host, query) = unsigned.split_once("/?").context("no query")?;
    ensure!(host == own, "for {host}");
    let said = pairs(query);
    let get = |said: &BTreeMap<String, String>, name: &str| said.get(name).cloned().unwrap_or_default();
    let time = get(&said, "X-Amz-Date");
    let day = time.get(..8).context("a day")?.to_owned();
    for (name, wanted) in [
        ("Action", "connect"),
        ("DBUser", user),
        ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
        (
            "X-Amz-Credential",
            &format!("{}/{day}/{REGION}/rds-db/aws4_request", KEY.0),
        ),
        ("X-Amz-Expires", "900"),
        ("X-Amz-Security-Token", KEY.2),
        ("X-Amz-SignedHeaders", "host"),
    ] {
        ensure!(get(&said, name) == wanted, "{name} is {}", get(&said, name));
    }
    ensure!(said.len() == 8, "more than is signed by others: {said:?}");
    let written = format!(
        "{}-{}-{}T{}:{}:{}Z",
        &time[..4],
        &time[4..6],
        &time[6..8],
        &time[9..11],
        &time[11..13],
        &time[13..15]
    );
    let at = sidegate_broker::clock::parse_rfc3339(&written).context("a time")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64;
    ensure!((0..=900_000).contains(&(now - at + 1000)), "signed at {time}");
    let mut parts: Vec<&str> = query.split('&').collect();
    parts.sort_unstable();
    let canonical = format!("GET\n/\n{}\nhost:{own}\n\nhost\n{NOTHING}", parts.join("&"));
    let text = format!(
        "AWS4-HMAC-SHA256\n{time}\n{day}/{REGION}/rds-db/aws4_request\n{}",
        hex(digest(&SHA256, canonical.as_bytes()).as_ref())
    );
    let mac = |key: &[u8], text: &str| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes());
    let mut key = mac(format!("AWS4{}", KEY.1).as_bytes(), &day);
    for part in [REGION, "rds-db", "aws4_request"] {
        key = mac(key.as_ref(), part);
    }
    ensure!(hex(mac(key.as_ref(), &text).as_ref()) == signature, "another signature");
    Ok(())
}
