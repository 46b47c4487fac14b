//! Statements about relations: tables, indexes, views, sequences, rules, triggers, policies, COPY, maintenance.
//!
//! Relations named outside queries carry the statement's command; those inside a query that is part of the
//! definition are read as in any query.

use super::super::parse::pb;
use super::name::qualified;
use super::syntax::{FunctionKind, RelationRole};
use super::{Place, Walk};
use crate::api::access_policy::SqlCommand as C;
use crate::sql::facts::{CopyDirection, Effects};

impl<'a> Walk<'a> {
    pub(super) fn column_def(&mut self, node: &'a pb::ColumnDef, at: Place) {
        let pb::ColumnDef {
            colname: _,
            type_name,
            compression: _,
            inhcount: _,
            is_local: _,
            is_not_null: _,
            is_from_type: _,
            storage: _,
            storage_name: _,
            raw_default,
            cooked_default,
            identity: _,
            identity_sequence,
            generated: _,
            coll_clause,
            coll_oid: _,
            constraints,
            fdwoptions,
            location: _,
        } = node;
        if let Some(inner) = type_name {
            self.type_name(inner, at);
        }
        self.maybe(raw_default, at);
        self.maybe(cooked_default, at);
        if let Some(inner) = identity_sequence {
            self.range_var(inner, at);
        }
        if let Some(inner) = coll_clause {
            self.collate_clause(inner, at);
        }
        self.all(constraints, at);
        self.all(fdwoptions, at);
    }

    pub(super) fn table_like_clause(&mut self, node: &'a pb::TableLikeClause, at: Place) {
        let pb::TableLikeClause {
            relation,
            options: _,
            relation_oid: _,
        } = node;
        if let Some(inner) = relation {
            self.range_var(inner, at);
        }
    }

    pub(super) fn index_elem(&mut self, node: &'a pb::IndexElem, at: Place) {
        let pb::IndexElem {
            name: _,
            expr,
            indexcolname: _,
            collation,
            opclass,
            opclassopts,
            ordering: _,
            nulls_ordering: _,
        } = node;
        self.maybe(expr, at);
        self.all(collation, at);
        self.all(opclass, at);
        self.all(opclassopts, at);
    }

    pub(super) fn partition_elem(&mut self, node: &'a pb::PartitionElem, at: Place) {
        let pb::PartitionElem {
            name: _,
            expr,
            collation,
            opclass,
            location: _,
        } = node;
        self.maybe(expr, at);
        self.all(collation, at);
        self.all(opclass, at);
    }

    pub(super) fn partition_spec(&mut self, node: &'a pb::PartitionSpec, at: Place) {
        let pb::PartitionSpec {
            strategy: _,
            part_params,
            location: _,
        } = node;
        self.all(part_params, at);
    }

    pub(super) fn partition_bound_spec(&mut self, node: &'a pb::PartitionBoundSpec, at: Place) {
        let pb::PartitionBoundSpec {
            strategy: _,
            is_default: _,
            modulus: _,
            remainder: _,
            listdatums,
            lowerdatums,
            upperdatums,
            location: _,
        } = node;
        self.all(listdatums, at);
        self.all(lowerdatums, at);
        self.all(upperdatums, at);
    }

    pub(super) fn partition_range_datum(&mut self, node: &'a pb::PartitionRangeDatum, at: Place) {
        let pb::PartitionRangeDatum {
            kind: _,
            value,
            location: _,
        } = node;
        self.maybe(value, at);
    }

    pub(super) fn partition_cmd(&mut self, node: &'a pb::PartitionCmd, at: Place) {
        let pb::PartitionCmd {
            name,
            bound,
            concurrent: _,
        } = node;
        if let Some(inner) = name {
            self.range_var(inner, at);
        }
        if let Some(inner) = bound {
            self.partition_bound_spec(inner, at);
        }
    }

    pub(super) fn trigger_transition(&mut self, node: &'a pb::TriggerTransition, _at: Place) {
        let pb::TriggerTransition {
            name: _,
            is_new: _,
            is_table: _,
        } = node;
    }

    pub(super) fn alter_table_stmt(&mut self, node: &'a pb::AlterTableStmt, at: Place) {
        let pb::AlterTableStmt {
            relation,
            cmds,
            objtype,
            missing_ok: _,
        } = node;
        self.define_object(C::Alter, *objtype);
        let at = at.existing(C::Alter);
        if let Some(inner) = relation {
            self.range_var(inner, at);
        }
        self.all(cmds, at);
    }

    pub(super) fn alter_table_cmd(&mut self, node: &'a pb::AlterTableCmd, at: Place) {
        let pb::AlterTableCmd {
            subtype,
            name: _,
            num: _,
            newowner,
            def,
            behavior: _,
            missing_ok: _,
            recurse: _,
        } = node;
        if newowner.is_some() {
            self.found.effects.insert(Effects::GRANT);
        }
        if matches!(
            pb::AlterTableType::try_from(*subtype),
            Ok(pb::AlterTableType::Undefined) | Err(_)
        ) {
            self.problem(super::Problem::Value("ALTER TABLE action"));
        }
        self.maybe(def, at);
    }

    pub(super) fn at_alter_constraint(&mut self, node: &'a pb::AtAlterConstraint, _at: Place) {
        let pb::AtAlterConstraint {
            conname: _,
            alter_enforceability: _,
            is_enforced: _,
            alter_deferrability: _,
            deferrable: _,
            initdeferred: _,
            alter_inheritability: _,
            noinherit: _,
        } = node;
    }

    pub(super) fn replica_identity_stmt(&mut self, node: &'a pb::ReplicaIdentityStmt, _at: Place) {
        let pb::ReplicaIdentityStmt {
            identity_type: _,
            name: _,
        } = node;
    }

    pub(super) fn copy_stmt(&mut self, node: &'a pb::CopyStmt, at: Place) {
        let pb::CopyStmt {
            relation,
            query,
            attlist,
            is_from,
            is_program,
            filename,
            options,
            where_clause,
        } = node;
        let to_client = !*is_program && filename.is_empty();
        let command = match (to_client, *is_from) {
            (false, _) => {
                self.command(C::Copy, Effects::FILESYSTEM);
                C::Copy
            }
            (true, true) => {
                self.command(C::Insert, Effects::WRITE);
                self.found.copy = CopyDirection::In;
                C::Insert
            }
            (true, false) => {
                self.command(C::Select, Effects::READ);
                self.found.copy = CopyDirection::Out;
                C::Select
            }
        };
        if !to_client {
            // What a file or a program does with the data, or where it comes from, is beyond reach.
            self.found
                .effects
                .insert(if *is_from { Effects::WRITE } else { Effects::READ });
        }
        if let Some(relation) = relation {
            let role = if to_client {
                RelationRole::Query
            } else {
                RelationRole::Existing
            };
            self.range_var(relation, at.with(command, role));
        }
        let at = at.query(C::Select);
        self.maybe(query, at);
        self.all(attlist, at);
        self.all(options, at);
        self.maybe(where_clause, at);
    }

    pub(super) fn create_stmt(&mut self, node: &'a pb::CreateStmt, at: Place) {
        let pb::CreateStmt {
            relation,
            table_elts,
            inh_relations,
            partbound,
            partspec,
            of_typename,
            constraints,
            nnconstraints,
            options,
            oncommit: _,
            tablespacename: _,
            access_method: _,
            if_not_exists: _,
        } = node;
        self.define(C::Create, "Table");
        let at = at.existing(C::Create);
        if let Some(relation) = relation {
            self.range_var(relation, at.with(C::Create, RelationRole::Created { temporary: false }));
        }
        self.all(table_elts, at);
        self.all(inh_relations, at);
        if let Some(inner) = partbound {
            self.partition_bound_spec(inner, at);
        }
        if let Some(inner) = partspec {
            self.partition_spec(inner, at);
        }
        if let Some(inner) = of_typename {
            self.type_name(inner, at);
        }
        self.all(constraints, at);
        self.all(nnconstraints, at);
        self.all(options, at);
    }

    pub(super) fn constraint(&mut self, node: &'a pb::Constraint, at: Place) {
        let pb::Constraint {
            contype: _,
            conname: _,
            deferrable: _,
            initdeferred: _,
            is_enforced: _,
            skip_validation: _,
            initially_valid: _,
            is_no_inherit: _,
            raw_expr,
            cooked_expr,
            generated_when: _,
            generated_kind: _,
            nulls_not_distinct,
            keys,
            without_overlaps: _,
            including,
            exclusions,
            options,
            indexname: _,
            indexspace: _,
            reset_default_tblspc: _,
            access_method: _,
            where_clause,
            pktable,
            fk_attrs,
            pk_attrs,
            fk_with_period: _,
            pk_with_period: _,
            fk_matchtype: _,
            fk_upd_action: _,
            fk_del_action: _,
            fk_del_set_cols,
            old_conpfeqop,
            old_pktable_oid: _,
            location: _,
        } = node;
        if *nulls_not_distinct {
            self.since(15, "NULLS NOT DISTINCT");
        }
        for exclusion in exclusions {
            match exclusion.node.as_ref() {
                Some(super::super::parse::NodeEnum::List(pair)) => self.exclusion(&pair.items, at),
                _ => self.problem(super::Problem::Value("exclusion")),
            }
        }
        self.maybe(raw_expr, at);
        self.all(keys, at);
        self.all(including, at);
        self.all(options, at);
        self.maybe(where_clause, at);
        if let Some(inner) = pktable {
            self.range_var(inner, at);
        }
        self.all(fk_attrs, at);
        self.all(pk_attrs, at);
        self.all(fk_del_set_cols, at);
        if !old_conpfeqop.is_empty() || !cooked_expr.is_empty() {
            self.problem(super::Problem::Node("Constraint"));
        }
    }

    pub(super) fn alter_table_move_all_stmt(&mut self, node: &'a pb::AlterTableMoveAllStmt, at: Place) {
        let pb::AlterTableMoveAllStmt {
            orig_tablespacename: _,
            objtype,
            roles,
            new_tablespacename: _,
            nowait: _,
        } = node;
        self.define_object(C::Alter, *objtype);
        self.whole_database(C::Alter);
        self.all(roles, at);
    }

    pub(super) fn create_foreign_table_stmt(&mut self, node: &'a pb::CreateForeignTableStmt, at: Place) {
        let pb::CreateForeignTableStmt {
            base_stmt,
            servername: _,
            options,
        } = node;
        self.define(C::Create, "ForeignTable");
        if let Some(create) = base_stmt {
            self.create_stmt(create, at);
        }
        self.foreign_options(options, at);
    }

    pub(super) fn create_policy_stmt(&mut self, node: &'a pb::CreatePolicyStmt, at: Place) {
        let pb::CreatePolicyStmt {
            policy_name: _,
            table,
            cmd_name: _,
            permissive: _,
            roles,
            qual,
            with_check,
        } = node;
        self.define(C::Create, "Policy");
        self.found.effects.insert(Effects::GRANT);
        let at = at.existing(C::Create);
        if let Some(inner) = table {
            self.range_var(inner, at);
        }
        self.all(roles, at);
        self.maybe(qual, at);
        self.maybe(with_check, at);
    }

    pub(super) fn alter_policy_stmt(&mut self, node: &'a pb::AlterPolicyStmt, at: Place) {
        let pb::AlterPolicyStmt {
            policy_name: _,
            table,
            roles,
            qual,
            with_check,
        } = node;
        self.define(C::Alter, "Policy");
        self.found.effects.insert(Effects::GRANT);
        let at = at.existing(C::Alter);
        if let Some(inner) = table {
            self.range_var(inner, at);
        }
        self.all(roles, at);
        self.maybe(qual, at);
        self.maybe(with_check, at);
    }

    pub(super) fn create_trig_stmt(&mut self, node: &'a pb::CreateTrigStmt, at: Place) {
        let pb::CreateTrigStmt {
            replace: _,
            isconstraint: _,
            trigname: _,
            relation,
            funcname,
            args,
            row: _,
            timing: _,
            events: _,
            columns,
            when_clause,
            transition_rels,
            deferrable: _,
            initdeferred: _,
            constrrel,
        } = node;
        self.define(C::Create, "Trigger");
        let at = at.existing(C::Create);
        match qualified(funcname) {
            Some(name) => self.function(FunctionKind::Call, name, Some(0), None),
            None => self.problem(super::Problem::Value("trigger function")),
        }
        if let Some(inner) = relation {
            self.range_var(inner, at);
        }
        self.all(args, at);
        self.all(columns, at);
        self.maybe(when_clause, at);
        self.all(transition_rels, at);
        if let Some(inner) = constrrel {
            self.range_var(inner, at);
        }
    }

    pub(super) fn create_seq_stmt(&mut self, node: &'a pb::CreateSeqStmt, at: Place) {
        let pb::CreateSeqStmt {
            sequence,
            options,
            owner_id: _,
            for_identity: _,
            if_not_exists: _,
        } = node;
        self.define(C::Create, "Sequence");
        let at = at.existing(C::Create);
        if let Some(relation) = sequence {
            self.range_var(relation, at.with(C::Create, RelationRole::Created { temporary: false }));
        }
        self.all(options, at);
    }

    pub(super) fn alter_seq_stmt(&mut self, node: &'a pb::AlterSeqStmt, at: Place) {
        let pb::AlterSeqStmt {
            sequence,
            options,
            for_identity: _,
            missing_ok: _,
        } = node;
        self.define(C::Alter, "Sequence");
        let at = at.existing(C::Alter);
        if let Some(inner) = sequence {
            self.range_var(inner, at);
        }
        self.all(options, at);
    }

    pub(super) fn truncate_stmt(&mut self, node: &'a pb::TruncateStmt, at: Place) {
        let pb::TruncateStmt {
            relations,
            restart_seqs: _,
            behavior: _,
        } = node;
        self.command(C::Truncate, Effects::WRITE);
        let at = at.existing(C::Truncate);
        self.all(relations, at);
    }

    pub(super) fn index_stmt(&mut self, node: &'a pb::IndexStmt, at: Place) {
        let pb::IndexStmt {
            idxname: _,
            relation,
            access_method: _,
            table_space: _,
            index_params,
            index_including_params,
            options,
            where_clause,
            exclude_op_names,
            idxcomment: _,
            index_oid: _,
            old_number: _,
            old_create_subid: _,
            old_first_relfilelocator_subid: _,
            unique: _,
            nulls_not_distinct: _,
            primary: _,
            isconstraint: _,
            iswithoutoverlaps: _,
            deferrable: _,
            initdeferred: _,
            transformed: _,
            concurrent: _,
            if_not_exists: _,
            reset_default_tblspc: _,
        } = node;
        self.define(C::Create, "Index");
        let at = at.existing(C::Create);
        if let Some(inner) = relation {
            self.range_var(inner, at);
        }
        self.all(index_params, at);
        self.all(index_including_params, at);
        self.all(options, at);
        self.maybe(where_clause, at);
        self.all(exclude_op_names, at);
    }

    pub(super) fn create_stats_stmt(&mut self, node: &'a pb::CreateStatsStmt, at: Place) {
        let pb::CreateStatsStmt {
            defnames: _,
            stat_types,
            exprs,
            relations,
            stxcomment: _,
            transformed: _,
            if_not_exists: _,
        } = node;
        self.define(C::Create, "StatisticsObject");
        let at = at.existing(C::Create);
        self.all(stat_types, at);
        self.all(exprs, at);
        self.all(relations, at);
    }

    pub(super) fn stats_elem(&mut self, node: &'a pb::StatsElem, at: Place) {
        let pb::StatsElem { name: _, expr } = node;
        self.maybe(expr, at);
    }

    pub(super) fn alter_stats_stmt(&mut self, node: &'a pb::AlterStatsStmt, at: Place) {
        let pb::AlterStatsStmt {
            defnames: _,
            stxstattarget,
            missing_ok: _,
        } = node;
        self.define(C::Alter, "StatisticsObject");
        self.maybe(stxstattarget, at);
    }

    pub(super) fn rule_stmt(&mut self, node: &'a pb::RuleStmt, at: Place) {
        let pb::RuleStmt {
            relation,
            rulename: _,
            where_clause,
            event: _,
            instead: _,
            actions,
            replace: _,
        } = node;
        self.define(C::Create, "Rule");
        let at = at.existing(C::Create);
        if let Some(inner) = relation {
            self.range_var(inner, at);
        }
        self.maybe(where_clause, at);
        self.all(actions, at);
    }

    pub(super) fn composite_type_stmt(&mut self, node: &'a pb::CompositeTypeStmt, at: Place) {
        let pb::CompositeTypeStmt { typevar, coldeflist } = node;
        self.define(C::Create, "Type");
        if let Some(relation) = typevar {
            self.range_var(relation, at.with(C::Create, RelationRole::Created { temporary: false }));
        }
        self.all(coldeflist, at);
    }

    pub(super) fn view_stmt(&mut self, node: &'a pb::ViewStmt, at: Place) {
        let pb::ViewStmt {
            view,
            aliases,
            query,
            replace: _,
            options,
            with_check_option: _,
        } = node;
        self.define(C::Create, "View");
        let at = at.existing(C::Create);
        if let Some(relation) = view {
            self.range_var(relation, at.with(C::Create, RelationRole::Created { temporary: false }));
        }
        self.all(aliases, at);
        self.maybe(query, at);
        self.all(options, at);
    }

    pub(super) fn cluster_stmt(&mut self, node: &'a pb::ClusterStmt, at: Place) {
        let pb::ClusterStmt {
            relation,
            indexname: _,
            params,
        } = node;
        self.command(C::Maintain, Effects::ADMIN);
        self.found.effects.insert(Effects::LOCK);
        let at = at.existing(C::Maintain);
        if relation.is_none() {
            self.whole_database(C::Maintain);
        }
        self.all(params, at);
        if let Some(inner) = relation {
            self.range_var(inner, at);
        }
    }

    pub(super) fn vacuum_stmt(&mut self, node: &'a pb::VacuumStmt, at: Place) {
        let pb::VacuumStmt {
            options,
            rels,
            is_vacuumcmd: _,
        } = node;
        self.command(C::Maintain, Effects::ADMIN);
        self.found.effects.insert(Effects::LOCK);
        let at = at.existing(C::Maintain);
        if rels.is_empty() {
            self.whole_database(C::Maintain);
        }
        self.all(options, at);
        self.all(rels, at);
    }

    pub(super) fn vacuum_relation(&mut self, node: &'a pb::VacuumRelation, at: Place) {
        let pb::VacuumRelation {
            relation,
            oid: _,
            va_cols,
        } = node;
        if let Some(inner) = relation {
            self.range_var(inner, at);
        }
        self.all(va_cols, at);
    }

    pub(super) fn create_table_as_stmt(&mut self, node: &'a pb::CreateTableAsStmt, at: Place) {
        let pb::CreateTableAsStmt {
            query,
            into,
            objtype,
            is_select_into: _,
            if_not_exists: _,
        } = node;
        self.object_kind(*objtype);
        self.maybe(query, at.existing(C::Create));
        if let Some(clause) = into {
            self.clause_into(clause, at.existing(C::Create));
        }
    }

    pub(super) fn refresh_mat_view_stmt(&mut self, node: &'a pb::RefreshMatViewStmt, at: Place) {
        let pb::RefreshMatViewStmt {
            concurrent: _,
            skip_data: _,
            relation,
        } = node;
        self.command(C::Maintain, Effects::WRITE);
        self.object("MaterializedView");
        let at = at.existing(C::Maintain);
        if let Some(inner) = relation {
            self.range_var(inner, at);
        }
    }

    pub(super) fn lock_stmt(&mut self, node: &'a pb::LockStmt, at: Place) {
        let pb::LockStmt {
            relations,
            mode: _,
            nowait: _,
        } = node;
        self.command(C::Lock, Effects::LOCK);
        let at = at.existing(C::Lock);
        self.all(relations, at);
    }

    pub(super) fn constraints_set_stmt(&mut self, node: &'a pb::ConstraintsSetStmt, _at: Place) {
        let pb::ConstraintsSetStmt {
            constraints,
            deferred: _,
        } = node;
        self.command(C::Transaction, Effects::SESSION);
        // Constraint names, which the grammar hands over as relation names.
        let _ = constraints;
    }

    pub(super) fn reindex_stmt(&mut self, node: &'a pb::ReindexStmt, at: Place) {
        let pb::ReindexStmt {
            kind: _,
            relation,
            name: _,
            params,
        } = node;
        self.command(C::Maintain, Effects::ADMIN);
        self.found.effects.insert(Effects::LOCK);
        let at = at.existing(C::Maintain);
        if relation.is_none() {
            self.whole_database(C::Maintain);
        }
        self.all(params, at);
        if let Some(inner) = relation {
            self.range_var(inner, at);
        }
    }
}
