//! An agent that points the target's name at its own server gets no credential: the redirect demonstration. Nor does a
//! place that an operator points a Target at hear the credential of the one before.

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use sidegate_tests::names::NameServer;
use sidegate_tests::ports;
use sidegate_tests::postgres::{Major, Options};
use sidegate_tests::psql::psql_async;
use sidegate_tests::shop::{self, DATABASE, ROLE};

/// A server of the agent's that counts what it is told.
fn trap() -> (u16, Arc<AtomicU64>) {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let (port, heard) = (listener.local_addr().unwrap().port(), Arc::new(AtomicU64::new(0)));
    let count = heard.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            count.fetch_add(1, Ordering::SeqCst);
            let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
            let mut bytes = Vec::new();
            let _ = stream.read_to_end(&mut bytes);
            count.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        }
    });
    (port, heard)
}

fn own_address() -> Option<Ipv4Addr> {
    let interfaces = nix::ifaddrs::getifaddrs().ok()?;
    let mut addresses = interfaces.filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip()));
    addresses.find(|ip| !ip.is_loopback())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ups_3_a_name_that_leads_home_is_never_dialled() {
    let (port, heard) = trap();
    let names = NameServer::start().unwrap();
    let local = ports::free().unwrap();
    let config = shop::configuration(port, local, "", "").replace("host: 127.0.0.1", "host: orders.db.test");
    let world = shop::setup(config).name_server(names.address).start().await.unwrap();
    let mut homes = vec![
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::new(127, 8, 9, 10),
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::new(169, 254, 169, 254),
        Ipv4Addr::new(224, 0, 0, 1),
    ];
    homes.extend(own_address());
    for home in homes {
        names.set("orders.db.test", &[home]);
        let said = psql_async(local, DATABASE, &["SELECT 1"]).await.unwrap();
        assert!(said.code != 0 && said.out.is_empty(), "{home}: {said:?}");
        assert_eq!(heard.load(Ordering::SeqCst), 0, "{home} was dialled");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_whose_credential_changed_is_logged_in_to_with_no_other_one() {
    let server = shop::server(Major::V15, Options::default()).unwrap();
    server
        .sql(
            DATABASE,
            &format!("CREATE ROLE other LOGIN PASSWORD 'other-pw' IN ROLE {ROLE}"),
        )
        .unwrap();
    let local = ports::free().unwrap();
    let config = shop::configuration(server.port, local, "", "");
    let world = shop::setup(config.clone())
        .secret("data/other/username", "other")
        .secret("data/other/password", "other-pw")
        .start()
        .await
        .unwrap();
    let who = || async {
        let said = psql_async(local, DATABASE, &["SELECT current_user FROM app.people LIMIT 1"]).await;
        said.unwrap().out.trim().to_owned()
    };
    assert_eq!(who().await, ROLE);
    let mut status = world.sidecar.status();
    let before = status.borrow_and_update().bundle.clone();
    world
        .configure(&config.replace("name: shop-agent", "name: other"))
        .unwrap();
    status.wait_for(|status| status.bundle != before).await.unwrap();
    assert_eq!(who().await, "other");
    world.stop().await;
}
