//! Connects this process' streams and signals to those of a process in a container.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result};
use rvm_engine::ClientStreams;
use rvm_engine::control::{Connection, Request};
pub(super) use rvm_isolation::FORWARDED;
use rvm_protocol::Stream;
use signal_hook::iterator::Signals;

use super::terminal::Console;
use crate::output;

/// Bytes moved at a time; as much as a socket and a pipe hold by default.
const BUFFER_BYTES: usize = 64 << 10;

/// What came of a process that a command was connected to.
pub(super) struct Followed<T> {
    /// `None` where the process was left behind.
    pub(super) end: Option<T>,
    /// Whether all of its output could be written.
    pub(super) delivered: bool,
}

impl<T> Followed<T> {
    /// The exit code for it, where the process' own is what `code` says.
    pub(super) fn code(&self, code: impl FnOnce(&T) -> u8) -> u8 {
        match self.end.as_ref().map_or(0, code) {
            0 if !self.delivered => super::USAGE,
            code => code,
        }
    }
}

/// Connects this process' streams, or its terminal if there is a `console`, to those of a process until that has ended,
/// which `wait` waits for.
pub(super) fn follow<T: Send + 'static>(
    streams: ClientStreams,
    control: &Connection,
    console: Option<Console>,
    wait: impl FnOnce() -> T + Send + 'static,
) -> Result<Followed<T>> {
    if let Some(console) = console {
        return console.follow(streams, control, wait);
    }
    let session = Session::begin(streams, control)?;
    let end = Some(wait());
    let delivered = session.finish();
    Ok(Followed { end, delivered })
}

/// The threads that deliver output.
struct Session {
    outputs: Vec<JoinHandle<bool>>,
}

impl Session {
    /// Connects the streams that are there to this process'.
    fn begin(streams: ClientStreams, control: &Connection) -> Result<Self> {
        if let Some(stdin) = streams.stdin {
            // Not waited for: it may sit in a read from a terminal when the container ends.
            thread::spawn(move || send_input(&stdin));
        }
        let outputs = [
            (
                Stream::Stdout,
                streams.stdout,
                io::stdout().as_fd().try_clone_to_owned(),
            ),
            (
                Stream::Stderr,
                streams.stderr,
                io::stderr().as_fd().try_clone_to_owned(),
            ),
        ];
        let outputs = outputs
            .into_iter()
            .filter_map(|(stream, source, target)| Some((stream, source?, target)))
            .map(|(stream, source, target)| receive(stream, source, target, control))
            .collect::<Result<_>>()?;
        Ok(Self { outputs })
    }

    /// Waits for the end of output; whether all of it could be delivered.
    fn finish(self) -> bool {
        // All of them, before it is said how it went. A panic aborts the process, so joining cannot fail.
        let delivered: Vec<_> = self
            .outputs
            .into_iter()
            .map(|thread| thread.join().unwrap_or(false))
            .collect();
        !delivered.contains(&false)
    }
}

/// Sends each signal on to the workload, in the background.
pub(super) fn forward(mut signals: Signals, control: &Connection) -> Result<()> {
    let control = control.try_clone()?;
    thread::spawn(move || {
        for signal in signals.forever() {
            if control.send(&Request::Signal { signal }).is_err() {
                // The supervisor is gone; the main thread learns so too.
                break;
            }
        }
    });
    Ok(())
}

/// Lets signals that are caught act as if they were not, in the background.
pub(super) fn act_by_default(mut signals: Signals) {
    thread::spawn(move || {
        for signal in signals.forever() {
            // Ends the process, or does nothing for those that by default do nothing.
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    });
}

/// Copies standard input until its end, or until the workload closes its own.
fn send_input(stdin: &UnixStream) {
    if let Ok(source) = io::stdin().as_fd().try_clone_to_owned() {
        // Standard input that cannot be read, and a workload that no longer reads, both end the copy.
        let _ = copy(&mut std::fs::File::from(source), &mut &*stdin);
    }
    // The workload has closed it where this fails.
    let _ = stdin.shutdown(Shutdown::Write);
}

/// Copies one of the workload's streams until its end; the thread says whether all of it could be delivered. Where nobody
/// reads this process' output any more, the workload is to find its own closed, as at the head of a pipeline.
fn receive(
    stream: Stream,
    mut source: UnixStream,
    target: io::Result<OwnedFd>,
    control: &Connection,
) -> Result<JoinHandle<bool>> {
    let mut target = std::fs::File::from(target.context("cannot use an output stream")?);
    let control = control.try_clone()?;
    Ok(thread::spawn(move || {
        let copied = copy(&mut source, &mut target);
        if let Err(error) = &copied {
            if error.kind() != io::ErrorKind::BrokenPipe {
                output::complaint(&format!("cannot write the container's output: {error}"));
            }
            // Where the supervisor is gone, so is the workload.
            let _ = control.send(&Request::CloseOutput { stream });
        }
        copied.is_ok() || output::reader_is_gone(&copied)
    }))
}

pub(super) fn copy(source: &mut impl Read, target: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => target.write_all(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
