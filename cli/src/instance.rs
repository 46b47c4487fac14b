//! Where an instance keeps its state, by one rule for `up` and for every verb that talks to it: `--state DIR`, else
//! `$XDG_STATE_HOME/sidegate`, for root `/var/lib/sidegate`.

use std::path::PathBuf;

use nix::unistd::Uid;

/// The state folder meant by these arguments and this environment.
pub fn state_folder(given: Option<PathBuf>) -> PathBuf {
    if let Some(given) = given {
        return given;
    }
    if Uid::effective().is_root() {
        return PathBuf::from("/var/lib/sidegate");
    }
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let base = set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")));
    base.unwrap_or_else(|| PathBuf::from(".")).join("sidegate")
}
