//! From CEL text to [`Ast`]: the only file that names `cel`.
//!
//! The library parses; macros stay ordinary calls, so that [`super::check`] sees what was written. Its tree is as
//! deep as its text allows and is walked and dropped on a thread with room for that; what leaves is at most
//! [`MAX_DEPTH`] deep. No type of the library crosses this file.

use cel::common::ast::{operators, Expr, LiteralValue};
use cel::{Env, IdedExpr};

use super::{ExprError, MAX_DEPTH, MAX_LENGTH};

/// An expression as written.
#[derive(Debug, Clone, PartialEq)]
pub enum Ast {
    /// A constant.
    Literal(Literal),
    /// A name.
    Name(String),
    /// `operand.field`.
    Select(Box<Ast>, String),
    /// `operand[index]`.
    Index(Box<Ast>, Box<Ast>),
    /// `[a, b]`.
    List(Vec<Ast>),
    /// `!a`.
    Not(Box<Ast>),
    /// `-a`.
    Negate(Box<Ast>),
    /// `a && b && c`.
    And(Vec<Ast>),
    /// `a || b || c`.
    Or(Vec<Ast>),
    /// `c ? a : b`.
    Choose(Box<[Ast; 3]>),
    /// `a in b`.
    In(Box<[Ast; 2]>),
    /// A comparison or an arithmetic operation.
    Binary(Binary, Box<[Ast; 2]>),
    /// `target.name(arguments)` or `name(arguments)`.
    Call(String, Option<Box<Ast>>, Vec<Ast>),
}

/// A constant as written.
#[derive(Debug, Clone, PartialEq)]
pub enum Literal {
    /// `true`, `false`.
    Bool(bool),
    /// `1`.
    Int(i64),
    /// `1.5`.
    Double(f64),
    /// `"text"`.
    Text(String),
    /// `null`.
    Null,
}

/// Binary operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binary {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterEqual,
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
    /// `/`
    Divide,
    /// `%`
    Modulo,
}

impl Binary {
    /// As written.
    pub fn symbol(self) -> &'static str {
        match self {
            Binary::Equal => "==",
            Binary::NotEqual => "!=",
            Binary::Less => "<",
            Binary::LessEqual => "<=",
            Binary::Greater => ">",
            Binary::GreaterEqual => ">=",
            Binary::Add => "+",
            Binary::Subtract => "-",
            Binary::Multiply => "*",
            Binary::Divide => "/",
            Binary::Modulo => "%",
        }
    }
}

/// Parses an expression.
pub fn parse(text: &str) -> Result<Ast, ExprError> {
    if text.len() > MAX_LENGTH {
        return Err(ExprError::TooLong(text.len()));
    }
    std::thread::scope(|scope| {
        let parsing = std::thread::Builder::new()
            .name("when-parse".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, || parse_here(text));
        match parsing.map(|thread| thread.join()) {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(ExprError::Syntax("the parser gave up".to_owned())),
            Err(error) => Err(ExprError::Syntax(format!("no thread to parse it on: {error}"))),
        }
    })
}

fn parse_here(text: &str) -> Result<Ast, ExprError> {
    let env = Env::default().with_optional_support(false);
    let parser = env.parser().max_recursion_depth(PARSER_DEPTH);
    let tree = parser.parse(text).map_err(|errors| {
        let first = errors
            .errors
            .first()
            .map(|error| format!("{} (line {}, column {})", error.msg, error.pos.0, error.pos.1));
        ExprError::Syntax(first.unwrap_or_else(|| "it does not parse".to_owned()))
    })?;
    ast(&tree, MAX_DEPTH)
}

fn ast(expr: &IdedExpr, depth: usize) -> Result<Ast, ExprError> {
    let depth = depth.checked_sub(1).ok_or(ExprError::TooDeep)?;
    match &expr.expr {
        Expr::Literal(value) => literal(value).map(Ast::Literal),
        Expr::Ident(name) => Ok(Ast::Name(name.clone())),
        Expr::Select(select) if !select.test => Ok(Ast::Select(
            Box::new(ast(&select.operand, depth)?),
            select.field.clone(),
        )),
        Expr::List(list) if list.optional_indices.is_empty() => all(&list.elements, depth).map(Ast::List),
        Expr::Call(call) => match &call.target {
            Some(target) => Ok(Ast::Call(
                call.func_name.clone(),
                Some(Box::new(ast(target, depth)?)),
                all(&call.args, depth)?,
            )),
            None => operator(&call.func_name, &call.args, depth),
        },
        Expr::Map(_) => Err(unsupported("maps")),
        Expr::Struct(_) => Err(unsupported("messages")),
        Expr::Select(_) | Expr::List(_) | Expr::Comprehension(_) | Expr::Unspecified => {
            Err(unsupported("this kind of expression"))
        }
    }
}

fn all(exprs: &[IdedExpr], depth: usize) -> Result<Vec<Ast>, ExprError> {
    exprs.iter().map(|expr| ast(expr, depth)).collect()
}

fn literal(value: &LiteralValue) -> Result<Literal, ExprError> {
    Ok(match value {
        LiteralValue::Boolean(value) => Literal::Bool(*value.inner()),
        LiteralValue::Int(value) => Literal::Int(*value.inner()),
        LiteralValue::Double(value) => Literal::Double(*value.inner()),
        LiteralValue::String(value) => Literal::Text(value.inner().to_owned()),
        LiteralValue::Null => Literal::Null,
        LiteralValue::UInt(_) => return Err(unsupported("unsigned numbers: write it without `u`")),
        LiteralValue::Bytes(_) => return Err(unsupported("bytes")),
    })
}

fn operator(name: &str, args: &[IdedExpr], depth: usize) -> Result<Ast, ExprError> {
    let binary = match name {
        operators::EQUALS => Some(Binary::Equal),
        operators::NOT_EQUALS => Some(Binary::NotEqual),
        operators::LESS => Some(Binary::Less),
        operators::LESS_EQUALS => Some(Binary::LessEqual),
        operators::GREATER => Some(Binary::Greater),
        operators::GREATER_EQUALS => Some(Binary::GreaterEqual),
        operators::ADD => Some(Binary::Add),
        operators::SUBSTRACT => Some(Binary::Subtract),
        operators::MULTIPLY => Some(Binary::Multiply),
        operators::DIVIDE => Some(Binary::Divide),
        operators::MODULO => Some(Binary::Modulo),
        _ => None,
    };
    match (name, args) {
        (operators::LOGICAL_AND, _) => chain(name, args, depth).map(Ast::And),
        (operators::LOGICAL_OR, _) => chain(name, args, depth).map(Ast::Or),
        (operators::LOGICAL_NOT, [a]) => Ok(Ast::Not(Box::new(ast(a, depth)?))),
        (operators::NEGATE, [a]) => Ok(Ast::Negate(Box::new(ast(a, depth)?))),
        (operators::IN, [a, b]) => Ok(Ast::In(Box::new([ast(a, depth)?, ast(b, depth)?]))),
        (operators::INDEX, [a, b]) => Ok(Ast::Index(Box::new(ast(a, depth)?), Box::new(ast(b, depth)?))),
        (operators::CONDITIONAL, [a, b, c]) => {
            Ok(Ast::Choose(Box::new([ast(a, depth)?, ast(b, depth)?, ast(c, depth)?])))
        }
        (_, [a, b]) if binary.is_some() => {
            let pair = Box::new([ast(a, depth)?, ast(b, depth)?]);
            binary
                .map(|binary| Ast::Binary(binary, pair))
                .ok_or_else(|| unsupported(name))
        }
        _ => Ok(Ast::Call(name.to_owned(), None, all(args, depth)?)),
    }
}

/// One level for a whole chain of `&&` or `||`, however the parser nested it.
fn chain(name: &str, args: &[IdedExpr], depth: usize) -> Result<Vec<Ast>, ExprError> {
    let mut terms = Vec::new();
    let mut open: Vec<&IdedExpr> = args.iter().rev().collect();
    while let Some(next) = open.pop() {
        match &next.expr {
            Expr::Call(call) if call.func_name == name && call.target.is_none() => open.extend(call.args.iter().rev()),
            _ => terms.push(ast(next, depth)?),
        }
    }
    Ok(terms)
}

fn unsupported(what: &str) -> ExprError {
    ExprError::Unsupported(format!("a `when` cannot use {what}"))
}

/// The C-like recursion of the generated parser, unoptimised, over the longest text.
const STACK: usize = 64 << 20;
/// The parser's own count includes parentheses, which our tree does not have.
const PARSER_DEPTH: u16 = 256;

/// The library's own interpreter, as an oracle for tests of ours.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod oracle {
    use std::collections::HashMap;

    use cel::objects::{Key, Map};
    use cel::{Context, Program, Value};

    use crate::engine::expr::facts::{FactId, Kind};
    use crate::engine::expr::run::Scene;
    use crate::engine::expr::value::{ListValue, Value as Ours};

    /// Runs an expression by the library. None: it failed.
    pub(crate) fn interpret(text: &str, scene: &Scene<'_>) -> Option<bool> {
        let mut roots: HashMap<&str, HashMap<Key, Value>> = HashMap::new();
        let mut context = Context::default();
        for fact in FactId::ALL {
            let Some(value) = scene.fact(fact).and_then(theirs) else {
                continue;
            };
            match fact.name().split_once('.') {
                Some((root, field)) => {
                    roots.entry(root).or_default().insert(field.into(), value);
                }
                None => context.add_variable_from_value(fact.name(), value),
            }
            assert!(fact.kind() != Kind::Bool || matches!(scene.fact(fact), Some(Ours::Bool(_))));
        }
        for (root, fields) in roots {
            context.add_variable_from_value(root, Value::Map(Map { map: fields.into() }));
        }
        match Program::compile(text).ok()?.execute(&context) {
            Ok(Value::Bool(value)) => Some(value),
            _ => None,
        }
    }

    fn theirs(value: Ours<'_>) -> Option<Value> {
        Some(match value {
            Ours::Bool(value) => Value::Bool(value),
            Ours::Int(value) => Value::Int(value),
            Ours::Double(value) => Value::Float(value),
            Ours::Null => Value::Null,
            Ours::Text(text) => Value::String(text.to_string().into()),
            Ours::Labels(labels) => {
                let map: HashMap<Key, Value> = labels
                    .iter()
                    .map(|(key, value)| (key.clone().into(), Value::String(value.clone().into())))
                    .collect();
                Value::Map(Map { map: map.into() })
            }
            Ours::List(list) => Value::List(list_of(&list)?.into()),
            Ours::Time(time) => {
                let text = time.to_string();
                match Program::compile(&format!("timestamp({text:?})"))
                    .unwrap()
                    .execute(&Context::default())
                {
                    Ok(value) => value,
                    Err(_) => return None,
                }
            }
            Ours::Span(_) => return None,
        })
    }

    fn list_of(list: &ListValue<'_>) -> Option<Vec<Value>> {
        let mut values = Vec::new();
        for index in 0..list.len() {
            values.push(theirs(list.get(index).ok()??)?);
        }
        Some(values)
    }
}
