//! Header scan: cuts an agent's and a server's stream into frames by their headers alone.
//!
//! It refuses lengths out of range before buffering, drains over-long agent messages instead of holding them,
//! and lets runs of rows pass as one slice where nobody has to look into them.

use bytes::{Bytes, BytesMut};

use super::{CodecError, Frame, HEADER, MAX_AGENT_MESSAGE, MAX_HELD_ROW, MAX_SERVER_MESSAGE, MAX_TEXT};

/// What the agent's scanner found.
#[derive(Debug, PartialEq, Eq)]
pub enum Scan {
    /// A whole message.
    Frame(Frame),
    /// A message over its limit: its bytes are being drained, and it must be refused.
    TooLong {
        /// The message's tag.
        tag: u8,
        /// Its length.
        length: usize,
    },
    /// More bytes are needed.
    More,
}

/// Tag and full length (header included) of the frame at the head of a buffer.
fn header(buffer: &[u8]) -> Result<Option<(u8, usize)>, CodecError> {
    let Some((head, _)) = buffer.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let [tag, a, b, c, d] = *head;
    let length = i32::from_be_bytes([a, b, c, d]);
    let bad = CodecError::Length {
        tag: char::from(tag),
        length: i64::from(length),
    };
    let length = usize::try_from(length).map_err(|_| bad)?;
    if length < 4 {
        return Err(bad);
    }
    Ok(Some((tag, length.saturating_add(1))))
}

/// The limit of an agent's message, header included.
fn agent_limit(tag: u8) -> usize {
    match tag {
        b'Q' => MAX_TEXT.saturating_add(16),
        // A name, a text and up to 65,535 parameter types.
        b'P' => MAX_TEXT.saturating_add(512 * 1024),
        b'B' | b'd' | b'F' => MAX_AGENT_MESSAGE,
        _ => 64 * 1024,
    }
}

/// Cuts an agent's stream.
#[derive(Debug, Default)]
pub struct AgentScanner {
    buffer: BytesMut,
    drain: usize,
}

impl AgentScanner {
    /// Where bytes are read into.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> usize {
        self.buffer.len()
    }

    /// The next frame.
    pub fn next(&mut self) -> Result<Scan, CodecError> {
        if self.drain > 0 {
            let gone = self.drain.min(self.buffer.len());
            drop(self.buffer.split_to(gone));
            self.drain = self.drain.saturating_sub(gone);
            if self.drain > 0 {
                return Ok(Scan::More);
            }
        }
        let Some((tag, length)) = header(&self.buffer)? else {
            return Ok(Scan::More);
        };
        if length > agent_limit(tag) {
            self.drain = length;
            return Ok(Scan::TooLong { tag, length });
        }
        if self.buffer.len() < length {
            self.buffer
                .reserve(length.saturating_sub(self.buffer.len()).min(256 * 1024));
            return Ok(Scan::More);
        }
        Ok(Scan::Frame(Frame::whole(self.buffer.split_to(length).freeze())))
    }
}

/// What the server's scanner found.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// A whole message.
    Frame(Frame),
    /// A run of rows or COPY data nobody looks into: whole frames, or a part of one large frame.
    Run {
        /// `D` or `d`.
        tag: u8,
        /// How many frames start in these bytes.
        frames: u64,
        /// The bytes.
        bytes: Bytes,
    },
    /// More bytes are needed.
    More,
}

/// Cuts a server's stream.
#[derive(Debug, Default)]
pub struct ServerScanner {
    buffer: BytesMut,
    /// Tag and bytes still to come of a large frame that is streamed.
    inside: Option<(u8, usize)>,
}

/// A frame above this is streamed in parts where nobody looks into it.
const STREAM_ABOVE: usize = 64 * 1024;

impl ServerScanner {
    /// Where bytes are read into.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Whether the middle of a streamed frame has been handed out, so that nothing may be put in between.
    pub fn inside_frame(&self) -> bool {
        self.inside.is_some()
    }

    /// The next piece. With `bulk`, rows and COPY data come as runs.
    pub fn next(&mut self, bulk: bool) -> Result<Piece, CodecError> {
        if let Some((tag, left)) = self.inside {
            return Ok(self.part(tag, left, 0));
        }
        let Some((tag, length)) = header(&self.buffer)? else {
            return Ok(Piece::More);
        };
        let rows = matches!(tag, b'D' | b'd');
        if bulk && rows {
            return self.run(tag, length);
        }
        let limit = if rows { MAX_HELD_ROW } else { MAX_SERVER_MESSAGE };
        if length > limit {
            return Err(CodecError::Length {
                tag: char::from(tag),
                length: i64::try_from(length).unwrap_or(i64::MAX),
            });
        }
        if self.buffer.len() < length {
            self.buffer
                .reserve(length.saturating_sub(self.buffer.len()).min(256 * 1024));
            return Ok(Piece::More);
        }
        Ok(Piece::Frame(Frame::whole(self.buffer.split_to(length).freeze())))
    }

    fn part(&mut self, tag: u8, left: usize, frames: u64) -> Piece {
        let take = left.min(self.buffer.len());
        if take == 0 {
            return Piece::More;
        }
        let left = left.saturating_sub(take);
        self.inside = (left > 0).then_some((tag, left));
        Piece::Run {
            tag,
            frames,
            bytes: self.buffer.split_to(take).freeze(),
        }
    }

    fn run(&mut self, tag: u8, first: usize) -> Result<Piece, CodecError> {
        if first > self.buffer.len() {
            if first > STREAM_ABOVE {
                return Ok(self.part(tag, first, 1));
            }
            self.buffer.reserve(first.saturating_sub(self.buffer.len()));
            return Ok(Piece::More);
        }
        let (mut end, mut frames) = (first, 1u64);
        // What is broken behind whole frames shows itself when it is at the front: they were good.
        while let Ok(Some((next, length))) = header(self.buffer.get(end..).unwrap_or_default()) {
            let after = end.saturating_add(length);
            if next != tag || after > self.buffer.len() {
                break;
            }
            end = after;
            frames = frames.saturating_add(1);
        }
        Ok(Piece::Run {
            tag,
            frames,
            bytes: self.buffer.split_to(end).freeze(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames_of(stream: &[u8], cuts: &[usize]) -> Vec<Result<Scan, CodecError>> {
        let mut scanner = AgentScanner::default();
        let mut found = Vec::new();
        let mut feed = |part: &[u8]| {
            scanner.buffer().extend_from_slice(part);
            loop {
                match scanner.next() {
                    Ok(Scan::More) => break,
                    Ok(scan) => found.push(Ok(scan)),
                    Err(error) => {
                        found.push(Err(error));
                        break;
                    }
                }
            }
            found.last().is_some_and(Result::is_err)
        };
        let mut from = 0;
        for cut in cuts.iter().copied().chain([stream.len()]) {
            let cut = cut.clamp(from, stream.len());
            if feed(&stream[from..cut]) {
                break;
            }
            from = cut;
        }
        found
    }

    fn stream(parts: &[(u8, Vec<u8>)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (tag, payload) in parts {
            out.push(*tag);
            out.extend_from_slice(&(payload.len() as i32).saturating_add(4).to_be_bytes());
            out.extend_from_slice(payload);
        }
        out
    }

    #[test]
    fn rows_before_a_broken_header_are_handed_out_first() {
        let mut scanner = ServerScanner::default();
        let good = stream(&[(b'd', b"a\tb\n".to_vec())]);
        scanner.buffer().extend_from_slice(&good);
        scanner.buffer().extend_from_slice(&[0; 5]);
        let run = Piece::Run {
            tag: b'd',
            frames: 1,
            bytes: good.into(),
        };
        assert_eq!(scanner.next(true), Ok(run));
        assert!(scanner.next(true).is_err());
    }

    proptest! {
        #[test]
        fn every_split_gives_the_same_frames(parts in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..6),
                                             mut cuts in proptest::collection::vec(0usize..300, 0..8)) {
            cuts.sort_unstable();
            let bytes = stream(&parts);
            let every: Vec<usize> = (0..bytes.len()).collect();
            let whole = frames_of(&bytes, &[]);
            prop_assert_eq!(&whole, &frames_of(&bytes, &cuts));
            prop_assert_eq!(&whole, &frames_of(&bytes, &every));
            prop_assert_eq!(whole.len(), parts.len());
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            frames_of(&bytes, &[3, 7, 50]);
            let mut scanner = ServerScanner::default();
            scanner.buffer().extend_from_slice(&bytes);
            while let Ok(piece) = scanner.next(true) {
                if piece == Piece::More { break; }
            }
        }
    }

    #[test]
    fn a_length_below_four_or_negative_is_refused_before_anything_is_kept() {
        for length in [-1i32, 0, 3, i32::MIN] {
            let mut bytes = vec![b'Q'];
            bytes.extend_from_slice(&length.to_be_bytes());
            assert!(matches!(frames_of(&bytes, &[])[0], Err(CodecError::Length { .. })));
        }
    }

    #[test]
    fn an_over_long_statement_is_drained_and_the_next_message_is_found() {
        let mut bytes = vec![b'Q'];
        let long = MAX_TEXT + 100;
        bytes.extend_from_slice(&(long as i32 + 4).to_be_bytes());
        bytes.extend(std::iter::repeat_n(b'x', long));
        bytes.extend(stream(&[(b'S', vec![])]));
        let found = frames_of(&bytes, &[10, 1000, 500_000]);
        assert_eq!(
            found[0],
            Ok(Scan::TooLong {
                tag: b'Q',
                length: long + 5
            })
        );
        assert!(matches!(&found[1], Ok(Scan::Frame(frame)) if frame.tag() == b'S'));
    }

    #[test]
    fn rows_nobody_looks_into_come_as_one_run_and_large_ones_in_parts() {
        let mut scanner = ServerScanner::default();
        let rows = stream(&[(b'D', vec![1; 10]), (b'D', vec![2; 20]), (b'C', b"SELECT 2\0".to_vec())]);
        scanner.buffer().extend_from_slice(&rows);
        assert!(matches!(scanner.next(true), Ok(Piece::Run { frames: 2, ref bytes, .. }) if bytes.len() == 40));
        assert!(matches!(scanner.next(true), Ok(Piece::Frame(frame)) if frame.tag() == b'C'));
        let big = stream(&[(b'D', vec![0; 200_000]), (b'C', b"SELECT 1\0".to_vec())]);
        let (mut total, mut frames) = (0, 0);
        for part in big.chunks(70_000) {
            scanner.buffer().extend_from_slice(part);
            while let Ok(piece) = scanner.next(true) {
                match piece {
                    Piece::Run {
                        bytes, frames: started, ..
                    } => {
                        total += bytes.len();
                        frames += started;
                    }
                    Piece::Frame(frame) => assert_eq!(frame.tag(), b'C'),
                    Piece::More => break,
                }
            }
        }
        assert_eq!((total, frames), (200_005, 1));
    }
}
