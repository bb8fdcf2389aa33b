//! Further processes in the running container, each for one connected command.
//!
//! The command's streams are served as the workload's are, but for the log. A command that goes leaves the process behind:
//! it runs on, its output unread, until it ends or the container does.

use std::fs::File;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use rvm_protocol::Stream;

use super::ClientStreams;
use super::book::Book;
use super::pump::{self, Audience, Inlet};
use super::screen::Screen;
use crate::control::{self, Event};
use crate::names;
use crate::runtime::{self, Access, Further};

/// What a process leaves behind in the background may hold its output open; after its end only so long is waited for more.
const LINGER: Duration = Duration::from_secs(2);

/// One of a process' output streams.
#[derive(Default)]
pub(super) struct Output {
    audience: Audience,
    /// Nobody reads it any more.
    pub(super) wants_closed: AtomicBool,
    /// Whether it is waited for, and nothing of it is on its way.
    is_idle: AtomicBool,
}

/// A process' output.
#[derive(Default)]
pub(super) struct Outputs {
    stdout: Output,
    stderr: Output,
    screen: Screen,
}

impl Outputs {
    pub(super) fn screen(&self) -> &Screen {
        &self.screen
    }

    pub(super) fn of(&self, stream: Stream) -> &Output {
        match stream {
            Stream::Stderr => &self.stderr,
            Stream::Stdout | Stream::Stdin => &self.stdout,
        }
    }
}

/// The events of a process.
pub(super) struct Told<'a> {
    book: &'a Book,
    command: String,
    id: String,
}

impl<'a> Told<'a> {
    /// For a process with these arguments.
    pub(super) fn new(book: &'a Book, arguments: &[String]) -> Self {
        Self {
            book,
            command: arguments.join(" "),
            id: names::new_id(),
        }
    }

    /// Tells what its command is about to be told.
    pub(super) fn tell(&self, event: &Event) {
        let id = ("execID", self.id.as_str());
        let command = &self.command;
        if matches!(event, Event::Done | Event::Failed { .. }) {
            self.book.tell(&format!("exec_create: {command}"), &[id]);
        }
        match event {
            Event::Done => self.book.tell(&format!("exec_start: {command}"), &[id]),
            Event::Exited { code } | Event::Failed { code, .. } => {
                self.book.tell("exec_die", &[id, ("exitCode", &code.to_string())]);
            }
            _ => {}
        }
    }
}

/// A process that runs.
pub(super) struct Started {
    further: Further,
    streams: runtime::Streams,
}

/// Makes and executes the process that a command asks for.
pub(super) fn start(access: &Access, exec: &control::Exec, has_stdin: bool) -> Result<Started, Event> {
    let (mut further, streams) = access.enter(exec, has_stdin).map_err(|error| failed(&error))?;
    further.start().map_err(|error| failed(&error))?;
    Ok(Started { further, streams })
}

/// Why a process does not run. Docker's exit code is 126 where the command is not to blame, too.
fn failed(error: &runtime::Error) -> Event {
    Event::Failed {
        code: error.exit_code().max(126),
        reason: super::chain(error),
    }
}

impl Started {
    /// Serves the process' streams to its end. `answer` is told that it runs, and how it ended.
    pub(super) fn serve(self, client: ClientStreams, outputs: &Arc<Outputs>, answer: impl Fn(&Event)) {
        let cut: Vec<UnixStream> = [&client.stdout, &client.stderr]
            .into_iter()
            .flatten()
            .filter_map(|stream| stream.try_clone().ok())
            .collect();
        for (stream, listener) in [(Stream::Stdout, client.stdout), (Stream::Stderr, client.stderr)] {
            if let Some(listener) = listener {
                outputs.of(stream).audience.join(listener);
            }
        }
        let is_terminal = self.streams.terminal.is_some();
        outputs.screen.open(self.streams.terminal);
        answer(&Event::Done);
        let inlet = Inlet::new(self.streams.stdin, !is_terminal);
        if let Some(stdin) = client.stdin {
            // Not waited for: it may sit in a read from a command that never sends.
            thread::spawn(move || inlet.input(stdin));
        }
        let ended = pump_all(self.streams.stdout, self.streams.stderr, outputs);
        // The container has ended, and the process with it, where it cannot be told.
        let code = self.further.wait().unwrap_or(128 + 9);
        while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(LINGER) {
            if [Stream::Stdout, Stream::Stderr]
                .into_iter()
                .all(|stream| outputs.of(stream).is_idle.load(Ordering::SeqCst))
            {
                break;
            }
        }
        outputs.screen.close();
        for stream in cut {
            // The command may be gone.
            let _ = stream.shutdown(Shutdown::Write);
        }
        answer(&Event::Exited { code });
    }
}

/// Copies both streams; the receiver is disconnected when both have ended.
fn pump_all(stdout: File, stderr: Option<File>, outputs: &Arc<Outputs>) -> mpsc::Receiver<()> {
    let (sender, ended) = mpsc::channel();
    for (stream, source) in [(Stream::Stdout, Some(stdout)), (Stream::Stderr, stderr)] {
        let Some(source) = source else {
            outputs.of(stream).is_idle.store(true, Ordering::SeqCst);
            outputs.of(stream).audience.close();
            continue;
        };
        let (outputs, sender) = (Arc::clone(outputs), sender.clone());
        thread::spawn(move || {
            let output = outputs.of(stream);
            let source = Watched {
                source,
                is_idle: &output.is_idle,
            };
            let wants_closed = || output.wants_closed.load(Ordering::SeqCst);
            // Nothing is kept, so nothing can fail.
            let _ = pump::output(source, &output.audience, |_| Ok(()), wants_closed);
            output.is_idle.store(true, Ordering::SeqCst);
            drop(sender);
        });
    }
    ended
}

/// A source that shows when it is waited for.
struct Watched<'a> {
    source: File,
    is_idle: &'a AtomicBool,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.is_idle.store(true, Ordering::SeqCst);
        let count = self.source.read(buffer);
        self.is_idle.store(false, Ordering::SeqCst);
        count
    }
}
