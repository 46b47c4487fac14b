//! The session token: exchanged for the service-account token, renewed at 60 to 75 % of its life.
//!
//! One task, so any number of calls share one exchange. A failure is retried with a jittered pause; a caller never
//! sees a token past its life, by either clock.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt, Full};
use sidegate_policies::wire::TokenResponse;
use tokio::time::{sleep, Instant};

use super::{whole, Broker, CallError};
use crate::credentials::random_unit;
use crate::secret::Secret;

const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A renewal that nothing waits for comes no more often.
const SHORTEST_LIFE: Duration = Duration::from_millis(500);

/// A token for the broker's front face.
pub struct SessionToken {
    token: Secret,
    asked: Instant,
    asked_wall_ms: i64,
    life: Duration,
}

impl SessionToken {
    /// The token itself; only for the header of a call.
    pub fn expose(&self) -> &str {
        self.token.expose()
    }

    /// Whether it may be used now; the last seconds of its life are left to clocks that differ.
    pub fn usable(&self) -> bool {
        let wall = jiff::Timestamp::now()
            .as_millisecond()
            .saturating_sub(self.asked_wall_ms);
        let wall = Duration::from_millis(u64::try_from(wall).unwrap_or(0));
        let age = self.asked.elapsed().max(wall);
        let margin = Duration::from_secs(5).min(self.life.checked_div(10).unwrap_or_default());
        age < self.life.saturating_sub(margin)
    }
}

pub(super) async fn keep(broker: &Broker) {
    let mut failures = 0u32;
    loop {
        match exchange(broker).await {
            Ok(token) => {
                failures = 0;
                let renew = token.life.mul_f64(0.60 + 0.15 * random_unit()).max(SHORTEST_LIFE);
                broker.shared.token.send_replace(Some(Arc::new(token)));
                tokio::select! {
                    () = sleep(renew) => {}
                    () = broker.shared.renew.notified() => sleep(SHORTEST_LIFE).await,
                }
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                tracing::warn!(%error, failures, "no session token from the broker");
                let ceiling = Duration::from_millis(100).saturating_mul(2u32.saturating_pow(failures.min(10)));
                sleep(ceiling.min(LONGEST_PAUSE).mul_f64(0.5 + 0.5 * random_unit())).await;
            }
        }
    }
}

async fn exchange(broker: &Broker) -> Result<SessionToken, CallError> {
    let shared = &broker.shared;
    let own = shared.identity.service_account_token().map_err(|error| {
        tracing::warn!(%error, "the service-account token is not there");
        CallError::NoToken
    })?;
    let form = Bytes::from(format!(
        "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange&subject_token={}\
         &subject_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Ajwt",
        own.expose()
    ));
    let (asked, asked_wall_ms) = (Instant::now(), jiff::Timestamp::now().as_millisecond());
    let answer = shared
        .connection
        .call(
            &shared.identity,
            Method::POST,
            "/token",
            None,
            "application/x-www-form-urlencoded",
            || Full::new(form.clone()).boxed(),
        )
        .await?;
    let body = whole(answer).await?;
    let answer: TokenResponse = serde_json::from_slice(&body).map_err(|_| CallError::Nonsense)?;
    if !answer.token_type.eq_ignore_ascii_case("DPoP") {
        return Err(CallError::Nonsense);
    }
    Ok(SessionToken {
        token: Secret::new(answer.access_token),
        asked,
        asked_wall_ms,
        life: Duration::from_secs(answer.expires_in),
    })
}
