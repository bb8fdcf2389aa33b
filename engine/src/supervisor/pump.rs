//! Copies the workload's streams: output to the log and to everybody who is attached, input from whoever is attached.
//!
//! Each stream has a thread of its own and one buffer, so a stream that nobody drains holds up nothing but itself.
//! An attached command that reads slowly slows the workload down, as a pipe would; one that is gone is forgotten and
//! the log goes on.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

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

/// Those who listen to one of a process' output streams.
#[derive(Default)]
pub(super) struct Audience {
    arrived: Mutex<Arrived>,
}

#[derive(Default)]
struct Arrived {
    listeners: Vec<UnixStream>,
    /// The stream has ended.
    over: bool,
}

impl Audience {
    /// Lets one more listen from now on. After the end of the stream it finds that at once.
    pub(super) fn join(&self, listener: UnixStream) {
        let mut arrived = self.lock();
        if arrived.over {
            end(&listener);
        } else {
            arrived.listeners.push(listener);
        }
    }

    fn take(&self) -> Vec<UnixStream> {
        std::mem::take(&mut self.lock().listeners)
    }

    /// The stream ends for all who listen or will.
    pub(super) fn close(&self) {
        let mut arrived = self.lock();
        arrived.over = true;
        arrived.listeners.drain(..).for_each(|listener| end(&listener));
    }

    fn lock(&self) -> MutexGuard<'_, Arrived> {
        // A panic aborts the process.
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The listener sees the end now, not when the last of this process' handles on the socket is gone.
fn end(listener: &UnixStream) {
    // It fails where the listener is gone.
    let _ = listener.shutdown(Shutdown::Write);
}

/// Copies `source` to its end, or until `wants_closed`: then the workload finds nobody reading, as at the head of a
/// pipeline. `keep` puts the bytes on record. Trouble with that or a listener that is gone never stops the workload; the
/// first trouble with the record is returned, and later bytes are kept where they can be.
pub(super) fn output(
    mut source: impl Read,
    audience: &Audience,
    mut keep: impl FnMut(&[u8]) -> io::Result<()>,
    wants_closed: impl Fn() -> bool,
) -> io::Result<()> {
    let mut listeners = Vec::new();
    let mut outcome = Ok(());
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // A reset connection: the virtual machine died, and whoever waits for it reports how. Or a terminal that nobody has
            // open any more.
            Err(_) => break,
        };
        let bytes = &buffer[..count];
        let kept = keep(bytes);
        if outcome.is_ok() {
            outcome = kept;
        }
        listeners.extend(audience.take());
        listeners.retain_mut(|listener| listener.write_all(bytes).is_ok());
        // Whoever wants it closed may have been found to be gone before it was heard.
        if wants_closed() {
            break;
        }
    }
    listeners.iter().for_each(end);
    audience.close();
    outcome
}

/// Puts what comes from a stream into the log.
pub(super) fn logged(stream: Stream, log: &Mutex<log::Writer>) -> impl FnMut(&[u8]) -> io::Result<()> {
    // A poisoned lock means that another stream's thread panicked, which aborts the process.
    move |bytes| log.lock().map_or(Ok(()), |mut log| log.append(stream, bytes))
}

/// A process' standard input, to which several commands may send.
pub(super) struct Inlet {
    /// `None` once it is closed, or where it was never open.
    sink: Mutex<Option<Input>>,
    /// Whether the end of what one command sends is the end of all.
    once: bool,
}

impl Inlet {
    pub(super) fn new(sink: Option<Input>, once: bool) -> Self {
        Self {
            sink: Mutex::new(sink),
            once,
        }
    }

    /// Copies what a command sends until either side has had enough.
    pub(super) fn input(&self, mut client: UnixStream) {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            match client.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    if !self.write(&buffer[..count]) {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        if self.once {
            self.close();
        }
        // The command learns that nobody reads any more, as it would from a broken pipe. A failure means it is gone.
        let _ = client.shutdown(Shutdown::Both);
    }

    /// Whether the process still reads.
    fn write(&self, bytes: &[u8]) -> bool {
        let mut sink = self.lock();
        let written = sink.as_mut().is_some_and(|sink| sink.write_all(bytes).is_ok());
        if !written {
            *sink = None;
        }
        written
    }

    fn close(&self) {
        if let Some(sink) = self.lock().take() {
            sink.close();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Input>> {
        // A panic aborts the process.
        self.sink.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(mut stream: UnixStream) -> String {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn everybody_hears_everything_and_a_deserter_holds_up_nobody() {
        let audience = Audience::default();
        let mut kept = Vec::new();
        let (first, near) = UnixStream::pair().unwrap();
        let (second, too) = UnixStream::pair().unwrap();
        let (gone, deserted) = UnixStream::pair().unwrap();
        drop(gone);
        [near, deserted, too]
            .into_iter()
            .for_each(|listener| audience.join(listener));
        let keep = |bytes: &[u8]| {
            kept.extend_from_slice(bytes);
            Ok(())
        };
        output(&b"words"[..], &audience, keep, || false).unwrap();
        assert_eq!(kept, b"words");
        assert_eq!((text(first).as_str(), text(second).as_str()), ("words", "words"));
        let (late, near) = UnixStream::pair().unwrap();
        audience.join(near);
        assert_eq!(text(late), "");
    }

    #[test]
    fn who_wants_it_closed_may_be_gone_before() {
        let audience = Audience::default();
        let (gone, near) = UnixStream::pair().unwrap();
        drop(gone);
        audience.join(near);
        let asked = std::cell::Cell::new(0);
        let wants_closed = || asked.replace(asked.get() + 1) == 2;
        output(io::repeat(b'y'), &audience, |_| Ok(()), wants_closed).unwrap();
        assert_eq!(asked.get(), 3);
    }

    #[test]
    fn a_log_that_fails_is_told_at_the_end() {
        let audience = Audience::default();
        let (listener, near) = UnixStream::pair().unwrap();
        audience.join(near);
        let failed = output(
            &b"words"[..],
            &audience,
            |_| Err(io::ErrorKind::StorageFull.into()),
            || false,
        );
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(text(listener), "words");
    }

    /// Prints how fast `yes` is read from a pipe and put into a log; tests/benches/life lets it write more.
    #[test]
    fn a_flood_is_logged() {
        use std::process::{Command, Stdio};
        let flood_mib: usize = std::env::var("RVM_FLOOD_MIB").map_or(80, |text| text.parse().unwrap());
        let peak_kb = || -> u64 {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let directory = tempfile::tempdir().unwrap();
        let log = log::Writer::open(directory.path(), crate::record::LogLimits::default()).unwrap();
        let mut flood = Command::new("yes")
            .arg("0123456789abcdef".repeat(4))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let source = flood.stdout.take().unwrap();
        let log = Mutex::new(log);
        let mut append = logged(Stream::Stdout, &log);
        let total = std::cell::Cell::new(0);
        let keep = |bytes: &[u8]| {
            total.set(total.get() + bytes.len());
            append(bytes)
        };
        let (before, start) = (peak_kb(), std::time::Instant::now());
        output(source, &Audience::default(), keep, || {
            total.get() >= flood_mib << 20
        })
        .unwrap();
        let speed = total.get() as u128 / start.elapsed().as_micros().max(1);
        flood.wait().unwrap();
        let grown = peak_kb().saturating_sub(before);
        println!("{speed} MB/s into the log, peak memory {grown} kB more than before");
        let files = std::fs::read_dir(directory.path()).unwrap().flatten();
        let kept: u64 = files.map(|file| file.metadata().unwrap().len()).sum();
        assert!(kept <= 65 << 20, "{kept} bytes");
    }

    #[test]
    fn input_ends_with_a_command_only_if_it_is_to() {
        for once in [true, false] {
            let (workload, sink) = UnixStream::pair().unwrap();
            let inlet = Inlet::new(Some(Input::Connection(sink)), once);
            for words in ["one", "two"] {
                let (mut command, near) = UnixStream::pair().unwrap();
                // The first may have ended it already.
                command.write_all(words.as_bytes()).unwrap();
                command.shutdown(Shutdown::Write).unwrap();
                inlet.input(near);
            }
            drop(inlet);
            assert_eq!(text(workload), if once { "one" } else { "onetwo" });
        }
    }
}
