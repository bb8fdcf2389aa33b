//! The columns of `ps` (procps) that there are, and what stands in them.

use anyhow::{Result, bail};
use jiff::{SignedDuration, Zoned};
use rvm_engine::Process;

/// What a column depends on besides the process.
pub(super) struct Context {
    pub(super) now: Zoned,
    /// Memory of the machine that the processes run on.
    pub(super) memory_bytes: u64,
}

type Show = fn(&Process, &Context) -> String;

/// A column under a title.
pub(super) struct Column {
    pub(super) title: String,
    show: Show,
}

impl Column {
    /// What stands in it, as the process would have it: with any characters.
    pub(super) fn show(&self, process: &Process, context: &Context) -> String {
        (self.show)(process, context)
    }
}

/// Names, title and content of each column.
const COLUMNS: &[(&[&str], &str, Show)] = &[
    (&["pid"], "PID", |process, _| process.pid.to_string()),
    (&["ppid"], "PPID", |process, _| process.parent.to_string()),
    (&["pgid", "pgrp"], "PGID", |process, _| process.group.to_string()),
    (&["sid", "sess", "session"], "SID", |process, _| {
        process.session.to_string()
    }),
    (&["uid", "euid"], "UID", |process, _| user(process)),
    (&["user", "euser", "uname"], "USER", |process, _| user(process)),
    (&["gid", "egid"], "GID", |process, _| process.gid.to_string()),
    (&["c"], "C", |process, _| (per_mille(process) / 10).to_string()),
    (&["%cpu", "pcpu"], "%CPU", |process, _| tenths(per_mille(process))),
    (&["%mem", "pmem"], "%MEM", |process, context| {
        tenths(process.resident_bytes.saturating_mul(1000) / context.memory_bytes.max(1))
    }),
    (&["vsz", "vsize"], "VSZ", |process, _| {
        (process.virtual_bytes / 1024).to_string()
    }),
    (&["rss", "rssize", "rsz"], "RSS", |process, _| {
        (process.resident_bytes / 1024).to_string()
    }),
    (&["tty", "tt", "tname"], "TTY", |process, _| {
        terminal(process.terminal)
    }),
    (&["stat", "state", "s"], "STAT", |process, _| {
        process.state.clone()
    }),
    (&["stime"], "STIME", |process, context| {
        started(process, &context.now)
    }),
    (&["start", "start_time"], "START", |process, context| {
        started(process, &context.now)
    }),
    (&["time", "cputime"], "TIME", |process, _| {
        clock(process.processor_ms / 1000, true)
    }),
    (&["bsdtime"], "TIME", |process, _| {
        minutes(process.processor_ms / 1000)
    }),
    (&["etime"], "ELAPSED", |process, _| {
        clock(process.age_ms / 1000, false)
    }),
    (&["etimes"], "ELAPSED", |process, _| {
        (process.age_ms / 1000).to_string()
    }),
    (&["ni", "nice"], "NI", |process, _| process.nice.to_string()),
    (&["nlwp", "thcount"], "NLWP", |process, _| {
        process.threads.to_string()
    }),
    (&["comm", "ucmd", "ucomm"], "COMMAND", |process, _| {
        process.name.clone()
    }),
    (&["cmd"], "CMD", |process, _| command(process)),
    (&["args", "command"], "COMMAND", |process, _| command(process)),
];

/// The names of all columns.
pub(super) fn names() -> String {
    let names: Vec<&str> = COLUMNS
        .iter()
        .filter_map(|(names, ..)| names.first().copied())
        .collect();
    names.join(", ")
}

/// Reads a list such as `pid,comm` or `pid,args=WHAT`.
pub(super) fn parse(list: &str) -> Result<Vec<Column>> {
    list.split(',').map(parse_one).collect()
}

fn parse_one(text: &str) -> Result<Column> {
    let (name, own_title) = match text.split_once('=') {
        Some((name, title)) => (name, Some(title)),
        None => (text, None),
    };
    let Some((_, title, show)) = COLUMNS.iter().find(|(names, ..)| names.contains(&name)) else {
        bail!("there is no column {name:?}: the columns are {}", names());
    };
    Ok(Column {
        title: own_title.unwrap_or(title).to_owned(),
        show: *show,
    })
}

/// The one user whose name is the same everywhere by it; others by their number, for who they are is the image's word.
fn user(process: &Process) -> String {
    match process.uid {
        0 => "root".to_owned(),
        uid => uid.to_string(),
    }
}

/// Processor time per time, in thousandths of a processor.
fn per_mille(process: &Process) -> u64 {
    process.processor_ms.saturating_mul(1000) / process.age_ms.max(1)
}

fn tenths(per_mille: u64) -> String {
    format!("{}.{}", per_mille / 10, per_mille % 10)
}

fn command(process: &Process) -> String {
    // As ps has it: one that has ended, or is the kernel's.
    if process.command.is_empty() {
        format!("[{}]", process.name)
    } else {
        process.command.clone()
    }
}

/// From a device number as `/proc/PID/stat` has it: the minor's upper part is above the major.
fn terminal(number: u32) -> String {
    let (major, minor) = (
        (number >> 8) & 0xfff,
        (number & 0xff) | ((number >> 12) & 0xf_ff00),
    );
    match (major, minor) {
        (4, minor) => format!("tty{minor}"),
        (5, 1) => "console".to_owned(),
        (136..=143, minor) => format!("pts/{}", (major - 136) * 256 + minor),
        _ => "?".to_owned(),
    }
}

/// The time of day of today, the day of this year, or the year.
fn started(process: &Process, now: &Zoned) -> String {
    let age = SignedDuration::from_millis(i64::try_from(process.age_ms).unwrap_or(i64::MAX));
    let Ok(started) = now.checked_sub(age) else {
        return "?".to_owned();
    };
    let format = if started.date() == now.date() {
        "%H:%M"
    } else if started.year() == now.year() {
        "%b%d"
    } else {
        "%Y"
    };
    started.strftime(format).to_string()
}

/// `[DAYS-]HOURS:MINUTES:SECONDS`; the hours are left out where they are none and `always_hours` does not want them.
fn clock(seconds: u64, always_hours: bool) -> String {
    let (days, hours) = (seconds / 86400, seconds / 3600 % 24);
    let rest = format!("{:02}:{:02}", seconds / 60 % 60, seconds % 60);
    match (days, hours) {
        (0, 0) if !always_hours => rest,
        (0, hours) => format!("{hours:02}:{rest}"),
        (days, hours) => format!("{days}-{hours:02}:{rest}"),
    }
}

fn minutes(seconds: u64) -> String {
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_those_of_ps() {
        let process = Process {
            pid: 7,
            parent: 1,
            uid: 33,
            terminal: 0x8803,
            threads: 2,
            processor_ms: 3_723_000,
            age_ms: 90_061_000,
            virtual_bytes: 4096,
            resident_bytes: 2048,
            name: "sh".into(),
            ..Process::default()
        };
        let context = Context {
            now: "2026-03-01T12:00:00+00[+00]".parse().unwrap(),
            memory_bytes: 100 << 10,
        };
        for (name, expected) in [
            ("pid", "7"),
            ("ppid", "1"),
            ("user", "33"),
            ("c", "4"),
            ("pcpu", "4.1"),
            ("%mem", "2.0"),
            ("vsz", "4"),
            ("rss", "2"),
            ("tty", "pts/3"),
            ("stime", "Feb28"),
            ("time", "01:02:03"),
            ("bsdtime", "62:03"),
            ("etime", "1-01:01:01"),
            ("etimes", "90061"),
            ("nlwp", "2"),
            ("args", "[sh]"),
        ] {
            let column = parse_one(name).unwrap();
            assert_eq!(column.show(&process, &context), expected, "{name}");
        }
        assert_eq!((clock(61, false).as_str(), terminal(0).as_str()), ("01:01", "?"));
        let today = Process {
            age_ms: 60_000,
            ..process.clone()
        };
        assert_eq!(started(&today, &context.now), "11:59");
        let ancient = Process {
            age_ms: u64::MAX,
            ..process
        };
        assert_eq!(started(&ancient, &context.now), "?");
    }
}
