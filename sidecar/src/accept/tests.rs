//! Listeners: all families or none, never shared, nobody else's connections, nobody out of the kill switch's reach.

#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::json;
use sidegate_policies::api::lockdown::{Everything, Freeze, LockdownAction};
use sidegate_policies::wire::{DenyEntry, DenySet};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::testing::{echo, free_port, policy, target, Bench};

fn open() -> serde_json::Value {
    json!([{"name": "any", "effect": "Allow"}])
}

fn shop() -> TargetId {
    TargetId::new("data", "shop")
}

#[tokio::test]
async fn pod_1_every_loopback_family_is_held() {
    let (bench, address, port) = (Bench::new(), echo().await, free_port());
    bench.enforce(
        json!([target("TCP", address.port(), port)]),
        json!([policy(open(), json!({}))]),
    );
    let held = bench.enforcer.listeners.addresses(&shop());
    assert!(held.contains(&SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
    let has_v6 = std::net::UdpSocket::bind("[::1]:0").is_ok();
    assert_eq!(held.len(), if has_v6 { 2 } else { 1 });
    for address in held {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"hi").await.unwrap();
        let mut answer = [0u8; 2];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"hi");
    }
}

#[tokio::test]
async fn pod_3_a_taken_port_is_an_error_that_names_it_and_is_held_on_no_family() {
    let bench = Bench::new();
    let other = std::net::TcpListener::bind("[::1]:0").or_else(|_| std::net::TcpListener::bind("127.0.0.1:0"));
    let other = other.unwrap();
    let taken = other.local_addr().unwrap();
    bench.enforce(
        json!([target("TCP", 1, taken.port())]),
        json!([policy(open(), json!({}))]),
    );
    let problem = bench.enforcer.listeners.problem(&shop()).unwrap();
    assert!(
        matches!(problem, ListenError::Taken { port, .. } if port == taken.port()),
        "{problem}"
    );
    assert!(bench.enforcer.listeners.addresses(&shop()).is_empty());
    if taken.is_ipv6() {
        let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, taken.port()));
        assert!(
            TcpStream::connect(v4).await.is_err(),
            "not held on the other family either"
        );
    }
    // Once it is free, the next bundle listens.
    drop(other);
    bench.enforce(
        json!([target("TCP", 1, taken.port())]),
        json!([policy(open(), json!({}))]),
    );
    assert!(bench.enforcer.listeners.problem(&shop()).is_none());
}

#[tokio::test]
async fn pod_5_connections_of_other_users_are_closed_before_a_byte() {
    let own = nix::unistd::getuid().as_raw();
    for (agent, served) in [(own, true), (own.wrapping_add(1), false)] {
        let (bench, address, port) = (Bench::for_agent(Some(agent)), echo().await, free_port());
        bench.enforce(
            json!([target("TCP", address.port(), port)]),
            json!([policy(open(), json!({}))]),
        );
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let _ = stream.write_all(b"hi").await;
        let mut answer = [0u8; 2];
        assert_eq!(stream.read_exact(&mut answer).await.is_ok(), served);
        assert_eq!(bench.authority.metrics.foreign.get(), u64::from(!served));
    }
}

#[tokio::test]
async fn a_target_that_goes_away_stops_listening_and_its_sessions_end() {
    let (bench, address, port) = (Bench::new(), echo().await, free_port());
    bench.enforce(
        json!([target("TCP", address.port(), port)]),
        json!([policy(open(), json!({}))]),
    );
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(b"hi").await.unwrap();
    let mut answer = [0u8; 2];
    stream.read_exact(&mut answer).await.unwrap();
    bench.enforce(json!([]), json!([]));
    assert!(matches!(stream.read(&mut answer).await, Err(_) | Ok(0)));
    let retry = async {
        while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), retry).await.unwrap();
}

#[tokio::test]
async fn id_6_a_lockdown_cuts_an_open_connection_and_says_how_fast() {
    let (bench, address, port) = (Bench::new(), echo().await, free_port());
    bench.enforce(
        json!([target("TCP", address.port(), port)]),
        json!([policy(open(), json!({}))]),
    );
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(b"hi").await.unwrap();
    let mut answer = [0u8; 2];
    stream.read_exact(&mut answer).await.unwrap();
    let entry = DenyEntry {
        lockdown: "incident".into(),
        freeze: Freeze::Everything(Everything {}),
        action: LockdownAction::Close,
        until_ms: None,
    };
    let set = DenySet {
        revision: 1,
        entries: vec![entry],
    };
    let closed = bench.enforcer.deny(set).unwrap().await;
    assert_eq!(closed.sessions, 1);
    assert!(closed.took_us < 1_000_000, "{} µs", closed.took_us);
    assert!(bench.authority.sessions.is_empty());
    assert!(matches!(stream.read(&mut answer).await, Err(_) | Ok(0)));
    let mut refused = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    assert!(matches!(refused.read(&mut answer).await, Err(_) | Ok(0)));
}

#[tokio::test]
async fn a_session_ends_at_its_longest_life() {
    let (bench, address, port) = (Bench::new(), echo().await, free_port());
    let limits = json!({"maxSession": "300ms"});
    bench.enforce(
        json!([target("TCP", address.port(), port)]),
        json!([policy(open(), limits)]),
    );
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(b"hi").await.unwrap();
    let mut answer = [0u8; 2];
    stream.read_exact(&mut answer).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut answer)).await;
    assert!(matches!(ended.unwrap(), Err(_) | Ok(0)));
}
