//! Copies the workload's streams: output to the log and to whoever is attached, input from whoever is attached.
//!
//! Each stream has a thread of its own and one buffer, so a stream that nobody drains holds up nothing but itself.
//! An attached command that reads slowly slows the workload down, as a pipe would; one that is gone is forgotten and
//! the log goes on.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use rvm_protocol::Stream;

use crate::log;
use crate::runtime::Input;
use crate::timeline::{Phase, Timeline};

/// As much as a pipe holds by default (pipe(7)).
const BUFFER_BYTES: usize = 64 << 10;

/// A source whose first byte is a moment of the run.
pub(super) struct Marked<R> {
    source: R,
    /// `None` once it has come.
    timeline: Option<Timeline>,
}

impl<R> Marked<R> {
    pub(super) fn new(source: R, timeline: Timeline) -> Self {
        Self {
            source,
            timeline: Some(timeline),
        }
    }
}

impl<R: Read> Read for Marked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        if count > 0
            && let Some(timeline) = self.timeline.take()
        {
            timeline.mark(Phase::FirstByte);
        }
        Ok(count)
    }
}

/// Copies `source` to its end, or until the attached command wants it closed: then the workload finds nobody reading,
/// as at the head of a pipeline. Trouble with the log or a command that is gone never stops the workload; the first
/// trouble with the log is returned.
pub(super) fn output(
    stream: Stream,
    mut source: impl Read,
    client: UnixStream,
    log: &Mutex<log::Writer>,
    wants_closed: impl Fn() -> bool,
) -> io::Result<()> {
    let mut client = Some(client);
    let mut outcome = Ok(());
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // A reset connection: the virtual machine died, and whoever waits for it reports how.
            Err(_) => break,
        };
        let bytes = &buffer[..count];
        if outcome.is_ok() {
            // A poisoned lock means that another stream's thread panicked, which aborts the process.
            outcome = log.lock().map_or(Ok(()), |mut log| log.append(stream, bytes));
        }
        if client
            .as_mut()
            .is_some_and(|client| client.write_all(bytes).is_err())
        {
            if wants_closed() {
                break;
            }
            client = None;
        }
    }
    if let Some(client) = client {
        // The command sees the end now, not when the last of this process' handles on the socket is gone.
        let _ = client.shutdown(Shutdown::Write);
    }
    outcome
}

/// Copies what the attached command sends until either side has had enough.
pub(super) fn input(mut client: UnixStream, mut sink: Input) {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match client.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                if sink.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    sink.close();
    // The command learns that nobody reads any more, as it would from a broken pipe. A failure means it is gone.
    let _ = client.shutdown(Shutdown::Both);
}
