//! What runs on this machine, as /proc shows it.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

/// One process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its ID.
    pub pid: i32,
    /// Its parent's ID.
    pub parent: i32,
    /// The kernel's name for it: at most 15 bytes of its program's name.
    pub name: String,
    /// Its state letter; `Z` has ended and waits for its parent.
    pub state: char,
    /// When it started, in clock ticks since boot: with the ID, its identity.
    pub started: u64,
    /// Resident memory in bytes.
    pub resident: u64,
}

/// All processes except the kernel's own threads.
///
/// # Errors
/// If /proc cannot be read.
pub fn all() -> Result<BTreeMap<i32, Process>> {
    let mut processes = BTreeMap::new();
    for entry in fs::read_dir("/proc").context("cannot read /proc")? {
        let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        // A process may end between the listing and this.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        if let Some(process) = parse(pid, &stat)
            && pid != KERNEL_THREADS
            && process.parent != KERNEL_THREADS
        {
            processes.insert(pid, process);
        }
    }
    Ok(processes)
}

/// The process from which the kernel's own threads descend.
const KERNEL_THREADS: i32 = 2;

/// proc(5): the name stands in parentheses and may contain anything, also parentheses.
fn parse(pid: i32, stat: &str) -> Option<Process> {
    let (head, tail) = stat.rsplit_once(')')?;
    let fields = tail.split_whitespace().collect::<Vec<_>>();
    Some(Process {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        name: head.split_once('(')?.1.to_owned(),
        state: fields.first()?.chars().next()?,
        started: fields.get(19)?.parse().ok()?,
        resident: fields.get(21)?.parse::<u64>().ok()?.saturating_mul(4096),
    })
}

/// A process's arguments; empty if it has ended.
#[must_use]
pub fn arguments(pid: i32) -> Vec<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = line.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    words
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

/// Ends a process with SIGKILL; that it has ended already is fine.
///
/// # Errors
/// If it is not ours to end.
pub fn kill(pid: i32) -> Result<()> {
    let target = Pid::from_raw(pid).context("not a process ID")?;
    match kill_process(target, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot kill {pid}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_contain_anything() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 99 1000 25 0";
        let process = parse(7, stat).unwrap();
        assert_eq!(
            (process.name.as_str(), process.parent, process.started),
            ("a) b (c", 1, 99)
        );
        assert_eq!(process.resident, 25 * 4096);
    }

    #[test]
    fn this_process_is_listed_with_its_arguments() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(all().unwrap().contains_key(&own));
        assert_eq!(arguments(own), std::env::args().collect::<Vec<_>>());
    }
}
