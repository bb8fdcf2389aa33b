//! What the host's kernel says of a process: its threads, and what of its memory is resident (proc(5)).

use std::fs;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

use serde::Serialize;

/// A thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Thread {
    /// What its program calls it.
    pub name: String,
    /// Its number.
    pub tid: i32,
    /// `disabled`, `strict` or `filter`.
    pub seccomp: String,
    /// Filters that are in force.
    pub seccomp_filters: u32,
}

/// Resident memory of a process, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Memory {
    /// What lies in the ranges that were asked for.
    pub(super) within: u64,
    /// Everything else, and of what is shared its share: the proportional set.
    pub(super) elsewhere: u64,
}

/// The threads of a process, in the order of their numbers.
///
/// # Errors
/// If the process has ended or belongs to somebody else.
pub(super) fn threads(pid: i32) -> io::Result<Vec<Thread>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end meanwhile.
        if let Ok(status) = fs::read_to_string(entry?.path().join("status")) {
            threads.extend(thread(&status));
        }
    }
    threads.sort_by_key(|thread| thread.tid);
    Ok(threads)
}

fn thread(status: &str) -> Option<Thread> {
    let field = |name: &str| {
        let mut lines = status.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(value.trim())
    };
    // Documentation/userspace-api/seccomp_filter.rst; a kernel without seccomp has no such line.
    let seccomp = match field("Seccomp") {
        None | Some("0") => "disabled".to_owned(),
        Some("1") => "strict".to_owned(),
        Some("2") => "filter".to_owned(),
        Some(other) => other.to_owned(),
    };
    Some(Thread {
        name: field("Name")?.to_owned(),
        tid: field("Pid")?.parse().ok()?,
        seccomp,
        seccomp_filters: field("Seccomp_filters")
            .and_then(|count| count.parse().ok())
            .unwrap_or(0),
    })
}

/// What of a process' memory is resident, within these ranges of its addresses and elsewhere.
///
/// # Errors
/// If the process has ended or belongs to somebody else.
pub(super) fn memory(pid: i32, ranges: &[Range<u64>]) -> io::Result<Memory> {
    let path = PathBuf::from(format!("/proc/{pid}/smaps"));
    Ok(sum(&fs::read_to_string(path)?, ranges))
}

/// Adds up a table of mappings. One that overlaps a range is taken to lie within it.
fn sum(table: &str, ranges: &[Range<u64>]) -> Memory {
    let mut memory = Memory::default();
    let mut is_within = false;
    for line in table.lines() {
        if let Some(mapping) = mapping(line) {
            let overlaps = |range: &Range<u64>| mapping.start < range.end && range.start < mapping.end;
            is_within = ranges.iter().any(overlaps);
        } else if let Some(bytes) = bytes(line, "Rss:").filter(|_| is_within) {
            memory.within += bytes;
        } else if let Some(bytes) = bytes(line, "Pss:").filter(|_| !is_within) {
            memory.elsewhere += bytes;
        }
    }
    memory
}

/// The addresses of a line that begins a mapping: `START-END PERMISSIONS ...`.
fn mapping(line: &str) -> Option<Range<u64>> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}

fn bytes(line: &str, name: &str) -> Option<u64> {
    let kib = line.strip_prefix(name)?.trim().strip_suffix(" kB")?;
    Some(kib.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_read() {
        let status =
            "Name:\tvcpu0\nState:\tS (sleeping)\nTgid:\t7\nPid:\t9\nSeccomp:\t2\nSeccomp_filters:\t2\n";
        let expected = Thread {
            name: "vcpu0".into(),
            tid: 9,
            seccomp: "filter".into(),
            seccomp_filters: 2,
        };
        assert_eq!(thread(status), Some(expected));
        assert_eq!(thread("Name:\tx\nPid:\t1\n").unwrap().seccomp, "disabled");
        assert_eq!(thread("Name:\tx\n"), None);
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(threads(own).unwrap().iter().any(|thread| thread.tid == own));
    }

    #[test]
    fn memory_is_told_apart() {
        let table = "\
00400000-00500000 r-xp 00000000 08:01 1 /usr/bin/x
Rss:                 100 kB
Pss:                  50 kB
Pss_Dirty:             7 kB
7f0000000000-7f0000200000 rw-p 00000000 00:00 0
Rss:                   0 kB
Pss:                   0 kB
7f0000200000-7f0000400000 rw-p 00000000 00:00 0
Rss:                2048 kB
Pss:                2048 kB
VmFlags: rd wr hg
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]
Rss:                   0 kB
";
        let guest = 0x7f00_0020_0000..0x7f00_0040_0000;
        let expected = Memory {
            within: 2 << 20,
            elsewhere: 50 << 10,
        };
        assert_eq!(sum(table, &[guest]), expected);
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(memory(own, &[]).unwrap().elsewhere > 0);
    }
}
