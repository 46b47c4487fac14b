//! What the broker tells people about itself: status and recorded sessions.
//!
//! Refuses nothing and reveals no secret: names, addresses, versions, reasons. The invariant: a report is read
//! from what is in force at that moment, not from what was configured.

use std::sync::{Arc, Mutex};

use sidegate_policies::api::target::{TlsMode, WeakLogin};
use sidegate_policies::api::Target;
use sidegate_policies::compile::Problem;
use sidegate_policies::engine::Subject;
use sidegate_policies::record::summary::SessionSummary;
use sidegate_policies::wire::TargetStatus;

use crate::config::Separation;
use crate::control::{SessionRow, SidecarReport, Status};
use crate::front::Front;
use crate::local_cluster::LocalCluster;
use crate::records::Records;

/// Problems and warnings of the configuration as it is on disk now.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    /// While there are any, the last good configuration stays in force.
    pub problems: Vec<Problem>,
    /// What is probably not meant.
    pub warnings: Vec<Problem>,
}

/// Makes reports.
pub struct Reporter {
    /// What is in force.
    pub front: Arc<Front>,
    /// The local cluster; nothing in a real one.
    pub cluster: Option<Arc<LocalCluster>>,
    /// The one agent of local mode, as its pod would say.
    pub subject: Option<Subject>,
    /// What separates the agent.
    pub separation: Separation,
    /// The record store.
    pub records: Arc<Records>,
    /// URL of the front face.
    pub front_url: String,
    /// What the last look at the configuration found.
    pub findings: Mutex<Findings>,
}

impl Reporter {
    /// Takes what a look at the configuration found.
    pub fn tell(&self, findings: Findings) {
        *self.findings.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = findings;
    }

    /// Status of everything.
    pub fn status(&self) -> Status {
        let front = &self.front;
        let index = front.index();
        let denied = front.lockdowns.now();
        let findings = self
            .findings
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone();
        let waiting = front.approvals.waiting();
        let (now_ms, connected) = (front.clock.now_ms(), front.streams.list().into_iter());
        let connected: Vec<SidecarReport> = connected.map(|report| report.aged(now_ms)).collect();
        let sum = |count: fn(&SidecarReport) -> u64| connected.iter().map(count).fold(0_u64, u64::saturating_add);
        let mut lockdowns: Vec<String> = denied.set.entries.iter().map(|entry| entry.lockdown.clone()).collect();
        lockdowns.dedup();
        Status {
            release: env!("CARGO_PKG_VERSION").to_owned(),
            subject: self.subject.as_ref().map(Subject::account).unwrap_or_default(),
            separation: self.separation.to_string(),
            bundle: self
                .subject
                .as_ref()
                .map(|subject| index.offer(subject).version.clone()),
            bundle_in_force: connected.iter().find_map(|sidecar| sidecar.bundle.clone()),
            targets: self.targets(&connected),
            sidecars: u64::try_from(connected.len()).unwrap_or(u64::MAX),
            sessions: sum(|sidecar| sidecar.status.sessions),
            allowed: sum(|sidecar| sidecar.status.allowed),
            denied: sum(|sidecar| sidecar.status.denied),
            held: sum(|sidecar| sidecar.status.held),
            panics: sum(|sidecar| sidecar.status.panics),
            lockdowns,
            deny_revision: denied.set.revision,
            problems: findings.problems,
            warnings: findings.warnings,
            alarms: self
                .records
                .alarms()
                .into_iter()
                .map(|alarm| format!("{} {}: {}", alarm.at, alarm.log, alarm.message))
                .collect(),
            front_url: self.front_url.clone(),
            issuer: front.issuer.url().to_owned(),
            pod_uid: self
                .subject
                .as_ref()
                .map(|subject| subject.pod_uid.clone())
                .unwrap_or_default(),
            instance: self.cluster.as_ref().map_or(0, |cluster| cluster.instance().count),
            waiting: u64::try_from(waiting).unwrap_or(u64::MAX),
            leases: u64::try_from(front.leases.active(front.clock.now_ms())).unwrap_or(u64::MAX),
            over_budget: front.budget.refused(),
            connected,
        }
    }

    /// Every Target: as the sidecar serves it, or with the reason why it does not.
    fn targets(&self, connected: &[SidecarReport]) -> Vec<TargetStatus> {
        let index = self.front.index();
        let standing: Vec<(&Target, Option<String>)> = match &self.subject {
            Some(subject) => {
                let standing = index.standing(subject).into_iter();
                standing.map(|(target, standing)| (target, standing.err())).collect()
            }
            None => index.targets().collect(),
        };
        standing
            .into_iter()
            .map(|(target, problem)| {
                let name = target.full_name();
                let served = connected
                    .iter()
                    .flat_map(|sidecar| sidecar.status.targets.iter())
                    .find(|served| served.target == name);
                match (problem, served) {
                    (None, Some(served)) => served.clone(),
                    (problem, _) => target_status(target, problem),
                }
            })
            .collect()
    }

    /// The Targets the agent gets, as its bundle holds them.
    pub fn served(&self) -> Vec<Target> {
        let Some(subject) = &self.subject else {
            return Vec::new();
        };
        let offer = self.front.index().offer(subject);
        offer
            .bundle
            .targets
            .iter()
            .map(|bundled| bundled.target.clone())
            .collect()
    }

    /// Sessions of the record store.
    pub fn sessions(&self) -> Vec<SessionRow> {
        self.records.sessions().into_iter().map(session_row).collect()
    }
}

fn session_row(session: SessionSummary) -> SessionRow {
    let reason = session.reason.filter(|reason| reason != "client");
    let orphan = session.orphan.map(|_| "orphan".to_owned());
    SessionRow {
        id: session.id,
        started: session.started,
        ended: session.ended,
        subject: session.subject,
        target: session.target,
        operations: session.operations,
        denied: session.denied,
        cut: reason.or(orphan),
    }
}

/// A Target no sidecar reports on (yet).
fn target_status(target: &Target, problem: Option<String>) -> TargetStatus {
    let spec = &target.spec;
    let mut weakenings = Vec::new();
    if spec.tls.mode == TlsMode::Disabled {
        weakenings.push("tls: Disabled".to_owned());
    }
    match spec.weak_login {
        WeakLogin::Refuse => {}
        WeakLogin::InsideTls => weakenings.push("weakLogin: InsideTLS".to_owned()),
        WeakLogin::Anywhere => weakenings.push("weakLogin: Anywhere".to_owned()),
    }
    TargetStatus {
        target: target.full_name(),
        protocol: spec.protocol.as_str().to_owned(),
        listen: Vec::new(),
        address: format!("{}:{}", spec.address.host, spec.address.port),
        problem: problem.or_else(|| Some("no sidecar serves it (yet)".to_owned())),
        insecure: weakenings,
        ..TargetStatus::default()
    }
}
