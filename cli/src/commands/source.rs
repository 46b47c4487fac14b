//! Reads configuration folders for the verbs that work offline, and prints every problem with its place.

use std::path::PathBuf;

use anyhow::{Context, Result};
use sidegate_broker::folder::Folders;
use sidegate_policies::check;
use sidegate_policies::compile::Problem;
use sidegate_policies::objects::Objects;
use sidegate_policies::yaml::{self, Source};

use super::Usage;
use crate::out::{Out, Tone};

/// A configuration, and everything there is to say about it.
pub struct Configuration {
    /// What was read.
    pub objects: Objects,
    /// What must be mended.
    pub problems: Vec<Problem>,
    /// What is probably not meant.
    pub warnings: Vec<Problem>,
}

/// Reads and checks folders or single files, for one agent that may get every Target.
pub fn read(paths: &[PathBuf]) -> Result<Configuration> {
    checked(paths, check::check)
}

/// The same for a cluster, where most Targets never meet in one pod.
pub fn read_apart(paths: &[PathBuf]) -> Result<Configuration> {
    checked(paths, check::check_apart)
}

fn checked(paths: &[PathBuf], check: fn(&Objects) -> check::Checked) -> Result<Configuration> {
    for path in paths {
        if !path.exists() {
            return Err(Usage(format!("{} does not exist", path.display())).into());
        }
    }
    let (files, folders): (Vec<PathBuf>, Vec<PathBuf>) = paths.iter().cloned().partition(|path| path.is_file());
    let mut sources = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        sources.push(Source {
            name: file.display().to_string(),
            text,
        });
    }
    match Folders::new(folders).read() {
        Ok(found) => sources.extend(found),
        Err(problems) => {
            return Ok(Configuration {
                objects: Objects::default(),
                problems,
                warnings: Vec::new(),
            });
        }
    }
    let loaded = yaml::load(&sources);
    let checked = check(&loaded.objects);
    let mut problems = loaded.problems;
    problems.extend(checked.problems);
    Ok(Configuration {
        objects: loaded.objects,
        problems,
        warnings: checked.warnings,
    })
}

/// Reads folders that must be right: prints what is wrong and ends with exit code 2.
pub fn read_valid(paths: &[PathBuf], out: &Out) -> Result<Configuration> {
    let configuration = read(paths)?;
    print_problems(&configuration.problems, Tone::Bad, out);
    match configuration.problems.len() {
        0 => Ok(configuration),
        count => Err(Usage(format!("{count} problem(s) in the configuration")).into()),
    }
}

/// Prints problems for people, on standard error.
pub fn print_problems(problems: &[Problem], tone: Tone, out: &Out) {
    for problem in problems {
        out.remark(out.tone(tone, problem));
    }
}
