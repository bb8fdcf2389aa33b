//! What is told of two looks: a row for each claim that textbooks make about virtual machines and containers, with what was
//! seen in each mode and where it was read. Numbers and names only; what a row means is explained elsewhere.

use std::collections::BTreeMap;

use rvm_probe::facts::Facts;
use serde::Serialize;

use super::host;
use super::observe::{Crash, Look};
use crate::record::Isolation;

/// A claim's two sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Which claim, one of [`ROWS`].
    pub id: &'static str,
    /// What was seen in the virtual machine.
    pub vm: String,
    /// What was seen in the container.
    pub container: String,
    /// Where it was read.
    pub evidence: &'static str,
}

/// How one side of a row is told.
type Cell = fn(&Look) -> String;

/// The claims in the order in which they are told, each with its evidence.
const CLAIMS: [(&str, Cell, &str); 21] = [
    (
        "kernel",
        kernel,
        "/proc/sys/kernel/{osrelease,random/boot_id} inside and on the host",
    ),
    (
        "kernel-settings",
        kernel_settings,
        "opening /proc/sys files for writing inside; finit_module(2); /proc/modules",
    ),
    (
        "start",
        start,
        "rvm's own stamps (CLOCK_MONOTONIC), the middle of several starts; rvm run --timing",
    ),
    (
        "memory",
        memory,
        "/proc/PID/smaps_rollup, memory.current and memory.stat of the container's cgroup; MemAvailable",
    ),
    ("processes", processes, "cgroup.procs on the host; /proc inside"),
    (
        "namespaces",
        namespaces,
        "/proc/self/ns inside, /proc/PID/ns on the host",
    ),
    (
        "limits",
        limits,
        "/sys/fs/cgroup inside; memory.max, cpu.max, pids.max of the cgroup on the host",
    ),
    (
        "processors",
        processors,
        "/proc/cpuinfo and sched_getaffinity(2) inside; the hypervisor flag of CPUID",
    ),
    (
        "memory-seen",
        memory_seen,
        "MemTotal of /proc/meminfo and memory.max inside",
    ),
    ("devices", devices, "/dev inside"),
    (
        "proc-sys",
        proc_sys,
        "entries of /proc and directories of /sys inside",
    ),
    (
        "rights",
        rights,
        "CapEff, Seccomp and NoNewPrivs of /proc/self/status inside",
    ),
    (
        "root",
        root,
        "/proc/self/mountinfo inside; the container's layers on the host",
    ),
    (
        "writes",
        writes,
        "blocks (stat(2)) of the container's directory before and after 1 MiB was written; after rm",
    ),
    ("network", network, "/proc/net inside"),
    (
        "host-calls",
        host_calls,
        "strace -f of the serving process while the same sample workload runs (a proxy)",
    ),
    (
        "host-rights",
        host_rights,
        "/proc/PID/status on the host of the process that serves the workload",
    ),
    (
        "exits",
        exits,
        "rvm inspect: exits that reached the VMM by reason (.Machine.Exits), and KVM's own count of all (.Machine.Kvm)",
    ),
    (
        "crash",
        crash,
        "vm.panic_on_oom=2 and memory until it runs out; opening the setting where the kernel is the host's",
    ),
    (
        "clock",
        clock,
        "current_clocksource, uptime, entropy_avail and rng_current inside",
    ),
    (
        "reach",
        reach,
        "harmless attempts by the probe inside, each with its errno (a proxy)",
    ),
];

/// The claims' names.
pub const ROWS: [&str; CLAIMS.len() + 1] = {
    let mut names = ["command"; CLAIMS.len() + 1];
    let mut index = 0;
    while index < CLAIMS.len() {
        names[index] = CLAIMS[index].0;
        index += 1;
    }
    names
};

/// Tells.
pub(super) fn rows(vm: &Look, container: &Look) -> Vec<Row> {
    let row = |(id, cell, evidence): (&'static str, Cell, &'static str)| Row {
        id,
        vm: cell(vm),
        container: cell(container),
        evidence,
    };
    let mut rows: Vec<Row> = CLAIMS.into_iter().map(row).collect();
    if vm.command.is_some() {
        rows.push(row((
            "command",
            command,
            "exit code, standard output, and stamps of execve and exit",
        )));
    }
    rows
}

fn kernel(look: &Look) -> String {
    let kernel = &look.facts.kernel;
    let host = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let whose = if kernel.boot_id == host.trim() {
        "the host's"
    } else {
        "its own"
    };
    format!("{} ({whose}, boot {})", kernel.release, short(&kernel.boot_id))
}

fn kernel_settings(look: &Look) -> String {
    let modules = match look.facts.kernel.modules {
        Some(count) => format!("{count} modules loaded"),
        None => "a kernel without modules".to_owned(),
    };
    let tries = ["open kernel.core_pattern", "load a kernel module"].map(|name| {
        let attempt = attempt(&look.facts, name);
        format!("{}: {attempt}", name.trim_start_matches("open "))
    });
    format!("{}; {modules}", tries.join("; "))
}

fn start(look: &Look) -> String {
    let parts: Vec<String> = look
        .start
        .phases
        .iter()
        .filter(|(_, us)| *us > 0)
        .map(|(phase, us)| format!("{} {}", phase.label(), milliseconds(*us)))
        .collect();
    format!(
        "{} to execve, {} in all, {} starts: {}",
        milliseconds(look.start.executed),
        milliseconds(look.start.whole),
        look.start.starts,
        parts.join(", ")
    )
}

fn memory(look: &Look) -> String {
    let one = |memory: host::Memory| {
        let charged = memory.charged.map_or(String::new(), |bytes| {
            let kernel = memory.kernel.map_or(String::new(), |kernel| {
                format!(", the kernel's part {}", mebibytes(kernel))
            });
            format!(" (charged {}{kernel})", mebibytes(bytes))
        });
        format!("{}{charged}", mebibytes(memory.proportional))
    };
    let fall = look.memory.fall.map_or(String::new(), |bytes| {
        let sign = if bytes < 0 { "-" } else { "" };
        format!(
            "; MemAvailable fell by {sign}{} for each",
            mebibytes(bytes.unsigned_abs())
        )
    });
    format!(
        "first {}, number {} {}{fall}",
        one(look.memory.first),
        look.memory.instances,
        one(look.memory.last)
    )
}

fn processes(look: &Look) -> String {
    let named = |processes: &mut dyn Iterator<Item = (String, &String)>| {
        let list: Vec<_> = processes.map(|(pid, name)| format!("{name} {pid}")).collect();
        list.join(", ")
    };
    let mut outside = look
        .processes
        .iter()
        .map(|process| (process.pid.to_string(), &process.program));
    let mut inside = look
        .facts
        .processes
        .iter()
        .map(|(pid, name)| (pid.to_string(), name));
    format!("host: {}; inside: {}", named(&mut outside), named(&mut inside))
}

fn namespaces(look: &Look) -> String {
    let serving = look.serving.as_ref().map(|process| &process.namespaces);
    let none = BTreeMap::new();
    let of_host = serving.unwrap_or(&none);
    let differ = |one: &BTreeMap<String, String>, other: &BTreeMap<String, String>| {
        let names = one
            .iter()
            .filter(|(kind, identity)| other.get(*kind) != Some(*identity));
        names.map(|(kind, _)| kind.as_str()).collect::<Vec<_>>().join(" ")
    };
    let same = match look.facts.namespaces.get("net") == of_host.get("net") {
        true => "the host sees the same ones",
        false => "the host sees none of them: they are the guest kernel's",
    };
    format!(
        "inside {}; {same}; on the host its process differs in: {}",
        look.facts.namespaces.get("net").map_or("?", String::as_str),
        differ(of_host, &look.own_namespaces)
    )
}

fn limits(look: &Look) -> String {
    let told = |values: [Option<&str>; 3]| {
        let names = ["memory", "cpu", "pids"];
        let shown = names.iter().zip(values).map(|(name, value)| {
            let value = value.unwrap_or("-");
            format!("{name} {value}")
        });
        shown.collect::<Vec<_>>().join(", ")
    };
    let inside = &look.facts.limits;
    let inside = [&inside.memory_max, &inside.cpu_max, &inside.pids_max].map(|value| value.as_deref());
    let outside = look.host_limits.each_ref().map(|value| value.as_deref());
    let who = match look.isolation {
        Isolation::Vm => "inside, by the guest's kernel",
        Isolation::Container => "inside, by the host's kernel",
    };
    format!("{who}: {}; host: {}", told(inside), told(outside))
}

fn processors(look: &Look) -> String {
    let processors = &look.facts.processors;
    let allowed = processors
        .allowed
        .map_or("?".to_owned(), |count| count.to_string());
    let flag = if processors.hypervisor {
        "CPUID says hypervisor"
    } else {
        "CPUID says none"
    };
    format!(
        "{} seen, {allowed} usable, {}, {flag}",
        processors.seen, processors.model
    )
}

fn memory_seen(look: &Look) -> String {
    let total = look
        .facts
        .memory_total_kb
        .map_or("?".to_owned(), |kb| mebibytes(kb * 1024));
    let limit = look.facts.limits.memory_max.as_deref().unwrap_or("-");
    format!("MemTotal {total}, memory.max {limit}")
}

fn devices(look: &Look) -> String {
    format!("{}: {}", look.facts.devices.len(), look.facts.devices.join(" "))
}

fn proc_sys(look: &Look) -> String {
    format!(
        "{} entries in /proc, {} directories in /sys: {}",
        look.facts.proc_entries,
        look.facts.sys_directories.len(),
        look.facts.sys_directories.join(" ")
    )
}

fn rights(look: &Look) -> String {
    let process = &look.facts.process;
    format!(
        "uid {}, CapEff {}, {}, NoNewPrivs {}",
        process.uid,
        process.effective_capabilities,
        seccomp(&process.seccomp),
        process.no_new_privileges
    )
}

fn root(look: &Look) -> String {
    let root = &look.facts.root;
    let over = match look.isolation {
        Isolation::Vm => "a disk that the guest's kernel mounts",
        Isolation::Container => "files that the host's kernel mounts",
    };
    format!(
        "{} of {} read-only layers (one is rvm's probe), {over}; {} mounts",
        root.kind, root.layers, root.mounts
    )
}

fn writes(look: &Look) -> String {
    let (before, after) = look.written;
    let place = match look.isolation {
        Isolation::Vm => "to a sparse disk of its own",
        Isolation::Container => "to a directory of the host's file system",
    };
    let left = if look.left {
        "something is left after rm"
    } else {
        "nothing is left after rm"
    };
    format!(
        "{place}: {} before, {} after 1 MiB was written; {left}",
        mebibytes(before),
        mebibytes(after)
    )
}

fn network(look: &Look) -> String {
    let network = &look.facts.network;
    let addresses = match network.addresses.as_slice() {
        [] => "no addresses".to_owned(),
        addresses => addresses.join(" "),
    };
    let route = if network.default_route {
        "a default route"
    } else {
        "no default route"
    };
    format!("{}; {addresses}; {route}", network.interfaces.join(" "))
}

fn host_calls(look: &Look) -> String {
    match &look.calls {
        Ok(calls) => {
            let names: Vec<_> = calls.keys().map(String::as_str).collect();
            let total: u64 = calls.values().sum();
            format!("{} distinct in {total}: {}", calls.len(), names.join(" "))
        }
        Err(reason) => reason.clone(),
    }
}

fn host_rights(look: &Look) -> String {
    match &look.serving {
        None => "it had ended".to_owned(),
        Some(process) => format!(
            "{} {}: uid {}, CapEff {}, seccomp {}, NoNewPrivs {}",
            process.program,
            process.pid,
            process.uid,
            process.effective_capabilities,
            process.seccomp,
            u8::from(process.no_new_privileges)
        ),
    }
}

fn exits(look: &Look) -> String {
    let Some(machine) = &look.inspection.machine else {
        return "none: a system call enters the host's kernel at once".to_owned();
    };
    let reasons = machine.exits.iter().flatten();
    let reasons: Vec<_> = reasons
        .map(|(reason, count)| format!("{reason} {count}"))
        .collect();
    let all = machine.kvm.as_ref().and_then(|kvm| kvm.get("exits"));
    let all = all.map_or(String::new(), |count| format!("; {count} in all"));
    format!("to the VMM: {}{all}", reasons.join(", "))
}

fn crash(look: &Look) -> String {
    match &look.crash {
        Crash::Provoked {
            said,
            neighbour_answers,
        } => {
            let neighbour = if *neighbour_answers {
                "another one answers, and so does the host"
            } else {
                "another one does not answer any more"
            };
            format!("provoked: {said}; {neighbour}")
        }
        Crash::Withheld { by_default, opened } => format!(
            "not provoked, the kernel is the host's: the setting is {by_default} by default, {opened} with systempaths=unconfined"
        ),
    }
}

fn clock(look: &Look) -> String {
    let clock = &look.facts.clock;
    let or_none = |text: &str| {
        if text.is_empty() {
            "none".to_owned()
        } else {
            text.to_owned()
        }
    };
    format!(
        "clock source {}, up {} s, host name {}, entropy {} bits, random source {}",
        or_none(&clock.source),
        clock.uptime_s,
        look.facts.hostname,
        or_none(&clock.entropy_bits),
        or_none(&clock.random_source)
    )
}

fn reach(look: &Look) -> String {
    let tries = look.facts.attempts.iter().map(|attempt| {
        let outcome = attempt.refused.as_deref().unwrap_or("allowed");
        format!("{}: {outcome}", attempt.name)
    });
    tries.collect::<Vec<_>>().join("; ")
}

fn command(look: &Look) -> String {
    look.command.map_or(String::new(), |(code, bytes, us)| {
        format!("code {code}, {bytes} bytes of output, {}", milliseconds(us))
    })
}

fn attempt<'a>(facts: &'a Facts, name: &str) -> &'a str {
    let attempt = facts.attempts.iter().find(|attempt| attempt.name == name);
    attempt.map_or("not tried", |attempt| {
        attempt.refused.as_deref().unwrap_or("allowed")
    })
}

fn seccomp(mode: &str) -> String {
    match mode {
        "0" => "no seccomp".to_owned(),
        "1" => "seccomp strict".to_owned(),
        "2" => "a seccomp filter".to_owned(),
        other => format!("seccomp {other}"),
    }
}

fn short(text: &str) -> String {
    text.chars().take(8).collect()
}

/// With one decimal.
fn milliseconds(us: u64) -> String {
    format!("{}.{} ms", us / 1000, us % 1000 / 100)
}

/// With one decimal.
fn mebibytes(bytes: u64) -> String {
    let tenths = bytes * 10 / (1 << 20);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_name_of_its_own() {
        let mut names = ROWS.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CLAIMS.len() + 1);
    }

    #[test]
    fn numbers_have_units() {
        assert_eq!(milliseconds(1250), "1.2 ms");
        assert_eq!(mebibytes(1 << 20), "1.0 MiB");
        assert_eq!(mebibytes((1 << 20) / 2), "0.5 MiB");
        assert_eq!(seccomp("2"), "a seccomp filter");
    }
}
