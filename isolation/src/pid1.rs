//! A process that is PID 1 of a container in the workload's place (`--init`): it runs the workload as its child, hands on the
//! signals that it gets, reaps every process whose parent has ended, and ends as the workload does.
//!
//! Many programs are not made to be PID 1: the kernel ignores signals for it that it has no handler for, and children of
//! others that it never made become its own.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, kill_process_group, pidfd_open, wait,
};
use signal_hook::consts::signal;
use signal_hook::iterator::Signals;

use crate::sys;

/// `argv[0]` of it.
pub(crate) const NAME: &str = "rvm-pid1";

/// Everything that can be caught and is meant for a workload by whoever sends it to a process that stands for it. Not SIGCHLD,
/// SIGPIPE and SIGURG, which are about that process, nor SIGTSTP, SIGTTIN and SIGTTOU, which are about its terminal.
pub const FORWARDED: [i32; 14] = [
    signal::SIGHUP,
    signal::SIGINT,
    signal::SIGQUIT,
    signal::SIGTERM,
    signal::SIGUSR1,
    signal::SIGUSR2,
    signal::SIGALRM,
    signal::SIGCONT,
    signal::SIGWINCH,
    signal::SIGIO,
    signal::SIGVTALRM,
    signal::SIGPROF,
    signal::SIGXCPU,
    signal::SIGXFSZ,
];

/// What a process of the container or somebody outside can mean for PID 1 as well.
const FURTHER: [i32; 4] = [signal::SIGTSTP, signal::SIGPIPE, signal::SIGURG, PWR];

/// SIGPWR and the real-time signals (signal(7)), which have no names in the crate.
const PWR: i32 = 30;
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

/// The shell's codes for a program that does not exist, and one that cannot be executed.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;

/// Runs the program with these arguments to its end; its exit code, or 128 plus the signal that killed it.
pub(crate) fn run(mut arguments: impl Iterator<Item = OsString>) -> i32 {
    // It only changes what `ps` shows.
    let _ = rustix::thread::set_name(c"rvm-pid1");
    let Some(program) = arguments.next() else {
        return NOT_FOUND;
    };
    // Before there is a child whose end could be missed.
    let handlers = FORWARDED
        .into_iter()
        .chain(FURTHER)
        .chain(REAL_TIME)
        .chain([signal::SIGCHLD]);
    let outcome =
        Signals::new(handlers).and_then(|signals| supervise(Command::new(&program).args(arguments), signals));
    outcome.unwrap_or_else(|error| {
        eprintln!("rvm-pid1: cannot run {}: {error}", program.display());
        match error.kind() {
            io::ErrorKind::NotFound => NOT_FOUND,
            _ => NOT_EXECUTABLE,
        }
    })
}

fn supervise(command: &mut Command, mut signals: Signals) -> io::Result<i32> {
    // A process group of its own: what the terminal sends to that is not sent again from here.
    let child = command.process_group(0).spawn()?;
    let Some(child) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let handle = pidfd_open(child, PidfdFlags::empty())?;
    // It has the terminal, if there is one.
    if rustix::termios::tcsetpgrp(rustix::stdio::stdin(), child).is_ok() {
        // It may have used the terminal before, and been stopped for that.
        let _ = kill_process_group(child, Signal::CONT);
    }
    for signal in signals.forever() {
        if signal == signal::SIGCHLD {
            if let Some(code) = reap(child)? {
                return Ok(code);
            }
        } else {
            // It has ended where this fails, and that comes next.
            let _ = sys::signal(&handle, signal);
        }
    }
    Err(io::ErrorKind::Interrupted.into())
}

/// Reaps everything that has ended; the code of `child` if that is among it.
fn reap(child: Pid) -> io::Result<Option<i32>> {
    let mut code = None;
    while let Some((pid, status)) = wait(WaitOptions::NOHANG).or_else(|error| match error {
        rustix::io::Errno::CHILD => Ok(None),
        error => Err(error),
    })? {
        if pid == child {
            code = Some(exit_code(status));
        }
    }
    Ok(code)
}

fn exit_code(status: WaitStatus) -> i32 {
    let status = ExitStatus::from_raw(status.as_raw());
    match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, signal) => 128 + signal.unwrap_or(0),
    }
}
