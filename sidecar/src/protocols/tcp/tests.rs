//! The raw TCP room, from a client's socket to a server's.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::time::Duration;

use serde_json::json;
use sidegate_policies::api::access_request::RequestState;
use sidegate_policies::record::Kind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::testing::{echo, free_port, policy, target, Bench};

fn allow() -> serde_json::Value {
    json!([{"name": "any", "effect": "Allow"}])
}

/// A bench that leads to `server`, and a connection through it.
async fn through(server: u16, rules: serde_json::Value, limits: serde_json::Value) -> (Bench, TcpStream) {
    let (bench, port) = (Bench::new(), free_port());
    bench.enforce(json!([target("TCP", server, port)]), json!([policy(rules, limits)]));
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    (bench, stream)
}

/// Everything until the end; none if the connection was reset.
async fn rest(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut all));
    read.await.unwrap().ok().map(|_| all)
}

#[tokio::test]
async fn bytes_pass_half_close_is_kept_and_all_is_recorded() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (bench, mut stream) = through(server.local_addr().unwrap().port(), allow(), json!({})).await;
    stream.write_all(b"question").await.unwrap();
    stream.shutdown().await.unwrap();
    let (mut accepted, _) = server.accept().await.unwrap();
    assert_eq!(rest(&mut accepted).await.unwrap(), b"question");
    accepted.write_all(b"answer after the end").await.unwrap();
    drop(accepted);
    assert_eq!(rest(&mut stream).await.unwrap(), b"answer after the end");
    bench.until_recorded(Kind::Close).await;
    let kinds = bench.recorded.lock().unwrap().clone();
    for kind in [
        Kind::Open,
        Kind::Pins,
        Kind::Intent,
        Kind::Body,
        Kind::Outcome,
        Kind::Close,
    ] {
        assert!(kinds.contains(&kind), "{kind:?} in {kinds:?}");
    }
    let at = |kind| kinds.iter().position(|found| *found == kind);
    assert!(at(Kind::Intent) < at(Kind::Outcome));
}

#[tokio::test]
async fn a_client_that_writes_much_before_it_reads_is_served() {
    let (_bench, stream) = through(echo().await.port(), allow(), json!({})).await;
    let (mut read, mut write) = stream.into_split();
    let sent: Vec<u8> = (0..4_000_000u32).map(|number| number as u8).collect();
    let expected = sent.clone();
    let writing = async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let reading = async {
        let mut all = Vec::new();
        read.read_to_end(&mut all).await.unwrap();
        all
    };
    let ((), all) = tokio::join!(writing, reading);
    assert!(all == expected);
}

#[tokio::test]
async fn a_denied_connection_is_reset_and_the_target_never_sees_it() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let deny = json!([{"name": "no", "effect": "Deny"}]);
    let (bench, mut stream) = through(server.local_addr().unwrap().port(), deny, json!({})).await;
    assert!(rest(&mut stream).await.is_none_or(|all| all.is_empty()));
    bench.until_recorded(Kind::Close).await;
    assert!(bench.recorded.lock().unwrap().contains(&Kind::Denied));
    let seen = tokio::time::timeout(Duration::from_millis(50), server.accept()).await;
    assert!(seen.is_err(), "the target saw a connection");
}

#[tokio::test]
async fn a_known_protocol_is_refused_unless_the_target_carries_it() {
    for carried in [false, true] {
        let (bench, port) = (Bench::new(), free_port());
        let mut target = target("TCP", echo().await.port(), port);
        if carried {
            target["target"]["spec"]["carries"] = json!(["HTTP"]);
        }
        bench.enforce(json!([target]), json!([policy(allow(), json!({}))]));
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut first = [0u8; 4];
        let answer = stream.read_exact(&mut first).await;
        assert_eq!(answer.is_ok(), carried);
    }
}

#[tokio::test]
async fn server_first_protocols_are_not_waited_for() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (_bench, mut stream) = through(server.local_addr().unwrap().port(), allow(), json!({})).await;
    let (mut accepted, _) = server.accept().await.unwrap();
    accepted.write_all(b"220 ready\r\n").await.unwrap();
    let mut greeting = [0u8; 11];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 ready\r\n");
}

#[tokio::test]
async fn the_byte_cap_stops_the_stream() {
    let (bench, mut stream) = through(echo().await.port(), allow(), json!({"bytes": "10"})).await;
    stream.write_all(b"12345").await.unwrap();
    let mut first = [0u8; 5];
    stream.read_exact(&mut first).await.unwrap();
    stream.write_all(b"1234567890").await.unwrap();
    assert!(rest(&mut stream).await.is_none_or(|all| all.is_empty()));
    bench.until_recorded(Kind::Close).await;
}

#[tokio::test]
async fn a_connection_may_wait_for_a_person() {
    let rules = json!([{"name": "ask", "effect": "Ask", "ask": {"approvers": [{"anyone": {}}]}}]);
    let (bench, mut stream) = through(echo().await.port(), rules, json!({})).await;
    stream.write_all(b"hi").await.unwrap();
    let asked = async {
        while bench.people.asked.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), asked).await.unwrap();
    bench.people.say(RequestState::Granted);
    let mut answer = [0u8; 2];
    tokio::time::timeout(Duration::from_secs(10), stream.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&answer, b"hi");
}
