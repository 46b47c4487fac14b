//! The operands of expressions that do nothing but compute from them.
//!
//! An expression that is not listed has no operands anybody knows, and its value is unknown.

use super::super::parse::pb;
use pb::node::Node as N;

/// The operands of a node; None for a node that is not a plain computation.
pub fn of(node: &N) -> Option<Vec<&pb::Node>> {
    let mut found: Vec<&pb::Node> = Vec::new();
    match node {
        N::BoolExpr(e) => found.extend(&e.args),
        N::CaseExpr(e) => {
            found.extend(boxed(&e.arg));
            found.extend(&e.args);
            found.extend(boxed(&e.defresult));
        }
        N::CaseWhen(e) => {
            found.extend(boxed(&e.expr));
            found.extend(boxed(&e.result));
        }
        N::CoalesceExpr(e) => found.extend(&e.args),
        N::MinMaxExpr(e) => found.extend(&e.args),
        N::NullTest(e) => found.extend(boxed(&e.arg)),
        N::BooleanTest(e) => found.extend(boxed(&e.arg)),
        N::NullIfExpr(e) => found.extend(&e.args),
        N::RowExpr(e) => found.extend(&e.args),
        N::AArrayExpr(e) => found.extend(&e.elements),
        N::CollateClause(e) => found.extend(boxed(&e.arg)),
        N::List(e) => found.extend(&e.items),
        N::NamedArgExpr(e) => found.extend(boxed(&e.arg)),
        N::GroupingFunc(e) => found.extend(&e.args),
        N::GroupingSet(e) => found.extend(&e.content),
        N::ResTarget(e) => found.extend(boxed(&e.val)),
        N::XmlExpr(e) => {
            found.extend(&e.named_args);
            found.extend(&e.args);
        }
        N::XmlSerialize(e) => found.extend(boxed(&e.expr)),
        _ => return json(node),
    }
    Some(found)
}

fn json(node: &N) -> Option<Vec<&pb::Node>> {
    let mut found: Vec<&pb::Node> = Vec::new();
    match node {
        N::JsonValueExpr(e) => found.extend(value(e)),
        N::JsonKeyValue(e) => key_value(e, &mut found),
        N::JsonArgument(e) => found.extend(e.val.iter().flat_map(|v| value(v))),
        N::JsonBehavior(e) => found.extend(boxed(&e.expr)),
        N::JsonObjectConstructor(e) => found.extend(&e.exprs),
        N::JsonArrayConstructor(e) => found.extend(&e.exprs),
        N::JsonScalarExpr(e) => found.extend(boxed(&e.expr)),
        N::JsonIsPredicate(e) => found.extend(boxed(&e.expr)),
        N::JsonParseExpr(e) => found.extend(e.expr.iter().flat_map(|v| value(v))),
        N::JsonSerializeExpr(e) => found.extend(e.expr.iter().flat_map(|v| value(v))),
        N::JsonFuncExpr(e) => {
            found.extend(e.context_item.iter().flat_map(|v| value(v)));
            found.extend(boxed(&e.pathspec));
            found.extend(&e.passing);
            for behavior in [&e.on_empty, &e.on_error].into_iter().flatten() {
                found.extend(boxed(&behavior.expr));
            }
        }
        N::JsonObjectAgg(e) => {
            e.arg.iter().for_each(|pair| key_value(pair, &mut found));
            e.constructor.iter().for_each(|each| aggregate(each, &mut found));
        }
        N::JsonArrayAgg(e) => {
            found.extend(e.arg.iter().flat_map(|v| value(v)));
            e.constructor.iter().for_each(|each| aggregate(each, &mut found));
        }
        _ => return None,
    }
    Some(found)
}

fn boxed(node: &Option<Box<pb::Node>>) -> Option<&pb::Node> {
    node.as_deref()
}

pub(super) fn value(e: &pb::JsonValueExpr) -> impl Iterator<Item = &pb::Node> {
    [&e.raw_expr, &e.formatted_expr]
        .into_iter()
        .filter_map(|each| each.as_deref())
}

fn key_value<'t>(e: &'t pb::JsonKeyValue, found: &mut Vec<&'t pb::Node>) {
    found.extend(boxed(&e.key));
    found.extend(e.value.iter().flat_map(|v| value(v)));
}

fn aggregate<'t>(e: &'t pb::JsonAggConstructor, found: &mut Vec<&'t pb::Node>) {
    found.extend(boxed(&e.agg_filter));
    let sorted = e.agg_order.iter().map(|by| match &by.node {
        Some(N::SortBy(sort)) => sort.node.as_deref().unwrap_or(by),
        _ => by,
    });
    found.extend(sorted);
    if let Some(window) = &e.over {
        found.extend(&window.partition_clause);
        found.extend(window.order_clause.iter().map(|by| match &by.node {
            Some(N::SortBy(sort)) => sort.node.as_deref().unwrap_or(by),
            _ => by,
        }));
        found.extend(boxed(&window.start_offset));
        found.extend(boxed(&window.end_offset));
    }
}
