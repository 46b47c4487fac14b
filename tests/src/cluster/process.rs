//! One server of a test cluster: it ends when the pipe to its standard input closes, or else by force.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

/// The programs force themselves after 5 s.
const GRACE: Duration = Duration::from_secs(8);
/// Lines of a log that an error shows.
const LINES: usize = 30;

/// Programs that do not look at their input: they are not built for tests.
const STRANGERS: [&str; 2] = ["kwok", "containerd"];

/// A running server.
pub(super) struct Server {
    /// The program.
    pub name: String,
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts a program with its output in `folder/NAME.log`.
    pub fn start(
        name: &str,
        path: &Path,
        arguments: impl Iterator<Item = String>,
        variables: &[(&str, String)],
        folder: &Path,
    ) -> Result<Server> {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log)?;
        let child = Command::new(path)
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", folder)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let name = name.to_owned();
        Ok(Server { name, child, log })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it runs.
    pub fn lives(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        state.is_some_and(|state| state != 'Z')
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default();
        format!("== {}\n{}", self.name, last.join("\n"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        if STRANGERS.contains(&self.name.as_str()) {
            let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        }
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
