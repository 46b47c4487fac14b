//! The walk over one log's frames: chains, segments, keys, clocks, claims.
//!
//! Unlike the strict reader it goes on after damage: it names it, puts it on every session it may have touched,
//! and takes up the chain again where it can. What lies behind a footer that does not verify is never trusted
//! again. Invariant: a session without finding had every one of its frames chained and, up to `sealed`, signed.

use std::collections::{BTreeMap, BTreeSet};

use crate::record::certificate::{KeyCertificate, Ring};
use crate::record::footer::{decode_key, Footer};
use crate::record::frame::{hex, unhex, Frame, FrameError, Hash};
use crate::record::kind::Kind;
use crate::record::layout::{LogPath, BROKER};
use crate::record::merkle::Tree;
use crate::record::payload::{Boot, Cert, Recovered};
use crate::record::verify::log::{by_name, mark, EarlierStart, SessionEnd};
use crate::record::verify::{worsen, Finding, LogReport, Verdict};

/// The wall clock may move this far against the monotonic one unsaid: a second, and 50 ms for reading both.
const CLOCK_SLACK_US: i64 = 1_050_000;
/// A footer may lie this far outside its certificate's times.
const CERTIFICATE_SLACK_S: u64 = 60;

#[derive(Default)]
struct Segment {
    tree: Tree,
    touched: BTreeSet<[u8; 16]>,
    /// Log number of its first frame.
    first: u64,
    /// Frames of it are missing.
    gap: Option<(u64, u64)>,
    /// Frames right before its first one are missing: earlier segments, or its own beginning.
    gap_before: Option<(u64, u64)>,
}

pub(super) struct Walker<'a> {
    path: &'a LogPath,
    ring: &'a Ring,
    claims: BTreeMap<u64, Hash>,
    pub seals: BTreeSet<Hash>,
    expected: u64,
    frames: u64,
    boot: Hash,
    zero: (u64, Hash),
    sessions: BTreeMap<[u8; 16], SessionEnd>,
    segment: Segment,
    number: u64,
    previous_footer: Hash,
    key: Option<[u8; 32]>,
    certificate: Option<KeyCertificate>,
    finding: Option<Finding>,
    /// What every session met from here on gets.
    taint: Option<Finding>,
    /// Log numbers were lost, so the key may have moved on.
    key_lost: bool,
    /// A checkpoint vouched for a footer behind a gap, so no certificate is needed any more.
    claimed: bool,
    offset_us: Option<i64>,
    /// Hashes of the frames of the last object, by log number.
    recent: BTreeMap<u64, Hash>,
    /// From this log number on journals may repeat what objects hold.
    pub repeated_from: u64,
    in_landing: bool,
    unsealed_object: bool,
    segments: u64,
    recovered: Vec<EarlierStart>,
}

impl<'a> Walker<'a> {
    pub fn new(path: &'a LogPath, ring: &'a Ring, claims: BTreeMap<u64, Hash>) -> Walker<'a> {
        Walker {
            path,
            ring,
            claims,
            seals: BTreeSet::new(),
            expected: 0,
            frames: 0,
            boot: [0; 32],
            zero: (0, [0; 32]),
            sessions: BTreeMap::new(),
            segment: Segment::default(),
            number: 0,
            previous_footer: [0; 32],
            key: None,
            certificate: None,
            finding: None,
            taint: None,
            key_lost: false,
            claimed: false,
            offset_us: None,
            recent: BTreeMap::new(),
            repeated_from: u64::MAX,
            in_landing: false,
            unsealed_object: false,
            segments: 0,
            recovered: Vec::new(),
        }
    }

    pub fn boot_hex(&self) -> String {
        hex(&self.boot)
    }

    pub fn log_finding(&mut self, verdict: Verdict, why: &str) {
        worsen(&mut self.finding, verdict, why);
    }

    /// An object: its name says which log number it begins with.
    pub fn object(&mut self, first: Option<u64>, bytes: &[u8], last: bool) {
        self.recent = self.recent.split_off(&self.repeated_from);
        let named = Frame::parse_unchecked(bytes).ok().map(|frame| frame.header.log_number);
        if first.is_none() || (named.is_some() && named != first) {
            self.log_finding(Verdict::Forged, "an object does not begin with the frame its name says");
        }
        if bytes.is_empty() {
            self.log_finding(Verdict::Truncated { after: self.last() }, "an object is empty");
        }
        match self.frames(bytes) {
            Ok(()) => {}
            Err(FrameError::Incomplete) if last => {
                self.cut("the last object ends inside a frame");
            }
            Err(error) => self.unreadable(error),
        }
        self.unsealed_object = self.segment.tree.size() > 0;
    }

    /// A landing journal: may repeat what objects and earlier journals hold, may end in a torn frame.
    pub fn landing(&mut self, bytes: &[u8]) {
        self.in_landing = true;
        match self.frames(bytes) {
            Ok(()) | Err(FrameError::Incomplete) => {}
            Err(error) => self.unreadable(error),
        }
    }

    fn frames(&mut self, bytes: &[u8]) -> Result<(), FrameError> {
        let mut at = 0usize;
        loop {
            let left = bytes.get(at..).unwrap_or_default();
            if left.is_empty() {
                return Ok(());
            }
            let frame = Frame::parse_unchecked(left)?;
            self.frame(&frame);
            at = at.saturating_add(frame.bytes.len());
        }
    }

    fn unreadable(&mut self, error: FrameError) {
        let why = format!(
            "bytes behind log number {} are no frame: {error}",
            self.expected.saturating_sub(1)
        );
        self.log_finding(Verdict::Forged, &why);
        let finding = Finding::new(Verdict::Forged, why);
        self.mark_segment(&finding);
        self.taint.get_or_insert(finding);
    }

    fn last(&self) -> Option<u64> {
        self.expected.checked_sub(1)
    }

    /// Frames are gone at the end: sessions that are open or not signed to their end lost something.
    fn cut(&mut self, why: &str) {
        self.log_finding(Verdict::Truncated { after: self.last() }, why);
        for session in self.sessions.values_mut() {
            if !session.closed || session.sealed != session.last() {
                let after = session.last();
                worsen(&mut session.finding, Verdict::Truncated { after }, why);
            }
        }
    }

    fn mark_segment(&mut self, finding: &Finding) {
        for id in &self.segment.touched {
            if let Some(session) = self.sessions.get_mut(id) {
                mark(session, finding);
            }
        }
    }

    fn frame(&mut self, frame: &Frame<'_>) {
        let number = frame.header.log_number;
        let hash = frame.hash();
        if number < self.expected {
            self.again(frame, &hash);
            return;
        }
        if number > self.expected {
            self.gap(self.expected, number.saturating_sub(1));
        }
        self.expected = number.saturating_add(1);
        self.frames = self.frames.saturating_add(1);
        self.recent.insert(number, hash);
        let mut bad: Option<&str> = None;
        if !frame.crc_fits() {
            bad = Some("a checksum does not fit");
        }
        if self.claims.get(&number).is_some_and(|claim| *claim != hash) {
            bad = Some("a frame is not the one a checkpoint speaks of");
        }
        if frame.header.kind.of_log() {
            self.own(frame, &hash, bad);
        } else {
            self.of_session(frame, &hash, bad);
        }
        self.watch_clock(frame);
    }

    /// A log number that was there already.
    fn again(&mut self, frame: &Frame<'_>, hash: &Hash) {
        let number = frame.header.log_number;
        if self.in_landing && self.recent.get(&number) == Some(hash) {
            return;
        }
        let why = format!("log number {number} comes twice or out of order");
        self.log_finding(Verdict::Forged, &why);
        let finding = Finding::new(Verdict::Forged, why);
        if let Some(session) = self.sessions.get_mut(&frame.header.session) {
            mark(session, &finding);
        }
        self.mark_segment(&finding);
    }

    fn gap(&mut self, from: u64, to: u64) {
        self.log_finding(Verdict::Gap { from, to }, "log numbers are missing");
        if self.segment.tree.size() == 0 {
            self.segment.gap_before.get_or_insert((from, to));
            self.segment.first = to.saturating_add(1);
        } else {
            self.segment.gap.get_or_insert((from, to));
        }
        self.key_lost = true;
        // The chain of session zero is taken up where it goes on.
        self.zero.0 = u64::MAX;
    }

    fn own(&mut self, frame: &Frame<'_>, hash: &Hash, bad: Option<&str>) {
        let header = &frame.header;
        let chained = self.zero.0 == u64::MAX || (header.number, header.previous) == self.zero;
        if header.session != [0; 16] || !chained {
            self.forged_here("a frame of the log does not chain");
        }
        if let Some(why) = bad {
            self.forged_here(why);
        }
        if header.kind.of_broker() && self.path.namespace != BROKER {
            self.forged_here("an event of the broker stands in a sidecar's log");
        }
        self.zero = (header.number.saturating_add(1), *hash);
        if header.kind == Kind::Seal {
            self.seal(frame, hash);
            return;
        }
        self.segment.tree.push(hash);
        match header.kind {
            Kind::Boot => self.begin(frame, hash),
            Kind::Cert => self.take_certificate(frame),
            Kind::Clock => self.clock_moved(),
            Kind::Recovered => self.take_recovered(frame),
            _ => {}
        }
    }

    /// Damage in a frame of the log itself.
    fn forged_here(&mut self, why: &str) {
        let why = format!("{why} (log number {})", self.expected.saturating_sub(1));
        self.log_finding(Verdict::Forged, &why);
    }

    fn begin(&mut self, frame: &Frame<'_>, hash: &Hash) {
        let boot: Boot = serde_json::from_slice(frame.payload).unwrap_or_default();
        let theirs = LogPath::new(&boot.cluster, &boot.namespace, &boot.pod_uid, boot.instance);
        if frame.header.log_number != 0 || theirs.as_ref() != Some(self.path) {
            let finding = Finding::new(Verdict::Forged, "the log is another one than its folder says");
            self.log_finding(finding.verdict, &finding.why);
            self.taint.get_or_insert(finding);
        }
        self.boot = *hash;
        self.key = decode_key(&boot.public_key);
    }

    fn take_certificate(&mut self, frame: &Frame<'_>) {
        let cert: Cert = serde_json::from_slice(frame.payload).unwrap_or_default();
        match self.ring.certificate(&cert.certificate) {
            Ok(certificate)
                if certificate.pod_uid == self.path.pod_uid
                    && certificate.instance == self.path.instance
                    && (self.key_lost || self.key == Some(certificate.key)) =>
            {
                if self.key_lost {
                    self.key = Some(certificate.key);
                    self.key_lost = false;
                }
                self.certificate = Some(certificate);
            }
            Ok(_) => self.taint_all("the key certificate is for another key, pod or instance"),
            Err(error) => self.taint_all(&error.to_string()),
        }
    }

    /// Nothing of this log can be trusted.
    fn taint_all(&mut self, why: &str) {
        self.log_finding(Verdict::Forged, why);
        let finding = Finding::new(Verdict::Forged, why);
        for session in self.sessions.values_mut() {
            mark(session, &finding);
        }
        self.taint.get_or_insert(finding);
    }

    fn take_recovered(&mut self, frame: &Frame<'_>) {
        let found: Recovered = serde_json::from_slice(frame.payload).unwrap_or_default();
        if let Some(head) = unhex(&found.head) {
            self.recovered.push(EarlierStart {
                boot: found.log,
                instance: found.instance,
                end: (found.number, head),
            });
        }
    }

    fn of_session(&mut self, frame: &Frame<'_>, hash: &Hash, bad: Option<&str>) {
        let header = &frame.header;
        // Where the log's beginning is missing, the first frame says which log it is of.
        let boot = if self.boot == [0; 32] {
            header.previous
        } else {
            self.boot
        };
        let session = self.sessions.entry(header.session).or_insert_with(|| SessionEnd {
            log: self.path.to_string(),
            head: boot,
            first_log_number: header.log_number,
            ..SessionEnd::default()
        });
        if let Some(taint) = &self.taint {
            mark(session, taint);
        }
        let forged = |session: &mut SessionEnd, why: &str| {
            let why = format!("{why} (frame {})", header.number);
            worsen(&mut session.finding, Verdict::Forged, why);
        };
        if let Some(why) = bad {
            forged(session, why);
        }
        let begins = header.kind == Kind::Open;
        if header.session == [0; 16] || session.closed || begins != (header.number == 0) {
            forged(session, "a frame stands where it cannot");
        } else if header.number < session.next {
            forged(session, "a number of the session comes again");
        } else if header.number > session.next {
            let verdict = Verdict::Gap {
                from: session.next,
                to: header.number.saturating_sub(1),
            };
            worsen(&mut session.finding, verdict, "frames of the session are missing");
        } else if header.previous != session.head {
            forged(session, "a frame does not chain to the one before it");
        }
        session.next = header.number.saturating_add(1);
        session.head = *hash;
        session.frames = session.frames.saturating_add(1);
        session.closed |= header.kind == Kind::Close;
        self.segment.touched.insert(header.session);
        self.segment.tree.push(hash);
    }

    fn seal(&mut self, frame: &Frame<'_>, hash: &Hash) {
        let segment = std::mem::take(&mut self.segment);
        self.segment.first = self.expected;
        let previous = std::mem::replace(&mut self.previous_footer, *hash);
        let number = self.number;
        self.number = number.saturating_add(1);
        let signed = match Footer::read(frame.payload) {
            Ok(signed) => signed,
            Err(error) => return self.distrust(&segment, &error.to_string()),
        };
        let footer = &signed.footer;
        let by_key = self.key.is_some_and(|key| signed.verify(&key).is_ok());
        let by_claim = self.key_lost && self.seals.contains(hash);
        self.number = footer.segment.saturating_add(1);
        self.key = decode_key(&footer.next_key);
        if !by_key && !by_claim {
            return match self.key_lost {
                true => self.unrooted(&segment),
                false => self.distrust(&segment, "a footer's signature does not verify"),
            };
        }
        self.claimed |= by_claim;
        if self.certificate.is_none() && !self.claimed {
            return self.distrust(&segment, "no certificate vouches for the key");
        }
        self.key_lost = false;
        self.segments = self.segments.saturating_add(1);
        let continues = footer.segment == number && footer.previous == hex(&previous);
        self.judge(frame, footer, &segment, continues);
        self.check_times(&segment, frame.header.wall_us / 1_000_000);
    }

    /// Whether a footer that verifies is the one of these frames.
    fn judge(&mut self, frame: &Frame<'_>, footer: &Footer, segment: &Segment, continues: bool) {
        let rooted = self.boot == [0; 32] || footer.log == hex(&self.boot);
        let fits = rooted
            && footer.first == segment.first
            && footer.last.checked_add(1) == Some(frame.header.log_number)
            && footer.root == hex(&segment.tree.root())
            && footer.mono_ns == frame.header.mono_ns
            && footer.wall_us == frame.header.wall_us
            && footer.number == frame.header.number;
        match (fits, segment.gap, segment.gap_before) {
            (true, None, None) if continues && self.heads_fit(footer) => self.signed(segment),
            (true, None, Some(_)) => {
                // Complete in itself; what is missing lies before it.
                self.heads_lost(footer);
                self.signed(segment);
            }
            (_, Some((from, to)), _) | (_, None, Some((from, to))) => {
                self.heads_lost(footer);
                let finding = Finding::new(Verdict::Gap { from, to }, "log numbers of its segment are missing");
                self.mark_touched(segment, &finding);
            }
            (_, None, None) => {
                let why = format!("segment {} is not the one that was signed", footer.segment);
                let finding = Finding::new(Verdict::Forged, why);
                self.log_finding(finding.verdict, &finding.why);
                self.mark_touched(segment, &finding);
            }
        }
    }

    fn heads_fit(&self, footer: &Footer) -> bool {
        let open = self.sessions.values().filter(|session| !session.closed).count();
        footer.heads.len() == open
            && footer.heads.iter().all(|head| {
                self.session_of(&head.session).is_some_and(|session| {
                    !session.closed && session.last() == Some(head.number) && hex(&session.head) == head.hash
                })
            })
    }

    fn session_of(&self, id: &str) -> Option<&SessionEnd> {
        self.sessions.get(uuid::Uuid::parse_str(id).ok()?.as_bytes())
    }

    /// A verified footer behind a gap names sessions that went further than what is there.
    fn heads_lost(&mut self, footer: &Footer) {
        for (id, session) in &mut self.sessions {
            let name = uuid::Uuid::from_bytes(*id).to_string();
            if !session.closed && footer.heads.iter().all(|head| head.session != name) {
                // It ended in the gap.
                let verdict = Verdict::Gap {
                    from: session.next,
                    to: session.next,
                };
                worsen(&mut session.finding, verdict, "the end of the session is missing");
                session.closed = true;
            }
        }
        for head in &footer.heads {
            let Ok(id) = uuid::Uuid::parse_str(&head.session) else {
                continue;
            };
            let path = self.path.to_string();
            let session = self.sessions.entry(*id.as_bytes()).or_insert_with(|| SessionEnd {
                log: path,
                ..SessionEnd::default()
            });
            if head.number >= session.next {
                let verdict = Verdict::Gap {
                    from: session.next,
                    to: head.number,
                };
                worsen(&mut session.finding, verdict, "frames of the session are missing");
                session.next = head.number.saturating_add(1);
                session.head = unhex(&head.hash).unwrap_or_default();
            }
        }
    }

    fn signed(&mut self, segment: &Segment) {
        for id in &segment.touched {
            if let Some(session) = self.sessions.get_mut(id) {
                session.sealed = session.last();
            }
        }
    }

    fn mark_touched(&mut self, segment: &Segment, finding: &Finding) {
        for id in &segment.touched {
            if let Some(session) = self.sessions.get_mut(id) {
                mark(session, finding);
            }
        }
    }

    /// A footer that does not verify: this segment and everything behind it.
    fn distrust(&mut self, segment: &Segment, why: &str) {
        let finding = Finding::new(Verdict::Forged, why);
        self.log_finding(finding.verdict, why);
        self.mark_touched(segment, &finding);
        self.mark_open(&finding);
        self.taint.get_or_insert(finding);
    }

    /// Behind a gap no key is known and no checkpoint speaks of this footer.
    fn unrooted(&mut self, segment: &Segment) {
        let (from, to) = segment.gap.or(segment.gap_before).unwrap_or((0, segment.first));
        let finding = Finding::new(Verdict::Gap { from, to }, "what vouches for its key is missing");
        self.mark_touched(segment, &finding);
        self.mark_open(&finding);
        self.taint.get_or_insert(finding);
    }

    fn mark_open(&mut self, finding: &Finding) {
        for session in self.sessions.values_mut().filter(|session| !session.closed) {
            mark(session, finding);
        }
    }

    fn check_times(&mut self, segment: &Segment, wall_s: u64) {
        let outside = self.certificate.as_ref().is_some_and(|certificate| {
            wall_s.saturating_add(CERTIFICATE_SLACK_S) < certificate.not_before
                || wall_s > certificate.expires.saturating_add(CERTIFICATE_SLACK_S)
        });
        if outside {
            let finding = Finding::new(Verdict::ClockSuspect, "it was signed outside its certificate's times");
            self.mark_touched(segment, &finding);
        }
    }

    fn clock_moved(&mut self) {
        self.offset_us = None;
        self.mark_open(&Finding::new(Verdict::ClockSuspect, "the wall clock jumped"));
    }

    /// Wall and monotonic clock move together, or a `clock` frame says otherwise.
    fn watch_clock(&mut self, frame: &Frame<'_>) {
        let wall = i64::try_from(frame.header.wall_us).unwrap_or(i64::MAX);
        let mono = i64::try_from(frame.header.mono_ns / 1000).unwrap_or(i64::MAX);
        let offset = wall.saturating_sub(mono);
        let before = *self.offset_us.get_or_insert(offset);
        if offset.saturating_sub(before).unsigned_abs() > CLOCK_SLACK_US.unsigned_abs() {
            self.offset_us = Some(offset);
            let finding = Finding::new(
                Verdict::ClockSuspect,
                "the wall clock jumped and the log does not say so",
            );
            self.mark_open(&finding);
            if let Some(session) = self.sessions.get_mut(&frame.header.session) {
                mark(session, &finding);
            }
        }
    }

    /// Everything is read: what was claimed beyond it is missing.
    pub fn end(&mut self, recovered: Option<(u64, Hash)>) {
        if let Some((number, hash)) = recovered {
            let other = self.recent.get(&number).is_some_and(|there| *there != hash);
            if other {
                self.log_finding(Verdict::Forged, "a restart found another head of this log");
            }
            self.claims.entry(number).or_insert(hash);
        }
        let beyond = self
            .claims
            .keys()
            .next_back()
            .is_some_and(|number| *number >= self.expected);
        if beyond {
            self.cut("a checkpoint, footer or restart tells of later frames");
        }
        let ended = recovered.is_some() || (self.unsealed_object && !self.in_landing);
        if ended && self.segment.tree.size() > 0 {
            let after = self.segment.first.checked_sub(1);
            let why = match recovered {
                Some(_) => "its last frames are not signed: it was killed, as the next start says",
                None => "its last frames are not signed",
            };
            worsen(&mut self.finding, Verdict::Unsealed { after }, why);
        }
        if let Some((from, to)) = self.segment.gap.or(self.segment.gap_before) {
            let finding = Finding::new(Verdict::Gap { from, to }, "log numbers of its segment are missing");
            self.mark_segment(&finding);
        }
        for session in self.sessions.values_mut() {
            session.alive = !ended;
        }
    }

    pub fn into_parts(self) -> (LogReport, Vec<(String, SessionEnd)>, Vec<EarlierStart>) {
        let (verdict, why) = match self.finding {
            Some(finding) => (finding.verdict, finding.why),
            None => (Verdict::Valid, String::new()),
        };
        let report = LogReport {
            log: self.path.to_string(),
            verdict,
            why,
            frames: self.frames,
            segments: self.segments,
            bytes: 0,
        };
        (report, by_name(self.sessions), self.recovered)
    }
}
