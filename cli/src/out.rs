//! Everything the command line prints goes through here: human text by default, JSON with `-o json`, the same with
//! `-o yaml`, colour only on a terminal that did not ask to be spared (`NO_COLOR`). A closed pipe ends the program quietly.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;
use sidegate_policies::yaml;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON document, for programs.
    Json,
    /// The same as YAML.
    Yaml,
    /// For people, with more columns where there are some.
    Wide,
    /// A terminal recording (asciicast, version 2): `replay` only.
    Asciicast,
}

/// Where results and remarks go.
#[derive(Debug, Clone, Copy)]
pub struct Out {
    /// The format of results.
    pub format: Format,
    colour: bool,
}

/// Colours used, by meaning.
#[derive(Debug, Clone, Copy)]
pub enum Tone {
    /// Went well.
    Good,
    /// Refused or broken.
    Bad,
    /// Wants attention.
    Warn,
    /// A heading.
    Bold,
}

impl Out {
    /// Decides on colour once: a terminal, no `NO_COLOR`, not a dumb terminal.
    pub fn new(format: Format) -> Self {
        let spared = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Out {
            format,
            colour: io::stdout().is_terminal() && !spared && !dumb,
        }
    }

    /// Whether results are one document for programs: JSON, or the same as YAML.
    pub fn json(&self) -> bool {
        matches!(self.format, Format::Json | Format::Yaml)
    }

    /// One line of a result.
    pub fn line(&self, text: impl Display) -> io::Result<()> {
        writeln!(io::stdout().lock(), "{text}")
    }

    /// Text as it is, without a line end.
    pub fn raw(&self, text: &[u8]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text)?;
        stdout.flush()
    }

    /// A result as one document.
    pub fn document(&self, value: &impl Serialize) -> anyhow::Result<()> {
        if self.format == Format::Yaml {
            // By way of JSON, so that both say the same.
            let text = yaml::print(&serde_json::to_value(value)?)?;
            return Ok(self.raw(text.as_bytes())?);
        }
        let text = serde_json::to_string_pretty(value)?;
        Ok(self.line(text)?)
    }

    /// A remark for people, on standard error, in every format.
    pub fn remark(&self, text: impl Display) {
        // Nothing can be done about a standard error that is gone.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// Text in a colour, or as it is.
    pub fn tone(&self, tone: Tone, text: impl Display) -> String {
        let code = match tone {
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Warn => "33",
            Tone::Bold => "1",
        };
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_string()
        }
    }

    /// A table with a header, columns padded to their widest cell; the last column is never padded.
    pub fn table(&self, header: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
        let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let print = |cells: Vec<&str>| {
            let last = cells.len().saturating_sub(1);
            let padded = cells
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(at, (cell, width))| match at == last {
                    true => (*cell).to_owned(),
                    false => format!("{cell:<width$}"),
                });
            padded.collect::<Vec<_>>().join("  ")
        };
        self.line(self.tone(Tone::Bold, print(header.to_vec())))?;
        for row in rows {
            self.line(print(row.iter().map(String::as_str).collect()))?;
        }
        Ok(())
    }
}

/// Makes control and bidirectional characters visible, once, at display: no text from a record or a request can
/// forge a line or drive a terminal (REC-4).
pub use sidegate_policies::record::replay::escape as visible;
