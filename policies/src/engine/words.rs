//! Words people read in refusals and explanations: commands, names of things, sentences about a part.

use crate::api::access_policy::{Approver, SqlCommand};
use crate::sql::facts::{Part, PartRelation};
use crate::sql::CommandSet;

/// Every command with its name in policies.
pub const COMMANDS: [(SqlCommand, &str); 23] = [
    (SqlCommand::Select, "Select"),
    (SqlCommand::Insert, "Insert"),
    (SqlCommand::Update, "Update"),
    (SqlCommand::Delete, "Delete"),
    (SqlCommand::Merge, "Merge"),
    (SqlCommand::Truncate, "Truncate"),
    (SqlCommand::Copy, "Copy"),
    (SqlCommand::Explain, "Explain"),
    (SqlCommand::Create, "Create"),
    (SqlCommand::Alter, "Alter"),
    (SqlCommand::Drop, "Drop"),
    (SqlCommand::Grant, "Grant"),
    (SqlCommand::Revoke, "Revoke"),
    (SqlCommand::Comment, "Comment"),
    (SqlCommand::Maintain, "Maintain"),
    (SqlCommand::Lock, "Lock"),
    (SqlCommand::Listen, "Listen"),
    (SqlCommand::Notify, "Notify"),
    (SqlCommand::Do, "Do"),
    (SqlCommand::Call, "Call"),
    (SqlCommand::Set, "Set"),
    (SqlCommand::Transaction, "Transaction"),
    (SqlCommand::Other, "Other"),
];

/// The name of a command in policies.
pub fn command(command: SqlCommand) -> &'static str {
    COMMANDS.get(command as usize).map_or("Other", |(_, name)| name)
}

/// The commands of a set, in order.
pub fn commands_of(set: CommandSet) -> impl Iterator<Item = SqlCommand> {
    COMMANDS
        .into_iter()
        .map(|(command, _)| command)
        .filter(move |command| set.contains(*command))
}

/// `Drop on app.orders`.
pub fn part(part: &Part) -> String {
    let name = command(part.command);
    match &part.relation {
        PartRelation::None => name.to_owned(),
        PartRelation::Known(relation) => format!("{name} on {relation}"),
        PartRelation::Unknown => format!("{name} on a relation whose name could not be resolved"),
    }
}

/// `user ann`, `group leads`, `anyone`.
pub fn approver(approver: &Approver) -> String {
    match approver {
        Approver::User(name) => format!("user {name}"),
        Approver::Group(name) => format!("group {name}"),
        Approver::Anyone(_) => "anyone".to_owned(),
    }
}
