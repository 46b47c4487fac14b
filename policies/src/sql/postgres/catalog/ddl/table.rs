//! Tables, foreign tables and sequences of a schema file, and what ALTER, RENAME and DROP make of them.
//!
//! A change that is not understood makes the relation unknown again rather than leaving it as it was. A view whose
//! relation changes its name is forgotten too, because its body was bound to the old one.

use std::sync::Arc;

use super::super::super::names::truncated;
use super::super::super::parse::{pb, NodeEnum as N};
use super::super::{Column, Oid, Relation, RelationKind, TypeKind};
use super::{strings, written, Read, Reader};
use crate::sql::names::RelationName;
use pb::AlterTableType as At;
use pb::ConstrType as Ct;
use pb::ObjectType as Ot;

impl Reader {
    /// Adds a relation with its row type.
    pub(super) fn add_relation(
        &mut self,
        (schema, name): (Arc<str>, Arc<str>),
        kind: RelationKind,
        columns: Vec<Column>,
        parents: Vec<Oid>,
    ) -> Oid {
        let oid = self.oid();
        let has_rows = !matches!(kind, RelationKind::Sequence);
        let row_type = match has_rows {
            true => self.add_type((Arc::clone(&schema), Arc::clone(&name)), TypeKind::Composite, 0, oid),
            false => 0,
        };
        for parent in &parents {
            self.change(*parent, |parent| parent.children.push(oid));
        }
        let relation = Relation {
            oid,
            name: RelationName::new(&schema, &name),
            kind,
            row_type,
            columns,
            parents,
            children: Vec::new(),
            definition: None,
            depends: Vec::new(),
        };
        self.catalog.names.entry(name).or_default().push(oid);
        self.catalog.relations.insert(oid, Arc::new(relation));
        oid
    }

    fn change(&mut self, oid: Oid, change: impl FnOnce(&mut Relation)) {
        if let Some(relation) = self.catalog.relations.get_mut(&oid) {
            change(Arc::make_mut(relation));
        }
    }

    /// Whether a relation of this name may be created.
    pub(super) fn is_free(&self, schema: &str, name: &str) -> Read {
        match self.catalog.relation_named(schema, name) {
            Some(_) => Err(format!("{schema}.{name} is defined twice; the first one was kept")),
            None => Ok(()),
        }
    }

    pub(super) fn table(&mut self, e: &pb::CreateStmt, kind: RelationKind) -> Read {
        let Some(var) = &e.relation else { return Ok(()) };
        if var.relpersistence == "t" {
            return Err(format!("{} is temporary: agents' sessions do not see it", var.relname));
        }
        let (schema, name) = self.place(&var.schemaname, &var.relname)?;
        if let Err(taken) = self.is_free(&schema, &name) {
            return if e.if_not_exists { Ok(()) } else { Err(taken) };
        }
        let stays = |why: String| format!("{why}, so {schema}.{name} stays unknown");
        let mut columns: Vec<Column> = Vec::new();
        let mut parents = Vec::new();
        for parent in &e.inh_relations {
            let Some(N::RangeVar(parent)) = &parent.node else {
                continue;
            };
            let parent = self.find(parent).map_err(stays)?;
            merge(&mut columns, parent.columns.iter().cloned());
            parents.push(parent.oid);
        }
        if let Some(of) = &e.of_typename {
            let oid = self.type_oid(of).unwrap_or_default();
            let row = self.catalog.row_relation(oid).cloned();
            let row = row.ok_or_else(|| stays("the type it is OF is not known here".to_owned()))?;
            merge(&mut columns, row.columns.iter().cloned());
        }
        self.elements(e, &mut columns).map_err(stays)?;
        let kind = match e.partspec.is_some() {
            true => RelationKind::Partitioned,
            false => kind,
        };
        self.add_relation((Arc::clone(&schema), Arc::clone(&name)), kind, columns, parents);
        self.own_sequences(e, &schema, &name);
        Ok(())
    }

    fn elements(&mut self, e: &pb::CreateStmt, columns: &mut Vec<Column>) -> Read {
        for element in e.table_elts.iter().chain(&e.constraints) {
            match &element.node {
                Some(N::ColumnDef(def)) => {
                    let column = self.column(def);
                    merge(columns, [column]);
                }
                Some(N::TableLikeClause(like)) => {
                    let Some(var) = &like.relation else { continue };
                    let like = self.find(var)?;
                    merge(columns, like.columns.iter().cloned());
                }
                Some(N::Constraint(constraint)) => keys(constraint, columns),
                _ => return Err("it has an element that is not understood".to_owned()),
            }
        }
        Ok(())
    }

    pub(super) fn column(&mut self, def: &pb::ColumnDef) -> Column {
        let has = |wanted: &[Ct]| {
            def.constraints.iter().any(|constraint| match &constraint.node {
                Some(N::Constraint(constraint)) => wanted.contains(&constraint.contype()),
                _ => false,
            })
        };
        let serial = is_serial(def);
        let type_oid = match &def.type_name {
            Some(name) => self.type_of_column(name, &def.colname),
            None => 0,
        };
        Column {
            attnum: 0,
            name: truncated(&def.colname).into(),
            type_oid,
            typmod: -1,
            not_null: def.is_not_null || serial || has(&[Ct::ConstrNotnull, Ct::ConstrPrimary, Ct::ConstrIdentity]),
            generated: has(&[Ct::ConstrGenerated]),
        }
    }

    /// The sequences of `serial` and identity columns.
    fn own_sequences(&mut self, e: &pb::CreateStmt, schema: &Arc<str>, table: &Arc<str>) {
        for element in &e.table_elts {
            let Some(N::ColumnDef(def)) = &element.node else {
                continue;
            };
            let identity = def.constraints.iter().any(
                |constraint| matches!(&constraint.node, Some(N::Constraint(c)) if c.contype() == Ct::ConstrIdentity),
            );
            let name: Arc<str> = format!("{table}_{}_seq", def.colname).into();
            if (identity || is_serial(def)) && self.is_free(schema, &name).is_ok() {
                self.add_sequence((Arc::clone(schema), name));
            }
        }
    }

    fn add_sequence(&mut self, place: (Arc<str>, Arc<str>)) {
        let names = [("last_value", 20), ("log_cnt", 20), ("is_called", 16)];
        let mut columns = Vec::new();
        let column = |(name, type_oid): (&str, Oid)| Column {
            attnum: 0,
            name: name.into(),
            type_oid,
            typmod: -1,
            not_null: true,
            generated: false,
        };
        merge(&mut columns, names.map(column));
        self.add_relation(place, RelationKind::Sequence, columns, Vec::new());
    }

    pub(super) fn sequence(&mut self, var: Option<&pb::RangeVar>) -> Read {
        let Some(var) = var else { return Ok(()) };
        let (schema, name) = self.place(&var.schemaname, &var.relname)?;
        // A dump writes the sequence of a serial column by itself.
        if self.is_free(&schema, &name).is_ok() {
            self.add_sequence((schema, name));
        }
        Ok(())
    }

    pub(super) fn alter_table(&mut self, e: &pb::AlterTableStmt) -> Read {
        let Some(var) = &e.relation else { return Ok(()) };
        if matches!(e.objtype(), Ot::ObjectIndex | Ot::ObjectSequence) {
            return Ok(());
        }
        let relation = match (self.find(var), e.missing_ok) {
            (Ok(relation), _) => relation,
            (Err(_), true) => return Ok(()),
            (Err(why), false) => return Err(format!("ALTER TABLE was not read: {why}")),
        };
        for command in &e.cmds {
            let Some(N::AlterTableCmd(command)) = &command.node else {
                continue;
            };
            if let Err(why) = self.alter(relation.oid, command) {
                let name = relation.name.to_string();
                self.forget(relation.oid);
                return Err(format!("{name} stays unknown: {why}"));
            }
        }
        Ok(())
    }

    fn alter(&mut self, oid: Oid, e: &pb::AlterTableCmd) -> Read {
        let def = e.def.as_deref().and_then(|def| def.node.as_ref());
        let set_not_null = |name: &str, value: bool| {
            let name = name.to_owned();
            move |relation: &mut Relation| {
                let columns = relation.columns.iter_mut().filter(|column| *column.name == *name);
                columns.for_each(|column| column.not_null = value);
            }
        };
        match (e.subtype(), def) {
            (At::AtAddColumn, Some(N::ColumnDef(def))) => {
                let column = self.column(def);
                for oid in self.family(oid) {
                    self.change(oid, |relation| merge(&mut relation.columns, [column.clone()]));
                }
            }
            (At::AtDropColumn, _) => {
                self.forget_views(oid);
                for oid in self.family(oid) {
                    self.change(oid, |relation| {
                        relation.columns.retain(|column| *column.name != *e.name)
                    });
                }
            }
            (At::AtSetNotNull, _) => self.change(oid, set_not_null(&e.name, true)),
            (At::AtDropNotNull, _) => self.change(oid, set_not_null(&e.name, false)),
            (At::AtAddConstraint, Some(N::Constraint(constraint))) => {
                self.change(oid, |relation| keys(constraint, &mut relation.columns));
            }
            (At::AtAlterColumnType, Some(N::ColumnDef(def))) => {
                let changed = self.column(def).type_oid;
                self.change(oid, |relation| {
                    let columns = relation.columns.iter_mut().filter(|column| *column.name == *e.name);
                    columns.for_each(|column| column.type_oid = changed);
                });
            }
            (At::AtAttachPartition, Some(N::PartitionCmd(command))) => {
                if let Some(N::RangeVar(child)) = command.name.clone().map(N::RangeVar) {
                    let child = self.find(&child)?.oid;
                    self.relate(child, oid);
                }
            }
            (At::AtAddInherit, Some(N::RangeVar(parent))) => {
                let parent = self.find(parent)?.oid;
                self.relate(oid, parent);
            }
            (subtype, _) if keeps_names(subtype) => {}
            _ => return Err("an ALTER TABLE command is not understood".to_owned()),
        }
        Ok(())
    }

    fn relate(&mut self, child: Oid, parent: Oid) {
        self.change(child, |relation| relation.parents.push(parent));
        self.change(parent, |relation| relation.children.push(child));
    }

    /// A relation and all that inherit from it.
    fn family(&self, oid: Oid) -> Vec<Oid> {
        let mut family = vec![oid];
        let mut at = 0usize;
        while let Some(relation) = family.get(at).and_then(|oid| self.catalog.relation(*oid)) {
            let children: Vec<Oid> = relation
                .children
                .iter()
                .copied()
                .filter(|c| !family.contains(c))
                .collect();
            family.extend(children);
            at = at.saturating_add(1);
        }
        family
    }

    pub(super) fn rename(&mut self, e: &pb::RenameStmt) -> Read {
        let relation = match &e.relation {
            Some(var) => self.find(var).map_err(|why| format!("a RENAME was not read: {why}")),
            None => {
                Err("a RENAME of something else than a relation was not read: its names stay as they were".to_owned())
            }
        };
        match e.rename_type() {
            Ot::ObjectTabconstraint | Ot::ObjectIndex | Ot::ObjectTrigger | Ot::ObjectPolicy | Ot::ObjectRule => Ok(()),
            Ot::ObjectColumn | Ot::ObjectAttribute => {
                let oid = relation?.oid;
                self.forget_views(oid);
                let new: Arc<str> = truncated(&e.newname).into();
                for oid in self.family(oid) {
                    self.change(oid, |relation| {
                        let columns = relation.columns.iter_mut().filter(|column| *column.name == *e.subname);
                        columns.for_each(|column| column.name = Arc::clone(&new));
                    });
                }
                Ok(())
            }
            Ot::ObjectTable | Ot::ObjectView | Ot::ObjectMatview | Ot::ObjectForeignTable | Ot::ObjectSequence => {
                let relation = relation?;
                let new = RelationName::new(&relation.name.schema, truncated(&e.newname));
                self.move_to(&relation, new);
                Ok(())
            }
            _ => relation.map(drop),
        }
    }

    pub(super) fn set_schema(&mut self, e: &pb::AlterObjectSchemaStmt) -> Read {
        let Some(var) = &e.relation else {
            return Err("SET SCHEMA of something else than a relation was not read: it stays where it was".to_owned());
        };
        let relation = self.find(var)?;
        let (schema, name) = self.place(&e.newschema, &relation.name.name)?;
        self.move_to(&relation, RelationName::new(&schema, &name));
        Ok(())
    }

    fn move_to(&mut self, relation: &Relation, new: RelationName) {
        self.forget_views(relation.oid);
        if let Some(oids) = self.catalog.names.get_mut(&relation.name.name) {
            oids.retain(|oid| *oid != relation.oid);
        }
        let name: Arc<str> = Arc::from(&*new.name);
        self.catalog.names.entry(name).or_default().push(relation.oid);
        self.change(relation.oid, |relation| relation.name = new);
    }

    pub(super) fn drop_objects(&mut self, e: &pb::DropStmt) -> Read {
        match e.remove_type() {
            Ot::ObjectTable | Ot::ObjectView | Ot::ObjectMatview | Ot::ObjectForeignTable | Ot::ObjectSequence => {}
            Ot::ObjectIndex | Ot::ObjectTrigger | Ot::ObjectPolicy | Ot::ObjectRule | Ot::ObjectEventTrigger => {
                return Ok(())
            }
            Ot::ObjectExtension | Ot::ObjectStatisticExt | Ot::ObjectPublication => return Ok(()),
            // `DROP … IF EXISTS` before the CREATE opens many scripts; there is nothing to drop yet.
            _ if e.missing_ok => return Ok(()),
            _ => return Err("a DROP of something else than a relation was not read: it stays as it was".to_owned()),
        }
        for object in &e.objects {
            let Some(N::List(names)) = &object.node else { continue };
            let (schema, name) = match strings(&names.items).as_slice() {
                [name] => (String::new(), (*name).to_owned()),
                [schema, name] | [_, schema, name] => ((*schema).to_owned(), (*name).to_owned()),
                _ => continue,
            };
            let var = pb::RangeVar {
                schemaname: schema,
                relname: name,
                ..pb::RangeVar::default()
            };
            match self.find(&var) {
                Ok(relation) => {
                    self.forget_views(relation.oid);
                    self.forget(relation.oid);
                }
                Err(_) if e.missing_ok => {}
                Err(_) => self.note(format!("DROP: the relation {} is not known here", written(&var))),
            }
        }
        Ok(())
    }

    /// Takes a relation out again.
    pub(super) fn forget(&mut self, oid: Oid) {
        let Some(relation) = self.catalog.relations.remove(&oid) else {
            return;
        };
        if let Some(oids) = self.catalog.names.get_mut(&relation.name.name) {
            oids.retain(|known| *known != oid);
        }
        self.catalog.views.remove(&oid);
        for parent in &relation.parents {
            self.change(*parent, |parent| parent.children.retain(|child| *child != oid));
        }
    }

    /// Takes out the views over a relation whose names change.
    fn forget_views(&mut self, oid: Oid) {
        let Some(name) = self.catalog.relation(oid).map(|relation| relation.name.clone()) else {
            return;
        };
        let over: Vec<Oid> = self
            .catalog
            .views
            .iter()
            .filter(|(_, body)| body.relations.contains(&name))
            .map(|(oid, _)| *oid)
            .collect();
        for view in over {
            if let Some(found) = self.catalog.relation(view).map(|view| view.name.clone()) {
                self.note(format!(
                    "{found} stays unknown: {name}, which it shows, changes behind it"
                ));
            }
            self.forget_views(view);
            self.forget(view);
        }
    }
}

/// Adds columns; one that is there already (inherited, or attached) is merged.
pub(super) fn merge(columns: &mut Vec<Column>, more: impl IntoIterator<Item = Column>) {
    for new in more {
        match columns.iter_mut().find(|column| column.name == new.name) {
            Some(known) => known.not_null |= new.not_null,
            None => {
                let attnum = i16::try_from(columns.len().saturating_add(1)).unwrap_or(i16::MAX);
                columns.push(Column { attnum, ..new });
            }
        }
    }
}

/// A primary key or NOT NULL constraint on some columns.
fn keys(constraint: &pb::Constraint, columns: &mut [Column]) {
    if !matches!(constraint.contype(), Ct::ConstrPrimary | Ct::ConstrNotnull) {
        return;
    }
    for key in strings(&constraint.keys) {
        let named = columns.iter_mut().filter(|column| *column.name == *key);
        named.for_each(|column| column.not_null = true);
    }
}

fn is_serial(def: &pb::ColumnDef) -> bool {
    let names = def
        .type_name
        .as_ref()
        .map(|name| strings(&name.names))
        .unwrap_or_default();
    matches!(names.as_slice(), [name] | ["pg_catalog", name] if name.contains("serial"))
}

/// ALTER TABLE commands that leave names, nullability and lineage alone.
fn keeps_names(subtype: At) -> bool {
    !matches!(
        subtype,
        At::Undefined
            | At::AtAddColumn
            | At::AtAddColumnToView
            | At::AtDropColumn
            | At::AtAlterColumnType
            | At::AtAddInherit
            | At::AtDropInherit
            | At::AtAddOf
            | At::AtDropOf
            | At::AtAttachPartition
            | At::AtDetachPartition
            | At::AtDetachPartitionFinalize
            | At::AtAddConstraint
    )
}
