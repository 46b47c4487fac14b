//! Lines of JSON out of an answer's body, each within a limit that is checked before it is held.

use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use super::CallError;

/// A bundle of 8 MiB, as a JSON string, with its surroundings.
const LINE_LIMIT: usize = 20 << 20;

/// A body as lines.
pub struct Lines {
    body: Incoming,
    buffer: BytesMut,
    searched: usize,
}

impl Lines {
    /// Lines of this body.
    pub fn new(body: Incoming) -> Self {
        Lines {
            body,
            buffer: BytesMut::new(),
            searched: 0,
        }
    }

    /// The next line; none at the end. Cancel-safe: what was read stays.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, CallError> {
        loop {
            let unseen = self.buffer.get(self.searched..).unwrap_or_default();
            if let Some(at) = memchr::memchr(b'\n', unseen) {
                let line = self.buffer.split_to(self.searched.saturating_add(at));
                self.buffer.advance(1);
                self.searched = 0;
                if line.is_empty() {
                    continue;
                }
                return serde_json::from_slice(&line).map(Some).map_err(|_| CallError::Nonsense);
            }
            self.searched = self.buffer.len();
            if self.searched > LINE_LIMIT {
                return Err(CallError::Nonsense);
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(CallError::Unreachable(error.to_string())),
                None => return Ok(None),
            }
        }
    }
}
