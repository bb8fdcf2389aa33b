//! The supervisor's protocol: how commands of this or another rvm reach a running container.
//!
//! A connection to `supervisor.sock` begins with [`Hello`], answered by [`Event::Welcome`]. The command that started
//! the supervisor needs no greeting: it was given one end of a socket pair. Framing is the protocol crate's. After
//! the greeting the command sends [`Request`] frames and the supervisor sends [`Event`] frames, in any order.

mod workload;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rvm_isolation::cgroup::{Processes, Usage};
use rvm_protocol::{Extent, FrameError, Stream, TerminalSize, read_frame, write_frame};
use rvm_vmm::status::Status;
use serde::{Deserialize, Serialize};

use crate::network::Attachment;
use crate::rotated;
use crate::socket;
use crate::supervisor::{ClientStreams, Wanted};
use crate::timeline::Stamp;
pub use workload::{Act, Hold};

/// Version of the messages. A supervisor keeps the version of the rvm that started it and lives as long as its
/// container, so a change here must go on understanding the versions before it.
pub const VERSION: u32 = 1;

/// The socket's name in the container's run directory.
pub const SOCKET: &str = "supervisor.sock";

/// First frame of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// [`VERSION`] of the command.
    pub version: u32,
}

/// Command to supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Send a signal to the workload's PID 1. Before the workload runs, a signal that would end it ends the start.
    Signal {
        /// Signal number.
        signal: i32,
    },
    /// Nobody reads one of the attached command's output streams any more: let the workload find it closed.
    CloseOutput {
        /// Output or error.
        stream: Stream,
    },
    /// Whatever the container's restart policy says, it is not to be started again by itself. One that waits to be has ended.
    Settle,
    /// The machine goes down: end the workload as SIGTERM to the supervisor does, and do not start it again.
    ShutDown,
    /// Kill the workload and stop waiting for attached commands that do not read their output.
    Kill,
    /// Change the size of the terminal: of the process that was asked for on this connection, else of the container's. Not
    /// answered; before there is a terminal, it is that one's first size.
    Resize(TerminalSize),
    /// Tell what the running container is and does. Answered by [`Event::Inspected`], to the command that asked.
    Inspect,
    /// Tell when the workload has ended. Answered by [`Event::Exited`], at once if it has.
    Wait,
    /// Connect the streams whose descriptors follow in a message of their own: to the workload's standard streams.
    /// Answered by [`Event::Done`].
    Attach,
    /// Run a further process in the container, connected to the streams whose descriptors follow in a message of their own.
    /// Answered by [`Event::Done`] when it runs, or [`Event::Failed`]; then by [`Event::Exited`]. One for each connection.
    Exec(Box<Exec>),
    /// Give the container another name. Answered by [`Event::Done`] or [`Event::Refused`].
    Rename {
        /// The new one.
        name: String,
    },
    /// Connect the command to the guest's agent, which sends it the container's files. Answered by [`Event::Refused`], or by
    /// [`Event::Done`] and a message of its own with the connection's descriptor, as standard output; what comes on it is
    /// [`rvm_protocol::ArchiveReader`]'s to read, and the supervisor has no part in it any more. For virtual machines: on
    /// the host a command reads the files itself.
    Archive {
        /// What of them.
        extent: Extent,
    },
    /// Connect the command to the guest's agent, which copies files: answered as [`Request::Archive`]. What is said on that
    /// connection is in [`rvm_protocol::CopyRequest`].
    Copy,
    /// Something about the workload as a whole.
    Workload(Act),
    /// Put the container on a further network. Answered by [`Event::Done`] or [`Event::Refused`].
    ConnectNetwork(Box<Attachment>),
    /// Take it off a network. Answered likewise.
    DisconnectNetwork {
        /// The network's ID.
        network: String,
    },
}

/// A further process in a container. What is left out is as for the container's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// The program and its arguments.
    pub arguments: Vec<String>,
    /// `NAME=VALUE`, or `NAME` to remove a variable.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub environment: Vec<String>,
    /// Absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_directory: Option<String>,
    /// User and optionally group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Size of the terminal that it has instead of standard streams. All output then comes as standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
}

/// Supervisor to command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// The greeting is accepted.
    Welcome {
        /// [`VERSION`] of the supervisor.
        version: u32,
    },
    /// The workload runs.
    Started,
    /// An answer: what only the supervisor can find out.
    Inspected {
        /// What the virtual machine says of itself; `None` in container mode, and before the workload runs.
        machine: Option<Box<Status>>,
        /// Why there is nothing although there should be.
        error: Option<String>,
    },
    /// An answer: it is done.
    Done,
    /// An answer: it is not done, and why.
    Refused {
        /// For a person.
        reason: String,
    },
    /// An answer: a further process cannot run.
    Failed {
        /// Exit code for the command: 126, or 127 where there is no such program.
        code: u8,
        /// For a person.
        reason: String,
    },
    /// An answer: a further process has ended, or the workload has and that is on record. Its output may still be on its way, and what it ran in is
    /// yet to be taken apart.
    Exited {
        /// As in [`Event::Ended`].
        code: u8,
    },
    /// An answer: the workload's processes.
    Processes(Box<Processes>),
    /// An answer: what the workload uses.
    Usage(Box<Usage>),
    /// The container has ended and its end is on record. The last event.
    Ended {
        /// Exit code for `rvm run`.
        code: u8,
        /// Whether the memory limit ended it.
        out_of_memory: bool,
        /// What went wrong, where the end was not the workload's own.
        error: Option<String>,
        /// The supervisor's moments, if it was started to collect them.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        timeline: Vec<Stamp>,
        /// Whether its supervisor goes on, to start it again.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        restarts: bool,
    },
}

/// Why a supervisor could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket cannot be connected to.
    #[error("cannot reach the container's supervisor")]
    Connect(#[source] io::Error),
    /// The connection broke.
    #[error("lost the connection to the container's supervisor")]
    Frame(#[from] FrameError),
    /// The supervisor closed the connection over what it was asked: it is of an older rvm, or has just ended.
    #[error("the container's supervisor cannot say it: it is of an older rvm, or has ended")]
    NotUnderstood,
    /// The supervisor would not do it.
    #[error("{0}")]
    Refused(String),
    /// The process could not be run.
    #[error("{reason}")]
    Exec {
        /// As in [`Event::Failed`].
        code: u8,
        /// As in [`Event::Failed`].
        reason: String,
    },
    /// The supervisor answered with something else.
    #[error("the container's supervisor does not understand this rvm")]
    Unexpected,
}

/// What a supervisor has found out.
#[derive(Debug)]
pub struct Inspected {
    /// As in [`Event::Inspected`].
    pub machine: Option<Box<Status>>,
    /// As in [`Event::Inspected`].
    pub error: Option<String>,
}

/// A command's connection to a supervisor.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
}

impl Connection {
    /// Connects to the supervisor whose run directory this is. Waiting for an event fails after `limit`.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn open(run_directory: &Path, limit: Duration) -> Result<Self, Error> {
        let stream = socket::connect(&run_directory.join(SOCKET)).map_err(Error::Connect)?;
        stream.set_read_timeout(Some(limit)).map_err(Error::Connect)?;
        write_frame(&stream, &Hello { version: VERSION })?;
        match read_frame(&stream)? {
            Event::Welcome { .. } => Ok(Self { stream }),
            _ => Err(Error::Unexpected),
        }
    }

    /// Asks what the running container is and does.
    ///
    /// # Errors
    /// [`Error::NotUnderstood`], [`Error::Frame`]; what the supervisor says is its failure is in the answer.
    pub fn inspect(&self) -> Result<Inspected, Error> {
        self.send(&Request::Inspect)?;
        loop {
            match self.next() {
                Ok(Event::Inspected { machine, error }) => return Ok(Inspected { machine, error }),
                Ok(Event::Ended { .. }) | Err(Error::Frame(FrameError::Closed)) => {
                    return Err(Error::NotUnderstood);
                }
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Asks to be told when the workload has ended; [`Connection::exit_code`] waits for it.
    ///
    /// # Errors
    /// [`Error::Frame`].
    pub fn watch(&self) -> Result<(), Error> {
        self.wait_for_ever()?;
        self.send(&Request::Wait)
    }

    /// Waits for the workload's end, which was asked for; `None` where it has not come before `deadline`.
    ///
    /// # Errors
    /// [`Error::Frame`], also where the supervisor has died.
    pub fn exit_code(&self, deadline: Option<Instant>) -> Result<Option<u8>, Error> {
        while self.has_news(deadline)? {
            match self.next()? {
                Event::Exited { code }
                | Event::Ended {
                    code,
                    restarts: false,
                    ..
                } => return Ok(Some(code)),
                // The connection ends, and there will be another end.
                _ => {}
            }
        }
        Ok(None)
    }

    /// Whether there is an event to be read, after waiting for one until `deadline`.
    fn has_news(&self, deadline: Option<Instant>) -> Result<bool, Error> {
        rotated::wait(&mut [PollFd::new(&self.stream, PollFlags::IN)], deadline).map_err(Error::Connect)
    }

    /// Connects streams of this command to the workload's.
    ///
    /// # Errors
    /// As for [`Connection::rename`]; [`Error::Connect`] where there are no more descriptors.
    pub fn attach(&self, wanted: Wanted) -> Result<ClientStreams, Error> {
        let (near, far) = ClientStreams::pair(wanted).map_err(Error::Connect)?;
        self.send(&Request::Attach)?;
        far.send(&self.stream).map_err(Error::Connect)?;
        self.answer()?;
        Ok(near)
    }

    /// Runs a further process in the container, connected to streams of this command; [`Connection::exit_code`] waits for its
    /// end.
    ///
    /// # Errors
    /// [`Error::Exec`], and as for [`Connection::attach`].
    pub fn exec(&self, exec: Exec, wanted: Wanted) -> Result<ClientStreams, Error> {
        let (near, far) = ClientStreams::pair(wanted).map_err(Error::Connect)?;
        self.wait_for_ever()?;
        self.send(&Request::Exec(Box::new(exec)))?;
        far.send(&self.stream).map_err(Error::Connect)?;
        self.answer()?;
        Ok(near)
    }

    /// Gives the container another name.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::NotUnderstood`], [`Error::Frame`].
    pub fn rename(&self, name: &str) -> Result<(), Error> {
        self.send(&Request::Rename {
            name: name.to_owned(),
        })?;
        self.answer()
    }

    /// Puts the container on a further network.
    ///
    /// # Errors
    /// As for [`Connection::rename`].
    pub fn connect_network(&self, attachment: Attachment) -> Result<(), Error> {
        self.send(&Request::ConnectNetwork(Box::new(attachment)))?;
        self.answer()
    }

    /// Takes the container off a network.
    ///
    /// # Errors
    /// As for [`Connection::rename`].
    pub fn disconnect_network(&self, network: &str) -> Result<(), Error> {
        self.send(&Request::DisconnectNetwork {
            network: network.to_owned(),
        })?;
        self.answer()
    }

    /// Asks for the files of a container in a virtual machine.
    ///
    /// # Errors
    /// As for [`Connection::rename`]; [`Error::Connect`], [`Error::Unexpected`] where there is no descriptor.
    pub fn archive(&self, extent: Extent) -> Result<UnixStream, Error> {
        self.connect(&Request::Archive { extent })
    }

    /// Asks for a connection to copy files of a container in a virtual machine.
    ///
    /// # Errors
    /// As for [`Connection::archive`].
    pub fn copy(&self) -> Result<UnixStream, Error> {
        self.connect(&Request::Copy)
    }

    fn connect(&self, request: &Request) -> Result<UnixStream, Error> {
        self.send(request)?;
        self.answer()?;
        let streams = ClientStreams::receive(&self.stream).map_err(Error::Connect)?;
        streams.stdout.ok_or(Error::Unexpected)
    }

    /// Waits for the answer to a request that is either done or refused.
    fn answer(&self) -> Result<(), Error> {
        loop {
            match self.next() {
                Ok(Event::Done) => return Ok(()),
                Ok(Event::Refused { reason }) => return Err(Error::Refused(reason)),
                Ok(Event::Failed { code, reason }) => return Err(Error::Exec { code, reason }),
                Ok(Event::Ended { .. }) | Err(Error::Frame(FrameError::Closed)) => {
                    return Err(Error::NotUnderstood);
                }
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Lets waiting for an event take as long as it takes.
    ///
    /// # Errors
    /// [`Error::Connect`], which does not happen to a socket.
    pub fn wait_for_ever(&self) -> Result<(), Error> {
        self.stream.set_read_timeout(None).map_err(Error::Connect)
    }

    /// A connection that was handed to the supervisor when it was started.
    #[must_use]
    pub fn inherited(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// Another handle on the same connection, for a thread that only sends.
    ///
    /// # Errors
    /// [`Error::Connect`] where there are no more descriptors.
    pub fn try_clone(&self) -> Result<Self, Error> {
        self.stream
            .try_clone()
            .map(|stream| Self { stream })
            .map_err(Error::Connect)
    }

    /// Sends one request.
    ///
    /// # Errors
    /// [`Error::Frame`].
    pub fn send(&self, request: &Request) -> Result<(), Error> {
        Ok(write_frame(&self.stream, request)?)
    }

    /// Waits for the next event.
    ///
    /// # Errors
    /// [`Error::Frame`], also where the supervisor has died.
    pub fn next(&self) -> Result<Event, Error> {
        Ok(read_frame(&self.stream)?)
    }
}

impl AsFd for Connection {
    /// Readable when there is an event, or the supervisor is gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_format_is_frozen() {
        let check = |event: &Event, json: &str| assert_eq!(serde_json::to_string(event).unwrap(), json);
        check(&Event::Welcome { version: 1 }, r#"{"welcome":{"version":1}}"#);
        check(&Event::Started, r#""started""#);
        check(
            &Event::Inspected {
                machine: None,
                error: None,
            },
            r#"{"inspected":{"machine":null,"error":null}}"#,
        );
        check(
            &Event::Ended {
                code: 7,
                out_of_memory: false,
                error: None,
                timeline: Vec::new(),
                restarts: false,
            },
            r#"{"ended":{"code":7,"out_of_memory":false,"error":null}}"#,
        );
        assert_eq!(
            serde_json::to_string(&Request::Signal { signal: 15 }).unwrap(),
            r#"{"signal":{"signal":15}}"#
        );
        let size = TerminalSize {
            rows: 24,
            columns: 80,
        };
        assert_eq!(
            serde_json::to_string(&Request::Resize(size)).unwrap(),
            r#"{"resize":{"rows":24,"columns":80}}"#
        );
        check(&Event::Done, r#""done""#);
        check(
            &Event::Refused { reason: "r".into() },
            r#"{"refused":{"reason":"r"}}"#,
        );
        check(
            &Event::Failed {
                code: 127,
                reason: "r".into(),
            },
            r#"{"failed":{"code":127,"reason":"r"}}"#,
        );
        let exec = Exec {
            arguments: vec!["ls".into()],
            environment: Vec::new(),
            working_directory: None,
            user: Some("www".into()),
            terminal: None,
        };
        assert_eq!(
            serde_json::to_string(&Request::Exec(Box::new(exec))).unwrap(),
            r#"{"exec":{"arguments":["ls"],"user":"www"}}"#
        );
        check(&Event::Exited { code: 3 }, r#"{"exited":{"code":3}}"#);
        assert_eq!(serde_json::to_string(&Request::Wait).unwrap(), r#""wait""#);
        assert_eq!(serde_json::to_string(&Request::Attach).unwrap(), r#""attach""#);
        assert_eq!(
            serde_json::to_string(&Request::Rename { name: "n".into() }).unwrap(),
            r#"{"rename":{"name":"n"}}"#
        );
        let extent = Extent::Changes;
        assert_eq!(
            serde_json::to_string(&Request::Archive { extent }).unwrap(),
            r#"{"archive":{"extent":"changes"}}"#
        );
        assert_eq!(serde_json::to_string(&Request::Copy).unwrap(), r#""copy""#);
        assert_eq!(
            serde_json::to_string(&Request::ShutDown).unwrap(),
            r#""shut_down""#
        );
        let attachment = Box::new(Attachment {
            network: "ab".into(),
            ..Attachment::default()
        });
        assert_eq!(
            serde_json::to_string(&Request::ConnectNetwork(attachment)).unwrap(),
            r#"{"connect_network":{"network":"ab"}}"#
        );
        assert_eq!(
            serde_json::to_string(&Request::DisconnectNetwork { network: "ab".into() }).unwrap(),
            r#"{"disconnect_network":{"network":"ab"}}"#
        );
        assert_eq!(serde_json::to_string(&Request::Settle).unwrap(), r#""settle""#);
        assert_eq!(serde_json::to_string(&Request::Kill).unwrap(), r#""kill""#);
        assert_eq!(serde_json::to_string(&Request::Inspect).unwrap(), r#""inspect""#);
        assert_eq!(
            serde_json::to_string(&Request::CloseOutput {
                stream: Stream::Stdout
            })
            .unwrap(),
            r#"{"close_output":{"stream":"stdout"}}"#
        );
    }
}
