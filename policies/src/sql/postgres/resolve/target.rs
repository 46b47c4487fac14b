//! Target lists: `*` expanded, output columns named as the server names them.
//!
//! Names matter because an outer query refers to them. A star over an item whose columns are not known leaves
//! the list open.

use std::rc::Rc;
use std::sync::Arc;

use super::super::analysis::Source;
use super::super::names;
use super::super::parse::pb;
use super::expr::split;
use super::scope::{Col, Cols, Item};
use super::Binder;
use pb::node::Node as N;

impl<'t> Binder<'t> {
    /// Binds a target list or a RETURNING list.
    pub(super) fn targets(&mut self, list: &'t [pb::Node]) -> Cols {
        let mut out = Cols::known(Vec::with_capacity(list.len()));
        for node in list {
            let Some(N::ResTarget(target)) = &node.node else {
                out.complete = false;
                continue;
            };
            let Some(val) = target.val.as_deref() else {
                out.complete = false;
                continue;
            };
            if let Some(expanded) = self.star(val) {
                out.complete &= expanded.complete;
                out.columns.extend(expanded.columns);
                continue;
            }
            let source = self.expr(val);
            let name = match target.name.as_str() {
                "" => figure_name(val, 0).unwrap_or("?column?"),
                given => names::truncated(given),
            };
            out.columns.push(Col {
                name: name.into(),
                source,
                plain: is_plain(val),
                constants: constant_of(val).into_iter().collect(),
            });
        }
        out
    }

    /// The columns of `*`, `t.*` or `(row).*`; None for anything else.
    fn star(&mut self, node: &'t pb::Node) -> Option<Cols> {
        match &node.node {
            Some(N::ColumnRef(reference)) => match split(reference) {
                (names, true) if names.is_empty() => Some(self.all_columns()),
                (names, true) => Some(match self.item_named(&names) {
                    Some(item) => self.expand(&item),
                    None => {
                        self.unknown("`*` of a name that is not found");
                        Cols::default()
                    }
                }),
                _ => None,
            },
            Some(N::AIndirection(indirection)) => {
                let last = indirection.indirection.last()?;
                if !matches!(&last.node, Some(N::AStar(_))) {
                    return None;
                }
                match self.row_argument(indirection) {
                    Some(item) if indirection.indirection.len() == 1 => Some(self.expand(&item)),
                    _ => {
                        // A composite of any other origin: its columns are those of its type, which is not known.
                        self.expr(node);
                        self.unknown("`*` of a composite value");
                        Some(Cols::default())
                    }
                }
            }
            _ => None,
        }
    }

    fn all_columns(&mut self) -> Cols {
        let items: Vec<Rc<Item>> = match self.frames.last() {
            Some(frame) => frame.items.iter().filter(|item| item.by_column).cloned().collect(),
            None => Vec::new(),
        };
        let mut out = Cols::known(Vec::new());
        for item in &items {
            let expanded = self.expand(item);
            out.complete &= expanded.complete;
            out.columns.extend(expanded.columns);
        }
        out
    }

    fn expand(&mut self, item: &Item) -> Cols {
        for column in &item.cols.columns {
            self.record.refer(self.catalog, &column.source);
        }
        if !item.cols.complete {
            self.unknown("`*` over a relation that is not known");
        }
        (*item.cols).clone()
    }
}

/// The text of a name node.
pub(super) fn text(node: &pb::Node) -> Option<&str> {
    match &node.node {
        Some(N::String(name)) => Some(names::truncated(&name.sval)),
        _ => None,
    }
}

/// Whether an expression is a parameter, a constant or DEFAULT, with casts or without.
pub(super) fn is_plain(node: &pb::Node) -> bool {
    let mut current = node;
    for _ in 0..16 {
        match &current.node {
            Some(N::AConst(_) | N::ParamRef(_) | N::SetToDefault(_)) => return true,
            Some(N::TypeCast(cast)) => match cast.arg.as_deref() {
                Some(arg) => current = arg,
                None => return false,
            },
            _ => return false,
        }
    }
    false
}

/// Where the constant of a plain expression stands, by byte offset. NULL, true and false are not counted: they are no
/// literals of the text.
pub(super) fn constant_of(node: &pb::Node) -> Option<usize> {
    let mut current = node;
    for _ in 0..16 {
        match &current.node {
            Some(N::AConst(constant)) => {
                let word = constant.isnull || matches!(constant.val, None | Some(pb::a_const::Val::Boolval(_)));
                return usize::try_from(constant.location).ok().filter(|_| !word);
            }
            Some(N::TypeCast(cast)) => current = cast.arg.as_deref()?,
            _ => return None,
        }
    }
    None
}

/// The name the server gives an output column without AS.
fn figure_name(node: &pb::Node, depth: u32) -> Option<&str> {
    if depth > 64 {
        return None;
    }
    let inner = depth.saturating_add(1);
    match node.node.as_ref()? {
        N::ColumnRef(reference) => reference.fields.iter().rev().find_map(text),
        N::AIndirection(indirection) => match indirection.indirection.iter().rev().find_map(text) {
            Some(field) => Some(field),
            None => figure_name(indirection.arg.as_deref()?, inner),
        },
        N::FuncCall(call) => call.funcname.last().and_then(text),
        N::AExpr(e) if e.kind == pb::AExprKind::AexprNullif as i32 => Some("nullif"),
        N::TypeCast(cast) => {
            let named = strong_name(cast.arg.as_deref(), inner);
            // A constant has no name of its own, the type gives it one.
            named.or_else(|| cast.type_name.as_ref()?.names.last().and_then(text))
        }
        N::CollateClause(collate) => figure_name(collate.arg.as_deref()?, inner),
        N::GroupingFunc(_) => Some("grouping"),
        N::MergeSupportFunc(_) => Some("merge_action"),
        N::SubLink(link) => sublink_name(link),
        N::CaseExpr(case) => strong_name(case.defresult.as_deref(), inner).or(Some("case")),
        N::AArrayExpr(_) => Some("array"),
        N::RowExpr(_) => Some("row"),
        N::CoalesceExpr(_) => Some("coalesce"),
        N::MinMaxExpr(e) if e.op == pb::MinMaxOp::IsGreatest as i32 => Some("greatest"),
        N::MinMaxExpr(_) => Some("least"),
        N::SqlvalueFunction(function) => value_function_name(function.op),
        N::XmlExpr(e) => xml_name(e.op),
        N::XmlSerialize(_) => Some("xmlserialize"),
        other => json_name(other),
    }
}

/// The name of what stands under casts, unless that is a name of last resort.
fn strong_name(node: Option<&pb::Node>, depth: u32) -> Option<&str> {
    let mut current = node?;
    for _ in 0..64 {
        match current.node.as_ref()? {
            N::TypeCast(cast) => current = cast.arg.as_deref()?,
            N::CaseExpr(case) => return strong_name(case.defresult.as_deref(), depth.saturating_add(1)),
            _ => break,
        }
    }
    if depth > 64 {
        return None;
    }
    figure_name(current, depth)
}

fn sublink_name(link: &pb::SubLink) -> Option<&str> {
    match pb::SubLinkType::try_from(link.sub_link_type).ok()? {
        pb::SubLinkType::ExistsSublink => Some("exists"),
        pb::SubLinkType::ArraySublink => Some("array"),
        pb::SubLinkType::ExprSublink => {
            let Some(N::SelectStmt(select)) = &link.subselect.as_ref()?.node else {
                return None;
            };
            let mut leftmost = select.as_ref();
            while let Some(left) = leftmost.larg.as_deref() {
                leftmost = left;
            }
            let Some(N::ResTarget(first)) = &leftmost.target_list.first()?.node else {
                return None;
            };
            match first.name.as_str() {
                "" => figure_name(first.val.as_deref()?, 32),
                given => Some(names::truncated(given)),
            }
        }
        _ => None,
    }
}

fn value_function_name(op: i32) -> Option<&'static str> {
    use pb::SqlValueFunctionOp as Op;
    Some(match Op::try_from(op).ok()? {
        Op::SvfopCurrentDate => "current_date",
        Op::SvfopCurrentTime | Op::SvfopCurrentTimeN => "current_time",
        Op::SvfopCurrentTimestamp | Op::SvfopCurrentTimestampN => "current_timestamp",
        Op::SvfopLocaltime | Op::SvfopLocaltimeN => "localtime",
        Op::SvfopLocaltimestamp | Op::SvfopLocaltimestampN => "localtimestamp",
        Op::SvfopCurrentRole => "current_role",
        Op::SvfopCurrentUser => "current_user",
        Op::SvfopUser => "user",
        Op::SvfopSessionUser => "session_user",
        Op::SvfopCurrentCatalog => "current_catalog",
        Op::SvfopCurrentSchema => "current_schema",
        Op::SqlvalueFunctionOpUndefined => return None,
    })
}

fn xml_name(op: i32) -> Option<&'static str> {
    use pb::XmlExprOp as Op;
    Some(match Op::try_from(op).ok()? {
        Op::IsXmlconcat => "xmlconcat",
        Op::IsXmlelement => "xmlelement",
        Op::IsXmlforest => "xmlforest",
        Op::IsXmlparse => "xmlparse",
        Op::IsXmlpi => "xmlpi",
        Op::IsXmlroot => "xmlroot",
        _ => return None,
    })
}

fn json_name(node: &N) -> Option<&'static str> {
    Some(match node {
        N::JsonObjectConstructor(_) => "json_object",
        N::JsonArrayConstructor(_) | N::JsonArrayQueryConstructor(_) => "json_array",
        N::JsonObjectAgg(_) => "json_objectagg",
        N::JsonArrayAgg(_) => "json_arrayagg",
        N::JsonParseExpr(_) => "json",
        N::JsonScalarExpr(_) => "json_scalar",
        N::JsonSerializeExpr(_) => "json_serialize",
        N::JsonFuncExpr(e) => match pb::JsonExprOp::try_from(e.op).ok()? {
            pb::JsonExprOp::JsonExistsOp => "json_exists",
            pb::JsonExprOp::JsonQueryOp => "json_query",
            pb::JsonExprOp::JsonValueOp => "json_value",
            _ => return None,
        },
        _ => return None,
    })
}

/// A column list as names.
pub(super) fn name_list(nodes: &[pb::Node]) -> Vec<Arc<str>> {
    nodes.iter().filter_map(text).map(Arc::from).collect()
}

/// Renames the first columns as an alias list says.
pub(super) fn renamed(mut cols: Cols, aliases: &[pb::Node]) -> Cols {
    let names = name_list(aliases);
    if !cols.complete {
        // Positions are not known either, so neither is which column an alias means.
        cols.columns = names.iter().map(|name| Col::new(name, Source::Unknown)).collect();
        return cols;
    }
    for (column, alias) in cols.columns.iter_mut().zip(names) {
        column.name = alias;
    }
    cols
}
