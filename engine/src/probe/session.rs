//! Containers that rvm runs for itself, to look at them and to measure them: each with the probe as its first process, spoken
//! to in lines, and gone when whoever made it is, however that ends.

use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::outside;
use crate::attachment::Attachment;
use crate::control::Exec;
use crate::engine::{Engine, Error, Request};
use crate::inspect::Inspection;
use crate::mounts::Wishes;
use crate::network::Networking;
use crate::ports::Ports;
use crate::record::{Isolation, LogLimits};
use crate::restart::Policy;
use crate::spec;
use crate::supervisor::{Wanted, printable};
use crate::timeline::{Phase, Stamp};
use crate::{cgroup, health};

/// Most bytes of output that are kept: what the probe prints is far shorter, and another program's is not looked at for more.
const MAX_OUTPUT: u64 = 1 << 20;

/// The probe has said something within this: the longest that it does takes seconds, and an emulated processor is slow.
const PATIENCE: Duration = Duration::from_secs(180);

/// Longest line of an answer.
const LONGEST_LINE: u64 = 1 << 20;

/// Most of what is shown of its complaints.
const LONGEST_COMPLAINT: u64 = 4096;

/// By which such containers are told from people's.
const LABEL: &str = "dev.rvm.probe";

/// Why a container could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// It could not be made, started or asked.
    #[error(transparent)]
    Engine(Box<Error>),
    /// Its streams could not be used.
    #[error("cannot use the streams of a container")]
    Streams(#[source] io::Error),
    /// A program in it did not do what it is for.
    #[error("{what} failed in a {isolation}: {said}")]
    Failed {
        /// Which program.
        what: String,
        /// Where.
        isolation: Isolation,
        /// What it said, or rvm did.
        said: String,
    },
}

impl From<cgroup::Error> for SessionError {
    fn from(error: cgroup::Error) -> Self {
        Error::from(error).into()
    }
}

impl From<Error> for SessionError {
    fn from(error: Error) -> Self {
        Self::Engine(Box::new(error))
    }
}

/// What is run.
#[derive(Debug, Clone)]
pub(crate) struct Probed<'a> {
    /// Name or ID of the image.
    pub(crate) image: &'a str,
    pub(crate) isolation: Isolation,
    pub(crate) network: Networking,
    pub(crate) mounts: Wishes,
    /// All but what is executed.
    pub(crate) options: spec::Options,
}

/// What has come of a program.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: u8,
    /// What went wrong, where it was not the program.
    pub(crate) error: Option<String>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// In the order of time.
    pub(crate) stamps: Vec<Stamp>,
}

impl Finished {
    /// What it printed, if it has succeeded.
    pub(crate) fn output(self, what: &str, isolation: Isolation) -> Result<String, SessionError> {
        if self.code == 0 {
            return Ok(String::from_utf8_lossy(&self.stdout).trim().to_owned());
        }
        let said = self
            .error
            .unwrap_or_else(|| String::from_utf8_lossy(&self.stderr).trim().to_owned());
        Err(SessionError::Failed {
            what: what.to_owned(),
            isolation,
            said: format!("{} (exit code {})", printable(&said), self.code),
        })
    }
}

impl Probed<'_> {
    /// A container whose first process is the probe with these arguments.
    pub(crate) fn probe(&self, arguments: &[&str]) -> Request {
        let mut request = self.request(arguments);
        request.options.entrypoint = Some(vec![super::PATH.to_owned()]);
        request.probe = true;
        request
    }

    fn request(&self, arguments: &[&str]) -> Request {
        let mut request = unattended(self.image, self.isolation);
        request.network = self.network.clone();
        request.mounts = self.mounts.clone();
        request.options = self.options.clone();
        request.options.arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        request
    }

    /// Runs the probe with these arguments, and no input, to its end.
    pub(crate) fn run(&self, engine: &Engine, arguments: &[&str]) -> Result<Finished, SessionError> {
        finish(engine, self.probe(arguments))
    }

    /// Runs a command of the image, or the image's own where there are no arguments, likewise.
    pub(crate) fn run_command(&self, engine: &Engine, arguments: &[&str]) -> Result<Finished, SessionError> {
        finish(engine, self.request(arguments))
    }

    /// Starts the probe with these arguments, and returns while it runs.
    pub(crate) fn start<'e>(
        &self,
        engine: &'e Engine,
        arguments: &[&str],
    ) -> Result<Session<'e>, SessionError> {
        let created = engine.create(&self.probe(arguments))?;
        let id = created.id.clone();
        let mut attachment = engine.start(created, ALL_STREAMS)?;
        let streams = std::mem::take(&mut attachment.streams);
        let missing = || SessionError::Streams(io::ErrorKind::NotConnected.into());
        let output = streams.stdout.ok_or_else(missing)?;
        let errors = streams.stderr.ok_or_else(missing)?;
        for stream in [&output, &errors] {
            stream
                .set_read_timeout(Some(PATIENCE))
                .map_err(SessionError::Streams)?;
        }
        let ended = attachment.wait_until_started()?;
        let session = Session {
            engine,
            id,
            isolation: self.isolation,
            attachment: Some(attachment),
            input: streams.stdin,
            output: BufReader::new(output),
            errors,
        };
        match ended {
            Some(end) => Err(session.failed(
                end.error
                    .unwrap_or_else(|| format!("it ended with exit code {}", end.code)),
            )),
            None => Ok(session),
        }
    }
}

const ALL_STREAMS: Wanted = Wanted {
    stdin: true,
    stdout: true,
    stderr: true,
};

/// A container of rvm's own that nobody has to look after: it ends with its input, and is gone then.
fn unattended(image: &str, isolation: Isolation) -> Request {
    Request {
        image: image.to_owned(),
        isolation,
        name: None,
        hostname: None,
        auto_remove: true,
        open_stdin: true,
        stdin_once: true,
        stop_signal: None,
        stop_timeout: None,
        labels: [(LABEL.to_owned(), String::new())].into(),
        log: LogLimits::default(),
        mounts: Wishes::default(),
        restart: Policy::No,
        health: health::Options {
            disabled: true,
            ..health::Options::default()
        },
        probe: false,
        timing: false,
        network: Networking::default(),
        ports: Ports::default(),
        egress: None,
        options: spec::Options::default(),
    }
}

fn finish(engine: &Engine, mut request: Request) -> Result<Finished, SessionError> {
    request.timing = true;
    let mut stamps = vec![Stamp::now(Phase::Command)];
    let created = engine.create(&request)?;
    stamps.push(Stamp::now(Phase::Created));
    let mut attachment = engine.start(created, ALL_STREAMS)?;
    // There is no input, so it ends at once.
    drop(attachment.streams.stdin.take());
    let (stdout, stderr) = (attachment.streams.stdout.take(), attachment.streams.stderr.take());
    let stderr = thread::spawn(move || read(stderr));
    let stdout = read(stdout);
    // A panic aborts the process.
    let stderr = stderr.join().unwrap_or_default();
    let end = attachment.wait();
    stamps.extend(end.timeline);
    stamps.push(Stamp::now(Phase::Done));
    stamps.sort_by_key(|stamp| stamp.us);
    Ok(Finished {
        code: end.code,
        error: end.error,
        stdout,
        stderr,
        stamps,
    })
}

/// All that a program writes, of which no more than a part is kept. One that ends early has been killed, which its code tells.
fn read(stream: Option<UnixStream>) -> Vec<u8> {
    let mut kept = Vec::new();
    if let Some(mut stream) = stream {
        let _ = (&mut stream).take(MAX_OUTPUT).read_to_end(&mut kept);
        let _ = io::copy(&mut stream, &mut io::sink());
    }
    kept
}

/// A container that runs as long as this is there.
pub(crate) struct Session<'e> {
    engine: &'e Engine,
    id: String,
    isolation: Isolation,
    /// `None` once it has ended.
    attachment: Option<Attachment>,
    input: Option<UnixStream>,
    output: BufReader<UnixStream>,
    errors: UnixStream,
}

impl Session<'_> {
    /// Its ID.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn inspect(&self) -> Result<Inspection, SessionError> {
        Ok(self.engine.inspect(&self.id)?)
    }

    /// Its processes on the host.
    pub(crate) fn processes(&self) -> Result<Vec<i32>, SessionError> {
        let processes = outside::processes(&self.id)?;
        if processes.is_empty() {
            return Err(self.failed("it has no process on the host".to_owned()));
        }
        Ok(processes)
    }

    /// Runs a further program in it to its end, as the container's user or as another.
    pub(crate) fn exec(&self, arguments: &[&str], user: Option<&str>) -> Result<String, SessionError> {
        let exec = Exec {
            user: user.map(str::to_owned),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            ..Exec::default()
        };
        let wanted = Wanted {
            stdin: false,
            stdout: true,
            stderr: true,
        };
        let mut execution = self.engine.exec(&self.id, exec, wanted)?;
        let stderr = execution.streams.stderr.take();
        let stderr = thread::spawn(move || read(stderr));
        let stdout = read(execution.streams.stdout.take());
        let finished = Finished {
            code: execution.wait()?,
            error: None,
            stdout,
            stderr: stderr.join().unwrap_or_default(),
            stamps: Vec::new(),
        };
        finished.output(&arguments.join(" "), self.isolation)
    }

    /// The next line of its output, which is a document.
    pub(crate) fn answer<T: DeserializeOwned>(&mut self) -> Result<T, SessionError> {
        let mut line = String::new();
        let read = self.output.by_ref().take(LONGEST_LINE).read_line(&mut line);
        match read {
            Ok(0) => {
                let complaint = self.complaint();
                Err(self.failed(format!("it said nothing{complaint}")))
            }
            Ok(_) => serde_json::from_str(&line)
                .map_err(|error| self.failed(format!("it printed {:?} ({error})", printable(line.trim())))),
            Err(error) => Err(self.failed(format!("nothing could be heard of it: {error}"))),
        }
    }

    /// Says a line to it.
    pub(crate) fn say(&mut self, line: &str) -> Result<(), SessionError> {
        let input = self
            .input
            .as_mut()
            .ok_or_else(|| SessionError::Streams(io::ErrorKind::BrokenPipe.into()))?;
        writeln!(input, "{line}").map_err(SessionError::Streams)
    }

    /// Lets it end, and checks that it ended well and had said all.
    pub(crate) fn finish(mut self) -> Result<(), SessionError> {
        self.input = None;
        let mut rest = Vec::new();
        let more = self.output.by_ref().take(LONGEST_LINE).read_to_end(&mut rest);
        more.map_err(SessionError::Streams)?;
        let complaint = self.complaint();
        let Some(attachment) = self.attachment.take() else {
            return Ok(());
        };
        let end = attachment.wait();
        match end.error {
            Some(error) => Err(self.failed(error)),
            None if end.code != 0 => {
                Err(self.failed(format!("it ended with exit code {}{complaint}", end.code)))
            }
            None if !rest.is_empty() => Err(self.failed("it printed more than it should".to_owned())),
            None => Ok(()),
        }
    }

    /// That the probe in it did not do what it is for.
    pub(crate) fn failed(&self, said: String) -> SessionError {
        SessionError::Failed {
            what: "the probe".to_owned(),
            isolation: self.isolation,
            said,
        }
    }

    /// What it wrote on standard error, once that has an end.
    fn complaint(&mut self) -> String {
        let mut text = Vec::new();
        // What cannot be read is not said.
        let _ = (&self.errors).take(LONGEST_COMPLAINT).read_to_end(&mut text);
        let text = String::from_utf8_lossy(&text);
        if text.trim().is_empty() {
            String::new()
        } else {
            format!(": {}", printable(text.trim()))
        }
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if let Some(attachment) = self.attachment.take() {
            // One that is gone already is what is wanted; one that cannot be removed is listed by `rvm ps`.
            let _ = self.engine.remove(&self.id, true, true);
            drop(attachment);
        }
    }
}
