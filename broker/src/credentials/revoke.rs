//! Tokens that are over before their time, ended where they were given (RFC 7009).
//!
//! A token is over when the last lease that has it is: handed back, its pod gone, or closed by a Lockdown; its provider is
//! told then, by the same client as asked for it. Refuses to try for ever: a few times with pauses, and never beyond the
//! token's own end, which is the backstop. Invariants: what nobody got in the end is ended too; one broker that stops
//! ends nothing, for sidecars go on with what they have.

use std::sync::{Arc, Weak};
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use sidegate_policies::presets::{Class, Placeholder, Revoke};
use sidegate_policies::record::Kind;
use tokio::sync::Semaphore;

use super::exchange::trusted;
use super::reply::class_of;
use super::{Exchanged, Exchanges, Failure, Job};
use crate::audit::Event;

/// Pauses between attempts.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(8),
    Duration::from_secs(30),
];
/// So many are under way at a time: a Lockdown of everything is no flood for a provider.
static AT_ONCE: Semaphore = Semaphore::const_new(16);

/// How a token is ended.
pub(super) struct Ending {
    exchanges: Weak<Exchanges>,
    job: Arc<Job>,
}

impl Drop for Exchanged {
    fn drop(&mut self) {
        let Some(Ending { exchanges, job }) = self.ending.take() else {
            return;
        };
        let Some(exchanges) = exchanges.upgrade() else { return };
        let (token, until_ms) = (self.token.clone(), self.until_ms);
        if exchanges.clock.now_ms() >= until_ms || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let stop = exchanges.tasks.stopping();
        let tasks = exchanges.tasks.clone();
        tasks.spawn("revoke", async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = exchanges.end(&job, &token, until_ms) => {}
            }
        });
    }
}

impl Exchanges {
    /// How this token is ended; nothing: its provider has no way for that, or the TokenIssuer does not name it.
    pub(super) fn ending(self: &Arc<Self>, job: &Arc<Job>) -> Option<Ending> {
        let Revoke(step) = job.preset.revoke.as_ref()?;
        if let Placeholder::Value(endpoint) = &step.post.base {
            job.spec.values.get(endpoint)?;
        }
        Some(Ending {
            exchanges: Arc::downgrade(self),
            job: Arc::clone(job),
        })
    }

    async fn end(&self, job: &Job, token: &SecretString, until_ms: i64) {
        let mut pauses = PAUSES.iter();
        let outcome = loop {
            // Held while it is asked and not between: providers that are down keep no turn from those that answer.
            let tried = match AT_ONCE.acquire().await {
                Ok(_turn) => self.revoke(job, token).await,
                Err(_) => return,
            };
            let failed = match tried {
                Err(failure) if failure.class == Class::Retry => failure,
                done => break done,
            };
            match pauses.next() {
                Some(pause) if self.clock.now_ms() < until_ms => tokio::time::sleep(*pause).await,
                _ => break Err(failed),
            }
        };
        let detail = match &outcome {
            Ok(()) => format!("{} for `{}`", job.preset.name, job.audience),
            Err(failure) => format!("it lives on to its own end: {failure}"),
        };
        let event = match outcome {
            Ok(()) => "exchange.revoked",
            Err(_) => "exchange.unrevoked",
        };
        self.audit.note(Event {
            subject: &job.who.client_id(),
            pod_uid: &job.who.subject.pod_uid,
            object: &job.name,
            detail: &detail,
            ..Event::new(Kind::Issued, event)
        });
    }

    /// One request. RFC 7009 section 2.2: 200, also for a token that is over already.
    async fn revoke(&self, job: &Job, token: &SecretString) -> Result<(), Failure> {
        let none = || Failure::new(Class::Broken, "the preset ends no token");
        let Revoke(step) = job.preset.revoke.as_ref().ok_or_else(none)?;
        // Frozen or not: a Lockdown is the very time to end what this secret opened.
        let secret = self.client_secret(job).await?;
        let secret = secret.as_ref().map(|secret| secret.as_str());
        let request = self.request(job, step, token.expose_secret(), secret)?;
        let answer = self.outbound.send(&request, trusted(&job.spec)?).await?;
        match answer.status {
            200..=299 => Ok(()),
            status => Err(Failure::new(class_of(status), format!("status {status}"))),
        }
    }
}
