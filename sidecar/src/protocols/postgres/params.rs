//! Start-up parameters: the agent's are judged one by one and never forwarded as they came; ours are the pins that
//! fix what SQL text means for the whole session.
//!
//! It refuses duplicates (the server would take the last), replication, and every setting that is not listed.
//! Pins stand in the start-up packet, because RESET ALL and DISCARD ALL return to what stood there.

use super::codec::startup::Startup;

/// Settings an agent may choose at login, in the server's spelling.
const ALLOWED: [&str; 8] = [
    "DateStyle",
    "IntervalStyle",
    "TimeZone",
    "extra_float_digits",
    "application_name",
    "statement_timeout",
    "idle_in_transaction_session_timeout",
    "lock_timeout",
];

/// The search path every session has.
pub const SEARCH_PATH: &str = "\"$user\", public";
/// The longest application_name the server keeps, in bytes.
const MAX_NAME: usize = 63;
/// How long a transaction may stand idle before the server ends the session.
const IDLE_IN_TRANSACTION: &str = "60s";

/// Why a login's parameters are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// A parameter given twice.
    #[error("parameter {0} is given twice")]
    Duplicate(String),
    /// A replication connection.
    #[error("replication connections are not supported")]
    Replication,
    /// No user name at all.
    #[error("no user name")]
    NoUser,
    /// A setting that is not allowed at login.
    #[error("setting {0} may not be set at login")]
    Setting(String),
    /// An encoding other than UTF8.
    #[error("client_encoding must be UTF8, not {0}")]
    Encoding(String),
    /// `options` that are not `-c name=value`.
    #[error("options must be a list of -c name=value")]
    Options,
    /// A value out of bounds.
    #[error("the value of {0} is not usable")]
    Value(String),
    /// A database the Target does not list.
    #[error("database {0} is not one of this target's databases")]
    Database(String),
}

impl ParameterError {
    /// What to do about it, where the error itself does not say.
    pub fn hint(&self) -> Option<&'static str> {
        matches!(self, ParameterError::Setting(_)).then_some(
            "Allowed are client_encoding (UTF8), DateStyle, IntervalStyle, TimeZone, extra_float_digits, \
             application_name, statement_timeout, lock_timeout, idle_in_transaction_session_timeout",
        )
    }
}

/// What the agent asked for, judged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requested {
    /// The user it named; recorded, never used.
    pub user: String,
    /// The database.
    pub database: String,
    /// Allowed settings, by the server's spelling.
    pub settings: Vec<(String, String)>,
    /// Its own application_name.
    pub application_name: String,
    /// `_pq_.` options we do not know, to be listed in NegotiateProtocolVersion.
    pub unknown_options: Vec<String>,
}

/// Judges an agent's start-up parameters. `databases` is the Target's list; empty: any.
pub fn judge(startup: &Startup, databases: &[String]) -> Result<Requested, ParameterError> {
    let mut requested = Requested::default();
    let (mut seen, mut database): (Vec<String>, Option<String>) = (Vec::new(), None);
    for (name, value) in &startup.parameters {
        once(&mut seen, name)?;
        match name.as_str() {
            "user" => value.clone_into(&mut requested.user),
            "database" => database = Some(value.clone()).filter(|name| !name.is_empty()),
            "replication" => match value.as_str() {
                "false" | "off" | "no" | "0" => {}
                _ => return Err(ParameterError::Replication),
            },
            "options" => {
                for (name, value) in options(value)? {
                    once(&mut seen, &name)?;
                    setting(&mut requested, &name, &value)?;
                }
            }
            name if name.starts_with("_pq_.") => requested.unknown_options.push(name.to_owned()),
            name => setting(&mut requested, name, value)?,
        }
    }
    if requested.user.is_empty() {
        return Err(ParameterError::NoUser);
    }
    requested.database = match (database, databases) {
        (Some(name), _) => name,
        (None, [only]) => only.clone(),
        (None, _) => requested.user.clone(),
    };
    if !databases.is_empty() && !databases.contains(&requested.database) {
        return Err(ParameterError::Database(requested.database));
    }
    Ok(requested)
}

fn once(seen: &mut Vec<String>, name: &str) -> Result<(), ParameterError> {
    let folded = name.to_ascii_lowercase();
    if seen.contains(&folded) {
        return Err(ParameterError::Duplicate(name.to_owned()));
    }
    seen.push(folded);
    Ok(())
}

fn setting(requested: &mut Requested, name: &str, value: &str) -> Result<(), ParameterError> {
    if name.eq_ignore_ascii_case("client_encoding") {
        return encoding(value);
    }
    let known = ALLOWED.iter().find(|known| known.eq_ignore_ascii_case(name));
    let known = known.ok_or_else(|| ParameterError::Setting(name.to_owned()))?;
    if value.len() > 256 || value.contains(|c: char| c.is_control()) {
        return Err(ParameterError::Value((*known).to_owned()));
    }
    if *known == "application_name" {
        value.clone_into(&mut requested.application_name);
    } else {
        requested.settings.push(((*known).to_owned(), value.to_owned()));
    }
    Ok(())
}

/// UTF8 in any spelling. SQL_ASCII is what libpq asks for in the C locale: it means no conversion, and the client
/// learns UTF8 from our ParameterStatus.
fn encoding(value: &str) -> Result<(), ParameterError> {
    let letters: String = value.chars().filter(char::is_ascii_alphanumeric).collect();
    match letters.to_ascii_lowercase().as_str() {
        "utf8" | "unicode" | "sqlascii" => Ok(()),
        _ => Err(ParameterError::Encoding(value.to_owned())),
    }
}

/// Splits `options` as the server does: words at unescaped white space, a backslash takes the next character.
fn options(text: &str) -> Result<Vec<(String, String)>, ParameterError> {
    let mut words: Vec<String> = Vec::new();
    let (mut word, mut inside, mut chars) = (String::new(), false, text.chars());
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                word.push(chars.next().ok_or(ParameterError::Options)?);
                inside = true;
            }
            c if c.is_ascii_whitespace() => {
                if inside {
                    words.push(std::mem::take(&mut word));
                }
                inside = false;
            }
            c => {
                word.push(c);
                inside = true;
            }
        }
    }
    if inside {
        words.push(word);
    }
    let (mut found, mut words) = (Vec::new(), words.into_iter());
    while let Some(word) = words.next() {
        let pair = match (word.strip_prefix("--"), word.strip_prefix("-c")) {
            (Some(pair), _) => pair.to_owned(),
            (None, Some("")) => words.next().ok_or(ParameterError::Options)?,
            (None, Some(pair)) => pair.to_owned(),
            (None, None) => return Err(ParameterError::Options),
        };
        let (name, value) = pair.split_once('=').ok_or(ParameterError::Options)?;
        // The server reads dashes in a long option's name as underscores.
        found.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(found)
}

/// `sg:<namespace>/<serviceaccount>:<session>`, and of the agent's own name what fits into 63 bytes.
pub fn application_name(prefix: &str, own: &str) -> String {
    let mut name: String = prefix.chars().filter(|c| c.is_ascii_graphic()).take(MAX_NAME).collect();
    if !own.is_empty() && name.len().saturating_add(2) <= MAX_NAME {
        name.push(' ');
        for c in own.chars().filter(|c| c.is_ascii_graphic() || *c == ' ') {
            if name.len() >= MAX_NAME {
                break;
            }
            name.push(c);
        }
    }
    name
}

/// The parameters we send upstream: user, database, pins, and the agent's allowed settings.
pub fn upstream(requested: &Requested, user: &str, prefix: &str) -> Vec<(String, String)> {
    let mut parameters: Vec<(String, String)> = [
        ("user", user),
        ("database", &requested.database),
        ("client_encoding", "UTF8"),
        ("standard_conforming_strings", "on"),
        ("search_path", SEARCH_PATH),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    parameters.push((
        "application_name".to_owned(),
        application_name(prefix, &requested.application_name),
    ));
    let idle = "idle_in_transaction_session_timeout";
    if !requested.settings.iter().any(|(name, _)| name == idle) {
        parameters.push((idle.to_owned(), IDLE_IN_TRANSACTION.to_owned()));
    }
    parameters.extend(requested.settings.iter().cloned());
    parameters
}

/// Checks what the server reported against the pins it reports at every major: a wrong or missing echo ends the login.
pub fn echo_holds(reported: &[(String, String)]) -> Result<(), &'static str> {
    let value = |wanted: &str| {
        reported
            .iter()
            .rfind(|(name, _)| name == wanted)
            .map(|(_, value)| value.as_str())
    };
    match (value("client_encoding"), value("standard_conforming_strings")) {
        (Some("UTF8"), Some("on")) => Ok(()),
        (Some("UTF8"), _) => Err("standard_conforming_strings"),
        _ => Err("client_encoding"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(parameters: &[(&str, &str)]) -> Result<Requested, ParameterError> {
        let parameters = parameters
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        judge(
            &Startup {
                major: 3,
                minor: 0,
                parameters,
            },
            &["shop".to_owned()],
        )
    }

    #[test]
    fn duplicate_parameters_are_refused_in_any_spelling_and_place() {
        let user = ("user", "a");
        assert_eq!(
            asked(&[user, ("user", "b")]),
            Err(ParameterError::Duplicate("user".into()))
        );
        assert_eq!(
            asked(&[user, ("TimeZone", "UTC"), ("timezone", "x")]),
            Err(ParameterError::Duplicate("timezone".into()))
        );
        assert_eq!(
            asked(&[user, ("TimeZone", "UTC"), ("options", "-c timezone=x")]),
            Err(ParameterError::Duplicate("timezone".into()))
        );
    }

    #[test]
    fn replication_is_refused_in_every_spelling() {
        for value in ["true", "database", "on", "1", "TRUE", "yes"] {
            assert_eq!(
                asked(&[("user", "a"), ("replication", value)]),
                Err(ParameterError::Replication)
            );
        }
    }

    #[test]
    fn options_are_judged_by_the_same_list() {
        let user = ("user", "a");
        let got = asked(&[
            user,
            (
                "options",
                "-c statement_timeout=5s --extra-float-digits=2 -cTimeZone=Europe/Za\\ x",
            ),
        ])
        .unwrap();
        let names: Vec<_> = got
            .settings
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(
            names,
            ["statement_timeout=5s", "extra_float_digits=2", "TimeZone=Europe/Za x"]
        );
        for bad in [
            "-c standard_conforming_strings=off",
            "-c search_path=evil",
            "--role=postgres",
            "-c session_authorization=x",
        ] {
            assert!(
                matches!(asked(&[user, ("options", bad)]), Err(ParameterError::Setting(_))),
                "{bad}"
            );
        }
        for bad in ["-d 5", "-c", "x=y", "-c x", "\\"] {
            assert_eq!(asked(&[user, ("options", bad)]), Err(ParameterError::Options), "{bad}");
        }
    }

    #[test]
    fn an_encoding_other_than_utf8_is_refused() {
        assert!(asked(&[("user", "a"), ("client_encoding", "utf-8")]).is_ok());
        assert_eq!(
            asked(&[("user", "a"), ("client_encoding", "GBK")]),
            Err(ParameterError::Encoding("GBK".into()))
        );
    }

    #[test]
    fn a_database_outside_the_list_is_refused_and_a_missing_one_is_the_only_one() {
        assert_eq!(asked(&[("user", "a")]).unwrap().database, "shop");
        assert_eq!(
            asked(&[("user", "a"), ("database", "x")]),
            Err(ParameterError::Database("x".into()))
        );
    }

    #[test]
    fn the_application_name_keeps_our_prefix_within_63_bytes() {
        let name = application_name("sg:agents/support:0123456789ab", &"ä psql ".repeat(20));
        assert!(name.starts_with("sg:agents/support:0123456789ab ") && name.len() <= 63);
        assert_eq!(application_name(&"x".repeat(90), "own").len(), 63);
    }

    #[test]
    fn a_wrong_or_missing_echo_of_a_pin_ends_the_login() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let good = [
            pair("client_encoding", "UTF8"),
            pair("standard_conforming_strings", "on"),
        ];
        assert_eq!(echo_holds(&good), Ok(()));
        assert_eq!(echo_holds(&good[..1]), Err("standard_conforming_strings"));
        assert_eq!(
            echo_holds(&[pair("client_encoding", "SQL_ASCII")]),
            Err("client_encoding")
        );
    }
}
