//! Taking connections: the one loop that a broken `accept` does not spin, and that ends when it is time.
//!
//! Refuses nothing: how many are taken is the caller's. The invariant: it never fails, and never waits past the stop.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Out of descriptors, most likely: so long the others have to end.
const PAUSE: Duration = Duration::from_millis(50);

/// The next connection and who calls; nothing once it is time to stop. It may be dropped while it waits.
pub async fn next(listener: &TcpListener, stop: &CancellationToken) -> Option<(TcpStream, SocketAddr)> {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(accepted) => return Some(accepted),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}
