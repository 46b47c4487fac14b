//! The manifest for krew is made of the very archive it is for.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

fn manifest(arguments: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("krew.sh");
    Command::new("bash").arg(script).args(arguments).output().unwrap()
}

fn archive(folder: &Path, files: &[&str]) -> String {
    for file in files {
        std::fs::write(folder.join(file), file).unwrap();
    }
    let path = folder.join("archive.tar.gz");
    let packed = Command::new("tar")
        .arg("-czf")
        .arg(&path)
        .arg("-C")
        .arg(folder)
        .args(files)
        .status();
    assert!(packed.unwrap().success());
    path.to_string_lossy().into_owned()
}

#[test]
fn the_manifest_names_the_archive_by_its_digest() {
    let folder = tempfile::tempdir().unwrap();
    let url = "https://example.org/sidegate.tar.gz";
    let whole = archive(folder.path(), &["kubectl-sidegate", "LICENSE"]);
    let said = manifest(&["v0.1.0", &whole, url]);
    let text = String::from_utf8(said.stdout).unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let sum = Command::new("sha256sum").arg(&whole).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap();
    let digest = sum.split_whitespace().next().unwrap();
    for line in [
        "kind: Plugin",
        "  version: v0.1.0",
        "      bin: kubectl-sidegate",
        &format!("      uri: {url}"),
        &format!("      sha256: {digest}"),
    ] {
        assert!(text.lines().any(|said| said == line), "`{line}` is not in:\n{text}");
    }
    assert!(
        !manifest(&["0.1.0", &whole, url]).status.success(),
        "no version of krew's"
    );
    assert!(!manifest(&["v0.1.0", &whole, "http://example.org"]).status.success());
    let part = archive(folder.path(), &["LICENSE"]);
    assert!(
        !manifest(&["v0.1.0", &part, url]).status.success(),
        "there is no program in it"
    );
}
