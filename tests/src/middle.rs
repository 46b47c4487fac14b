//! A man in the middle who holds a certificate the gate trusts: he ends TLS on one side and opens it again on the other,
//! and passes every byte of the login on. Only a login bound to the server's certificate notices him.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{ensure, Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{copy_bidirectional, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::authority::{Authority, Leaf};

/// SSLRequest.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Listens before the server at `port`, with a certificate of `authority` for 127.0.0.1; answers his own address.
#[allow(clippy::disallowed_methods)] // his tasks end with the test's runtime
pub async fn start(authority: &Authority, port: u16) -> Result<SocketAddr> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let Leaf { certificate, key } = authority.leaf(&["127.0.0.1"])?;
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes())?];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    server.alpn_protocols = vec![b"postgresql".to_vec()];
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes())?)?;
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (acceptor, connector) = (
        TlsAcceptor::from(Arc::new(server)),
        TlsConnector::from(Arc::new(client)),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((victim, _)) = listener.accept().await {
            // A connection that breaks off is the point of the exercise.
            tokio::spawn(between(victim, port, acceptor.clone(), connector.clone()));
        }
    });
    Ok(address)
}

async fn between(mut victim: TcpStream, port: u16, acceptor: TlsAcceptor, connector: TlsConnector) -> Result<()> {
    let mut asked = [0; 8];
    victim.read_exact(&mut asked).await?;
    ensure!(asked == SSL_REQUEST, "no TLS asked for");
    victim.write_all(b"S").await?;
    let mut victim = acceptor.accept(victim).await?;
    let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
    server.write_all(&SSL_REQUEST).await?;
    ensure!(server.read_u8().await? == b'S', "the server has no TLS");
    let name = ServerName::try_from("127.0.0.1").context("a name")?;
    let mut server = connector.connect(name, server).await?;
    copy_bidirectional(&mut victim, &mut server).await?;
    Ok(())
}
