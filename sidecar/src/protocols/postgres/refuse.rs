//! A refused statement is a failed statement: client and server must agree on the transaction afterwards.
//!
//! With nothing in flight we answer by ourselves, with the status the server told last. Otherwise the refusal is
//! poisoned in place: a text the grammar refuses stands in for the statement, the server fails the transaction exactly
//! as for a real error, and its error is replaced by ours. The status byte is never invented.

use std::sync::Arc;

use sidegate_policies::reason::Reason;
use tokio::io::{AsyncRead, AsyncWrite};

use super::agent::RESERVED;
use super::codec::error::Fields;
use super::codec::write;
use super::conversation::Portal;
use super::copy::CopiedIn;
use super::queue::{Expect, Progress};
use super::relay::{End, Relay};
use super::reply::{self, Severity};
use crate::gate::{OpId, Outcome};
use crate::refusal::{Refusal, SESSION};

/// How a refusal is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Error, then ReadyForQuery.
    Simple,
    /// Error, then nothing until Sync.
    Extended,
}

impl<A, S> Relay<A, S>
where
    A: AsyncRead + AsyncWrite + Unpin + Send,
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    /// Tells a refusal. A session that was cut ends instead.
    pub(super) fn refuse(&mut self, refusal: Refusal, kind: Kind) -> Result<(), End> {
        if let Some(reason) = self.session.cut_reason() {
            return Err(End::Cut(reason));
        }
        let id = refusal.id.to_string();
        self.fail(reply::error(&refusal, Severity::Statement), kind, &id)
    }

    /// Fails the agent's statement with this error, in place.
    pub(super) fn fail(&mut self, error: Fields, kind: Kind, id: &str) -> Result<(), End> {
        let status = self.conversation.status;
        // Nothing in flight, and a status that the failure does not change.
        let local = self.queue.is_empty() && !self.unsynced && status != b'T';
        // A Parse that waited for its Bind was right as far as it went.
        for prepared in std::mem::take(&mut self.withheld) {
            drop(prepared);
            self.queue.push(Expect::Local(write::parse_complete()));
        }
        if local {
            self.locals();
            error.write(&mut self.out, b'E');
            match kind {
                Kind::Simple => self.tell(write::ready(status).bytes()),
                Kind::Extended => (self.skip, self.local_sync) = (true, true),
            }
            return Ok(());
        }
        self.poison(error, kind == Kind::Simple, id)?;
        self.locals();
        Ok(())
    }

    /// The record takes nothing: what was admitted and not sent fails, and the server hears of it what it hears of any
    /// refused statement. Each batch up to a Sync, and each simple query, gets one error
    /// (`a_full_disk_fails_statements_and_not_the_session`).
    pub(super) fn fail_unsealed(&mut self) -> Result<(), End> {
        let ends = || End::Refused(Box::new(Refusal::new(Reason::CannotRecord, SESSION)));
        let taken = self.queue.unsealed();
        // Our own questions stand between statements; without their answer nothing can be judged.
        let question = |expect: &Expect| matches!(expect, Expect::SearchPath);
        if self.copy_in || taken.is_empty() || taken.iter().any(question) {
            return Err(ends());
        }
        let (mut failed, mut undone) = (false, Vec::new());
        for expect in taken {
            match expect {
                Expect::Local(bytes) if !failed => self.queue.push(Expect::Local(bytes)),
                Expect::Sync => {
                    self.forward(write::sync())?;
                    self.queue.push(Expect::Sync);
                    (self.skip, self.unsynced, failed) = (false, false, false);
                }
                Expect::Poison { error, simple, .. } if !failed => {
                    self.poison(error, simple, "before")?;
                    failed = !simple;
                }
                other => {
                    // Behind a failed extended message the server skips everything, queries too.
                    if !failed {
                        let simple = matches!(other, Expect::Simple(_));
                        self.unrecorded(simple)?;
                        failed = !simple;
                    }
                    undone.push(other);
                }
            }
        }
        while let Some(expect) = undone.pop() {
            self.undo(expect, ("58000", "it could not be recorded, and was not sent"));
        }
        self.locals();
        self.upstream.seal_passive().map_err(|_| ends())
    }

    fn unrecorded(&mut self, simple: bool) -> Result<(), End> {
        let refusal = Refusal::new(Reason::CannotRecord, "statement");
        let id = refusal.id.to_string();
        self.poison(reply::error(&refusal, Severity::Statement), simple, &id)
    }

    /// A text the grammar refuses, in the place of a statement: the server fails as it would for any wrong text.
    fn poison(&mut self, error: Fields, simple: bool, id: &str) -> Result<(), End> {
        let text = &format!("sidegate refused {id}");
        if simple {
            self.forward(write::query(text))?;
        } else {
            let name = String::from_utf8_lossy(RESERVED);
            self.forward(write::parse(&format!("{name}refused"), text))?;
            (self.skip, self.unsynced) = (true, true);
        }
        self.queue.push(Expect::Poison {
            error,
            simple,
            told: false,
        });
        Ok(())
    }

    /// Our own answers whose turn has come.
    pub(super) fn locals(&mut self) {
        while let Some(bytes) = self.queue.pop_local() {
            self.tell(&bytes);
        }
    }

    /// A portal's operation is over: its outcome is recorded once.
    pub(super) fn finish_portal(&mut self, portal: &Arc<Portal>, progress: Option<&Progress>) {
        use std::sync::atomic::Ordering;
        if !portal.finish() {
            return;
        }
        let (rows, bytes) = (
            portal.rows.load(Ordering::Relaxed),
            portal.bytes.load(Ordering::Relaxed),
        );
        match progress {
            Some(progress) => self.outcome(portal.op, progress, rows, bytes),
            None => self.gate.outcome(
                portal.op,
                Outcome {
                    rows: Some(rows),
                    bytes,
                    ..Outcome::default()
                },
            ),
        }
    }

    /// The session ends: what is unanswered has an unknown outcome.
    pub(super) fn abandon(&mut self) {
        let mut ops = Vec::new();
        for expect in self.queue.drain() {
            match expect {
                Expect::Simple(run) => ops.push((run.op, run.progress.copied)),
                Expect::Bind { portal } if portal.finish() => ops.push((portal.op, None)),
                Expect::Execute(execution) if execution.portal.finish() => {
                    ops.push((execution.portal.op, execution.progress.copied));
                }
                _ => {}
            }
        }
        for (op, copied) in ops {
            self.gate.outcome(
                op,
                Outcome {
                    unknown: true,
                    copied: copied.as_deref().map(CopiedIn::told),
                    ..Outcome::default()
                },
            );
        }
        for portal in self.conversation.ready(b'I') {
            self.finish_portal(&portal, None);
        }
        // A request that waits for people keeps its ticket.
        self.parked = None;
    }

    /// Records how an operation ended.
    pub(super) fn outcome(&mut self, op: OpId, progress: &Progress, rows: u64, bytes: u64) {
        let tag = String::from_utf8_lossy(&progress.tag);
        let tagged = tag.rsplit(' ').next().and_then(|count| count.parse().ok());
        let error = progress.error.as_ref();
        self.gate.outcome(
            op,
            Outcome {
                tag: Some(&*tag).filter(|tag| !tag.is_empty()),
                rows: tagged.or(Some(rows)),
                bytes,
                error: error.map(|(code, _)| code.as_str()),
                message: error.map(|(_, text)| text.as_str()),
                reason: None,
                unknown: progress.stopped.is_some() && !progress.undone,
                copied: progress.copied.as_deref().map(CopiedIn::told),
            },
        );
    }
}
