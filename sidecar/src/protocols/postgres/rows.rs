//! Rows and COPY data on their way to the agent: masked, counted, capped, recorded as the agent sees them.
//!
//! It refuses a result that does not fit its plan (XX000), and stops an operation at its row or byte cap (54000); the
//! statement at the server is then cancelled.

use std::sync::{Arc, Mutex, PoisonError};

use sidegate_policies::reason::Reason;
use sidegate_policies::sql::postgres::plan::{FieldOrigin, Mismatch};
use tokio::io::{AsyncRead, AsyncWrite};

use super::codec::bind::format_of;
use super::codec::row_description::{self, Field};
use super::codec::{copy_response, Frame};
use super::conversation::Portal;
use super::facts::Planned;
use super::mask::copy::{CopyFormat, CopyMasker};
use super::mask::rows::RowMasker;
use super::queue::{Copying, Progress, Run};
use super::relay::{End, Relay};
use super::reply::{self, Severity};
use super::server::copy_of;
use crate::gate::OpId;
use crate::refusal::{Refusal, Sent};

/// Why an operation is stopped in the middle.
pub enum Stopped {
    /// A row cap.
    Rows(u64),
    /// A byte cap.
    Bytes(u64),
    /// The answer does not fit the plan.
    Mismatch(String),
}

impl<A, S> Relay<A, S>
where
    A: AsyncRead + AsyncWrite + Unpin + Send,
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    /// How the rows of a simple query's statement are masked.
    pub(super) fn simple_masker(&mut self, run: &Run, frame: &Frame) -> Result<Option<RowMasker>, Stopped> {
        if run.plan.passes() {
            return Ok(None);
        }
        let fields = row_description::decode(frame).map_err(|error| Stopped::Mismatch(error.to_string()))?;
        self.masker(&run.plan, run.statement, &fields, &[0])
    }

    /// How the rows of a portal are masked; made once.
    pub(super) fn portal_masker(&mut self, portal: &Arc<Portal>) -> Result<(), Stopped> {
        if portal.masker.get().is_some() {
            return Ok(());
        }
        let masker = if portal.plan.passes() {
            None
        } else {
            let fields = portal.prepared.fields.get();
            let fields = fields.ok_or_else(|| Stopped::Mismatch("rows came before their description".to_owned()))?;
            self.masker(&portal.plan, 0, fields, &portal.bind.results)?
        };
        let _ = portal.masker.set(masker.map(Mutex::new));
        Ok(())
    }

    fn masker(
        &mut self,
        plan: &Planned,
        index: usize,
        fields: &[Field],
        formats: &[i16],
    ) -> Result<Option<RowMasker>, Stopped> {
        let Some(result) = plan.plans.get(index) else {
            return Err(Stopped::Mismatch(
                "rows came of a statement that has no plan".to_owned(),
            ));
        };
        let origin = |field: &Field| FieldOrigin {
            table_oid: field.table_oid,
            attnum: field.attnum,
            type_oid: field.type_oid,
            typmod: field.typmod,
        };
        let origins: Vec<FieldOrigin> = fields.iter().map(origin).collect();
        let masks = result.check_origin(&origins, &plan.catalog).map_err(|mismatch| {
            if matches!(mismatch, Mismatch::Stale { .. }) {
                self.planner.snapshot.mark_stale();
            }
            tracing::error!(session = %self.session.id, %mismatch, "an answer did not fit its plan");
            Stopped::Mismatch(mismatch.to_string())
        })?;
        let binary = |at: usize| format_of(formats, at) == 1;
        let types: Vec<(u32, i32)> = fields
            .iter()
            .map(|field| (plan.catalog.base_type(field.type_oid), field.typmod))
            .collect();
        let columns = self
            .masks
            .columns(&masks, &types)
            .map_err(|error| Stopped::Mismatch(error.to_string()))?;
        let columns = columns
            .into_iter()
            .enumerate()
            .map(|(at, work)| (work, binary(at)))
            .collect();
        Ok(RowMasker::new(columns))
    }

    /// One row, masked.
    pub(super) fn on_row(
        &mut self,
        progress: &mut Progress,
        masker: Option<&mut RowMasker>,
        frame: &Frame,
        op: OpId,
        earlier: u64,
    ) {
        if progress.stopped.is_some() {
            return;
        }
        let rows = earlier.saturating_add(progress.rows).saturating_add(1);
        if let Some(limit) = progress.row_limit.filter(|limit| rows > *limit) {
            return self.stop(progress, &Stopped::Rows(limit));
        }
        let start = self.out.len();
        match masker {
            None => self.out.extend_from_slice(frame.bytes()),
            Some(masker) => {
                if let Err(error) = masker.apply(frame, &mut self.out) {
                    self.out.truncate(start);
                    return self.stop(progress, &Stopped::Mismatch(error.to_string()));
                }
            }
        }
        self.count(progress, start, 1, op);
    }

    /// Counts and records what was appended for the agent since `start`; takes it back at a byte cap.
    fn count(&mut self, progress: &mut Progress, start: usize, rows: u64, op: OpId) {
        let size = u64::try_from(self.out.len().saturating_sub(start)).unwrap_or(u64::MAX);
        let bytes = progress.bytes.saturating_add(size);
        if let Some(limit) = progress.byte_limit.filter(|limit| bytes > *limit) {
            self.out.truncate(start);
            return self.stop(progress, &Stopped::Bytes(limit));
        }
        progress.bytes = bytes;
        progress.rows = progress.rows.saturating_add(rows);
        if !self.muted {
            let fresh = self.out.get(start..).unwrap_or_default();
            self.gate.recorder().body(op.get(), fresh);
        }
    }

    /// Ends an operation in the middle: our error now, nothing more of the answer, and the server is told to stop.
    pub(super) fn stop(&mut self, progress: &mut Progress, why: &Stopped) {
        if progress.stopped.is_some() {
            return;
        }
        let (reason, text) = match why {
            Stopped::Rows(limit) => (Reason::Limit, format!("it may answer at most {limit} rows")),
            Stopped::Bytes(limit) => (Reason::Limit, format!("it may answer at most {limit} bytes")),
            Stopped::Mismatch(text) => (Reason::PlanMismatch, text.clone()),
        };
        let mut refusal = Refusal::new(reason, "statement")
            .because(text)
            .after(Sent::Yes { rows: progress.rows });
        if reason == Reason::Limit {
            refusal = refusal.hint("Ask for fewer rows, with a narrower WHERE or a LIMIT");
        }
        let refusal = self.gate.refused(refusal, None);
        let fields = reply::error(&refusal, Severity::Statement);
        fields.write(&mut self.out, b'E');
        progress.error = Some((fields.text(b'C'), fields.text(b'M')));
        progress.stopped = Some(fields);
        self.cancel_upstream();
    }

    /// Cancels what runs at the server, on a connection of its own; the agent's next message waits until that is done.
    pub(super) fn cancel_upstream(&mut self) {
        let Some((pid, key)) = self.server_key.clone() else {
            return;
        };
        if self.cancelling.is_some() {
            return;
        }
        let (done, waiting) = tokio::sync::oneshot::channel();
        self.cancelling = Some(waiting);
        let (target, ctx) = (self.planner.target.clone(), self.ctx.clone());
        self.ctx.tasks.spawn("cancel", async move {
            if let Err(error) = super::send_cancel(&target, &ctx, pid, &key).await {
                tracing::warn!(target = %target.id, %error, "a cancel request could not be sent");
            }
            let _ = done.send(());
        });
    }

    /// `G`, `H`, `d` and `c` of the server.
    pub(super) fn on_copy_reply(
        &mut self,
        progress: &mut Progress,
        plan: &Planned,
        index: usize,
        frame: &Frame,
        op: OpId,
    ) -> Result<(), End> {
        let told = progress.stopped.is_some();
        match (frame.tag(), &progress.copy) {
            (b'G', None) => {
                self.copy_begins(progress, plan, index, frame)?;
                if !told {
                    self.tell(frame.bytes());
                }
            }
            (b'H', None) => {
                match self.copy_masker(plan, index, frame) {
                    Ok(masker) => progress.copy = Some(Copying::Out(masker.map(Mutex::new))),
                    Err(stopped) => {
                        progress.copy = Some(Copying::Out(None));
                        self.stop(progress, &stopped);
                    }
                }
                if progress.stopped.is_none() {
                    self.tell(frame.bytes());
                }
            }
            (b'd', Some(Copying::Out(_))) => self.on_copy_data(progress, frame, op),
            (b'c', Some(Copying::Out(_))) => {
                self.finish_copy(progress, op);
                if progress.stopped.is_none() {
                    self.tell(frame.bytes());
                }
            }
            _ => return Err(End::Server("COPY out of place".to_owned())),
        }
        Ok(())
    }

    fn on_copy_data(&mut self, progress: &mut Progress, frame: &Frame, op: OpId) {
        if progress.stopped.is_some() {
            return;
        }
        let start = self.out.len();
        let rows = match &progress.copy {
            Some(Copying::Out(Some(masker))) => {
                let mut masker = masker.lock().unwrap_or_else(PoisonError::into_inner);
                masker.push(frame.payload(), &mut self.out)
            }
            _ => {
                self.out.extend_from_slice(frame.bytes());
                Ok(1)
            }
        };
        match rows {
            Err(error) => {
                self.out.truncate(start);
                self.stop(progress, &Stopped::Mismatch(error.to_string()));
            }
            Ok(rows) => {
                let total = progress.rows.saturating_add(rows);
                if let Some(limit) = progress.row_limit.filter(|limit| total > *limit) {
                    self.out.truncate(start);
                    return self.stop(progress, &Stopped::Rows(limit));
                }
                self.count(progress, start, rows, op);
            }
        }
    }

    fn finish_copy(&mut self, progress: &mut Progress, op: OpId) {
        let start = self.out.len();
        let finished = match &progress.copy {
            Some(Copying::Out(Some(masker))) if progress.stopped.is_none() => masker
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .finish(&mut self.out),
            _ => return,
        };
        match finished {
            Ok(()) => self.count(progress, start, 0, op),
            Err(error) => {
                self.out.truncate(start);
                self.stop(progress, &Stopped::Mismatch(error.to_string()));
            }
        }
    }

    fn copy_masker(&mut self, plan: &Planned, index: usize, frame: &Frame) -> Result<Option<CopyMasker>, Stopped> {
        if plan.passes() {
            return Ok(None);
        }
        let mismatch = |text: &str| Stopped::Mismatch(text.to_owned());
        let copy = copy_of(plan, index).ok_or_else(|| mismatch("COPY data came of a statement that is none"))?;
        let response = copy_response::decode(frame).map_err(|error| Stopped::Mismatch(error.to_string()))?;
        let result = plan
            .plans
            .get(index)
            .ok_or_else(|| mismatch("COPY data came without a plan"))?;
        if response.binary != (&*copy.format == "binary") {
            return Err(mismatch("COPY data came in another format than planned"));
        }
        let planned = result.columns();
        if planned.is_some_and(|planned| planned.len() != response.columns) {
            return Err(mismatch("COPY data has another number of columns than planned"));
        }
        let columns = self.masks.copy_columns(result, response.columns, &plan.catalog);
        let columns = columns.map_err(|error| Stopped::Mismatch(error.to_string()))?;
        let null = |default: &str| copy.null.as_deref().unwrap_or(default).as_bytes().to_vec();
        let format = match &*copy.format {
            "binary" => CopyFormat::Binary,
            "csv" => {
                let quote = copy.quote.unwrap_or(b'"');
                let (delimiter, escape) = (copy.delimiter.unwrap_or(b','), copy.escape.unwrap_or(quote));
                CopyFormat::Csv {
                    delimiter,
                    quote,
                    escape,
                    null: null(""),
                }
            }
            _ => CopyFormat::Text {
                delimiter: copy.delimiter.unwrap_or(b'\t'),
                null: null("\\N"),
            },
        };
        Ok(Some(CopyMasker::new(format, copy.header, columns)))
    }
}
