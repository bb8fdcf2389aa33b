//! Counting the system calls of processes that run, by strace.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

/// An interrupted call goes on by this one: the tracer's own doing.
const OF_THE_TRACER: &str = "restart_syscall";

/// What is told instead of a number.
pub(crate) fn why_not(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "not measured: needs strace, which is not installed".to_owned(),
        _ => format!("not measured: {error}"),
    }
}

/// strace, attached. It lets go of the processes when this ends.
pub(crate) struct Tracer {
    strace: Child,
    output: tempfile::NamedTempFile,
}

impl Tracer {
    /// Counts calls from when this returns: of these processes, their threads and their children.
    ///
    /// # Errors
    /// Where there is no strace, or it cannot attach to all of them.
    pub(crate) fn attach(processes: &[i32]) -> io::Result<Self> {
        let output = tempfile::NamedTempFile::new()?;
        let mut command = Command::new("strace");
        command.args(["-f", "-c", "-o"]).arg(output.path());
        for process in processes {
            command.args(["-p", &process.to_string()]);
        }
        let strace = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut tracer = Self { strace, output };
        let errors = tracer.strace.stderr.take().ok_or(io::ErrorKind::NotConnected)?;
        until_attached(errors, processes)?;
        Ok(tracer)
    }

    /// Lets go of the processes; how often each call was made.
    ///
    /// # Errors
    /// Where strace has not told.
    pub(crate) fn detach(mut self) -> io::Result<BTreeMap<String, u64>> {
        self.interrupt();
        self.strace.wait()?;
        let table = fs::read_to_string(self.output.path())?;
        counts(&table).ok_or_else(|| io::Error::other("strace has printed another table than it should"))
    }

    fn interrupt(&self) {
        let pid = i32::try_from(self.strace.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It is this process' child and has not been reaped, so the number is its own; one that has ended needs no signal.
            let _ = kill_process(pid, Signal::INT);
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        if matches!(self.strace.try_wait(), Ok(None)) {
            self.interrupt();
            let _ = self.strace.wait();
        }
    }
}

/// Reads strace's messages until it has all processes, and from then on lets it say what it wants.
fn until_attached(errors: ChildStderr, processes: &[i32]) -> io::Result<()> {
    let mut missing = processes.to_vec();
    let mut lines = BufReader::new(errors).lines();
    while !missing.is_empty() {
        let line = lines.next().ok_or(io::ErrorKind::UnexpectedEof)??;
        match attached(&line) {
            Some(pid) => missing.retain(|other| *other != pid),
            None => return Err(io::Error::other(crate::printable(&line))),
        }
    }
    thread::spawn(move || lines.for_each(drop));
    Ok(())
}

/// The process of `strace: Process 123 attached with 4 threads`.
fn attached(line: &str) -> Option<i32> {
    let (pid, rest) = line.strip_prefix("strace: Process ")?.split_once(' ')?;
    rest.starts_with("attached").then(|| pid.parse().ok())?
}

/// The calls of strace's summary, whose columns are `% time`, `seconds`, `usecs/call`, `calls`, `errors` where there were some,
/// and `syscall`.
fn counts(table: &str) -> Option<BTreeMap<String, u64>> {
    let mut counts = BTreeMap::new();
    let mut lines = table.lines();
    if !lines.next()?.trim_end().ends_with("syscall") {
        return None;
    }
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (calls, name) = match words.as_slice() {
            [_, _, _, calls, name] | [_, _, _, calls, _, name] => (calls, *name),
            _ => continue,
        };
        if ![OF_THE_TRACER, "total"].contains(&name) && !calls.starts_with('-') {
            counts.insert(name.to_owned(), calls.parse().ok()?);
        }
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_is_read() {
        let table = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 61.15    0.001234           1      1000           getpid
 20.00    0.000100           7        14         2 openat
  1.00    0.000100           7         3         3 restart_syscall
------ ----------- ----------- --------- --------- ----------------
100.00    0.001334           1      1014         2 total
";
        let expected = [("getpid".to_owned(), 1000), ("openat".to_owned(), 14)];
        assert_eq!(counts(table), Some(expected.into()));
        assert_eq!(counts("something else"), None);
        assert_eq!(counts(""), None);
    }

    #[test]
    fn strace_says_when_it_is_there() {
        assert_eq!(attached("strace: Process 12 attached"), Some(12));
        assert_eq!(attached("strace: Process 12 attached with 5 threads"), Some(12));
        assert_eq!(
            attached("strace: attach: ptrace(PTRACE_SEIZE, 12): No such process"),
            None
        );
    }
}
