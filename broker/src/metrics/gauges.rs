//! The numbers as they are at the moment somebody asks: gauges are read from the front face, and all is written.

use sidegate_policies::credential_kinds::KINDS;
use sidegate_policies::wire::Enforced;

use super::{Metrics, Providers};
use crate::front::Front;
use crate::rings::RingName;

impl Metrics {
    /// Everything in the text format, with the gauges as they are now; the second is its content type.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn text(&self, front: &Front) -> Result<(Vec<u8>, String), String> {
        let (now, now_ms) = (front.clock.now(), front.clock.now_ms());
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let index = front.index();
        self.tls_not_after.set(front.authority.not_after());
        let connected = front.streams.list();
        self.streams.set(number(connected.len()));
        for state in Enforced::ALL {
            let measured = connected.iter().filter(|report| report.egress(now_ms) == Some(state));
            self.egress
                .with_label_values(&[state.label()])
                .set(number(measured.count()));
        }
        self.pinned.set(i64::from(front.attestor.images.pinned()));
        self.classes.set(number(index.classes()));
        for kind in KINDS {
            let active = number(front.leases.active_of(kind.name, now_ms));
            self.active.with_label_values(&[kind.name]).set(active);
        }
        self.waiting.set(number(front.approvals.waiting()));
        for (of, revision) in [
            ("bundle", index.revision()),
            ("deny", front.lockdowns.now().set.revision),
        ] {
            let revision = i64::try_from(revision).unwrap_or(i64::MAX);
            self.revisions.with_label_values(&[of]).set(revision);
        }
        for ring in RingName::ALL {
            let usable = front.issuer.ring(ring).usable_from().saturating_sub(now);
            self.usable.with_label_values(&[ring.as_str()]).set(usable);
        }
        self.providers.read(front);
        let refused = front.budget.refused();
        self.over_budget.inc_by(refused.saturating_sub(self.over_budget.get()));
        self.own.text()
    }
}

impl Providers {
    /// As they are now. A TokenIssuer that is gone is not shown as well any more.
    fn read(&self, front: &Front) {
        for ((issuer, class), count) in front.exchanges.requests() {
            let counter = self.requests.with_label_values(&[issuer.as_str(), class]);
            counter.inc_by(count.saturating_sub(counter.get()));
        }
        self.open.reset();
        for (issuer, open) in front.exchanges.circuits() {
            self.open.with_label_values(&[issuer.as_str()]).set(i64::from(open));
        }
        if let Some(read) = front.attestor.issuers.read_at() {
            let age = front.clock.now().saturating_sub(read);
            self.age.with_label_values(&["cluster"]).set(age);
        }
    }
}
