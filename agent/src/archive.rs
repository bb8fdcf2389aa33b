//! The container's files on their way to the host, and from it.

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rvm_isolation::Files;
use rvm_protocol::{CopyFiles, CopyResult, FailureKind, FrameError, send_archive, serve_copy};

use crate::guest::failure;

/// Sends an archive, and waits until the host has seen its end.
///
/// # Errors
/// Where the host does not read to the end.
pub(crate) fn send(
    archive: io::Result<Box<dyn Read>>,
    mut connection: &UnixStream,
) -> Result<(), FrameError> {
    let mut archive = archive.unwrap_or_else(|error| Box::new(Unreadable(Some(error))));
    send_archive(&mut archive, &mut connection, |error| {
        failure(FailureKind::Other, error)
    })?;
    finish(connection)
}

/// Serves a connection for copying.
///
/// # Errors
/// Those of the connection.
pub(crate) fn serve(files: Result<&Files, &dyn Error>, connection: &UnixStream) -> Result<(), FrameError> {
    let served = files.map(Served);
    let served = served.as_ref().map(|files| files as &dyn CopyFiles);
    serve_copy(connection, served.map_err(|error| *error))?;
    finish(connection)
}

/// As with streams: what is closed both ways at once may be torn down while the last bytes are still on their way.
fn finish(mut connection: &UnixStream) -> Result<(), FrameError> {
    connection.shutdown(Shutdown::Write).map_err(FrameError::Io)?;
    io::copy(&mut connection, &mut io::sink())
        .map(drop)
        .map_err(FrameError::Io)
}

/// The isolation crate's files, for the protocol to serve.
struct Served<'a>(&'a Files);

impl CopyFiles for Served<'_> {
    fn find(&self, path: Vec<u8>, follow: bool) -> CopyResult<(Vec<u8>, Option<u32>)> {
        let (path, mode) = self.0.find(&path_of(path), follow)?;
        Ok((path.into_os_string().into_vec(), mode))
    }

    fn pack(&self, path: Vec<u8>, name: &[u8], output: &mut dyn Write) -> CopyResult<()> {
        Ok(self.0.pack(&path_of(path), name, output)?)
    }

    fn unpack(&self, directory: Vec<u8>, owners: bool, input: &mut dyn Read) -> CopyResult<()> {
        Ok(self.0.unpack(&path_of(directory), owners, input)?)
    }
}

fn path_of(bytes: Vec<u8>) -> PathBuf {
    OsString::from_vec(bytes).into()
}

/// An archive that could not even be begun.
struct Unreadable(Option<io::Error>);

impl Read for Unreadable {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        self.0.take().map_or(Ok(0), Err)
    }
}
