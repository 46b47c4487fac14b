//! Adds up the masks of several policies: strongest first, so that the first pattern that fits a column is the mask
//! to apply.
//!
//! null > redact > hash > token > dateTrunc > keepFirst, keepLast; among equals the one that keeps less, then by
//! policy name.

use std::sync::Arc;

use super::decision::{MaskRule, MaskSet};
use crate::api::access_policy::{DateUnit, Detector, MaskAs};

/// How strong a mask is: smaller is stronger, and among equals what it keeps.
pub fn strength(how: &MaskAs) -> (u8, i32) {
    match how {
        MaskAs::Null(_) => (0, 0),
        MaskAs::Redact(_) => (1, 0),
        MaskAs::Hash(_) => (2, 0),
        MaskAs::Token(_) => (3, 0),
        MaskAs::DateTrunc(cut) => (4, i32::from(cut.unit == DateUnit::Month)),
        MaskAs::KeepFirst(keep) | MaskAs::KeepLast(keep) => (5, keep.count),
    }
}

/// One detector, what it does, and the policy that says so.
pub type Found = (Detector, MaskAs, Arc<str>);

/// Orders column masks and keeps the strongest mask of each detector.
pub fn add_up(mut columns: Vec<MaskRule>, mut detectors: Vec<Found>) -> MaskSet {
    columns.sort_by(|a, b| (strength(&a.how), &a.policy).cmp(&(strength(&b.how), &b.policy)));
    let mut seen: Vec<MaskRule> = Vec::with_capacity(columns.len());
    for rule in columns {
        if !seen.iter().any(|earlier| earlier.pattern == rule.pattern) {
            seen.push(rule);
        }
    }
    detectors.sort_by(|a, b| (a.0, strength(&a.1), &a.2).cmp(&(b.0, strength(&b.1), &b.2)));
    detectors.dedup_by_key(|found| found.0);
    MaskSet {
        columns: seen,
        detectors: detectors.into_iter().map(|(what, how, _)| (what, how)).collect(),
    }
}
