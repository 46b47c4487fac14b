//! Reads names, constants and options out of small subtrees.
//!
//! Each reader takes exactly one shape and answers None for every other; what None means is the caller's to say.

use super::super::parse::{pb, NodeEnum};
use crate::engine::operation::Fact;

/// The strings of a list of nothing but strings.
pub(crate) fn strings(nodes: &[pb::Node]) -> Option<Vec<&str>> {
    let text = |node| match node {
        &pb::Node {
            node: Some(NodeEnum::String(ref text)),
        } => Some(text.sval.as_str()),
        _ => None,
    };
    nodes.iter().map(text).collect()
}

/// A name with or without a schema; a database before the schema is dropped, as the server only takes its own.
pub(crate) fn qualified(nodes: &[pb::Node]) -> Option<(Option<&str>, &str)> {
    match strings(nodes)?.as_slice() {
        [name] => Some((None, name)),
        [schema, name] | [_, schema, name] => Some((Some(schema), name)),
        _ => None,
    }
}

/// A string constant.
pub(crate) fn literal(node: &pb::Node) -> Option<&str> {
    match node.node.as_ref()? {
        NodeEnum::AConst(pb::AConst {
            val: Some(pb::a_const::Val::Sval(text)),
            ..
        }) => Some(&text.sval),
        _ => None,
    }
}

/// The value of a SET, where it is one constant, as text.
pub(crate) fn constant(args: &[pb::Node]) -> Option<String> {
    use pb::a_const::Val;
    let [argument] = args else { return None };
    let NodeEnum::AConst(constant) = argument.node.as_ref()? else {
        return None;
    };
    Some(match constant.val.as_ref()? {
        Val::Sval(text) => text.sval.clone(),
        Val::Ival(number) => number.ival.to_string(),
        Val::Fval(number) => number.fval.clone(),
        Val::Boolval(truth) => truth.boolval.to_string(),
        Val::Bsval(_) => return None,
    })
}

/// An option as a boolean, as the server reads one: no value means true. Anything it would refuse is true, too.
pub(crate) fn is_true(option: &pb::DefElem) -> bool {
    let integer = |value: i32| value != 0;
    let word = |word: &str| !(word.eq_ignore_ascii_case("false") || word.eq_ignore_ascii_case("off") || word == "0");
    match option.arg.as_ref().and_then(|arg| arg.node.as_ref()) {
        Some(NodeEnum::Integer(number)) => integer(number.ival),
        Some(NodeEnum::String(text)) => word(&text.sval),
        Some(NodeEnum::Boolean(truth)) => truth.boolval,
        Some(NodeEnum::AConst(constant)) => match constant.val.as_ref() {
            Some(pb::a_const::Val::Ival(number)) => integer(number.ival),
            Some(pb::a_const::Val::Boolval(truth)) => truth.boolval,
            Some(pb::a_const::Val::Sval(text)) => word(&text.sval),
            _ => true,
        },
        _ => true,
    }
}

/// The value of a LIMIT: None without one, unknown where it is computed, bound, or WITH TIES.
pub(crate) fn top_limit(count: Option<&pb::Node>, option: i32) -> Fact<Option<i64>> {
    let Some(node) = count.and_then(|node| node.node.as_ref()) else {
        return Fact::Known(None);
    };
    if pb::LimitOption::try_from(option) != Ok(pb::LimitOption::Count) {
        return Fact::Unknown;
    }
    match node {
        NodeEnum::AConst(constant) => match constant.val.as_ref() {
            None if constant.isnull => Fact::Known(None),
            Some(pb::a_const::Val::Ival(number)) => Fact::Known(Some(i64::from(number.ival))),
            _ => Fact::Unknown,
        },
        _ => Fact::Unknown,
    }
}

/// VALUES lists and nothing else: what INSERT … VALUES writes is no query of its own.
pub(crate) fn is_values_only(select: &pb::SelectStmt) -> bool {
    !select.values_lists.is_empty()
        && select.with_clause.is_none()
        && select.sort_clause.is_empty()
        && select.limit_count.is_none()
        && select.limit_offset.is_none()
        && select.locking_clause.is_empty()
        && select.larg.is_none()
        && select.rarg.is_none()
}

/// What `sql.objects` calls a kind of object.
pub(crate) fn object_label(kind: i32) -> Option<&'static str> {
    use pb::ObjectType as O;
    Some(match O::try_from(kind).ok()? {
        O::Undefined => return None,
        O::ObjectTable => "Table",
        O::ObjectView => "View",
        O::ObjectMatview => "MaterializedView",
        O::ObjectForeignTable => "ForeignTable",
        O::ObjectIndex => "Index",
        O::ObjectSequence => "Sequence",
        O::ObjectColumn => "Column",
        O::ObjectFunction | O::ObjectRoutine => "Function",
        O::ObjectProcedure => "Procedure",
        O::ObjectAggregate => "Aggregate",
        O::ObjectSchema => "Schema",
        O::ObjectDatabase => "Database",
        O::ObjectTrigger => "Trigger",
        O::ObjectEventTrigger => "EventTrigger",
        O::ObjectRule => "Rule",
        O::ObjectPolicy => "Policy",
        O::ObjectType | O::ObjectAttribute => "Type",
        O::ObjectDomain | O::ObjectDomconstraint => "Domain",
        O::ObjectTabconstraint | O::ObjectDefault => "Constraint",
        O::ObjectRole => "Role",
        O::ObjectExtension => "Extension",
        O::ObjectFdw => "ForeignDataWrapper",
        O::ObjectForeignServer => "ForeignServer",
        O::ObjectUserMapping => "UserMapping",
        O::ObjectPublication | O::ObjectPublicationNamespace | O::ObjectPublicationRel => "Publication",
        O::ObjectSubscription => "Subscription",
        O::ObjectStatisticExt => "StatisticsObject",
        O::ObjectTablespace => "Tablespace",
        O::ObjectLanguage => "Language",
        O::ObjectLargeobject => "LargeObject",
        O::ObjectCast => "Cast",
        O::ObjectOperator => "Operator",
        O::ObjectOpclass | O::ObjectAmop | O::ObjectAmproc => "OperatorClass",
        O::ObjectOpfamily => "OperatorFamily",
        O::ObjectCollation => "Collation",
        O::ObjectConversion => "Conversion",
        O::ObjectTransform => "Transform",
        O::ObjectAccessMethod => "AccessMethod",
        O::ObjectDefacl => "DefaultPrivileges",
        O::ObjectParameterAcl => "Parameter",
        O::ObjectTsconfiguration => "TextSearchConfiguration",
        O::ObjectTsdictionary => "TextSearchDictionary",
        O::ObjectTsparser => "TextSearchParser",
        O::ObjectTstemplate => "TextSearchTemplate",
    })
}
