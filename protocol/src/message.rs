//! The messages. Their JSON is frozen by the tests below: a change there is a change of [`VERSION`].

use std::net::IpAddr;
use std::path::PathBuf;

use oci_spec::runtime::{Process, Spec};
use serde::{Deserialize, Serialize};

use crate::archive::Extent;

/// Version of everything in this crate. Host and guest must agree on it exactly.
pub const VERSION: u32 = 2;

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
    /// Requests and events of one further process in the container, under a number that the host chooses. Its end before
    /// [`Event::Exited`] is the process' end.
    Exec(u64),
    /// Raw bytes of one of that process' standard streams. Opened between its [`Request::Exec`] and [`Request::Start`].
    ExecStream {
        /// The process.
        number: u64,
        /// Its stream.
        stream: Stream,
    },
    /// The container's files.
    Archive(Extent),
    /// Files of the container, one way or the other.
    Copy {
        /// Whether those of a container that does not run are to be changed.
        writes: bool,
    },
    /// One question about the workload as a whole, a [`crate::Ask`].
    Workload,
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

/// Size of a terminal in characters; 0 is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    /// Its height.
    pub rows: u16,
    /// Its width.
    pub columns: u16,
}

/// Host to guest, on the control connection; of the requests below, a further process' connection takes [`Request::Exec`],
/// [`Request::Start`], [`Request::Signal`] and [`Request::Resize`].
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
    /// Change the size of the terminal, if there is one. Not answered, so that it can be sent while an answer to something
    /// else is awaited.
    Resize(TerminalSize),
    /// Make a further process in the container, up to but not including its `execve`.
    Exec(Box<Exec>),
    /// End the workload if it still runs, flush the writable layer and power off. The answer is best effort: the
    /// VM may be gone first.
    PowerOff,
}

/// Arguments of [`Request::Create`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    /// The same OCI runtime specification that container mode hands to the isolation crate on the host. Where it asks for a
    /// terminal, there is no [`Stream::Stderr`]: all output comes as [`Stream::Stdout`].
    pub spec: Spec,
    /// Whether a [`Stream::Stdin`] connection will be opened; otherwise standard input is `/dev/null`.
    pub stdin: bool,
    /// The network interfaces that the workload gets for itself: the guest's, by their hardware addresses.
    pub interfaces: Vec<Interface>,
    /// Files that are put in the place of the image's.
    pub files: Vec<PrivateFile>,
}

/// A network interface, as the isolation crate is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Its name for the workload.
    pub name: String,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Its addresses and the lengths of their networks' prefixes.
    pub addresses: Vec<(IpAddr, u8)>,
    /// By which everything else is reached.
    pub gateways: Vec<IpAddr>,
    /// Largest packet in bytes; what the device has where `None`.
    pub mtu: Option<u16>,
}

/// A file of the container's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrivateFile {
    /// Where it is for the workload.
    pub path: PathBuf,
    /// What is in it at first.
    pub content: String,
}

/// Arguments of [`Request::Exec`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// What the isolation crate would be given on the host. As to a terminal, see [`Create::spec`].
    pub process: Process,
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
        check(
            &hello(Purpose::Exec(3)),
            r#"{"version":1,"token":"t","purpose":{"exec":3}}"#,
        );
        check(
            &hello(Purpose::ExecStream {
                number: 3,
                stream: Stream::Stdout,
            }),
            r#"{"version":1,"token":"t","purpose":{"exec_stream":{"number":3,"stream":"stdout"}}}"#,
        );
        check(
            &hello(Purpose::Archive(Extent::Changes)),
            r#"{"version":1,"token":"t","purpose":{"archive":"changes"}}"#,
        );
        check(
            &hello(Purpose::Copy { writes: true }),
            r#"{"version":1,"token":"t","purpose":{"copy":{"writes":true}}}"#,
        );
        check(
            &hello(Purpose::Workload),
            r#"{"version":1,"token":"t","purpose":"workload"}"#,
        );
        let interface = Interface {
            name: "eth0".into(),
            mac: [2, 0, 0, 0, 0, 1],
            addresses: vec![("10.0.0.2".parse().unwrap(), 24)],
            gateways: vec!["10.0.0.1".parse().unwrap()],
            mtu: None,
        };
        check(
            &interface,
            r#"{"name":"eth0","mac":[2,0,0,0,0,1],"addresses":[["10.0.0.2",24]],"gateways":["10.0.0.1"],"mtu":null}"#,
        );
        let file = PrivateFile {
            path: "/etc/hosts".into(),
            content: "a".into(),
        };
        check(&file, r#"{"path":"/etc/hosts","content":"a"}"#);
        check(&Welcome::Accepted { version: 1 }, r#"{"accepted":{"version":1}}"#);
        check(&Request::Start, r#""start""#);
        check(&Request::Signal { signal: 15 }, r#"{"signal":{"signal":15}}"#);
        check(&Request::PowerOff, r#""power_off""#);
        check(
            &Request::Resize(TerminalSize {
                rows: 24,
                columns: 80,
            }),
            r#"{"resize":{"rows":24,"columns":80}}"#,
        );
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
