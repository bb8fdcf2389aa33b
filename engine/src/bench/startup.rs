//! The startup suite: a command from the moment that it is executed to its end, whatever it is a command of.
//!
//! Every subject is started alike, as a process of its own whose standard output is a pipe; the same two moments are taken
//! of all of them. rvm's own commands tell their phases besides (`rvm run --timing=json`).

use std::io::{self, Read as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, pidfd_open, pidfd_send_signal, set_child_subreaper, wait,
};
use rvm_isolation::children_processor_time;

use super::catalogue;
use super::plan::Subject;
use super::report::Waterfall;
use super::{Bench, Error, Sample};
use crate::timeline::{self, Phase, Stamp};

/// What the workload prints.
pub(super) const OUTPUT: &str = "hello from rvm-probe\n";

/// The probe's words for it.
pub const WORDS: [&str; 2] = ["work", "hello"];

/// Longest that a command may take: thousands of times what the slowest does.
const LIMIT: Duration = Duration::from_secs(180);

/// How long processes of a command that has ended may take to end, too.
const LINGER: Duration = Duration::from_secs(2);

/// Time between two looks at them.
const TURN: Duration = Duration::from_millis(1);

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

/// One run.
pub(super) fn measure(bench: &mut Bench, subject: Subject) -> Result<Vec<Sample>, Error> {
    let command = bench.command(subject)?;
    let family = Family::adopt().map_err(Error::Family)?;
    let timed = time(command, &subject.on_its_output(OUTPUT))?;
    let processor = family.processor_time().map_err(Error::Family)?;
    let mut samples = vec![
        Sample::new("total", milliseconds(timed.total_us)),
        Sample::new("output", milliseconds(timed.output_us)),
    ];
    match processor {
        Some(time) => samples.push(Sample::new("processor", time.as_secs_f64() * 1000.0)),
        None => bench.note(format!(
            "startup, {subject}: a process of it went on for {} s, so its processor time is not known",
            LINGER.as_secs()
        )),
    }
    if subject.isolation().is_some() {
        let stamps = stamps(&timed)?;
        samples.extend(
            timeline::durations(timed.began_us, &stamps)
                .into_iter()
                .map(|(phase, us)| Sample::new(catalogue::phase(phase).id, milliseconds(us))),
        );
        let since = |stamp: Stamp| Stamp {
            us: stamp.us.saturating_sub(timed.began_us),
            ..stamp
        };
        let stamps = stamps.into_iter().map(since).collect();
        bench.starts.push((timed.total_us, Waterfall { subject, stamps }));
    }
    Ok(samples)
}

/// The processes of one command, wherever their parents leave them: what loses its parent becomes a child of this process, so that
/// all are waited for, and the kernel counts what they took. Nothing else may be started meanwhile.
struct Family {
    before: Duration,
}

impl Family {
    fn adopt() -> io::Result<Self> {
        set_child_subreaper(Some(getpid()))?;
        let before = children_processor_time()?;
        Ok(Self { before })
    }

    /// What they took, once all are gone; `None` where one stays.
    fn processor_time(self) -> io::Result<Option<Duration>> {
        let deadline = Instant::now() + LINGER;
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) if Instant::now() > deadline => return Ok(None),
                Ok(None) => thread::sleep(TURN),
                Err(Errno::CHILD) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(children_processor_time()?.saturating_sub(self.before)))
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        // It could be set, so it can be taken back.
        let _ = set_child_subreaper(None);
    }
}

/// Runs a command and checks that it has printed what it should. One that takes longer than [`LIMIT`] is killed.
pub(super) fn time(mut command: Command, expected: &str) -> Result<Timed, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |source| Error::Command(program.clone(), source);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let began_us = now();
    let mut child = command.spawn().map_err(failed)?;
    let limit = Limit::set(&child).map_err(failed)?;
    let (output, errors) = (child.stdout.take(), child.stderr.take());
    // Beside it: it may complain at length before it says anything.
    let errors = thread::spawn(move || {
        let mut text = Vec::new();
        let read = errors.map(|errors| errors.take(MOST).read_to_end(&mut text));
        read.transpose().map(|_| text)
    });
    let said = read(output);
    let status = child.wait().map_err(failed)?;
    let total_us = now() - began_us;
    if limit.was_reached() {
        return Err(Error::Wrong(format!(
            "{program} had not ended after {} s, and was killed; what it has started may go on, see `rvm ps`",
            LIMIT.as_secs()
        )));
    }
    // A panic aborts the process, so joining cannot fail.
    let errors = errors.join().unwrap_or_else(|_| Ok(Vec::new())).map_err(failed)?;
    let errors = String::from_utf8_lossy(&errors).into_owned();
    let (output_us, text) = said.map_err(failed)?;
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

/// Kills a command that takes too long: a run that hangs does not count, and the next ones go on.
struct Limit {
    /// Whoever holds the other end knows that it goes on.
    going: Option<Sender<()>>,
    /// Tells whether it had to kill.
    watcher: Option<JoinHandle<bool>>,
}

impl Limit {
    fn set(child: &Child) -> io::Result<Self> {
        let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
        let (going, gone) = channel::<()>();
        let body = move || {
            let hangs = gone.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout);
            hangs && pidfd_send_signal(&process, Signal::KILL).is_ok()
        };
        Ok(Self {
            going: Some(going),
            watcher: Some(thread::Builder::new().name("limit".into()).spawn(body)?),
        })
    }

    /// The command has ended; whether that was this one's doing.
    fn was_reached(mut self) -> bool {
        self.going = None;
        let watcher = self.watcher.take();
        // A panic aborts the process, so joining cannot fail.
        watcher.is_some_and(|watcher| watcher.join().unwrap_or_default())
    }
}

/// When the first byte came, and all of them.
fn read(output: Option<impl io::Read>) -> io::Result<(u64, Vec<u8>)> {
    let mut output = output.ok_or(io::ErrorKind::NotConnected)?;
    let mut first = [0];
    let length = output.read(&mut first)?;
    let at = now();
    let mut text = first.get(..length).unwrap_or_default().to_vec();
    output.take(MOST).read_to_end(&mut text)?;
    Ok((at, text))
}

/// The phases that one of rvm's own commands has told: the last line of its complaints.
fn stamps(timed: &Timed) -> Result<Vec<Stamp>, Error> {
    let line = timed.errors.lines().next_back().unwrap_or_default();
    serde_json::from_str(line).map_err(|error| {
        Error::Wrong(format!(
            "it told no phases but {:?} ({error})",
            crate::printable(line)
        ))
    })
}

fn now() -> u64 {
    Stamp::now(Phase::Command).us
}

pub(super) fn milliseconds(us: u64) -> f64 {
    super::number(us) / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Result<Timed, Error> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        time(command, OUTPUT)
    }

    #[test]
    fn a_command_is_timed() {
        let timed = shell("echo '[]' >&2; echo hello from rvm-probe").unwrap();
        assert!(
            timed.output_us > 0 && timed.output_us <= timed.total_us,
            "{timed:?}"
        );
        assert_eq!(stamps(&timed).unwrap(), []);
    }

    #[test]
    fn what_prints_something_else_is_a_failed_run() {
        let check = |script, expected: &str| {
            let error = shell(script).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("echo hello", "it printed \"hello");
        check("echo hello from rvm-probe; exit 3", "exit status: 3");
        check("echo no way >&2; exit 1", "no way");
        check("echo hello from rvm-probe; echo more", "it printed");
    }
}
