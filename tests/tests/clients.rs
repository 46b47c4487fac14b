//! Stock clients of other languages run their ordinary flows: directly, which is the baseline, and through Sidegate.

use sidegate_tests::clients::{self, Endpoint, CLIENTS};
use sidegate_tests::postgres::{Major, Options, SUPERUSER, SUPERUSER_PASSWORD};
use sidegate_tests::shop::{self, Shop};

#[test]
fn every_client_passes_its_flow_directly() {
    for major in [Major::V15, Major::V18] {
        let server = shop::server(major, Options::default()).unwrap();
        let endpoint = Endpoint {
            port: server.port,
            user: SUPERUSER.into(),
            password: Some(SUPERUSER_PASSWORD.into()),
            database: shop::DATABASE.into(),
            masked: false,
            gated: false,
        };
        for client in CLIENTS {
            println!("{major:?}: {}", clients::run(client, &endpoint).unwrap());
        }
    }
}

async fn through_the_gate(major: Major) {
    let shop = Shop::start(major).await.unwrap();
    let endpoint = Endpoint {
        port: shop.port,
        user: "whoever".into(),
        password: None,
        database: shop::DATABASE.into(),
        masked: true,
        gated: true,
    };
    let mut failed = Vec::new();
    for client in CLIENTS {
        let endpoint = endpoint.clone();
        let run = tokio::task::spawn_blocking(move || clients::run(client, &endpoint))
            .await
            .unwrap();
        match run {
            Ok(line) => println!("{major:?}: {line}"),
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
    shop.world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_passes_its_flow_through_the_gate_on_15() {
    through_the_gate(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_passes_its_flow_through_the_gate_on_18() {
    through_the_gate(Major::V18).await;
}
