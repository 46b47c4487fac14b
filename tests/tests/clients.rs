//! Stock clients of other languages run their ordinary flows: directly, which is the baseline, and through Sidegate.

use sidegate_tests::clients::{self, Endpoint, CLIENTS};
use sidegate_tests::postgres::{Major, Postgres, SUPERUSER, SUPERUSER_PASSWORD};

const SCHEMA: &str = include_str!("../clients/schema.sql");

fn server(major: Major) -> Postgres {
    let server = Postgres::start(major).unwrap();
    server.sql("postgres", "CREATE DATABASE shop").unwrap();
    server.sql("shop", SCHEMA).unwrap();
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
            database: "shop".into(),
            masked: false,
            gated: false,
        };
        for client in CLIENTS {
            println!("{major:?}: {}", clients::run(client, &endpoint).unwrap());
        }
    }
}
