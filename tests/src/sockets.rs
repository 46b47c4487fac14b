//! How many connections a process may have.

use std::io;

use nix::sys::resource::{getrlimit, setrlimit, Resource};

/// Raises this process's limit on open files as far as it goes: thousands of connections are as many sockets.
pub fn more_sockets() -> io::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}
