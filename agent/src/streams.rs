//! The workload's standard streams: pipes or one terminal on its side, a connection each on the host's. A thread per stream
//! moves bytes through one buffer, so that a side that stalls holds up nothing but its own stream.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rvm_isolation::Stdio;
use rvm_protocol::{Stream, TerminalSize};

/// As much as a pipe holds by default.
const BUFFER_BYTES: usize = 64 << 10;

/// The agent's ends of the pipes that no connection has taken yet.
#[derive(Debug, Default)]
pub(crate) struct Pipes {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    /// To change its size.
    terminal: Option<OwnedFd>,
}

impl Pipes {
    /// Makes the pipes, and the workload's ends of them. Without a connection for it, standard input is `/dev/null`.
    pub(crate) fn new(stdin: bool) -> io::Result<(Self, Stdio)> {
        let (stdin_read, stdin_write) = if stdin {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            (read, Some(write))
        } else {
            (File::open("/dev/null")?.into(), None)
        };
        let (stdout_read, stdout_write) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr_read, stderr_write) = pipe_with(PipeFlags::CLOEXEC)?;
        let pipes = Self {
            stdin: stdin_write,
            stdout: Some(stdout_read),
            stderr: Some(stderr_read),
            terminal: None,
        };
        let stdio = Stdio {
            stdin: stdin_read,
            stdout: stdout_write,
            stderr: stderr_write,
        };
        Ok((pipes, stdio))
    }

    /// What a process with a terminal has instead, of which this is the outer side.
    pub(crate) fn of_terminal(terminal: OwnedFd, stdin: bool) -> io::Result<Self> {
        Ok(Self {
            stdin: stdin.then(|| terminal.try_clone()).transpose()?,
            stdout: Some(terminal.try_clone()?),
            stderr: None,
            terminal: Some(terminal),
        })
    }

    /// Changes the size of the terminal, if it is one.
    pub(crate) fn resize(&self, size: TerminalSize) -> io::Result<()> {
        self.terminal.as_ref().map_or(Ok(()), |terminal| {
            rvm_isolation::resize(terminal, size.rows, size.columns)
        })
    }

    /// Takes the end that belongs to `stream`, once.
    pub(crate) fn claim(&mut self, stream: Stream) -> Option<OwnedFd> {
        match stream {
            Stream::Stdin => self.stdin.take(),
            Stream::Stdout => self.stdout.take(),
            Stream::Stderr => self.stderr.take(),
        }
    }

    /// Whether every stream has its connection.
    pub(crate) fn all_claimed(&self) -> bool {
        self.stdin.is_none() && self.stdout.is_none() && self.stderr.is_none()
    }
}

/// Moves bytes until either side has no more use for them.
///
/// # Errors
/// When the connection or the pipe fails in another way than by being closed at its other end.
pub(crate) fn pump(stream: Stream, connection: &UnixStream, pipe: OwnedFd) -> io::Result<()> {
    match stream {
        Stream::Stdin => host_to_workload(connection, File::from(pipe)),
        Stream::Stdout | Stream::Stderr => workload_to_host(File::from(pipe), connection),
    }
}

fn host_to_workload(mut connection: &UnixStream, mut pipe: File) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        // Wait for the host, but notice at once when the workload closes its end: an error of a pipe, a hang-up of a terminal.
        let mut descriptors = [
            PollFd::new(connection, PollFlags::IN),
            PollFd::new(&pipe, PollFlags::empty()),
        ];
        rustix::io::retry_on_intr(|| poll(&mut descriptors, None))?;
        if descriptors[1]
            .revents()
            .intersects(PollFlags::ERR | PollFlags::HUP)
        {
            break;
        }
        let count = read(&mut connection, &mut buffer)?;
        if count == 0 {
            // The pipe closes with this function's end; the connection's other half was never used.
            return Ok(());
        }
        match pipe.write_all(&buffer[..count]) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe || is_hung_up(&error) => break,
            result => result?,
        }
    }
    // Nobody will read the rest; the host's writes fail from here on.
    connection.shutdown(Shutdown::Both)
}

fn workload_to_host(mut pipe: File, mut connection: &UnixStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = read(&mut pipe, &mut buffer)?;
        if count == 0 {
            break;
        }
        match connection.write_all(&buffer[..count]) {
            // The host has stopped reading. With this function's end the pipe closes, and the workload gets SIGPIPE.
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                return Ok(());
            }
            result => result?,
        }
    }
    drop(pipe);
    connection.shutdown(Shutdown::Write)?;
    // The other half stays open until the host, having seen the end of the stream, closes its side: what is closed
    // both ways at once may be torn down on the way while the last bytes are still there.
    while read(&mut connection, &mut buffer)? > 0 {}
    Ok(())
}

/// Whether it is that nobody has the inner side of a terminal open any more.
fn is_hung_up(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::IO.raw_os_error())
}

/// One read; a connection that the peer has torn down is at its end, and so is a terminal that is hung up.
fn read(mut source: impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match source.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset || is_hung_up(&error) => return Ok(0),
            result => return result,
        }
    }
}
