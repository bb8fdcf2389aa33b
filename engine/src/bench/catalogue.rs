//! The rows: what each is in, which way is better, and what a right run of its workload gives.

use serde::{Deserialize, Serialize};

use super::plan::Suite;
use crate::timeline::Phase;

/// What a sample is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Milliseconds.
    Milliseconds,
    /// Nanoseconds for each operation.
    Nanoseconds,
    /// Bytes a second.
    BytesPerSecond,
    /// Bytes.
    Bytes,
    /// Parts of a hundred.
    Percent,
    /// A number of something.
    Count,
    /// A number of something a second.
    PerSecond,
}

impl Unit {
    /// As it is written behind a number; empty where numbers are counts.
    #[must_use]
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Nanoseconds => "ns",
            Self::BytesPerSecond => "B/s",
            Self::Bytes => "B",
            Self::Percent => "%",
            Self::Count => "",
            Self::PerSecond => "1/s",
        }
    }
}

/// Which of two numbers is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// The smaller one.
    Less,
    /// The greater one.
    More,
    /// Neither is: it is to be known.
    Neither,
}

/// A row of a suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Where it belongs.
    pub suite: Suite,
    /// Its name within the suite.
    pub id: &'static str,
    /// In a few words.
    pub title: &'static str,
    /// What its samples are in.
    pub unit: Unit,
    /// Which is better.
    pub better: Better,
}

use Better::{Less, More, Neither};
use Suite::{Apps, Cpu, Density, Disk, Exposure, Memory, Network, Startup, Syscall};
use Unit::{Bytes, BytesPerSecond, Count, Milliseconds, Nanoseconds, PerSecond, Percent};

const fn row(suite: Suite, id: &'static str, title: &'static str, unit: Unit, better: Better) -> Row {
    Row {
        suite,
        id,
        title,
        unit,
        better,
    }
}

/// Every row, in the order in which they are shown. A volume's are a disk's; of phases, see [`phase`].
const ROWS: [Row; 69] = [
    row(
        Startup,
        "total",
        "command executed to command ended",
        Milliseconds,
        Less,
    ),
    row(
        Startup,
        "output",
        "command executed to first byte of output",
        Milliseconds,
        Less,
    ),
    row(
        Startup,
        "processor",
        "processor time of all its processes, kernel and guest included",
        Milliseconds,
        Less,
    ),
    row(
        Memory,
        "available-first",
        "MemAvailable taken by one at rest",
        Bytes,
        Less,
    ),
    row(
        Memory,
        "available-each",
        "MemAvailable taken by each of many at rest",
        Bytes,
        Less,
    ),
    row(
        Memory,
        "would-fit",
        "at rest that MemAvailable would hold, reckoned from what each of many takes",
        Count,
        More,
    ),
    row(
        Memory,
        "pss",
        "proportional set of all its processes",
        Bytes,
        Less,
    ),
    row(
        Memory,
        "private",
        "private memory of all its processes",
        Bytes,
        Less,
    ),
    row(
        Memory,
        "supervisor",
        "proportional set of its supervisor",
        Bytes,
        Less,
    ),
    row(
        Memory,
        "monitor",
        "proportional set of its VMM, without guest memory",
        Bytes,
        Less,
    ),
    row(
        Memory,
        "guest",
        "guest memory that the host has given",
        Bytes,
        Less,
    ),
    row(
        Memory,
        "guest-kernel",
        "guest memory that is not the workload's, as the guest counts",
        Bytes,
        Less,
    ),
    row(
        Memory,
        "hog-inside",
        "128 MiB taken, as the workload's own kernel counts",
        Bytes,
        Neither,
    ),
    row(
        Memory,
        "hog-host",
        "128 MiB taken, as the host counts its processes",
        Bytes,
        Neither,
    ),
    row(
        Memory,
        "hog-available",
        "128 MiB taken, as MemAvailable falls",
        Bytes,
        Neither,
    ),
    row(
        Memory,
        "hog-returned",
        "128 MiB freed: the part that the host has again",
        Percent,
        More,
    ),
    row(
        Memory,
        "file-cache",
        "64 MiB of a file read: what its processes take for it, beside the host's cache",
        Bytes,
        Less,
    ),
    row(Cpu, "compute", "a step of a computation", Nanoseconds, Less),
    row(Cpu, "memory-copy", "copying memory", BytesPerSecond, More),
    row(Cpu, "memory-read", "reading memory", BytesPerSecond, More),
    row(
        Cpu,
        "idle",
        "one at rest, 2 s after its start: processor time, each second",
        Milliseconds,
        Less,
    ),
    row(Syscall, "getpid", "getpid", Nanoseconds, Less),
    row(
        Syscall,
        "open-close",
        "open and close of a device",
        Nanoseconds,
        Less,
    ),
    row(Syscall, "read", "read of a byte", Nanoseconds, Less),
    row(Syscall, "write", "write of a byte", Nanoseconds, Less),
    row(
        Syscall,
        "spawn",
        "process made, executed and waited for",
        Nanoseconds,
        Less,
    ),
    row(
        Syscall,
        "futex",
        "threads wake each other, there and back",
        Nanoseconds,
        Less,
    ),
    row(
        Syscall,
        "pipe",
        "byte through a pipe, there and back, one CPU",
        Nanoseconds,
        Less,
    ),
    row(
        Syscall,
        "page-fault",
        "page mapped and touched",
        Nanoseconds,
        Less,
    ),
    row(
        Disk,
        "write-128k",
        "sequential write, 128 KiB, with fsync",
        BytesPerSecond,
        More,
    ),
    row(
        Disk,
        "read-128k",
        "sequential read, 128 KiB",
        BytesPerSecond,
        More,
    ),
    row(
        Disk,
        "random-read-4k",
        "random read, 4 KiB, direct, depth 1",
        Nanoseconds,
        Less,
    ),
    row(
        Disk,
        "random-read-4k-32",
        "random read, 4 KiB, direct, by 32 threads",
        Nanoseconds,
        Less,
    ),
    row(
        Disk,
        "random-write-4k",
        "random write, 4 KiB, direct, depth 1",
        Nanoseconds,
        Less,
    ),
    row(
        Disk,
        "random-write-4k-32",
        "random write, 4 KiB, direct, by 32 threads",
        Nanoseconds,
        Less,
    ),
    row(Disk, "fsync", "append of 4 KiB and fdatasync", Nanoseconds, Less),
    row(Disk, "create", "file created", Nanoseconds, Less),
    row(Disk, "stat", "file looked at", Nanoseconds, Less),
    row(
        Disk,
        "stat-absent",
        "file looked for that is not there",
        Nanoseconds,
        Less,
    ),
    row(Disk, "unlink", "file removed", Nanoseconds, Less),
    row(
        Disk,
        "stat-tree",
        "directories listed, and what is in them looked at",
        Nanoseconds,
        Less,
    ),
    row(
        Network,
        "receive-1",
        "TCP to the workload, 1 stream",
        BytesPerSecond,
        More,
    ),
    row(
        Network,
        "receive-10",
        "TCP to the workload, 10 streams",
        BytesPerSecond,
        More,
    ),
    row(
        Network,
        "send-1",
        "TCP from the workload, 1 stream",
        BytesPerSecond,
        More,
    ),
    row(
        Network,
        "send-10",
        "TCP from the workload, 10 streams",
        BytesPerSecond,
        More,
    ),
    row(
        Network,
        "round-trip",
        "64 bytes there and back, median",
        Nanoseconds,
        Less,
    ),
    row(
        Network,
        "round-trip-p99",
        "64 bytes there and back, 99th percentile",
        Nanoseconds,
        Less,
    ),
    row(Network, "connect", "TCP connection made", Nanoseconds, Less),
    row(Network, "http", "HTTP requests, 4 connections", PerSecond, More),
    row(
        Apps,
        "database",
        "SQLite: transactions and queries",
        Nanoseconds,
        Less,
    ),
    row(
        Apps,
        "key-value",
        "key-value server with a log: requests",
        Nanoseconds,
        Less,
    ),
    row(Apps, "web", "HTTP server of files: requests", Nanoseconds, Less),
    row(
        Apps,
        "build",
        "build: a unit read, translated by a process, written",
        Nanoseconds,
        Less,
    ),
    row(
        Exposure,
        "calls",
        "distinct system calls made on the host's kernel",
        Count,
        Less,
    ),
    row(
        Exposure,
        "calls-total",
        "system calls made on the host's kernel",
        Count,
        Less,
    ),
    row(
        Exposure,
        "allowed",
        "distinct system calls that filters let through to the host's kernel",
        Count,
        Less,
    ),
    row(Exposure, "exits", "VM exits", Count, Less),
    row(
        Exposure,
        "capabilities",
        "capabilities in effect inside, over its own kernel",
        Count,
        Less,
    ),
    row(Exposure, "devices", "device nodes seen inside", Count, Less),
    row(
        Exposure,
        "proc",
        "files of /proc that can be opened inside",
        Count,
        Less,
    ),
    row(
        Exposure,
        "sys",
        "files of /sys that can be opened inside",
        Count,
        Less,
    ),
    row(
        Density,
        "starts",
        "containers run to their end, many at once",
        PerSecond,
        More,
    ),
    row(Density, "slowest", "the slowest of them", Milliseconds, Less),
    row(
        Density,
        "output-1",
        "one started: command executed to first byte of output",
        Milliseconds,
        Less,
    ),
    row(
        Density,
        "output-10",
        "10 started at once: the same, median of them",
        Milliseconds,
        Less,
    ),
    row(
        Density,
        "output-50",
        "50 started at once: the same, median of them",
        Milliseconds,
        Less,
    ),
    row(
        Density,
        "exec",
        "a further command in one that runs",
        Milliseconds,
        Less,
    ),
    row(Density, "stop", "one stopped by its signal", Milliseconds, Less),
    row(Density, "remove", "one killed and removed", Milliseconds, Less),
];

/// The row of a suite with this name.
#[must_use]
pub fn find(suite: Suite, id: &str) -> Option<Row> {
    all().find(|row| row.suite == suite && row.id == id)
}

/// Where it stands among all rows.
pub(super) fn place(suite: Suite, id: &str) -> Option<usize> {
    all().position(|row| row.suite == suite && row.id == id)
}

fn all() -> impl Iterator<Item = Row> {
    let phases = Phase::ALL.into_iter().map(phase);
    let of_disk = ROWS.into_iter().filter(|row| row.suite == Disk);
    let of_volume = of_disk.map(|row| Row {
        suite: Suite::Volume,
        ..row
    });
    let controls = Suite::ALL.map(control);
    ROWS.into_iter().chain(of_volume).chain(phases).chain(controls)
}

/// The row of the host's own piece of work in a suite.
#[must_use]
pub fn control(suite: Suite) -> Row {
    row(
        suite,
        CONTROL,
        "the host itself: a fixed piece of work",
        Milliseconds,
        Less,
    )
}

/// Its name.
pub const CONTROL: &str = "control";

/// The row of a phase: from the moment before to this one.
#[must_use]
pub fn phase(phase: Phase) -> Row {
    row(Startup, phase.name(), phase.label(), Milliseconds, Less)
}

/// What a workload that runs inside has to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) id: &'static str,
    pub(super) operations: u64,
    pub(super) check: u64,
}

const fn expected(id: &'static str, operations: u64, check: u64) -> Expected {
    Expected {
        id,
        operations,
        check,
    }
}

/// What one of so many parts of the work comes to, where each operation counts the same.
pub(super) const fn part_of<const N: usize>(work: [Expected; N], parts: u64) -> [Expected; N] {
    let (mut part, mut index) = (work, 0);
    while index < N {
        part[index].operations /= parts;
        part[index].check /= parts;
        index += 1;
    }
    part
}

/// Each operation is checked by itself and counted.
const fn counted(id: &'static str, operations: u64) -> Expected {
    expected(id, operations, operations)
}

/// Sums of a program in another language that does the same.
pub(super) const CPU: [Expected; 3] = [
    expected("compute", 20_000_000, 0xa96c_097d_0811_73a5),
    expected("memory-copy", 8 * (32 << 20), 4_278_190_080),
    expected("memory-read", 8 * (32 << 20), 18_374_971_274_758_717_440),
];

pub(super) const SYSCALL: [Expected; 8] = [
    counted("getpid", 100_000),
    counted("open-close", 20_000),
    counted("read", 50_000),
    counted("write", 50_000),
    counted("spawn", 50),
    counted("futex", 5_000),
    counted("pipe", 5_000),
    counted("page-fault", 16_384),
];

pub(super) const DISK: [Expected; 12] = [
    expected("write-128k", 64 << 20, 16_384),
    expected("read-128k", 64 << 20, 16_384),
    counted("random-read-4k", 1000),
    counted("random-read-4k-32", 1000),
    counted("random-write-4k", 1000),
    counted("random-write-4k-32", 1000),
    counted("fsync", 100),
    counted("create", 1000),
    counted("stat", 1000),
    counted("stat-absent", 1000),
    counted("unlink", 1000),
    counted("stat-tree", 1000),
];

/// A volume does a part of a disk's work: in a machine each of its operations is a request to the host.
pub(super) const VOLUME: [Expected; 12] = part_of(DISK, 4);

/// The database's sum is that of a program in another language, with another build of the library.
pub(super) const APPS: [Expected; 4] = [
    expected("database", 700, 1_248_356),
    counted("key-value", 2000),
    counted("web", 1000),
    counted("build", 40),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_name_of_its_own() {
        let mut names: Vec<_> = all().map(|row| (row.suite, row.id)).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn what_is_measured_inside_has_a_row() {
        let inside = [
            (Cpu, &CPU[..]),
            (Syscall, &SYSCALL),
            (Disk, &DISK),
            (Suite::Volume, &VOLUME),
            (Apps, &APPS),
        ];
        let outside = ["idle", CONTROL];
        for (suite, expected) in inside {
            let rows = all().filter(|row| row.suite == suite && !outside.contains(&row.id));
            let rows: Vec<_> = rows.map(|row| row.id).collect();
            let expected: Vec<_> = expected.iter().map(|expected| expected.id).collect();
            assert_eq!(rows, expected, "{suite}");
        }
    }
}
