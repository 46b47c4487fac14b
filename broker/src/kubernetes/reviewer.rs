//! TokenReview: whether the API server takes this token for our audience now.
//!
//! Refuses nothing itself: it tells what was answered. The invariants: a good answer is remembered for at most ten
//! seconds and a bad one never; at most 64 reviews are under way.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::Semaphore;

use super::answered;
use crate::attest::{Review, TokenReviewer, Unavailable};
use crate::clock::Clock;
use crate::jwt::sha256_base64url;
use crate::remembered::Remembered;

const AT_ONCE: usize = 64;
/// The token's own id among the same.
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";
/// The pod's UID among what a review tells beside the name.
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Reviews tokens at the API server.
pub struct ClusterReviewer {
    reviews: Api<TokenReview>,
    clock: Arc<dyn Clock>,
    /// Good answers by digest of token and audience.
    good: Remembered<String, Review>,
    turns: Semaphore,
}

impl ClusterReviewer {
    /// Over this client.
    pub fn new(client: Client, clock: Arc<dyn Clock>) -> Self {
        ClusterReviewer {
            reviews: Api::all(client),
            clock,
            good: Remembered::default(),
            turns: Semaphore::new(AT_ONCE),
        }
    }

    async fn ask(&self, token: &str, audience: &str) -> Result<Review, Unavailable> {
        let digest = sha256_base64url(format!("{audience} {token}").as_bytes());
        if let Some(review) = self.good.get(&digest, self.clock.now_ms()) {
            return Ok(review);
        }
        let _turn = self.turns.acquire().await.map_err(|_| Unavailable)?;
        let asked = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![audience.to_owned()]),
                token: Some(token.to_owned()),
            },
            ..TokenReview::default()
        };
        let answer = answered(self.reviews.create(&PostParams::default(), &asked)).await;
        let answer = answer.map_err(|error| {
            tracing::error!(%error, "a token cannot be reviewed");
            Unavailable
        })?;
        let review = told(answer.status.unwrap_or_default());
        if review.authenticated && review.error.is_none() {
            self.good.keep(digest, review.clone(), self.clock.now_ms());
        }
        Ok(review)
    }
}

impl TokenReviewer for ClusterReviewer {
    fn review<'a>(&'a self, token: &'a str, audience: &'a str) -> BoxFuture<'a, Result<Review, Unavailable>> {
        Box::pin(self.ask(token, audience))
    }
}

fn told(status: TokenReviewStatus) -> Review {
    let user = status.user.unwrap_or_default();
    let extra = user.extra.unwrap_or_default();
    // Two UIDs would be none.
    let pod_uid = match extra.get(POD_UID).map(Vec::as_slice) {
        Some([only]) => Some(only.clone()),
        _ => None,
    };
    Review {
        authenticated: status.authenticated.unwrap_or(false),
        error: status.error.filter(|error| !error.is_empty()),
        audiences: status.audiences.unwrap_or_default(),
        user: user.username.unwrap_or_default(),
        groups: user.groups.unwrap_or_default(),
        pod_uid,
        credential_id: extra.get(CREDENTIAL_ID).and_then(|ids| ids.first()).cloned(),
    }
}
