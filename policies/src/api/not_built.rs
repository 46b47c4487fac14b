//! The one list of what the design names and this release does not build.
//!
//! The loader checks it before types, so that such a field, kind or value is refused with "not built yet"
//! instead of "unknown field", and the documentation prints it.

/// One thing that is not built yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotBuilt {
    /// `Kind`, `Kind.path.to.field`, or `Kind.path.to.field=Value`; lists are passed through without a mark.
    pub path: &'static str,
    /// What it would do, in a few words.
    pub what: &'static str,
}

/// Everything that is refused as "not built yet".
pub const NOT_BUILT: &[NotBuilt] = &[];
