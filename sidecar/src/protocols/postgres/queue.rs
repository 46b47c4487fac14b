//! The queue of expectations: for every message sent upstream, the replies it must produce, in order.
//!
//! Replies pop it. Our own answers stand in it at their place and leave when they reach the front. After an error of
//! an extended message everything up to its Sync is void, as it is at the server. A reply that fits nothing ends the
//! session. Invariant: nothing reaches the agent out of the order in which it asked.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::codec::error::Fields;
use super::conversation::{Portal, Prepared};
use super::copy::CopiedIn;
use super::facts::Planned;
use super::mask::copy::CopyMasker;
use super::mask::rows::RowMasker;
use crate::gate::OpId;

/// Operations that may be unanswered before reading stops.
pub const MAX_UNANSWERED: usize = 1_024;

/// One simple query on its way.
pub struct Run {
    /// Its plan.
    pub plan: Arc<Planned>,
    /// Its operation.
    pub op: OpId,
    /// Which statement of the string answers now.
    pub statement: usize,
    /// The rows of this statement have been described; before that nothing is known of how they are masked.
    pub described: bool,
    /// How the rows of this statement are masked.
    pub masker: Option<RowMasker>,
    /// What it did so far.
    pub progress: Progress,
}

/// What an operation did so far, and what it may do.
#[derive(Default)]
pub struct Progress {
    /// Rows it may answer.
    pub row_limit: Option<u64>,
    /// Bytes it may answer.
    pub byte_limit: Option<u64>,
    /// Rows to the agent.
    pub rows: u64,
    /// Bytes to the agent.
    pub bytes: u64,
    /// The last command tag, as the server wrote it.
    pub tag: Bytes,
    /// The error, scrubbed: code and text.
    pub error: Option<(String, String)>,
    /// A limit was reached or the plan did not fit: this error takes the place of what the server still says.
    pub stopped: Option<Fields>,
    /// What was stopped left nothing behind.
    pub undone: bool,
    /// COPY is running in this direction.
    pub copy: Option<Copying>,
    /// What it copied in so far.
    pub copied: Option<Box<CopiedIn>>,
}

impl Progress {
    /// Whether its answer may be cut short.
    pub fn is_capped(&self) -> bool {
        self.row_limit.is_some() || self.byte_limit.is_some()
    }
}

/// COPY in progress.
pub enum Copying {
    /// From the agent.
    In,
    /// To the agent, masked or not.
    Out(Option<Mutex<CopyMasker>>),
}

/// One Execute on its way.
pub struct Execution {
    /// The portal.
    pub portal: Arc<Portal>,
    /// What this call did so far.
    pub progress: Progress,
}

/// What must come next from the server.
pub enum Expect {
    /// A simple query, up to its ReadyForQuery.
    Simple(Box<Run>),
    /// ParseComplete.
    Parse {
        /// The statement.
        prepared: Arc<Prepared>,
        /// What its name stood for before.
        before: Option<Arc<Prepared>>,
        /// Whether the agent sees the reply.
        visible: bool,
    },
    /// BindComplete.
    Bind {
        /// The portal.
        portal: Arc<Portal>,
    },
    /// ParameterDescription, then RowDescription or NoData.
    DescribeStatement {
        /// The statement.
        prepared: Arc<Prepared>,
        /// Whether the agent sees the replies.
        visible: bool,
    },
    /// RowDescription or NoData.
    DescribePortal {
        /// The portal.
        portal: Arc<Portal>,
    },
    /// RowDescription or NoData of a cursor that DECLARE made.
    DescribeCursor,
    /// The rows of a portal.
    Execute(Box<Execution>),
    /// CloseComplete.
    Close,
    /// ReadyForQuery of a Sync.
    Sync,
    /// A refusal's own syntax error, to be replaced; of an extended message, or of a query with its ReadyForQuery.
    Poison {
        /// What the agent is told instead.
        error: Fields,
        /// A simple query: ReadyForQuery follows.
        simple: bool,
        /// The error has been told already.
        told: bool,
    },
    /// Ours, in this place.
    Local(Bytes),
    /// Our own `SHOW search_path`: nothing of its answer reaches the agent.
    SearchPath,
}

impl Expect {
    /// The plan of the statement it belongs to, where it belongs to one.
    pub fn plan(&self) -> Option<Arc<Planned>> {
        match self {
            Expect::Simple(run) => Some(run.plan.clone()),
            Expect::Parse { prepared, .. } | Expect::DescribeStatement { prepared, .. } => Some(prepared.plan()),
            Expect::Bind { portal } | Expect::DescribePortal { portal } => Some(portal.plan.clone()),
            Expect::Execute(execution) => Some(execution.portal.plan.clone()),
            _ => None,
        }
    }
}

/// The queue.
#[derive(Default)]
pub struct Queue {
    entries: VecDeque<Expect>,
    syncs: usize,
    /// The first so many belong to messages that were sealed: recorded, and on their way.
    sealed: usize,
}

impl Queue {
    /// Whether nothing is unanswered.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a reading agent must wait.
    pub fn is_full(&self) -> bool {
        self.entries.len() >= MAX_UNANSWERED
    }

    /// Adds an expectation.
    pub fn push(&mut self, expect: Expect) {
        if matches!(expect, Expect::Sync) {
            self.syncs = self.syncs.saturating_add(1);
        }
        self.entries.push_back(expect);
    }

    /// What is expected next.
    pub fn front(&self) -> Option<&Expect> {
        self.entries.front()
    }

    /// The operation whose rows or data come next, and what it did so far.
    pub fn at_work(&mut self) -> Option<(OpId, &mut Progress)> {
        match self.entries.front_mut()? {
            Expect::Simple(run) => Some((run.op, &mut run.progress)),
            Expect::Execute(execution) => Some((execution.portal.op, &mut execution.progress)),
            _ => None,
        }
    }

    /// Puts back what was taken and is not complete.
    pub fn unpop(&mut self, expect: Expect) {
        self.sealed = self.sealed.saturating_add(1);
        self.entries.push_front(expect);
    }

    /// Everything so far is recorded, and will be sent.
    pub fn seal(&mut self) {
        self.sealed = self.entries.len();
    }

    /// Takes what was not sealed: the server will never hear of it.
    pub fn unsealed(&mut self) -> Vec<Expect> {
        let taken: Vec<Expect> = self.entries.drain(self.sealed.min(self.entries.len())..).collect();
        let syncs = taken.iter().filter(|entry| matches!(entry, Expect::Sync)).count();
        self.syncs = self.syncs.saturating_sub(syncs);
        taken
    }

    /// Takes what is expected next.
    pub fn pop(&mut self) -> Option<Expect> {
        let entry = self.entries.pop_front();
        self.sealed = self.sealed.saturating_sub(1);
        if matches!(entry, Some(Expect::Sync)) {
            self.syncs = self.syncs.saturating_sub(1);
        }
        entry
    }

    /// Our own answers at the front, in order.
    pub fn pop_local(&mut self) -> Option<Bytes> {
        if !matches!(self.entries.front(), Some(Expect::Local(_))) {
            return None;
        }
        match self.pop() {
            Some(Expect::Local(bytes)) => Some(bytes),
            _ => None,
        }
    }

    /// Whether a Sync is among the unanswered.
    pub fn has_sync(&self) -> bool {
        self.syncs > 0
    }

    /// Everything up to the next Sync, which stays: void after an error.
    pub fn void_to_sync(&mut self) -> Vec<Expect> {
        let end = self.entries.iter().position(|entry| matches!(entry, Expect::Sync));
        let end = end.unwrap_or(self.entries.len());
        self.sealed = self.sealed.saturating_sub(end);
        self.entries.drain(..end).collect()
    }

    /// COPY from the agent began: the server ignores Syncs it was sent before.
    pub fn drop_syncs(&mut self) {
        let is_sync = |entry: &Expect| matches!(entry, Expect::Sync);
        let sealed = self
            .entries
            .iter()
            .take(self.sealed)
            .filter(|entry| is_sync(entry))
            .count();
        self.sealed = self.sealed.saturating_sub(sealed);
        self.entries.retain(|entry| !is_sync(entry));
        self.syncs = 0;
    }

    /// Everything, when the session ends.
    pub fn drain(&mut self) -> impl Iterator<Item = Expect> + '_ {
        (self.syncs, self.sealed) = (0, 0);
        self.entries.drain(..)
    }
}
