//! CPU time of processes in nanoseconds, from the scheduler's own counters, and their resident memory.
//!
//! `sidegate up` holds two halves that a cluster keeps on two machines: sidecar and broker, on threads of their own. The
//! sidecar's cost is what its threads run (its uploads to the broker included); the broker's are left out, by name.

use std::fs;

use anyhow::{Context, Result};

/// Nanoseconds that every thread of these processes has run so far. Threads that ended are not counted, so the
/// processes measured here keep theirs.
pub fn nanoseconds(pids: &[u32]) -> Result<u64> {
    let mut total = 0;
    for pid in pids {
        for task in fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} is gone"))? {
            let task = task?.path();
            if fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "broker") {
                continue;
            }
            let text = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
            total += text
                .split_whitespace()
                .next()
                .and_then(|field| field.parse::<u64>().ok())
                .unwrap_or(0);
        }
    }
    Ok(total)
}

/// Resident memory of a process, bytes.
pub fn resident(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib * 1024)
}

/// Share of the machine's time the hypervisor took since boot, and all time, in ticks.
pub fn steal() -> Result<(u64, u64)> {
    let text = fs::read_to_string("/proc/stat")?;
    let fields: Vec<u64> = text
        .lines()
        .next()
        .unwrap_or("")
        .split_whitespace()
        .skip(1)
        .filter_map(|f| f.parse().ok())
        .collect();
    Ok((fields.get(7).copied().unwrap_or(0), fields.iter().take(8).sum()))
}
