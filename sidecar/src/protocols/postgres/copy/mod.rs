//! COPY from the agent: what it sends is counted, digested and capped before it leaves.
//!
//! The caps are the policy's `rows` and `bytes`, over all that one operation copies in. It refuses the message that
//! would pass one: the server hears CopyFail in its place, so that nothing of the COPY stays and the transaction's
//! state is the server's own. The record keeps how much was copied and a keyed digest of it, never the data: no mask
//! has seen it.

mod count;

use sidegate_policies::reason::Reason;
use tokio::io::{AsyncRead, AsyncWrite};

use super::codec::{copy_response, write, Frame};
use super::facts::Planned;
use super::queue::{Copying, Progress};
use super::relay::{End, Relay};
use super::reply::{self, Severity};
use super::server::copy_of;
use crate::gate::Copied;
use crate::record::Digesting;
use crate::refusal::{Refusal, Sent};

use count::{Form, RowCount};

/// What an operation copied in.
pub struct CopiedIn {
    /// Bytes of data that were sent on.
    bytes: u64,
    /// Rows of the COPYs that are over.
    earlier: u64,
    /// Rows of the one at work, counted where a cap needs it.
    rows: Option<RowCount>,
    digest: Digesting,
}

/// A cap that the next message would pass.
enum Over {
    Rows(u64),
    Bytes(u64),
}

impl CopiedIn {
    fn new(digest: Digesting) -> CopiedIn {
        CopiedIn {
            bytes: 0,
            earlier: 0,
            rows: None,
            digest,
        }
    }

    fn rows(&self) -> u64 {
        let now = self.rows.as_ref().map(RowCount::rows).unwrap_or_default();
        self.earlier.saturating_add(now)
    }

    fn begin(&mut self, rows: Option<RowCount>) {
        self.earlier = self.rows();
        self.rows = rows;
    }

    fn take(&mut self, data: &[u8], row_limit: Option<u64>, byte_limit: Option<u64>) -> Result<(), Over> {
        let bytes = self.bytes.saturating_add(data.len() as u64);
        if let Some(limit) = byte_limit.filter(|limit| bytes > *limit) {
            return Err(Over::Bytes(limit));
        }
        if let Some(rows) = &mut self.rows {
            rows.push(data);
        }
        if let Some(limit) = row_limit.filter(|limit| self.rows() > *limit) {
            return Err(Over::Rows(limit));
        }
        self.digest.update(data);
        self.bytes = bytes;
        Ok(())
    }

    /// The same for the record.
    pub fn told(&self) -> Copied {
        Copied {
            bytes: self.bytes,
            digest: self.digest.hex(),
        }
    }
}

impl<A, S> Relay<A, S>
where
    A: AsyncRead + AsyncWrite + Unpin + Send,
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    /// The server asks for COPY data. It ignores the Syncs it was sent before; the entry at work is not in the queue
    /// now, so all Syncs in it are those.
    pub(super) fn copy_begins(
        &mut self,
        progress: &mut Progress,
        plan: &Planned,
        index: usize,
        frame: &Frame,
    ) -> Result<(), End> {
        let response = copy_response::decode(frame).map_err(|error| End::Server(error.to_string()))?;
        let copy = copy_of(plan, index);
        let form = match copy {
            _ if response.binary => Form::Binary,
            Some(copy) if &*copy.format == "csv" => {
                let quote = copy.quote.unwrap_or(b'"');
                let escape = copy.escape.filter(|escape| *escape != quote);
                Form::Csv { quote, escape }
            }
            Some(copy) if &*copy.format == "text" => Form::Text,
            _ => Form::Lines,
        };
        let header = copy.is_some_and(|copy| copy.header);
        let rows = progress.row_limit.map(|_| RowCount::new(form, header));
        if progress.copied.is_none() {
            let digest = self.gate.recorder().digesting();
            progress.copied = digest.map(|digest| Box::new(CopiedIn::new(digest)));
        }
        if let Some(copied) = &mut progress.copied {
            copied.begin(rows);
        }
        progress.copy = Some(Copying::In);
        (self.copy_in, self.barrier) = (true, false);
        self.queue.drop_syncs();
        Ok(())
    }

    /// `d`, `c` and `f` of the agent.
    pub(super) fn on_copy(&mut self, frame: Frame) -> Result<(), End> {
        if !self.copy_in {
            // What remains of a COPY that failed; the server ignores it as well.
            return Ok(());
        }
        if frame.tag() != b'd' {
            self.copy_in = false;
            return self.forward(frame);
        }
        let Some((_, progress)) = self.queue.at_work() else {
            return Err(End::Server("COPY out of place".to_owned()));
        };
        let (rows, bytes) = (progress.row_limit, progress.byte_limit);
        let Some(copied) = &mut progress.copied else {
            return Err(End::Server("COPY out of place".to_owned()));
        };
        match copied.take(frame.payload(), rows, bytes) {
            Ok(()) => self.forward(frame),
            Err(over) => self.copy_over(&over),
        }
    }

    /// A cap would be passed: the agent hears so now, and the server that the COPY failed.
    fn copy_over(&mut self, over: &Over) -> Result<(), End> {
        self.copy_in = false;
        let text = match over {
            Over::Rows(limit) => format!("it may copy in at most {limit} rows"),
            Over::Bytes(limit) => format!("it may copy in at most {limit} bytes"),
        };
        let refusal = Refusal::new(Reason::Limit, "COPY")
            .because(text)
            .after(Sent::Undone)
            .hint("Copy in less at once: split the data over several COPY statements");
        let refusal = self.gate.refused(refusal, None);
        self.forward(write::copy_fail(&format!("sidegate refused {}", refusal.id)))?;
        let fields = reply::error(&refusal, Severity::Statement);
        fields.write(&mut self.out, b'E');
        let Some((_, progress)) = self.queue.at_work() else {
            return Err(End::Server("COPY out of place".to_owned()));
        };
        progress.error = Some((fields.text(b'C'), fields.text(b'M')));
        progress.stopped = Some(fields);
        progress.undone = true;
        Ok(())
    }
}
