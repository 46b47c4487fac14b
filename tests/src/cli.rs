//! The `sidegate` binary, as people run it: built by `make e2e` beside the tests' own binaries.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{ensure, Context, Result};

/// Where it is.
///
/// # Errors
/// It was not built.
pub fn path() -> Result<PathBuf> {
    let ours = std::env::current_exe()?;
    // target/PROFILE/deps/cluster-0123456789abcdef
    let folder = ours
        .parent()
        .and_then(Path::parent)
        .context("tests run from target/PROFILE/deps")?;
    let binary = folder.join("sidegate");
    ensure!(
        binary.exists(),
        "{} is not there: `make e2e` builds it first",
        binary.display()
    );
    Ok(binary)
}

/// Runs it under a name, with nothing in its environment but a home.
pub fn run(program: &Path, home: &Path, arguments: &[&str]) -> Result<Output> {
    let output = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", home)
        .stdin(Stdio::null())
        .output()?;
    Ok(output)
}
