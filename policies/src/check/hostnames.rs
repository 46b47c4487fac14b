//! Names that a Target may answer for in agents' pods, by their hosts file.
//!
//! Refuses what the hosts file does not carry (addresses, another spelling than Kubernetes takes there) and names that
//! mean something else in every pod: loopback, and the cluster's own API. The definition of the kind says the same in
//! CEL (`crdgen`); one list of wrong names is tried on both (`WRONG`).

use std::net::IpAddr;

use super::{hosts, is_subdomain, Report, SUBDOMAIN};
use crate::api::TargetSpec;

/// Names one Target may answer for.
pub const MAX: usize = 16;
/// Names that hosts files have already, for the machine itself.
const OWN: [&str; 4] = ["localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"];
/// The cluster's own API, in each of its spellings.
const API: [&str; 3] = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"];
/// One wrong name of each kind. Tests of the checker and of the API server try them.
pub const WRONG: [&str; 18] = [
    "",
    "10.1.2.3",
    "::1",
    "127.1",
    "2130706433",
    "db.0x7f",
    "Orders-DB.data.svc",
    "orders_db.data.svc",
    "orders-db.data.svc.",
    "orders-db:5432",
    "-db.data",
    "db..data",
    "*.data.svc",
    "localhost",
    "db.localhost",
    "ip6-localhost",
    "kubernetes.default",
    "kubernetes.default.svc.cluster.local",
];

pub(super) fn check(spec: &TargetSpec, report: &mut Report<'_>) {
    let names = &spec.listen.hostnames;
    if names.len() > MAX {
        report.problem("spec.listen.hostnames", format!("at most {MAX} names"));
    }
    for (at, name) in names.iter().enumerate() {
        let field = format!("spec.listen.hostnames[{at}]");
        if let Some(message) = wrong(name) {
            report.problem(field, message);
        } else if names.iter().take(at).any(|before| before == name) {
            report.problem(field, format!("`{name}` is listed twice"));
        }
    }
}

/// What is wrong with a name, if anything.
fn wrong(name: &str) -> Option<String> {
    if name.parse::<IpAddr>().is_ok() {
        return Some(format!(
            "`{name}` is an address, which no hosts file leads elsewhere; write a name"
        ));
    }
    let plain = name.trim_end_matches('.').to_ascii_lowercase();
    if OWN.contains(&plain.as_str()) || plain.ends_with(".localhost") {
        return Some(format!("`{name}` is the pod itself; write the name of the target"));
    }
    if API.contains(&plain.as_str()) || plain.starts_with("kubernetes.default.svc.") {
        return Some(format!("`{name}` is the cluster's own API, and never a Target"));
    }
    if !is_subdomain(name) {
        return Some(format!(
            "`{name}` is not a host name: {SUBDOMAIN}, without one at the end"
        ));
    }
    hosts::wrong(name)
}
