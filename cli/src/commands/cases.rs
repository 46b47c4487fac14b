//! `sidegate policy test`: runs files of cases against a configuration and says which hold, located by file and line.
//!
//! Each case is decided as `sidegate explain` decides it. Refused: a file with a mistake, which is wrong usage and no
//! failed case. Without any case there is nothing to hold, and that is wrong usage too.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::{Deserialize, Serialize};
use sidegate_policies::api::Lockdown;
use sidegate_policies::cases::{self, Case, CaseResult};
use sidegate_policies::yaml::{self, Mistake, Node, Value, CASES};

use super::offline::{Offline, Schema, SchemaNote};
use super::Usage;
use crate::out::{visible, Out, Tone};

/// Arguments of `policy test`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sidegate policy test --config ./policies
  sidegate policy test --config ./policies tests/refunds.cases.yaml -o json

A file of cases is YAML. `schema` is found from the file's folder; all but `cases` may be left out:
  schema: schema.sql            # as `pg_dump --schema-only` prints it, or *.json of schema-query
  postgres: 15                  # the server's major version
  searchPath: [app, public]
  database: shop
  role: shop_agent
  cases:
    - name: support reads customers
      as: agents/support        # and labels: {agent: triage}
      target: data/shop
      sql: SELECT name, ssn FROM app.customers
      expect: Allow             # or Ask, Deny
      rule: read                # who decides; `default`: no rule allows, `masks`: a mask is in the way
      masks: [app.customers.ssn]
Without FILES, every file below --config whose name ends in `.cases.yaml`.

Exit codes:
  0  every case holds
  1  at least one does not
  2  wrong usage or configuration; no case was run")]
pub struct TestArgs {
    /// Folder with Targets and policies (*.yaml); may be given more than once.
    #[arg(long, required = true, value_name = "DIR")]
    config: Vec<PathBuf>,
    /// The database's schema for every file, instead of what the files say.
    #[arg(long, value_name = "FILE")]
    schema: Option<PathBuf>,
    /// Files of cases.
    files: Vec<PathBuf>,
}

/// A file of cases.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CasesFile {
    #[serde(default)]
    schema: Option<PathBuf>,
    #[serde(default)]
    postgres: Option<u32>,
    #[serde(default)]
    search_path: Option<Vec<String>>,
    #[serde(default)]
    database: Option<String>,
    #[serde(default)]
    role: Option<String>,
    cases: Vec<Case>,
}

/// How the cases of one file went.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FileReport {
    file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<String>,
    schema_notes: Vec<SchemaNote>,
    cases: Vec<CaseReport>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CaseReport {
    line: u64,
    #[serde(flatten)]
    result: CaseResult,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    passed: usize,
    failed: usize,
    files: Vec<FileReport>,
}

/// Runs the cases.
pub fn run(args: &TestArgs, out: &Out) -> Result<ExitCode> {
    let (offline, lockdowns) = Offline::read(&args.config, out)?;
    let files = match args.files.is_empty() {
        true => found(&args.config)?,
        false => args.files.clone(),
    };
    let mut reports = Vec::new();
    for file in &files {
        let report = run_file(&offline, &lockdowns, file, args.schema.as_deref(), out)?;
        if !out.json() {
            print(&report, out)?;
        }
        reports.push(report);
    }
    let all = || reports.iter().flat_map(|report| &report.cases);
    let passed = all().filter(|case| case.result.passed).count();
    let failed = all().filter(|case| !case.result.passed).count();
    if passed == 0 && failed == 0 {
        return Err(Usage("the files hold no case".to_owned()).into());
    }
    if out.json() {
        out.document(&Report {
            passed,
            failed,
            files: reports,
        })?;
    } else {
        out.line(match failed {
            0 => out.tone(Tone::Good, format!("all {passed} case(s) hold")),
            _ => out.tone(Tone::Bad, format!("{failed} case(s) do not hold, {passed} do")),
        })?;
    }
    Ok(match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// Every file of cases below the folders.
fn found(folders: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut open: Vec<PathBuf> = folders.to_vec();
    let mut files = Vec::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                let entry = entry?;
                if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                    open.push(entry.path());
                }
            }
        } else if path.to_string_lossy().ends_with(CASES) {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        let names: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
        let names = names.join(", ");
        return Err(Usage(format!("no file below {names} ends in `{CASES}`; name files of cases")).into());
    }
    Ok(files)
}

fn run_file(
    offline: &Offline,
    lockdowns: &[Lockdown],
    path: &Path,
    schema: Option<&Path>,
    out: &Out,
) -> Result<FileReport> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| Usage(format!("{name}: {error}")))?;
    let (file, lines) = parse(&text).map_err(|mistakes| {
        let lines = mistakes.iter().map(|mistake| mistake.in_file(&name));
        Usage(lines.collect::<Vec<_>>().join("\n"))
    })?;
    let beside = file.schema.as_ref().map(|schema| path.with_file_name("").join(schema));
    let schema = Schema::read(schema.or(beside.as_deref()), file.postgres)?;
    if !out.json() {
        schema.remark(out);
    }
    let mut results = Vec::new();
    for (case, line) in file.cases.iter().zip(lines) {
        let result = cases::run(case, |subject, target, sql| {
            let world = offline.world(subject, lockdowns).map_err(|error| error.to_string())?;
            let database = file
                .database
                .as_deref()
                .or(offline.database(target))
                .unwrap_or_default();
            let role = file.role.as_deref().unwrap_or_default();
            let setting = schema.setting(database, role, file.search_path.as_deref());
            world.explain(target, sql, &setting)
        });
        results.push(CaseReport { line, result });
    }
    Ok(FileReport {
        file: name,
        schema: schema.file(),
        schema_notes: schema.notes,
        cases: results,
    })
}

/// A file, which may be the bare list of its cases, and the line each case stands on.
fn parse(text: &str) -> Result<(CasesFile, Vec<u64>), Vec<Mistake>> {
    let root = yaml::documents(text)
        .ok()
        .and_then(|documents| documents.into_iter().next());
    let bare = matches!(root.as_ref().map(|root| &root.value), Some(Value::List(_)));
    let file = match bare {
        true => CasesFile {
            cases: yaml::read(text)?,
            ..CasesFile::default()
        },
        false => yaml::read(text)?,
    };
    let line = |at: usize| {
        let field = if bare {
            format!("[{at}]")
        } else {
            format!("cases[{at}]")
        };
        root.as_ref().map_or(0, |root: &Node| root.locate(&field).line)
    };
    let lines = (0..file.cases.len()).map(line).collect();
    Ok((file, lines))
}

fn print(report: &FileReport, out: &Out) -> Result<()> {
    out.line(out.tone(Tone::Bold, visible(&report.file)))?;
    for case in &report.cases {
        let (line, result) = (case.line, &case.result);
        let name = visible(&result.name);
        if result.passed {
            out.line(format!("  {}    {name}", out.tone(Tone::Good, "ok")))?;
            continue;
        }
        let place = format!("{}:{line}", report.file);
        out.line(format!("  {}  {name}  ({place})", out.tone(Tone::Bad, "FAIL")))?;
        for failure in &result.failures {
            out.line(format!("          {}", visible(failure)))?;
        }
        let change = result.explanation.iter().flat_map(|told| &told.change);
        for line in change {
            out.line(format!("          to pass: {}", visible(line)))?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    const CASE: &str = "  - {name: a, as: n/s, target: n/t, expect: Deny}\n";

    #[test]
    fn cases_know_their_lines_in_both_forms() {
        let (file, lines) = parse(&format!("# cases\nschema: s.sql\ncases:\n{CASE}{CASE}")).unwrap();
        assert_eq!((file.cases.len(), lines), (2, vec![4, 5]));
        assert_eq!(file.schema.as_deref(), Some(Path::new("s.sql")));
        let (file, lines) = parse(&format!("{CASE}\n{CASE}")).unwrap();
        assert_eq!((file.cases.len(), lines), (2, vec![1, 3]));
    }

    #[test]
    fn mistakes_are_located() {
        let wrong =
            parse("cases:\n  - name: a\n    as: n/s\n    target: n/t\n    expect: Perhaps\n    sq: x\n").unwrap_err();
        let places: Vec<(u64, &str)> = wrong
            .iter()
            .map(|mistake| (mistake.at.line, mistake.field.as_str()))
            .collect();
        assert!(
            places.contains(&(5, "cases[0].expect")) && places.contains(&(6, "cases[0].sq")),
            "{wrong:?}"
        );
    }
}
