//! The waist between broker and sidecar, over the real network API: a raw TCP target from the agent's socket to a
//! server's, bundles and deny frames while sessions are open, and what is left when the broker goes away.

use std::net::TcpListener;
use std::time::Duration;

use sidegate_tests::ports;
use sidegate_tests::world::{Setup, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);

/// A server that sends back what it gets.
fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
    port
}

fn configuration(server: u16, local: u16, rules: &str) -> String {
    format!(
        "apiVersion: sidegate.dev/v1alpha1
kind: Target
metadata: {{name: cache, namespace: data}}
spec:
  protocol: TCP
  address: {{host: 127.0.0.1, port: {server}}}
  tls: {{mode: Disabled}}
  credential: {{none: {{}}}}
  listen: {{port: {local}}}
  allowedNamespaces: {{selector: {{}}}}
---
apiVersion: sidegate.dev/v1alpha1
kind: AccessPolicy
metadata: {{name: caches, namespace: data}}
spec:
  targetRefs: [{{name: cache}}]
  subjects: [{{serviceAccount: {{namespace: agents, name: support}}}}]
  rules:
{rules}
"
    )
}

const ALLOW: &str = "  - {name: any, effect: Allow}";
const DENY: &str = "  - {name: no, effect: Deny}";

async fn connect(local: u16) -> TcpStream {
    TcpStream::connect(("127.0.0.1", local)).await.unwrap()
}

/// Whether two bytes come back.
async fn echoes(stream: &mut TcpStream) -> bool {
    let mut answer = [0u8; 2];
    if stream.write_all(b"hi").await.is_err() {
        return false;
    }
    matches!(timeout(SOON, stream.read_exact(&mut answer)).await, Ok(Ok(_))) && &answer == b"hi"
}

/// Whether a new connection is served; one that is reset at once may already fail to open.
async fn serves(local: u16) -> bool {
    match TcpStream::connect(("127.0.0.1", local)).await {
        Ok(mut stream) => echoes(&mut stream).await,
        Err(_) => false,
    }
}

/// Waits until the connection is ended from the other side.
async fn is_cut(stream: &mut TcpStream) -> bool {
    let mut rest = [0u8; 16];
    matches!(timeout(SOON, stream.read(&mut rest)).await, Ok(Err(_) | Ok(0)))
}

async fn world(server: u16, local: u16) -> World {
    Setup::new(configuration(server, local, ALLOW)).start().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pol_11_an_edit_that_denies_cuts_the_open_stream_and_refuses_the_next() {
    let (server, local) = (echo(), ports::free().unwrap());
    let world = world(server, local).await;
    let mut stream = connect(local).await;
    assert!(echoes(&mut stream).await);
    world.configure(&configuration(server, local, DENY)).unwrap();
    assert!(is_cut(&mut stream).await);
    assert!(!serves(local).await);
    let status = world.sidecar.status().borrow().clone();
    assert_eq!((status.panics, status.bundle.is_some()), (0, true));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_broker_refuses_new_work() {
    let (server, local) = (echo(), ports::free().unwrap());
    let world = world(server, local).await;
    assert!(serves(local).await);
    let World { broker, sidecar, .. } = world;
    broker.shutdown().await;
    // Five seconds of silence at most, then every new connection is refused.
    let refused = async { while serves(local).await {} };
    timeout(SOON, refused).await.unwrap();
    assert!(!serves(local).await, "and it stays so");
    assert_eq!(sidecar.shutdown().await, 0, "no task is left behind");
}
