//! Statements about roles, privileges and the session: GRANT, SET, transactions, cursors, prepared statements.
//!
//! What they mean to the session's state is told by `commands`; here they add commands, effects and names.

use super::super::parse::pb;
use super::syntax::{Problem, SettingVerb};
use super::{Place, Walk};
use crate::api::access_policy::SqlCommand as C;
use crate::sql::facts::Effects;

impl<'a> Walk<'a> {
    pub(super) fn role_spec(&mut self, node: &'a pb::RoleSpec, _at: Place) {
        let pb::RoleSpec {
            roletype: _,
            rolename: _,
            location: _,
        } = node;
    }

    pub(super) fn grant_stmt(&mut self, node: &'a pb::GrantStmt, at: Place) {
        let pb::GrantStmt {
            is_grant,
            targtype,
            objtype,
            objects,
            privileges,
            grantees,
            grant_option: _,
            grantor: _,
            behavior: _,
        } = node;
        let command = if *is_grant { C::Grant } else { C::Revoke };
        self.command(command, Effects::GRANT);
        self.object_kind(*objtype);
        match pb::GrantTargetType::try_from(*targtype) {
            Ok(pb::GrantTargetType::AclTargetObject) => self.all(objects, at.existing(command).quiet()),
            _ => self.whole_database(command),
        }
        self.all(privileges, at);
        self.all(grantees, at);
    }

    pub(super) fn access_priv(&mut self, node: &'a pb::AccessPriv, at: Place) {
        let pb::AccessPriv { priv_name: _, cols } = node;
        self.all(cols, at);
    }

    pub(super) fn grant_role_stmt(&mut self, node: &'a pb::GrantRoleStmt, at: Place) {
        let pb::GrantRoleStmt {
            granted_roles,
            grantee_roles,
            is_grant,
            opt,
            grantor: _,
            behavior: _,
        } = node;
        let command = if *is_grant { C::Grant } else { C::Revoke };
        self.command(command, Effects::GRANT);
        self.object("Role");
        self.all(granted_roles, at);
        self.all(grantee_roles, at);
        self.all(opt, at);
    }

    pub(super) fn alter_default_privileges_stmt(&mut self, node: &'a pb::AlterDefaultPrivilegesStmt, at: Place) {
        let pb::AlterDefaultPrivilegesStmt { options, action } = node;
        self.command(C::Alter, Effects::GRANT);
        self.all(options, at);
        if let Some(inner) = action {
            self.grant_stmt(inner, at);
        }
    }

    pub(super) fn variable_set_stmt(&mut self, node: &'a pb::VariableSetStmt, at: Place) {
        let pb::VariableSetStmt {
            kind: _,
            name: _,
            args: _,
            jumble_args: _,
            is_local: _,
            location: _,
        } = node;
        // `variable` takes it apart; here it is a statement of its own or the option of a function.
        let verb = if at.top { SettingVerb::Set } else { SettingVerb::Store };
        if at.top {
            self.command(C::Set, Effects::SESSION);
        }
        self.variable(node, verb, at);
    }

    pub(super) fn variable_show_stmt(&mut self, node: &'a pb::VariableShowStmt, _at: Place) {
        let pb::VariableShowStmt { name } = node;
        self.command(C::Set, Effects::READ);
        self.setting(name, SettingVerb::Read, None);
    }

    pub(super) fn create_role_stmt(&mut self, node: &'a pb::CreateRoleStmt, at: Place) {
        let pb::CreateRoleStmt {
            stmt_type: _,
            role: _,
            options,
        } = node;
        self.define(C::Create, "Role");
        self.found.effects.insert(Effects::GRANT);
        self.found.effects.insert(Effects::ADMIN);
        self.all(options, at);
    }

    pub(super) fn alter_role_stmt(&mut self, node: &'a pb::AlterRoleStmt, at: Place) {
        let pb::AlterRoleStmt {
            role: _,
            options,
            action: _,
        } = node;
        self.define(C::Alter, "Role");
        self.found.effects.insert(Effects::GRANT);
        self.found.effects.insert(Effects::ADMIN);
        self.all(options, at);
    }

    pub(super) fn alter_role_set_stmt(&mut self, node: &'a pb::AlterRoleSetStmt, at: Place) {
        let pb::AlterRoleSetStmt {
            role: _,
            database: _,
            setstmt,
        } = node;
        self.define(C::Alter, "Role");
        self.found.effects.insert(Effects::ADMIN);
        if let Some(set) = setstmt {
            self.variable(set, SettingVerb::Store, at);
        }
    }

    pub(super) fn drop_role_stmt(&mut self, node: &'a pb::DropRoleStmt, at: Place) {
        let pb::DropRoleStmt { roles, missing_ok: _ } = node;
        self.define(C::Drop, "Role");
        self.found.effects.insert(Effects::GRANT);
        self.found.effects.insert(Effects::ADMIN);
        self.all(roles, at);
    }

    pub(super) fn declare_cursor_stmt(&mut self, node: &'a pb::DeclareCursorStmt, at: Place) {
        let pb::DeclareCursorStmt {
            portalname: _,
            options: _,
            query,
        } = node;
        self.maybe(query, at.kept());
    }

    pub(super) fn close_portal_stmt(&mut self, node: &'a pb::ClosePortalStmt, _at: Place) {
        let pb::ClosePortalStmt { portalname: _ } = node;
        self.command(C::Other, Effects::SESSION);
    }

    pub(super) fn fetch_stmt(&mut self, node: &'a pb::FetchStmt, _at: Place) {
        let pb::FetchStmt {
            direction: _,
            how_many: _,
            portalname: _,
            ismove: _,
        } = node;
    }

    pub(super) fn do_stmt(&mut self, node: &'a pb::DoStmt, at: Place) {
        let pb::DoStmt { args } = node;
        self.command(C::Do, Effects::UNKNOWN);
        self.whole_database(C::Do);
        self.all(args, at);
    }

    pub(super) fn call_stmt(&mut self, node: &'a pb::CallStmt, at: Place) {
        let pb::CallStmt {
            funccall,
            funcexpr,
            outargs,
        } = node;
        self.command(C::Call, Effects::UNKNOWN);
        if funcexpr.is_some() {
            self.problem(Problem::Node("CallStmt"));
        }
        if let Some(inner) = funccall {
            self.func_call(inner, at);
        }
        self.all(outargs, at);
    }

    pub(super) fn notify_stmt(&mut self, node: &'a pb::NotifyStmt, _at: Place) {
        let pb::NotifyStmt {
            conditionname,
            payload: _,
            payload_location: _,
        } = node;
        self.command(C::Notify, Effects::SESSION);
        self.found.channels.push(conditionname.as_str().into());
    }

    pub(super) fn listen_stmt(&mut self, node: &'a pb::ListenStmt, _at: Place) {
        let pb::ListenStmt { conditionname } = node;
        self.command(C::Listen, Effects::SESSION);
        self.found.channels.push(conditionname.as_str().into());
    }

    pub(super) fn unlisten_stmt(&mut self, node: &'a pb::UnlistenStmt, _at: Place) {
        let pb::UnlistenStmt { conditionname } = node;
        self.command(C::Listen, Effects::SESSION);
        if !conditionname.is_empty() {
            self.found.channels.push(conditionname.as_str().into());
        }
    }

    pub(super) fn transaction_stmt(&mut self, node: &'a pb::TransactionStmt, _at: Place) {
        let pb::TransactionStmt {
            kind,
            options,
            savepoint_name: _,
            gid: _,
            chain: _,
            location: _,
        } = node;
        self.command(C::Transaction, Effects::SESSION);
        match pb::TransactionStmtKind::try_from(*kind) {
            Ok(pb::TransactionStmtKind::Undefined) | Err(_) => self.problem(Problem::Value("transaction statement")),
            Ok(_) => {}
        }
        self.transaction_modes(options, SettingVerb::Set);
    }

    pub(super) fn load_stmt(&mut self, node: &'a pb::LoadStmt, _at: Place) {
        let pb::LoadStmt { filename: _ } = node;
        self.command(C::Other, Effects::FILESYSTEM);
        self.found.effects.insert(Effects::ADMIN);
    }

    pub(super) fn alter_database_set_stmt(&mut self, node: &'a pb::AlterDatabaseSetStmt, at: Place) {
        let pb::AlterDatabaseSetStmt { dbname: _, setstmt } = node;
        self.define(C::Alter, "Database");
        self.found.effects.insert(Effects::ADMIN);
        if let Some(set) = setstmt {
            self.variable(set, SettingVerb::Store, at);
        }
    }

    pub(super) fn alter_system_stmt(&mut self, node: &'a pb::AlterSystemStmt, at: Place) {
        let pb::AlterSystemStmt { setstmt } = node;
        self.command(C::Alter, Effects::ADMIN);
        self.object("System");
        if let Some(set) = setstmt {
            self.variable(set, SettingVerb::Store, at);
        }
    }

    pub(super) fn explain_stmt(&mut self, node: &'a pb::ExplainStmt, at: Place) {
        let pb::ExplainStmt { query, options } = node;
        self.maybe(query, at.kept());
        self.all(options, at);
    }

    pub(super) fn check_point_stmt(&mut self, node: &'a pb::CheckPointStmt, _at: Place) {
        let pb::CheckPointStmt {} = node;
        self.command(C::Maintain, Effects::ADMIN);
    }

    pub(super) fn discard_stmt(&mut self, node: &'a pb::DiscardStmt, _at: Place) {
        let pb::DiscardStmt { target } = node;
        self.command(C::Set, Effects::SESSION);
        match pb::DiscardMode::try_from(*target) {
            Ok(pb::DiscardMode::Undefined) | Err(_) => self.problem(Problem::Value("DISCARD")),
            Ok(_) => {}
        }
    }

    pub(super) fn prepare_stmt(&mut self, node: &'a pb::PrepareStmt, at: Place) {
        let pb::PrepareStmt {
            name: _,
            argtypes,
            query,
        } = node;
        self.maybe(query, at.kept());
        self.all(argtypes, at);
    }

    pub(super) fn execute_stmt(&mut self, node: &'a pb::ExecuteStmt, at: Place) {
        let pb::ExecuteStmt { name: _, params } = node;
        self.all(params, at);
    }

    pub(super) fn deallocate_stmt(&mut self, node: &'a pb::DeallocateStmt, _at: Place) {
        let pb::DeallocateStmt {
            name: _,
            isall: _,
            location: _,
        } = node;
        self.command(C::Other, Effects::SESSION);
    }

    pub(super) fn drop_owned_stmt(&mut self, node: &'a pb::DropOwnedStmt, at: Place) {
        let pb::DropOwnedStmt { roles, behavior: _ } = node;
        self.define(C::Drop, "Owned");
        self.found.effects.insert(Effects::GRANT);
        self.whole_database(C::Drop);
        self.all(roles, at);
    }

    pub(super) fn reassign_owned_stmt(&mut self, node: &'a pb::ReassignOwnedStmt, at: Place) {
        let pb::ReassignOwnedStmt { roles, newrole: _ } = node;
        self.define(C::Alter, "Owned");
        self.found.effects.insert(Effects::GRANT);
        self.whole_database(C::Alter);
        self.all(roles, at);
    }
}
