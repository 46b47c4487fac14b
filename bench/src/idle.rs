//! The sidecar at rest: how long from exec until its listeners accept, and what it holds in memory then.

use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use sidegate_tests::ports;

use crate::contender::program;
use crate::cpu;
use crate::report::Report;

const STARTS: usize = 20;

/// Starts the sidecar's own binary many times; its broker is not there, which is how a pod starts too.
pub fn measure(report: &mut Report) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let authority = sidegate_tests::authority::Authority::new()?;
    std::fs::write(folder.path().join("ca.pem"), authority.pem())?;
    std::fs::write(folder.path().join("token"), "none")?;
    let (mut ready, mut resident) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let port = ports::free()?;
        let start = Instant::now();
        let mut child = Command::new(program("sidegate-sidecar")?)
            .env_clear()
            .env("SIDEGATE_BROKER_URL", "https://127.0.0.1:1")
            .env("SIDEGATE_BROKER_CA", authority.pem())
            .env("SIDEGATE_TOKEN_FILE", folder.path().join("token"))
            .env("SIDEGATE_RUN_DIR", folder.path().join("run"))
            .env("SIDEGATE_JOURNAL_DIR", folder.path().join("journal"))
            .env(
                "SIDEGATE_PORTS",
                format!("{{\"data/bench\": {{\"port\": {port}, \"protocol\": \"Postgres\"}}}}"),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting sidegate-sidecar")?;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if start.elapsed() > Duration::from_secs(10) || child.try_wait()?.is_some() {
                bail!("the sidecar did not listen");
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        ready.push(start.elapsed().as_secs_f64() * 1e3);
        std::thread::sleep(Duration::from_millis(500));
        resident.push(cpu::resident(child.id())? as f64 / 1e6);
        child.kill()?;
        child.wait()?;
    }
    report.figure(
        "idle-listeners-ready",
        "ms from exec, worst of 20",
        ready.iter().copied().fold(0.0, f64::max),
        50.0,
    );
    report.figure(
        "idle-rss",
        "MB, worst of 20",
        resident.iter().copied().fold(0.0, f64::max),
        15.0,
    );
    Ok(())
}
