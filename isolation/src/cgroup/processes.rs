//! The processes of a cgroup, as the proc file system of whoever asks shows them (proc(5)).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Error, descendants};

/// Ticks in a second of the times in `/proc/PID/stat`: `USER_HZ`, which is part of the interface of x86-64.
const USER_HZ: u64 = 100;

/// Most processes that are described. A workload may have four million.
const MOST_PROCESSES: usize = 4096;

/// Most bytes of one command line, and of all of them together. A workload may write 2 MiB into each, and as JSON a byte
/// may take six: all of this fits into a message of 16 MiB.
const MOST_COMMAND: usize = 4096;
const MOST_COMMANDS: usize = 2 << 20;

/// What runs in a cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processes {
    /// In the order of their numbers.
    pub list: Vec<Process>,
    /// How many more there are than the 4096 that are described.
    pub more: u64,
    /// Memory of the machine that they run on, in bytes.
    pub memory_bytes: u64,
}

/// A process. All text is its own choice and may hold any character.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number where it was asked, outside of the container.
    pub pid: i32,
    /// Number of its parent.
    pub parent: i32,
    /// Number of its process group.
    pub group: i32,
    /// Number of its session.
    pub session: i32,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// One letter.
    pub state: String,
    /// Controlling terminal as `tty_nr` has it, 0 for none.
    pub terminal: u32,
    /// Niceness.
    pub nice: i32,
    /// Number of its threads.
    pub threads: u32,
    /// Processor time in milliseconds.
    pub processor_ms: u64,
    /// How long ago it started, in milliseconds.
    pub age_ms: u64,
    /// Bytes of address space.
    pub virtual_bytes: u64,
    /// Bytes of it in memory.
    pub resident_bytes: u64,
    /// Name of the program.
    pub name: String,
    /// Its arguments, with spaces between them; empty where there are none, or no room for them.
    pub command: String,
}

/// The processes of the cgroup at `path` and of its descendants.
///
/// # Errors
/// [`Error::Read`] where the cgroup is not there.
pub fn processes(path: &Path) -> Result<Processes, Error> {
    let failed = |path: &Path, file: &str, source| Error::Read {
        path: path.into(),
        file: file.into(),
        source,
    };
    let mut numbers = BTreeSet::new();
    for cgroup in descendants(path).map_err(|(path, source)| failed(&path, ".", source))? {
        match fs::read_to_string(cgroup.join("cgroup.procs")) {
            Ok(text) => numbers.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
            // The processes of a threaded cgroup are listed at the one above it that is not.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            // It was removed meanwhile.
            Err(error) if cgroup != path && error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(failed(&cgroup, "cgroup.procs", source)),
        }
    }
    // Zero stands for processes that are in another PID namespace.
    numbers.remove(&0);
    let mut processes = Processes {
        memory_bytes: machine_memory().unwrap_or(0),
        more: u64::try_from(numbers.len().saturating_sub(MOST_PROCESSES)).unwrap_or(u64::MAX),
        ..Processes::default()
    };
    let now_ms = boot_time_ms();
    let mut room = MOST_COMMANDS;
    for number in numbers.into_iter().take(MOST_PROCESSES) {
        // A process may end meanwhile.
        if let Some(process) = describe(number, now_ms, room.min(MOST_COMMAND)) {
            room -= process.command.len().min(room);
            processes.list.push(process);
        }
    }
    Ok(processes)
}

/// Milliseconds since the machine started, time asleep included: what a process' start is counted by.
fn boot_time_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let positive = |number: i64| u64::try_from(number).unwrap_or(0);
    positive(now.tv_sec) * 1000 + positive(now.tv_nsec) / 1_000_000
}

/// Memory of this machine in bytes.
pub(super) fn machine_memory() -> Option<u64> {
    kibibytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")
}

fn describe(number: i32, now_ms: u64, room: usize) -> Option<Process> {
    let directory = Path::new("/proc").join(number.to_string());
    let stat = fs::read(directory.join("stat")).ok()?;
    let status = fs::read(directory.join("status")).ok()?;
    let mut command = Vec::new();
    File::open(directory.join("cmdline"))
        .ok()?
        .take(u64::try_from(room).unwrap_or(0))
        .read_to_end(&mut command)
        .ok()?;
    let process = parse(
        &String::from_utf8_lossy(&stat),
        &String::from_utf8_lossy(&status),
        now_ms,
    )?;
    Some(Process {
        pid: number,
        command: joined(&command),
        ..process
    })
}

/// Arguments that each end with a zero byte.
fn joined(command: &[u8]) -> String {
    let text = String::from_utf8_lossy(command);
    text.trim_end_matches('\0').replace('\0', " ")
}

/// What `/proc/PID/stat` and `/proc/PID/status` say.
fn parse(stat: &str, status: &str, now_ms: u64) -> Option<Process> {
    // The name may hold parentheses and spaces, what follows it does not.
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // Numbered from 1 in proc(5); the state, after the name, is number 3.
    let field = |number: usize| fields.get(number - 3).copied();
    let ms = |ticks: u64| ticks.saturating_mul(1000 / USER_HZ);
    let user_time: u64 = field(14)?.parse().ok()?;
    let system_time: u64 = field(15)?.parse().ok()?;
    let started: u64 = field(22)?.parse().ok()?;
    // Real, effective, saved and file system's.
    let effective = |name: &str| line(status, name)?.split_ascii_whitespace().nth(1)?.parse().ok();
    Some(Process {
        pid: 0,
        parent: field(4)?.parse().ok()?,
        group: field(5)?.parse().ok()?,
        session: field(6)?.parse().ok()?,
        uid: effective("Uid:")?,
        gid: effective("Gid:")?,
        state: field(3)?.to_owned(),
        terminal: field(7)?.parse::<i32>().ok()?.cast_unsigned(),
        nice: field(19)?.parse().ok()?,
        threads: field(20)?.parse().ok()?,
        processor_ms: ms(user_time.saturating_add(system_time)),
        age_ms: now_ms.saturating_sub(ms(started)),
        virtual_bytes: field(23)?.parse().ok()?,
        // A process that has ended has none.
        resident_bytes: kibibytes(status, "VmRSS:").unwrap_or(0),
        name: name.to_owned(),
        command: String::new(),
    })
}

fn line<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .map(str::trim)
}

fn kibibytes(text: &str, name: &str) -> Option<u64> {
    line(text, name)?
        .strip_suffix(" kB")?
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_described_whatever_it_calls_itself() {
        let stat = "7 (a) R 1 (\n) S 1 7 5 34817 7 4194304 1 2 3 4 150 50 0 0 20 -5 3 0 1000 8192 2 1 2";
        let status =
            "Name:\ta\\n\nUid:\t0\t33\t0\t0\nGid:\t0\t34\t0\t0\nVmSize:\t      8 kB\nVmRSS:\t      12 kB\n";
        let expected = Process {
            pid: 0,
            parent: 1,
            group: 7,
            session: 5,
            uid: 33,
            gid: 34,
            state: "S".into(),
            terminal: 34817,
            nice: -5,
            threads: 3,
            processor_ms: 2000,
            age_ms: 5000,
            virtual_bytes: 8192,
            resident_bytes: 12 << 10,
            name: "a) R 1 (\n".into(),
            command: String::new(),
        };
        assert_eq!(parse(stat, status, 15_000), Some(expected));
        assert_eq!(parse("7 (a) S 1", status, 0), None);
        assert_eq!(parse("", "", 0), None);
    }

    #[test]
    fn command_lines_are_text() {
        for (bytes, expected) in [
            (&b"sh\0-c\0a b\0"[..], "sh -c a b"),
            (b"", ""),
            (b"\0\0", ""),
            (b"a\xff\0b", "a\u{fffd} b"),
        ] {
            assert_eq!(joined(bytes), expected);
        }
    }

    #[test]
    fn this_process_is_described() {
        let own = i32::try_from(std::process::id()).unwrap();
        let process = describe(own, boot_time_ms(), 4).unwrap();
        assert_eq!((process.pid, process.command.len()), (own, 4));
        assert!(
            process.resident_bytes > 0 && process.age_ms < 3_600_000,
            "{process:?}"
        );
        assert!(machine_memory().unwrap() > process.resident_bytes);
    }
}
