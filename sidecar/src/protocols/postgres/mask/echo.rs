//! Looks for the lease's secret in every byte that goes to the agent: raw, hex and base64, across borders of writes.
//!
//! It keeps the end of what passed, so that a secret cut in two is seen as well. Secrets shorter than eight bytes are
//! not looked for: they would be found in everything.
//! The needles are derived from the secret and wiped with it.

use aho_corasick::packed;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use base64::Engine;
use zeroize::{Zeroize, Zeroizing};

use crate::secret::hex;

/// The shortest secret that is looked for.
const SHORTEST: usize = 8;
/// Bytes that are looked at together with the end of what passed.
const LITTLE: usize = 1024;

/// The scanner of one session.
pub struct Echo {
    searcher: Option<packed::Searcher>,
    longest: usize,
    tail: Vec<u8>,
}

impl Echo {
    /// A scanner for these secrets.
    pub fn new(secrets: &[&[u8]]) -> Self {
        let needles: Vec<Zeroizing<Vec<u8>>> = secrets
            .iter()
            .filter(|secret| secret.len() >= SHORTEST)
            .flat_map(|secret| forms(secret))
            .collect();
        let mut builder = packed::Config::new().builder();
        needles.iter().for_each(|needle| {
            builder.add(needle.as_slice());
        });
        Echo {
            searcher: builder.build().filter(|_| !needles.is_empty()),
            longest: needles.iter().map(|needle| needle.len()).max().unwrap_or(0),
            tail: Vec::new(),
        }
    }

    /// Whether a secret ends in these bytes, which follow what was looked at before. If so, they must not leave, and
    /// what comes next is looked at by itself.
    pub fn found(&mut self, bytes: &[u8]) -> bool {
        let found = self.search(bytes);
        if found {
            self.tail.zeroize();
        }
        found
    }

    fn search(&mut self, bytes: &[u8]) -> bool {
        let Some(searcher) = &self.searcher else {
            return false;
        };
        let overlap = self.longest.saturating_sub(1);
        if bytes.len() <= overlap.max(LITTLE) {
            // Little is copied behind what is kept: one look costs less than two.
            self.tail.extend_from_slice(bytes);
            let found = searcher.find(&self.tail).is_some();
            let excess = self.tail.len().saturating_sub(overlap);
            self.tail.drain(..excess);
            return found;
        }
        if !self.tail.is_empty() {
            self.tail.extend_from_slice(bytes.get(..overlap).unwrap_or_default());
            if searcher.find(&self.tail).is_some() {
                return true;
            }
        }
        if searcher.find(bytes).is_some() {
            return true;
        }
        self.tail.clear();
        let end = bytes.get(bytes.len().saturating_sub(overlap)..).unwrap_or_default();
        self.tail.extend_from_slice(end);
        false
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.tail.zeroize();
    }
}

/// The forms of a secret: raw, hex in both cases, and base64 in both alphabets at its three alignments. The first and
/// last letters of a base64 form depend on the neighbours and are left out.
fn forms(secret: &[u8]) -> Vec<Zeroizing<Vec<u8>>> {
    let hex = Zeroizing::new(hex(secret));
    let mut all = vec![
        Zeroizing::new(secret.to_vec()),
        Zeroizing::new(hex.to_ascii_uppercase().into_bytes()),
        Zeroizing::new(hex.as_bytes().to_vec()),
    ];
    for alignment in 0..3usize {
        let mut padded = Zeroizing::new(vec![0u8; alignment]);
        padded.extend_from_slice(secret);
        // Whole groups of three only, without the one that holds the padding.
        let skip = if alignment == 0 { 0 } else { 4 };
        let whole = padded.len().saturating_sub(padded.len() % 3);
        let groups = padded.get(..whole).unwrap_or_default();
        for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            let text = Zeroizing::new(engine.encode(groups));
            let needle = text.get(skip..).unwrap_or_default();
            if needle.len() >= SHORTEST && !all.iter().any(|known| known.as_slice() == needle.as_bytes()) {
                all.push(Zeroizing::new(needle.as_bytes().to_vec()));
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    use super::*;

    const SECRET: &[u8] = b"correct horse battery";

    fn found_in(stream: &[u8], cuts: &[usize]) -> bool {
        let mut echo = Echo::new(&[SECRET]);
        let mut from = 0;
        for cut in cuts.iter().copied().chain([stream.len()]) {
            let cut = cut.clamp(from, stream.len());
            if echo.found(&stream[from..cut]) {
                return true;
            }
            from = cut;
        }
        false
    }

    proptest! {
        #[test]
        fn the_secret_is_found_in_every_form_at_every_split(before in proptest::collection::vec(any::<u8>(), 0..40),
                                                             padding in prop_oneof![Just(0usize), 0..3 * LITTLE],
                                                             after in proptest::collection::vec(any::<u8>(), 0..40),
                                                             form in 0usize..4,
                                                             mut cuts in proptest::collection::vec(0usize..4 * LITTLE, 0..12)) {
            cuts.sort_unstable();
            let before = [vec![b'.'; padding], before].concat();
            let raw = [before.as_slice(), SECRET, after.as_slice()].concat();
            let hex: String = SECRET.iter().map(|byte| format!("{byte:02x}")).collect();
            let stream = match form {
                0 => raw,
                1 => [before.as_slice(), hex.as_bytes(), &after].concat(),
                2 => STANDARD.encode(&raw).into_bytes(),
                _ => URL_SAFE_NO_PAD.encode(&raw).into_bytes(),
            };
            prop_assert!(found_in(&stream, &cuts));
            let every: Vec<usize> = (0..stream.len()).collect();
            prop_assert!(found_in(&stream, &every));
        }
    }

    #[test]
    fn what_is_said_after_a_secret_was_found_passes() {
        let mut echo = Echo::new(&[SECRET]);
        assert!(!echo.found(b"correct horse"));
        assert!(echo.found(b" battery"));
        assert!(!echo.found(b"the answer held a credential"));
    }

    #[test]
    fn other_text_passes_and_short_secrets_are_not_looked_for() {
        assert!(!found_in(
            b"correct horse batter and more of the same kind, at some length",
            &[5, 11]
        ));
        assert!(!Echo::new(&[b"abc"]).found(b"abcabc"));
    }
}
