//! A command, from the moment that it is executed to its end, whatever it is a command of.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::Error;
use crate::timeline::{Phase, Stamp};

/// Longest that a command may take: thousands of times what the slowest does. One that hangs is killed, and the next ones go on.
const LIMIT: Duration = Duration::from_secs(180);

/// Most of what a command may print or complain.
const MOST: u64 = 1 << 20;

/// How one command went.
#[derive(Debug)]
pub(super) struct Timed {
    /// When it was executed, in microseconds of the clock of stamps.
    pub(super) began_us: u64,
    /// From then to its first byte of output.
    pub(super) output_us: u64,
    /// From then to its end, after which it has been reaped.
    pub(super) total_us: u64,
    pub(super) errors: String,
}

/// Runs a command and checks that it has printed what it should.
pub(super) fn time(command: Command, expected: &str) -> Result<Timed, Error> {
    time_within(LIMIT, command, expected)
}

fn time_within(limit: Duration, mut command: Command, expected: &str) -> Result<Timed, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::TimedOut => Error::Wrong(format!(
            "{program} had not ended after {} s, and was killed; what it has started may go on, see `rvm ps`",
            limit.as_secs()
        )),
        _ => Error::Command(program.clone(), source),
    };
    let deadline = Instant::now() + limit;
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let began_us = now();
    let mut running = Running(command.spawn().map_err(failed)?);
    let (output, errors) = (running.0.stdout.take(), running.0.stderr.take());
    // Beside it: it may complain at length before it says anything.
    let errors = thread::spawn(move || {
        let mut text = Vec::new();
        let errors = errors.map(|errors| Until(errors, deadline).take(MOST));
        errors
            .map(|mut errors| errors.read_to_end(&mut text))
            .transpose()?;
        Ok(text)
    });
    let output = output.ok_or_else(|| failed(io::ErrorKind::NotConnected.into()))?;
    let (output_us, text) = read(Until(output, deadline)).map_err(failed)?;
    let status = running.wait(deadline).map_err(failed)?;
    let total_us = now() - began_us;
    // A panic aborts the process, so joining cannot fail.
    let errors = errors.join().unwrap_or_else(|_| Ok(Vec::new())).map_err(failed)?;
    let errors = String::from_utf8_lossy(&errors).into_owned();
    let last = errors.lines().next_back().unwrap_or_default();
    if !status.success() {
        return Err(Error::Wrong(format!(
            "{program} ended with {status}: {}",
            crate::printable(last)
        )));
    }
    if text != expected.as_bytes() {
        let text = String::from_utf8_lossy(&text).into_owned();
        return Err(Error::Wrong(format!("it printed {:?}", crate::printable(&text))));
    }
    Ok(Timed {
        began_us,
        output_us: output_us.saturating_sub(began_us),
        total_us,
        errors,
    })
}

/// A command that is killed if nobody has waited for its end.
struct Running(Child);

impl Running {
    fn wait(&mut self, deadline: Instant) -> io::Result<std::process::ExitStatus> {
        let process = pidfd_open(Pid::from_child(&self.0), PidfdFlags::empty())?;
        wait_for(&process, deadline)?;
        self.0.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has been waited for is not killed, and has the same status again.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A pipe that gives an error when time is up: another process may keep it open after its command has ended.
struct Until<T>(T, Instant);

impl<T: Read + AsFd> Read for Until<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        wait_for(&self.0, self.1)?;
        self.0.read(buffer)
    }
}

/// Waits for something to be read, or for a process to end; `TimedOut` when it is too late.
fn wait_for(descriptor: &impl AsFd, deadline: Instant) -> io::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(descriptor, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// When the first byte came, and all of them.
fn read(mut output: impl Read) -> io::Result<(u64, Vec<u8>)> {
    let mut first = [0];
    let length = output.read(&mut first)?;
    let at = now();
    let mut text = first.get(..length).unwrap_or_default().to_vec();
    output.take(MOST).read_to_end(&mut text)?;
    Ok((at, text))
}

fn now() -> u64 {
    Stamp::now(Phase::Command).us
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "hello\n";

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_command_is_timed() {
        let timed = time(shell("echo told >&2; echo hello"), OUTPUT).unwrap();
        assert!(
            timed.output_us > 0 && timed.output_us <= timed.total_us,
            "{timed:?}"
        );
        assert_eq!(timed.errors, "told\n");
    }

    #[test]
    fn what_prints_something_else_is_a_failed_run() {
        let check = |script, expected: &str| {
            let error = time(shell(script), OUTPUT).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("echo hallo", "it printed \"hallo");
        check("echo hello; exit 3", "exit status: 3");
        check("echo no way >&2; exit 1", "no way");
        check("echo hello; echo more", "it printed");
    }

    #[test]
    fn what_hangs_is_a_failed_run() {
        // By itself, and by what it has left behind, which keeps its output open.
        for script in [
            "exec sleep 1000",
            "echo hello; sleep 20 & exit",
            "exec >&-; exec sleep 1000",
        ] {
            let error = time_within(Duration::from_millis(300), shell(script), OUTPUT);
            let error = error.unwrap_err().to_string();
            assert!(
                error.contains("had not ended after 0 s, and was killed"),
                "{script}: {error}"
            );
        }
    }
}
