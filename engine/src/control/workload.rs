//! What commands ask about a running workload as a whole.

use std::io::Read as _;
use std::net::Shutdown;

use rvm_isolation::cgroup::{Processes, Usage};
use serde::{Deserialize, Serialize};

use super::{Connection, Error, Event, FrameError, Request};
use crate::restart::Policy;
use crate::spec::Changes;

/// A command's question or order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Act {
    /// Let all processes of the workload stand still. Answered by [`Event::Done`] or [`Event::Refused`].
    Pause,
    /// Let them go on, whoever made them stand still. Answered likewise.
    Unpause,
    /// Let them stand still until this connection ends. Answered likewise. They go on before the supervisor closes its end,
    /// unless they stood still already.
    Hold,
    /// Tell which processes there are. Answered by [`Event::Processes`] or [`Event::Refused`].
    Processes,
    /// Tell what they use and have used. Answered by [`Event::Usage`] or [`Event::Refused`].
    Usage,
    /// Change their limits. Answered by [`Event::Done`], or by [`Event::Refused`] with nothing changed.
    Update(Changes),
    /// Change when the container is started again by itself. Answered likewise.
    Restart(Policy),
}

/// A workload that stands still as long as this is there, whatever ends the command.
#[derive(Debug)]
pub struct Hold(Connection);

impl Hold {
    /// Lets the workload go on, and returns when it does.
    pub fn release(self) {
        let mut stream = &self.0.stream;
        // A supervisor that has ended has closed its end, and its workload has ended, too.
        if stream.shutdown(Shutdown::Write).is_ok() {
            while stream.read(&mut [0; 256]).is_ok_and(|count| count > 0) {}
        }
    }
}

impl Connection {
    /// Lets the workload stand still.
    ///
    /// # Errors
    /// As for [`Connection::rename`].
    pub fn pause(&self) -> Result<(), Error> {
        self.ask(Act::Pause).map(drop)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// As for [`Connection::rename`].
    pub fn unpause(&self) -> Result<(), Error> {
        self.ask(Act::Unpause).map(drop)
    }

    /// Lets the workload stand still for a while.
    ///
    /// # Errors
    /// As for [`Connection::rename`].
    pub fn hold(self) -> Result<Hold, Error> {
        self.ask(Act::Hold)?;
        Ok(Hold(self))
    }

    /// The workload's processes.
    ///
    /// # Errors
    /// As for [`Connection::rename`].
    pub fn processes(&self) -> Result<Processes, Error> {
        match self.ask(Act::Processes)? {
            Event::Processes(processes) => Ok(*processes),
            _ => Err(Error::Unexpected),
        }
    }

    /// What the workload uses and has used.
    ///
    /// # Errors
    /// As for [`Connection::rename`].
    pub fn usage(&self) -> Result<Usage, Error> {
        match self.ask(Act::Usage)? {
            Event::Usage(usage) => Ok(*usage),
            _ => Err(Error::Unexpected),
        }
    }

    /// Changes the workload's limits.
    ///
    /// # Errors
    /// As for [`Connection::rename`].
    pub fn update(&self, changes: Changes) -> Result<(), Error> {
        self.ask(Act::Update(changes)).map(drop)
    }

    /// Changes when the container is started again.
    ///
    /// # Errors
    /// As for [`Connection::rename`].
    pub fn set_restart(&self, policy: Policy) -> Result<(), Error> {
        self.ask(Act::Restart(policy)).map(drop)
    }

    /// Sends a request and waits for its answer.
    fn ask(&self, act: Act) -> Result<Event, Error> {
        self.send(&Request::Workload(act))?;
        loop {
            match self.next() {
                Ok(answer @ (Event::Done | Event::Processes(_) | Event::Usage(_))) => return Ok(answer),
                Ok(Event::Refused { reason }) => return Err(Error::Refused(reason)),
                Ok(Event::Ended { .. }) | Err(Error::Frame(FrameError::Closed)) => {
                    return Err(Error::NotUnderstood);
                }
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_format_is_frozen() {
        let check = |act, json: &str| {
            assert_eq!(serde_json::to_string(&Request::Workload(act)).unwrap(), json);
        };
        check(Act::Pause, r#"{"workload":"pause"}"#);
        check(Act::Unpause, r#"{"workload":"unpause"}"#);
        check(Act::Hold, r#"{"workload":"hold"}"#);
        check(Act::Processes, r#"{"workload":"processes"}"#);
        check(Act::Usage, r#"{"workload":"usage"}"#);
        let changes = Changes {
            memory_bytes: Some(1),
            memory_swap: Some(-1),
            cpus: Some("0.5".parse().unwrap()),
            cpu_shares: Some(2),
            cpuset_cpus: Some("0".into()),
            pids_limit: Some(3),
        };
        check(
            Act::Update(changes),
            concat!(
                r#"{"workload":{"update":{"memory_bytes":1,"memory_swap":-1,"cpus":50000,"cpu_shares":2,"#,
                r#""cpuset_cpus":"0","pids_limit":3}}}"#
            ),
        );
        check(
            Act::Restart(Policy::Always),
            r#"{"workload":{"restart":"always"}}"#,
        );
        check(Act::Update(Changes::default()), r#"{"workload":{"update":{}}}"#);
    }
}
