//! The engine's side of the protocol with the guest agent.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use oci_spec::runtime::Process;
use rvm_protocol::{
    AGENT_PORT, Answer, Ask, Create, Event, Exec, Failure, FrameError, Hello, Purpose, Request, Stream,
    VERSION, Welcome, read_frame, write_frame,
};
use serde::de::DeserializeOwned;

use crate::mounts::is_to_fill;

/// An agent answers a greeting within this, or something is wrong with the guest. Generous: an emulated machine with
/// a loaded host is slow.
const GREETING_LIMIT: Duration = Duration::from_secs(20);

/// A request is taken within this.
const SEND_LIMIT: Duration = Duration::from_secs(5);

/// A question about the workload is answered within this: freezing it has 5 seconds.
const ASK_LIMIT: Duration = Duration::from_secs(10);

/// A container is made and started within this, or the guest is lost; but see [`limit_of`].
const REQUEST_LIMIT: Duration = Duration::from_secs(60);

/// Why the guest could not be talked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The VMM's socket could not be used.
    #[error("cannot connect to the guest")]
    Connect(#[source] io::Error),
    /// The guest closed the connection instead of accepting it.
    #[error("the guest refused the connection")]
    Refused,
    /// The agent refused it, and said why.
    #[error("the guest's agent refused the connection: {0}")]
    Agent(String),
    /// The connection broke.
    #[error("lost the connection to the guest")]
    Frame(#[from] FrameError),
    /// The agent broke the protocol.
    #[error("the guest's agent sent an unexpected message")]
    Unexpected,
    /// The agent could not do what it was asked.
    #[error("{}", .0.message)]
    Failed(Failure),
}

/// How to reach an agent.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    /// The VMM's vsock socket.
    pub(crate) socket: PathBuf,
    /// The token of this boot.
    pub(crate) token: String,
}

impl Address {
    /// Opens a connection for `purpose`.
    fn connect(&self, purpose: Purpose) -> Result<UnixStream, Error> {
        let stream = crate::socket::connect(&self.socket).map_err(Error::Connect)?;
        stream
            .set_read_timeout(Some(GREETING_LIMIT))
            .map_err(Error::Connect)?;
        writeln!(&stream, "CONNECT {AGENT_PORT}").map_err(Error::Connect)?;
        // The agent speaks only when spoken to, so nothing beyond the line can be caught in this buffer.
        let mut line = String::new();
        let mut reader = BufReader::with_capacity(32, &stream);
        io::Read::take(&mut reader, 32)
            .read_line(&mut line)
            .map_err(Error::Connect)?;
        if !line.starts_with("OK ") {
            return Err(Error::Refused);
        }
        write_frame(
            &stream,
            &Hello {
                version: VERSION,
                token: self.token.clone(),
                purpose,
            },
        )?;
        match read_frame(&stream)? {
            Welcome::Accepted { .. } => {}
            Welcome::Refused { reason } => return Err(Error::Agent(reason)),
        }
        stream.set_read_timeout(None).map_err(Error::Connect)?;
        Ok(stream)
    }

    /// Opens one of the workload's streams.
    pub(crate) fn stream(&self, stream: Stream) -> Result<UnixStream, Error> {
        self.connect(Purpose::Stream(stream))
    }

    /// Opens one of a further process' streams.
    pub(crate) fn exec_stream(&self, number: u64, stream: Stream) -> Result<UnixStream, Error> {
        self.connect(Purpose::ExecStream { number, stream })
    }

    /// Opens a connection for the container's files: [`Purpose::Archive`] or [`Purpose::Copy`].
    pub(crate) fn files(&self, purpose: Purpose) -> Result<UnixStream, Error> {
        self.connect(purpose)
    }

    /// Asks the agent something about the workload as a whole.
    pub(crate) fn ask<T: DeserializeOwned>(&self, ask: &Ask) -> Result<T, Error> {
        let stream = self.connect(Purpose::Workload)?;
        stream
            .set_read_timeout(Some(ASK_LIMIT))
            .and_then(|()| stream.set_write_timeout(Some(SEND_LIMIT)))
            .map_err(Error::Connect)?;
        write_frame(&stream, ask)?;
        match read_frame(&stream)? {
            Answer::Done(answer) => Ok(answer),
            Answer::Failed(failure) => Err(Error::Failed(failure)),
        }
    }

    /// Opens the control connection.
    pub(crate) fn control(&self) -> Result<Control, Error> {
        self.control_of(Purpose::Control)
    }

    /// Opens the connection of a further process.
    pub(crate) fn exec(&self, number: u64) -> Result<Control, Error> {
        self.control_of(Purpose::Exec(number))
    }

    fn control_of(&self, purpose: Purpose) -> Result<Control, Error> {
        let stream = self.connect(purpose)?;
        let writer = stream.try_clone().map_err(Error::Connect)?;
        // A guest that does not read must not hold up whoever sends a signal, nor the end.
        writer
            .set_write_timeout(Some(SEND_LIMIT))
            .map_err(Error::Connect)?;
        Ok(Control {
            reader: stream,
            writer: Arc::new(Mutex::new(writer)),
        })
    }
}

/// The control connection.
pub(crate) struct Control {
    reader: UnixStream,
    writer: Arc<Mutex<UnixStream>>,
}

/// How the agent says that a workload ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exited {
    pub(crate) code: u8,
    pub(crate) out_of_memory: bool,
}

impl Control {
    /// A handle on the sending half.
    pub(crate) fn writer(&self) -> Arc<Mutex<UnixStream>> {
        Arc::clone(&self.writer)
    }

    /// Makes the container.
    pub(crate) fn create(&self, create: Create) -> Result<(), Error> {
        self.request(&Request::Create(Box::new(create)))
    }

    /// Makes a further process.
    pub(crate) fn enter(&self, process: Process, stdin: bool) -> Result<(), Error> {
        self.request(&Request::Exec(Box::new(Exec { process, stdin })))
    }

    /// Executes the workload, or the further process.
    pub(crate) fn start(&self) -> Result<(), Error> {
        self.request(&Request::Start)
    }

    fn request(&self, request: &Request) -> Result<(), Error> {
        send(&self.writer, request)?;
        self.reader
            .set_read_timeout(limit_of(request))
            .map_err(Error::Connect)?;
        let answer = read_frame(&self.reader)?;
        self.reader.set_read_timeout(None).map_err(Error::Connect)?;
        match answer {
            Event::Done => Ok(()),
            Event::Failed(failure) => Err(Error::Failed(failure)),
            Event::Exited { .. } => Err(Error::Unexpected),
        }
    }

    /// Gives the process up, which ends it.
    pub(crate) fn kill(&self) {
        // It fails where the guest has closed its end.
        let _ = self.reader.shutdown(Shutdown::Both);
    }

    /// Waits for the workload's end. Answers to signals sent meanwhile are passed over: the only failure they report
    /// is that there is no process any more.
    pub(crate) fn wait(&self) -> Result<Exited, Error> {
        loop {
            match read_frame(&self.reader)? {
                Event::Exited { code, out_of_memory } => return Ok(Exited { code, out_of_memory }),
                Event::Done | Event::Failed(_) => {}
            }
        }
    }
}

/// Within what time a request is answered. Filling a volume takes as long as there is much in the image: then the end of the
/// machine, by itself or by somebody, is what breaks the connection.
fn limit_of(request: &Request) -> Option<Duration> {
    let fills = match request {
        Request::Create(create) => create.spec.mounts().iter().flatten().any(is_to_fill),
        _ => false,
    };
    (!fills).then_some(REQUEST_LIMIT)
}

/// Sends one request. Frames of several senders never mix.
pub(crate) fn send(writer: &Mutex<UnixStream>, request: &Request) -> Result<(), Error> {
    // A lock is only poisoned by a panic, which aborts the process.
    let writer = writer.lock().map_err(|_| Error::Unexpected)?;
    Ok(write_frame(&*writer, request)?)
}

#[cfg(test)]
mod tests {
    use std::io;

    use oci_spec::runtime::{MountBuilder, SpecBuilder};

    use super::*;
    use crate::mounts::add_fill;

    fn create(fills: bool) -> io::Result<Request> {
        let mut mount = MountBuilder::default()
            .destination("/data")
            .build()
            .map_err(io::Error::other)?;
        if fills {
            add_fill(&mut mount);
        }
        let spec = SpecBuilder::default().mounts([mount]).build();
        Ok(Request::Create(Box::new(Create {
            spec: spec.map_err(io::Error::other)?,
            stdin: false,
            interfaces: Vec::new(),
            files: Vec::new(),
        })))
    }

    #[test]
    fn only_what_fills_a_volume_may_take_its_time() {
        assert_eq!(limit_of(&create(true).unwrap()), None);
        assert_eq!(limit_of(&create(false).unwrap()), Some(REQUEST_LIMIT));
        assert_eq!(limit_of(&Request::Start), Some(REQUEST_LIMIT));
    }
}
