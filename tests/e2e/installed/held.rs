//! Connections that are held at an injector, and say no more than they must.

use std::net::Ipv4Addr;

use anyhow::{ensure, Context, Result};
use sidegate_tests::http::connector;
use sidegate_tests::sockets::more_sockets;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::TlsConnector;

use super::{Installed, Replica, NAME, NAMESPACE};

/// Addresses that hold connections, and how many each: all that an injector takes of one, and of all.
const SOURCES: u8 = 4;
const EACH: usize = 512;

/// One that asked once, and rests. Nothing: it was turned away.
async fn held(connector: &TlsConnector, source: Ipv4Addr, port: u16) -> Option<TlsStream<TcpStream>> {
    let name = format!("{NAME}.{NAMESPACE}.svc").try_into().ok()?;
    let socket = TcpSocket::new_v4().ok()?;
    socket.bind((source, 0).into()).ok()?;
    let stream = socket.connect((Ipv4Addr::LOCALHOST, port).into()).await.ok()?;
    let mut stream = connector.connect(name, stream).await.ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.ok()?;
    let read = stream.read(&mut [0; 512]).await.ok()?;
    (read > 0).then_some(stream)
}

/// Whoever can reach the injector takes as many connections as there are, by several addresses. The API server, which comes
/// anew, is let in all the same, again and again.
pub fn who_holds_connections_keeps_nobody_out(installed: &mut Installed) -> Result<()> {
    let namespace = installed.labelled()?;
    more_sockets()?;
    let port = installed.replicas.first().map(Replica::port).context("no replica")?;
    let connector = connector(&installed.bundles()?[0], None)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut all = Vec::new();
    for last in 1..=SOURCES {
        let source = Ipv4Addr::new(127, 0, 1, last);
        for _ in 0..EACH {
            all.extend(runtime.block_on(held(&connector, source, port)));
        }
    }
    ensure!(all.len() > EACH, "only {} are held", all.len());
    for _ in 0..5 {
        // Whoever was connected must come again, to this one alone.
        installed.service.to(&[port]);
        ensure!(installed.injects(&namespace)?, "without a sidecar");
    }
    installed.behind();
    println!("installed: pods are made though {} connections were taken", all.len());
    Ok(())
}
