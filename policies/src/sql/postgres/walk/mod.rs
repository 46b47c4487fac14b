//! The exhaustive walk of a statement tree: every node kind, every field, with a work list instead of recursion.
//!
//! Structs are taken apart field by field without `..`, and the one match over node kinds has no catch-all: an
//! update of the grammar does not compile until each new node and field has been reviewed. A field bound to `_` was
//! found to carry no meaning for a decision (locations, aliases, flags of style). What the walk does not know makes
//! the statement Opaque; it never skips a node.

mod dispatch;
mod expr;
mod json;
pub(super) mod name;
mod object;
mod query;
mod secret;
mod session;
mod syntax;
mod table;

use super::parse::{pb, NodeEnum};
use super::prescan::MAX_DEPTH;
use crate::api::access_policy::SqlCommand;
use crate::sql::facts::Effects;
use name::{literal, qualified};

pub use syntax::{
    FunctionKind, FunctionRef, Problem, RelationRef, RelationRole, SecretKind, SecretRef, SettingRef, SettingVerb,
    Syntax,
};

/// Walks one statement for a server of this major version.
pub fn walk(statement: &pb::Node, server_major: u32) -> Syntax {
    let mut walk = Walk {
        work: Vec::with_capacity(64),
        found: Syntax::default(),
        server_major,
    };
    let top = Place {
        depth: 0,
        command: SqlCommand::Other,
        role: RelationRole::Existing,
        top: true,
        keep: true,
        quiet: false,
    };
    walk.push(statement, top);
    walk.run();
    walk.found
}

/// The state of one walk.
struct Walk<'a> {
    work: Vec<(Item<'a>, Place)>,
    found: Syntax,
    server_major: u32,
}

/// Something still to visit.
enum Item<'a> {
    Node(&'a pb::Node),
    /// An arm of a set operation, which the tree holds without a node around it.
    Select(&'a pb::SelectStmt),
}

/// Where a node stands.
#[derive(Debug, Clone, Copy)]
struct Place {
    depth: u32,
    /// What is done to a relation named here.
    command: SqlCommand,
    /// How a relation named here is meant.
    role: RelationRole,
    /// The statement itself, or what EXPLAIN, PREPARE or DECLARE wraps.
    top: bool,
    /// The next node down is still at the top.
    keep: bool,
    /// Names of types here are not used, only mentioned.
    quiet: bool,
}

impl Place {
    fn with(self, command: SqlCommand, role: RelationRole) -> Self {
        Place { command, role, ..self }
    }

    fn query(self, command: SqlCommand) -> Self {
        self.with(command, RelationRole::Query)
    }

    /// In a utility statement. Inside a query (the body of a rule) it stays the query's.
    fn existing(self, command: SqlCommand) -> Self {
        self.with(command, RelationRole::Existing)
    }

    fn quiet(self) -> Self {
        Place { quiet: true, ..self }
    }

    fn kept(self) -> Self {
        Place { keep: true, ..self }
    }
}

impl<'a> Walk<'a> {
    fn run(&mut self) {
        while let Some((item, at)) = self.work.pop() {
            if at.depth > MAX_DEPTH {
                self.found.too_deep = true;
                return;
            }
            match item {
                Item::Select(select) => self.select_stmt(select, at),
                Item::Node(node) => match &node.node {
                    Some(kind) => self.visit(kind, at),
                    None => self.problem(Problem::Empty),
                },
            }
        }
    }

    fn below(at: Place) -> Place {
        Place {
            depth: at.depth.saturating_add(1),
            top: at.top && at.keep,
            keep: false,
            ..at
        }
    }

    fn push(&mut self, node: &'a pb::Node, at: Place) {
        self.work.push((Item::Node(node), Self::below(at)));
    }

    fn select(&mut self, select: &'a pb::SelectStmt, at: Place) {
        self.work.push((Item::Select(select), Self::below(at)));
    }

    fn maybe(&mut self, node: &'a Option<Box<pb::Node>>, at: Place) {
        if let Some(node) = node {
            self.push(node, at);
        }
    }

    fn all(&mut self, nodes: &'a [pb::Node], at: Place) {
        nodes.iter().for_each(|node| self.push(node, at));
    }

    /// A list in which an empty node is legal: a missing operand, no column definitions.
    fn all_or_empty(&mut self, nodes: &'a [pb::Node], at: Place) {
        let given = nodes.iter().filter(|node| node.node.is_some());
        given.for_each(|node| self.push(node, at));
    }

    fn unknown(&mut self, kind: &'static str) {
        self.problem(Problem::Node(kind));
    }

    fn problem(&mut self, problem: Problem) {
        self.found.problem.get_or_insert(problem);
        self.found.effects.insert(Effects::UNKNOWN);
    }

    /// Syntax that came with a major version: on an older server nobody knows what the text means.
    fn since(&mut self, major: u32, what: &'static str) {
        if self.server_major < major {
            let server = self.server_major;
            self.problem(Problem::Newer { what, server });
        }
    }

    fn command(&mut self, command: SqlCommand, effect: Effects) {
        self.found.commands.insert(command);
        self.found.effects.insert(effect);
    }

    fn object(&mut self, label: &str) {
        if !self.found.objects.iter().any(|known| &**known == label) {
            self.found.objects.push(label.into());
        }
    }

    fn define(&mut self, command: SqlCommand, label: &str) {
        self.command(command, Effects::DEFINE);
        self.object(label);
    }

    fn define_object(&mut self, command: SqlCommand, kind: i32) {
        self.command(command, Effects::DEFINE);
        self.object_kind(kind);
    }

    fn object_kind(&mut self, kind: i32) {
        match name::object_label(kind) {
            Some(label) => self.object(label),
            None => self.problem(Problem::Value("kind of object")),
        }
    }

    /// A command that reaches relations it does not name.
    fn whole_database(&mut self, command: SqlCommand) {
        self.found.unnamed.insert(command);
    }

    fn parameter(&mut self, number: i32) {
        match u32::try_from(number) {
            Ok(number) => self.found.parameters = self.found.parameters.max(number),
            Err(_) => self.problem(Problem::Value("parameter")),
        }
    }

    fn function(
        &mut self,
        kind: FunctionKind,
        (schema, name): (Option<&str>, &str),
        arguments: Option<u32>,
        first_literal: Option<&str>,
    ) {
        let found = FunctionRef {
            kind,
            schema: schema.map(Into::into),
            name: name.into(),
            arguments,
            first_literal: first_literal.map(Into::into),
        };
        self.found.functions.insert(found);
    }

    fn operator(&mut self, names: &[pb::Node]) {
        match qualified(names) {
            Some(name) => self.function(FunctionKind::Operator, name, None, None),
            None => self.problem(Problem::Value("operator name")),
        }
    }

    /// An operator the grammar does not write out but the server looks up by name.
    fn implied_operator(&mut self, name: &'static str) {
        self.function(FunctionKind::Operator, (None, name), None, None);
    }

    /// `a.b.c`: the last part may call a function on what stands before it.
    fn attribute_of_column(&mut self, fields: &'a [pb::Node]) {
        let mut parts = fields.iter().skip(1).peekable();
        let mut last = None;
        while let Some(part) = parts.next() {
            match part.node.as_ref() {
                Some(NodeEnum::String(text)) => last = Some(text.sval.as_str()),
                Some(NodeEnum::AStar(_)) if parts.peek().is_none() => last = None,
                _ => self.problem(Problem::Value("column reference")),
            }
        }
        match fields.first().map(|first| first.node.as_ref()) {
            Some(Some(NodeEnum::String(_) | NodeEnum::AStar(_))) => {}
            _ => self.problem(Problem::Value("column reference")),
        }
        if let Some(name) = last {
            // With two parts the binder knows whether this is a column; with more it may be a column's attribute.
            let kind = match fields.len() {
                2 => FunctionKind::ColumnOrAttribute,
                _ => FunctionKind::Attribute,
            };
            self.function(kind, (None, name), Some(1), None);
        }
    }

    /// `(expression).name[1].*`: names call functions unless they are fields.
    fn attributes(&mut self, indirection: &'a [pb::Node]) {
        for part in indirection {
            match part.node.as_ref() {
                Some(NodeEnum::String(text)) => {
                    self.function(FunctionKind::Attribute, (None, &text.sval), Some(1), None);
                }
                Some(NodeEnum::AStar(_) | NodeEnum::AIndices(_)) => {}
                _ => self.problem(Problem::Value("indirection")),
            }
        }
    }

    fn setting(&mut self, name: &str, verb: SettingVerb, value: Option<&str>) {
        self.found.settings.push(SettingRef {
            name: name.to_ascii_lowercase().into(),
            verb,
            value: value.map(Into::into),
        });
    }

    /// SET and RESET, alone or as the option of something that outlives the session.
    fn variable(&mut self, set: &'a pb::VariableSetStmt, verb: SettingVerb, at: Place) {
        use pb::VariableSetKind as K;
        let pb::VariableSetStmt {
            kind,
            name,
            args,
            jumble_args: _,
            is_local: _,
            location: _,
        } = set;
        match K::try_from(*kind) {
            Ok(K::VarSetDefault | K::VarReset) if verb == SettingVerb::Set => {
                self.setting(name, SettingVerb::Reset, None);
            }
            Ok(K::VarSetValue | K::VarSetDefault | K::VarSetCurrent | K::VarReset) => {
                self.setting(name, verb, name::constant(args).as_deref());
                self.secret_setting(name, args);
                self.all(args, at.quiet());
            }
            Ok(K::VarResetAll) if args.is_empty() => {}
            Ok(K::VarSetMulti) if name == "TRANSACTION SNAPSHOT" => self.setting("transaction_snapshot", verb, None),
            Ok(K::VarSetMulti) => self.transaction_modes(args, verb),
            _ => self.problem(Problem::Value("SET")),
        }
    }

    /// Isolation levels and READ ONLY may be asked for by anyone; READ WRITE undoes a protection.
    fn transaction_modes(&mut self, modes: &'a [pb::Node], verb: SettingVerb) {
        for mode in modes {
            let Some(NodeEnum::DefElem(mode)) = mode.node.as_ref() else {
                self.problem(Problem::Value("transaction mode"));
                continue;
            };
            match mode.defname.as_str() {
                "transaction_isolation" | "transaction_deferrable" => {}
                "transaction_read_only" if name::is_true(mode) => {}
                other => self.setting(other, verb, None),
            }
        }
    }

    /// An exclusion constraint's element and the operator it uses.
    fn exclusion(&mut self, pair: &'a [pb::Node], at: Place) {
        match pair {
            [element, operator] => {
                self.push(element, at);
                match operator.node.as_ref() {
                    Some(NodeEnum::List(names)) => self.operator(&names.items),
                    _ => self.problem(Problem::Value("exclusion operator")),
                }
            }
            _ => self.problem(Problem::Value("exclusion")),
        }
    }

    /// An object that a statement only names: to drop, rename or describe it.
    fn object_named(&mut self, object: Option<&'a pb::Node>, kind: i32, at: Place) {
        use pb::ObjectType as O;
        let Some(object) = object else {
            return self.problem(Problem::Empty);
        };
        let own = match O::try_from(kind) {
            Ok(O::ObjectTable | O::ObjectView | O::ObjectMatview | O::ObjectIndex) => 0,
            Ok(O::ObjectSequence | O::ObjectForeignTable) => 0,
            Ok(O::ObjectColumn | O::ObjectTabconstraint | O::ObjectTrigger | O::ObjectRule | O::ObjectPolicy) => 1,
            _ => return self.push(object, at.quiet()),
        };
        let parts = match object.node.as_ref() {
            Some(NodeEnum::List(list)) => name::strings(&list.items),
            _ => None,
        };
        let relation = parts.and_then(|mut parts| {
            parts.truncate(parts.len().checked_sub(own)?);
            let name = parts.pop()?;
            Some((parts.pop(), name))
        });
        match relation {
            Some((schema, name)) => self.found.relations.push(RelationRef {
                location: -1,
                database: None,
                schema: schema.map(Into::into),
                name: name.into(),
                command: at.command,
                role: RelationRole::Existing,
            }),
            None => self.problem(Problem::Value("object name")),
        }
    }

    fn call_name(&mut self, names: &'a [pb::Node], arguments: &'a [pb::Node], variadic: bool) {
        let count = u32::try_from(arguments.len()).ok().filter(|_| !variadic);
        let first = arguments.first().and_then(literal);
        match qualified(names) {
            Some(name) => self.function(FunctionKind::Call, name, count, first),
            None => self.problem(Problem::Value("function name")),
        }
    }
}

#[cfg(test)]
mod tests;
