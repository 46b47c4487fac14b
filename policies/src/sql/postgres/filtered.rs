//! `sql.filtered`: whether a condition compares a column of the target with something other than itself or a
//! constant truth.
//!
//! It promises nothing about how many rows a condition keeps; it tells `WHERE id = 7` from `WHERE true` and
//! its disguises. What is not a comparison anybody would write as a filter does not count as one.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::parse::pb;
use pb::node::Node as N;

/// The target of an UPDATE or DELETE, and what column references mean.
pub(super) struct Target<'a> {
    /// Item and column of each reference, by its location.
    pub refs: &'a HashMap<i32, (u32, Arc<str>)>,
    /// The target's item.
    pub item: u32,
    /// Whether a column of the target is declared NOT NULL.
    pub not_null: &'a dyn Fn(&str) -> bool,
}

/// Whether a condition narrows the target.
pub(super) fn narrows(condition: &pb::Node, target: &Target<'_>) -> bool {
    holds(condition, target, true, 0)
}

/// `sense` is false under an odd number of NOTs, where AND and OR change places.
fn holds(node: &pb::Node, target: &Target<'_>, sense: bool, depth: u32) -> bool {
    if depth > 1_000 {
        return false;
    }
    let deeper = depth.saturating_add(1);
    let Some(inner) = &node.node else { return false };
    match inner {
        N::BoolExpr(e) => match pb::BoolExprType::try_from(e.boolop) {
            Ok(pb::BoolExprType::NotExpr) => e.args.iter().all(|arg| holds(arg, target, !sense, deeper)),
            Ok(kind) => {
                let every = (kind == pb::BoolExprType::OrExpr) == sense;
                let mut args = e.args.iter().map(|arg| holds(arg, target, sense, deeper));
                if every {
                    args.all(|narrows| narrows)
                } else {
                    args.any(|narrows| narrows)
                }
            }
            Err(_) => false,
        },
        N::AExpr(e) => compares(e.lexpr.as_deref(), e.rexpr.as_deref(), target),
        N::NullTest(e) => null_test(e, target, sense),
        N::BooleanTest(e) => {
            use pb::BoolTestType as Test;
            let Some(arg) = e.arg.as_deref() else { return false };
            match Test::try_from(e.booltesttype) {
                Ok(Test::IsTrue | Test::IsNotFalse) => holds(arg, target, sense, deeper),
                Ok(Test::IsFalse | Test::IsNotTrue) => holds(arg, target, !sense, deeper),
                _ => false,
            }
        }
        // A boolean column is compared with true.
        N::ColumnRef(_) => !Columns::of(node, target).own.is_empty(),
        N::SubLink(e) => sublink(e, target, sense, deeper),
        N::CurrentOfExpr(_) => sense,
        _ => false,
    }
}

/// Some column of the target on one side, and none of the same on the other or twice on the same.
fn compares(left: Option<&pb::Node>, right: Option<&pb::Node>, target: &Target<'_>) -> bool {
    let mut columns = Columns::default();
    for side in [left, right].into_iter().flatten() {
        columns.add(side, target);
    }
    !columns.own.is_empty() && !columns.repeated
}

fn null_test(e: &pb::NullTest, target: &Target<'_>, sense: bool) -> bool {
    let Some(arg) = e.arg.as_deref() else { return false };
    let columns = Columns::of(arg, target);
    let is_null = (e.nulltesttype == pb::NullTestType::IsNull as i32) == sense;
    // `IS NOT NULL` on a column that never is null is a constant truth.
    let open = is_null || columns.own.iter().any(|name| !(target.not_null)(name));
    matches!(&arg.node, Some(N::ColumnRef(_))) && !columns.own.is_empty() && open
}

fn sublink(e: &pb::SubLink, target: &Target<'_>, sense: bool, depth: u32) -> bool {
    let query = match e.subselect.as_deref().and_then(|node| node.node.as_ref()) {
        Some(N::SelectStmt(select)) => select,
        _ => return false,
    };
    match pb::SubLinkType::try_from(e.sub_link_type) {
        // The condition inside ties the rows to the target's.
        Ok(pb::SubLinkType::ExistsSublink) => {
            let tied = |node| {
                if sense {
                    holds(node, target, true, depth)
                } else {
                    compares_any(node, target, depth)
                }
            };
            query.where_clause.as_deref().is_some_and(tied)
        }
        Ok(pb::SubLinkType::AnySublink | pb::SubLinkType::AllSublink) => {
            let Some(test) = e.testexpr.as_deref() else {
                return false;
            };
            let mut columns = Columns::of(test, target);
            for node in query.target_list.iter().chain(query.where_clause.as_deref()) {
                columns.add_repeats(node, target);
            }
            !columns.own.is_empty() && !columns.repeated
        }
        _ => false,
    }
}

/// NOT EXISTS: the condition inside keeps a row when it is false, so any comparison in it will do.
fn compares_any(node: &pb::Node, target: &Target<'_>, depth: u32) -> bool {
    holds(node, target, true, depth)
}

/// Columns of the target that an expression refers to.
#[derive(Default)]
struct Columns {
    own: HashSet<Arc<str>>,
    repeated: bool,
}

impl Columns {
    fn of(node: &pb::Node, target: &Target<'_>) -> Self {
        let mut columns = Columns::default();
        columns.add(node, target);
        columns
    }

    fn add(&mut self, node: &pb::Node, target: &Target<'_>) {
        self.each(node, target, |columns, name| {
            if !columns.own.insert(Arc::clone(name)) {
                columns.repeated = true;
            }
        });
    }

    /// Only looks whether a column already seen occurs again.
    fn add_repeats(&mut self, node: &pb::Node, target: &Target<'_>) {
        self.each(node, target, |columns, name| {
            columns.repeated |= columns.own.contains(name)
        });
    }

    fn each(&mut self, node: &pb::Node, target: &Target<'_>, mut see: impl FnMut(&mut Self, &Arc<str>)) {
        let mut work = vec![node];
        while let Some(node) = work.pop() {
            match &node.node {
                Some(N::ColumnRef(reference)) => match target.refs.get(&reference.location) {
                    Some((item, name)) if *item == target.item => see(self, name),
                    _ => {}
                },
                Some(N::AExpr(e)) => work.extend([&e.lexpr, &e.rexpr].into_iter().filter_map(|side| side.as_deref())),
                Some(N::TypeCast(e)) => work.extend(e.arg.as_deref()),
                Some(N::FuncCall(e)) => work.extend(&e.args),
                Some(N::AIndirection(e)) => work.extend(e.arg.as_deref()),
                Some(N::SubLink(e)) => {
                    work.extend(e.testexpr.as_deref());
                    if let Some(N::SelectStmt(select)) = e.subselect.as_deref().and_then(|node| node.node.as_ref()) {
                        work.extend(&select.target_list);
                        work.extend(select.where_clause.as_deref());
                    }
                }
                Some(other) => work.extend(super::resolve::operands_of(other).unwrap_or_default()),
                None => {}
            }
        }
    }
}
