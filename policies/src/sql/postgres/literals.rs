//! Which constants of a text are hidden where the text is shown: in records, requests for approval and refusals.
//!
//! Hidden is what is a secret by its place (passwords, keys, connection strings) and what a masked column is set from.
//! A statement that masks refuse, and one that was not understood, loses every string and every longer number, because
//! any of them may be a masked value. What is sent, judged and bound by approvals is never touched.
//!
//! A [`Hidden`] counts tokens, not bytes: it belongs to every text of one shape (see [`super::shape`]), in which only
//! plain constants differ and stand in the same places.

use std::borrow::Cow;
use std::ops::Range;

use super::analysis::{Analysis, Statement, StatementKind};
use super::catalog::Catalog;
use super::lineage::{mask_of, Verdict};
use super::parse::{self, Token, TokenKind};
use super::plan::touches_masked;
use super::walk::{SecretKind, SecretRef};
use crate::engine::decision::MaskSet;
use crate::engine::operation::Completeness;
use crate::mask::Detectors;
use crate::sql::names::ColumnName;

#[cfg(test)]
mod tests;

/// Stands for a hidden constant.
pub const MARK: &str = "'***'";
/// Stands for a hidden quoted name.
const NAME_MARK: &str = "\"***\"";
/// Numbers of fewer digits are shown where nothing else is known of them: limits, offsets, small counts.
const LONG_NUMBER: usize = 6;
/// How deep code inside of strings is looked into.
const DEEPEST: u32 = 4;

/// What a column is assigned from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Assigned {
    /// Constants at these byte offsets, and parameters.
    Constants(Vec<usize>),
    /// Something that may hold any constant of the statement.
    Anything,
}

/// Which constants of one statement may have to be hidden, by byte offset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Literals {
    /// Secrets by their place.
    pub(super) secrets: Vec<SecretRef>,
    assigned: Vec<(ColumnName, Assigned)>,
    /// What it assigns was looked at.
    bound: bool,
    /// The stored statement it runs takes secrets, so that its arguments may be some.
    runs_secret: bool,
}

impl Literals {
    /// Of a statement that was bound.
    pub(super) fn of_bound(assigned: Vec<(ColumnName, Assigned)>) -> Self {
        Literals {
            assigned,
            bound: true,
            ..Literals::default()
        }
    }

    /// Adds those of a statement inside this one. Its secrets stand in the same tree and are known already.
    pub(super) fn wrap(&mut self, inner: &Literals) {
        self.assigned.extend_from_slice(&inner.assigned);
        self.bound |= inner.bound;
        self.runs_secret |= inner.runs_secret;
    }

    /// Runs a statement stored earlier, whose constants stand in another text.
    pub(super) fn run(&mut self, stored: &Literals) {
        self.runs_secret |= stored.runs_secret || !stored.secrets.is_empty();
    }
}

/// Which arguments of a call are secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arguments {
    /// All.
    All,
    /// All but the first.
    Rest,
    /// The first, where it reads as a connection string.
    Connection,
    /// The second, where the first names a setting that holds a secret.
    Setting,
}

/// Functions that take passwords, keys or connection strings. Extensions live in any schema, so names count.
pub(super) fn secret_arguments(function: &str) -> Option<Arguments> {
    Some(match function {
        "crypt"
        | "hmac"
        | "encrypt"
        | "decrypt"
        | "encrypt_iv"
        | "decrypt_iv"
        | "sign"
        | "verify"
        | "dblink_connect"
        | "dblink_connect_u"
        | "create_secret"
        | "update_secret"
        | "create_aws_credentials"
        | "account_add" => Arguments::All,
        "pgp_sym_encrypt" | "pgp_sym_encrypt_bytea" | "pgp_sym_decrypt" | "pgp_sym_decrypt_bytea" => Arguments::All,
        "pgp_pub_decrypt" | "pgp_pub_decrypt_bytea" => Arguments::Rest,
        "dblink"
        | "dblink_exec"
        | "dblink_open"
        | "dblink_fetch"
        | "dblink_close"
        | "dblink_send_query"
        | "dblink_get_connections" => Arguments::Connection,
        "set_config" => Arguments::Setting,
        _ => return None,
    })
}

/// Whether a name of an option or a setting says that its value is a secret.
pub(super) fn is_secret_name(name: &str) -> bool {
    const WORDS: [&str; 10] = [
        "password",
        "passwd",
        "passphrase",
        "passcode",
        "secret",
        "token",
        "credential",
        "conninfo",
        "apikey",
        "private_key",
    ];
    let name = name.to_ascii_lowercase();
    let harmless = matches!(
        name.as_str(),
        "password_encryption" | "password_required" | "ssl_passphrase_command_supports_reload"
    );
    let key = name == "key" || name.ends_with("_key") || name.ends_with(".key");
    !harmless && (key || WORDS.iter().any(|word| name.contains(word)))
}

/// Options of foreign data wrappers that hold no secret, whatever the wrapper.
pub(super) fn is_plain_option(name: &str) -> bool {
    matches!(
        name,
        "host"
            | "hostaddr"
            | "port"
            | "dbname"
            | "database"
            | "user"
            | "username"
            | "password_required"
            | "application_name"
            | "sslmode"
            | "schema"
            | "schema_name"
            | "table"
            | "table_name"
            | "column_name"
            | "filename"
            | "format"
            | "header"
            | "delimiter"
            | "quote"
            | "escape"
            | "null"
            | "encoding"
            | "extensions"
            | "fetch_size"
            | "batch_size"
            | "use_remote_estimate"
            | "fdw_startup_cost"
            | "fdw_tuple_cost"
            | "updatable"
            | "truncatable"
            | "async_capable"
            | "keep_connections"
            | "parallel_commit"
            | "parallel_abort"
            | "analyze_sampling"
            | "import_default"
            | "import_collate"
            | "import_generated"
            | "import_not_null"
    )
}

/// How one token is hidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum How {
    /// If it is code, what is secret in it; the rest is shown.
    Code,
    /// If it is a string, a longer number, or a quoted name that is none of a plain word.
    Swept,
    /// Whatever constant it is.
    Whole,
}

/// What of a text is hidden. It belongs to the text it was made of, and to every text of its shape.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hidden {
    /// Tokens by number, ascending.
    tokens: Vec<(usize, How)>,
    /// Nothing is known of the text.
    all: bool,
    /// Its bind values may be secrets.
    values: bool,
    /// It holds secrets of its own, besides what masks hide.
    secrets: bool,
}

impl Hidden {
    /// What is hidden of a text of which nothing is known.
    pub const ALL: Hidden = Hidden {
        tokens: Vec::new(),
        all: true,
        values: false,
        secrets: false,
    };

    /// What is hidden of an analysed text under these masks; `refused`: they do not let it run.
    pub fn of(text: &str, analysis: &Analysis, masks: &MaskSet, catalog: &Catalog, refused: bool) -> Hidden {
        if analysis.statements.is_empty() {
            return match &analysis.problem {
                Some(_) => Hidden::ALL,
                None => Hidden::default(),
            };
        }
        let mut places = Places::default();
        for statement in &analysis.statements {
            places.add(statement, masks, catalog, refused);
        }
        if places.is_empty() {
            return Hidden::default();
        }
        match parse::tokens(text) {
            Ok(tokens) => places.find(text, &tokens),
            Err(_) => Hidden::ALL,
        }
    }

    /// Whether the whole text is shown.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty() && !self.all
    }

    /// Whether bind values of the text may be secrets.
    pub fn hides_values(&self) -> bool {
        self.values
    }

    /// Whether the text holds secrets of its own, or may, which errors of the server would quote.
    pub fn holds_secrets(&self) -> bool {
        self.secrets || self.all
    }

    /// The text as it is shown, and how many constants are hidden in it. Detectors, where there are any, look through what
    /// is not hidden by its place: constants, names and comments, but never what SQL itself is written with.
    pub fn shown<'t>(&self, text: &'t str, detectors: Option<&Detectors>) -> (Cow<'t, str>, u32) {
        let detectors = detectors.filter(|detectors| detectors.may_find(text));
        if self.is_empty() && detectors.is_none() {
            return (Cow::Borrowed(text), 0);
        }
        let Ok(tokens) = parse::tokens(text) else {
            return unreadable(text);
        };
        let mut shown = Shown::new(text, detectors);
        let mut marks = self.tokens.iter().peekable();
        for (at, token) in tokens.iter().enumerate() {
            let swept = self.all.then_some(How::Swept);
            let marked = marks.next_if(|(mark, _)| *mark == at).map(|(_, how)| *how);
            shown.token(token, marked.or(swept), 0);
        }
        shown.finish()
    }
}

/// A text of which nothing is known, as it is shown.
pub fn unknown(text: &str) -> Cow<'_, str> {
    Hidden::ALL.shown(text, None).0
}

/// A text in which not even tokens can be told: what stands before its first quote, without longer numbers.
fn unreadable(text: &str) -> (Cow<'_, str>, u32) {
    let end = text.find(['\'', '"', '$', '\0']).unwrap_or(text.len());
    let mut shown = String::with_capacity(end);
    let mut hidden = u32::from(end < text.len());
    for part in text
        .get(..end)
        .unwrap_or_default()
        .split_inclusive(|c: char| !c.is_ascii_digit())
    {
        let digits = part.bytes().filter(u8::is_ascii_digit).count();
        if digits >= LONG_NUMBER {
            hidden = hidden.saturating_add(1);
            shown.push_str(MARK);
            shown.extend(part.chars().filter(|c| !c.is_ascii_digit()));
        } else {
            shown.push_str(part);
        }
    }
    if end < text.len() {
        shown.push_str(MARK);
    }
    (Cow::Owned(shown), hidden)
}

/// Places of one text, by byte offset.
#[derive(Default)]
struct Places {
    secrets: Vec<SecretRef>,
    assigned: Vec<usize>,
    swept: Vec<Range<usize>>,
    values: bool,
}

impl Places {
    fn add(&mut self, statement: &Statement, masks: &MaskSet, catalog: &Catalog, refused: bool) {
        let literals = &statement.literals;
        let masked = !masks.columns.is_empty();
        let mut sweep = refused || statement.completeness == Completeness::Opaque || literals.runs_secret;
        if literals.runs_secret && statement.parameters > 0 {
            self.values = true;
        }
        if masked && !sweep {
            // What a stored statement does with its arguments, and DDL with its constants, is not told column by column.
            let told = literals.bound && !matches!(statement.kind, StatementKind::Execute { .. });
            sweep = !told && statement.facts.tables.known().is_some() && touches_masked(masks, statement, catalog);
            for (column, by) in &literals.assigned {
                if mask_of(masks, catalog, column) == Verdict::Clean {
                    continue;
                }
                match by {
                    Assigned::Constants(at) => self.assigned.extend(at),
                    Assigned::Anything => sweep = true,
                }
            }
        }
        if sweep {
            self.swept.push(statement.range.clone());
        }
        self.secrets.extend_from_slice(&literals.secrets);
    }

    fn is_empty(&self) -> bool {
        self.secrets.is_empty() && self.assigned.is_empty() && self.swept.is_empty()
    }

    fn find(mut self, text: &str, tokens: &[Token]) -> Hidden {
        let mut marks: Vec<(usize, How)> = Vec::new();
        let from = |place: usize| tokens.partition_point(|token| token.start < place);
        let constant_from = |place: usize, fits: fn(TokenKind) -> bool| {
            let start = from(place);
            let rest = tokens.get(start..).unwrap_or_default();
            rest.iter()
                .position(|token| fits(token.kind))
                .map(|at| start.saturating_add(at))
        };
        for place in &self.assigned {
            marks.extend(constant_from(*place, is_constant).map(|at| (at, How::Whole)));
        }
        for secret in &self.secrets {
            match secret.what {
                SecretKind::Next => marks.extend(constant_from(secret.at, is_constant).map(|at| (at, How::Whole))),
                SecretKind::Word => marks.extend(constant_from(secret.at, may_hide).map(|at| (at, How::Whole))),
                SecretKind::Code => {
                    let is_text = |kind| kind == TokenKind::Text;
                    marks.extend(constant_from(secret.at, is_text).map(|at| (at, How::Code)));
                }
                SecretKind::Arguments(which) => {
                    let found = arguments(text, tokens, from(secret.at), which);
                    marks.extend(found.constants.into_iter().map(|at| (at, How::Whole)));
                    self.values |= found.parameters;
                }
            }
        }
        let secrets = marks.iter().any(|(_, how)| *how == How::Whole) && !self.secrets.is_empty();
        for range in &self.swept {
            let inside = from(range.start)..from(range.end);
            marks.extend(inside.map(|at| (at, How::Swept)));
        }
        // Of several ways to hide one token the strictest holds.
        marks.sort_unstable_by_key(|(at, how)| (*at, std::cmp::Reverse(*how)));
        marks.dedup_by_key(|(at, _)| *at);
        marks.retain(|(at, _)| tokens.get(*at).is_some_and(|token| may_hide(token.kind)));
        Hidden {
            tokens: marks,
            all: false,
            values: self.values,
            secrets,
        }
    }
}

fn is_constant(kind: TokenKind) -> bool {
    matches!(kind, TokenKind::Integer | TokenKind::Text | TokenKind::Constant)
}

fn may_hide(kind: TokenKind) -> bool {
    is_constant(kind) || kind == TokenKind::Name
}

/// What stands in the secret arguments of a call.
#[derive(Default)]
struct Found {
    constants: Vec<usize>,
    parameters: bool,
}

/// Looks through the arguments of the call whose name begins at a token.
fn arguments(text: &str, tokens: &[Token], name: usize, which: Arguments) -> Found {
    let mut found = Found::default();
    let rest = tokens.iter().enumerate().skip(name);
    let (mut depth, mut argument, mut named) = (0usize, 0usize, false);
    for (at, token) in rest {
        let word = text.get(token.start..token.end).unwrap_or_default();
        match token.kind {
            TokenKind::Open => depth = depth.saturating_add(1),
            TokenKind::Close => match depth.checked_sub(1) {
                Some(0) | None => break,
                Some(outer) => depth = outer,
            },
            TokenKind::Comma if depth == 1 => (argument, named) = (argument.saturating_add(1), false),
            // By name an argument may stand anywhere.
            _ if depth == 1 && matches!(word, "=>" | ":=") => named = true,
            kind if depth > 0 => {
                let secret = named
                    || match which {
                        Arguments::All => true,
                        Arguments::Rest | Arguments::Setting => argument > 0,
                        Arguments::Connection => argument == 0 && (word.contains('=') || word.contains("://")),
                    };
                if secret && is_constant(kind) {
                    found.constants.push(at);
                }
                let connects = which == Arguments::Connection && argument == 0;
                found.parameters |= (secret || connects) && kind == TokenKind::Parameter;
            }
            _ => {}
        }
    }
    found
}

/// A text on its way to be shown.
struct Shown<'t, 'd> {
    text: &'t str,
    detectors: Option<&'d Detectors>,
    out: String,
    copied: usize,
    hidden: u32,
}

impl<'t, 'd> Shown<'t, 'd> {
    fn new(text: &'t str, detectors: Option<&'d Detectors>) -> Self {
        Shown {
            text,
            detectors,
            out: String::with_capacity(text.len()),
            copied: 0,
            hidden: 0,
        }
    }

    fn token(&mut self, token: &Token, how: Option<How>, depth: u32) {
        let Some(word) = self.text.get(token.start..token.end) else {
            return;
        };
        let (shown, hidden) = match (how, token.kind) {
            (None, _) => (Cow::Borrowed(word), 0),
            (Some(How::Code), TokenKind::Text) => {
                let (code, hidden) = code(word, depth);
                (code.into(), hidden)
            }
            (Some(How::Swept), TokenKind::Integer | TokenKind::Constant) if is_short_number(word) => return,
            (Some(How::Swept), TokenKind::Name) if is_plain_name(word) => return,
            (Some(How::Swept), TokenKind::Name) => (NAME_MARK.into(), 1),
            (Some(How::Whole), TokenKind::Name) => (MARK.into(), 1),
            (Some(_), kind) if is_constant(kind) => (MARK.into(), 1),
            (Some(_), _) => (Cow::Borrowed(word), 0),
        };
        let looked = may_hide(token.kind) || token.kind == TokenKind::Comment;
        let (shown, found) = match self.detectors.filter(|_| looked) {
            Some(detectors) => detectors.shown(shown),
            None => (shown, 0),
        };
        let hidden = hidden.saturating_add(found);
        if hidden > 0 {
            self.hidden = self.hidden.saturating_add(hidden);
            self.replace(token, &shown);
        }
    }

    fn replace(&mut self, token: &Token, with: &str) {
        self.out
            .push_str(self.text.get(self.copied..token.start).unwrap_or_default());
        self.out.push_str(with);
        self.copied = token.end;
    }

    fn finish(mut self) -> (Cow<'t, str>, u32) {
        if self.hidden == 0 {
            return (Cow::Borrowed(self.text), 0);
        }
        self.out.push_str(self.text.get(self.copied..).unwrap_or_default());
        (Cow::Owned(self.out), self.hidden)
    }
}

fn is_short_number(word: &str) -> bool {
    word.bytes()
        .next()
        .is_some_and(|first| first.is_ascii_digit() || first == b'.')
        && word.bytes().filter(u8::is_ascii_digit).count() < LONG_NUMBER
}

/// A name without quotes, or one that would hardly need them.
fn is_plain_name(word: &str) -> bool {
    let inner = word.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    inner.is_none_or(|inner| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        inner.bytes().all(plain) && inner.bytes().filter(u8::is_ascii_digit).count() < LONG_NUMBER
    })
}

/// A string that holds code: secrets in it are found by its words alone, because its grammar is another one.
fn code(word: &str, depth: u32) -> (String, u32) {
    let quote = word.strip_prefix('$').and_then(|rest| rest.split_once('$'));
    let Some((tag, _)) = quote else {
        // Quotes are doubled in here, so that no token of it can be told.
        return match mentions_secret(word) {
            true => (MARK.to_owned(), 1),
            false => (word.to_owned(), 0),
        };
    };
    let quote = format!("${tag}$");
    let inner = word.strip_prefix(&*quote).and_then(|rest| rest.strip_suffix(&*quote));
    let (Some(inner), true) = (inner, depth < DEEPEST) else {
        return (MARK.to_owned(), 1);
    };
    let Ok(tokens) = parse::tokens(inner) else {
        return match mentions_secret(inner) {
            true => (MARK.to_owned(), 1),
            false => (word.to_owned(), 0),
        };
    };
    let mut secret = vec![false; tokens.len()];
    for (at, token) in tokens.iter().enumerate() {
        let spelled = inner.get(token.start..token.end).unwrap_or_default();
        let after = at.saturating_add(1);
        if token.kind != TokenKind::Text && spelled.eq_ignore_ascii_case("password") {
            mark_next(&mut secret, &tokens, after);
        }
        let opens = tokens.get(after).is_some_and(|next| next.kind == TokenKind::Open);
        if let (true, Some(which)) = (opens, secret_arguments(&spelled.to_ascii_lowercase())) {
            for constant in arguments(inner, &tokens, at, which).constants {
                secret.get_mut(constant).into_iter().for_each(|slot| *slot = true);
            }
        }
        // SQL in a string of the code, which EXECUTE runs.
        let dollar = spelled.starts_with('$');
        if token.kind == TokenKind::Text && !dollar && mentions_secret(spelled) {
            secret.get_mut(at).into_iter().for_each(|slot| *slot = true);
        }
    }
    let mut shown = Shown::new(inner, None);
    for (token, secret) in tokens.iter().zip(secret) {
        match secret {
            true => shown.token(token, Some(How::Whole), depth),
            false if token.kind == TokenKind::Text => shown.token(token, Some(How::Code), depth.saturating_add(1)),
            false => {}
        }
    }
    let (inner, hidden) = shown.finish();
    (format!("{quote}{inner}{quote}"), hidden)
}

/// Marks the first constant from a token on, if no other statement begins before it.
fn mark_next(secret: &mut [bool], tokens: &[Token], from: usize) {
    let rest = tokens.iter().enumerate().skip(from);
    for (at, token) in rest {
        if token.kind == TokenKind::Semicolon {
            return;
        }
        if is_constant(token.kind) {
            secret.get_mut(at).into_iter().for_each(|slot| *slot = true);
            return;
        }
    }
}

fn mentions_secret(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    ["password", "passwd", "secret", "dblink_connect", "pgp_sym_", "crypt("]
        .iter()
        .any(|word| text.contains(word))
}

/// The grammar's message without what it quotes of a constant.
pub(super) fn message(text: String) -> String {
    let Some((before, quoted)) = text.split_once(" at or near \"") else {
        return text;
    };
    let quoted = quoted.strip_suffix('"').unwrap_or(quoted);
    let digits = quoted.bytes().filter(u8::is_ascii_digit).count();
    let plain = !quoted.contains(['\'', '"', '$', '\n']) && quoted.len() <= 64 && digits < LONG_NUMBER;
    match plain {
        true => text,
        false => format!("{before} at or near {MARK}"),
    }
}
