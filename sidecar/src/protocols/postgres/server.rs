//! Messages of the server: each must be what the queue expects; rows pass their mask plan, errors are scrubbed.
//!
//! It refuses a reply that fits nothing by ending the session. An error of an extended message makes everything up to
//! its Sync void, here as at the server.

use std::sync::Arc;

use bytes::Bytes;
use sidegate_policies::sql::postgres::StatementKind;
use tokio::io::{AsyncRead, AsyncWrite};

use super::codec::error::Fields;
use super::codec::{row_description, Frame, Piece};
use super::conversation::{Portal, Prepared};
use super::mask::scrub;
use super::queue::{Copying, Execution, Expect, Progress, Run};
use super::relay::{End, Relay};
use super::rows::Stopped;
use crate::gate::Outcome;

impl<A, S> Relay<A, S>
where
    A: AsyncRead + AsyncWrite + Unpin + Send,
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    /// Handles what the server said, as long as the agent takes it.
    pub(super) fn pump_server(&mut self) -> Result<(), End> {
        const HIGH: usize = 256 * 1024;
        while self.out.len() <= HIGH && !self.server_in.buffer().is_empty() {
            let bulk = self.passes_rows()?;
            match self
                .server_in
                .next(bulk)
                .map_err(|error| End::Server(error.to_string()))?
            {
                Piece::More => return Ok(()),
                Piece::Run { tag, frames, bytes } => self.on_run(tag, frames, &bytes)?,
                Piece::Frame(frame) => self.on_server(frame)?,
            }
        }
        Ok(())
    }

    /// Whether rows that come now pass without a look: no mask, no cap.
    fn passes_rows(&mut self) -> Result<bool, End> {
        if self.server_in.inside_frame() {
            return Ok(true);
        }
        if self.muted {
            return Ok(false);
        }
        let free = |progress: &Progress| {
            let unmasked = !matches!(progress.copy, Some(Copying::Out(Some(_))));
            unmasked && progress.stopped.is_none() && progress.row_limit.is_none() && progress.byte_limit.is_none()
        };
        Ok(match self.queue.front() {
            Some(Expect::Simple(run)) => {
                let described = run.described || run.plan.passes();
                described && run.masker.is_none() && free(&run.progress)
            }
            Some(Expect::Execute(execution)) => {
                let masked = match execution.portal.masker.get() {
                    Some(masker) => masker.is_some(),
                    None => !execution.portal.plan.passes(),
                };
                !masked && free(&execution.progress)
            }
            _ => false,
        })
    }

    fn on_run(&mut self, tag: u8, frames: u64, bytes: &[u8]) -> Result<(), End> {
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let Some((op, progress)) = self.queue.at_work() else {
            return Err(End::Server("rows out of place".to_owned()));
        };
        if (tag == b'd') != matches!(progress.copy, Some(Copying::Out(_))) {
            return Err(End::Server("rows out of place".to_owned()));
        }
        let first = progress.rows == 0;
        progress.rows = progress.rows.saturating_add(frames);
        progress.bytes = progress.bytes.saturating_add(size);
        self.record_columns(first);
        self.tell(bytes);
        self.gate.recorder().body(op.get(), bytes);
        Ok(())
    }

    /// Before the first row of a portal the record says what its columns are.
    fn record_columns(&mut self, first: bool) {
        let wanted = first && !self.muted && self.gate.recorder().keeps_content();
        let Some(Expect::Execute(execution)) = self.queue.front().filter(|_| wanted) else {
            return;
        };
        let portal = execution.portal.clone();
        self.record_header(&portal);
    }

    fn record_header(&mut self, portal: &Portal) {
        if portal.rows.load(std::sync::atomic::Ordering::Relaxed) == 0 {
            if let Some(header) = portal.header() {
                self.gate.recorder().body(portal.op.get(), &header);
            }
        }
    }

    fn on_server(&mut self, frame: Frame) -> Result<(), End> {
        let start = self.out.len();
        match frame.tag() {
            b'N' => return self.on_notice(&frame),
            b'A' => return self.on_notification(&frame),
            b'S' => return self.on_parameter(&frame),
            b'E' => self.on_error(&frame)?,
            _ => {
                let expected = self.queue.pop();
                let rest = self.on_reply(frame, expected)?;
                if let Some(rest) = rest {
                    self.queue.unpop(rest);
                }
                self.locals();
            }
        }
        if self.muted {
            self.out.truncate(start);
        }
        Ok(())
    }

    /// The agent has heard an error of a message that the server completed: what stands behind it up to its Sync runs,
    /// and is recorded, but the agent hears nothing of it.
    fn mute(&mut self) {
        self.muted = true;
        if !self.queue.has_sync() {
            self.skip = true;
        }
        for prepared in std::mem::take(&mut self.withheld) {
            self.conversation.undo_statement(&prepared, None);
        }
    }

    /// A reply to the expectation at the front; what is returned is not complete yet.
    fn on_reply(&mut self, frame: Frame, expected: Option<Expect>) -> Result<Option<Expect>, End> {
        let tag = frame.tag();
        match (expected, tag) {
            (Some(Expect::Simple(run)), _) => Ok(self.on_simple(run, frame)?.map(Expect::Simple)),
            (Some(Expect::Execute(execution)), _) => Ok(self.on_executed(execution, frame)?.map(Expect::Execute)),
            (Some(Expect::Parse { visible, .. }), b'1') => {
                if visible {
                    self.tell(frame.bytes());
                }
                Ok(None)
            }
            (Some(Expect::Bind { .. }), b'2') | (Some(Expect::Close), b'3') => {
                self.tell(frame.bytes());
                Ok(None)
            }
            (Some(Expect::DescribeStatement { prepared, visible }), b't' | b'T' | b'n') => {
                self.on_described(&prepared, visible, &frame)?;
                Ok((tag == b't').then_some(Expect::DescribeStatement { prepared, visible }))
            }
            (Some(Expect::DescribePortal { portal }), b'T' | b'n') => {
                if tag == b'T' && self.gate.recorder().keeps_content() {
                    let _ = portal.description.set(frame.bytes().clone());
                }
                self.tell(frame.bytes());
                Ok(None)
            }
            (Some(Expect::DescribeCursor), b'T' | b'n') => {
                self.tell(frame.bytes());
                Ok(None)
            }
            (Some(Expect::Sync), b'Z') => {
                self.on_ready(&frame)?;
                Ok(None)
            }
            (Some(Expect::SearchPath), _) => self.on_search_path(&frame),
            (
                Some(Expect::Poison {
                    simple: true,
                    told: true,
                    ..
                }),
                b'Z',
            ) => {
                self.on_ready(&frame)?;
                Ok(None)
            }
            (_, tag) => Err(End::Server(format!(
                "message {:?} fits nothing that was asked",
                char::from(tag)
            ))),
        }
    }

    fn on_described(&mut self, prepared: &Arc<Prepared>, visible: bool, frame: &Frame) -> Result<(), End> {
        let broken = |error: super::codec::CodecError| End::Server(error.to_string());
        match frame.tag() {
            b't' => {
                let _ = prepared
                    .parameters
                    .set(row_description::decode_parameters(frame).map_err(broken)?);
            }
            b'T' => {
                let _ = prepared.fields.set(row_description::decode(frame).map_err(broken)?);
                let _ = prepared.description.set(Bytes::copy_from_slice(frame.bytes()));
            }
            _ => {
                let _ = prepared.fields.set(Vec::new());
            }
        }
        if visible {
            self.tell(frame.bytes());
        }
        Ok(())
    }

    fn on_simple(&mut self, mut run: Box<Run>, frame: Frame) -> Result<Option<Box<Run>>, End> {
        let told = run.progress.stopped.is_some();
        match frame.tag() {
            b'Z' => {
                self.end_run(&run);
                if self.muted {
                    self.skip = false;
                }
                self.on_ready(&frame)?;
                return Ok(None);
            }
            b'T' => {
                match self.simple_masker(&run, &frame) {
                    Ok(masker) => (run.described, run.masker) = (true, masker),
                    Err(stopped) => self.stop(&mut run.progress, &stopped),
                }
                if run.progress.stopped.is_none() {
                    self.tell(frame.bytes());
                    if !self.muted {
                        self.gate.recorder().body(run.op.get(), frame.bytes());
                    }
                }
            }
            b'D' if !run.described && !run.plan.passes() => {
                let stopped = Stopped::Mismatch("rows came before their description".to_owned());
                self.stop(&mut run.progress, &stopped);
            }
            b'D' => self.on_row(&mut run.progress, run.masker.as_mut(), &frame, run.op, 0),
            b'C' => {
                run.progress.tag = tag_of(&frame);
                if !told {
                    self.tell(frame.bytes());
                }
                self.statement_done(&run.plan, run.statement);
                run.statement = run.statement.saturating_add(1);
                (run.described, run.masker, run.progress.copy) = (false, None, None);
            }
            b'I' if !told => self.tell(frame.bytes()),
            b'I' => {}
            b'G' | b'H' | b'd' | b'c' => {
                let plan = run.plan.clone();
                self.on_copy_reply(&mut run.progress, &plan, run.statement, &frame, run.op)?;
            }
            tag => {
                return Err(End::Server(format!(
                    "message {:?} in answer to a query",
                    char::from(tag)
                )))
            }
        }
        Ok(Some(run))
    }

    fn end_run(&mut self, run: &Run) {
        let (rows, bytes) = (run.progress.rows, run.progress.bytes);
        self.outcome(run.op, &run.progress, rows, bytes);
        if run.plan.defines() {
            self.planner.snapshot.mark_stale();
        }
        self.copy_in = false;
    }

    /// A statement completed: our maps follow the server's.
    fn statement_done(&mut self, plan: &Arc<super::facts::Planned>, index: usize) {
        match plan.analysis.statements.get(index) {
            Some(statement) => {
                self.conversation.completed(statement);
                self.follow_path(&statement.kind);
            }
            // What was not understood may have done anything.
            None if plan.analysis.problem.is_some() => (self.path_touched, self.path_dirty) = (true, true),
            None => {}
        }
        if self.conversation.status != b'I' {
            self.conversation.ran(&plan.text, plan.shown().0);
        }
    }

    fn follow_path(&mut self, kind: &StatementKind) {
        let touches = match kind {
            StatementKind::Set { name, .. } => &**name == "search_path",
            StatementKind::Reset(name) => name.as_deref().is_none_or(|name| name == "search_path"),
            StatementKind::Discard(_) => true,
            StatementKind::Transaction(_) => self.path_touched,
            _ => false,
        };
        // A server that reports it needs no question.
        if touches && self.planner.major < 18 {
            (self.path_touched, self.path_dirty) = (true, true);
        }
    }

    fn on_executed(&mut self, mut execution: Box<Execution>, frame: Frame) -> Result<Option<Box<Execution>>, End> {
        use std::sync::atomic::Ordering;
        let portal = execution.portal.clone();
        let told = execution.progress.stopped.is_some();
        match frame.tag() {
            b'D' => {
                let earlier = portal.rows.load(Ordering::Relaxed);
                let progress = &mut execution.progress;
                match self.portal_masker(&portal) {
                    Err(stopped) => self.stop(progress, &stopped),
                    Ok(()) => {
                        if progress.rows == 0 && progress.stopped.is_none() && !self.muted {
                            self.record_header(&portal);
                        }
                        let masker = portal.masker.get().and_then(Option::as_ref);
                        let mut masker =
                            masker.map(|masker| masker.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
                        self.on_row(progress, masker.as_deref_mut(), &frame, portal.op, earlier);
                    }
                }
                return Ok(Some(execution));
            }
            b'G' | b'H' | b'd' | b'c' => {
                self.on_copy_reply(&mut execution.progress, &portal.plan, 0, &frame, portal.op)?;
                return Ok(Some(execution));
            }
            b'C' | b'I' | b's' => {}
            tag => {
                return Err(End::Server(format!(
                    "message {:?} in answer to Execute",
                    char::from(tag)
                )))
            }
        }
        portal.rows.fetch_add(execution.progress.rows, Ordering::Relaxed);
        portal.bytes.fetch_add(execution.progress.bytes, Ordering::Relaxed);
        if !told {
            self.tell(frame.bytes());
        }
        if frame.tag() == b'C' {
            execution.progress.tag = tag_of(&frame);
            self.statement_done(&portal.plan, 0);
            if portal.plan.defines() {
                self.planner.snapshot.mark_stale();
            }
        }
        if frame.tag() != b's' || told {
            self.finish_portal(&portal, Some(&execution.progress));
        }
        self.copy_in = false;
        if told {
            self.mute();
        }
        Ok(None)
    }

    fn on_ready(&mut self, frame: &Frame) -> Result<(), End> {
        let status = match frame.payload() {
            [status @ (b'I' | b'T' | b'E')] => *status,
            _ => return Err(End::Server("a status that is none".to_owned())),
        };
        for portal in self.conversation.ready(status) {
            self.finish_portal(&portal, None);
        }
        self.muted = false;
        self.tell(frame.bytes());
        self.ask_search_path(status)
    }

    /// Before 18 the server does not report search_path: once a statement touched it, it is asked for whenever it may
    /// have changed, before the next message of the agent is judged.
    fn ask_search_path(&mut self, status: u8) -> Result<(), End> {
        if !self.path_dirty || status == b'E' {
            return Ok(());
        }
        self.path_dirty = false;
        self.forward(super::codec::write::query("SHOW search_path"))?;
        self.queue.push(Expect::SearchPath);
        self.barrier = true;
        Ok(())
    }

    fn on_search_path(&mut self, frame: &Frame) -> Result<Option<Expect>, End> {
        match frame.tag() {
            b'Z' => return Ok(None),
            b'D' => {
                let mut cells = Vec::new();
                let read = super::codec::data_row::cells(frame, 1, &mut cells);
                read.map_err(|error| End::Server(error.to_string()))?;
                let range = cells.into_iter().flatten().next().unwrap_or_default();
                let shown = frame.bytes().get(range).unwrap_or_default();
                self.conversation.set_search_path(&String::from_utf8_lossy(shown));
            }
            b'T' | b'C' => {}
            _ => return Err(End::Server("search_path could not be read".to_owned())),
        }
        Ok(Some(Expect::SearchPath))
    }

    fn on_error(&mut self, frame: &Frame) -> Result<(), End> {
        let mut fields = Fields::decode(frame).map_err(|error| End::Server(error.to_string()))?;
        let fatal = fields.fatal();
        self.clean(&mut fields);
        if fatal {
            self.muted = false;
            fields.write(&mut self.out, b'E');
            return Ok(());
        }
        match self.queue.pop() {
            Some(Expect::Simple(mut run)) => {
                let told = run.progress.stopped.is_some();
                if !told {
                    let message = run.plan.recorded_error(fields.text(b'M'));
                    run.progress.error = Some((fields.text(b'C'), message));
                }
                self.copy_in = false;
                self.queue.unpop(Expect::Simple(run));
                if !told {
                    fields.write(&mut self.out, b'E');
                }
            }
            Some(Expect::Poison {
                error,
                simple: true,
                told: false,
            }) => {
                error.write(&mut self.out, b'E');
                self.queue.unpop(Expect::Poison {
                    error,
                    simple: true,
                    told: true,
                });
            }
            Some(Expect::Sync) => {
                // An error at commit: the server tells it, then ReadyForQuery.
                fields.write(&mut self.out, b'E');
                self.queue.unpop(Expect::Sync);
            }
            Some(other) => self.on_extended_error(other, &fields),
            None => return Err(End::Server("an error nobody asked for".to_owned())),
        }
        Ok(())
    }

    fn on_extended_error(&mut self, failed: Expect, fields: &Fields) {
        let told = matches!(&failed, Expect::Execute(execution) if execution.progress.stopped.is_some());
        match &failed {
            Expect::Poison { error, .. } => error.write(&mut self.out, b'E'),
            _ if told => {}
            _ => fields.write(&mut self.out, b'E'),
        }
        self.copy_in = false;
        self.void(failed, fields);
    }

    /// Everything up to the next Sync is void, the failed message included; what it would have made is undone, the last
    /// first.
    fn void(&mut self, failed: Expect, fields: &Fields) {
        let mut voided = self.queue.void_to_sync();
        if !self.queue.has_sync() {
            self.skip = true;
        }
        for prepared in std::mem::take(&mut self.withheld) {
            self.conversation.undo_statement(&prepared, None);
        }
        while let Some(expect) = voided.pop() {
            self.undo(expect, ("25P02", "skipped after an earlier error"));
        }
        let message = match failed.plan() {
            Some(plan) => plan.recorded_error(fields.text(b'M')),
            None => fields.text(b'M'),
        };
        self.undo(failed, (&fields.text(b'C'), &message));
    }

    pub(super) fn undo(&mut self, expect: Expect, (code, text): (&str, &str)) {
        // What was stopped keeps the error that the agent saw.
        let failed = |progress: Progress| Progress {
            error: progress.error.or_else(|| Some((code.to_owned(), text.to_owned()))),
            ..progress
        };
        match expect {
            Expect::Parse { prepared, before, .. } => self.conversation.undo_statement(&prepared, before),
            Expect::Bind { portal } => {
                self.conversation.undo_portal(&portal);
                self.finish_portal(&portal, Some(&failed(Progress::default())));
            }
            Expect::Execute(execution) => {
                let portal = execution.portal.clone();
                self.finish_portal(&portal, Some(&failed(execution.progress)));
            }
            Expect::Simple(run) => {
                let outcome = Outcome {
                    error: Some(code),
                    message: Some(text),
                    ..Outcome::default()
                };
                self.gate.outcome(run.op, outcome);
            }
            Expect::SearchPath => self.path_dirty = true,
            _ => {}
        }
    }

    /// Removes from an error or notice what its statement may not tell.
    fn clean(&self, fields: &mut Fields) {
        let plan = self.queue.front().and_then(Expect::plan);
        let hide = match &plan {
            Some(plan) => plan.scrubs(),
            // Deferred triggers speak at Sync, and nobody tells of which statement.
            None => self.masks.has_columns(),
        };
        if hide {
            scrub::replace(fields);
        } else if let Some(detectors) = self.masks.detectors() {
            scrub::detect(fields, &*detectors);
        }
    }

    fn on_notice(&mut self, frame: &Frame) -> Result<(), End> {
        let mut fields = Fields::decode(frame).map_err(|error| End::Server(error.to_string()))?;
        self.clean(&mut fields);
        fields.write(&mut self.out, b'N');
        Ok(())
    }

    /// A notification: its payload is text like any other.
    fn on_notification(&mut self, frame: &Frame) -> Result<(), End> {
        let broken = |error: super::codec::CodecError| End::Server(error.to_string());
        let Some(detectors) = self.masks.detectors() else {
            self.tell(frame.bytes());
            return Ok(());
        };
        let mut reader = frame.reader();
        let pid = reader.i32().map_err(broken)?;
        let (channel, payload) = (reader.cstr().map_err(broken)?, reader.cstr().map_err(broken)?);
        let mut clean = Vec::new();
        let payload = if detectors.replace(payload, &mut clean) {
            clean.as_slice()
        } else {
            payload
        };
        super::codec::write::frame(&mut self.out, b'A', |out| {
            bytes::BufMut::put_i32(out, pid);
            super::codec::write::cstr(out, channel);
            super::codec::write::cstr(out, payload);
        });
        Ok(())
    }

    /// A setting changed. One that fixes what text means must not.
    fn on_parameter(&mut self, frame: &Frame) -> Result<(), End> {
        let broken = |error: super::codec::CodecError| End::Server(error.to_string());
        let mut reader = frame.reader();
        let (name, value) = (reader.text().map_err(broken)?, reader.text().map_err(broken)?);
        let held = match name {
            "client_encoding" => value == "UTF8",
            "standard_conforming_strings" => value == "on",
            _ => true,
        };
        if name == "search_path" {
            self.conversation.set_search_path(value);
        }
        if !held {
            return Err(End::Server(format!(
                "{name} changed, which would change what SQL text means"
            )));
        }
        match value.strip_prefix(&*self.planner.prefix) {
            // The agent sees the name it gave.
            Some(own) if name == "application_name" => {
                super::codec::write::parameter_status(&mut self.out, name, own.trim_start());
            }
            _ => self.tell(frame.bytes()),
        }
        Ok(())
    }
}

/// Text of a CommandComplete.
fn tag_of(frame: &Frame) -> Bytes {
    let tag = frame.reader().cstr().unwrap_or_default();
    frame.bytes().slice_ref(tag)
}

/// Whether this is a COPY, and how its data looks.
pub fn copy_of(plan: &super::facts::Planned, index: usize) -> Option<&sidegate_policies::sql::postgres::CopyStatement> {
    match &plan.analysis.statements.get(index)?.kind {
        StatementKind::Copy(copy) => Some(copy),
        _ => None,
    }
}
