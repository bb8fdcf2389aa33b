//! The command's side of a container that it started, or whose streams it follows.

use std::process::Child;

use crate::control::{Connection, Event};
use crate::engine::Error;
use crate::supervisor::ClientStreams;
use crate::timeline::Stamp;

/// The command's side of a container that it started.
#[derive(Debug)]
pub struct Attachment {
    /// Requests and events.
    pub control: Connection,
    /// The command's ends of the workload's streams.
    pub streams: ClientStreams,
    /// Where it is this process' child.
    pub(crate) supervisor: Option<Child>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunEnd {
    /// Exit code for the command.
    pub code: u8,
    /// What went wrong, where the end was not the workload's own.
    pub error: Option<String>,
    /// The supervisor's moments, if they were asked for.
    pub timeline: Vec<Stamp>,
    /// Whether its supervisor starts it again.
    pub restarts: bool,
}

impl Attachment {
    pub(crate) fn new(control: Connection, streams: ClientStreams) -> Self {
        Self {
            control,
            streams,
            supervisor: None,
        }
    }

    /// Waits until the workload runs; where it has failed to, says how.
    ///
    /// # Errors
    /// [`Error::Control`] where the supervisor was killed.
    pub fn wait_until_started(&self) -> Result<Option<RunEnd>, Error> {
        loop {
            match self.control.next()? {
                Event::Started => return Ok(None),
                Event::Ended {
                    code,
                    error,
                    timeline,
                    restarts,
                    ..
                } => {
                    return Ok(Some(RunEnd {
                        code,
                        error,
                        timeline,
                        restarts,
                    }));
                }
                _ => {}
            }
        }
    }

    /// Waits for the workload's next end. If it is not started again, the supervisor is gone when this returns, and so is
    /// everything it owned, if it is this process' child.
    #[must_use]
    pub fn wait(mut self) -> RunEnd {
        let end = loop {
            match self.control.next() {
                Ok(Event::Ended {
                    code,
                    error,
                    timeline,
                    restarts,
                    ..
                }) => {
                    break RunEnd {
                        code,
                        error,
                        timeline,
                        restarts,
                    };
                }
                Ok(_) => {}
                Err(_) => {
                    break RunEnd {
                        code: 137,
                        error: Some("the supervisor was killed".to_owned()),
                        timeline: Vec::new(),
                        restarts: false,
                    };
                }
            }
        };
        if let Some(supervisor) = self.supervisor.as_mut().filter(|_| !end.restarts) {
            // Waiting can only fail where somebody else has reaped it.
            let _ = supervisor.wait();
        }
        end
    }
}
