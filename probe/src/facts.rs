//! What a process sees of the place it is in: files of /proc and /sys, and a few harmless system calls. Whatever cannot be
//! read is `None` or empty, which is a fact, too.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::attempts::{self, Attempt};

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The kernel.
    pub kernel: Kernel,
    /// Its host name.
    pub hostname: String,
    /// Itself.
    pub process: Process,
    /// Processes that /proc shows: number and name.
    pub processes: Vec<(u32, String)>,
    /// Kind, and identity as `KIND:[INODE]`.
    pub namespaces: BTreeMap<String, String>,
    /// Its limits.
    pub limits: Limits,
    /// Its processors.
    pub processors: Processors,
    /// Of `/proc/meminfo`, in kB.
    pub memory_total_kb: Option<u64>,
    /// Names in /dev.
    pub devices: Vec<String>,
    /// Entries directly in /proc that are no process.
    pub proc_entries: usize,
    /// Directories of /sys that are not empty.
    pub sys_directories: Vec<String>,
    /// Its root.
    pub root: Root,
    /// Its network.
    pub network: Network,
    /// Its clock.
    pub clock: Clock,
    /// What it tried that would reach beyond it, and what came of that.
    pub attempts: Vec<Attempt>,
}

/// The kernel that it runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// As `uname -r`.
    pub release: String,
    /// As `uname -v`.
    pub version: String,
    /// A new one each time that a kernel starts.
    pub boot_id: String,
    /// Of the kernel.
    pub command_line: String,
    /// Modules that are loaded; `None` where the kernel has none.
    pub modules: Option<usize>,
}

/// The process itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Of `/proc/self/status`, in hexadecimal.
    pub effective_capabilities: String,
    /// Likewise.
    pub bounding_capabilities: String,
    /// 0 none, 1 strict, 2 a filter.
    pub seccomp: String,
    /// How many.
    pub seccomp_filters: String,
    /// 1 where it can gain none.
    pub no_new_privileges: String,
    /// Its user.
    pub uid: String,
    /// Of `/proc/self/cgroup`.
    pub cgroup: String,
}

/// What the cgroup that it sees says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// `memory.max`.
    pub memory_max: Option<String>,
    /// `cpu.max`.
    pub cpu_max: Option<String>,
    /// `pids.max`.
    pub pids_max: Option<String>,
}

/// Processors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processors {
    /// Of `/proc/cpuinfo`.
    pub seen: usize,
    /// That it may run on.
    pub allowed: Option<usize>,
    /// Of `/proc/cpuinfo`.
    pub model: String,
    /// Whether CPUID says that there is a hypervisor.
    pub hypervisor: bool,
}

/// The root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Its file system.
    pub kind: String,
    /// Layers below the writable one, where it is an overlay.
    pub layers: usize,
    /// What its upper directory lies on.
    pub mounts: usize,
    /// Whether it refuses writes.
    pub read_only: bool,
}

/// The network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Names.
    pub interfaces: Vec<String>,
    /// Addresses of `/proc/net/fib_trie` and `/proc/net/if_inet6`, the loopback's aside.
    pub addresses: Vec<String>,
    /// Whether it leads anywhere.
    pub default_route: bool,
}

/// Time and chance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// The clock source.
    pub source: String,
    /// Seconds since the kernel started.
    pub uptime_s: String,
    /// What the kernel has collected.
    pub entropy_bits: String,
    /// The device that feeds it.
    pub random_source: String,
}

/// Looks.
#[must_use]
pub fn collect() -> Facts {
    Facts {
        kernel: kernel(),
        hostname: text("/proc/sys/kernel/hostname"),
        process: process(),
        processes: processes(),
        namespaces: namespaces(),
        limits: Limits {
            memory_max: read("/sys/fs/cgroup/memory.max"),
            cpu_max: read("/sys/fs/cgroup/cpu.max"),
            pids_max: read("/sys/fs/cgroup/pids.max"),
        },
        processors: processors(),
        memory_total_kb: field(&text("/proc/meminfo"), "MemTotal")
            .trim_end_matches(" kB")
            .parse()
            .ok(),
        devices: names("/dev"),
        proc_entries: names("/proc")
            .iter()
            .filter(|name| name.parse::<u32>().is_err())
            .count(),
        sys_directories: names("/sys")
            .into_iter()
            .filter(|name| !names(&format!("/sys/{name}")).is_empty())
            .collect(),
        root: root(),
        network: network(),
        clock: Clock {
            source: text("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            uptime_s: first_word(&text("/proc/uptime")),
            entropy_bits: text("/proc/sys/kernel/random/entropy_avail"),
            random_source: text("/sys/class/misc/hw_random/rng_current"),
        },
        attempts: attempts::all(),
    }
}

fn kernel() -> Kernel {
    Kernel {
        release: text("/proc/sys/kernel/osrelease"),
        version: text("/proc/sys/kernel/version"),
        boot_id: text("/proc/sys/kernel/random/boot_id"),
        command_line: text("/proc/cmdline"),
        modules: read("/proc/modules").map(|modules| modules.lines().count()),
    }
}

fn process() -> Process {
    let status = text("/proc/self/status");
    Process {
        pid: std::process::id(),
        effective_capabilities: field(&status, "CapEff"),
        bounding_capabilities: field(&status, "CapBnd"),
        seccomp: field(&status, "Seccomp"),
        seccomp_filters: field(&status, "Seccomp_filters"),
        no_new_privileges: field(&status, "NoNewPrivs"),
        uid: first_word(&field(&status, "Uid")),
        cgroup: text("/proc/self/cgroup"),
    }
}

fn processes() -> Vec<(u32, String)> {
    let numbers = names("/proc").into_iter().filter_map(|name| name.parse().ok());
    let mut processes: Vec<(u32, String)> = numbers
        .map(|pid: u32| (pid, text(&format!("/proc/{pid}/comm"))))
        .collect();
    processes.sort_unstable();
    processes
}

fn namespaces() -> BTreeMap<String, String> {
    let link = |name: String| {
        let target = fs::read_link(format!("/proc/self/ns/{name}")).ok()?;
        Some((name, target.to_string_lossy().into_owned()))
    };
    let own = names("/proc/self/ns")
        .into_iter()
        .filter(|name| !name.ends_with("_for_children"));
    own.filter_map(link).collect()
}

fn processors() -> Processors {
    let table = text("/proc/cpuinfo");
    let first = |name: &str| {
        let mut lines = table.lines();
        lines.find_map(|line| Some(line.strip_prefix(name)?.split_once(':')?.1.trim().to_owned()))
    };
    let flags = first("flags").unwrap_or_default();
    Processors {
        seen: table.lines().filter(|line| line.starts_with("processor")).count(),
        allowed: rustix::thread::sched_getaffinity(None)
            .ok()
            .map(|set| set.count() as usize),
        model: first("model name").unwrap_or_default(),
        hypervisor: flags.split(' ').any(|flag| flag == "hypervisor"),
    }
}

/// The root's line of the mount table (proc(5)).
fn root() -> Root {
    let table = text("/proc/self/mountinfo");
    let line = table
        .lines()
        .find(|line| line.split(' ').nth(4) == Some("/"))
        .unwrap_or_default();
    let (before, after) = line.split_once(" - ").unwrap_or_default();
    let options = after.split(' ').nth(2).unwrap_or_default();
    let lower = options.split(',').filter(|option| option.starts_with("lowerdir"));
    Root {
        kind: first_word(after),
        layers: lower
            .map(|option| option.split_once('=').unwrap_or_default().1)
            .map(|layers| layers.split(':').filter(|layer| !layer.is_empty()).count())
            .sum(),
        mounts: table.lines().count(),
        read_only: before
            .split(' ')
            .nth(5)
            .is_some_and(|options| options.split(',').any(|option| option == "ro")),
    }
}

fn network() -> Network {
    let interfaces = text("/proc/net/dev")
        .lines()
        .skip(2)
        .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
        .collect();
    // A local address is the leaf "|-- ADDRESS" before a line "/32 host LOCAL".
    let trie = text("/proc/net/fib_trie");
    let lines: Vec<_> = trie.lines().collect();
    let mut addresses: Vec<String> = lines
        .windows(2)
        .filter(|pair| matches!(pair, [_, below] if below.contains("/32 host LOCAL")))
        .filter_map(|pair| Some(pair.first()?.split_once("|-- ")?.1.to_owned()))
        .filter(|address| !address.starts_with("127."))
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    let six = text("/proc/net/if_inet6");
    addresses.extend(six.lines().filter(|line| !line.ends_with(" lo")).map(first_word));
    Network {
        interfaces,
        addresses,
        default_route: text("/proc/net/route")
            .lines()
            .any(|line| line.split('\t').nth(1) == Some("00000000")),
    }
}

/// Names in a directory, in order.
fn names(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(Path::new(directory)).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    names
}

/// A small file's content.
fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn text(path: &str) -> String {
    read(path).unwrap_or_default()
}

/// The value of a line `NAME: VALUE`.
fn field(table: &str, name: &str) -> String {
    let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned());
    table.lines().find_map(value).unwrap_or_default()
}

fn first_word(text: &str) -> String {
    text.split_whitespace().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_linux_has_is_found() {
        let facts = collect();
        assert!(facts.kernel.release.contains('.') && !facts.kernel.boot_id.is_empty());
        assert_eq!(facts.process.pid, std::process::id());
        assert_eq!(facts.process.effective_capabilities.len(), 16);
        assert!(facts.processes.iter().any(|(pid, _)| *pid == std::process::id()));
        assert!(facts.namespaces["net"].starts_with("net:["));
        assert!(facts.processors.seen > 0 && facts.processors.allowed.is_some());
        assert!(facts.memory_total_kb.is_some_and(|kb| kb > 1000));
        assert!(facts.network.interfaces.contains(&"lo".to_owned()));
        assert!(facts.devices.contains(&"null".to_owned()));
    }

    #[test]
    fn fields_are_whole_names() {
        let table = "CapInh:\t0\nCapEff:\t00ff\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        assert_eq!(field(table, "Seccomp"), "2");
        assert_eq!(field(table, "Seccomp_filters"), "1");
        assert_eq!(field(table, "Cap"), "");
    }
}
