//! Expressions: operators, calls, casts, sublinks, constants.
//!
//! Every name that makes the server run code is noted: functions, operators (written or implied by IN, CASE,
//! BETWEEN and NULLIF), types of casts, and attribute notation, which calls functions too.

use super::super::parse::pb;
use super::name::qualified;
use super::syntax::{FunctionKind, Problem};
use super::{Place, Walk};

impl<'a> Walk<'a> {
    pub(super) fn grouping_func(&mut self, node: &'a pb::GroupingFunc, at: Place) {
        let pb::GroupingFunc {
            xpr,
            args,
            refs,
            agglevelsup: _,
            location: _,
        } = node;
        self.maybe(xpr, at);
        self.all(args, at);
        self.all(refs, at);
    }

    pub(super) fn merge_support_func(&mut self, node: &'a pb::MergeSupportFunc, at: Place) {
        let pb::MergeSupportFunc {
            xpr,
            msftype: _,
            msfcollid: _,
            location: _,
        } = node;
        self.since(17, "merge_action()");
        self.maybe(xpr, at);
    }

    pub(super) fn named_arg_expr(&mut self, node: &'a pb::NamedArgExpr, at: Place) {
        let pb::NamedArgExpr {
            xpr,
            arg,
            name: _,
            argnumber: _,
            location: _,
        } = node;
        self.maybe(xpr, at);
        self.maybe(arg, at);
    }

    pub(super) fn bool_expr(&mut self, node: &'a pb::BoolExpr, at: Place) {
        let pb::BoolExpr {
            xpr,
            boolop: _,
            args,
            location: _,
        } = node;
        self.maybe(xpr, at);
        self.all(args, at);
    }

    pub(super) fn sub_link(&mut self, node: &'a pb::SubLink, at: Place) {
        let pb::SubLink {
            xpr,
            sub_link_type,
            sub_link_id: _,
            testexpr,
            oper_name,
            subselect,
            location: _,
        } = node;
        match pb::SubLinkType::try_from(*sub_link_type) {
            Ok(pb::SubLinkType::ExistsSublink | pb::SubLinkType::ExprSublink | pb::SubLinkType::ArraySublink) => {}
            Ok(pb::SubLinkType::AnySublink | pb::SubLinkType::AllSublink) if oper_name.is_empty() => {
                self.implied_operator("=");
            }
            Ok(pb::SubLinkType::AnySublink | pb::SubLinkType::AllSublink) => self.operator(oper_name),
            _ => self.problem(Problem::Value("sublink")),
        }
        self.maybe(xpr, at);
        self.maybe(testexpr, at);
        self.maybe(subselect, at);
    }

    pub(super) fn case_expr(&mut self, node: &'a pb::CaseExpr, at: Place) {
        let pb::CaseExpr {
            xpr,
            casetype: _,
            casecollid: _,
            arg,
            args,
            defresult,
            location: _,
        } = node;
        if arg.is_some() {
            self.implied_operator("=");
        }
        self.maybe(xpr, at);
        self.all(args, at);
        self.maybe(defresult, at);
        self.maybe(arg, at);
    }

    pub(super) fn case_when(&mut self, node: &'a pb::CaseWhen, at: Place) {
        let pb::CaseWhen {
            xpr,
            expr,
            result,
            location: _,
        } = node;
        self.maybe(xpr, at);
        self.maybe(expr, at);
        self.maybe(result, at);
    }

    pub(super) fn row_expr(&mut self, node: &'a pb::RowExpr, at: Place) {
        let pb::RowExpr {
            xpr,
            args,
            row_typeid: _,
            row_format: _,
            colnames,
            location: _,
        } = node;
        self.maybe(xpr, at);
        self.all(args, at);
        self.all(colnames, at);
    }

    pub(super) fn coalesce_expr(&mut self, node: &'a pb::CoalesceExpr, at: Place) {
        let pb::CoalesceExpr {
            xpr,
            coalescetype: _,
            coalescecollid: _,
            args,
            location: _,
        } = node;
        self.maybe(xpr, at);
        self.all(args, at);
    }

    pub(super) fn min_max_expr(&mut self, node: &'a pb::MinMaxExpr, at: Place) {
        let pb::MinMaxExpr {
            xpr,
            minmaxtype: _,
            minmaxcollid: _,
            inputcollid: _,
            op: _,
            args,
            location: _,
        } = node;
        self.maybe(xpr, at);
        self.all(args, at);
    }

    pub(super) fn sql_value_function(&mut self, node: &'a pb::SqlValueFunction, at: Place) {
        let pb::SqlValueFunction {
            xpr,
            op: _,
            r#type: _,
            typmod: _,
            location: _,
        } = node;
        self.maybe(xpr, at);
    }

    pub(super) fn xml_expr(&mut self, node: &'a pb::XmlExpr, at: Place) {
        let pb::XmlExpr {
            xpr,
            op: _,
            name: _,
            named_args,
            arg_names,
            args,
            xmloption: _,
            indent: _,
            r#type: _,
            typmod: _,
            location: _,
        } = node;
        self.maybe(xpr, at);
        self.all(named_args, at);
        self.all(arg_names, at);
        self.all(args, at);
    }

    pub(super) fn null_test(&mut self, node: &'a pb::NullTest, at: Place) {
        let pb::NullTest {
            xpr,
            arg,
            nulltesttype: _,
            argisrow: _,
            location: _,
        } = node;
        self.maybe(xpr, at);
        self.maybe(arg, at);
    }

    pub(super) fn boolean_test(&mut self, node: &'a pb::BooleanTest, at: Place) {
        let pb::BooleanTest {
            xpr,
            arg,
            booltesttype: _,
            location: _,
        } = node;
        self.maybe(xpr, at);
        self.maybe(arg, at);
    }

    pub(super) fn set_to_default(&mut self, node: &'a pb::SetToDefault, at: Place) {
        let pb::SetToDefault {
            xpr,
            type_id: _,
            type_mod: _,
            collation: _,
            location: _,
        } = node;
        self.maybe(xpr, at);
    }

    pub(super) fn current_of_expr(&mut self, node: &'a pb::CurrentOfExpr, at: Place) {
        let pb::CurrentOfExpr {
            xpr,
            cvarno: _,
            cursor_name,
            cursor_param: _,
        } = node;
        if !cursor_name.is_empty() {
            self.found.current_of.push(cursor_name.as_str().into());
        }
        self.maybe(xpr, at);
    }

    pub(super) fn type_name(&mut self, node: &'a pb::TypeName, at: Place) {
        let pb::TypeName {
            names,
            type_oid,
            setof: _,
            pct_type,
            typmods,
            typemod: _,
            array_bounds,
            location: _,
        } = node;
        if *type_oid != 0 {
            self.problem(Problem::Value("type name"));
        }
        match qualified(names) {
            // `relation.column%TYPE` names no type, and stands in definitions only.
            _ if *pct_type || at.quiet => {}
            Some(name) => self.function(FunctionKind::Type, name, None, None),
            None => self.problem(Problem::Value("type name")),
        }
        self.all(typmods, at);
        self.all(array_bounds, at);
    }

    pub(super) fn column_ref(&mut self, node: &'a pb::ColumnRef, _at: Place) {
        let pb::ColumnRef { fields, location: _ } = node;
        self.attribute_of_column(fields);
    }

    pub(super) fn param_ref(&mut self, node: &'a pb::ParamRef, _at: Place) {
        let pb::ParamRef { number, location: _ } = node;
        self.parameter(*number);
    }

    pub(super) fn a_expr(&mut self, node: &'a pb::AExpr, at: Place) {
        let pb::AExpr {
            kind,
            name,
            lexpr,
            rexpr,
            rexpr_list_start: _,
            rexpr_list_end: _,
            location: _,
        } = node;
        match pb::AExprKind::try_from(*kind) {
            Ok(pb::AExprKind::Undefined) | Err(_) => self.problem(Problem::Value("operator expression")),
            Ok(
                pb::AExprKind::AexprBetween
                | pb::AExprKind::AexprNotBetween
                | pb::AExprKind::AexprBetweenSym
                | pb::AExprKind::AexprNotBetweenSym,
            ) => {
                for implied in ["<", ">", "<=", ">="] {
                    self.implied_operator(implied);
                }
            }
            Ok(_) => self.operator(name),
        }
        self.maybe(lexpr, at);
        self.maybe(rexpr, at);
    }

    pub(super) fn type_cast(&mut self, node: &'a pb::TypeCast, at: Place) {
        let pb::TypeCast {
            arg,
            type_name,
            location: _,
        } = node;
        self.maybe(arg, at);
        if let Some(inner) = type_name {
            self.type_name(inner, at);
        }
    }

    pub(super) fn collate_clause(&mut self, node: &'a pb::CollateClause, at: Place) {
        let pb::CollateClause {
            arg,
            collname,
            location: _,
        } = node;
        self.maybe(arg, at);
        self.all(collname, at);
    }

    pub(super) fn func_call(&mut self, node: &'a pb::FuncCall, at: Place) {
        let pb::FuncCall {
            funcname,
            args,
            agg_order,
            agg_filter,
            over,
            agg_within_group: _,
            agg_star: _,
            agg_distinct: _,
            func_variadic,
            funcformat: _,
            location,
        } = node;
        self.call_name(funcname, args, *func_variadic);
        self.secret_call(funcname, args, *location);
        self.all(args, at);
        self.all(agg_order, at);
        self.maybe(agg_filter, at);
        if let Some(inner) = over {
            self.window_def(inner, at);
        }
    }

    pub(super) fn a_star(&mut self, node: &'a pb::AStar, _at: Place) {
        let pb::AStar {} = node;
    }

    pub(super) fn a_indices(&mut self, node: &'a pb::AIndices, at: Place) {
        let pb::AIndices {
            is_slice: _,
            lidx,
            uidx,
        } = node;
        self.maybe(lidx, at);
        self.maybe(uidx, at);
    }

    pub(super) fn a_indirection(&mut self, node: &'a pb::AIndirection, at: Place) {
        let pb::AIndirection { arg, indirection } = node;
        self.attributes(indirection);
        self.all(indirection, at);
        self.maybe(arg, at);
    }

    pub(super) fn a_array_expr(&mut self, node: &'a pb::AArrayExpr, at: Place) {
        let pb::AArrayExpr {
            elements,
            list_start: _,
            list_end: _,
            location: _,
        } = node;
        self.all(elements, at);
    }

    pub(super) fn multi_assign_ref(&mut self, node: &'a pb::MultiAssignRef, at: Place) {
        let pb::MultiAssignRef {
            source,
            colno: _,
            ncolumns: _,
        } = node;
        self.maybe(source, at);
    }

    pub(super) fn xml_serialize(&mut self, node: &'a pb::XmlSerialize, at: Place) {
        let pb::XmlSerialize {
            xmloption: _,
            expr,
            type_name,
            indent: _,
            location: _,
        } = node;
        self.maybe(expr, at);
        if let Some(inner) = type_name {
            self.type_name(inner, at);
        }
    }

    pub(super) fn integer(&mut self, node: &'a pb::Integer, _at: Place) {
        let pb::Integer { ival: _ } = node;
    }

    pub(super) fn float(&mut self, node: &'a pb::Float, _at: Place) {
        let pb::Float { fval: _ } = node;
    }

    pub(super) fn boolean(&mut self, node: &'a pb::Boolean, _at: Place) {
        let pb::Boolean { boolval: _ } = node;
    }

    pub(super) fn string(&mut self, node: &'a pb::String, _at: Place) {
        let pb::String { sval: _ } = node;
    }

    pub(super) fn bit_string(&mut self, node: &'a pb::BitString, _at: Place) {
        let pb::BitString { bsval: _ } = node;
    }

    pub(super) fn list(&mut self, node: &'a pb::List, at: Place) {
        let pb::List { items } = node;
        self.all(items, at);
    }

    pub(super) fn a_const(&mut self, node: &'a pb::AConst, _at: Place) {
        let pb::AConst {
            isnull,
            location: _,
            val,
        } = node;
        if val.is_some() && *isnull {
            self.problem(Problem::Value("constant"));
        }
    }
}
