//! Queries: SELECT, INSERT, UPDATE, DELETE, MERGE and the clauses they share.
//!
//! Each adds its command, at any depth. A relation in FROM is read; the target of a write carries the write's own
//! command.

use super::super::parse::pb;
use super::super::parse::NodeEnum;
use super::name::top_limit;
use super::syntax::{FunctionKind, Problem, RelationRef, RelationRole};
use super::{Place, Walk};
use crate::api::access_policy::SqlCommand as C;
use crate::sql::facts::Effects;

impl<'a> Walk<'a> {
    pub(super) fn alias(&mut self, node: &'a pb::Alias, at: Place) {
        let pb::Alias { aliasname: _, colnames } = node;
        self.all(colnames, at);
    }

    pub(super) fn range_var(&mut self, node: &'a pb::RangeVar, at: Place) {
        let pb::RangeVar {
            catalogname,
            schemaname,
            relname,
            inh: _,
            relpersistence,
            alias: _,
            location,
        } = node;
        let part = |text: &str| (!text.is_empty()).then(|| text.into());
        let role = match at.role {
            RelationRole::Created { .. } => RelationRole::Created {
                temporary: relpersistence == "t",
            },
            role => role,
        };
        self.found.relations.push(RelationRef {
            location: *location,
            database: part(catalogname),
            schema: part(schemaname),
            name: relname.as_str().into(),
            command: at.command,
            role,
        });
    }

    pub(super) fn clause_into(&mut self, node: &'a pb::IntoClause, at: Place) {
        let pb::IntoClause {
            rel,
            col_names,
            access_method: _,
            options,
            on_commit: _,
            table_space_name: _,
            view_query,
            skip_data: _,
        } = node;
        self.command(C::Create, Effects::DEFINE);
        self.found.effects.insert(Effects::WRITE);
        let created = at.with(C::Create, RelationRole::Created { temporary: false });
        if let Some(relation) = rel {
            self.range_var(relation, created);
        }
        self.all(options, at);
        if view_query.is_some() {
            self.problem(Problem::Node("IntoClause"));
        }
        self.all(col_names, at);
    }

    pub(super) fn join_expr(&mut self, node: &'a pb::JoinExpr, at: Place) {
        let pb::JoinExpr {
            jointype: _,
            is_natural,
            larg,
            rarg,
            using_clause,
            join_using_alias,
            quals,
            alias: _,
            rtindex: _,
        } = node;
        if *is_natural || !using_clause.is_empty() {
            self.implied_operator("=");
        }
        if join_using_alias.is_some() {
            self.since(14, "JOIN USING with an alias");
        }
        self.maybe(larg, at);
        self.maybe(rarg, at);
        self.all(using_clause, at);
        self.maybe(quals, at);
    }

    pub(super) fn res_target(&mut self, node: &'a pb::ResTarget, at: Place) {
        let pb::ResTarget {
            name: _,
            indirection,
            val,
            location: _,
        } = node;
        self.all(indirection, at);
        self.maybe(val, at);
    }

    pub(super) fn sort_by(&mut self, node: &'a pb::SortBy, at: Place) {
        let pb::SortBy {
            node,
            sortby_dir: _,
            sortby_nulls: _,
            use_op,
            location: _,
        } = node;
        if !use_op.is_empty() {
            self.operator(use_op);
        }
        self.maybe(node, at);
    }

    pub(super) fn window_def(&mut self, node: &'a pb::WindowDef, at: Place) {
        let pb::WindowDef {
            name: _,
            refname: _,
            partition_clause,
            order_clause,
            frame_options: _,
            start_offset,
            end_offset,
            location: _,
        } = node;
        self.all(partition_clause, at);
        self.all(order_clause, at);
        self.maybe(start_offset, at);
        self.maybe(end_offset, at);
    }

    pub(super) fn range_subselect(&mut self, node: &'a pb::RangeSubselect, at: Place) {
        let pb::RangeSubselect {
            lateral: _,
            subquery,
            alias: _,
        } = node;
        self.maybe(subquery, at);
    }

    pub(super) fn range_function(&mut self, node: &'a pb::RangeFunction, at: Place) {
        let pb::RangeFunction {
            lateral: _,
            ordinality: _,
            is_rowsfrom: _,
            functions,
            alias: _,
            coldeflist,
        } = node;
        for function in functions {
            // Each is a pair: the call, and its own column definitions or nothing.
            match function.node.as_ref() {
                Some(NodeEnum::List(pair)) => self.all_or_empty(&pair.items, at),
                _ => self.problem(Problem::Value("function in FROM")),
            }
        }
        self.all(coldeflist, at);
    }

    pub(super) fn range_table_func(&mut self, node: &'a pb::RangeTableFunc, at: Place) {
        let pb::RangeTableFunc {
            lateral: _,
            docexpr,
            rowexpr,
            namespaces,
            columns,
            alias: _,
            location: _,
        } = node;
        self.maybe(docexpr, at);
        self.maybe(rowexpr, at);
        self.all(namespaces, at);
        self.all(columns, at);
    }

    pub(super) fn range_table_func_col(&mut self, node: &'a pb::RangeTableFuncCol, at: Place) {
        let pb::RangeTableFuncCol {
            colname: _,
            type_name,
            for_ordinality: _,
            is_not_null: _,
            colexpr,
            coldefexpr,
            location: _,
        } = node;
        if let Some(inner) = type_name {
            self.type_name(inner, at);
        }
        self.maybe(colexpr, at);
        self.maybe(coldefexpr, at);
    }

    pub(super) fn range_table_sample(&mut self, node: &'a pb::RangeTableSample, at: Place) {
        let pb::RangeTableSample {
            relation,
            method,
            args,
            repeatable,
            location: _,
        } = node;
        match super::name::qualified(method) {
            Some((None | Some("pg_catalog"), "bernoulli" | "system")) => {}
            Some(name) => self.function(FunctionKind::Call, name, None, None),
            None => self.problem(Problem::Value("sampling method")),
        }
        self.maybe(relation, at);
        self.all(args, at);
        self.maybe(repeatable, at);
    }

    pub(super) fn locking_clause(&mut self, node: &'a pb::LockingClause, _at: Place) {
        let pb::LockingClause {
            locked_rels,
            strength: _,
            wait_policy: _,
        } = node;
        self.found.effects.insert(Effects::LOCK);
        // The names are aliases of FROM items, not relations of their own.
        for relation in locked_rels {
            if !matches!(relation.node, Some(NodeEnum::RangeVar(_))) {
                self.problem(Problem::Value("locking clause"));
            }
        }
    }

    pub(super) fn grouping_set(&mut self, node: &'a pb::GroupingSet, at: Place) {
        let pb::GroupingSet {
            kind: _,
            content,
            location: _,
        } = node;
        self.all(content, at);
    }

    pub(super) fn with_clause(&mut self, node: &'a pb::WithClause, at: Place) {
        let pb::WithClause {
            ctes,
            recursive: _,
            location: _,
        } = node;
        self.all(ctes, at);
    }

    pub(super) fn infer_clause(&mut self, node: &'a pb::InferClause, at: Place) {
        let pb::InferClause {
            index_elems,
            where_clause,
            conname: _,
            location: _,
        } = node;
        self.all(index_elems, at);
        self.maybe(where_clause, at);
    }

    pub(super) fn on_conflict_clause(&mut self, node: &'a pb::OnConflictClause, at: Place) {
        let pb::OnConflictClause {
            action,
            infer,
            target_list,
            where_clause,
            location: _,
        } = node;
        match pb::OnConflictAction::try_from(*action) {
            Ok(pb::OnConflictAction::OnconflictNothing) => {}
            Ok(pb::OnConflictAction::OnconflictUpdate) => self.command(C::Update, Effects::WRITE),
            _ => self.problem(Problem::Value("ON CONFLICT action")),
        }
        if let Some(inner) = infer {
            self.infer_clause(inner, at);
        }
        self.all(target_list, at);
        self.maybe(where_clause, at);
    }

    pub(super) fn cte_search_clause(&mut self, node: &'a pb::CteSearchClause, at: Place) {
        let pb::CteSearchClause {
            search_col_list,
            search_breadth_first: _,
            search_seq_column: _,
            location: _,
        } = node;
        self.since(14, "SEARCH");
        self.all(search_col_list, at);
    }

    pub(super) fn cte_cycle_clause(&mut self, node: &'a pb::CteCycleClause, at: Place) {
        let pb::CteCycleClause {
            cycle_col_list,
            cycle_mark_column: _,
            cycle_mark_value,
            cycle_mark_default,
            cycle_path_column: _,
            location: _,
            cycle_mark_type: _,
            cycle_mark_typmod: _,
            cycle_mark_collation: _,
            cycle_mark_neop: _,
        } = node;
        self.since(14, "CYCLE");
        self.implied_operator("=");
        self.implied_operator("<>");
        self.all(cycle_col_list, at);
        self.maybe(cycle_mark_value, at);
        self.maybe(cycle_mark_default, at);
    }

    pub(super) fn common_table_expr(&mut self, node: &'a pb::CommonTableExpr, at: Place) {
        let pb::CommonTableExpr {
            ctename: _,
            aliascolnames,
            ctematerialized: _,
            ctequery,
            search_clause,
            cycle_clause,
            location: _,
            cterecursive: _,
            cterefcount: _,
            ctecolnames,
            ctecoltypes,
            ctecoltypmods,
            ctecolcollations,
        } = node;
        self.all(aliascolnames, at);
        self.maybe(ctequery, at);
        if let Some(inner) = search_clause {
            self.cte_search_clause(inner, at);
        }
        if let Some(inner) = cycle_clause {
            self.cte_cycle_clause(inner, at);
        }
        if !(ctecolnames.is_empty()
            && ctecoltypes.is_empty()
            && ctecoltypmods.is_empty()
            && ctecolcollations.is_empty())
        {
            self.problem(Problem::Node("CommonTableExpr"));
        }
    }

    pub(super) fn merge_when_clause(&mut self, node: &'a pb::MergeWhenClause, at: Place) {
        let pb::MergeWhenClause {
            match_kind,
            command_type,
            r#override: _,
            condition,
            target_list,
            values,
        } = node;
        match pb::MergeMatchKind::try_from(*match_kind) {
            Ok(pb::MergeMatchKind::MergeWhenMatched | pb::MergeMatchKind::MergeWhenNotMatchedByTarget) => {}
            Ok(pb::MergeMatchKind::MergeWhenNotMatchedBySource) => self.since(17, "WHEN NOT MATCHED BY SOURCE"),
            _ => self.problem(Problem::Value("MERGE clause")),
        }
        match pb::CmdType::try_from(*command_type) {
            Ok(pb::CmdType::CmdInsert) => self.command(C::Insert, Effects::WRITE),
            Ok(pb::CmdType::CmdUpdate) => self.command(C::Update, Effects::WRITE),
            Ok(pb::CmdType::CmdDelete) => self.command(C::Delete, Effects::WRITE),
            Ok(pb::CmdType::CmdNothing) => {}
            _ => self.problem(Problem::Value("MERGE action")),
        }
        self.maybe(condition, at);
        self.all(target_list, at);
        self.all(values, at);
    }

    pub(super) fn returning_option(&mut self, node: &'a pb::ReturningOption, _at: Place) {
        let pb::ReturningOption {
            option: _,
            value: _,
            location: _,
        } = node;
        self.since(18, "RETURNING WITH (OLD, NEW)");
    }

    pub(super) fn returning_clause(&mut self, node: &'a pb::ReturningClause, at: Place) {
        let pb::ReturningClause { options, exprs } = node;
        self.found.returning = true;
        self.command(C::Select, Effects::READ);
        self.all(options, at);
        self.all(exprs, at);
    }

    pub(super) fn raw_stmt(&mut self, node: &'a pb::RawStmt, at: Place) {
        let pb::RawStmt {
            stmt,
            stmt_location: _,
            stmt_len: _,
        } = node;
        self.maybe(stmt, at);
    }

    pub(super) fn insert_stmt(&mut self, node: &'a pb::InsertStmt, at: Place) {
        let pb::InsertStmt {
            relation,
            cols,
            select_stmt,
            on_conflict_clause,
            returning_clause,
            with_clause,
            r#override: _,
        } = node;
        self.command(C::Insert, Effects::WRITE);
        let inner = at.query(C::Insert);
        if let Some(relation) = relation {
            self.range_var(relation, inner);
        }
        match select_stmt.as_ref().and_then(|node| node.node.as_ref()) {
            Some(NodeEnum::SelectStmt(select)) if super::name::is_values_only(select) => {
                self.all(&select.values_lists, at.query(C::Select));
            }
            _ => self.maybe(select_stmt, at),
        }
        self.all(cols, inner);
        if let Some(clause) = on_conflict_clause {
            self.on_conflict_clause(clause, at.query(C::Select));
        }
        if let Some(clause) = returning_clause {
            self.returning_clause(clause, at.query(C::Select));
        }
        if let Some(clause) = with_clause {
            self.with_clause(clause, at.query(C::Select));
        }
    }

    pub(super) fn delete_stmt(&mut self, node: &'a pb::DeleteStmt, at: Place) {
        let pb::DeleteStmt {
            relation,
            using_clause,
            where_clause,
            returning_clause,
            with_clause,
        } = node;
        self.command(C::Delete, Effects::WRITE);
        if let Some(relation) = relation {
            self.range_var(relation, at.query(C::Delete));
        }
        let at = at.query(C::Select);
        self.all(using_clause, at);
        self.maybe(where_clause, at);
        if let Some(inner) = returning_clause {
            self.returning_clause(inner, at);
        }
        if let Some(inner) = with_clause {
            self.with_clause(inner, at);
        }
    }

    pub(super) fn update_stmt(&mut self, node: &'a pb::UpdateStmt, at: Place) {
        let pb::UpdateStmt {
            relation,
            target_list,
            where_clause,
            from_clause,
            returning_clause,
            with_clause,
        } = node;
        self.command(C::Update, Effects::WRITE);
        if let Some(relation) = relation {
            self.range_var(relation, at.query(C::Update));
        }
        let at = at.query(C::Select);
        self.all(target_list, at);
        self.maybe(where_clause, at);
        self.all(from_clause, at);
        if let Some(inner) = returning_clause {
            self.returning_clause(inner, at);
        }
        if let Some(inner) = with_clause {
            self.with_clause(inner, at);
        }
    }

    pub(super) fn merge_stmt(&mut self, node: &'a pb::MergeStmt, at: Place) {
        let pb::MergeStmt {
            relation,
            source_relation,
            join_condition,
            merge_when_clauses,
            returning_clause,
            with_clause,
        } = node;
        self.since(15, "MERGE");
        if returning_clause.is_some() {
            self.since(17, "RETURNING of MERGE");
        }
        self.command(C::Merge, Effects::WRITE);
        if let Some(relation) = relation {
            self.range_var(relation, at.query(C::Merge));
        }
        let at = at.query(C::Select);
        self.maybe(source_relation, at);
        self.maybe(join_condition, at);
        self.all(merge_when_clauses, at);
        if let Some(inner) = returning_clause {
            self.returning_clause(inner, at);
        }
        if let Some(inner) = with_clause {
            self.with_clause(inner, at);
        }
    }

    pub(super) fn select_stmt(&mut self, node: &'a pb::SelectStmt, at: Place) {
        let pb::SelectStmt {
            distinct_clause,
            into_clause,
            target_list,
            from_clause,
            where_clause,
            group_clause,
            group_distinct,
            having_clause,
            window_clause,
            values_lists,
            sort_clause,
            limit_offset,
            limit_count,
            limit_option,
            locking_clause,
            with_clause,
            op,
            all: _,
            larg,
            rarg,
        } = node;
        self.command(C::Select, Effects::READ);
        self.found.query = true;
        if at.top {
            self.found.limit = top_limit(limit_count.as_deref(), *limit_option);
        }
        if pb::LimitOption::try_from(*limit_option) == Ok(pb::LimitOption::WithTies) {
            self.since(13, "WITH TIES");
        }
        if *group_distinct {
            self.since(14, "GROUP BY DISTINCT");
        }
        match pb::SetOperation::try_from(*op) {
            Ok(pb::SetOperation::Undefined) | Err(_) => self.problem(Problem::Value("set operation")),
            Ok(_) => {}
        }
        let at = at.query(C::Select);
        // Plain DISTINCT is a list with one empty node.
        match distinct_clause.as_slice() {
            [only] if only.node.is_none() => {}
            list => self.all(list, at),
        }
        for arm in [larg, rarg].into_iter().flatten() {
            self.select(arm, at);
        }
        if let Some(clause) = into_clause {
            self.clause_into(clause, at);
        }
        self.all(target_list, at);
        self.all(from_clause, at);
        self.maybe(where_clause, at);
        self.all(group_clause, at);
        self.maybe(having_clause, at);
        self.all(window_clause, at);
        self.all(values_lists, at);
        self.all(sort_clause, at);
        self.maybe(limit_offset, at);
        self.maybe(limit_count, at);
        self.all(locking_clause, at);
        if let Some(inner) = with_clause {
            self.with_clause(inner, at);
        }
    }

    pub(super) fn return_stmt(&mut self, node: &'a pb::ReturnStmt, at: Place) {
        let pb::ReturnStmt { returnval } = node;
        self.since(14, "RETURN");
        self.maybe(returnval, at);
    }
}
