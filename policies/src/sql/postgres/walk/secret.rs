//! Where secrets stand in a statement: passwords of DDL, options of foreign servers, connection strings, keys of calls.
//!
//! Places only; `literals` turns them into what is shown.

use super::super::literals::{self, Arguments};
use super::super::parse::{pb, NodeEnum};
use super::name::{literal, qualified};
use super::syntax::{SecretKind, SecretRef};
use super::{Place, Walk};

impl<'a> Walk<'a> {
    fn secret(&mut self, location: i32, what: SecretKind) {
        // The grammar keeps a location for everything asked here. Without one the search begins with the text, which
        // hides a constant too many rather than none.
        let at = usize::try_from(location).unwrap_or_default();
        self.found.secrets.push(SecretRef { at, what });
    }

    /// An option by its name: a password anywhere, and the body of a function or of DO.
    pub(super) fn option_text(&mut self, name: &str, has_value: bool, location: i32) {
        if !has_value {
            return;
        }
        if name == "as" {
            self.secret(location, SecretKind::Code);
        } else if literals::is_secret_name(name) {
            self.secret(location, SecretKind::Next);
        }
    }

    /// `OPTIONS (…)` of foreign things: what their wrappers call a secret is not known, so only names that are known to
    /// be none are shown.
    pub(super) fn foreign_options(&mut self, options: &'a [pb::Node], at: Place) {
        for option in options {
            if let Some(NodeEnum::DefElem(option)) = &option.node {
                if option.arg.is_some() && !literals::is_plain_option(&option.defname) {
                    self.secret(option.location, SecretKind::Next);
                }
            }
        }
        self.all(options, at);
    }

    /// The connection string of a subscription.
    pub(super) fn connection(&mut self, text: &str, location: i32) {
        if !text.is_empty() {
            self.secret(location, SecretKind::Next);
        }
    }

    /// A setting whose name says that its value is a secret.
    pub(super) fn secret_setting(&mut self, name: &str, values: &'a [pb::Node]) {
        if !literals::is_secret_name(name) {
            return;
        }
        for value in values {
            if let Some(NodeEnum::AConst(constant)) = &value.node {
                self.secret(constant.location, SecretKind::Word);
            }
        }
    }

    /// A call that takes a password, a key or a connection string.
    pub(super) fn secret_call(&mut self, name: &'a [pb::Node], arguments: &'a [pb::Node], location: i32) {
        let Some((_, name)) = qualified(name) else { return };
        let secret = match literals::secret_arguments(name) {
            // Of a setting whose name is computed nobody knows what it is.
            Some(Arguments::Setting) => arguments.first().and_then(literal).is_none_or(literals::is_secret_name),
            secret => secret.is_some(),
        };
        if let (true, Some(which)) = (secret, literals::secret_arguments(name)) {
            self.secret(location, SecretKind::Arguments(which));
        }
    }
}
