//! One exchange: an assertion and a request per step, and once more where the class of a failure allows it.
//!
//! Refuses to wait longer than [`OVERALL`] in all. Invariants: every request carries an assertion of its own; a no is
//! never asked twice; what is retried is counted against the provider's budget.

use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use sidegate_policies::api::token_issuer::{Authorities, HomeRef, SubjectForm};
use sidegate_policies::api::TokenIssuerSpec;
use sidegate_policies::objects::absent;
use sidegate_policies::presets::{AssertionAlg, AssertionSpec, Class, Field, Step};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::reply::{judge, Given};
use super::request::{Facts, Missing, Request};
use super::{Exchanged, Exchanges, Failure, Job};
use crate::issuer::{random, Assertion};
use crate::jwt::{kid_of, Alg};
use crate::lockdown::About;

/// Calls of one exchange that failed in passing, at most.
const ATTEMPTS: u32 = 3;
/// No new call after so long.
const OVERALL: Duration = Duration::from_secs(8);
/// The first pause, doubled with each call, of which a random part is waited.
const PAUSE_MS: u64 = 100;
/// A provider that wants to be left alone for longer is not waited for.
const MAX_WAIT: u64 = 2;

/// What was tried already.
#[derive(Default)]
struct Tries {
    failed: u32,
    reasserted: bool,
}

impl Tries {
    /// Whether a failure is worth another call. `budget` is asked last: it is spent by the asking.
    fn again(&mut self, failure: &Failure, budget: impl FnOnce() -> bool) -> bool {
        match failure.class {
            // A new assertion is what it asks for, and each call carries one.
            Class::Reassert => !std::mem::replace(&mut self.reasserted, true),
            Class::Retry => {
                self.failed = self.failed.saturating_add(1);
                let patient = failure.retry_after.is_none_or(|wait| wait <= MAX_WAIT);
                patient && self.failed < ATTEMPTS && budget()
            }
            Class::Final | Class::Propagation | Class::Broken => false,
        }
    }
}

impl Exchanges {
    /// One exchange, whose outcome is not kept yet.
    pub(super) async fn run(&self, job: &Job) -> Result<Exchanged, Failure> {
        let began = Instant::now();
        let mut tries = Tries::default();
        loop {
            self.admitted(job.of())?;
            let outcome = self.once(job).await;
            self.told(job.of(), &outcome);
            let failure = match outcome {
                Ok(held) => return Ok(held),
                Err(failure) => failure,
            };
            let again = tries.again(&failure, || self.health(job.of(), |health, _| health.retry()));
            if !again || began.elapsed() >= OVERALL {
                return Err(failure);
            }
            if failure.class == Class::Retry {
                tokio::time::sleep(pause(tries.failed, failure.retry_after)).await;
            }
        }
    }

    async fn once(&self, job: &Job) -> Result<Exchanged, Failure> {
        let from_ms = self.clock.now_ms();
        self.frozen(job)?;
        let secret = self.client_secret(job).await?;
        let mut previous = SecretString::from(String::new());
        let mut given: Option<Given> = None;
        let secret = secret.as_ref().map(|secret| secret.as_str());
        for step in &job.preset.steps {
            let request = self.request(job, step, previous.expose_secret(), secret)?;
            let ca_pem = trusted(&job.spec)?;
            let asked_at = self.clock.now();
            let answer = self.outbound.send(&request, ca_pem).await?;
            let next = judge(step, &answer, &job.audience, asked_at)?;
            previous = next.token.clone();
            given = Some(next);
        }
        let given = given.ok_or_else(|| Failure::new(Class::Broken, "a preset without steps"))?;
        // Counted from before the first request: a slow provider's token does not live longer for it.
        let until_ms = from_ms.saturating_add(given.life.saturating_mul(1000));
        let until_ms = until_ms.min(job.who.ends.saturating_mul(1000));
        Ok(Exchanged {
            token: given.token,
            more: given.more,
            from_ms,
            until_ms,
            generation: job.generation,
            ending: None,
        })
    }

    /// One step's request, with an assertion of its own where it wants one.
    pub(super) fn request(
        &self,
        job: &Job,
        step: &Step,
        previous: &str,
        secret: Option<&str>,
    ) -> Result<Request, Failure> {
        let mut facts = Facts {
            spec: &job.spec,
            audience: &job.audience,
            scope: &job.scope,
            pod_uid: &job.who.subject.pod_uid,
            assertion: "",
            previous,
            secret,
        };
        let assertion = match step.assertion.as_ref().filter(|_| step.asserts(secret.is_some())) {
            Some(wanted) => self.assertion(job, wanted, &facts)?,
            None => SecretString::from(String::new()),
        };
        facts.assertion = assertion.expose_secret();
        facts.request(step).map_err(lacking)
    }

    /// Refuses where the client's secret is frozen: what is suspected to have leaked opens nothing more.
    fn frozen(&self, job: &Job) -> Result<(), Failure> {
        let Some(HomeRef { name, .. }) = &job.spec.client_secret_ref else {
            return Ok(());
        };
        let path = format!("{}/{name}", self.home);
        let about = About {
            secret: Some(&path),
            ..About::default()
        };
        if let Some(lockdown) = self.lockdowns.now().frozen(about, self.clock.now_ms()) {
            let why = format!("its client's secret is frozen by lockdown `{lockdown}`");
            return Err(Failure::new(Class::Retry, why));
        }
        Ok(())
    }

    /// The client's secret, read anew for every request.
    pub(super) async fn client_secret(&self, job: &Job) -> Result<Option<Zeroizing<String>>, Failure> {
        let Some(reference) = &job.spec.client_secret_ref else {
            return Ok(None);
        };
        let HomeRef { name, key } = reference;
        let path = format!("{}/{name}", self.home);
        let read = self.secrets.read(&self.home, name, &[key]).await;
        let read = read.map_err(|error| {
            let class = match error.is_passing() {
                true => Class::Retry,
                false => Class::Final,
            };
            Failure::new(class, format!("its client's secret: {error}"))
        })?;
        let secret = read.into_iter().next().filter(|secret| !secret.is_empty());
        let empty = || {
            Failure::new(
                Class::Final,
                format!("its client's secret: Secret {path}, key {key}, is empty"),
            )
        };
        secret.map(Some).ok_or_else(empty)
    }

    fn assertion(&self, job: &Job, wanted: &AssertionSpec, facts: &Facts<'_>) -> Result<SecretString, Failure> {
        let claim = |field: &Field| -> Result<String, Failure> {
            let text = facts.fill(field).map_err(lacking)?;
            text.map(str::to_owned)
                .ok_or_else(|| lacking(Missing("a claim has no value".to_owned())))
        };
        let subject = match (&wanted.subject, &job.spec.subject) {
            (Some(field), _) => claim(field)?,
            (None, SubjectForm::Opaque(_)) => self.issuer.subject_of(&job.who),
            (None, SubjectForm::Named(_)) => job.who.client_id(),
        };
        let assertion = Assertion {
            issuer: wanted.issuer.as_ref().map(claim).transpose()?,
            subject,
            audience: claim(&wanted.audience)?,
            life: i64::try_from(wanted.life.0.as_secs()).unwrap_or(0),
            alg: match job.spec.alg.unwrap_or(wanted.alg) {
                AssertionAlg::Es256 => Alg::Es256,
                AssertionAlg::Rs256 => Alg::Rs256,
            },
        };
        let signed = self.issuer.assertion(&assertion, job.who.ends, self.clock.now());
        let signed = signed.map_err(|_| Failure::new(Class::Retry, "no assertion can be signed now"))?;
        if let Some(place) = &job.spec.publish {
            let kid = kid_of(&signed).unwrap_or_default();
            let held = self.published.holds(place, &kid);
            held.map_err(|why| Failure::new(Class::Retry, format!("our keys are not published: {why}")))?;
        }
        Ok(SecretString::from(signed))
    }
}

/// Who vouches for the provider of a TokenIssuer; nothing: the system's roots do.
pub(super) fn trusted(spec: &TokenIssuerSpec) -> Result<Option<&str>, Failure> {
    match &spec.ca_bundle {
        None => Ok(None),
        Some(Authorities::Inline(pem)) => Ok(Some(pem)),
        Some(Authorities::ConfigMap(reference)) => Err(Failure::new(Class::Retry, absent(reference))),
    }
}

fn lacking(missing: Missing) -> Failure {
    Failure::new(Class::Broken, missing.0)
}

/// A random part of a pause that doubles, or what the provider asked for.
fn pause(attempt: u32, retry_after: Option<u64>) -> Duration {
    if let Some(seconds) = retry_after {
        return Duration::from_secs(seconds.min(MAX_WAIT));
    }
    let most = PAUSE_MS.saturating_mul(2_u64.saturating_pow(attempt)).max(1);
    let part = random::<8>().map(u64::from_be_bytes).unwrap_or_default();
    Duration::from_millis(part.checked_rem(most).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_no_is_never_asked_twice_and_a_new_assertion_is_sent_once() {
        let failure = |class, retry_after| Failure {
            class,
            why: String::new(),
            retry_after,
        };
        for class in [Class::Final, Class::Propagation, Class::Broken] {
            assert!(!Tries::default().again(&failure(class, None), || panic!("no budget is asked for")));
        }
        let mut tries = Tries::default();
        let mut reassert = || tries.again(&failure(Class::Reassert, None), || panic!("it costs nothing"));
        assert!(reassert() && !reassert());
        let mut tries = Tries::default();
        let mut retry = |budget| tries.again(&failure(Class::Retry, None), || budget);
        assert!(retry(true) && retry(true) && !retry(true), "three calls in all");
        assert!(
            !Tries::default().again(&failure(Class::Retry, None), || false),
            "no budget"
        );
        assert!(Tries::default().again(&failure(Class::Retry, Some(2)), || true));
        assert!(
            !Tries::default().again(&failure(Class::Retry, Some(3)), || true),
            "it wants to be left alone"
        );
    }
}
