//! Functions, procedures, aggregates, operators and casts of a schema file.
//!
//! A function counts by its name, its number of arguments and the columns it answers. One whose result type is not
//! known stays unknown, because its columns could not be told.

use std::sync::Arc;

use super::super::super::parse::{pb, NodeEnum as N};
use super::super::{Cast, Function, FunctionKind, Oid, Operator, TypeKind, Volatility};
use super::{strings, Read, Reader};
use pb::FunctionParameterMode as Mode;
use pb::ObjectType as Ot;

/// The type `record`, and the one of a procedure without results.
const RECORD: Oid = 2249;
const VOID: Oid = 2278;

/// What the parameters of a function say.
#[derive(Default)]
struct Signature {
    arguments: Vec<Oid>,
    outputs: Vec<(Arc<str>, Oid)>,
    defaults: u32,
    variadic: bool,
}

impl Reader {
    /// Adds an overload; one of the same arguments is replaced.
    pub(super) fn add_function(&mut self, function: Function) {
        let overloads = self.catalog.functions.entry(Arc::clone(&function.name)).or_default();
        overloads.retain(|known| known.schema != function.schema || known.arguments != function.arguments);
        overloads.push(Arc::new(function));
    }

    fn signature<'p>(&self, parameters: impl Iterator<Item = &'p pb::Node>) -> Signature {
        let mut signature = Signature::default();
        for parameter in parameters {
            let Some(N::FunctionParameter(parameter)) = &parameter.node else {
                continue;
            };
            let oid = parameter
                .arg_type
                .as_ref()
                .and_then(|name| self.type_oid(name))
                .unwrap_or_default();
            let mode = parameter.mode();
            if matches!(mode, Mode::FuncParamOut | Mode::FuncParamInout | Mode::FuncParamTable) {
                signature.outputs.push((parameter.name.as_str().into(), oid));
            }
            if !matches!(mode, Mode::FuncParamOut | Mode::FuncParamTable) {
                signature.arguments.push(oid);
                signature.defaults = signature
                    .defaults
                    .saturating_add(u32::from(parameter.defexpr.is_some()));
            }
            signature.variadic |= mode == Mode::FuncParamVariadic;
        }
        signature
    }

    pub(super) fn function(&mut self, e: &pb::CreateFunctionStmt) -> Read {
        let place = self.place_of(&e.funcname)?;
        let signature = self.signature(e.parameters.iter());
        let name = format!("{}.{}", place.0, place.1);
        let result = match &e.return_type {
            Some(written) => self.type_oid(written).ok_or_else(|| {
                let written = strings(&written.names).join(".");
                format!("the function {name} answers the type {written}, which is not known here; it stays unknown")
            })?,
            None => match signature.outputs.as_slice() {
                [] => VOID,
                [(_, only)] => *only,
                _ => RECORD,
            },
        };
        let table = e
            .parameters
            .iter()
            .any(|p| matches!(&p.node, Some(N::FunctionParameter(p)) if p.mode() == Mode::FuncParamTable));
        let kind = match e.is_procedure {
            true => FunctionKind::Procedure,
            false => FunctionKind::Plain,
        };
        let set = table || e.return_type.as_ref().is_some_and(|written| written.setof);
        let function = Function {
            returns_set: set,
            language: option(&e.options, "language").unwrap_or("sql").into(),
            volatility: match option(&e.options, "volatility") {
                Some("immutable") => Volatility::Immutable,
                Some("stable") => Volatility::Stable,
                _ => Volatility::Volatile,
            },
            security_definer: is_true(&e.options, "security"),
            ..self.shaped(place, kind, result, signature)
        };
        self.add_function(function);
        Ok(())
    }

    fn shaped(
        &mut self,
        (schema, name): (Arc<str>, Arc<str>),
        kind: FunctionKind,
        result: Oid,
        signature: Signature,
    ) -> Function {
        let given = u32::try_from(signature.arguments.len()).unwrap_or(u32::MAX);
        let needed = given.saturating_sub(signature.defaults);
        Function {
            oid: self.oid(),
            schema,
            name,
            kind,
            language: "internal".into(),
            volatility: Volatility::Immutable,
            security_definer: false,
            returns_set: false,
            result,
            min_arguments: needed.saturating_sub(u32::from(signature.variadic)),
            max_arguments: (!signature.variadic).then_some(given),
            outputs: signature.outputs,
            arguments: signature.arguments,
            listed: false,
        }
    }

    /// CREATE AGGREGATE, OPERATOR and TYPE; other kinds of definitions have no names that statements use.
    pub(super) fn define(&mut self, e: &pb::DefineStmt) -> Read {
        match e.kind() {
            Ot::ObjectAggregate => self.aggregate(e),
            Ot::ObjectOperator => self.operator(e),
            Ot::ObjectType => {
                let names = strings(&e.defnames);
                // A shell type comes first and is filled in later.
                let known = names
                    .last()
                    .is_some_and(|name| self.catalog.types_named(name).next().is_some());
                match known {
                    true => Ok(()),
                    false => self.plain_type(&e.defnames, TypeKind::Base, 0),
                }
            }
            _ => Ok(()),
        }
    }

    fn aggregate(&mut self, e: &pb::DefineStmt) -> Read {
        let place = self.place_of(&e.defnames)?;
        // The parameters, and behind them where the direct ones end.
        let lists = e.args.iter().flat_map(|arg| match &arg.node {
            Some(N::List(list)) => list.items.as_slice(),
            _ => std::slice::from_ref(arg),
        });
        let mut signature = self.signature(lists);
        if e.oldstyle {
            signature.arguments = vec![0];
        }
        // Its result type is that of a function the dump may define later; it is never a row.
        let function = self.shaped(place, FunctionKind::Aggregate, 0, signature);
        self.add_function(function);
        Ok(())
    }

    fn operator(&mut self, e: &pb::DefineStmt) -> Read {
        let (schema, name) = self.place_of(&e.defnames)?;
        let function = option_names(&e.definition, "function").or_else(|| option_names(&e.definition, "procedure"));
        let function = function.ok_or_else(|| format!("the operator {name} names no function; it stays unknown"))?;
        let (function, immutable) = self.function_named(&function);
        let operator = Operator {
            schema,
            name: Arc::clone(&name),
            function,
            immutable,
            listed: false,
        };
        self.catalog.operators.entry(name).or_default().push(operator);
        Ok(())
    }

    /// `schema.name` of a function, and whether every overload is immutable.
    fn function_named(&self, names: &[String]) -> (Arc<str>, bool) {
        let (schema, name) = match names {
            [schema, name] => (Some(schema.as_str()), name.as_str()),
            [name] => (None, name.as_str()),
            _ => (None, ""),
        };
        let overloads = self.catalog.functions_named(name);
        let own = overloads.iter().find(|function| match schema {
            Some(schema) => &*function.schema == schema,
            None => self.path.contains(&function.schema),
        });
        let immutable = own.is_some_and(|function| function.volatility == Volatility::Immutable);
        let schema = own.map_or(schema.unwrap_or("pg_catalog"), |function| &*function.schema);
        (format!("{schema}.{name}").into(), immutable)
    }

    pub(super) fn cast(&mut self, e: &pb::CreateCastStmt) -> Read {
        let Some(target) = &e.targettype else { return Ok(()) };
        let names = strings(&target.names);
        let oid = self.type_oid(target);
        let own = oid.and_then(|oid| self.catalog.type_of(oid));
        let (target_schema, target) = match (own, names.as_slice()) {
            (Some(found), _) => (Arc::clone(&found.schema), Arc::clone(&found.name)),
            (None, [.., name]) if oid.is_some() => (Arc::from("pg_catalog"), Arc::from(*name)),
            _ => {
                return Err(format!(
                    "a cast to {}, a type that is not known here, was not read",
                    names.join(".")
                ))
            }
        };
        let function = e.func.as_ref().map(|function| {
            let names: Vec<String> = strings(&function.objname).into_iter().map(str::to_owned).collect();
            self.function_named(&names).0
        });
        let cast = Cast {
            target_schema,
            target: Arc::clone(&target),
            function,
            listed: false,
        };
        self.catalog.casts.entry(target).or_default().push(cast);
        Ok(())
    }
}

fn argument<'o>(options: &'o [pb::Node], name: &str) -> Option<&'o N> {
    let found = options.iter().find_map(|option| match &option.node {
        Some(N::DefElem(option)) if option.defname == name => option.arg.as_deref(),
        _ => None,
    });
    found?.node.as_ref()
}

/// A word among the options of a CREATE.
fn option<'o>(options: &'o [pb::Node], name: &str) -> Option<&'o str> {
    match argument(options, name)? {
        N::String(text) => Some(&text.sval),
        _ => None,
    }
}

fn is_true(options: &[pb::Node], name: &str) -> bool {
    matches!(argument(options, name), Some(N::Boolean(flag)) if flag.boolval)
}

/// A name among the options of a CREATE, written like a type.
fn option_names(options: &[pb::Node], name: &str) -> Option<Vec<String>> {
    let names = match argument(options, name)? {
        N::TypeName(name) => strings(&name.names),
        N::List(list) => strings(&list.items),
        N::String(text) => vec![text.sval.as_str()],
        _ => return None,
    };
    Some(names.into_iter().map(str::to_owned).collect())
}
