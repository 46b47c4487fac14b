//! What the sidecars of other replicas measured of their fences: a Lease of each replica that does not lead, read by the one
//! that does.
//!
//! Owns those Leases and their form: hashes of pods' UIDs, by what was measured. Refuses to count what may be old: a Lease
//! counts from when it was seen to change, and not for long; one of a replica that died before counts for nothing. The
//! invariant: no pod is told as enforced by a measurement that is older than 30 s, and what the API server takes to store it,
//! wherever its sidecar is connected.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, Client};
use sidegate_policies::record::frame::{hex, sha256};
use sidegate_policies::wire::Enforced;
use tokio_util::sync::CancellationToken;

use super::leader::Leader;
use super::{answered, leases, Failed, Failing};
use crate::front::stream::OpenStream;
use crate::front::Front;

/// What tells our Leases from others.
const LABEL: (&str, &str) = ("sidegate.dev/component", "egress");
/// Annotations of a Lease: pods whose fence stands, and pods whose fence does not.
const STANDS: &str = "sidegate.dev/enforced";
const GONE: &str = "sidegate.dev/not-enforced";
/// Written so often by who does not lead, and read so often by who does.
const WRITTEN: Duration = Duration::from_secs(3);
const READ: Duration = Duration::from_secs(2);
/// Where no profile demands a fence nobody asks, and what replicas left behind is looked for only so often.
const IDLE: Duration = Duration::from_secs(60);
/// Somebody who wants to know asks within this time again.
const ASKED: Duration = Duration::from_secs(15);
/// Whether this replica leads is looked at so often.
const NOTICE: Duration = Duration::from_millis(500);
/// What a sidecar said is passed on for so long, milliseconds; a Lease counts for so long after it changed; and what was read
/// for so long after it was read. With the time until it is read, 30 s.
const FRESH_MS: i64 = 17_000;
const COUNTS: Duration = Duration::from_secs(7);
const KEPT: Duration = Duration::from_secs(3);
/// A Lease that has not changed for so long is of a replica that is gone.
const LEFT: Duration = Duration::from_secs(600);
/// Pods of one annotation: all annotations of an object have 256 KiB. The others are not told, and so not known.
const MAX_PODS: usize = 10_000;

/// A pod's UID, shortened.
type Short = [u8; 8];

fn short(name: &str) -> Short {
    let [a, b, c, d, e, f, g, h, ..] = sha256(name.as_bytes());
    [a, b, c, d, e, f, g, h]
}

/// What others measured, by pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Others(HashMap<Short, Enforced>);

impl Others {
    /// What a pod's sidecar told another replica lately. One that told two replicas different things is not enforced.
    pub fn of(&self, uid: &str) -> Option<Enforced> {
        self.0.get(&short(uid)).copied()
    }

    fn add(&mut self, lease: &Lease) {
        let annotations = lease.metadata.annotations.as_ref();
        for (key, state) in [(STANDS, Enforced::True), (GONE, Enforced::False)] {
            let listed = annotations.and_then(|all| all.get(key));
            let bytes = listed.and_then(|text| STANDARD.decode(text).ok()).unwrap_or_default();
            for pod in bytes.chunks_exact(8).filter_map(|pod| Short::try_from(pod).ok()) {
                let told = self.0.entry(pod).or_insert(state);
                if state == Enforced::False {
                    *told = state;
                }
            }
        }
    }
}

/// What the sidecars that are connected here measured lately, as annotations of a Lease; nothing where none measures.
fn told(streams: &[OpenStream], now_ms: i64) -> Option<BTreeMap<String, String>> {
    let (mut stands, mut gone, mut measures) = (Vec::new(), Vec::new(), false);
    for stream in streams {
        let state = stream.report.egress(now_ms);
        measures |= state.is_some();
        let fresh = now_ms.saturating_sub(stream.report.egress_ms) <= FRESH_MS;
        match state.filter(|_| fresh) {
            Some(Enforced::True) => stands.push(short(&stream.who.pod_uid)),
            Some(Enforced::False) => gone.push(short(&stream.who.pod_uid)),
            Some(Enforced::Unknown) | None => {}
        }
    }
    let text = |mut pods: Vec<Short>| {
        pods.sort_unstable();
        pods.dedup();
        pods.truncate(MAX_PODS);
        STANDARD.encode(pods.concat())
    };
    measures.then(|| BTreeMap::from([(STANDS.to_owned(), text(stands)), (GONE.to_owned(), text(gone))]))
}

/// Leases as they were seen: version, since when that one, and whether another one was seen before.
#[derive(Debug, Default)]
struct Seen {
    leases: HashMap<String, (String, Instant, bool)>,
    looked: Option<Instant>,
}

impl Seen {
    /// Takes a list. Answers what counts of it, and the names of what was left behind.
    fn take(&mut self, listed: &[Lease], now: Instant) -> (Others, Vec<String>) {
        let (mut others, mut left, mut seen) = (Others::default(), Vec::new(), HashMap::new());
        // What changed in a pause that was longer than it should be may have done so at its beginning.
        let usual = READ.saturating_add(NOTICE);
        let latest = self.looked.and_then(|looked| looked.checked_add(usual)).unwrap_or(now);
        for lease in listed {
            let name = lease.metadata.name.clone().unwrap_or_default();
            let version = lease.metadata.resource_version.clone().unwrap_or_default();
            let (since, changed) = match self.leases.get(&name) {
                Some((before, since, changed)) if *before == version => (*since, *changed),
                Some(_) => (now.min(latest), true),
                // It may have been written long ago.
                None => (now, false),
            };
            let age = now.saturating_duration_since(since);
            if changed && age < COUNTS {
                others.add(lease);
            }
            if age >= LEFT {
                left.push(name.clone());
            }
            seen.insert(name, (version, since, changed));
        }
        (self.leases, self.looked) = (seen, Some(now));
        (others, left)
    }
}

/// Shares what was measured.
pub struct Measured {
    leases: Api<Lease>,
    leader: Arc<Leader>,
    /// The name of this replica's Lease.
    own: String,
    /// What others measured, and when that was read.
    others: Mutex<Option<(Others, Instant)>>,
    /// When somebody wanted to know.
    asked: Mutex<Option<Instant>>,
}

impl Measured {
    /// For a replica of this name, unlike any other and any other start of it.
    pub fn new(client: Client, namespace: &str, leader: Arc<Leader>, replica: &str) -> Self {
        Measured {
            leases: Api::namespaced(client, namespace),
            leader,
            own: format!("egress-{}", hex(&short(replica))),
            others: Mutex::default(),
            asked: Mutex::default(),
        }
    }

    /// What others measured; nothing where that was not read lately.
    pub fn others(&self) -> Others {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = others.as_ref().filter(|(_, read)| read.elapsed() <= KEPT);
        fresh.map(|(others, _)| others.clone()).unwrap_or_default()
    }

    /// How long to wait between two turns.
    fn pause(&self, leads: bool) -> Duration {
        let asked = *self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        match (leads, asked.is_some_and(|asked| asked.elapsed() < ASKED)) {
            (false, _) => WRITTEN,
            (true, true) => READ,
            (true, false) => IDLE,
        }
    }

    /// Until told to stop.
    pub async fn run(self: Arc<Self>, front: Arc<Front>, stop: CancellationToken) {
        let (mut seen, mut done, mut written) = (Seen::default(), None::<Instant>, false);
        let mut failing = Failing::default();
        loop {
            let leads = self.leader.leads();
            if !leads {
                seen = Seen::default();
            }
            if done.is_none_or(|done| done.elapsed() >= self.pause(leads)) {
                done = Some(Instant::now());
                let turn = async {
                    match leads {
                        true => self.read(&mut seen).await,
                        false => self.write(&front, &mut written).await,
                    }
                };
                let turned = tokio::select! {
                    () = stop.cancelled() => break,
                    turned = turn => turned,
                };
                if let Some(error) = failing.news(&turned) {
                    tracing::warn!(%error, "what was measured of fences cannot be shared with other replicas");
                }
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(NOTICE) => {}
            }
        }
        if written {
            let _ = leases::remove(&self.leases, &self.own).await;
        }
    }

    async fn read(&self, seen: &mut Seen) -> Result<(), Failed> {
        let ours = ListParams::default().labels(&format!("{}={}", LABEL.0, LABEL.1));
        let mut listed = answered(self.leases.list(&ours)).await?.items;
        listed.retain(|lease| lease.metadata.name.as_ref() != Some(&self.own));
        let now = Instant::now();
        let (others, left) = seen.take(&listed, now);
        *self.others.lock().unwrap_or_else(PoisonError::into_inner) = Some((others, now));
        for name in left {
            leases::remove(&self.leases, &name).await?;
        }
        Ok(())
    }

    async fn write(&self, front: &Front, written: &mut bool) -> Result<(), Failed> {
        let told = told(&front.streams.open(), front.clock.now_ms());
        // Who has nothing to tell has no Lease.
        let Some(annotations) = told else {
            return match std::mem::take(written) {
                true => leases::remove(&self.leases, &self.own).await,
                false => Ok(()),
            };
        };
        let found = answered(self.leases.get_opt(&self.own)).await?;
        leases::keep(&self.leases, &self.own, found, |mut lease| {
            lease.metadata.labels = Some(BTreeMap::from([(LABEL.0.to_owned(), LABEL.1.to_owned())]));
            lease.metadata.annotations = Some(annotations);
            // Without it the same words twice would be no new version, and count no longer.
            lease.spec = Some(LeaseSpec {
                renew_time: Some(MicroTime(Timestamp::now())),
                ..LeaseSpec::default()
            });
            lease
        })
        .await?;
        *written = true;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use sidegate_policies::engine::Subject;
    use sidegate_policies::wire::Egress;

    use super::*;
    use crate::front::stream::SidecarReport;

    fn stream(uid: &str, state: Option<Enforced>, egress_ms: i64) -> OpenStream {
        let mut report = SidecarReport {
            egress_ms,
            ..SidecarReport::default()
        };
        report.status.egress = state.map(|state| Egress { state, looks: 1 });
        let who = Subject {
            namespace: "agents".to_owned(),
            service_account: "a".to_owned(),
            pod: uid.to_owned(),
            pod_uid: uid.to_owned(),
            labels: BTreeMap::new(),
        };
        OpenStream { who, report }
    }

    fn lease(name: &str, version: &str, annotations: BTreeMap<String, String>) -> Lease {
        let mut lease = Lease::default();
        lease.metadata.name = Some(name.to_owned());
        lease.metadata.resource_version = Some(version.to_owned());
        lease.metadata.annotations = Some(annotations);
        lease
    }

    const NOW: i64 = 1_000_000;

    #[test]
    fn what_sidecars_said_lately_is_passed_on_and_nothing_older() {
        use Enforced::{False, True, Unknown};
        let streams = [
            stream("stands", Some(True), NOW),
            stream("late", Some(True), NOW - FRESH_MS),
            stream("later", Some(True), NOW - FRESH_MS - 1),
            stream("gone", Some(False), NOW),
            stream("unknown", Some(Unknown), NOW),
            stream("cooperative", None, NOW),
            stream("both", Some(True), NOW),
            stream("both", Some(False), NOW),
        ];
        let mut others = Others::default();
        others.add(&lease("a", "1", told(&streams, NOW).unwrap()));
        let of = |uid: &str| others.of(uid);
        assert_eq!(
            (of("stands"), of("late"), of("gone")),
            (Some(True), Some(True), Some(False))
        );
        for uid in ["later", "unknown", "cooperative", "nobody"] {
            assert_eq!(of(uid), None, "{uid}");
        }
        assert_eq!(of("both"), Some(False), "the worse counts");
        // Another replica's better word does not make it good.
        others.add(&lease("b", "1", told(&[stream("gone", Some(True), NOW)], NOW).unwrap()));
        assert_eq!(others.of("gone"), Some(False));
        assert_eq!(
            told(&[stream("cooperative", None, NOW)], NOW),
            None,
            "nothing to tell, no Lease"
        );
        let old = told(&[stream("later", Some(True), NOW - FRESH_MS - 1)], NOW).unwrap();
        assert!(old.values().all(String::is_empty), "{old:?}");
        // Together no longer than a measurement counts at the replica itself.
        let longest = Duration::from_millis(u64::try_from(FRESH_MS).unwrap()) + READ + NOTICE + COUNTS + KEPT;
        assert!(longest <= sidegate_policies::wire::EGRESS_COUNTS, "{longest:?}");
    }

    #[test]
    fn a_lease_counts_for_a_while_after_it_was_seen_to_change_and_one_of_the_dead_for_nothing() {
        let said = told(&[stream("stands", Some(Enforced::True), NOW)], NOW).unwrap();
        let (mut seen, start) = (Seen::default(), Instant::now());
        let mut look = |version: &str, after: Duration| {
            let (others, left) = seen.take(&[lease("a", version, said.clone())], start + after);
            (others.of("stands").is_some(), left.len())
        };
        let second = Duration::from_secs(1);
        assert_eq!(look("1", second), (false, 0), "nobody knows how old it is");
        assert_eq!(look("1", second * 2), (false, 0));
        assert_eq!(look("2", second * 4), (true, 0));
        assert_eq!(look("2", second * 3 + COUNTS), (true, 0));
        assert_eq!(
            look("2", second * 4 + COUNTS),
            (false, 0),
            "its replica says nothing more"
        );
        assert_eq!(look("3", second * 20), (true, 0), "and again");
        assert_eq!(look("3", second * 20 + LEFT), (false, 1), "it is removed");
    }

    #[test]
    fn what_changed_in_a_long_pause_may_have_changed_at_its_beginning() {
        let said = told(&[stream("stands", Some(Enforced::True), NOW)], NOW).unwrap();
        let (mut seen, start) = (Seen::default(), Instant::now());
        let mut look = |version: &str, after: Duration| {
            let (others, _) = seen.take(&[lease("a", version, said.clone())], start + after);
            others.of("stands").is_some()
        };
        let (second, usual) = (Duration::from_secs(1), READ + NOTICE);
        assert!(!look("1", second));
        assert!(look("2", second + usual));
        // The API server did not answer: whoever wrote this may be long dead.
        let again = second + usual + usual + COUNTS;
        assert!(!look("3", again));
        assert!(look("4", again + usual), "it is there");
    }

    #[test]
    fn what_is_no_list_of_pods_says_nothing() {
        let mut others = Others::default();
        for text in ["", "%%%", "AAAA"] {
            others.add(&lease("a", "1", BTreeMap::from([(STANDS.to_owned(), text.to_owned())])));
        }
        others.add(&Lease::default());
        assert_eq!(others, Others::default());
    }

    #[test]
    fn ten_thousand_pods_fit_into_an_object() {
        let pods: Vec<OpenStream> = (0..MAX_PODS + 5)
            .map(|number| stream(&number.to_string(), Some(Enforced::True), NOW))
            .collect();
        let told = told(&pods, NOW).unwrap();
        let size: usize = told.values().map(String::len).sum();
        assert!(size < 128 << 10, "{size}");
        assert_eq!(STANDARD.decode(&told[STANDS]).unwrap().len(), MAX_PODS * 8);
    }
}
