//! Configuration folders: every `*.yaml` under them, read whole, and watched by polling.
//!
//! Refuses more files or bytes than a configuration can sensibly have. The invariant: what is handed on is one
//! state of the folder, seen unchanged twice, so that an editor's half-written file is not read in between.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use sidegate_policies::compile::Problem;
use sidegate_policies::yaml::Source;

const MAX_FILES: usize = 10_000;
const MAX_DEPTH: usize = 8;
const MAX_FILE: u64 = 4 << 20;

/// Some folders.
#[derive(Debug, Clone)]
pub struct Folders(Vec<PathBuf>);

/// What the folders looked like: names, sizes, times and inodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Folders {
    /// These folders, in order.
    pub fn new(folders: Vec<PathBuf>) -> Self {
        Folders(folders)
    }

    /// What they look like now, without reading any file.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut context = digest::Context::new(&digest::SHA256);
        let (files, problems) = self.files();
        for path in files {
            context.update(path.as_os_str().as_encoded_bytes());
            if let Ok(meta) = fs::metadata(&path) {
                for number in [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()] {
                    context.update(&number.to_be_bytes());
                }
                context.update(&meta.len().to_be_bytes());
                context.update(&meta.ino().to_be_bytes());
            }
        }
        context.update(&problems.len().to_be_bytes());
        let mut bytes = [0; 32];
        let digest = context.finish();
        bytes.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
        Fingerprint(bytes)
    }

    /// Reads every file, or says which cannot be read.
    pub fn read(&self) -> Result<Vec<Source>, Vec<Problem>> {
        let (files, mut problems) = self.files();
        let mut sources = Vec::with_capacity(files.len());
        for path in files {
            match read_text(&path) {
                Ok(text) => sources.push(Source {
                    name: path.display().to_string(),
                    text,
                }),
                Err(message) => problems.push(problem(&path, message)),
            }
        }
        if problems.is_empty() {
            Ok(sources)
        } else {
            Err(problems)
        }
    }

    fn files(&self) -> (Vec<PathBuf>, Vec<Problem>) {
        let mut files = Vec::new();
        let mut problems = Vec::new();
        for folder in &self.0 {
            collect(folder, MAX_DEPTH, &mut files, &mut problems);
        }
        files.sort();
        files.dedup();
        (files, problems)
    }
}

/// Gathers `*.yaml`; names that begin with a dot (editors, the kubelet's `..data`) are passed over.
fn collect(folder: &Path, depth: usize, files: &mut Vec<PathBuf>, problems: &mut Vec<Problem>) {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            problems.push(problem(folder, format!("cannot be read: {error}")));
            return;
        }
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let is_dir = fs::metadata(&path).is_ok_and(|meta| meta.is_dir());
        if is_dir {
            match depth.checked_sub(1) {
                Some(depth) => collect(&path, depth, files, problems),
                None => problems.push(problem(&path, "folders nest deeper than 8")),
            }
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            if files.len() >= MAX_FILES {
                problems.push(problem(&path, "more than 10,000 files"));
                return;
            }
            files.push(path);
        }
    }
}

fn read_text(path: &Path) -> Result<String, String> {
    let file = fs::File::open(path).map_err(|error| format!("cannot be read: {error}"))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| format!("cannot be read: {error}"))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_FILE {
        return Err("is larger than 4 MiB".to_owned());
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())
}

fn problem(path: &Path, message: impl Into<String>) -> Problem {
    Problem {
        file: Some(path.display().to_string()),
        line: None,
        column: None,
        object: None,
        field: String::new(),
        message: message.into(),
    }
}
