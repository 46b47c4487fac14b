//! A log that the broker writes itself: no sessions, one writer, the collector's own chain, journal and objects.
//!
//! Owns the record key with its ratchet and the certificate over it. What an earlier start left behind is stated in
//! `recovered` frames under the new key and then ended. Refuses to go on where a frame would not chain.
//! Invariant: [`OwnLog::commit`] answers well only when every frame appended before it is on the disk.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use aws_lc_rs::signature::Ed25519KeyPair;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use serde::Serialize;
use sidegate_policies::record::footer::{encode_key, public_key, SEGMENT_BYTES, SEGMENT_NS};
use sidegate_policies::record::layout::LogPath;
use sidegate_policies::record::payload::{Boot, Cert, Clock as ClockJump, Recovered};
use sidegate_policies::record::Kind;
use zeroize::Zeroizing;

use super::collector::{LogState, Refusal};
use super::{lock, Records, RecordsError};
use crate::clock::Clock;

/// Certificates live a day; a new one is asked for after half of that.
const CERTIFY_AFTER_NS: u64 = 12 * 3_600 * 1_000_000_000;

/// Vouches for a record key, base64url: the compact certificate, or nothing if it cannot be made.
pub type Certify = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Fills with secret random bytes; false if it cannot, and then they must not be used.
pub type Random = Box<dyn Fn(&mut [u8]) -> bool + Send + Sync>;

/// Where a log has its times, its secrets and its certificates from. Tests put in their own, to write the same log twice.
pub struct Sources {
    /// Wall time.
    pub clock: Arc<dyn Clock>,
    /// Nanoseconds since the log began; never goes back.
    pub mono_ns: Box<dyn Fn() -> u64 + Send + Sync>,
    /// Record keys and the nonce.
    pub random: Random,
    /// Vouches for record keys.
    pub certify: Certify,
}

impl Sources {
    /// The system's, but for the wall clock.
    pub fn system(clock: Arc<dyn Clock>, certify: Certify) -> Sources {
        let origin = Instant::now();
        Sources {
            clock,
            mono_ns: Box::new(move || u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX)),
            random: Box::new(|out| aws_lc_rs::rand::fill(out).is_ok()),
            certify,
        }
    }

    fn key(&self) -> Result<Ed25519KeyPair, RecordsError> {
        let mut seed = Zeroizing::new([0u8; 32]);
        let filled = (self.random)(seed.as_mut());
        let key = filled.then(|| Ed25519KeyPair::from_seed_unchecked(seed.as_ref()).ok());
        key.flatten().ok_or(RecordsError::Key("no record key could be made"))
    }
}

/// See the module.
pub(crate) struct OwnLog {
    records: Arc<Records>,
    log: Arc<Mutex<LogState>>,
    key: Ed25519KeyPair,
    sources: Sources,
    offset_us: i64,
    certified_ns: u64,
    began_ns: Option<u64>,
    bytes: u64,
}

impl OwnLog {
    /// Begins the log that `boot` names (key and nonce are filled in), certified, with what is left of earlier starts.
    pub fn start(records: Arc<Records>, mut boot: Boot, sources: Sources) -> Result<OwnLog, RecordsError> {
        let path = LogPath::new(&boot.cluster, &boot.namespace, &boot.pod_uid, boot.instance);
        let path = path.ok_or(RecordsError::Key("the broker's log has no plain name"))?;
        let log = records.log(&path)?;
        if lock(&log).next() > 0 {
            return Err(damaged(&path, "a start of this number was there before"));
        }
        let key = sources.key()?;
        let mut nonce = [0u8; 16];
        let filled = (sources.random)(&mut nonce);
        filled.then_some(()).ok_or(RecordsError::Key("no random bytes"))?;
        boot.public_key = encode_key(&public_key(&key));
        boot.nonce = URL_SAFE_NO_PAD.encode(nonce);
        let mut own = OwnLog {
            offset_us: 0,
            records,
            log,
            key,
            sources,
            certified_ns: 0,
            began_ns: None,
            bytes: 0,
        };
        own.offset_us = ClockJump::offset_us(own.now());
        own.append(Kind::Boot, &boot)?;
        own.certify()?;
        own.take_over(&path)?;
        Ok(own)
    }

    /// States what earlier starts left, and ends their logs once that is on the disk. The key that could have signed
    /// their last frames died with the process, so those stay unsigned; from here on this log vouches for where they end.
    fn take_over(&mut self, path: &LogPath) -> Result<(), RecordsError> {
        let earlier = self.records.unfinished(path);
        for log in &earlier {
            let found = lock(log).recovered();
            if let Some(found) = found {
                let Recovered {
                    number,
                    count,
                    cut_bytes,
                    ..
                } = &found;
                tracing::warn!(
                    number,
                    unsigned = count,
                    cut_bytes,
                    "an earlier start of the broker did not end its log"
                );
                self.append(Kind::Recovered, &found)?;
            }
        }
        self.commit()?;
        for log in earlier {
            let finished = lock(&log).finish(&self.records);
            if let Err(error) = finished {
                // It is stated above and its journal stays: the next start tries again.
                self.records.alarm(&path.to_string(), &error.to_string());
            }
        }
        Ok(())
    }

    /// Appends one event; [`OwnLog::commit`] makes it durable.
    pub fn append(&mut self, kind: Kind, payload: &impl Serialize) -> Result<(), RecordsError> {
        let now = self.now();
        self.watch_clock(now)?;
        self.write(kind, payload, now)
    }

    /// Makes everything appended so far durable.
    pub fn commit(&mut self) -> Result<(), RecordsError> {
        lock(&self.log).commit(&self.records)
    }

    /// Seals the segment if it is due, and renews the certificate.
    pub fn keep(&mut self) -> Result<(), RecordsError> {
        let (mono_ns, _) = self.now();
        if mono_ns.saturating_sub(self.certified_ns) >= CERTIFY_AFTER_NS {
            self.certify()?;
        }
        let old = self
            .began_ns
            .is_some_and(|began| mono_ns.saturating_sub(began) >= SEGMENT_NS);
        if old || self.bytes >= SEGMENT_BYTES {
            self.seal()?;
        }
        Ok(())
    }

    /// Ends the segment: footer, signature, next key. Nothing is written for an empty segment.
    pub fn seal(&mut self) -> Result<(), RecordsError> {
        if self.state().chain().unsealed() == 0 {
            return Ok(());
        }
        let (next_key, now) = (self.sources.key()?, self.now());
        let footer = self.state().chain().footer(&public_key(&next_key), now);
        let payload = footer.sign(&self.key);
        let payload = payload.map_err(|_| RecordsError::Key("a footer could not be signed"))?;
        let sealed = self.state().append(&self.records, Kind::Seal, &payload, now);
        sealed.map_err(|refusal| self.failed(refusal))?;
        // The old key is dropped here and its memory cleansed by the library.
        self.key = next_key;
        (self.began_ns, self.bytes) = (None, 0);
        self.commit()
    }

    /// Seals what is left and says that the log is complete.
    pub fn finish(&mut self) -> Result<(), RecordsError> {
        self.seal()?;
        lock(&self.log).finish(&self.records)
    }

    fn certify(&mut self) -> Result<(), RecordsError> {
        let certificate = (self.sources.certify)(&encode_key(&public_key(&self.key)));
        let certificate = certificate.ok_or(RecordsError::Key("the broker's record key could not be certified"))?;
        let now = self.now();
        self.write(Kind::Cert, &Cert { certificate }, now)?;
        self.certified_ns = now.0;
        Ok(())
    }

    fn write(&mut self, kind: Kind, payload: &impl Serialize, now: (u64, u64)) -> Result<(), RecordsError> {
        let payload = serde_json::to_vec(payload).map_err(|_| RecordsError::Key("an event cannot be written"))?;
        let written = self.state().append(&self.records, kind, &payload, now);
        written.map_err(|refusal| self.failed(refusal))?;
        self.began_ns.get_or_insert(now.0);
        self.bytes = self.bytes.saturating_add(payload.len() as u64);
        Ok(())
    }

    fn watch_clock(&mut self, now: (u64, u64)) -> Result<(), RecordsError> {
        let offset = ClockJump::offset_us(now);
        if let Some(jump) = ClockJump::moved(self.offset_us, offset) {
            self.write(Kind::Clock, &jump, now)?;
            self.offset_us = offset;
        }
        Ok(())
    }

    fn now(&self) -> (u64, u64) {
        let wall = u64::try_from(self.sources.clock.now_ms())
            .unwrap_or(0)
            .saturating_mul(1000);
        ((self.sources.mono_ns)(), wall)
    }

    fn state(&self) -> MutexGuard<'_, LogState> {
        lock(&self.log)
    }

    fn failed(&self, refusal: Refusal) -> RecordsError {
        match refusal {
            Refusal::Store(error) => error,
            other => damaged(&self.state().path, &other.to_string()),
        }
    }
}

fn damaged(path: &LogPath, why: &str) -> RecordsError {
    RecordsError::Damaged {
        log: path.to_string(),
        why: why.to_owned(),
    }
}
