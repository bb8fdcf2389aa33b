//! What a cgroup has used, from the files of its controllers.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::processes::machine_memory;
use super::{Cgroup, Error, value_of};

/// What the processes of a cgroup use and have used. What belongs to a controller that is not enabled is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// When this was, in microseconds of a clock that only goes forward.
    pub at_us: u64,
    /// Processor time in microseconds.
    pub processor_us: u64,
    /// Bytes of memory, but for files that were not used lately and can be had again: what Docker shows.
    pub memory_bytes: Option<u64>,
    /// What it may have: its limit, or all of the machine's memory.
    pub memory_limit_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Bytes read from block devices.
    pub read_bytes: Option<u64>,
    /// Bytes written to block devices.
    pub written_bytes: Option<u64>,
    /// What went over the network of its processes; `None` where nobody asked.
    pub traffic: Option<Traffic>,
}

/// Bytes that went over the network interfaces of a network namespace, but for the loopback.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// To the namespace.
    pub received_bytes: u64,
    /// From it.
    pub sent_bytes: u64,
}

/// What the cgroup at `path` uses.
///
/// # Errors
/// [`Error::Read`] where the cgroup is not there, or the kernel says something else than it should.
pub fn usage(path: &Path) -> Result<Usage, Error> {
    let cgroup = Cgroup::open(path)?;
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let positive = |number: i64| u64::try_from(number).unwrap_or(0);
    let memory = optional(cgroup.memory_bytes())?;
    let stat = optional(cgroup.read("memory.stat"))?;
    let idle = stat
        .and_then(|text| value_of(&text, "inactive_file"))
        .unwrap_or(0);
    let io = optional(cgroup.read("io.stat"))?;
    let transferred = |key| io.as_deref().map(|text| sum_of(text, key));
    Ok(Usage {
        at_us: positive(now.tv_sec) * 1_000_000 + positive(now.tv_nsec) / 1000,
        processor_us: cgroup.keyed("cpu.stat", "usage_usec")?,
        memory_bytes: memory.map(|bytes| bytes.saturating_sub(idle)),
        memory_limit_bytes: optional(cgroup.read("memory.max"))?
            .and_then(|text| limit(&text, machine_memory())),
        pids: optional(cgroup.read("pids.current"))?.and_then(|text| text.trim().parse().ok()),
        read_bytes: transferred("rbytes"),
        written_bytes: transferred("wbytes"),
        traffic: None,
    })
}

/// What the cgroup at `path` uses, and what went over the network that its processes have.
///
/// # Errors
/// As for [`usage`].
pub fn workload_usage(path: &Path) -> Result<Usage, Error> {
    let usage = usage(path)?;
    let members = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    // Any process does, and any may end meanwhile.
    let table = members
        .lines()
        .find_map(|pid| fs::read_to_string(format!("/proc/{pid}/net/dev")).ok());
    let traffic = table.as_deref().map(traffic).unwrap_or_default();
    Ok(Usage {
        traffic: Some(traffic),
        ..usage
    })
}

/// `None` where the file of a controller is not there. The root of a hierarchy has none of some, either.
fn optional<T>(read: Result<T, Error>) -> Result<Option<T>, Error> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What `memory.max` allows on a machine with so much memory.
fn limit(text: &str, machine: Option<u64>) -> Option<u64> {
    match (text.trim().parse().ok(), machine) {
        (Some(limit), Some(machine)) => Some(machine.min(limit)),
        (limit, machine) => limit.or(machine),
    }
}

/// Sum over all devices of a nested keyed file: `MAJOR:MINOR rbytes=1 wbytes=2 ...`.
fn sum_of(text: &str, key: &str) -> u64 {
    text.split_ascii_whitespace()
        .filter_map(|entry| entry.split_once('='))
        .filter(|(name, _)| *name == key)
        .filter_map(|(_, value)| value.parse::<u64>().ok())
        .fold(0, u64::saturating_add)
}

/// Adds up `/proc/PID/net/dev` (proc(5)): after the interface's name eight numbers of what it received, then of what it sent;
/// the first of each are bytes.
fn traffic(table: &str) -> Traffic {
    let mut traffic = Traffic::default();
    for line in table.lines() {
        let Some((name, numbers)) = line.split_once(':') else {
            continue;
        };
        if name.trim() == "lo" {
            continue;
        }
        let numbers: Vec<u64> = numbers
            .split_ascii_whitespace()
            .map(|number| number.parse().unwrap_or(0))
            .collect();
        let number = |index: usize| numbers.get(index).copied().unwrap_or(0);
        traffic.received_bytes = traffic.received_bytes.saturating_add(number(0));
        traffic.sent_bytes = traffic.sent_bytes.saturating_add(number(8));
    }
    traffic
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_tables_are_understood() {
        let io = "254:0 rbytes=4096 wbytes=1 rios=1 wios=1 dbytes=0 dios=0\n7:1 rbytes=4 wbytes=2\n8:0 \n";
        assert_eq!(
            (sum_of(io, "rbytes"), sum_of(io, "wbytes"), sum_of("", "rbytes")),
            (4100, 3, 0)
        );
        let devices = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0:    1000       1    0    0    0     0          0         0       20       1    0    0    0     0       0          0
  eth1:      10       1    0    0    0     0          0         0        3       1    0    0    0     0       0          0
";
        let expected = Traffic {
            received_bytes: 1010,
            sent_bytes: 23,
        };
        assert_eq!(traffic(devices), expected);
        assert_eq!(limit("max\n", Some(5)), Some(5));
        assert_eq!(limit("4\n", Some(5)), Some(4));
        assert_eq!(limit("9223372036854771712\n", Some(5)), Some(5));
        assert_eq!(limit("4\n", None), Some(4));
    }
}
