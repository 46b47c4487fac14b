//! A cluster that changes the key its service-account tokens are signed with, as its operators do it: the API server is
//! restarted with two keys, later with the new one alone.

use std::sync::Arc;

use anyhow::{ensure, Context, Result};
use sidegate_broker::jwt::PublicKey;
use sidegate_tests::cluster::{Cluster, Programs};
use sidegate_tests::provider::kid;
use sidegate_tests::psql::psql;
use sidegate_tests::shop::DATABASE;

use crate::applied::{Shop, NAME};
use crate::charts;
use crate::identity::said_by;
use crate::site::{key, private, until, Agent, Site};

/// How many keys of the cluster's the broker holds.
fn held(site: &Site) -> usize {
    site.broker.front().attestor.issuers.trust().keys.iter().count()
}

/// A pod without a sidecar, that shows tokens to brokers itself, always with one key.
struct Caller {
    namespace: String,
    key: PublicKey,
}

impl Caller {
    fn attested(&self, site: &Site, token: &str) -> Result<()> {
        let said = || said_by(site, token, &self.key);
        until("it is attested", said, |said| said.starts_with("attested")).map(|_| ())
    }

    fn nobody(&self, site: &Site, token: &str) -> Result<()> {
        let said = said_by(site, token, &self.key)?;
        ensure!(said == "review: not authenticated", "{said}");
        Ok(())
    }
}

/// A token of the pod in a namespace, as the kubelet would project it.
fn token(cluster: &Cluster, site: &Site, namespace: &str) -> Result<String> {
    cluster.bound_token(namespace, "support", site.audience(), "agent")
}

/// While the API server believes both keys, so does the broker, and it reads the new one when it first meets it; once the
/// old key is withdrawn its tokens are nobody's, although they would live on. An agent reads all the while.
pub fn tokens_of_both_keys_are_sessions_until_the_old_one_is_withdrawn(programs: &Programs) -> Result<()> {
    let mut cluster = Cluster::start(programs)?;
    charts::install_kinds(&cluster)?;
    let mut site = Arc::new(Site::start(&cluster)?);
    let shop = Shop::of(Agent::of(&cluster, Arc::clone(&site), |_| {})?)?;
    shop.open()?;
    let sidecar = shop.agent.sidecar()?;
    let caller = Caller {
        namespace: Agent::of(&cluster, Arc::clone(&site), |_| {})?.namespace,
        key: key()?,
    };
    let Shop { agent, server, local } = shop;
    let reads = |when: &str| until(when, || psql(local, DATABASE, &[NAME]), |said| said.out == "Ada").map(|_| ());
    reads("the agent reads")?;
    let old = [
        token(&cluster, &site, &caller.namespace)?,
        token(&cluster, &site, &caller.namespace)?,
    ];
    let namespace = agent.namespace.clone();
    let folder = agent.into_folder();
    ensure!(held(&site) == 1, "{} keys", held(&site));

    cluster.another_account_key()?;
    caller.attested(&site, &old[0])?;
    reads("the agent reads with a token of the old key")?;
    let new = token(&cluster, &site, &caller.namespace)?;
    ensure!(kid(&new)? != kid(&old[0])?, "the same key signs");
    caller.attested(&site, &new)?;
    ensure!(held(&site) == 2, "{} keys", held(&site));
    // What a kubelet does by and by, and waiting for it is why there are two keys for a while: everybody gets a new token.
    private(&folder.path().join("token"), &token(&cluster, &site, &namespace)?)?;
    let before = Arc::into_inner(site).context("the broker is held")?;
    site = Arc::new(before.logged_in_again(&cluster)?);

    cluster.newest_account_key_alone()?;
    caller.attested(&site, &token(&cluster, &site, &caller.namespace)?)?;
    caller.nobody(&site, &old[1])?;
    let issuers = &site.broker.front().attestor.issuers;
    let read_again = || {
        site.runtime.block_on(issuers.renew());
        Ok(held(&site))
    };
    until("the old key is forgotten", read_again, |held| *held == 1)?;
    caller.nobody(&site, &old[1])?;
    reads("the agent reads with a token of the new key")?;

    site.runtime.block_on(sidecar.shutdown());
    if let Some(site) = Arc::into_inner(site) {
        site.end();
    }
    drop((folder, server));
    Ok(())
}
