//! SQL/JSON expressions and JSON_TABLE.
//!
//! They run the server's own JSON functions only; the types of RETURNING clauses and columns are noted, and syntax
//! newer than the server is turned away.

use super::super::parse::pb;
use super::{Place, Walk};

impl<'a> Walk<'a> {
    pub(super) fn json_format(&mut self, node: &'a pb::JsonFormat, _at: Place) {
        let pb::JsonFormat {
            format_type: _,
            encoding: _,
            location: _,
        } = node;
    }

    pub(super) fn json_returning(&mut self, node: &'a pb::JsonReturning, _at: Place) {
        let pb::JsonReturning {
            format: _,
            typid: _,
            typmod: _,
        } = node;
    }

    pub(super) fn json_value_expr(&mut self, node: &'a pb::JsonValueExpr, at: Place) {
        let pb::JsonValueExpr {
            raw_expr,
            formatted_expr,
            format: _,
        } = node;
        self.maybe(raw_expr, at);
        self.maybe(formatted_expr, at);
    }

    pub(super) fn json_is_predicate(&mut self, node: &'a pb::JsonIsPredicate, at: Place) {
        let pb::JsonIsPredicate {
            expr,
            format: _,
            item_type: _,
            unique_keys: _,
            location: _,
        } = node;
        self.since(16, "SQL/JSON");
        self.maybe(expr, at);
    }

    pub(super) fn json_behavior(&mut self, node: &'a pb::JsonBehavior, at: Place) {
        let pb::JsonBehavior {
            btype: _,
            expr,
            coerce: _,
            location: _,
        } = node;
        self.maybe(expr, at);
    }

    pub(super) fn json_output(&mut self, node: &'a pb::JsonOutput, at: Place) {
        let pb::JsonOutput {
            type_name,
            returning: _,
        } = node;
        if let Some(inner) = type_name {
            self.type_name(inner, at);
        }
    }

    pub(super) fn json_argument(&mut self, node: &'a pb::JsonArgument, at: Place) {
        let pb::JsonArgument { val, name: _ } = node;
        if let Some(inner) = val {
            self.json_value_expr(inner, at);
        }
    }

    pub(super) fn json_func_expr(&mut self, node: &'a pb::JsonFuncExpr, at: Place) {
        let pb::JsonFuncExpr {
            op: _,
            column_name: _,
            context_item,
            pathspec,
            passing,
            output,
            on_empty,
            on_error,
            wrapper: _,
            quotes: _,
            location: _,
        } = node;
        self.since(17, "SQL/JSON functions");
        if let Some(inner) = context_item {
            self.json_value_expr(inner, at);
        }
        self.maybe(pathspec, at);
        self.all(passing, at);
        if let Some(inner) = output {
            self.json_output(inner, at);
        }
        if let Some(inner) = on_empty {
            self.json_behavior(inner, at);
        }
        if let Some(inner) = on_error {
            self.json_behavior(inner, at);
        }
    }

    pub(super) fn json_table_path_spec(&mut self, node: &'a pb::JsonTablePathSpec, at: Place) {
        let pb::JsonTablePathSpec {
            string,
            name: _,
            name_location: _,
            location: _,
        } = node;
        self.maybe(string, at);
    }

    pub(super) fn json_table(&mut self, node: &'a pb::JsonTable, at: Place) {
        let pb::JsonTable {
            context_item,
            pathspec,
            passing,
            columns,
            on_error,
            alias: _,
            lateral: _,
            location: _,
        } = node;
        self.since(17, "SQL/JSON functions");
        if let Some(inner) = context_item {
            self.json_value_expr(inner, at);
        }
        if let Some(inner) = pathspec {
            self.json_table_path_spec(inner, at);
        }
        self.all(passing, at);
        self.all(columns, at);
        if let Some(inner) = on_error {
            self.json_behavior(inner, at);
        }
    }

    pub(super) fn json_table_column(&mut self, node: &'a pb::JsonTableColumn, at: Place) {
        let pb::JsonTableColumn {
            coltype: _,
            name: _,
            type_name,
            pathspec,
            format: _,
            wrapper: _,
            quotes: _,
            columns,
            on_empty,
            on_error,
            location: _,
        } = node;
        if let Some(inner) = type_name {
            self.type_name(inner, at);
        }
        if let Some(inner) = pathspec {
            self.json_table_path_spec(inner, at);
        }
        self.all(columns, at);
        if let Some(inner) = on_empty {
            self.json_behavior(inner, at);
        }
        if let Some(inner) = on_error {
            self.json_behavior(inner, at);
        }
    }

    pub(super) fn json_key_value(&mut self, node: &'a pb::JsonKeyValue, at: Place) {
        let pb::JsonKeyValue { key, value } = node;
        self.maybe(key, at);
        if let Some(inner) = value {
            self.json_value_expr(inner, at);
        }
    }

    pub(super) fn json_parse_expr(&mut self, node: &'a pb::JsonParseExpr, at: Place) {
        let pb::JsonParseExpr {
            expr,
            output,
            unique_keys: _,
            location: _,
        } = node;
        self.since(17, "SQL/JSON functions");
        if let Some(inner) = expr {
            self.json_value_expr(inner, at);
        }
        if let Some(inner) = output {
            self.json_output(inner, at);
        }
    }

    pub(super) fn json_scalar_expr(&mut self, node: &'a pb::JsonScalarExpr, at: Place) {
        let pb::JsonScalarExpr {
            expr,
            output,
            location: _,
        } = node;
        self.since(17, "SQL/JSON functions");
        self.maybe(expr, at);
        if let Some(inner) = output {
            self.json_output(inner, at);
        }
    }

    pub(super) fn json_serialize_expr(&mut self, node: &'a pb::JsonSerializeExpr, at: Place) {
        let pb::JsonSerializeExpr {
            expr,
            output,
            location: _,
        } = node;
        self.since(17, "SQL/JSON functions");
        if let Some(inner) = expr {
            self.json_value_expr(inner, at);
        }
        if let Some(inner) = output {
            self.json_output(inner, at);
        }
    }

    pub(super) fn json_object_constructor(&mut self, node: &'a pb::JsonObjectConstructor, at: Place) {
        let pb::JsonObjectConstructor {
            exprs,
            output,
            absent_on_null: _,
            unique: _,
            location: _,
        } = node;
        self.since(16, "SQL/JSON");
        self.all(exprs, at);
        if let Some(inner) = output {
            self.json_output(inner, at);
        }
    }

    pub(super) fn json_array_constructor(&mut self, node: &'a pb::JsonArrayConstructor, at: Place) {
        let pb::JsonArrayConstructor {
            exprs,
            output,
            absent_on_null: _,
            location: _,
        } = node;
        self.since(16, "SQL/JSON");
        self.all(exprs, at);
        if let Some(inner) = output {
            self.json_output(inner, at);
        }
    }

    pub(super) fn json_array_query_constructor(&mut self, node: &'a pb::JsonArrayQueryConstructor, at: Place) {
        let pb::JsonArrayQueryConstructor {
            query,
            output,
            format: _,
            absent_on_null: _,
            location: _,
        } = node;
        self.since(16, "SQL/JSON");
        self.maybe(query, at);
        if let Some(inner) = output {
            self.json_output(inner, at);
        }
    }

    pub(super) fn json_agg_constructor(&mut self, node: &'a pb::JsonAggConstructor, at: Place) {
        let pb::JsonAggConstructor {
            output,
            agg_filter,
            agg_order,
            over,
            location: _,
        } = node;
        if let Some(inner) = output {
            self.json_output(inner, at);
        }
        self.maybe(agg_filter, at);
        self.all(agg_order, at);
        if let Some(inner) = over {
            self.window_def(inner, at);
        }
    }

    pub(super) fn json_object_agg(&mut self, node: &'a pb::JsonObjectAgg, at: Place) {
        let pb::JsonObjectAgg {
            constructor,
            arg,
            absent_on_null: _,
            unique: _,
        } = node;
        self.since(16, "SQL/JSON");
        if let Some(inner) = constructor {
            self.json_agg_constructor(inner, at);
        }
        if let Some(inner) = arg {
            self.json_key_value(inner, at);
        }
    }

    pub(super) fn json_array_agg(&mut self, node: &'a pb::JsonArrayAgg, at: Place) {
        let pb::JsonArrayAgg {
            constructor,
            arg,
            absent_on_null: _,
        } = node;
        self.since(16, "SQL/JSON");
        if let Some(inner) = constructor {
            self.json_agg_constructor(inner, at);
        }
        if let Some(inner) = arg {
            self.json_value_expr(inner, at);
        }
    }
}
