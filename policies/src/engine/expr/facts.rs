//! The table of facts a `when` may name, with the type of each and the kind of operation that has it.
//!
//! Names are closed: what is not in the table does not compile. A fact belongs to one family; an expression reads
//! facts of one family besides the common ones, so a rule always knows which operations it is about.

/// One fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs)] // The names are those of the table below.
pub enum FactId {
    SqlCommands,
    SqlTables,
    SqlReads,
    SqlWrites,
    SqlColumns,
    SqlFunctions,
    SqlEffects,
    SqlFiltered,
    SqlLimit,
    SqlReturning,
    SqlCopy,
    SqlExplain,
    SqlStatements,
    SqlObjects,
    SqlParams,
    SqlSettings,
    SqlChannels,
    SqlInTransaction,
    SqlDatabase,
    SqlRole,
    SubjectNamespace,
    SubjectServiceAccount,
    SubjectPod,
    SubjectLabels,
    TargetNamespace,
    TargetName,
    TargetProtocol,
    TargetLabels,
    Now,
    TcpBytesIn,
    TcpBytesOut,
    ConnectDatabase,
}

/// The type of a fact or of an expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// true or false.
    Bool,
    /// 64-bit integer.
    Int,
    /// Floating point.
    Double,
    /// Text.
    Text,
    /// A point in time.
    Time,
    /// A length of time.
    Span,
    /// `null` and nothing else.
    Null,
    /// An integer or null.
    IntOrNull,
    /// Text or null.
    TextOrNull,
    /// A bind value: null, bool, int, double or text, known when it runs.
    Param,
    /// Text by text.
    Labels,
    /// A list of what is inside.
    List(Element),
}

/// What a list holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// Text.
    Text,
    /// Integers.
    Int,
    /// Floating-point numbers.
    Double,
    /// Booleans.
    Bool,
    /// Bind values.
    Param,
    /// Nothing: the empty list literal.
    Empty,
}

impl Kind {
    /// As people say it.
    pub fn describe(self) -> &'static str {
        match self {
            Kind::Bool => "a bool",
            Kind::Int => "an int",
            Kind::Double => "a double",
            Kind::Text => "a string",
            Kind::Time => "a timestamp",
            Kind::Span => "a duration",
            Kind::Null => "null",
            Kind::IntOrNull => "an int or null",
            Kind::TextOrNull => "a string or null",
            Kind::Param => "a bind value",
            Kind::Labels => "a map of strings",
            Kind::List(Element::Text) => "a list of strings",
            Kind::List(Element::Int) => "a list of ints",
            Kind::List(Element::Double) => "a list of doubles",
            Kind::List(Element::Bool) => "a list of bools",
            Kind::List(Element::Param) => "a list of bind values",
            Kind::List(Element::Empty) => "an empty list",
        }
    }
}

impl Element {
    /// The type of one element.
    pub fn kind(self) -> Kind {
        match self {
            Element::Text => Kind::Text,
            Element::Int => Kind::Int,
            Element::Double => Kind::Double,
            Element::Bool => Kind::Bool,
            Element::Param => Kind::Param,
            Element::Empty => Kind::Null,
        }
    }
}

/// Which operations a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Every operation.
    Any,
    /// SQL statements.
    Sql,
    /// Raw TCP streams.
    Tcp,
    /// Sessions that open.
    Connect,
}

const TEXTS: Kind = Kind::List(Element::Text);

/// Name and type of every fact, in the order of [`FactId`].
const TABLE: [(FactId, &str, Kind); 32] = [
    (FactId::SqlCommands, "sql.commands", TEXTS),
    (FactId::SqlTables, "sql.tables", TEXTS),
    (FactId::SqlReads, "sql.reads", TEXTS),
    (FactId::SqlWrites, "sql.writes", TEXTS),
    (FactId::SqlColumns, "sql.columns", TEXTS),
    (FactId::SqlFunctions, "sql.functions", TEXTS),
    (FactId::SqlEffects, "sql.effects", TEXTS),
    (FactId::SqlFiltered, "sql.filtered", Kind::Bool),
    (FactId::SqlLimit, "sql.limit", Kind::IntOrNull),
    (FactId::SqlReturning, "sql.returning", Kind::Bool),
    (FactId::SqlCopy, "sql.copy", Kind::Text),
    (FactId::SqlExplain, "sql.explain", Kind::Bool),
    (FactId::SqlStatements, "sql.statements", Kind::Int),
    (FactId::SqlObjects, "sql.objects", TEXTS),
    (FactId::SqlParams, "sql.params", Kind::List(Element::Param)),
    (FactId::SqlSettings, "sql.settings", TEXTS),
    (FactId::SqlChannels, "sql.channels", TEXTS),
    (FactId::SqlInTransaction, "sql.inTransaction", Kind::Bool),
    (FactId::SqlDatabase, "sql.database", Kind::Text),
    (FactId::SqlRole, "sql.role", Kind::Text),
    (FactId::SubjectNamespace, "subject.namespace", Kind::Text),
    (FactId::SubjectServiceAccount, "subject.serviceAccount", Kind::Text),
    (FactId::SubjectPod, "subject.pod", Kind::Text),
    (FactId::SubjectLabels, "subject.labels", Kind::Labels),
    (FactId::TargetNamespace, "target.namespace", Kind::Text),
    (FactId::TargetName, "target.name", Kind::Text),
    (FactId::TargetProtocol, "target.protocol", Kind::Text),
    (FactId::TargetLabels, "target.labels", Kind::Labels),
    (FactId::Now, "now", Kind::Time),
    (FactId::TcpBytesIn, "tcp.bytesIn", Kind::Int),
    (FactId::TcpBytesOut, "tcp.bytesOut", Kind::Int),
    (FactId::ConnectDatabase, "connect.database", Kind::TextOrNull),
];

impl FactId {
    /// Every fact.
    pub const ALL: [FactId; 32] = {
        let mut all = [FactId::Now; 32];
        let mut at = 0;
        #[allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)] // Evaluated at compile time.
        while at < 32 {
            all[at] = TABLE[at].0;
            at += 1;
        }
        all
    };

    fn entry(self) -> (&'static str, Kind) {
        TABLE
            .get(self as usize)
            .map_or(("", Kind::Null), |(_, name, kind)| (name, *kind))
    }

    /// The name in CEL.
    pub fn name(self) -> &'static str {
        self.entry().0
    }

    /// The type.
    pub fn kind(self) -> Kind {
        self.entry().1
    }

    /// The kind of operation that has it.
    pub fn family(self) -> Family {
        match self.name().split_once('.') {
            Some(("sql", _)) => Family::Sql,
            Some(("tcp", _)) => Family::Tcp,
            Some(("connect", _)) => Family::Connect,
            _ => Family::Any,
        }
    }

    /// Finds a fact by name.
    pub fn find(name: &str) -> Option<FactId> {
        TABLE.iter().find(|(_, known, _)| *known == name).map(|(id, _, _)| *id)
    }

    /// The fields under a root such as `sql`, for messages.
    pub fn fields(root: &str) -> Vec<&'static str> {
        TABLE
            .iter()
            .filter(|(_, name, _)| name.split_once('.').is_some_and(|(known, _)| known == root))
            .map(|(_, name, _)| *name)
            .collect()
    }

    /// Whether it may differ between two runs of one and the same operation.
    pub fn is_volatile(self) -> bool {
        matches!(
            self,
            FactId::Now | FactId::SqlParams | FactId::TcpBytesIn | FactId::TcpBytesOut
        )
    }
}

/// A set of facts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FactSet(u32);

impl FactSet {
    /// The set of these facts.
    #[allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)] // Evaluated at compile time.
    pub const fn of(facts: &[FactId]) -> FactSet {
        let (mut bits, mut at) = (0u32, 0);
        while at < facts.len() {
            bits |= 1 << facts[at] as u32;
            at += 1;
        }
        FactSet(bits)
    }

    /// The set of all facts from one to another in table order.
    #[allow(clippy::arithmetic_side_effects)] // Evaluated at compile time.
    pub const fn range(first: FactId, last: FactId) -> FactSet {
        let upto_last = (1u64 << (last as u32 + 1)) - 1;
        let below_first = (1u64 << first as u32) - 1;
        #[allow(clippy::cast_possible_truncation)] // There are 32 facts.
        FactSet((upto_last & !below_first) as u32)
    }

    /// Adds a fact.
    pub fn insert(&mut self, fact: FactId) {
        self.0 |= 1u32.checked_shl(fact as u32).unwrap_or(0);
    }

    /// Whether a fact is in the set.
    pub fn contains(self, fact: FactId) -> bool {
        self.0 & 1u32.checked_shl(fact as u32).unwrap_or(0) != 0
    }

    /// Whether any fact is in both sets.
    pub fn intersects(self, other: FactSet) -> bool {
        self.0 & other.0 != 0
    }

    /// The facts in the set.
    pub fn iter(self) -> impl Iterator<Item = FactId> {
        FactId::ALL.into_iter().filter(move |fact| self.contains(*fact))
    }
}

impl FromIterator<FactId> for FactSet {
    fn from_iter<I: IntoIterator<Item = FactId>>(facts: I) -> Self {
        let mut set = FactSet::default();
        facts.into_iter().for_each(|fact| set.insert(fact));
        set
    }
}
