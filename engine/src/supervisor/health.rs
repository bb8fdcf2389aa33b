//! Looks at the running container's health from time to time.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::control::Exec;
use crate::health::{Check, OUTPUT_BYTES, Probe, Report, Status};
use crate::record::now_ms;
use crate::runtime::{self, Access, Further, Streams};
use crate::supervisor::book::Book;
use crate::supervisor::clients::Clients;
use crate::supervisor::{chain, printable};

/// The collector of a probe's output looks so often whether it is still wanted.
const MOMENT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};

/// A probe that was killed has ended within this, and what it left in the background has been heard.
const LINGER: Duration = Duration::from_secs(2);

/// Looks at it until `ended` is disconnected, but not while it stands still. What is found is in the container's directory.
pub(super) fn watch(check: &Check, access: &Access, clients: &Clients, book: &Book, ended: &Receiver<()>) {
    let begun = Instant::now();
    let mut report = Report::default();
    // While the disk is full the last one stands, and the next one is written again.
    let keep = |report: &Report| drop(report.write(book.directory()));
    keep(&report);
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(check.wait(&report, begun.elapsed())) {
        let started_ms = now_ms();
        let probed = probe(check, access, clients);
        if let Err(RecvTimeoutError::Disconnected) = ended.recv_timeout(Duration::ZERO) {
            // It has failed because the container has ended.
            break;
        }
        let Some((exit_code, output)) = probed else {
            continue;
        };
        let probe = Probe {
            started_ms,
            ended_ms: now_ms(),
            exit_code,
            output,
        };
        let before = report.status;
        report.add(check, probe, begun.elapsed());
        keep(&report);
        if report.status != before {
            book.tell(&format!("health_status: {}", report.status.name()), &[]);
        }
        // Until the next one. Where this fails, the supervisor rests with more memory.
        let _ = rvm_isolation::release_program_pages();
    }
    // As Docker says of one that does not run.
    report.status = Status::Unhealthy;
    keep(&report);
}

/// Exit code, -1 where there is none, and output or what went wrong; `None` where the container stands still.
fn probe(check: &Check, access: &Access, clients: &Clients) -> Option<(i32, String)> {
    let exec = Exec {
        arguments: check.arguments().unwrap_or_default(),
        ..Exec::default()
    };
    let start = || {
        let (mut further, streams) = access.enter(&exec, false)?;
        further.start()?;
        Ok::<_, runtime::Error>((further, streams))
    };
    let (further, streams) = match clients.while_it_moves(start)? {
        Ok(started) => started,
        Err(error) => return Some((-1, chain(&error))),
    };
    let output = Output::collect(streams);
    let timeout = Duration::from_millis(check.timeout_ms);
    if let Some(code) = wait(&Arc::new(further), timeout) {
        return Some((i32::from(code), output.text()));
    }
    let text = output.text();
    let text = format!("Health check exceeded timeout ({} ms): {text}", check.timeout_ms);
    // One that stood still as well says nothing of the container.
    clients.while_it_moves(|| (-1, text))
}

/// Waits for a process' end, and kills it where that takes too long: then `None`.
fn wait(further: &Arc<Further>, timeout: Duration) -> Option<u8> {
    let (sender, ended) = mpsc::channel();
    let waited = Arc::clone(further);
    thread::spawn(move || {
        // Nobody listens any more if it has taken too long.
        let _ = sender.send(waited.wait().ok());
    });
    match ended.recv_timeout(timeout) {
        Ok(code) => code,
        Err(_) => {
            further.kill();
            // So that the next one does not run beside it.
            let _ = ended.recv_timeout(LINGER);
            None
        }
    }
}

/// The beginning of what a probe says, output and error as they come.
struct Output {
    text: mpsc::Receiver<Vec<u8>>,
    /// Dropped when no more is waited for.
    wanted: Arc<()>,
}

impl Output {
    /// Listens on a thread of its own, which ends with this: what a probe leaves in the background may hold its output open.
    fn collect(streams: Streams) -> Self {
        let (sender, text) = mpsc::channel();
        let wanted = Arc::new(());
        let still = Arc::downgrade(&wanted);
        thread::spawn(move || {
            let mut sources: Vec<File> = [Some(streams.stdout), streams.stderr]
                .into_iter()
                .flatten()
                .collect();
            let mut bytes = Vec::new();
            while !sources.is_empty() && still.strong_count() > 0 {
                sources = listen(sources, &mut bytes);
            }
            // Nobody listens where it was not waited for.
            let _ = sender.send(bytes);
        });
        Self { text, wanted }
    }

    /// What has come; a process that it has left in the background is waited for a little.
    fn text(self) -> String {
        let all = self.text.recv_timeout(LINGER);
        drop(self.wanted);
        let bytes = all
            .or_else(|_| self.text.recv_timeout(LINGER))
            .unwrap_or_default();
        printable(&String::from_utf8_lossy(&bytes))
    }
}

/// Reads what is there of some streams, for a moment, and keeps the beginning; those that have not ended.
fn listen(sources: Vec<File>, bytes: &mut Vec<u8>) -> Vec<File> {
    let mut polled: Vec<_> = sources
        .iter()
        .map(|source| PollFd::new(source, PollFlags::IN))
        .collect();
    // A failure is a signal's, and the next turn's.
    let _ = poll(&mut polled, Some(&MOMENT));
    let ready: Vec<bool> = polled.iter().map(|polled| !polled.revents().is_empty()).collect();
    let read = |(mut source, ready): (File, bool)| {
        let mut buffer = [0; OUTPUT_BYTES];
        let ended = ready
            && match source.read(&mut buffer) {
                Ok(count) => {
                    let room = OUTPUT_BYTES.saturating_sub(bytes.len());
                    bytes.extend(&buffer[..count.min(room)]);
                    count == 0
                }
                Err(error) => error.kind() != io::ErrorKind::Interrupted,
            };
        (!ended).then_some(source)
    };
    sources.into_iter().zip(ready).filter_map(read).collect()
}
