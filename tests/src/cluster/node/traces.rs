//! What a node could leave on the machine, before and after: mounts, control groups, links, settings, processes, its folder.
//!
//! Owns looking and removing, by this run's own name and by nothing else: other runs on the same machine are neither
//! counted nor touched. The namespaces take everything else with them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// What the folder and the control groups of every run begin with.
pub const PREFIX: &str = "sidegate-node-";
/// Settings of the whole machine that a kubelet changes where nothing covers them.
pub(super) const SETTINGS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];
/// Processes take a moment to leave their control groups.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the machine looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces(BTreeSet<String>);

impl Traces {
    /// Looks; what belongs to other runs than this one is left out.
    pub fn seen(run: &Path) -> Result<Traces> {
        let name = run
            .file_name()
            .context("a folder with a name")?
            .to_string_lossy()
            .into_owned();
        let mut all = BTreeSet::new();
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        all.extend(
            mounts
                .lines()
                .filter_map(|line| Some(format!("mount {}", line.split(' ').nth(4)?))),
        );
        for hierarchy in hierarchies()? {
            for group in folders(&hierarchy) {
                all.insert(format!("cgroup {}", group.display()));
            }
        }
        for link in fs::read_dir("/sys/class/net")?.flatten() {
            all.insert(format!("link {}", link.file_name().to_string_lossy()));
        }
        for (setting, _) in SETTINGS {
            let value = fs::read_to_string(Path::new("/proc/sys").join(setting)).unwrap_or_default();
            all.insert(format!("setting {setting}={}", value.trim()));
        }
        if run.exists() {
            all.insert(format!("folder {}", run.display()));
        }
        all.extend(processes(&name).into_iter().map(|process| format!("process {process}")));
        all.retain(|trace| !trace.contains(PREFIX) || trace.contains(&name));
        Ok(Traces(all))
    }

    /// What is there now and was not then, or is gone.
    pub fn since(&self, then: &Traces) -> Vec<String> {
        let new = self.0.difference(&then.0).map(|trace| format!("left behind: {trace}"));
        let gone = then.0.difference(&self.0).map(|trace| format!("gone: {trace}"));
        new.chain(gone).collect()
    }
}

/// Processes of a run: those that were started with its name in their environment or their arguments.
fn processes(name: &str) -> Vec<String> {
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if pid == own || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
        let text = [read("environ"), read("cmdline")].concat();
        if String::from_utf8_lossy(&text).contains(name) {
            found.push(format!("{pid} {}", String::from_utf8_lossy(&read("comm")).trim()));
        }
    }
    found
}

/// Where control groups are mounted.
pub(super) fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let of_groups = mounts.lines().filter(|line| line.contains(" - cgroup"));
    Ok(of_groups
        .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from))
        .collect())
}

/// Folders below a folder, the deepest first.
fn folders(root: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(folders(&entry.path()));
            all.push(entry.path());
        }
    }
    all
}

/// What a kubelet counts and limits pods by.
const CONTROLLERS: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];
/// A kubelet asks for this one, too, where v2 has it.
const HUGE_PAGES: &str = "hugetlb";
/// In the one hierarchy of v2: which controllers there are, and which of them groups below have.
const OFFERED: &str = "cgroup.controllers";
const HANDED_DOWN: &str = "cgroup.subtree_control";
/// In the run's folder: what its hierarchy handed down before.
const BEFORE: &str = "subtree_control";

/// A controller that a node needs and this machine has in no hierarchy: in none of its own (v1), nor in the one of v2.
pub(super) fn missing_controllers() -> Option<&'static str> {
    let all = hierarchies().unwrap_or_default();
    let unified: Vec<String> = all
        .iter()
        .filter_map(|at| fs::read_to_string(at.join(OFFERED)).ok())
        .collect();
    let is_there = |name: &str| {
        // Those of v1 may share one, such as `cpu,cpuacct`.
        let own = all.iter().filter_map(|at| at.file_name()?.to_str());
        let of_v2 = unified.iter().flat_map(|offered| offered.split_whitespace());
        own.flat_map(|names| names.split(','))
            .chain(of_v2)
            .any(|found| found == name)
    };
    CONTROLLERS.into_iter().find(|name| !is_there(name))
}

/// Makes a run's control group in every hierarchy.
pub(super) fn make_groups(run: &Path) -> Result<()> {
    let name = run.file_name().context("a folder with a name")?;
    for hierarchy in hierarchies()? {
        let group = hierarchy.join(name);
        fs::create_dir(&group).with_context(|| group.display().to_string())?;
        hand_down(&hierarchy, run)?;
        // Pods ask for hundredths of a processor: beside a busy machine's other work they would wait for seconds.
        for (file, most) in [("cpu.shares", "8192"), ("cpu.weight", "800")] {
            if group.join(file).exists() {
                fs::write(group.join(file), most)?;
            }
        }
        // A new group of v1 has no processor until it is told; one of v2 has its parent's.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(value) = fs::read_to_string(hierarchy.join(file)) {
                fs::write(group.join(file), value)?;
            }
        }
    }
    Ok(())
}

/// Lets groups of a hierarchy of v2 have what pods are limited by, and keeps what it was before.
fn hand_down(hierarchy: &Path, run: &Path) -> Result<()> {
    let file = hierarchy.join(HANDED_DOWN);
    let Ok(before) = fs::read_to_string(&file) else {
        return Ok(());
    };
    let offered = fs::read_to_string(hierarchy.join(OFFERED))?;
    if !offered.trim().is_empty() {
        fs::write(run.join(BEFORE), &before)?;
    }
    for name in offered.split_whitespace() {
        if !CONTROLLERS.contains(&name) && name != HUGE_PAGES {
            continue;
        }
        fs::write(&file, format!("+{name}")).with_context(|| format!("+{name} to {}", file.display()))?;
    }
    Ok(())
}

/// Takes back what this run, its kubelet included, lets groups of a hierarchy of v2 have beyond what they had.
fn take_back(hierarchy: &Path, run: &Path) {
    let file = hierarchy.join(HANDED_DOWN);
    let (Ok(before), Ok(now)) = (fs::read_to_string(run.join(BEFORE)), fs::read_to_string(&file)) else {
        return;
    };
    let had: BTreeSet<&str> = before.split_whitespace().collect();
    for name in now.split_whitespace().filter(|name| !had.contains(name)) {
        // Another run may be using it.
        let _ = fs::write(&file, format!("-{name}"));
    }
}

/// Removes what the namespaces did not take with them: empty control groups and the folder.
pub(super) fn clear(run: &Path) -> Result<()> {
    let name = run.file_name().context("a folder with a name")?;
    let deadline = Instant::now() + PATIENCE;
    for hierarchy in hierarchies()? {
        let group = hierarchy.join(name);
        while group.exists() {
            for below in folders(&group) {
                // The last process may still be leaving it.
                let _ = fs::remove_dir(below);
            }
            match fs::remove_dir(&group) {
                Err(error) if Instant::now() > deadline => return Err(error).context(group.display().to_string()),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
                Ok(()) => {}
            }
        }
        take_back(&hierarchy, run);
    }
    if run.exists() {
        fs::remove_dir_all(run).with_context(|| run.display().to_string())?;
    }
    Ok(())
}
