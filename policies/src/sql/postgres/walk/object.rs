//! Statements about objects that are not relations: schemas, functions, types, operators, servers, publications.
//!
//! Names of objects that are only dropped, renamed or described are not calls; names of functions that a definition
//! will run are.

use super::super::parse::pb;
use super::super::parse::NodeEnum;
use super::name::qualified;
use super::syntax::FunctionKind;
use super::{Place, Walk};
use crate::api::access_policy::SqlCommand as C;
use crate::sql::facts::Effects;

impl<'a> Walk<'a> {
    pub(super) fn def_elem(&mut self, node: &'a pb::DefElem, at: Place) {
        let pb::DefElem {
            defnamespace: _,
            defname,
            arg,
            defaction: _,
            location,
            arg_location: _,
        } = node;
        self.option_text(defname, arg.is_some(), *location);
        match arg.as_ref().and_then(|arg| arg.node.as_ref()) {
            // Option values are words and numbers; a type name here is a word, too, unless a definition needs it.
            Some(NodeEnum::TypeName(_)) => self.maybe(arg, at.quiet()),
            _ => self.maybe(arg, at),
        }
    }

    pub(super) fn create_schema_stmt(&mut self, node: &'a pb::CreateSchemaStmt, at: Place) {
        let pb::CreateSchemaStmt {
            schemaname: _,
            authrole: _,
            schema_elts,
            if_not_exists: _,
        } = node;
        self.define(C::Create, "Schema");
        self.all(schema_elts, at);
    }

    pub(super) fn alter_collation_stmt(&mut self, node: &'a pb::AlterCollationStmt, _at: Place) {
        let pb::AlterCollationStmt { collname: _ } = node;
        self.define(C::Alter, "Collation");
    }

    pub(super) fn alter_domain_stmt(&mut self, node: &'a pb::AlterDomainStmt, at: Place) {
        let pb::AlterDomainStmt {
            subtype: _,
            type_name: _,
            name: _,
            def,
            behavior: _,
            missing_ok: _,
        } = node;
        self.define(C::Alter, "Domain");
        self.maybe(def, at);
    }

    pub(super) fn object_with_args(&mut self, node: &'a pb::ObjectWithArgs, at: Place) {
        let pb::ObjectWithArgs {
            objname: _,
            objargs,
            objfuncargs,
            args_unspecified: _,
        } = node;
        // NONE for a missing operand is an empty node.
        self.all_or_empty(objargs, at);
        self.all(objfuncargs, at);
    }

    pub(super) fn create_table_space_stmt(&mut self, node: &'a pb::CreateTableSpaceStmt, at: Place) {
        let pb::CreateTableSpaceStmt {
            tablespacename: _,
            owner: _,
            location: _,
            options,
        } = node;
        self.define(C::Create, "Tablespace");
        self.found.effects.insert(Effects::FILESYSTEM);
        self.found.effects.insert(Effects::ADMIN);
        self.all(options, at);
    }

    pub(super) fn drop_table_space_stmt(&mut self, node: &'a pb::DropTableSpaceStmt, _at: Place) {
        let pb::DropTableSpaceStmt {
            tablespacename: _,
            missing_ok: _,
        } = node;
        self.define(C::Drop, "Tablespace");
        self.found.effects.insert(Effects::FILESYSTEM);
        self.found.effects.insert(Effects::ADMIN);
    }

    pub(super) fn alter_table_space_options_stmt(&mut self, node: &'a pb::AlterTableSpaceOptionsStmt, at: Place) {
        let pb::AlterTableSpaceOptionsStmt {
            tablespacename: _,
            options,
            is_reset: _,
        } = node;
        self.define(C::Alter, "Tablespace");
        self.found.effects.insert(Effects::FILESYSTEM);
        self.found.effects.insert(Effects::ADMIN);
        self.all(options, at);
    }

    pub(super) fn create_extension_stmt(&mut self, node: &'a pb::CreateExtensionStmt, at: Place) {
        let pb::CreateExtensionStmt {
            extname: _,
            if_not_exists: _,
            options,
        } = node;
        self.define(C::Create, "Extension");
        self.found.effects.insert(Effects::ADMIN);
        self.all(options, at);
    }

    pub(super) fn alter_extension_stmt(&mut self, node: &'a pb::AlterExtensionStmt, at: Place) {
        let pb::AlterExtensionStmt { extname: _, options } = node;
        self.define(C::Alter, "Extension");
        self.found.effects.insert(Effects::ADMIN);
        self.all(options, at);
    }

    pub(super) fn alter_extension_contents_stmt(&mut self, node: &'a pb::AlterExtensionContentsStmt, at: Place) {
        let pb::AlterExtensionContentsStmt {
            extname: _,
            action: _,
            objtype: _,
            object,
        } = node;
        self.define(C::Alter, "Extension");
        self.found.effects.insert(Effects::ADMIN);
        self.maybe(object, at.quiet());
    }

    pub(super) fn create_fdw_stmt(&mut self, node: &'a pb::CreateFdwStmt, at: Place) {
        let pb::CreateFdwStmt {
            fdwname: _,
            func_options,
            options,
        } = node;
        self.define(C::Create, "ForeignDataWrapper");
        self.found.effects.insert(Effects::NETWORK);
        self.all(func_options, at);
        self.foreign_options(options, at);
    }

    pub(super) fn alter_fdw_stmt(&mut self, node: &'a pb::AlterFdwStmt, at: Place) {
        let pb::AlterFdwStmt {
            fdwname: _,
            func_options,
            options,
        } = node;
        self.define(C::Alter, "ForeignDataWrapper");
        self.found.effects.insert(Effects::NETWORK);
        self.all(func_options, at);
        self.foreign_options(options, at);
    }

    pub(super) fn create_foreign_server_stmt(&mut self, node: &'a pb::CreateForeignServerStmt, at: Place) {
        let pb::CreateForeignServerStmt {
            servername: _,
            servertype: _,
            version: _,
            fdwname: _,
            if_not_exists: _,
            options,
        } = node;
        self.define(C::Create, "ForeignServer");
        self.found.effects.insert(Effects::NETWORK);
        self.foreign_options(options, at);
    }

    pub(super) fn alter_foreign_server_stmt(&mut self, node: &'a pb::AlterForeignServerStmt, at: Place) {
        let pb::AlterForeignServerStmt {
            servername: _,
            version: _,
            options,
            has_version: _,
        } = node;
        self.define(C::Alter, "ForeignServer");
        self.found.effects.insert(Effects::NETWORK);
        self.foreign_options(options, at);
    }

    pub(super) fn create_user_mapping_stmt(&mut self, node: &'a pb::CreateUserMappingStmt, at: Place) {
        let pb::CreateUserMappingStmt {
            user: _,
            servername: _,
            if_not_exists: _,
            options,
        } = node;
        self.define(C::Create, "UserMapping");
        self.found.effects.insert(Effects::NETWORK);
        self.foreign_options(options, at);
    }

    pub(super) fn alter_user_mapping_stmt(&mut self, node: &'a pb::AlterUserMappingStmt, at: Place) {
        let pb::AlterUserMappingStmt {
            user: _,
            servername: _,
            options,
        } = node;
        self.define(C::Alter, "UserMapping");
        self.found.effects.insert(Effects::NETWORK);
        self.foreign_options(options, at);
    }

    pub(super) fn drop_user_mapping_stmt(&mut self, node: &'a pb::DropUserMappingStmt, _at: Place) {
        let pb::DropUserMappingStmt {
            user: _,
            servername: _,
            missing_ok: _,
        } = node;
        self.define(C::Drop, "UserMapping");
        self.found.effects.insert(Effects::NETWORK);
    }

    pub(super) fn import_foreign_schema_stmt(&mut self, node: &'a pb::ImportForeignSchemaStmt, at: Place) {
        let pb::ImportForeignSchemaStmt {
            server_name: _,
            remote_schema: _,
            local_schema: _,
            list_type: _,
            table_list,
            options,
        } = node;
        self.define(C::Create, "ForeignTable");
        self.found.effects.insert(Effects::NETWORK);
        self.whole_database(C::Create);
        self.foreign_options(options, at);
        // Names of relations of the foreign server.
        let _ = table_list;
    }

    pub(super) fn create_am_stmt(&mut self, node: &'a pb::CreateAmStmt, _at: Place) {
        let pb::CreateAmStmt {
            amname: _,
            handler_name: _,
            amtype: _,
        } = node;
        self.define(C::Create, "AccessMethod");
        self.found.effects.insert(Effects::ADMIN);
    }

    pub(super) fn create_event_trig_stmt(&mut self, node: &'a pb::CreateEventTrigStmt, at: Place) {
        let pb::CreateEventTrigStmt {
            trigname: _,
            eventname: _,
            whenclause,
            funcname,
        } = node;
        self.define(C::Create, "EventTrigger");
        self.found.effects.insert(Effects::ADMIN);
        match qualified(funcname) {
            Some(name) => self.function(FunctionKind::Call, name, Some(0), None),
            None => self.problem(super::Problem::Value("trigger function")),
        }
        self.all(whenclause, at);
    }

    pub(super) fn alter_event_trig_stmt(&mut self, node: &'a pb::AlterEventTrigStmt, _at: Place) {
        let pb::AlterEventTrigStmt {
            trigname: _,
            tgenabled: _,
        } = node;
        self.define(C::Alter, "EventTrigger");
        self.found.effects.insert(Effects::ADMIN);
    }

    pub(super) fn create_p_lang_stmt(&mut self, node: &'a pb::CreatePLangStmt, _at: Place) {
        let pb::CreatePLangStmt {
            replace: _,
            plname: _,
            plhandler: _,
            plinline: _,
            plvalidator: _,
            pltrusted: _,
        } = node;
        self.define(C::Create, "Language");
        self.found.effects.insert(Effects::ADMIN);
    }

    pub(super) fn define_stmt(&mut self, node: &'a pb::DefineStmt, at: Place) {
        let pb::DefineStmt {
            kind,
            oldstyle: _,
            defnames: _,
            args,
            definition,
            if_not_exists: _,
            replace: _,
        } = node;
        self.define_object(C::Create, *kind);
        // An aggregate over any row has an empty argument list.
        self.all_or_empty(args, at.quiet());
        self.all(definition, at.quiet());
    }

    pub(super) fn create_domain_stmt(&mut self, node: &'a pb::CreateDomainStmt, at: Place) {
        let pb::CreateDomainStmt {
            domainname: _,
            type_name,
            coll_clause,
            constraints,
        } = node;
        self.define(C::Create, "Domain");
        if let Some(inner) = type_name {
            self.type_name(inner, at);
        }
        if let Some(inner) = coll_clause {
            self.collate_clause(inner, at);
        }
        self.all(constraints, at);
    }

    pub(super) fn create_op_class_stmt(&mut self, node: &'a pb::CreateOpClassStmt, at: Place) {
        let pb::CreateOpClassStmt {
            opclassname: _,
            opfamilyname: _,
            amname: _,
            datatype,
            items,
            is_default: _,
        } = node;
        self.define(C::Create, "OperatorClass");
        self.found.effects.insert(Effects::ADMIN);
        if let Some(inner) = datatype {
            self.type_name(inner, at);
        }
        self.all(items, at);
    }

    pub(super) fn create_op_class_item(&mut self, node: &'a pb::CreateOpClassItem, at: Place) {
        let pb::CreateOpClassItem {
            itemtype: _,
            name,
            number: _,
            order_family: _,
            class_args,
            storedtype,
        } = node;
        let at = at.quiet();
        if let Some(inner) = name {
            self.object_with_args(inner, at);
        }
        self.all(class_args, at);
        if let Some(inner) = storedtype {
            self.type_name(inner, at);
        }
    }

    pub(super) fn create_op_family_stmt(&mut self, node: &'a pb::CreateOpFamilyStmt, _at: Place) {
        let pb::CreateOpFamilyStmt {
            opfamilyname: _,
            amname: _,
        } = node;
        self.define(C::Create, "OperatorFamily");
        self.found.effects.insert(Effects::ADMIN);
    }

    pub(super) fn alter_op_family_stmt(&mut self, node: &'a pb::AlterOpFamilyStmt, at: Place) {
        let pb::AlterOpFamilyStmt {
            opfamilyname: _,
            amname: _,
            is_drop: _,
            items,
        } = node;
        self.define(C::Alter, "OperatorFamily");
        self.found.effects.insert(Effects::ADMIN);
        self.all(items, at);
    }

    pub(super) fn drop_stmt(&mut self, node: &'a pb::DropStmt, at: Place) {
        let pb::DropStmt {
            objects,
            remove_type,
            behavior: _,
            missing_ok: _,
            concurrent: _,
        } = node;
        self.define_object(C::Drop, *remove_type);
        objects
            .iter()
            .for_each(|object| self.object_named(Some(object), *remove_type, at.existing(C::Drop)));
    }

    pub(super) fn comment_stmt(&mut self, node: &'a pb::CommentStmt, at: Place) {
        let pb::CommentStmt {
            objtype,
            object,
            comment: _,
        } = node;
        self.command(C::Comment, Effects::DEFINE);
        self.object_kind(*objtype);
        self.object_named(object.as_deref(), *objtype, at.existing(C::Comment));
    }

    pub(super) fn sec_label_stmt(&mut self, node: &'a pb::SecLabelStmt, at: Place) {
        let pb::SecLabelStmt {
            objtype,
            object,
            provider: _,
            label: _,
        } = node;
        self.command(C::Comment, Effects::DEFINE);
        self.found.effects.insert(Effects::GRANT);
        self.object_kind(*objtype);
        self.object_named(object.as_deref(), *objtype, at.existing(C::Comment));
    }

    pub(super) fn create_function_stmt(&mut self, node: &'a pb::CreateFunctionStmt, at: Place) {
        let pb::CreateFunctionStmt {
            is_procedure,
            replace: _,
            funcname: _,
            parameters,
            return_type,
            options,
            sql_body,
        } = node;
        self.define(C::Create, if *is_procedure { "Procedure" } else { "Function" });
        if sql_body.is_some() {
            self.since(14, "a function body in SQL syntax");
        }
        // A SQL body is a list of lists of statements.
        self.all(parameters, at);
        if let Some(inner) = return_type {
            self.type_name(inner, at);
        }
        self.all(options, at);
        self.maybe(sql_body, at);
    }

    pub(super) fn function_parameter(&mut self, node: &'a pb::FunctionParameter, at: Place) {
        let pb::FunctionParameter {
            name: _,
            arg_type,
            mode: _,
            defexpr,
            location: _,
        } = node;
        if let Some(inner) = arg_type {
            self.type_name(inner, at);
        }
        self.maybe(defexpr, at);
    }

    pub(super) fn alter_function_stmt(&mut self, node: &'a pb::AlterFunctionStmt, at: Place) {
        let pb::AlterFunctionStmt { objtype, func, actions } = node;
        self.define_object(C::Alter, *objtype);
        if let Some(inner) = func {
            self.object_with_args(inner, at.quiet());
        }
        self.all(actions, at);
    }

    pub(super) fn rename_stmt(&mut self, node: &'a pb::RenameStmt, at: Place) {
        let pb::RenameStmt {
            rename_type,
            relation_type: _,
            relation,
            object,
            subname: _,
            newname: _,
            behavior: _,
            missing_ok: _,
        } = node;
        self.define_object(C::Alter, *rename_type);
        let at = at.existing(C::Alter);
        if relation.is_none() {
            self.object_named(object.as_deref(), *rename_type, at);
        } else {
            self.maybe(object, at.quiet());
        }
        if let Some(inner) = relation {
            self.range_var(inner, at);
        }
    }

    pub(super) fn alter_object_depends_stmt(&mut self, node: &'a pb::AlterObjectDependsStmt, at: Place) {
        let pb::AlterObjectDependsStmt {
            object_type,
            relation,
            object,
            extname: _,
            remove: _,
        } = node;
        self.define_object(C::Alter, *object_type);
        let at = at.existing(C::Alter);
        self.maybe(object, at.quiet());
        if let Some(inner) = relation {
            self.range_var(inner, at);
        }
    }

    pub(super) fn alter_object_schema_stmt(&mut self, node: &'a pb::AlterObjectSchemaStmt, at: Place) {
        let pb::AlterObjectSchemaStmt {
            object_type,
            relation,
            object,
            newschema: _,
            missing_ok: _,
        } = node;
        self.define_object(C::Alter, *object_type);
        let at = at.existing(C::Alter);
        self.maybe(object, at.quiet());
        if let Some(inner) = relation {
            self.range_var(inner, at);
        }
    }

    pub(super) fn alter_owner_stmt(&mut self, node: &'a pb::AlterOwnerStmt, at: Place) {
        let pb::AlterOwnerStmt {
            object_type,
            relation,
            object,
            newowner: _,
        } = node;
        self.define_object(C::Alter, *object_type);
        self.found.effects.insert(Effects::GRANT);
        let at = at.existing(C::Alter);
        self.maybe(object, at.quiet());
        if let Some(inner) = relation {
            self.range_var(inner, at);
        }
    }

    pub(super) fn alter_operator_stmt(&mut self, node: &'a pb::AlterOperatorStmt, at: Place) {
        let pb::AlterOperatorStmt { opername, options } = node;
        self.define(C::Alter, "Operator");
        if let Some(inner) = opername {
            self.object_with_args(inner, at.quiet());
        }
        self.all_or_empty(options, at.quiet());
    }

    pub(super) fn alter_type_stmt(&mut self, node: &'a pb::AlterTypeStmt, at: Place) {
        let pb::AlterTypeStmt { type_name: _, options } = node;
        self.define(C::Alter, "Type");
        self.all_or_empty(options, at.quiet());
    }

    pub(super) fn create_enum_stmt(&mut self, node: &'a pb::CreateEnumStmt, at: Place) {
        let pb::CreateEnumStmt { type_name: _, vals } = node;
        self.define(C::Create, "Type");
        self.all(vals, at);
    }

    pub(super) fn create_range_stmt(&mut self, node: &'a pb::CreateRangeStmt, at: Place) {
        let pb::CreateRangeStmt { type_name: _, params } = node;
        self.define(C::Create, "Type");
        self.all(params, at);
    }

    pub(super) fn alter_enum_stmt(&mut self, node: &'a pb::AlterEnumStmt, _at: Place) {
        let pb::AlterEnumStmt {
            type_name: _,
            old_val: _,
            new_val: _,
            new_val_neighbor: _,
            new_val_is_after: _,
            skip_if_new_val_exists: _,
        } = node;
        self.define(C::Alter, "Type");
    }

    pub(super) fn createdb_stmt(&mut self, node: &'a pb::CreatedbStmt, at: Place) {
        let pb::CreatedbStmt { dbname: _, options } = node;
        self.define(C::Create, "Database");
        self.found.effects.insert(Effects::ADMIN);
        self.all(options, at);
    }

    pub(super) fn alter_database_stmt(&mut self, node: &'a pb::AlterDatabaseStmt, at: Place) {
        let pb::AlterDatabaseStmt { dbname: _, options } = node;
        self.define(C::Alter, "Database");
        self.found.effects.insert(Effects::ADMIN);
        self.all(options, at);
    }

    pub(super) fn alter_database_refresh_coll_stmt(&mut self, node: &'a pb::AlterDatabaseRefreshCollStmt, _at: Place) {
        let pb::AlterDatabaseRefreshCollStmt { dbname: _ } = node;
        self.define(C::Alter, "Database");
        self.found.effects.insert(Effects::ADMIN);
    }

    pub(super) fn dropdb_stmt(&mut self, node: &'a pb::DropdbStmt, at: Place) {
        let pb::DropdbStmt {
            dbname: _,
            missing_ok: _,
            options,
        } = node;
        self.define(C::Drop, "Database");
        self.found.effects.insert(Effects::ADMIN);
        self.all(options, at);
    }

    pub(super) fn create_conversion_stmt(&mut self, node: &'a pb::CreateConversionStmt, _at: Place) {
        let pb::CreateConversionStmt {
            conversion_name: _,
            for_encoding_name: _,
            to_encoding_name: _,
            func_name: _,
            def: _,
        } = node;
        self.define(C::Create, "Conversion");
        self.found.effects.insert(Effects::ADMIN);
    }

    pub(super) fn create_cast_stmt(&mut self, node: &'a pb::CreateCastStmt, at: Place) {
        let pb::CreateCastStmt {
            sourcetype,
            targettype,
            func,
            context: _,
            inout: _,
        } = node;
        self.define(C::Create, "Cast");
        let at = at.quiet();
        if let Some(inner) = sourcetype {
            self.type_name(inner, at);
        }
        if let Some(inner) = targettype {
            self.type_name(inner, at);
        }
        if let Some(inner) = func {
            self.object_with_args(inner, at);
        }
    }

    pub(super) fn create_transform_stmt(&mut self, node: &'a pb::CreateTransformStmt, at: Place) {
        let pb::CreateTransformStmt {
            replace: _,
            type_name,
            lang: _,
            fromsql,
            tosql,
        } = node;
        self.define(C::Create, "Transform");
        let at = at.quiet();
        if let Some(inner) = type_name {
            self.type_name(inner, at);
        }
        if let Some(inner) = fromsql {
            self.object_with_args(inner, at);
        }
        if let Some(inner) = tosql {
            self.object_with_args(inner, at);
        }
    }

    pub(super) fn alter_ts_dictionary_stmt(&mut self, node: &'a pb::AlterTsDictionaryStmt, at: Place) {
        let pb::AlterTsDictionaryStmt { dictname: _, options } = node;
        self.define(C::Alter, "TextSearchDictionary");
        self.all(options, at);
    }

    pub(super) fn alter_ts_configuration_stmt(&mut self, node: &'a pb::AlterTsConfigurationStmt, at: Place) {
        let pb::AlterTsConfigurationStmt {
            kind: _,
            cfgname: _,
            tokentype,
            dicts,
            r#override: _,
            replace: _,
            missing_ok: _,
        } = node;
        self.define(C::Alter, "TextSearchConfiguration");
        self.all(tokentype, at.quiet());
        self.all(dicts, at.quiet());
    }

    pub(super) fn publication_table(&mut self, node: &'a pb::PublicationTable, at: Place) {
        let pb::PublicationTable {
            relation,
            where_clause,
            columns,
        } = node;
        if let Some(inner) = relation {
            self.range_var(inner, at);
        }
        self.maybe(where_clause, at);
        self.all(columns, at);
    }

    pub(super) fn publication_obj_spec(&mut self, node: &'a pb::PublicationObjSpec, at: Place) {
        let pb::PublicationObjSpec {
            pubobjtype: _,
            name: _,
            pubtable,
            location: _,
        } = node;
        self.since(15, "a list of publication objects");
        if let Some(inner) = pubtable {
            self.publication_table(inner, at);
        }
    }

    pub(super) fn create_publication_stmt(&mut self, node: &'a pb::CreatePublicationStmt, at: Place) {
        let pb::CreatePublicationStmt {
            pubname: _,
            options,
            pubobjects,
            for_all_tables,
        } = node;
        self.define(C::Create, "Publication");
        self.found.effects.insert(Effects::NETWORK);
        if *for_all_tables {
            self.whole_database(C::Create);
        }
        let at = at.existing(C::Create);
        self.all(options, at);
        self.all(pubobjects, at);
    }

    pub(super) fn alter_publication_stmt(&mut self, node: &'a pb::AlterPublicationStmt, at: Place) {
        let pb::AlterPublicationStmt {
            pubname: _,
            options,
            pubobjects,
            for_all_tables,
            action: _,
        } = node;
        self.define(C::Alter, "Publication");
        self.found.effects.insert(Effects::NETWORK);
        if *for_all_tables {
            self.whole_database(C::Alter);
        }
        let at = at.existing(C::Alter);
        self.all(options, at);
        self.all(pubobjects, at);
    }

    pub(super) fn create_subscription_stmt(&mut self, node: &'a pb::CreateSubscriptionStmt, at: Place) {
        let pb::CreateSubscriptionStmt {
            subname: _,
            conninfo,
            publication,
            options,
            conninfo_location,
        } = node;
        self.define(C::Create, "Subscription");
        self.found.effects.insert(Effects::NETWORK);
        self.found.effects.insert(Effects::ADMIN);
        self.whole_database(C::Create);
        self.connection(conninfo, *conninfo_location);
        self.all(publication, at);
        self.all(options, at);
    }

    pub(super) fn alter_subscription_stmt(&mut self, node: &'a pb::AlterSubscriptionStmt, at: Place) {
        let pb::AlterSubscriptionStmt {
            kind: _,
            subname: _,
            conninfo,
            publication,
            options,
            conninfo_location,
        } = node;
        self.define(C::Alter, "Subscription");
        self.found.effects.insert(Effects::NETWORK);
        self.found.effects.insert(Effects::ADMIN);
        self.whole_database(C::Alter);
        self.connection(conninfo, *conninfo_location);
        self.all(publication, at);
        self.all(options, at);
    }

    pub(super) fn drop_subscription_stmt(&mut self, node: &'a pb::DropSubscriptionStmt, _at: Place) {
        let pb::DropSubscriptionStmt {
            subname: _,
            missing_ok: _,
            behavior: _,
        } = node;
        self.define(C::Drop, "Subscription");
        self.found.effects.insert(Effects::NETWORK);
        self.found.effects.insert(Effects::ADMIN);
        self.whole_database(C::Drop);
    }
}
