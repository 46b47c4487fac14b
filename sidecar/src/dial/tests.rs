//! The upstream guards, one test per rule, against real sockets and a small name server double.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use sidegate_policies::api::target::TargetProtocol;
use sidegate_policies::engine::TargetId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use super::*;

/// Answers A and AAAA questions from a table that can be changed; counts questions.
struct Dns {
    address: SocketAddr,
    table: Arc<RwLock<HashMap<String, Vec<IpAddr>>>>,
    asked: Arc<std::sync::atomic::AtomicUsize>,
}

impl Dns {
    async fn start() -> Dns {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let dns = Dns {
            address: socket.local_addr().unwrap(),
            table: Arc::default(),
            asked: Arc::default(),
        };
        let (table, asked) = (dns.table.clone(), dns.asked.clone());
        crate::task::Tasks::default().spawn("dns", async move {
            let mut buffer = [0u8; 512];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let answer = answer(&buffer[..length], &table.read().unwrap());
                socket.send_to(&answer, from).await.unwrap();
            }
        });
        dns
    }

    fn set(&self, name: &str, ips: &[&str]) {
        let ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        self.table.write().unwrap().insert(name.to_owned(), ips);
    }

    fn context(&self) -> DialContext {
        DialContext::new(Names::new(&[self.address]), true)
    }
}

fn answer(question: &[u8], table: &HashMap<String, Vec<IpAddr>>) -> Vec<u8> {
    let mut labels = Vec::new();
    let mut at = 12;
    while question[at] != 0 {
        let length = usize::from(question[at]);
        labels.push(String::from_utf8_lossy(&question[at + 1..at + 1 + length]).to_lowercase());
        at += length + 1;
    }
    let kind = u16::from_be_bytes([question[at + 1], question[at + 2]]);
    let ips = table.get(&labels.join(".")).cloned().unwrap_or_default();
    let records: Vec<Vec<u8>> = ips
        .iter()
        .filter_map(|ip| match (ip, kind) {
            (IpAddr::V4(v4), 1) => Some(v4.octets().to_vec()),
            (IpAddr::V6(v6), 28) => Some(v6.octets().to_vec()),
            _ => None,
        })
        .collect();
    let mut out = question[..2].to_vec();
    out.extend_from_slice(&[0x81, 0x80, 0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
    out.extend_from_slice(&question[12..at + 5]);
    for record in records {
        out.extend_from_slice(&[0xc0, 12]);
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, record.len() as u8]);
        out.extend_from_slice(&record);
    }
    out
}

fn target(host: &str, port: u16) -> TargetState {
    let mut target = TargetState::announced(TargetId::new("data", "shop"), TargetProtocol::Tcp, 1);
    target.spec.address.host = host.to_owned();
    target.spec.address.port = i32::from(port);
    target
}

fn stated_loopback(port: u16) -> TargetState {
    let mut target = target("127.0.0.1", port);
    target.loopback = true;
    target
}

fn literal_context(allow: bool) -> DialContext {
    DialContext::new(Names::new(&[]), allow)
}

async fn refused(target: &TargetState, context: &DialContext) -> DialError {
    dial(target, context).await.err().unwrap()
}

#[tokio::test]
async fn ups_1_names_go_to_our_own_resolver_and_never_to_the_hosts_file() {
    // The hosts file of every machine knows `localhost`; the configured server says something else.
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let known = hosts
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .flat_map(|line| line.split_whitespace().skip(1))
        .find(|name| guard::host(name).is_some() && !name.contains("localhost") && !name.starts_with("ip6-"));
    let dns = Dns::start().await;
    let names = Names::new(&[dns.address]);
    let name = known.unwrap_or("db.example");
    dns.set(name, &["203.0.113.7"]);
    let found = names.resolve(name).await.unwrap();
    assert_eq!(found, ["203.0.113.7".parse::<IpAddr>().unwrap()]);
    assert!(dns.asked.load(std::sync::atomic::Ordering::SeqCst) > 0);
    // Without a server there is nothing to fall back to.
    assert!(matches!(
        refused(&target("localhost", 1), &literal_context(true)).await,
        DialError::Names(NamesError::NoServers(_))
    ));
}

#[tokio::test]
async fn ups_2_the_checked_address_is_dialled_and_one_bad_address_forbids_all() {
    let dns = Dns::start().await;
    dns.set("mixed.example", &["203.0.113.7", "127.0.0.1"]);
    let context = dns.context();
    let error = refused(&target("mixed.example", 5432), &context).await;
    assert!(matches!(error, DialError::Forbidden(Forbidden::Loopback(_))), "{error}");

    // A rebinding server answers well once and badly the next time: each dial checks what it dials.
    dns.set("rebind.example", &["203.0.113.7"]);
    let target = target("rebind.example", 5432);
    let first = context.addresses(&target).await.unwrap();
    assert_eq!(first, ["203.0.113.7:5432".parse::<SocketAddr>().unwrap()]);
    dns.set("rebind.example", &["169.254.169.254"]);
    let context = dns.context();
    assert!(matches!(refused(&target, &context).await, DialError::Forbidden(_)));
}

#[test]
fn ups_3_special_addresses_are_refused_in_every_form() {
    let own = guard::own_addresses();
    for ip in [
        "127.0.0.1",
        "127.255.0.1",
        "0.0.0.0",
        "0.1.2.3",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "240.0.0.1",
        "100.100.100.200",
        "168.63.129.16",
        "::1",
        "::",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "fd00:ec2::254",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "::ffff:0:127.0.0.1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "64:ff9b::7f00:1",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1:7f00:0:100::",
        "64:ff9b:1::127.0.0.1",
        "2001:0:7f00:1::",
        "2001:0:1::80ff:fffe",
        "2620:0:0:0:0:5efe:127.0.0.1",
    ] {
        let parsed: IpAddr = ip.parse().unwrap();
        assert!(guard::check(parsed, false, &own).is_err(), "{ip}");
        // Even where loopback literals may be dialled, only true loopback is.
        assert_eq!(guard::check(parsed, true, &own).is_ok(), parsed.is_loopback(), "{ip}");
    }
    for ip in [
        "10.0.0.5",
        "192.168.1.1",
        "203.0.113.7",
        "2606:4700::1",
        "fd12:3456::1",
        "64:ff9b::8.8.8.8",
    ] {
        assert!(guard::check(ip.parse().unwrap(), false, &own).is_ok(), "{ip}");
    }
}

#[test]
fn ups_3_own_interfaces_are_refused_and_unreadable_ones_refuse_all() {
    let ip: IpAddr = "10.1.2.3".parse().unwrap();
    let own = Some(vec![ip]);
    assert_eq!(guard::check(ip, false, &own), Err(Forbidden::OwnInterface(ip)));
    let mapped = IpAddr::V6(Ipv4Addr::new(10, 1, 2, 3).to_ipv6_mapped());
    assert!(guard::check(mapped, false, &own).is_err());
    assert_eq!(guard::check(ip, false, &None), Err(Forbidden::Interfaces));
    assert!(guard::own_addresses()
        .unwrap()
        .contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
}

#[test]
fn ups_3_literals_follow_the_strict_grammar() {
    for bad in [
        "127.1",
        "0177.0.0.1",
        "0x7f.0.0.1",
        "2130706433",
        "0x7f000001",
        "1.2.3",
        "1.2.3.4.5",
        "01.2.3.4",
        "[::1]",
        "fe80::1%eth0",
        "",
        ".",
        "a..b",
        "-a.b",
        "a b",
        "a/b",
        "127.0.0.1.",
        "user@host",
        "host:1",
        "1.2.3.0x4",
    ] {
        assert!(guard::host(bad).is_none(), "{bad}");
    }
    assert_eq!(guard::host("::1"), Some(Host::Literal(IpAddr::V6(Ipv6Addr::LOCALHOST))));
    for name in ["db", "db.data.svc.cluster.local.", "a-1.example", "x_y.example"] {
        assert_eq!(guard::host(name), Some(Host::Name(name)));
    }
}

#[tokio::test]
async fn ups_3_loopback_needs_a_literal_the_target_states_and_a_process_that_allows_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    assert!(dial(&stated_loopback(port), &literal_context(true)).await.is_ok());
    // Each of the three by itself is not enough.
    for (target, allow) in [(stated_loopback(port), false), (target("127.0.0.1", port), true)] {
        let error = refused(&target, &literal_context(allow)).await;
        assert!(matches!(error, DialError::Forbidden(Forbidden::Loopback(_))), "{error}");
    }
    let dns = Dns::start().await;
    dns.set("me.example", &["127.0.0.1"]);
    let mut named = target("me.example", port);
    named.loopback = true;
    let error = refused(&named, &dns.context()).await;
    assert!(matches!(error, DialError::Forbidden(Forbidden::Loopback(_))), "{error}");
    // What resolvers know by heart counts as a name as well.
    let mut named = target("localhost", port);
    named.loopback = true;
    assert!(dial(&named, &dns.context()).await.is_err());
}

/// A server with a certificate for `db.example` by its own authority, which sends one line after the handshake.
async fn tls_server(names: &[&str]) -> (SocketAddr, String) {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
    let leaf = rcgen::CertificateParams::new(names)
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    let config = rustls::ServerConfig::builder_with_provider(crate::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            rustls_pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    crate::task::Tasks::default().spawn("server", async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(mut stream) = acceptor.accept(stream).await {
                let _ = stream.write_all(b"hello").await;
                let _ = stream.shutdown().await;
            }
        }
    });
    (address, ca_pem)
}

#[tokio::test]
async fn ups_4_the_peer_proves_itself_by_authority_and_name() {
    let (address, ca_pem) = tls_server(&["db.example"]).await;
    let context = literal_context(true);
    let mut target = stated_loopback(address.port());
    target.ca_pem = Some(ca_pem.clone());
    target.spec.tls.server_name = Some("db.example".to_owned());
    let dialled = dial(&target, &context).await.unwrap();
    let (mut stream, facts) = start_tls(dialled.stream, &target, &context, None).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!((text.as_str(), facts.server_name.as_str()), ("hello", "db.example"));
    assert_eq!(facts.server_end_point.unwrap().len(), 32);

    let mut other_name = stated_loopback(address.port());
    other_name.ca_pem = Some(ca_pem);
    other_name.spec.tls.server_name = Some("other.example".to_owned());
    let (_, other_ca) = tls_server(&["db.example"]).await;
    let mut other_authority = stated_loopback(address.port());
    other_authority.ca_pem = Some(other_ca);
    other_authority.spec.tls.server_name = Some("db.example".to_owned());
    for wrong in [other_name, other_authority] {
        let dialled = dial(&wrong, &context).await.unwrap();
        let error = start_tls(dialled.stream, &wrong, &context, None).await.err().unwrap();
        assert!(matches!(error, DialError::Tls(TlsError::Handshake(_))), "{error}");
    }
}

#[tokio::test]
async fn ups_6_a_server_without_tls_is_an_error_and_never_a_second_try() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut target = stated_loopback(port);
    target.spec.tls.server_name = Some("db.example".to_owned());
    target.ca_pem = Some(crate::tls::agent::AgentTls::new().unwrap().ca_pem().to_owned());
    let context = literal_context(true);
    assert!(wants_tls(&target), "VerifyFull is the default");
    let dialled = dial(&target, &context).await.unwrap();
    let (mut plain, _) = listener.accept().await.unwrap();
    let speaking = async {
        let mut seen = [0u8; 16];
        let _ = plain.read(&mut seen).await;
        let _ = plain.write_all(b"no TLS here, sorry").await;
    };
    let (started, ()) = tokio::join!(start_tls(dialled.stream, &target, &context, None), speaking);
    assert!(matches!(started.err().unwrap(), DialError::Tls(_)));
}

#[tokio::test]
async fn ups_7_what_a_peer_supplies_is_never_dialled() {
    // The broker client is the one part that speaks a protocol with redirects.
    assert!(crate::broker::Url::parse("https://127.0.0.1:1/path").is_err());
    assert!(crate::broker::Url::parse("https://user@127.0.0.1:1").is_err());
    assert!(crate::broker::Url::parse("http://127.0.0.1:1").is_err());
    // Where `dial` goes depends on the Target alone: there is no parameter that could carry another address.
    let _signature: fn(&'static TargetState, &'static DialContext) -> _ = |target, context| dial(target, context);
}

#[tokio::test]
async fn ups_8_each_target_trusts_its_own_authority_only() {
    let context = literal_context(true);
    let (address, ca_pem) = tls_server(&["db.example"]).await;
    let mut mine = stated_loopback(address.port());
    mine.ca_pem = Some(ca_pem);
    mine.spec.tls.server_name = Some("db.example".to_owned());
    let dialled = dial(&mine, &context).await.unwrap();
    assert!(start_tls(dialled.stream, &mine, &context, None).await.is_ok());
    // Another Target of the same process, same server, without that authority: nothing of the first carries over.
    let mut other = stated_loopback(address.port());
    other.spec.tls.server_name = Some("db.example".to_owned());
    other.ca_pem = Some(crate::tls::agent::AgentTls::new().unwrap().ca_pem().to_owned());
    let dialled = dial(&other, &context).await.unwrap();
    assert!(start_tls(dialled.stream, &other, &context, None).await.is_err());
}

#[tokio::test]
async fn ups_9_the_peer_is_the_checked_address_and_not_our_own_listener() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let context = literal_context(true);
    let stream = TcpStream::connect(address).await.unwrap();
    assert!(context.verify_peer(&stream, address).is_ok());
    let elsewhere = "127.0.0.1:9".parse().unwrap();
    assert!(matches!(
        context.verify_peer(&stream, elsewhere),
        Err(DialError::Peer { .. })
    ));
    context.own_listener(address);
    assert!(context.verify_peer(&stream, address).is_err());
    let error = refused(&stated_loopback(address.port()), &context).await;
    assert!(
        matches!(error, DialError::Forbidden(Forbidden::OwnListener(_))),
        "{error}"
    );
    context.forget_listener(&address);
    assert!(dial(&stated_loopback(address.port()), &context).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_name_server_that_never_answers_costs_ten_seconds_at_most() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let names = Names::new(&[silent.local_addr().unwrap()]);
    let context = DialContext::new(names, false);
    let started = tokio::time::Instant::now();
    let error = refused(&target("db.example", 5432), &context).await;
    assert!(
        started.elapsed() <= Duration::from_secs(10),
        "{:?} {error}",
        started.elapsed()
    );
}
