//! One bare HTTP request, for pages that are plain, and for faces over TLS.
//!
//! Refuses nothing: what comes back is told as it is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::authority::Leaf;

const PATIENCE: Duration = Duration::from_secs(20);

/// What is answered to a request such as `GET /metrics`: status line and body.
pub async fn get(address: SocketAddr, request: &str) -> Result<(String, String)> {
    let asked = async { exchange(TcpStream::connect(address).await?, request, "").await };
    tokio::time::timeout(PATIENCE, asked).await?
}

/// What dials servers that are certified under this authority, with a certificate of the client's own if it has one.
pub fn connector(authority: &str, client: Option<&Leaf>) -> Result<TlsConnector> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.as_bytes())?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let config = match client {
        Some(leaf) => config.with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(leaf.certificate.as_bytes())?],
            PrivateKeyDer::from_pem_slice(leaf.key.as_bytes())?,
        )?,
        None => config.with_no_client_auth(),
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The same over TLS, from a server that is certified for `localhost` under this authority; with more lines of the head,
/// and a certificate of the client's own if it has one.
pub async fn get_over_tls(
    address: SocketAddr,
    authority: &str,
    client: Option<&Leaf>,
    (request, head): (&str, &str),
) -> Result<(String, String)> {
    let connector = connector(authority, client)?;
    let asked = async {
        let stream = TcpStream::connect(address).await?;
        let stream = connector.connect("localhost".try_into()?, stream).await?;
        exchange(stream, request, head).await
    };
    tokio::time::timeout(PATIENCE, asked).await?
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
    head: &str,
) -> Result<(String, String)> {
    let request = format!("{request} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{head}\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no end of the head")?;
    Ok((head.lines().next().unwrap_or_default().to_owned(), body.to_owned()))
}
