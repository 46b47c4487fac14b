//! Free ports that stay ours: each is held by a lock file for the life of this process, so that tests in many
//! processes never hand out the same one twice.

use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{bail, Context, Result};
use nix::fcntl::{Flock, FlockArg};

static HELD: Mutex<Vec<Flock<File>>> = Mutex::new(Vec::new());

/// Reserves a free TCP port on 127.0.0.1, below the range the kernel gives to outgoing connections.
pub fn free() -> Result<u16> {
    let folder = PathBuf::from("/tmp/sidegate-ports");
    std::fs::create_dir_all(&folder).context("creating the folder of port locks")?;
    let start = 12_000 + (std::process::id() as u16 % 1_000) * 18;
    for step in 0..18_000u16 {
        let port = 12_000 + (start - 12_000 + step) % 18_000;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join(port.to_string()));
        let Ok(Ok(lock)) = file.map(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock)) else {
            continue;
        };
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            HELD.lock().expect("port locks").push(lock);
            return Ok(port);
        }
    }
    bail!("no free port between 12000 and 30000")
}
