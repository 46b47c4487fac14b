//! Messages of the agent: each is judged or belongs to something judged, and leaves in the order it came.
//!
//! It refuses function calls, unknown messages and messages out of state. Structure is decided at Parse, the whole
//! operation at Bind or Query; Execute looks whether policy or catalog changed since.

use std::sync::atomic::Ordering;
use std::sync::Arc;

use bytes::Bytes;
use sidegate_policies::engine::Effect;
use sidegate_policies::reason::{Reason, Retry};
use tokio::io::{AsyncRead, AsyncWrite};

use super::codec::bind::{self, Bind};
use super::codec::error::Fields;
use super::codec::named::{self, What};
use super::codec::{parse, write, Frame, Scan};
use super::conversation::{Portal, Prepared};
use super::facts::Planned;
use super::hold::Parked;
use super::queue::{Expect, Progress, Run};
use super::refuse::Kind;
use super::relay::{End, Relay};
use super::work::Work;
use crate::admitted::Admitted;
use crate::gate::Admission;
use crate::refusal::{Refusal, SESSION};

/// Statement names the agent may not use: ours begin so.
pub const RESERVED: &[u8] = b"sidegate.";
/// Statements that do not parse before the session is closed.
const MAX_UNPARSABLE: u32 = 100;

/// What became of the agent's next message.
pub enum Step {
    /// It is handled.
    Done,
    /// There is no whole one.
    More,
    /// It has to wait for something: [`Relay::on_slow`].
    Slow(Frame),
}

/// What follows once an operation is admitted.
pub enum Next {
    /// A simple query.
    Simple {
        /// Its plan.
        plan: Arc<Planned>,
    },
    /// A Bind.
    Bind {
        /// The statement.
        prepared: Arc<Prepared>,
        /// Its plan.
        plan: Arc<Planned>,
        /// Values and formats.
        bind: Arc<Bind>,
    },
    /// An Execute of a portal that was judged again.
    Execute {
        /// The portal.
        portal: Arc<Portal>,
    },
}

impl Next {
    /// How a refusal of it is told.
    pub fn kind(&self) -> Kind {
        match self {
            Next::Simple { .. } => Kind::Simple,
            Next::Bind { .. } | Next::Execute { .. } => Kind::Extended,
        }
    }
}

impl<A, S> Relay<A, S>
where
    A: AsyncRead + AsyncWrite + Unpin + Send,
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    /// Handles the next message, if a whole one waits.
    pub(super) fn agent_step(&mut self) -> Result<Step, End> {
        match self.agent_in.next()? {
            Scan::More => Ok(Step::More),
            Scan::TooLong { tag, length } => {
                self.too_long(tag, length)?;
                Ok(Step::Done)
            }
            Scan::Frame(frame) => {
                self.generation = self.generation.saturating_add(1);
                self.on_agent(frame)
            }
        }
    }

    /// Handles a message that has to wait: for a catalog, or for a thread to analyse its text.
    pub(super) async fn on_slow(&mut self, frame: Frame) -> Result<(), End> {
        match frame.tag() {
            b'Q' => self.query_anew(frame).await?,
            b'P' => self.parse_anew(frame).await?,
            b'B' => self.bind_again(frame).await?,
            _ => self.execute_again(frame).await?,
        }
        if self.unparsable >= MAX_UNPARSABLE {
            let refusal = Refusal::new(Reason::NotUnderstood, SESSION).because("100 statements did not parse");
            return Err(End::Refused(Box::new(self.gate.refused(refusal, None))));
        }
        Ok(())
    }

    fn too_long(&mut self, tag: u8, length: usize) -> Result<(), End> {
        let kind = match tag {
            b'Q' | b'F' => Kind::Simple,
            b'P' | b'B' => Kind::Extended,
            _ => return Err(End::Violation(format!("a message of {length} bytes"))),
        };
        if self.skip && kind == Kind::Extended {
            return Ok(());
        }
        let text = format!("{length} bytes are more than this message may have");
        let refusal = self
            .gate
            .refused(Refusal::new(Reason::TooLarge, "statement").because(text), None);
        self.refuse(refusal, kind)
    }

    fn on_agent(&mut self, frame: Frame) -> Result<Step, End> {
        let done = match frame.tag() {
            b'X' => Err(End::Goodbye),
            b'S' => self.on_sync(frame),
            // Void until Sync, as at the server; a Query in between too.
            b'Q' | b'P' | b'B' | b'D' | b'C' | b'E' | b'H' | b'F' if self.skip => Ok(()),
            b'd' | b'c' | b'f' => self.on_copy(frame),
            _ if self.copy_in => match frame.tag() {
                // The server ignores Flush while it reads COPY data.
                b'H' => Ok(()),
                tag => Err(End::Violation(format!("message {:?} during COPY", char::from(tag)))),
            },
            b'Q' => return self.on_query(frame),
            b'P' => return self.on_parse(frame),
            b'B' => return self.on_bind(frame),
            b'E' => return self.on_execute(frame),
            b'D' => self.on_describe(frame),
            b'C' => self.on_close(frame),
            b'H' => self.on_flush(frame),
            b'F' => {
                let refusal = Refusal::new(Reason::Denied, "function call")
                    .because("function calls by number are not supported")
                    .hint("Call the function in a SELECT");
                let refusal = self.gate.refused(refusal, None);
                self.refuse(refusal, Kind::Simple)
            }
            tag => Err(End::Violation(format!("unknown message {:?}", char::from(tag)))),
        };
        done.map(|()| Step::Done)
    }

    fn on_query(&mut self, frame: Frame) -> Result<Step, End> {
        self.release_withheld()?;
        let text = parse::decode_query(&frame)?;
        match self.kept(text) {
            Some(plan) => self.query(&frame, plan).map(|()| Step::Done),
            None => Ok(Step::Slow(frame)),
        }
    }

    async fn query_anew(&mut self, frame: Frame) -> Result<(), End> {
        let text = parse::decode_query(&frame)?;
        match self.judge_sent(&frame, text).await {
            Ok((rewritten, plan)) => self.query(&rewritten.unwrap_or(frame), plan),
            Err(refusal) => self.refuse(refusal, Kind::Simple),
        }
    }

    fn query(&mut self, frame: &Frame, plan: Arc<Planned>) -> Result<(), End> {
        let work = Work::query(frame, &plan, &self.conversation);
        let admission = self.admit(work, &plan);
        self.settle(admission, Next::Simple { plan })
    }

    /// Asks the gate, with the kept decision where there is one.
    fn admit(&mut self, work: Work, plan: &Arc<Planned>) -> Admission<Work> {
        let admission = match plan.decided.get() {
            Some(decision) => self.gate.admit_decided(work, decision, plan.scope.generation),
            None => self.gate.admit(work),
        };
        if let (Admission::Go(admitted), None) = (&admission, plan.decided.get()) {
            if let Some(decision) = admitted.decision().filter(|decision| decision.cacheable) {
                if self.gate.generation() == plan.scope.generation {
                    let _ = plan.decided.set(decision.clone());
                }
            }
        }
        admission
    }

    pub(super) fn settle(&mut self, admission: Admission<Work>, next: Next) -> Result<(), End> {
        match admission {
            Admission::Go(admitted) => self.go(admitted, next),
            Admission::No(refusal) => self.refuse(refusal, next.kind()),
            Admission::Hold(held) => {
                // The hold starts when everything before it has been answered.
                self.ask_for_answers()?;
                self.parked = Some(Parked { held, next });
                Ok(())
            }
        }
    }

    /// Sends what was admitted.
    pub(super) fn go(&mut self, admitted: Admitted<Work>, next: Next) -> Result<(), End> {
        match next {
            Next::Simple { plan } => {
                let progress = limits(&admitted);
                let run = Run {
                    op: admitted.op(),
                    statement: 0,
                    described: false,
                    masker: None,
                    progress,
                    plan,
                };
                self.barrier |= run.plan.is_barrier() || run.progress.is_capped();
                self.upstream.queue(admitted);
                self.queue.push(Expect::Simple(Box::new(run)));
                Ok(())
            }
            Next::Bind { prepared, plan, bind } => self.go_bind(admitted, prepared, plan, bind),
            Next::Execute { portal } => {
                portal.generation.store(self.gate.generation(), Ordering::Relaxed);
                self.upstream.queue(admitted);
                self.sent_execute(portal)
            }
        }
    }

    fn go_bind(
        &mut self,
        admitted: Admitted<Work>,
        prepared: Arc<Prepared>,
        plan: Arc<Planned>,
        bind: Arc<Bind>,
    ) -> Result<(), End> {
        self.release_withheld()?;
        self.send_parse(&prepared, false)?;
        let op = admitted.op();
        let _ = prepared.first.set(op);
        let mut portal = Portal::new(prepared, plan, bind, op, self.gate.generation());
        let limits = limits(&admitted);
        (portal.row_limit, portal.byte_limit) = (limits.row_limit, limits.byte_limit);
        let portal = Arc::new(portal);
        self.upstream.queue(admitted);
        self.unsynced = true;
        if let Some(old) = self.conversation.put_portal(portal.clone()) {
            self.finish_portal(&old, None);
        }
        self.queue.push(Expect::Bind { portal });
        Ok(())
    }

    fn on_parse(&mut self, frame: Frame) -> Result<Step, End> {
        let parse::Parse { name, text, types } = parse::decode(&frame)?;
        if name.starts_with(RESERVED) {
            let text = "statement names beginning with \"sidegate.\" are reserved";
            return self.native("42602", text).map(|()| Step::Done);
        }
        let name = Bytes::copy_from_slice(name);
        match self.kept(text) {
            Some(plan) => self.parse(name, frame, types, plan).map(|()| Step::Done),
            None => Ok(Step::Slow(frame)),
        }
    }

    async fn parse_anew(&mut self, frame: Frame) -> Result<(), End> {
        let parse::Parse { name, text, types } = parse::decode(&frame)?;
        let name = Bytes::copy_from_slice(name);
        match self.judge_sent(&frame, text).await {
            Ok((rewritten, plan)) => self.parse(name, rewritten.unwrap_or(frame), types, plan),
            Err(refusal) => {
                if name.is_empty() {
                    // A Parse that fails leaves no unnamed statement behind.
                    self.conversation.remove_statement(&name);
                }
                self.refuse(refusal, Kind::Extended)
            }
        }
    }

    fn parse(&mut self, name: Bytes, frame: Frame, types: Vec<u32>, plan: Arc<Planned>) -> Result<(), End> {
        if !self.conversation.statement_fits(frame.bytes().len()) {
            let refusal = Refusal::new(Reason::TooLarge, "statement")
                .because("too many prepared statements")
                .hint("Deallocate some of them, or use the unnamed one");
            let refusal = self.gate.refused(refusal, Some(plan.shown().0));
            return self.refuse(refusal, Kind::Extended);
        }
        let waits = plan.structure.effect == Effect::Ask || (plan.structure.open && !plan.structure.cacheable);
        let mut prepared = Prepared::new(name, frame.detached(), types, plan);
        if let Some(before) = self.conversation.statement(&prepared.name) {
            prepared.follow(before);
        }
        let prepared = Arc::new(prepared);
        if waits {
            self.conversation.put_statement(prepared.clone());
            self.withheld.push(prepared);
            return Ok(());
        }
        self.send_parse(&prepared, true)
    }

    /// Sends a Parse that has not been sent, and our own Describe behind it where rows may be masked.
    fn send_parse(&mut self, prepared: &Arc<Prepared>, visible: bool) -> Result<(), End> {
        if prepared.is_sent() {
            return Ok(());
        }
        self.forward(prepared.frame.clone())?;
        prepared.set_sent(true);
        self.unsynced = true;
        let before = self.conversation.put_statement(prepared.clone());
        let before = before.filter(|before| !Arc::ptr_eq(before, prepared));
        self.queue.push(Expect::Parse {
            prepared: prepared.clone(),
            before,
            visible,
        });
        if !prepared.plan().passes() {
            self.forward(write::describe_statement(&prepared.name))?;
            self.queue.push(Expect::DescribeStatement {
                prepared: prepared.clone(),
                visible: false,
            });
        }
        Ok(())
    }

    /// Sends every Parse that waited for its Bind.
    pub(super) fn release_withheld(&mut self) -> Result<(), End> {
        for prepared in std::mem::take(&mut self.withheld) {
            self.send_parse(&prepared, true)?;
        }
        Ok(())
    }

    fn on_bind(&mut self, frame: Frame) -> Result<Step, End> {
        let bind = bind::decode(&frame)?;
        let Some(prepared) = self.conversation.statement(bind.statement()).cloned() else {
            let name = String::from_utf8_lossy(bind.statement()).into_owned();
            let text = format!("prepared statement \"{name}\" does not exist");
            return self.native("26000", &text).map(|()| Step::Done);
        };
        if !self.conversation.portal_fits() {
            let refusal = Refusal::new(Reason::TooLarge, "statement")
                .because("too many open portals")
                .hint("Close some of them, or end the transaction");
            let refusal = self.gate.refused(refusal, None);
            return self.refuse(refusal, Kind::Extended).map(|()| Step::Done);
        }
        let plan = prepared.plan();
        if !self.is_current(&plan) {
            return Ok(Step::Slow(frame));
        }
        self.bind(&frame, bind, prepared, plan).map(|()| Step::Done)
    }

    async fn bind_again(&mut self, frame: Frame) -> Result<(), End> {
        let bind = bind::decode(&frame)?;
        let Some(prepared) = self.conversation.statement(bind.statement()).cloned() else {
            return Ok(());
        };
        match self.rejudge(&prepared).await {
            Ok(plan) => self.bind(&frame, bind, prepared, plan),
            Err(refusal) => self.refuse(refusal, Kind::Extended),
        }
    }

    fn bind(&mut self, frame: &Frame, bind: Bind, prepared: Arc<Prepared>, plan: Arc<Planned>) -> Result<(), End> {
        let bind = Arc::new(bind);
        let typed = plan.decided.get().is_none();
        let values = (prepared.clone(), bind.clone());
        let work = Work::bound(frame.bytes().clone(), &plan, values, typed, &self.conversation);
        let work = work.repeating(prepared.first.get().copied());
        let admission = self.admit(work, &plan);
        self.settle(admission, Next::Bind { prepared, plan, bind })
    }

    /// Policy, catalog or transaction state changed: the statement's text is judged again.
    async fn rejudge(&mut self, prepared: &Arc<Prepared>) -> Result<Arc<Planned>, Refusal> {
        let frame = prepared.frame.clone();
        let text = parse::decode(&frame).map(|parsed| parsed.text).unwrap_or_default();
        let plan = self.judge(&frame, text).await?;
        prepared.replan(plan.clone());
        Ok(plan)
    }

    fn on_execute(&mut self, frame: Frame) -> Result<Step, End> {
        let (name, _rows) = named::decode_execute(&frame)?;
        let Some(portal) = self.conversation.portal(name).cloned() else {
            let name = String::from_utf8_lossy(name).into_owned();
            let text = format!("portal \"{name}\" does not exist");
            return self.native("34000", &text).map(|()| Step::Done);
        };
        self.release_withheld()?;
        if portal.generation.load(Ordering::Relaxed) != self.gate.generation() {
            return Ok(Step::Slow(frame));
        }
        self.forward(frame)?;
        self.sent_execute(portal).map(|()| Step::Done)
    }

    /// The policy changed after Bind: the operation is judged under the new one before it runs on.
    async fn execute_again(&mut self, frame: Frame) -> Result<(), End> {
        let (name, _rows) = named::decode_execute(&frame)?;
        let Some(portal) = self.conversation.portal(name).cloned() else {
            return Ok(());
        };
        let plan = match self.rejudge(&portal.prepared).await {
            Ok(plan) => plan,
            Err(refusal) => return self.refuse(refusal, Kind::Extended),
        };
        if plan.masks != portal.plan.masks {
            let refusal = Refusal::new(Reason::PlanMismatch, "statement")
                .because("the masks changed after it was bound")
                .again(Retry::Same);
            let refusal = self.gate.refused(refusal, Some(plan.shown().0));
            return self.refuse(refusal, Kind::Extended);
        }
        let values = (portal.prepared.clone(), portal.bind.clone());
        let work = Work::bound(frame.bytes().clone(), &plan, values, true, &self.conversation);
        let admission = self.admit(work.repeating(Some(portal.op)), &plan);
        self.settle(admission, Next::Execute { portal })
    }

    fn sent_execute(&mut self, portal: Arc<Portal>) -> Result<(), End> {
        self.unsynced = true;
        let progress = Progress {
            row_limit: portal.row_limit,
            byte_limit: portal.byte_limit,
            ..Progress::default()
        };
        self.capped |= progress.is_capped();
        let barrier = portal.plan.is_barrier();
        self.queue
            .push(Expect::Execute(Box::new(super::queue::Execution { portal, progress })));
        if barrier {
            self.barrier = true;
            self.ask_for_answers()?;
        }
        Ok(())
    }

    fn on_describe(&mut self, frame: Frame) -> Result<(), End> {
        let (what, name) = named::decode(&frame)?;
        match what {
            What::Statement => {
                let Some(prepared) = self.conversation.statement(name).cloned() else {
                    let name = String::from_utf8_lossy(name).into_owned();
                    return self.native("26000", &format!("prepared statement \"{name}\" does not exist"));
                };
                self.release_withheld()?;
                self.send_parse(&prepared, false)?;
                self.forward(frame)?;
                self.queue.push(Expect::DescribeStatement {
                    prepared,
                    visible: true,
                });
            }
            What::Portal => {
                // A cursor of DECLARE is a portal to the server; drivers describe it by its name.
                let expect = match self.conversation.portal(name).cloned() {
                    Some(portal) => Expect::DescribePortal { portal },
                    None if self.conversation.has_cursor(name) => Expect::DescribeCursor,
                    None => {
                        let name = String::from_utf8_lossy(name).into_owned();
                        return self.native("34000", &format!("portal \"{name}\" does not exist"));
                    }
                };
                self.release_withheld()?;
                self.forward(frame)?;
                self.queue.push(expect);
            }
        }
        self.unsynced = true;
        Ok(())
    }

    fn on_close(&mut self, frame: Frame) -> Result<(), End> {
        let (what, name) = named::decode(&frame)?;
        self.release_withheld()?;
        match what {
            What::Statement => {
                let unsent = self
                    .conversation
                    .statement(name)
                    .is_some_and(|prepared| !prepared.is_sent());
                self.conversation.remove_statement(name);
                if unsent {
                    // The server never heard of it.
                    self.queue.push(Expect::Local(write::close_complete()));
                    self.locals();
                    return Ok(());
                }
            }
            What::Portal => {
                if let Some(old) = self.conversation.remove_portal(name) {
                    self.finish_portal(&old, None);
                }
            }
        }
        self.forward(frame)?;
        self.unsynced = true;
        self.queue.push(Expect::Close);
        Ok(())
    }

    fn on_flush(&mut self, frame: Frame) -> Result<(), End> {
        self.release_withheld()?;
        if self.unsynced {
            self.forward(frame)?;
        }
        Ok(())
    }

    fn on_sync(&mut self, frame: Frame) -> Result<(), End> {
        if self.copy_in {
            // Ignored by a server that reads COPY data; the agent sends another behind it.
            return Ok(());
        }
        self.skip = false;
        if std::mem::take(&mut self.local_sync) {
            let status = self.conversation.status;
            self.tell(write::ready(status).bytes());
            return Ok(());
        }
        self.release_withheld()?;
        self.forward(frame)?;
        self.unsynced = false;
        self.barrier |= std::mem::take(&mut self.capped);
        self.queue.push(Expect::Sync);
        Ok(())
    }

    /// Has the server answer what it may keep back until a Sync.
    fn ask_for_answers(&mut self) -> Result<(), End> {
        if self.unsynced {
            self.forward(write::flush())?;
        }
        Ok(())
    }

    /// An error in the server's own words, for a name that does not exist.
    fn native(&mut self, code: &str, text: &str) -> Result<(), End> {
        self.fail(Fields::new("ERROR", code, text), Kind::Extended, "unknown")
    }
}

/// The caps of an admitted operation.
fn limits(admitted: &Admitted<Work>) -> Progress {
    let limits = admitted.decision().map(|decision| decision.limits).unwrap_or_default();
    let positive = |value: i64| u64::try_from(value).unwrap_or(0);
    Progress {
        row_limit: limits.rows.map(positive),
        byte_limit: limits.bytes.map(|size| size.0),
        ..Progress::default()
    }
}
