//! What the functions, operators and types a statement names may be, and whether they are on the allow-list.
//!
//! No type is inferred: of all candidates of a name and argument count that the search_path reaches, the worst one
//! counts. The mere presence of a user's `lower(varchar)` makes `lower` unlisted, because the server prefers it for
//! some arguments. A name nobody knows leaves the facts unknown.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::analysis::SessionView;
use super::super::catalog::{Catalog, TypeKind};
use super::super::guc::{self, Setting};
use super::super::names::{search_order, truncated};
use super::super::walk::{FunctionKind, FunctionRef, SettingRef, SettingVerb};
use super::{Class, Kind};
use crate::sql::facts::Effects;

/// What was found behind the names of one statement.
#[derive(Debug, Default)]
pub struct Called {
    /// Every function, `schema.name`; of operators and casts those that are not the server's own harmless ones.
    pub functions: BTreeSet<Arc<str>>,
    /// Of these, the ones a rule has to name.
    pub unlisted: BTreeSet<Arc<str>>,
    /// What the calls may do.
    pub effects: Effects,
    /// Settings set or read through functions.
    pub settings: Vec<SettingRef>,
    /// Some name is no function anybody knows.
    pub unknown: bool,
}

/// Types the grammar's tables hold no row for: they make a column and its sequence.
const SERIALS: &[&str] = &["serial", "serial2", "serial4", "serial8", "smallserial", "bigserial"];

/// Looks names up for one session.
#[derive(Clone, Copy)]
pub struct Lookup<'a> {
    /// The catalog.
    pub catalog: &'a Catalog,
    /// The session.
    pub view: &'a dyn SessionView,
    /// The server's major version.
    pub major: u32,
}

impl Lookup<'_> {
    /// Looks up every name of a statement.
    pub fn called<'r>(&self, references: impl IntoIterator<Item = &'r FunctionRef>) -> Called {
        let mut called = Called::default();
        for reference in references {
            match reference.kind {
                FunctionKind::Call => self.call(reference, &mut called),
                FunctionKind::Operator => self.operator(reference, &mut called),
                FunctionKind::Type => self.type_name(reference, &mut called),
                FunctionKind::Attribute => self.attribute(reference, true, &mut called),
                FunctionKind::ColumnOrAttribute => self.attribute(reference, false, &mut called),
            }
        }
        called
    }

    fn call(&self, reference: &FunctionRef, called: &mut Called) {
        let name = truncated(&reference.name);
        let (searches_builtin, own) = match reference.schema.as_deref().map(truncated) {
            Some("information_schema") => {
                let class = super::class(self.major, Kind::Information, name).unwrap_or(Class::Unknown);
                return called.add(&format!("information_schema.{name}"), class);
            }
            Some("pg_catalog") => (true, false),
            Some(_) => (false, true),
            None => (true, true),
        };
        let mut found = own && self.own_functions(reference, called);
        if searches_builtin {
            if let Some(class) = super::class(self.major, Kind::Function, name) {
                found = true;
                let class = match name {
                    "set_config" => self.set_config(reference, class, called),
                    "current_setting" => read_setting(reference, class, called),
                    _ => class,
                };
                called.add(&format!("pg_catalog.{name}"), class);
            }
        }
        if !found {
            called.nobody_knows();
        }
    }

    /// User-defined candidates of a call; whether there are any.
    fn own_functions(&self, reference: &FunctionRef, called: &mut Called) -> bool {
        let mut found = false;
        for function in self.catalog.functions_named(truncated(&reference.name)) {
            let fits = reference.arguments.is_none_or(|count| function.takes(count));
            if function.is_builtin() || !fits || !self.reaches(reference.schema.as_deref(), &function.schema) {
                continue;
            }
            found = true;
            let class = if function.listed {
                Class::Harmless
            } else {
                Class::Unknown
            };
            called.add(&function.identity(), class);
        }
        found
    }

    fn reaches(&self, written: Option<&str>, schema: &str) -> bool {
        match written {
            Some(written) => truncated(written) == schema,
            None => search_order(self.view).any(|searched| searched == schema),
        }
    }

    /// With a constant name the setting is what counts; with a computed one nobody knows which.
    fn set_config(&self, reference: &FunctionRef, class: Class, called: &mut Called) -> Class {
        let Some(name) = reference.first_literal.as_deref() else {
            return class;
        };
        called.effects.insert(Effects::SESSION);
        called.settings.push(SettingRef {
            name: name.to_ascii_lowercase().into(),
            verb: SettingVerb::Set,
            value: None,
        });
        // A pinned setting changed in the midst of a query would pass the session's own bookkeeping by.
        match guc::class(name) {
            Setting::Pinned => class,
            Setting::Harmless | Setting::Other => Class::Harmless,
        }
    }

    fn operator(&self, reference: &FunctionRef, called: &mut Called) {
        let written = reference.schema.as_deref();
        let mut found = false;
        for operator in self.catalog.operators_named(&reference.name) {
            if self.reaches(written, &operator.schema) {
                found = true;
                let own = operator.function.strip_prefix("pg_catalog.");
                let class = match operator.listed {
                    true => Some(Class::Harmless),
                    false => own.and_then(|name| super::class(self.major, Kind::Function, name)),
                };
                called.add(&operator.function, class.unwrap_or(Class::Unknown));
            }
        }
        if written.is_none_or(|schema| schema == "pg_catalog") {
            match super::class(self.major, Kind::Operator, &reference.name) {
                Some(Class::Harmless) => found = true,
                Some(class) => {
                    found = true;
                    called.add(&format!("pg_catalog.{}", reference.name), class);
                }
                None => {}
            }
        }
        if !found {
            called.nobody_knows();
        }
    }

    fn type_name(&self, reference: &FunctionRef, called: &mut Called) {
        let name = truncated(&reference.name);
        let written = reference.schema.as_deref();
        let mut found = written.is_none() && SERIALS.contains(&name);
        if written.is_none_or(|schema| schema == "pg_catalog") {
            match super::class(self.major, Kind::Type, name) {
                Some(Class::Harmless) => found = true,
                Some(class) => {
                    found = true;
                    called.add(&format!("pg_catalog.{name}"), class);
                }
                None => {}
            }
        }
        for own in self
            .catalog
            .types_named(name)
            .filter(|own| self.reaches(written, &own.schema))
        {
            found = true;
            // A base type runs its author's input function; the checks of a domain are its owner's code and ride
            // along, as those of a table do.
            let plain = own.listed || &*own.schema == "information_schema";
            if own.kind == TypeKind::Base && own.element == 0 && !plain {
                called.add(&format!("{}.{}", own.schema, own.name), Class::Unknown);
            }
        }
        for cast in self.catalog.casts_to(name) {
            if let Some(function) = cast
                .function
                .as_ref()
                .filter(|_| self.reaches(written, &cast.target_schema))
            {
                let class = if cast.listed { Class::Harmless } else { Class::Unknown };
                called.add(function, class);
            }
        }
        let row_type = || {
            let relation = self.catalog.resolve_relation(written, name, self.view);
            matches!(relation, super::super::catalog::RelationLookup::Known(_))
        };
        if !found && !row_type() {
            called.nobody_knows();
        }
    }

    /// `x.name`: a field, unless a function of that name takes `x`.
    fn attribute(&self, reference: &FunctionRef, own: bool, called: &mut Called) {
        if own {
            self.own_functions(reference, called);
        }
        let name = truncated(&reference.name);
        match super::class(self.major, Kind::Function, name) {
            None | Some(Class::Harmless) => {}
            Some(class) => called.add(&format!("pg_catalog.{name}"), class),
        }
    }
}

fn read_setting(reference: &FunctionRef, class: Class, called: &mut Called) -> Class {
    if let Some(name) = reference.first_literal.as_deref() {
        called.settings.push(SettingRef {
            name: name.to_ascii_lowercase().into(),
            verb: SettingVerb::Read,
            value: None,
        });
    }
    class
}

impl Called {
    fn add(&mut self, identity: &str, class: Class) {
        let identity: Arc<str> = identity.into();
        self.effects.insert(class.effects());
        if class != Class::Harmless {
            self.unlisted.insert(Arc::clone(&identity));
        }
        self.functions.insert(identity);
    }

    fn nobody_knows(&mut self) {
        self.unknown = true;
        self.effects.insert(Effects::UNKNOWN);
    }
}
