//! Open files that pass between a command and a supervisor, in one message of a socket.
//!
//! Descriptors cannot be named by number without `unsafe`, and a lock cannot be opened again by path; `SCM_RIGHTS`
//! (unix(7)) passes them as owned values. The message's one byte says which of them there are.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Descriptors of a message: a lock and three streams at most.
const MOST: usize = 4;

/// Bits of the message's byte, in the order of the descriptors.
const LOCK: u8 = 1;
const STDIN: u8 = 2;
const STDOUT: u8 = 4;
const STDERR: u8 = 8;

/// The open files a supervisor begins with.
#[derive(Debug)]
pub(crate) struct Handoff {
    /// Holds the lock of the container's directory.
    pub(crate) lock: File,
    /// The starting command's ends of the workload's streams.
    pub(crate) streams: ClientStreams,
}

/// One end of a command's connections to the standard streams of a process in a container. A command that does not want
/// one leaves it out.
#[derive(Debug, Default)]
pub struct ClientStreams {
    /// The command sends.
    pub stdin: Option<UnixStream>,
    /// The command receives.
    pub stdout: Option<UnixStream>,
    /// The command receives.
    pub stderr: Option<UnixStream>,
}

/// Which streams a command wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

impl ClientStreams {
    /// Connects the streams that are wanted: the command's ends, and the supervisor's.
    ///
    /// # Errors
    /// Where there are no more descriptors.
    pub fn pair(wanted: Wanted) -> io::Result<(Self, Self)> {
        let pair = |wanted: bool| wanted.then(UnixStream::pair).transpose().map(Option::unzip);
        let (stdin, supervisor_stdin) = pair(wanted.stdin)?;
        let (stdout, supervisor_stdout) = pair(wanted.stdout)?;
        let (stderr, supervisor_stderr) = pair(wanted.stderr)?;
        let near = Self {
            stdin,
            stdout,
            stderr,
        };
        let far = Self {
            stdin: supervisor_stdin,
            stdout: supervisor_stdout,
            stderr: supervisor_stderr,
        };
        Ok((near, far))
    }

    /// Sends the streams in one message.
    pub(crate) fn send(&self, channel: &UnixStream) -> io::Result<()> {
        send(channel, None, self)
    }

    /// Receives what [`ClientStreams::send`] sent.
    pub(crate) fn receive(channel: &UnixStream) -> io::Result<Self> {
        Ok(receive(channel)?.1)
    }
}

impl Handoff {
    /// Sends everything in one message.
    pub(crate) fn send(&self, channel: &UnixStream) -> io::Result<()> {
        send(channel, Some(&self.lock), &self.streams)
    }

    /// Receives what [`Handoff::send`] sent.
    pub(crate) fn receive(channel: &UnixStream) -> io::Result<Self> {
        let (lock, streams) = receive(channel)?;
        Ok(Self {
            lock: lock.ok_or(io::ErrorKind::InvalidData)?,
            streams,
        })
    }
}

fn send(channel: &UnixStream, lock: Option<&File>, streams: &ClientStreams) -> io::Result<()> {
    let stream = |stream: &Option<UnixStream>, bit| if stream.is_some() { bit } else { 0 };
    let kinds = lock.map_or(0, |_| LOCK)
        | stream(&streams.stdin, STDIN)
        | stream(&streams.stdout, STDOUT)
        | stream(&streams.stderr, STDERR);
    let all = [&streams.stdin, &streams.stdout, &streams.stderr];
    let streams = all.into_iter().flatten().map(|stream| stream.as_fd());
    let descriptors: Vec<BorrowedFd<'_>> = lock.map(|lock| lock.as_fd()).into_iter().chain(streams).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(
        channel,
        &[IoSlice::new(&[kinds])],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

fn receive(channel: &UnixStream) -> io::Result<(Option<File>, ClientStreams)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut kinds = [0];
    let message = recvmsg(
        channel,
        &mut [IoSliceMut::new(&mut kinds)],
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
    let mut next = |bit: u8| {
        (kinds[0] & bit != 0)
            .then(|| received.next().ok_or(io::ErrorKind::InvalidData))
            .transpose()
    };
    let lock = next(LOCK)?.map(File::from);
    let streams = ClientStreams {
        stdin: next(STDIN)?.map(UnixStream::from),
        stdout: next(STDOUT)?.map(UnixStream::from),
        stderr: next(STDERR)?.map(UnixStream::from),
    };
    Ok((lock, streams))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    const ALL: Wanted = Wanted {
        stdin: true,
        stdout: true,
        stderr: true,
    };

    #[test]
    fn descriptors_arrive_in_order() {
        let (here, there) = UnixStream::pair().unwrap();
        let (near, far) = ClientStreams::pair(ALL).unwrap();
        Handoff {
            lock: tempfile::tempfile().unwrap(),
            streams: far,
        }
        .send(&here)
        .unwrap();
        let mut received = Handoff::receive(&there).unwrap();
        assert!(received.lock.metadata().unwrap().is_file());
        near.stdin.unwrap().write_all(b"in").unwrap();
        let mut text = String::new();
        let streams = &mut received.streams;
        streams.stdin.take().unwrap().read_to_string(&mut text).unwrap();
        streams.stdout.take().unwrap().write_all(b"out").unwrap();
        near.stdout.unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "inout");
    }

    #[test]
    fn what_is_not_wanted_is_not_there() {
        let (here, there) = UnixStream::pair().unwrap();
        for wanted in [
            Wanted::default(),
            Wanted {
                stderr: true,
                ..Wanted::default()
            },
        ] {
            let (_near, far) = ClientStreams::pair(wanted).unwrap();
            far.send(&here).unwrap();
            let received = ClientStreams::receive(&there).unwrap();
            assert!(received.stdin.is_none() && received.stdout.is_none());
            assert_eq!(received.stderr.is_some(), wanted.stderr);
            far.send(&here).unwrap();
            assert!(Handoff::receive(&there).is_err());
        }
    }

    #[test]
    fn a_dead_sender_is_an_error() {
        let (here, there) = UnixStream::pair().unwrap();
        drop(here);
        assert!(Handoff::receive(&there).is_err());
    }
}
