//! Containers that rvm runs for itself, to look at them: each with the probe as its first process, and gone when whoever made
//! it is, however that ends. The probe that waits does so for the end of its input.

use std::io::{self, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::thread;

use crate::attachment::Attachment;
use crate::control::Exec;
use crate::engine::{Engine, Error, Request};
use crate::inspect::Inspection;
use crate::mounts::Wishes;
use crate::network::Networking;
use crate::ports::Ports;
use crate::record::{Isolation, LogLimits};
use crate::restart::Policy;
use crate::spec::{self, Changes};
use crate::supervisor::{Wanted, printable};
use crate::timeline::{Phase, Stamp};
use crate::{cgroup, health};

/// Most bytes of output that are kept: what the probe prints is far shorter, and another program's is not looked at for more.
const MAX_OUTPUT: u64 = 1 << 20;

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

/// What is run, and under which limits.
#[derive(Debug, Clone)]
pub(crate) struct Probed<'a> {
    /// Name or ID of the image.
    pub(crate) image: &'a str,
    pub(crate) isolation: Isolation,
    pub(crate) limits: Changes,
    /// As `--security-opt` takes them.
    pub(crate) security: Vec<String>,
    /// The image's where `None`.
    pub(crate) user: Option<String>,
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
    fn probe(&self, arguments: &[&str]) -> Request {
        let mut request = self.request(arguments);
        request.options.entrypoint = Some(vec![super::PATH.to_owned()]);
        request.probe = true;
        request
    }

    fn request(&self, arguments: &[&str]) -> Request {
        let mut request = unattended(self.image, self.isolation);
        request.timing = true;
        request.network = Networking::on_default();
        request.options.arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        request.options.user.clone_from(&self.user);
        request.options.limits = self.limits.clone();
        request.options.given.security.clone_from(&self.security);
        request
    }

    /// Runs the probe with these arguments, and no input, to its end.
    pub(crate) fn run(&self, engine: &Engine, arguments: &[&str]) -> Result<Finished, SessionError> {
        finish(engine, &self.probe(arguments))
    }

    /// Runs a command of the image, or the image's own where there are no arguments, likewise.
    pub(crate) fn run_command(&self, engine: &Engine, arguments: &[&str]) -> Result<Finished, SessionError> {
        finish(engine, &self.request(arguments))
    }

    /// Starts the probe with these arguments, and returns while it runs.
    pub(crate) fn hold<'e>(&self, engine: &'e Engine, arguments: &[&str]) -> Result<Held<'e>, SessionError> {
        let created = engine.create(&self.probe(arguments))?;
        let id = created.id.clone();
        let wanted = Wanted {
            stdin: true,
            stdout: true,
            stderr: false,
        };
        let mut attachment = engine.start(created, wanted)?;
        let stdin = attachment.streams.stdin.take();
        let stdout = attachment.streams.stdout.take();
        let held = Held {
            engine,
            id,
            isolation: self.isolation,
            attachment: Some(attachment),
            stdin,
            stdout,
        };
        match held
            .attachment()
            .map(Attachment::wait_until_started)
            .transpose()?
        {
            Some(Some(end)) => Err(SessionError::Failed {
                what: "the probe".to_owned(),
                isolation: self.isolation,
                said: end
                    .error
                    .unwrap_or_else(|| format!("it ended with exit code {}", end.code)),
            }),
            _ => Ok(held),
        }
    }
}

/// A container of rvm's own that nobody has to look after: it ends with its input, and is gone then. It has no network.
pub(crate) fn unattended(image: &str, isolation: Isolation) -> Request {
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

fn finish(engine: &Engine, request: &Request) -> Result<Finished, SessionError> {
    let mut stamps = vec![Stamp::now(Phase::Command)];
    let created = engine.create(request)?;
    stamps.push(Stamp::now(Phase::Created));
    let wanted = Wanted {
        stdin: true,
        stdout: true,
        stderr: true,
    };
    let mut attachment = engine.start(created, wanted)?;
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
pub(crate) struct Held<'e> {
    engine: &'e Engine,
    id: String,
    isolation: Isolation,
    /// `None` only while it is dropped.
    attachment: Option<Attachment>,
    stdin: Option<UnixStream>,
    stdout: Option<UnixStream>,
}

impl Held<'_> {
    /// Its ID.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn inspect(&self) -> Result<Inspection, SessionError> {
        Ok(self.engine.inspect(&self.id)?)
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

    /// Sends a line to the probe, and ends its input.
    pub(crate) fn tell(&mut self, line: &str) -> Result<(), SessionError> {
        if let Some(mut stdin) = self.stdin.take() {
            stdin
                .write_all(line.as_bytes())
                .and_then(|()| stdin.write_all(b"\n"))
                .map_err(SessionError::Streams)?;
        }
        Ok(())
    }

    /// All that the probe prints until its end.
    pub(crate) fn read_to_end(&mut self) -> String {
        String::from_utf8_lossy(&read(self.stdout.take()))
            .trim()
            .to_owned()
    }

    /// What came of a program in it that did not do what it is for.
    pub(crate) fn failed(&self, what: &str, said: &str) -> SessionError {
        SessionError::Failed {
            what: what.to_owned(),
            isolation: self.isolation,
            said: format!("it said {:?}", printable(said)),
        }
    }

    fn attachment(&self) -> Option<&Attachment> {
        self.attachment.as_ref()
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // One that is gone already is what is wanted; one that cannot be removed is listed by `rvm ps`.
        let _ = self.engine.remove(&self.id, true, true);
        drop(self.attachment.take());
    }
}
