//! The two verifiers side by side: the library's report in the form that the second one prints, and the second one.
//!
//! Refused: output of the second verifier that is not one line per store, or anything on its error stream.
//! Invariant: nothing here judges; it only brings both answers into one form.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::ensure;
use sidegate_policies::record::verify::Report;

/// A report in the form the second verifier prints.
pub fn told(report: &Report) -> serde_json::Value {
    let store: Vec<String> = report.store.iter().map(|finding| finding.verdict.to_string()).collect();
    let logs: BTreeMap<String, String> = report
        .logs
        .iter()
        .map(|log| (log.log.clone(), log.verdict.to_string()))
        .collect();
    let sessions: BTreeMap<String, String> = report
        .sessions
        .iter()
        .map(|session| (session.session.clone(), session.verdict.to_string()))
        .collect();
    serde_json::json!({"store": store, "logs": logs, "sessions": sessions, "exit": report.exit_code()})
}

/// What the verifier in `tests/verifier` says of each store, with these options (`--keys FILE`).
pub fn second(options: &[&Path], roots: &[&Path]) -> anyhow::Result<Vec<serde_json::Value>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("verifier/sidegate_verify.py");
    let mut told = Vec::new();
    for part in roots.chunks(200) {
        let output = Command::new("python3")
            .arg("-B")
            .arg(&script)
            .args(options)
            .args(part)
            .output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(errors.is_empty(), "the second verifier: {errors}");
        for line in String::from_utf8(output.stdout)?.lines() {
            told.push(serde_json::from_str(line)?);
        }
    }
    ensure!(told.len() == roots.len(), "the second verifier answers once per store");
    Ok(told)
}
