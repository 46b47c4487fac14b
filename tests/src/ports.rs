//! Free ports that stay ours: each is held by a lock file for the life of this process, so that tests in many
//! processes never hand out the same one twice.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// Reserves a free TCP port on 127.0.0.1, below the range the kernel gives to outgoing connections.
pub fn free() -> io::Result<u16> {
    let folder = PathBuf::from("/tmp/sidegate-ports");
    std::fs::create_dir_all(&folder)?;
    let start = 12_000 + (std::process::id() as u16 % 1_000) * 18;
    for step in 0..18_000u16 {
        let port = 12_000 + (start - 12_000 + step) % 18_000;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join(port.to_string()));
        let Some(lock) = file.ok().filter(|file| file.try_lock().is_ok()) else {
            continue;
        };
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            HELD.lock().unwrap_or_else(PoisonError::into_inner).push(lock);
            return Ok(port);
        }
    }
    Err(io::Error::other("no free port between 12000 and 30000"))
}
