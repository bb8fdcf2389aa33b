//! Processes with a time limit, and what they said.

use std::fmt::Write as _;
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// Long enough for a VM to boot on an emulated CPU that others use too.
pub const LIMIT: Duration = Duration::from_secs(120);

/// After a process has ended, its pipes must end as well: a longer wait means that something still holds them.
const PIPE_LIMIT: Duration = Duration::from_secs(10);

/// What a process left.
#[derive(Debug, Clone)]
pub struct Output {
    /// The exit code, or 128 + N after signal N.
    pub code: i32,
    /// Everything on standard output, if it was collected.
    pub stdout: Vec<u8>,
    /// Everything on standard error, if it was collected.
    pub stderr: Vec<u8>,
    /// From start to end of the process.
    pub elapsed: Duration,
    command: String,
}

impl Output {
    /// Standard output as text, without the end of its last line.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout)
            .trim_end_matches('\n')
            .to_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Asserts the exit code.
    ///
    /// # Panics
    /// If it is another one; the message holds all that is known.
    #[track_caller]
    pub fn code(self, expected: i32) -> Self {
        assert!(
            self.code == expected,
            "exit code {} instead of {expected}\n{}",
            self.code,
            self.describe()
        );
        self
    }

    /// Asserts that it succeeded.
    ///
    /// # Panics
    /// If the exit code is not 0.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.code(0)
    }

    /// Asserts that rvm itself failed as it should: with this exit code and an error message that contains each of
    /// `fragments` (in any case), without a panic.
    ///
    /// # Panics
    /// If one of these does not hold.
    #[track_caller]
    pub fn failed(&self, code: i32, fragments: &[&str]) {
        let all = self.describe();
        assert!(
            self.code == code,
            "exit code {} instead of {code}\n{all}",
            self.code
        );
        let errors = self.errors().to_lowercase();
        assert!(!errors.contains("panicked"), "it panicked\n{all}");
        assert!(!errors.trim().is_empty(), "no error message\n{all}");
        for fragment in fragments {
            assert!(
                errors.contains(&fragment.to_lowercase()),
                "the error does not say {fragment:?}\n{all}"
            );
        }
    }

    /// Everything, for a failure message.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = format!(
            "$ {}\nexit code {} after {:.1?}\n",
            self.command, self.code, self.elapsed
        );
        for (name, bytes) in [
            ("standard output", &self.stdout),
            ("standard error", &self.stderr),
        ] {
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(4000)]);
            let _ = writeln!(text, "--- {name}, {} bytes\n{shown}", bytes.len());
        }
        text
    }
}

/// Runs `command` to its end, with standard output and error collected.
///
/// # Errors
/// If it cannot be started or does not end within `limit`.
pub fn finish(mut command: Command, limit: Duration) -> Result<Output> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Running::start(command)?.finish(limit)
}

/// Runs a tool that must succeed, and returns its standard output as text.
///
/// # Errors
/// If it cannot be started, fails or does not end.
pub fn tool(program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let output = finish(command, 5 * LIMIT)?;
    if output.code != 0 {
        bail!("{program} failed\n{}", output.describe());
    }
    Ok(output.text())
}

/// A process that was started and has not been waited for. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    command: String,
    started: Instant,
    stdout: Option<Collector>,
    stderr: Option<Collector>,
}

impl Running {
    /// Starts `command`. Where it has its standard output or error piped, that is collected in the background.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(mut command: Command) -> Result<Self> {
        let description = describe_command(&command);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {description}"))?;
        let stdout = child.stdout.take().map(Collector::start);
        let stderr = child.stderr.take().map(Collector::start);
        Ok(Self {
            child,
            command: description,
            started: Instant::now(),
            stdout,
            stderr,
        })
    }

    /// As [`Running::start`], but standard output goes to a pipe that nobody reads before [`Running::read_stdout`].
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_unread(mut command: Command) -> Result<Self> {
        let description = describe_command(&command);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {description}"))?;
        let stderr = child.stderr.take().map(Collector::start);
        Ok(Self {
            child,
            command: description,
            started: Instant::now(),
            stdout: None,
            stderr,
        })
    }

    /// Begins to read what [`Running::start_unread`] left unread.
    pub fn read_stdout(&mut self) {
        if let Some(pipe) = self.child.stdout.take() {
            self.stdout = Some(Collector::start(pipe));
        }
    }

    /// Closes the pipe that [`Running::start_unread`] left unread, as a reader does that has seen enough.
    pub fn abandon_stdout(&mut self) {
        drop(self.child.stdout.take());
    }

    /// The pipe to its standard input, if it has one; once.
    pub fn stdin(&mut self) -> Option<std::process::ChildStdin> {
        self.child.stdin.take()
    }

    /// Its process ID.
    ///
    /// # Errors
    /// Never for a process that was started.
    pub fn pid(&self) -> Result<Pid> {
        i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .context("no process ID")
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// If the process has been waited for.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid()?, signal).with_context(|| format!("cannot signal {}", self.command))
    }

    /// What it has written to standard output so far.
    #[must_use]
    pub fn stdout_so_far(&self) -> String {
        self.stdout.as_ref().map(Collector::so_far).unwrap_or_default()
    }

    /// What it has written to standard error so far.
    #[must_use]
    pub fn stderr_so_far(&self) -> String {
        self.stderr.as_ref().map(Collector::so_far).unwrap_or_default()
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// If the kernel will not say.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it does not end within `limit` (it is killed then), or if something else still holds its pipes.
    pub fn finish(mut self, limit: Duration) -> Result<Output> {
        let status = self.wait(limit)?;
        let elapsed = self.started.elapsed();
        let collect = |collector: Option<Collector>| match collector {
            Some(collector) => collector
                .finish()
                .with_context(|| format!("after the end of {}", self.command)),
            None => Ok(Vec::new()),
        };
        let (stdout, stderr) = (collect(self.stdout.take())?, collect(self.stderr.take())?);
        let code = status
            .code()
            .or_else(|| status.signal().map(|signal| 128 + signal))
            .context("no status")?;
        Ok(Output {
            code,
            stdout,
            stderr,
            elapsed,
            command: self.command.clone(),
        })
    }

    fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        let descriptor = pidfd_open(self.pid()?, PidfdFlags::empty())?;
        let timeout = Timespec::try_from(limit).context("the limit is too long")?;
        if poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&timeout))? == 0 {
            self.child.kill()?;
            self.child.wait()?;
            let said =
                [&self.stdout, &self.stderr].map(|c| c.as_ref().map(Collector::so_far).unwrap_or_default());
            bail!(
                "still running after {limit:?}: {}\n{}\n{}",
                self.command,
                said[0],
                said[1]
            );
        }
        Ok(self.child.wait()?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Reads a pipe to its end in a thread.
#[derive(Debug)]
struct Collector {
    bytes: Arc<Mutex<Vec<u8>>>,
    ended: mpsc::Receiver<io::Result<()>>,
}

impl Collector {
    fn start(mut pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let (sender, ended) = mpsc::channel();
        let into = Arc::clone(&bytes);
        thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            let result = loop {
                match pipe.read(&mut buffer) {
                    Ok(0) => break Ok(()),
                    Ok(count) => {
                        let read = &buffer[..count];
                        into.lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .extend_from_slice(read);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => break Err(error),
                }
            };
            let _ = sender.send(result);
        });
        Self { bytes, ended }
    }

    fn so_far(&self) -> String {
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn finish(self) -> Result<Vec<u8>> {
        self.ended
            .recv_timeout(PIPE_LIMIT)
            .with_context(|| format!("something still holds a pipe; it said: {}", self.so_far()))??;
        Ok(std::mem::take(
            &mut self.bytes.lock().unwrap_or_else(PoisonError::into_inner),
        ))
    }
}

fn describe_command(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}
