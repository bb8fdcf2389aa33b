//! A person at a terminal: a real one, which a command is started in and has for its controlling terminal.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::command::{LIMIT, Output, Running};
use crate::wait::wait_until;

/// A command in a terminal.
#[derive(Debug)]
pub struct Seat {
    outer: File,
    inner: OwnedFd,
    before: String,
    said: Arc<Mutex<Vec<u8>>>,
    /// Bytes of it that were heard.
    heard: usize,
    running: Running,
    /// Nobody reads the screen any more once this is closed.
    watched: UnixStream,
}

impl Seat {
    /// Starts a command in a terminal of this size.
    ///
    /// # Errors
    /// If there is no terminal, or no command.
    pub fn start(command: &Command, rows: u16, columns: u16) -> Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let outer = openpt(flags)?;
        unlockpt(&outer)?;
        let inner = ioctl_tiocgptpeer(&outer, flags)?;
        let outer = File::from(outer);
        set_size(&outer, rows, columns)?;
        let before = settings(&inner)?;
        // The terminal becomes the controlling one of a session that the command leads.
        let mut seated = Command::new("setsid");
        seated
            .arg("--ctty")
            .arg(command.get_program())
            .args(command.get_args())
            .envs(
                command
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            .stdin(inner.try_clone()?)
            .stdout(inner.try_clone()?)
            .stderr(inner.try_clone()?);
        let running = Running::start(seated)?;
        let said = Arc::new(Mutex::new(Vec::new()));
        let (watched, watch) = UnixStream::pair()?;
        let (into, from) = (Arc::clone(&said), outer.try_clone()?);
        thread::spawn(move || read_screen(from, &watch, &into));
        Ok(Self {
            outer,
            inner,
            before,
            said,
            heard: 0,
            running,
            watched,
        })
    }

    /// Types something.
    ///
    /// # Errors
    /// If the terminal is gone.
    pub fn types(&mut self, keys: &str) -> Result<()> {
        Ok(self.outer.write_all(keys.as_bytes())?)
    }

    /// Waits until the screen shows this, after what was heard before.
    ///
    /// # Errors
    /// If it does not come.
    pub fn hears(&mut self, text: &str) -> Result<()> {
        let heard = self.heard;
        let mut end = None;
        let seen = wait_until(text, LIMIT, || {
            let shown = self.shown();
            let place = shown.get(heard..).and_then(|shown| shown.find(text));
            end = place.map(|place| heard + place + text.len());
            Ok(end.is_some())
        });
        seen.with_context(|| format!("the screen shows: {:?}", self.shown()))?;
        self.heard = end.unwrap_or(heard);
        Ok(())
    }

    /// All that the screen has shown.
    #[must_use]
    pub fn shown(&self) -> String {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&said).into_owned()
    }

    /// Changes the size of the terminal.
    ///
    /// # Errors
    /// If the terminal is gone.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        set_size(&self.outer, rows, columns)
    }

    /// Whether keys reach the command as they are.
    ///
    /// # Errors
    /// If the terminal is gone.
    pub fn is_raw(&self) -> Result<bool> {
        Ok(settings(&self.inner)? != self.before)
    }

    /// Sends the command a signal.
    ///
    /// # Errors
    /// If it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.running.signal(signal)
    }

    /// Waits for the command's end, and that it has left the terminal as it was.
    ///
    /// # Errors
    /// If it does not end, or has not.
    pub fn finish(self) -> Result<Output> {
        let output = self.running.finish(LIMIT)?;
        let after = settings(&self.inner)?;
        ensure!(
            after == self.before,
            "the terminal was {} and is {after}",
            self.before
        );
        Ok(output)
    }

    /// Closes the terminal, as a window is closed, and waits for the command's end.
    ///
    /// # Errors
    /// If it does not end.
    pub fn hang_up(self) -> Result<Output> {
        drop((self.inner, self.outer, self.watched));
        self.running.finish(LIMIT)
    }
}

fn read_screen(mut screen: File, watch: &UnixStream, into: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 1 << 12];
    loop {
        let mut both = [
            PollFd::new(&screen, PollFlags::IN),
            PollFd::new(watch, PollFlags::IN),
        ];
        if poll(&mut both, None).is_err() || !both[1].revents().is_empty() {
            return;
        }
        // It fails when nobody has the terminal open any more.
        let Ok(count) = screen.read(&mut buffer) else {
            return;
        };
        let mut said = into.lock().unwrap_or_else(PoisonError::into_inner);
        said.extend_from_slice(&buffer[..count]);
    }
}

fn set_size(terminal: &File, rows: u16, columns: u16) -> Result<()> {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(terminal.as_fd(), size)?)
}

fn settings(terminal: &OwnedFd) -> Result<String> {
    let Termios {
        input_modes,
        output_modes,
        control_modes,
        local_modes,
        ..
    } = tcgetattr(terminal)?;
    Ok(format!(
        "{input_modes:?} {output_modes:?} {control_modes:?} {local_modes:?}"
    ))
}
