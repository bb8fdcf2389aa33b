//! This process' terminal in the place of one in a container. Keys go there as they are, so it is raw meanwhile; on every way
//! out it becomes what it was, but for `SIGKILL`.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, Once};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use rvm_engine::ClientStreams;
use rvm_engine::control::{Connection, Request};
use rvm_protocol::TerminalSize;
use signal_hook::consts::signal::{SIGCONT, SIGWINCH};
use signal_hook::iterator::Signals;

use super::session::{Followed, copy};
use crate::args::DetachKeys;
use crate::output;

/// Keys come a few at a time, or as what is pasted.
const BUFFER_BYTES: usize = 4 << 10;

/// What standard input has to be for a process with a terminal that is to read it.
#[derive(Debug, thiserror::Error)]
#[error("the input device is not a TTY")]
pub(super) struct NotATerminal;

/// Refuses standard input that is no terminal, where it is `needed`.
pub(super) fn require(needed: bool) -> Result<(), NotATerminal> {
    if needed && !isatty(io::stdin()) {
        return Err(NotATerminal);
    }
    Ok(())
}

/// Size of the terminal that standard output is, if it is one and has one.
pub(super) fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(io::stdout()).ok()?;
    let size = TerminalSize {
        rows: size.ws_row,
        columns: size.ws_col,
    };
    (size != TerminalSize::default()).then_some(size)
}

/// How a terminal is connected to one in a container.
pub(super) struct Console {
    pub(super) signals: Signals,
    pub(super) keys: DetachKeys,
    /// Whether what runs there has drawn its screen before.
    pub(super) redraw: bool,
}

/// What ends a connection.
enum News<T> {
    /// The process has ended.
    Ended(T),
    /// It was left behind: by the keys, or because the input has ended.
    Left { by_keys: bool },
    /// The output cannot be written, because of this or because nobody reads it.
    Lost(Option<io::Error>),
}

impl Console {
    /// Connects the terminals until the process has ended, which `wait` waits for, or is left behind.
    pub(super) fn follow<T: Send + 'static>(
        self,
        streams: ClientStreams,
        control: &Connection,
        wait: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Followed<T>> {
        let raw = streams.stdin.is_some().then(Raw::begin).transpose();
        let raw = raw.context("cannot use the terminal")?;
        let Self {
            signals,
            keys,
            redraw,
        } = self;
        watch(signals, control.try_clone()?, redraw);
        let (sender, news) = mpsc::channel();
        if let Some(stdin) = streams.stdin {
            let sender = sender.clone();
            // Not waited for: it may sit in a read from the terminal when the container ends.
            thread::spawn(move || {
                let by_keys = send_keys(&stdin, keys.bytes());
                // Where nobody listens, the process has ended.
                let _ = sender.send(News::Left { by_keys });
            });
        }
        let output = streams.stdout.map(|stdout| -> Result<_> {
            let target = io::stdout().as_fd().try_clone_to_owned();
            let target = target.context("cannot use the output stream")?;
            Ok(receive(stdout, target, sender.clone()))
        });
        let output = output.transpose()?;
        thread::spawn(move || sender.send(News::Ended(wait())));
        let news = news.recv().context("lost the container")?;
        let (end, delivered, remark) = match news {
            News::Ended(end) => {
                // A panic aborts the process, so joining cannot fail.
                let delivered = output.is_none_or(|thread| thread.join().unwrap_or(false));
                (Some(end), delivered, None)
            }
            News::Left { by_keys } => (None, true, by_keys.then(|| "read escape sequence".to_owned())),
            News::Lost(error) => {
                let remark = error.map(|error| format!("rvm: cannot write the container's output: {error}"));
                (None, remark.is_none(), remark)
            }
        };
        drop(raw);
        if let Some(remark) = remark {
            output::note(&remark);
        }
        Ok(Followed { end, delivered })
    }
}

/// Tells the size now and whenever it changes, in the background; lets other signals act as if they were not caught, but on a
/// terminal as it was.
fn watch(mut signals: Signals, control: Connection, redraw: bool) {
    let tell = move |size: TerminalSize| {
        // Where the supervisor is gone, the main thread learns so too.
        let _ = control.send(&Request::Resize(size));
    };
    if let Some(size) = size() {
        if redraw {
            // A size that stays is no reason to draw anything again.
            tell(TerminalSize {
                rows: size.rows.saturating_add(1),
                columns: size.columns.saturating_add(1),
            });
        }
        tell(size);
    }
    thread::spawn(move || {
        for signal in signals.forever() {
            match signal {
                SIGWINCH => size().into_iter().for_each(&tell),
                SIGCONT => {}
                _ => {
                    restore();
                    // Ends the process.
                    let _ = signal_hook::low_level::emulate_default_handler(signal);
                }
            }
        }
    });
}

/// Copies standard input until its end, or the keys that leave; whether those came.
fn send_keys(mut stdin: &UnixStream, leaving: &[u8]) -> bool {
    let Ok(source) = io::stdin().as_fd().try_clone_to_owned() else {
        return false;
    };
    let mut source = File::from(source);
    let mut detector = Detector::new(leaving);
    let mut buffer = [0; BUFFER_BYTES];
    loop {
        let count = match source.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // The terminal is gone.
            Err(_) => return false,
        };
        let (bytes, leaves) = detector.pass(&buffer[..count]);
        // Where the workload has closed its terminal, one can still leave.
        let _ = stdin.write_all(&bytes);
        if leaves {
            return true;
        }
    }
}

/// Copies output until its end; the thread says whether all of it could be delivered.
fn receive<T: Send + 'static>(
    mut source: UnixStream,
    target: OwnedFd,
    news: Sender<News<T>>,
) -> JoinHandle<bool> {
    thread::spawn(move || {
        let copied = copy(&mut source, &mut File::from(target));
        let is_fine = copied.is_ok() || output::reader_is_gone(&copied);
        if let Err(error) = copied {
            // Where nobody listens, the process has ended.
            let _ = news.send(News::Lost((!is_fine).then_some(error)));
        }
        is_fine
    })
}

/// Looks for the keys that leave. What may be their beginning is kept until it is certain.
struct Detector<'a> {
    keys: &'a [u8],
    kept: Vec<u8>,
}

impl<'a> Detector<'a> {
    fn new(keys: &'a [u8]) -> Self {
        let kept = Vec::new();
        Self { keys, kept }
    }

    /// What of the bytes is to be sent, and whether the keys were among them; what comes after them is dropped.
    fn pass(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(bytes.len());
        for byte in bytes {
            self.kept.push(*byte);
            while !self.keys.starts_with(&self.kept) {
                passed.push(self.kept.remove(0));
            }
            if self.kept.len() == self.keys.len() {
                return (passed, true);
            }
        }
        (passed, false)
    }
}

/// What the terminal was before it became raw.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Standard input as a raw terminal. Dropping it makes it what it was.
struct Raw;

impl Raw {
    fn begin() -> io::Result<Self> {
        static HOOKED: Once = Once::new();
        HOOKED.call_once(|| {
            let hook = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                hook(panic);
            }));
        });
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        if let Ok(mut kept) = BEFORE.lock() {
            *kept = Some(before);
        }
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Makes the terminal what it was, once.
fn restore() {
    if let Ok(mut before) = BEFORE.lock()
        && let Some(before) = before.take()
    {
        // It fails where the terminal is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_wherever_they_are_cut() {
        // What is typed at a time, and what arrives before one has left.
        let check = |keys: &[u8], typed: &[&[u8]], expected: &[u8], leaves: bool| {
            let mut detector = Detector::new(keys);
            let (mut arrived, mut left) = (Vec::new(), false);
            for bytes in typed {
                if !left {
                    let (passed, found) = detector.pass(bytes);
                    arrived.extend(passed);
                    left = found;
                }
            }
            assert_eq!((arrived.as_slice(), left), (expected, leaves), "{typed:?}");
        };
        check(b"PQ", &[b"one PQ two"], b"one ", true);
        check(b"PQ", &[b"P", b"Q"], b"", true);
        check(b"PQ", &[b"P", b"x"], b"Px", false);
        check(b"PQ", &[b"P"], b"", false);
        check(b"PQ", &[b"PPQ"], b"P", true);
        check(b"PPQ", &[b"PP", b"PQ"], b"P", true);
        check(b"P", &[b"abcP"], b"abc", true);
    }
}
