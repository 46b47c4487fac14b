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

/// Where a pod's hosts file leads the names of a Target.
fn at(ip: &str, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(ip.parse().unwrap(), port)
}

async fn echoes(address: impl tokio::net::ToSocketAddrs) -> bool {
    let Ok(mut stream) = TcpStream::connect(address).await else {
        return false;
    };
    let mut answer = [0u8; 2];
    let said = stream.write_all(b"hi").await.is_ok() && stream.read_exact(&mut answer).await.is_ok();
    said && &answer == b"hi"
}

fn other(address: u16, port: u16) -> serde_json::Value {
    let mut other = target("TCP", address, port);
    other["target"]["metadata"]["name"] = json!("other");
    other
}

#[tokio::test]
async fn the_names_of_a_target_lead_to_it_alone_and_on_its_real_port_alone() {
    let (real, echoing) = (free_port(), echo().await);
    let (shop_at, other_at) = (at("127.71.3.4", real), at("127.71.3.5", real));
    let named = BTreeMap::from([(shop(), shop_at), (TargetId::new("data", "other"), other_at)]);
    let (bench, ports) = (Bench::named(named), [free_port(), free_port()]);
    let both = json!([target("TCP", echoing.port(), ports[0]), other(echoing.port(), ports[1])]);
    bench.enforce(both, json!([policy(open(), json!({}))]));
    assert!(bench.enforcer.listeners.addresses(&shop()).contains(&shop_at.into()));
    assert!(echoes(shop_at).await && echoes(("127.0.0.1", ports[0])).await);
    // The other one listens, is nobody's, and is refused as such.
    assert!(TcpStream::connect(other_at).await.is_ok());
    assert!(!echoes(other_at).await && !echoes(("127.0.0.1", ports[1])).await);
    for elsewhere in [
        at("127.0.0.1", real),
        at("127.71.3.4", ports[0]),
        at("127.71.3.6", real),
    ] {
        assert!(TcpStream::connect(elsewhere).await.is_err(), "{elsewhere}");
    }
}

#[tokio::test]
async fn the_address_of_names_stays_when_a_port_moves_and_goes_with_its_target() {
    let (shop_at, echoing) = (at("127.71.3.7", free_port()), echo().await);
    let bench = Bench::named(BTreeMap::from([(shop(), shop_at)]));
    let allowed = json!([policy(open(), json!({}))]);
    let [before, after] = [free_port(), free_port()];
    bench.enforce(json!([target("TCP", echoing.port(), before)]), allowed.clone());
    bench.enforce(json!([target("TCP", echoing.port(), after)]), allowed);
    let held = bench.enforcer.listeners.addresses(&shop());
    assert!(
        held.contains(&shop_at.into()) && !held.iter().any(|held| held.port() == before),
        "{held:?}"
    );
    assert!(echoes(shop_at).await && echoes(("127.0.0.1", after)).await);
    bench.enforce(json!([]), json!([]));
    let gone = async {
        while TcpStream::connect(shop_at).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone).await.unwrap();
}

#[tokio::test]
async fn where_the_address_of_names_is_taken_nothing_is_held() {
    let taken = std::net::TcpListener::bind("127.71.3.8:0").unwrap();
    let real = taken.local_addr().unwrap().port();
    let (bench, port) = (
        Bench::named(BTreeMap::from([(shop(), at("127.71.3.8", real))])),
        free_port(),
    );
    bench.enforce(json!([target("TCP", 1, port)]), json!([policy(open(), json!({}))]));
    let problem = bench.enforcer.listeners.problem(&shop()).unwrap();
    assert!(problem.to_string().contains("127.71.3.8"), "{problem}");
    assert!(problem.to_string().contains("no hostnames"), "{problem}");
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
}

/// UPS-9: even a Target that states it, in local mode, is never dialled where names lead to the sidecar itself.
#[tokio::test]
async fn a_target_is_not_dialled_where_its_own_names_lead() {
    let (shop_at, allowed) = (at("127.71.3.9", free_port()), json!([policy(open(), json!({}))]));
    let bench = Bench::named(BTreeMap::from([(shop(), shop_at)]));
    bench.enforce(json!([target("TCP", 1, free_port())]), allowed);
    let mut looping = TargetState::announced(shop(), sidegate_policies::api::target::TargetProtocol::Tcp, 1);
    looping.spec.address.host = shop_at.ip().to_string();
    looping.spec.address.port = i32::from(shop_at.port());
    looping.loopback = true;
    let refused = crate::dial::dial(&looping, &bench.enforcer.listeners.context.dial).await;
    let refused = refused.err().unwrap().to_string();
    assert!(refused.contains("own listeners"), "{refused}");
}
