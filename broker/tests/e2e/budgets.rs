//! Who calls too often is turned away early, and nobody is locked out by somebody else's garbage.

use http::{Method, StatusCode};
use sidegate_broker::config::Limits;
use sidegate_policies::record::audit::read;
use sidegate_policies::record::layout::DirectoryStore;

use crate::client::{exchange, Answer};
use crate::world::World;

fn is_refused(answer: &Answer) -> bool {
    if answer.status != StatusCode::TOO_MANY_REQUESTS {
        return false;
    }
    assert_eq!(answer.error(), "temporarily_unavailable");
    assert_eq!(answer.headers["retry-after"], "1");
    true
}

#[tokio::test]
async fn a_pod_that_exchanges_too_often_is_told_to_come_back_and_does() {
    let world = World::start().await;
    let (token, mut client) = (world.token(), world.client());
    let mut good = 0;
    loop {
        let answer = client.exchange(&token).await;
        if is_refused(&answer) {
            break;
        }
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        good += 1;
    }
    assert_eq!(good, Limits::default().exchange.burst);
    world.clock.advance_ms(1000);
    assert_eq!(client.exchange(&token).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_flood_from_the_sidecars_address_is_refused_before_any_check_and_floods_no_log() {
    let world = World::start().await;
    let mut sidecar = world.sidecar().await;
    let mut agent = sidecar.twin();
    let mut checked = 0;
    for _ in 0..60 {
        // Without a proof this would be `invalid_dpop_proof`, with its own audit event.
        let answer = agent.form_with(&exchange("x"), None).await;
        if !is_refused(&answer) {
            assert_eq!(answer.error(), "invalid_dpop_proof");
            checked += 1;
        }
    }
    assert!(checked <= Limits::default().stranger.burst, "{checked}");
    let fine = sidecar.call(Method::GET, "/v1/record-keys", None).await;
    assert_eq!(fine.status, StatusCode::OK, "its sidecar calls on");
    assert_eq!(world.running.status().over_budget, u64::from(60 - checked));
    let store = world.path("state/records");
    world.running.shutdown().await;
    let events = read(&DirectoryStore::new(&store)).unwrap();
    let named = |name: &str| {
        let said = events.iter().filter(|event| event.says.event == name);
        said.map(|event| event.says.detail.to_string()).collect::<Vec<_>>()
    };
    let told = [1, 59 - checked].map(|calls| format!("{calls} call(s) over the budget"));
    assert_eq!(named("budget.refused"), told, "once, and once more at the end");
    assert_eq!(u32::try_from(named("proof.refused").len()).unwrap(), checked);
}
