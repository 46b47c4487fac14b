//! A whole session told in one of the forms there are: for the command line from a folder, and for the broker, which
//! tells it to people of a cluster.
//!
//! Refuses nothing beyond what [`replay`] refuses. Invariant: a session reads the same wherever it is told.

use std::io::Write;
use std::path::Path;

use uuid::Uuid;

use super::{csv_header, csv_line, json_line, replay, Asciicast, KeyLookup, ReplayError, Transcript};

/// How a session is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Lines for people.
    Text,
    /// JSON lines.
    Json,
    /// CSV that no spreadsheet takes for formulas.
    Csv,
    /// A terminal recording (asciicast, version 2).
    Asciicast,
}

impl Form {
    /// Every form.
    pub const ALL: [Form; 4] = [Form::Text, Form::Json, Form::Csv, Form::Asciicast];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Form::Text => "text",
            Form::Json => "json",
            Form::Csv => "csv",
            Form::Asciicast => "asciicast",
        }
    }
}

/// Tells a session.
///
/// # Errors
/// It is not there, or cannot be read; or whoever reads is gone.
pub fn tell(
    root: &Path,
    session: Uuid,
    keys: &KeyLookup<'_>,
    form: Form,
    out: &mut dyn Write,
) -> Result<(), ReplayError> {
    let (mut transcript, mut recording) = (Transcript::default(), Asciicast::default());
    if form == Form::Csv {
        writeln!(out, "{}", csv_header())?;
    }
    replay(root, session, keys, &mut |event| match form {
        Form::Text => out.write_all(transcript.tell(&event).as_bytes()),
        Form::Json => writeln!(out, "{}", json_line(&event)),
        Form::Asciicast => out.write_all(recording.tell(&event).as_bytes()),
        Form::Csv => writeln!(out, "{}", csv_line(&event)),
    })
}
