//! Who people are and what they may, as the API server says: TokenReview, SubjectAccessReview, and the authority of
//! client certificates.
//!
//! Refuses nothing itself: it tells what was answered. The invariants: nothing is remembered, so a right that was taken
//! away is gone at once; a token is asked about for the API server's own audience, for it is the one people have.

use std::time::Duration;

use futures_util::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{answered, Failed};
use crate::attest::Unavailable;
use crate::people::{Registry, Visitor, Wish};

/// Where every cluster keeps the authority of client certificates.
const AUTHENTICATION: (&str, &str, &str) = ("kube-system", "extension-apiserver-authentication", "client-ca-file");
/// It changes once in years.
const AGAIN: Duration = Duration::from_secs(60);

/// People of a cluster.
pub struct ClusterPeople {
    client: Client,
    authorities: watch::Sender<String>,
}

impl ClusterPeople {
    /// Knows no authority yet.
    pub fn new(client: Client) -> Self {
        ClusterPeople {
            client,
            authorities: watch::channel(String::new()).0,
        }
    }

    /// Follows the authority of client certificates until told to stop.
    pub async fn run(self: std::sync::Arc<Self>, stop: CancellationToken) {
        let (namespace, name, key) = AUTHENTICATION;
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        loop {
            match answered(maps.get_opt(name)).await {
                Ok(map) => {
                    // Clusters without client certificates have no such map, and then nobody comes with one.
                    let mut data = map.and_then(|map| map.data).unwrap_or_default();
                    let found = data.remove(key).unwrap_or_default();
                    self.authorities.send_if_modified(|known| {
                        let changed = *known != found;
                        *known = found;
                        changed
                    });
                }
                Err(error) => tracing::warn!(%error, "the authority of client certificates cannot be read"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    }

    async fn reviewed(&self, token: &str) -> Result<Option<Visitor>, Unavailable> {
        let asked = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                ..TokenReviewSpec::default()
            },
            ..TokenReview::default()
        };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let answer = answered(reviews.create(&PostParams::default(), &asked)).await;
        let status = answer
            .map_err(|error| unanswered("a token", &error))?
            .status
            .unwrap_or_default();
        if status.authenticated != Some(true) || status.error.is_some_and(|error| !error.is_empty()) {
            return Ok(None);
        }
        let user = status.user.unwrap_or_default();
        Ok(user.username.filter(|name| !name.is_empty()).map(|name| Visitor {
            name,
            uid: user.uid.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        }))
    }

    async fn permitted(&self, who: &Visitor, wish: &Wish<'_>) -> Result<bool, Unavailable> {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let asked = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: some(&who.name),
                uid: some(&who.uid),
                groups: Some(who.groups.clone()),
                extra: Some(who.extra.clone()),
                resource_attributes: Some(ResourceAttributes {
                    group: some(wish.group),
                    verb: some(wish.verb),
                    resource: some(wish.resource),
                    subresource: some(wish.subresource),
                    namespace: some(wish.namespace),
                    name: some(wish.name),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = answered(reviews.create(&PostParams::default(), &asked)).await;
        let status = answer
            .map_err(|error| unanswered("a right", &error))?
            .status
            .unwrap_or_default();
        Ok(status.allowed && status.denied != Some(true))
    }
}

fn unanswered(what: &str, error: &Failed) -> Unavailable {
    tracing::error!(%error, "{what} of a person cannot be reviewed");
    Unavailable
}

impl Registry for ClusterPeople {
    fn of_token<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<Visitor>, Unavailable>> {
        Box::pin(self.reviewed(token))
    }

    fn may<'a>(&'a self, who: &'a Visitor, wish: &'a Wish<'a>) -> BoxFuture<'a, Result<bool, Unavailable>> {
        Box::pin(self.permitted(who, wish))
    }

    fn authorities(&self) -> watch::Receiver<String> {
        self.authorities.subscribe()
    }
}
