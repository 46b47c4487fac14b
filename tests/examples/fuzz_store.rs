//! Writes the record store that `fuzz/targets/record.rs` damages: `cargo run -p sidegate-tests --example fuzz_store`.
//!
//! It is committed, because keys and ids are random: what a fuzzer finds in one store can be reproduced in that one
//! only. Write it anew when the record format changes.

use std::path::Path;

use sidegate_tests::recording::small_store;

fn main() -> anyhow::Result<()> {
    let state = tempfile::tempdir()?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(small_store(state.path()))?;
    let store = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/store");
    if store.exists() {
        std::fs::remove_dir_all(&store)?;
    }
    // What is public of it: the keys behind it are of no use to anybody.
    copy(&state.path().join("records/v1"), &store.join("v1"))?;
    Ok(())
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let name = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &name)?;
        } else {
            std::fs::copy(entry.path(), name)?;
        }
    }
    Ok(())
}
