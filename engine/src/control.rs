//! The supervisor's protocol: how commands of this or another rvm reach a running container.
//!
//! A connection to `supervisor.sock` begins with [`Hello`], answered by [`Event::Welcome`]. The command that started
//! the supervisor needs no greeting: it was given one end of a socket pair. Framing is the protocol crate's. After
//! the greeting the command sends [`Request`] frames and the supervisor sends [`Event`] frames, in any order.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rvm_protocol::{FrameError, Stream, read_frame, write_frame};
use rvm_vmm::status::Status;
use serde::{Deserialize, Serialize};

use crate::socket;
use crate::timeline::Stamp;

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
    /// Kill the workload and stop waiting for attached commands that do not read their output.
    Kill,
    /// Tell what the running container is and does. Answered by [`Event::Inspected`], to the command that asked.
    Inspect,
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
            },
            r#"{"ended":{"code":7,"out_of_memory":false,"error":null}}"#,
        );
        assert_eq!(
            serde_json::to_string(&Request::Signal { signal: 15 }).unwrap(),
            r#"{"signal":{"signal":15}}"#
        );
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
