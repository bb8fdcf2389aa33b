//! What the host's kernel says of the processes of a container (proc(5), cgroups(7)).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::cgroup;

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// Its program's file.
    pub(crate) program: String,
    /// Its effective user.
    pub(crate) uid: u32,
    /// In hexadecimal.
    pub(crate) effective_capabilities: String,
    /// `disabled`, `strict` or `filter`.
    pub(crate) seccomp: &'static str,
    pub(crate) no_new_privileges: bool,
    /// Kind, and identity as `KIND:[INODE]`.
    pub(crate) namespaces: BTreeMap<String, String>,
}

/// Memory of processes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Memory {
    /// What is theirs alone, and their share of what is not.
    pub(crate) pss: u64,
    /// What is theirs alone.
    pub(crate) private: u64,
}

/// Every process on the host that is in a container's cgroups: its workload or its VMM, and its supervisor. Threads of the
/// kernel's, as KVM has one for each machine, have no program and are none.
pub(crate) fn processes(id: &str) -> Result<Vec<i32>, cgroup::Error> {
    let mut processes = Vec::new();
    add(&cgroup::directory(id)?, &mut processes);
    processes.retain(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok());
    processes.sort_unstable();
    // The kernel may name one twice.
    processes.dedup();
    Ok(processes)
}

/// A cgroup that ends meanwhile has no processes.
fn add(directory: &Path, processes: &mut Vec<i32>) {
    let list = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    processes.extend(list.lines().filter_map(|line| line.parse::<i32>().ok()));
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            add(&entry.path(), processes);
        }
    }
}

/// What they take. One that ends meanwhile takes nothing.
pub(crate) fn memory(processes: &[i32]) -> Memory {
    processes
        .iter()
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok())
        .fold(Memory::default(), |sum, table| {
            let bytes = |name| kib(&table, name).unwrap_or(0);
            Memory {
                pss: sum.pss + bytes("Pss"),
                private: sum.private + bytes("Private_Clean") + bytes("Private_Dirty"),
            }
        })
}

/// The threads of a process; none where it is gone.
pub(crate) fn threads(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    tasks
        .filter_map(|task| task.file_name().to_str()?.parse().ok())
        .collect()
}

/// Bytes that a table of the kernel's gives under a name, in kB.
pub(crate) fn kib(table: &str, name: &str) -> Option<u64> {
    field(table, name)?
        .strip_suffix(" kB")?
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

/// The value of a line `NAME: VALUE`.
fn field<'a>(table: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = table.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(value.trim())
}

/// A process; `None` where it is gone.
pub(crate) fn process(pid: i32) -> Option<Process> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let program = program.file_name()?.to_string_lossy().into_owned();
    described(pid, program, &status, namespaces(pid))
}

fn described(
    pid: i32,
    program: String,
    status: &str,
    namespaces: BTreeMap<String, String>,
) -> Option<Process> {
    Some(Process {
        pid,
        program,
        uid: field(status, "Uid")?.split_whitespace().nth(1)?.parse().ok()?,
        effective_capabilities: field(status, "CapEff")?.to_owned(),
        seccomp: match field(status, "Seccomp") {
            None | Some("0") => "disabled",
            Some("1") => "strict",
            Some(_) => "filter",
        },
        no_new_privileges: field(status, "NoNewPrivs") == Some("1"),
        namespaces,
    })
}

/// The namespaces of a process.
pub(crate) fn namespaces(pid: i32) -> BTreeMap<String, String> {
    let entries = fs::read_dir(format!("/proc/{pid}/ns"))
        .into_iter()
        .flatten()
        .flatten();
    let identity = |entry: fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let target = fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
        (!name.ends_with("_for_children")).then_some((name, target))
    };
    entries.filter_map(identity).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileges_are_read() {
        let status =
            "Name:\tvmm\nUid:\t0\t65534\t0\t0\nCapEff:\t00000000a80425fb\nNoNewPrivs:\t1\nSeccomp:\t2\n";
        let expected = Process {
            pid: 7,
            program: "vmm".to_owned(),
            uid: 65534,
            effective_capabilities: "00000000a80425fb".to_owned(),
            seccomp: "filter",
            no_new_privileges: true,
            namespaces: BTreeMap::new(),
        };
        let described = |status| described(7, "vmm".to_owned(), status, BTreeMap::new());
        assert_eq!(described(status), Some(expected));
        assert_eq!(described("Seccomp:\t0\n"), None);
    }

    #[test]
    fn this_process_is_described_and_takes_memory() {
        let own = i32::try_from(std::process::id()).unwrap();
        let memory = memory(&[own]);
        assert!(memory.pss > 0 && memory.private > 0, "{memory:?}");
        assert_eq!(super::memory(&[]), Memory::default());
        assert!(process(own).unwrap().namespaces["pid"].starts_with("pid:["));
        assert_eq!(process(-1), None);
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(
            kib("MemTotal:       8 kB\nMemFree: 3 kB\n", "MemFree"),
            Some(3 << 10)
        );
        assert_eq!(kib("MemTotal:       8 kB\n", "Mem"), None);
        assert_eq!(kib("MemTotal:       8 MB\n", "MemTotal"), None);
    }
}
