//! What the command that starts a supervisor gives it: open files, over the socket that is the supervisor's standard
//! input.
//!
//! Descriptors cannot be named by number without `unsafe`, and a lock cannot be opened again by path; `SCM_RIGHTS`
//! (unix(7)) passes them as owned values.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Descriptors of a handoff: the lock and three streams.
const COUNT: usize = 4;

/// The open files a supervisor begins with.
#[derive(Debug)]
pub(crate) struct Handoff {
    /// Holds the lock of the container's directory.
    pub(crate) lock: File,
    /// The starting command's ends of the workload's streams.
    pub(crate) streams: ClientStreams,
}

/// A command's connections to the workload's standard streams.
#[derive(Debug)]
pub(crate) struct ClientStreams {
    /// The command sends.
    pub(crate) stdin: UnixStream,
    /// The command receives.
    pub(crate) stdout: UnixStream,
    /// The command receives.
    pub(crate) stderr: UnixStream,
}

impl Handoff {
    /// Sends everything in one message.
    pub(crate) fn send(&self, channel: &UnixStream) -> io::Result<()> {
        let streams = &self.streams;
        let descriptors = [
            self.lock.as_fd(),
            streams.stdin.as_fd(),
            streams.stdout.as_fd(),
            streams.stderr.as_fd(),
        ];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(COUNT))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        sendmsg(channel, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Receives what [`Handoff::send`] sent.
    pub(crate) fn receive(channel: &UnixStream) -> io::Result<Self> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(COUNT))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let message = recvmsg(
            channel,
            &mut [IoSliceMut::new(&mut byte)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        if message.bytes == 0 || message.flags.contains(ReturnFlags::CTRUNC) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut received = control.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<OwnedFd>>(),
            _ => Vec::new(),
        });
        let mut next = || received.next().ok_or(io::ErrorKind::UnexpectedEof);
        Ok(Self {
            lock: next()?.into(),
            streams: ClientStreams {
                stdin: next()?.into(),
                stdout: next()?.into(),
                stderr: next()?.into(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn descriptors_arrive_in_order() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut stdin, stdin_peer) = UnixStream::pair().unwrap();
        let (stdout_peer, mut stdout) = UnixStream::pair().unwrap();
        let (stderr_peer, _stderr) = UnixStream::pair().unwrap();
        let streams = ClientStreams {
            stdin: stdin_peer,
            stdout: stdout_peer,
            stderr: stderr_peer,
        };
        Handoff {
            lock: tempfile::tempfile().unwrap(),
            streams,
        }
        .send(&here)
        .unwrap();
        let mut received = Handoff::receive(&there).unwrap();
        assert!(received.lock.metadata().unwrap().is_file());
        stdin.write_all(b"in").unwrap();
        drop(stdin);
        let mut text = String::new();
        received.streams.stdin.read_to_string(&mut text).unwrap();
        received.streams.stdout.write_all(b"out").unwrap();
        drop(received);
        stdout.read_to_string(&mut text).unwrap();
        assert_eq!(text, "inout");
    }

    #[test]
    fn a_dead_sender_is_an_error() {
        let (here, there) = UnixStream::pair().unwrap();
        drop(here);
        assert!(Handoff::receive(&there).is_err());
    }
}
