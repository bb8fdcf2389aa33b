//! What parent and init say to each other over their socket, before there is a workload:
//!
//! ```text
//! parent: Plan            init: Created, then the container's own files, then the terminal if the plan has one | Failure
//! parent: Start           init: Failure, or the socket closes because execve succeeded
//! ```
//!
//! Each message is its length (32 bits, host order) and JSON; files and terminal are descriptors, each with a byte to carry it. Both ends are the same executable, so there is no version.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Largest message in bytes. A plan is some ten kilobytes plus arguments and environment, of which the kernel takes at
/// most a few megabytes.
const LARGEST: u32 = 64 << 20;

/// Why a message did not get across.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the other side is gone")]
    Closed,
    #[error("cannot send")]
    Send(#[source] io::Error),
    #[error("cannot receive")]
    Receive(#[source] io::Error),
    #[error("a message of {0} bytes")]
    TooLarge(usize),
    #[error("cannot encode or decode a message")]
    Json(#[from] serde_json::Error),
    #[error("cannot start the container's init: {step}")]
    Early { step: &'static str, source: io::Error },
}

/// Parent to init.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Start;

/// Init to parent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    Created,
    Failed(Failure),
}

/// A failure in init, with its causes, on the way to the parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) chain: Remote,
}

/// What the failure means to a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FailureKind {
    CommandNotFound,
    CommandNotExecutable,
    Other,
}

/// An error of another process: its text, and its cause as source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remote {
    message: String,
    cause: Option<Box<Remote>>,
}

impl Remote {
    /// Copies the texts of an error and of its causes.
    pub(crate) fn new(error: &dyn std::error::Error) -> Remote {
        let cause = error.source().map(|source| Box::new(Remote::new(source)));
        Remote {
            message: error.to_string(),
            cause,
        }
    }

    /// The texts joined by colons.
    pub(crate) fn joined(&self) -> String {
        let causes = std::iter::successors(Some(self), |remote| remote.cause.as_deref());
        causes
            .map(|remote| remote.message.as_str())
            .collect::<Vec<_>>()
            .join(": ")
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Remote {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

/// Sends a message; a peer that is gone is an error, not a signal.
pub(crate) fn send(socket: impl AsFd, message: &impl Serialize) -> Result<(), Error> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).ok().filter(|&length| length <= LARGEST);
    let length = length.ok_or(Error::TooLarge(body.len()))?;
    let frame = [length.to_ne_bytes().as_slice(), &body].concat();
    let mut rest = frame.as_slice();
    while !rest.is_empty() {
        match rustix::net::send(&socket, rest, SendFlags::NOSIGNAL) {
            Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => return Err(Error::Closed),
            Err(error) => return Err(Error::Send(error.into())),
        }
    }
    Ok(())
}

/// Sends a descriptor.
pub(crate) fn send_descriptor(socket: impl AsFd, descriptor: impl AsFd) -> Result<(), Error> {
    let descriptors = [descriptor.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    // There is room for it.
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let sent = rustix::net::sendmsg(socket, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL);
    sent.map(drop).map_err(|error| Error::Send(error.into()))
}

/// Receives a descriptor, where a message has announced it.
pub(crate) fn receive_descriptor(socket: impl AsFd) -> Result<OwnedFd, Error> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let (mut byte, flags) = ([0], RecvFlags::CMSG_CLOEXEC);
    rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, flags)
        .map_err(|error| Error::Receive(error.into()))?;
    let received = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    received.ok_or(Error::Closed)
}

/// Receives a message; nothing if the socket was closed before it.
pub(crate) fn receive<T: DeserializeOwned>(mut socket: impl Read) -> Result<Option<T>, Error> {
    let mut word = [0; 4];
    match read_exact(&mut socket, &mut word) {
        Ok(()) => {}
        Err(Error::Closed) => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = u32::from_ne_bytes(word);
    if length == crate::sys::EARLY_FAILURE {
        return Err(early_failure(socket)?);
    }
    if length > LARGEST {
        return Err(Error::TooLarge(usize::try_from(length).unwrap_or(usize::MAX)));
    }
    let mut body = Vec::new();
    socket
        .take(length.into())
        .read_to_end(&mut body)
        .map_err(Error::Receive)?;
    if u32::try_from(body.len()) != Ok(length) {
        return Err(Error::Closed);
    }
    Ok(Some(serde_json::from_slice(&body)?))
}

/// The record of [`crate::sys::clone_and_exec`]'s child, which has no allocator to make JSON with.
fn early_failure(mut socket: impl Read) -> Result<Error, Error> {
    let (mut step, mut error) = ([0; 4], [0; 4]);
    read_exact(&mut socket, &mut step)?;
    read_exact(&mut socket, &mut error)?;
    let step = crate::sys::early_step_name(u32::from_ne_bytes(step));
    Ok(Error::Early {
        step,
        source: io::Error::from_raw_os_error(i32::from_ne_bytes(error)),
    })
}

fn read_exact(socket: &mut impl Read, buffer: &mut [u8]) -> Result<(), Error> {
    socket.read_exact(buffer).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Error::Closed,
        _ => Error::Receive(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;
    use std::os::unix::net::UnixStream;

    #[test]
    fn messages_arrive_whole_until_the_other_side_closes() {
        let (near, far) = UnixStream::pair().unwrap();
        let text = "x".repeat(1000);
        send(&near, &text).unwrap();
        send(&near, &Start).unwrap();
        drop(near);
        assert_eq!(receive::<String>(&far).unwrap(), Some(text));
        assert!(receive::<Start>(&far).unwrap().is_some());
        assert!(receive::<Start>(&far).unwrap().is_none());
        assert!(matches!(send(&far, &Start), Err(Error::Closed)));
    }

    #[test]
    fn a_descriptor_follows_its_announcement() {
        let (near, far) = UnixStream::pair().unwrap();
        let (mut reader, writer) = UnixStream::pair().unwrap();
        send(&near, &Report::Created).unwrap();
        send_descriptor(&near, writer).unwrap();
        send(&near, &Start).unwrap();
        assert!(matches!(receive(&far).unwrap(), Some(Report::Created)));
        let received = UnixStream::from(receive_descriptor(&far).unwrap());
        assert!(receive::<Start>(&far).unwrap().is_some());
        std::io::Write::write_all(&mut &received, b"x").unwrap();
        drop(received);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        drop(near);
        assert!(matches!(receive_descriptor(&far), Err(Error::Closed)));
    }

    #[test]
    fn damaged_messages_are_errors() {
        let words = |words: &[u32]| {
            words
                .iter()
                .flat_map(|word| word.to_ne_bytes())
                .collect::<Vec<_>>()
        };
        let cases = [
            (words(&[u32::MAX - 1]), "a message of 4294967294 bytes"),
            (words(&[10, 0]), "the other side is gone"),
            (words(&[4, 0]), "cannot encode or decode a message"),
            (
                words(&[u32::MAX, 3, 2]),
                "cannot start the container's init: execveat",
            ),
        ];
        for (bytes, expected) in cases {
            assert_eq!(
                receive::<String>(bytes.as_slice()).unwrap_err().to_string(),
                expected
            );
        }
    }

    #[test]
    fn causes_survive() {
        let error = Error::Send(io::Error::other("broken"));
        let remote = Remote::new(&error);
        assert_eq!(remote.joined(), "cannot send: broken");
        assert_eq!(remote.source().unwrap().to_string(), "broken");
    }
}
