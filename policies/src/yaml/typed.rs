//! From a tree to a typed value, reporting every mistake instead of the first.
//!
//! A serde deserializer over [`Node`] that notes what is wrong, puts a stand-in where the value should be, and goes
//! on. What a type itself refuses (a missing field, a duration that does not parse) ends one attempt; the next
//! attempt stands in for exactly that. Invariant: a value built with any stand-in never leaves this module.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, Visitor};
use serde::de::{IntoDeserializer, VariantAccess};

use super::stand_in::StandIn;
use super::tree::{join, Entry, Node, Position, Value};
use super::SyntaxError;

/// One mistake in a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where.
    pub at: Position,
    /// The field, such as `spec.rules[2].when`.
    pub field: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.is_empty() {
            true => f.write_str(&self.message),
            false => write!(f, "{}: {}", self.field, self.message),
        }
    }
}

impl Mistake {
    /// The same with where it is in a file of this name.
    pub fn in_file(&self, name: &impl fmt::Display) -> String {
        format!("{name}:{}:{}: {self}", self.at.line, self.at.column)
    }
}

impl From<SyntaxError> for Mistake {
    fn from(error: SyntaxError) -> Self {
        Mistake {
            at: error.at.unwrap_or_default(),
            field: String::new(),
            message: error.message,
        }
    }
}

/// More mistakes than this in one document are not looked for.
const MAX_MISTAKES: usize = 200;

/// Reads a value; what is wrong is added to `mistakes`. Fields in `answered` were already reported and count as
/// present and right.
pub(super) fn typed<T: DeserializeOwned>(
    root: &Node,
    mistakes: &mut Vec<Mistake>,
    answered: &HashSet<String>,
) -> Option<T> {
    let mut stand_ins = answered.clone();
    let mut refused: Vec<(String, String)> = Vec::new();
    for _ in 0..MAX_MISTAKES {
        let context = Context {
            stand_ins: &stand_ins,
            found: RefCell::default(),
        };
        let result = T::deserialize(Reader {
            node: root,
            path: String::new(),
            context: &context,
        });
        let found = context.found.into_inner();
        match result {
            Err(fault) => {
                let fault_path = fault.path.unwrap_or_default();
                let (field, message) = match fault.missing {
                    Some(field) => (join(&fault_path, field), "is required".to_owned()),
                    None => (fault_path, fault.message),
                };
                // A stand-in that does not do either: stand in for what is around it.
                let next = if stand_ins.contains(&field) {
                    parent(&field)
                } else {
                    Some(field.clone())
                };
                if !stand_ins.contains(&field) {
                    refused.push((field, message));
                }
                match next {
                    Some(next) if !next.is_empty() && stand_ins.insert(next.clone()) => {}
                    _ => {
                        settle(root, mistakes, found, refused);
                        return None;
                    }
                }
            }
            Ok(value) => {
                let clean = found.is_empty() && refused.is_empty() && answered.is_empty();
                settle(root, mistakes, found, refused);
                return clean.then_some(value);
            }
        }
    }
    settle(root, mistakes, Vec::new(), refused);
    None
}

fn settle(root: &Node, mistakes: &mut Vec<Mistake>, found: Vec<(String, String)>, refused: Vec<(String, String)>) {
    for (field, message) in found.into_iter().chain(refused) {
        mistakes.push(Mistake {
            at: root.locate(&field),
            field,
            message,
        });
    }
}

fn parent(path: &str) -> Option<String> {
    let cut = path.rfind(['.', '['])?;
    path.get(..cut).map(str::to_owned)
}

struct Context<'a> {
    stand_ins: &'a HashSet<String>,
    found: RefCell<Vec<(String, String)>>,
}

impl Context<'_> {
    fn report(&self, path: &str, message: String) {
        let mut found = self.found.borrow_mut();
        if found.len() < MAX_MISTAKES {
            found.push((path.to_owned(), message));
        }
    }
}

/// What a type refused.
#[derive(Debug)]
pub(super) struct Fault {
    path: Option<String>,
    missing: Option<&'static str>,
    message: String,
}

impl Fault {
    fn at(mut self, path: &str) -> Self {
        self.path.get_or_insert_with(|| path.to_owned());
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Fault {
            path: None,
            missing: None,
            message: message.to_string(),
        }
    }

    fn missing_field(field: &'static str) -> Self {
        Fault {
            path: None,
            missing: Some(field),
            message: String::new(),
        }
    }
}

/// Reads one node. Every `deserialize_*` either hands the visitor what it wants or reports and hands a stand-in.
struct Reader<'a> {
    node: &'a Node,
    path: String,
    context: &'a Context<'a>,
}

impl Reader<'_> {
    fn wrong(&self, wanted: &str) {
        let hint = match (&self.node.value, wanted) {
            (Value::Int(_) | Value::Float(_) | Value::Bool(_), "text") => "; put it in quotes",
            (Value::Text(_), "a whole number") => "; write it without quotes",
            _ => "",
        };
        self.context.report(
            &self.path,
            format!("expected {wanted}, found {}{hint}", self.node.what()),
        );
    }

    fn is_answered(&self) -> bool {
        self.context.stand_ins.contains(&self.path)
    }
}

macro_rules! whole_numbers {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            match self.node.value {
                _ if self.is_answered() => StandIn.$method(visitor),
                Value::Int(value) => match i64::try_from(value) {
                    Ok(value) => visitor.visit_i64(value),
                    Err(_) => visitor.visit_i128(value),
                }
                .map_err(|fault: Fault| fault.at(&self.path)),
                _ => {
                    self.wrong("a whole number");
                    StandIn.$method(visitor)
                }
            }
        }
    )*};
}

macro_rules! texts {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            match &self.node.value {
                _ if self.is_answered() => StandIn.$method(visitor),
                Value::Text(text) => visitor.visit_str(text).map_err(|fault: Fault| fault.at(&self.path)),
                _ => {
                    self.wrong("text");
                    StandIn.$method(visitor)
                }
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        if self.is_answered() {
            return StandIn.deserialize_any(visitor);
        }
        let path = self.path.clone();
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Int(value) => match (u64::try_from(*value), i64::try_from(*value)) {
                (Ok(value), _) => visitor.visit_u64(value),
                (_, Ok(value)) => visitor.visit_i64(value),
                _ => visitor.visit_i128(*value),
            },
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(text) => visitor.visit_str(text),
            Value::List(items) => visitor.visit_seq(List::new(items, self.path, self.context)),
            Value::Map(entries) => visitor.visit_map(Map::new(entries, self.path, self.context, None)),
        }
        .map_err(|fault: Fault| fault.at(&path))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.value {
            _ if self.is_answered() => StandIn.deserialize_bool(visitor),
            Value::Bool(value) => visitor.visit_bool(value),
            _ => {
                self.wrong("true or false");
                StandIn.deserialize_bool(visitor)
            }
        }
    }

    whole_numbers! { deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
    deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128 }
    texts! { deserialize_char deserialize_str deserialize_string deserialize_identifier }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.value {
            Value::Int(_) | Value::Float(_) => self.deserialize_any(visitor),
            _ => {
                self.wrong("a number");
                StandIn.deserialize_f64(visitor)
            }
        }
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ if self.is_answered() => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let path = self.path.clone();
        match &self.node.value {
            _ if self.is_answered() => StandIn.deserialize_seq(visitor),
            Value::List(items) => visitor
                .visit_seq(List::new(items, self.path, self.context))
                .map_err(|fault: Fault| fault.at(&path)),
            _ => {
                self.wrong("a list");
                StandIn.deserialize_seq(visitor)
            }
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let path = self.path.clone();
        match &self.node.value {
            _ if self.is_answered() => StandIn.deserialize_map(visitor),
            Value::Map(entries) => visitor
                .visit_map(Map::new(entries, self.path, self.context, None))
                .map_err(|fault: Fault| fault.at(&path)),
            _ => {
                self.wrong("a map");
                StandIn.deserialize_map(visitor)
            }
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let path = self.path.clone();
        match &self.node.value {
            _ if self.is_answered() => StandIn.deserialize_struct(name, fields, visitor),
            Value::Map(entries) => {
                report_unknown(name, fields, entries, &self.path, self.context);
                visitor
                    .visit_map(Map::new(entries, self.path, self.context, Some(fields)))
                    .map_err(|fault: Fault| fault.at(&path))
            }
            _ => {
                self.wrong("a map");
                StandIn.deserialize_struct(name, fields, visitor)
            }
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let wanted = || format!("exactly one of {}", variants.join(", "));
        let path = self.path.clone();
        let stand_in = |visitor: V| StandIn.deserialize_enum(name, variants, visitor);
        let (variant, content) = match &self.node.value {
            _ if self.is_answered() => return stand_in(visitor),
            Value::Text(text) => (text.as_str(), None),
            Value::Map(entries) => {
                let answered = |entry: &Entry| self.context.stand_ins.contains(&join(&path, &entry.key));
                if entries.iter().any(answered) && !entries.iter().all(|e| variants.contains(&e.key.as_str())) {
                    return stand_in(visitor);
                }
                match entries.as_slice() {
                    [entry] => (entry.key.as_str(), Some(&entry.value)),
                    _ => {
                        let keys: Vec<_> = entries.iter().map(|entry| entry.key.as_str()).collect();
                        let found = if keys.is_empty() {
                            "none".to_owned()
                        } else {
                            keys.join(", ")
                        };
                        self.context
                            .report(&path, format!("expected {}, found {found}", wanted()));
                        return stand_in(visitor);
                    }
                }
            }
            _ => {
                self.wrong(&wanted());
                return stand_in(visitor);
            }
        };
        let Some(known) = variants.iter().find(|known| **known == variant) else {
            let place = if content.is_some() { join(&path, variant) } else { path };
            self.context
                .report(&place, format!("`{variant}` is not known; write {}", wanted()));
            return stand_in(visitor);
        };
        visitor
            .visit_enum(Variant {
                name: known,
                content,
                path: path.clone(),
                context: self.context,
            })
            .map_err(|fault: Fault| fault.at(&path))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }
}

/// Metadata that API servers and tools write; none of it is read.
const FOREIGN_METADATA: &[&str] = &[
    "generation",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "ownerReferences",
    "finalizers",
    "selfLink",
];

fn report_unknown(name: &str, fields: &[&str], entries: &[Entry], path: &str, context: &Context<'_>) {
    for entry in entries {
        let key = entry.key.as_str();
        let field = join(path, key);
        let foreign = name == "Metadata" && FOREIGN_METADATA.contains(&key);
        if fields.contains(&key) || foreign || context.stand_ins.contains(&field) {
            continue;
        }
        let close = fields.iter().find(|known| is_close(known, key));
        let message = match close {
            Some(close) => format!("no such field; did you mean `{close}`?"),
            None if fields.is_empty() => "no such field; nothing is written here".to_owned(),
            None => format!("no such field; known here: {}", fields.join(", ")),
        };
        context.report(&field, message);
    }
}

/// Whether two names differ by little: case, or one insertion, removal, change or swap.
fn is_close(known: &str, written: &str) -> bool {
    let (a, b): (Vec<char>, Vec<char>) = (
        known.to_lowercase().chars().collect(),
        written.to_lowercase().chars().collect(),
    );
    let (long, short) = if a.len() >= b.len() { (a, b) } else { (b, a) };
    let same_start = long.iter().zip(&short).take_while(|(x, y)| x == y).count();
    let rest = short.len().saturating_sub(same_start);
    let same_end = long
        .iter()
        .rev()
        .zip(short.iter().rev())
        .take(rest)
        .take_while(|(x, y)| x == y)
        .count();
    let differing = long.len().saturating_sub(same_start).saturating_sub(same_end);
    let swapped = long.len() == short.len()
        && differing == 2
        && long.get(same_start) == short.get(same_start.saturating_add(1))
        && short.get(same_start) == long.get(same_start.saturating_add(1));
    differing <= 1 || swapped
}

struct List<'a> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
    path: String,
    context: &'a Context<'a>,
}

impl<'a> List<'a> {
    fn new(items: &'a [Node], path: String, context: &'a Context<'a>) -> Self {
        List {
            items: items.iter().enumerate(),
            path,
            context,
        }
    }
}

impl<'de> SeqAccess<'de> for List<'_> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some((index, node)) = self.items.next() else {
            return Ok(None);
        };
        let path = format!("{}[{index}]", self.path);
        let reader = Reader {
            node,
            path: path.clone(),
            context: self.context,
        };
        seed.deserialize(reader)
            .map(Some)
            .map_err(|fault: Fault| fault.at(&path))
    }
}

/// The entries of a map; of a struct only the known ones, each once, then stand-ins for what is missing.
struct Map<'a> {
    entries: std::slice::Iter<'a, Entry>,
    fields: Option<&'static [&'static str]>,
    seen: HashSet<&'a str>,
    missing: std::slice::Iter<'static, &'static str>,
    value: Option<&'a Entry>,
    path: String,
    context: &'a Context<'a>,
}

impl<'a> Map<'a> {
    fn new(
        entries: &'a [Entry],
        path: String,
        context: &'a Context<'a>,
        fields: Option<&'static [&'static str]>,
    ) -> Self {
        Map {
            entries: entries.iter(),
            fields,
            seen: HashSet::new(),
            missing: fields.unwrap_or_default().iter(),
            value: None,
            path,
            context,
        }
    }
}

impl<'de> MapAccess<'de> for Map<'_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        for entry in self.entries.by_ref() {
            let known = self.fields.is_none_or(|fields| fields.contains(&entry.key.as_str()));
            if known && self.seen.insert(&entry.key) {
                self.value = Some(entry);
                let key: StrDeserializer<'_, Fault> = entry.key.as_str().into_deserializer();
                return seed.deserialize(key).map(Some);
            }
        }
        for field in self.missing.by_ref() {
            if !self.seen.contains(field) && self.context.stand_ins.contains(&join(&self.path, field)) {
                self.value = None;
                let key: StrDeserializer<'_, Fault> = (*field).into_deserializer();
                return seed.deserialize(key).map(Some);
            }
        }
        Ok(None)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Fault> {
        let Some(entry) = self.value else {
            return seed.deserialize(StandIn);
        };
        let path = join(&self.path, &entry.key);
        let reader = Reader {
            node: &entry.value,
            path: path.clone(),
            context: self.context,
        };
        seed.deserialize(reader).map_err(|fault: Fault| fault.at(&path))
    }
}

/// The one key of a union, or a bare word.
struct Variant<'a> {
    name: &'static str,
    content: Option<&'a Node>,
    path: String,
    context: &'a Context<'a>,
}

impl<'a> Variant<'a> {
    fn reader(&self) -> Option<Reader<'a>> {
        self.content.map(|node| Reader {
            node,
            path: join(&self.path, self.name),
            context: self.context,
        })
    }

    fn bare(&self) {
        let message = format!("`{}` is a map: write `{}: {{…}}`", self.name, self.name);
        self.context.report(&self.path, message);
    }
}

impl<'de> EnumAccess<'de> for Variant<'_> {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Fault> {
        let name: StrDeserializer<'_, Fault> = self.name.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        if self.content.is_some() {
            let message = format!("`{}` is a word, not a map: write it without braces", self.name);
            self.context.report(&self.path, message);
        }
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Fault> {
        match self.reader() {
            Some(reader) => {
                let path = reader.path.clone();
                seed.deserialize(reader).map_err(|fault: Fault| fault.at(&path))
            }
            None => {
                self.bare();
                seed.deserialize(StandIn)
            }
        }
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        match self.reader() {
            Some(reader) => reader.deserialize_seq(visitor),
            None => {
                self.bare();
                StandIn.deserialize_seq(visitor)
            }
        }
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Fault> {
        match self.reader() {
            Some(reader) => reader.deserialize_struct(self.name, fields, visitor),
            None => {
                self.bare();
                StandIn.deserialize_struct(self.name, fields, visitor)
            }
        }
    }
}
