//! Stock clients run their ordinary flows: directly, which is the baseline, and through Sidegate. Every client of the
//! list runs or the suite fails; what ran stands in its output.

mod flows;

use flows::{prepare_bench, run, Endpoint, CLIENTS};
use sidegate_tests::ports;
use sidegate_tests::postgres::{Major, Options, Postgres, SUPERUSER, SUPERUSER_PASSWORD};
use sidegate_tests::shop::{self, Shop};

/// pgbench's tables; its history has no key, so it only grows.
const BENCH: &str =
    "    - {name: bench, effect: Allow, sql: {commands: [Select, Insert, Update], tables: [\"public.pgbench_*\"]}}";

fn server(major: Major) -> Postgres {
    let server = shop::server(major, Options::default()).unwrap();
    prepare_bench(&server, shop::DATABASE, shop::ROLE).unwrap();
    server
}

#[test]
fn every_client_passes_its_flow_directly() {
    for major in [Major::V15, Major::V18] {
        let server = server(major);
        let endpoint = Endpoint {
            port: server.port,
            user: SUPERUSER.into(),
            password: Some(SUPERUSER_PASSWORD.into()),
            database: shop::DATABASE.into(),
            masked: false,
            gated: false,
        };
        for client in CLIENTS {
            println!("{major:?}: {}", run(client, &endpoint).unwrap());
        }
    }
}

async fn through_the_gate(major: Major) {
    let (server, port) = (server(major), ports::free().unwrap());
    let config = shop::configuration(server.port, port, BENCH, "");
    let world = shop::setup(config).start().await.unwrap();
    let shop = Shop { server, world, port };
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
        let ran = tokio::task::spawn_blocking(move || run(client, &endpoint))
            .await
            .unwrap();
        match ran {
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
