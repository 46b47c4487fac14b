//! Starts the agent's program with a clean environment: a short list of harmless names, then what the Targets set,
//! then what the person named. Never anything else inherited: no PGPASSWORD, no cloud keys, no tokens.
//!
//! With `--run-as` the program runs as another OS user with a fresh home, so that it cannot read Sidegate's state.

use std::ffi::OsString;
use std::os::unix::fs::{chown, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{bail, Context, Result};
use nix::unistd::{Gid, Uid, User};

/// Names taken over from Sidegate's own environment; all `LC_*` besides.
const KEPT: [&str; 6] = ["PATH", "HOME", "TERM", "LANG", "TZ", "USER"];

/// The OS user the agent runs as.
#[derive(Debug, Clone)]
pub struct RunAs {
    /// The user's name.
    pub name: String,
    /// Its id.
    pub uid: Uid,
    /// Its group.
    pub gid: Gid,
    home: PathBuf,
}

/// One variable given with `--env NAME` or `--env NAME=VALUE`.
#[derive(Debug, Clone)]
pub struct EnvArg {
    /// The name.
    pub name: String,
    /// The value; absent: taken from Sidegate's own environment.
    pub value: Option<String>,
}

impl std::str::FromStr for EnvArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        if name.is_empty() {
            return Err("write NAME or NAME=VALUE".to_owned());
        }
        Ok(EnvArg {
            name: name.to_owned(),
            value,
        })
    }
}

impl RunAs {
    /// Looks a user up and makes it a fresh home below `parent`. Needs root.
    pub fn prepare(name: &str, parent: &Path) -> Result<Self> {
        if !Uid::effective().is_root() {
            bail!("--run-as needs root: start sidegate as root, or leave --run-as out (then nothing separates them)");
        }
        let user = User::from_name(name)?.with_context(|| format!("--run-as: there is no user {name}"))?;
        if user.uid.is_root() {
            bail!("--run-as root would separate nothing: name an unprivileged user");
        }
        let home = parent.join(format!("sidegate-agent-{}", std::process::id()));
        std::fs::create_dir(&home).with_context(|| format!("making the agent's home {}", home.display()))?;
        std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o700))?;
        chown(&home, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        Ok(RunAs {
            name: name.to_owned(),
            uid: user.uid,
            gid: user.gid,
            home,
        })
    }

    /// Removes the home made by [`RunAs::prepare`].
    pub fn clean(&self) {
        // A file the agent left open elsewhere may keep it; the folder is in the temporary folder then.
        let _ = std::fs::remove_dir_all(&self.home);
    }
}

/// The environment the agent gets.
pub fn environment(
    inherited: impl Iterator<Item = (OsString, OsString)>,
    targets: &[(String, String)],
    given: &[EnvArg],
    run_as: Option<&RunAs>,
) -> Result<Vec<(OsString, OsString)>> {
    let inherited: Vec<_> = inherited.collect();
    let kept =
        |name: &OsString| KEPT.iter().any(|kept| name == kept) || name.to_str().is_some_and(|n| n.starts_with("LC_"));
    let mut environment: Vec<(OsString, OsString)> = Vec::new();
    let set = |environment: &mut Vec<(OsString, OsString)>, name: OsString, value: OsString| {
        environment.retain(|(known, _)| *known != name);
        environment.push((name, value));
    };
    for (name, value) in inherited.iter().filter(|(name, _)| kept(name)) {
        set(&mut environment, name.clone(), value.clone());
    }
    if let Some(user) = run_as {
        set(&mut environment, "HOME".into(), user.home.clone().into_os_string());
        set(&mut environment, "USER".into(), user.name.clone().into());
    }
    for (name, value) in targets {
        set(&mut environment, name.into(), value.into());
    }
    for argument in given {
        let own = || {
            inherited
                .iter()
                .find(|(name, _)| *name == argument.name[..])
                .map(|(_, value)| value.clone())
        };
        let value = match &argument.value {
            Some(value) => Some(value.into()),
            None => own(),
        };
        let value = value.with_context(|| format!("--env {}: not set here; write --env NAME=VALUE", argument.name))?;
        set(&mut environment, argument.name.clone().into(), value);
    }
    Ok(environment)
}

/// The command, ready to start in the foreground: terminal and process group are ours, so signals of the terminal
/// reach it too.
pub fn command(words: &[OsString], environment: Vec<(OsString, OsString)>, run_as: Option<&RunAs>) -> Result<Command> {
    let (program, arguments) = words.split_first().context("no command after --")?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(environment);
    if let Some(user) = run_as {
        command
            .uid(user.uid.as_raw())
            .gid(user.gid.as_raw())
            .current_dir(&user.home);
    }
    Ok(command)
}

/// The exit code that tells the caller what the agent told us: its own, or 128 + n for signal n.
pub fn exit_code(status: ExitStatus) -> u8 {
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => signal.saturating_add(128),
        (None, None) => 1,
    };
    u8::try_from(code & 0xff).unwrap_or(1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        list.iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect()
    }

    #[test]
    fn the_agent_inherits_only_the_harmless_list() {
        let own = pairs(&[
            ("PATH", "/bin"),
            ("LC_ALL", "C"),
            ("PGPASSWORD", "x"),
            ("AWS_SECRET_ACCESS_KEY", "x"),
            ("SSH_AUTH_SOCK", "x"),
            ("LD_PRELOAD", "x"),
            ("SIDEGATE_STATE", "x"),
        ]);
        let environment = environment(own.into_iter(), &[("PGHOST".into(), "127.0.0.1".into())], &[], None).unwrap();
        assert_eq!(
            environment,
            pairs(&[("PATH", "/bin"), ("LC_ALL", "C"), ("PGHOST", "127.0.0.1")])
        );
    }

    #[test]
    fn targets_win_over_inherited_and_env_wins_over_targets() {
        let own = pairs(&[("TZ", "UTC"), ("EDITOR", "vi")]);
        let targets = [
            ("TZ".to_owned(), "CET".to_owned()),
            ("PGPORT".to_owned(), "1".to_owned()),
        ];
        let given = ["PGPORT=2".parse().unwrap(), "EDITOR".parse().unwrap()];
        let environment = environment(own.into_iter(), &targets, &given, None).unwrap();
        assert_eq!(environment, pairs(&[("TZ", "CET"), ("PGPORT", "2"), ("EDITOR", "vi")]));
    }

    #[test]
    fn exit_codes_pass_through_and_signals_become_128_plus_n() {
        assert_eq!(exit_code(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(exit_code(ExitStatus::from_raw(15)), 143);
    }
}
