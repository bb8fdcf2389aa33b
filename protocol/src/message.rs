//! The messages. Their JSON is frozen by the tests below: a change there is a change of [`VERSION`].

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

/// Version of everything in this crate. Host and guest must agree on it exactly.
pub const VERSION: u32 = 1;

/// The vsock port on which the agent listens.
pub const AGENT_PORT: u32 = 1024;

/// First frame of every connection, host to guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// [`VERSION`] of the host.
    pub version: u32,
    /// The token of [`crate::BootConfig`]: proves that the peer is the process that booted this VM.
    pub token: String,
    /// What the connection is for.
    pub purpose: Purpose,
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Purpose {
    /// Requests and events. One per VM.
    Control,
    /// Raw bytes of one of the workload's standard streams. Opened between [`Request::Create`] and
    /// [`Request::Start`].
    Stream(Stream),
}

/// One of the workload's standard streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Host to guest.
    Stdin,
    /// Guest to host.
    Stdout,
    /// Guest to host.
    Stderr,
}

/// Answer to [`Hello`], guest to host. After a refusal the agent closes the connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Welcome {
    /// The connection may be used.
    Accepted {
        /// [`VERSION`] of the agent.
        version: u32,
    },
    /// The connection may not be used.
    Refused {
        /// Why, for a person.
        reason: String,
    },
}

/// Host to guest, on the control connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Make the container, up to but not including the workload's `execve`.
    Create(Box<Create>),
    /// Execute the workload. Answered once `execve` has succeeded or failed. Fails while a stream that
    /// [`Request::Create`] announced, or one of standard output and error, has no connection.
    Start,
    /// Send a signal to the workload's PID 1. Fails when it has ended.
    Signal {
        /// Signal number.
        signal: i32,
    },
    /// End the workload if it still runs, flush the writable layer and power off. The answer is best effort: the
    /// VM may be gone first.
    PowerOff,
}

/// Arguments of [`Request::Create`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    /// The same OCI runtime specification that container mode hands to the isolation crate on the host.
    pub spec: Spec,
    /// Whether a [`Stream::Stdin`] connection will be opened; otherwise standard input is `/dev/null`.
    pub stdin: bool,
}

/// Guest to host, on the control connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// The oldest unanswered request succeeded.
    Done,
    /// The oldest unanswered request failed.
    Failed(Failure),
    /// The workload's PID 1 has ended. Sent only after a [`Request::Start`] that succeeded, and possibly before the
    /// answer to a later request. Streams may still hold bytes; each ends with its own end of file.
    Exited {
        /// Exit code, or 128 plus the number of the signal that killed it.
        code: u8,
        /// Whether the kernel killed a process of the workload because its memory limit was reached.
        out_of_memory: bool,
    },
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// What the exit code of `rvm run` depends on.
    pub kind: FailureKind,
    /// The chain of causes, for a person.
    pub message: String,
}

/// Classes of failure that a caller tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The command does not exist (exit code 127).
    CommandNotFound,
    /// The command exists but cannot be executed (exit code 126).
    CommandNotExecutable,
    /// Anything else (exit code 125).
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T>(message: &T, json: &str)
    where
        T: Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
    {
        assert_eq!(serde_json::to_string(message).unwrap(), json);
        assert_eq!(&serde_json::from_str::<T>(json).unwrap(), message);
    }

    #[test]
    fn the_wire_format_is_frozen() {
        let hello = |purpose| Hello {
            version: 1,
            token: "t".into(),
            purpose,
        };
        check(
            &hello(Purpose::Control),
            r#"{"version":1,"token":"t","purpose":"control"}"#,
        );
        check(
            &hello(Purpose::Stream(Stream::Stdin)),
            r#"{"version":1,"token":"t","purpose":{"stream":"stdin"}}"#,
        );
        check(&Welcome::Accepted { version: 1 }, r#"{"accepted":{"version":1}}"#);
        check(&Request::Start, r#""start""#);
        check(&Request::Signal { signal: 15 }, r#"{"signal":{"signal":15}}"#);
        check(&Request::PowerOff, r#""power_off""#);
        check(&Event::Done, r#""done""#);
        check(
            &Event::Failed(Failure {
                kind: FailureKind::CommandNotFound,
                message: "m".into(),
            }),
            r#"{"failed":{"kind":"command_not_found","message":"m"}}"#,
        );
        check(
            &Event::Exited {
                code: 137,
                out_of_memory: true,
            },
            r#"{"exited":{"code":137,"out_of_memory":true}}"#,
        );
    }

    #[test]
    fn unknown_fields_are_refused() {
        assert!(
            serde_json::from_str::<Event>(r#"{"exited":{"code":0,"out_of_memory":false,"x":1}}"#).is_err()
        );
        assert!(serde_json::from_str::<Request>(r#""reboot""#).is_err());
    }
}
