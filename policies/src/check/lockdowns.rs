//! Lockdowns: a reason, something to freeze, and an end that can be read.
//!
//! Refuses as little as possible: the kill switch must work.

use super::{Checked, Report};
use crate::objects::Objects;

pub(super) fn check(objects: &Objects, checked: &mut Checked) {
    for located in &objects.lockdowns {
        let lockdown = &located.object;
        let label = format!("Lockdown {}", lockdown.full_name());
        let mut report = Report::new(&located.origin, label, checked);
        report.metadata(&lockdown.metadata);
        let spec = &lockdown.spec;
        if spec.reason.trim().is_empty() || spec.reason.chars().count() > 500 {
            report.problem("spec.reason", "say why, in 1 to 500 characters");
        }
        if spec.freeze.is_empty() {
            report.problem("spec.freeze", "name what to freeze; `everything: {}` freezes all");
        }
        if let Some(until) = &spec.until {
            if until.parse::<jiff::Timestamp>().is_err() {
                let message = format!("`{until}` is not a time; write it as 2027-01-01T00:00:00Z");
                report.problem("spec.until", message);
            }
        }
    }
}
