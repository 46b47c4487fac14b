//! What broker and sidecar count is there to be scraped, and nothing an agent writes is in it.

use sidegate_tests::http::get;
use sidegate_tests::postgres::Major;
use sidegate_tests::psql::psql_async;
use sidegate_tests::shop::{Shop, DATABASE, PASSWORD};
use sidegate_tests::wire::{startup, Wire};

/// What the agent writes everywhere it can.
const MARK: &str = "zqx_agent_text";

/// After a session that read, was refused and named itself, both pages have their numbers; neither has the agent's words,
/// the secret or a row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_are_scraped_and_no_agent_text_is_among_them() {
    let shop = Shop::start(Major::V15).await.unwrap();
    let marked = [
        format!("SET application_name = '{MARK}'"),
        format!("SELECT name AS {MARK} FROM app.people WHERE id = 1"),
        format!("DROP TABLE {MARK}"),
        format!("SELECT '{MARK}'"),
    ];
    for text in &marked {
        psql_async(shop.port, DATABASE, &[text.as_str()]).await.unwrap();
    }
    let port = shop.port;
    tokio::task::spawn_blocking(move || {
        let mut wire = Wire::dial(port).unwrap();
        let named = [
            ("user", MARK),
            ("database", MARK),
            ("application_name", MARK),
            (MARK, MARK),
        ];
        wire.send(&startup(0, &named)).unwrap();
        while let Ok(Some(_)) = wire.receive() {}
    })
    .await
    .unwrap();
    let scraped = shop.world.sidecar.scrape_addrs[0];
    let (status, sidecar) = get(scraped, "GET /metrics").await.unwrap();
    assert_eq!(status, "HTTP/1.1 200 OK");
    for begins in [
        "sidegate_operations_allowed_total ",
        "sidegate_operations_denied_total ",
        r#"sidegate_sessions_closed_total{reason="ended"} "#,
        r#"sidegate_lease_seconds_to_expiry{target="data/shop"} 8"#,
        r#"sidegate_lease_fetch_seconds_count{result="granted"} 1"#,
        "sidegate_lease_waiters 0",
        "sidegate_stream_silence_seconds ",
        "sidegate_bundle_age_seconds ",
        "sidegate_deny_revision ",
        "sidegate_kept_refused_total 0",
        "sidegate_streams_lost_total 0",
        "sidegate_heartbeats_skewed_total 0",
        "sidegate_sat_age_seconds ",
    ] {
        let found = sidecar.lines().any(|line| line.starts_with(begins));
        assert!(found, "{begins}\n{sidecar}");
    }
    let health = shop.world.broker.health_addr.unwrap();
    let (status, broker) = get(health, "GET /metrics").await.unwrap();
    assert_eq!(status, "HTTP/1.1 200 OK");
    for begins in [
        "sidegate_broker_push_seconds_count 1",
        r#"sidegate_broker_leases_active{kind="secret"} 1"#,
        r#"sidegate_broker_attest_seconds_count{step="review"} 1"#,
        "sidegate_broker_tls_not_after_seconds 1",
        "sidegate_broker_streams 1",
    ] {
        assert!(
            broker.lines().any(|line| line.starts_with(begins)),
            "{begins}\n{broker}"
        );
    }
    for page in [&sidecar, &broker] {
        for never in [MARK, PASSWORD, "Ada", "SELECT"] {
            assert!(!page.contains(never), "{never} in\n{page}");
        }
    }
    // The agent reaches this port: there is nothing else behind it.
    for other in [
        "POST /metrics",
        "GET /",
        "GET /metrics/",
        "DELETE /v1/leases/x",
        "GET /readyz",
    ] {
        let (status, body) = get(scraped, other).await.unwrap();
        assert!(status.contains("404") && body.is_empty(), "{other}: {status} {body}");
    }
    shop.world.stop().await;
}
