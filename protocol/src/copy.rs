//! Copying files into a container and out of it. Whoever has the container's files serves one connection: frames of
//! [`CopyRequest`], each answered by one [`CopyAnswer`]. Archives go either way as pieces with an end, as in
//! [`crate::send_archive`].

use std::error::Error;
use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use crate::archive::{ArchiveEnd, ArchiveReader, ArchiveWriter};
use crate::frame::{FrameError, read_frame, write_frame};
use crate::message::{Failure, FailureKind};

/// What is wanted. Paths are absolute, as bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CopyRequest {
    /// Tell what is at a path. Answered by [`CopyAnswer::Found`].
    Find {
        /// The path.
        path: Vec<u8>,
        /// Whether a symbolic link at its end is followed.
        follow: bool,
    },
    /// Send what is at a path as a tar, in which a name stands for the path. Answered by [`CopyAnswer::Done`], then the
    /// archive.
    Pack {
        /// The path.
        path: Vec<u8>,
        /// What it is called in the archive.
        name: Vec<u8>,
    },
    /// Make the files of the archive that follows. Answered by [`CopyAnswer::Done`] when they are there, or before its end
    /// where they cannot be made.
    Unpack {
        /// The directory that they are made in.
        directory: Vec<u8>,
        /// Whether they get the owners that the archive names.
        owners: bool,
    },
}

/// The answer to a [`CopyRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CopyAnswer {
    /// What is at a path.
    Found {
        /// The path, after links were followed.
        path: Vec<u8>,
        /// Type and permissions as in `st_mode` (inode(7)); `None` where there is nothing.
        mode: Option<u32>,
    },
    /// It is done, or begins. Also the first message, unasked, once the files can be got at.
    Done,
    /// It cannot be done. As the first message: the files cannot be got at.
    Failed(Failure),
}

/// Why something cannot be done.
pub type CopyResult<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Who has a container's files.
pub trait CopyFiles {
    /// As [`CopyRequest::Find`] says.
    ///
    /// # Errors
    /// Where it cannot be found out.
    fn find(&self, path: Vec<u8>, follow: bool) -> CopyResult<(Vec<u8>, Option<u32>)>;
    /// As [`CopyRequest::Pack`] says.
    ///
    /// # Errors
    /// Where it cannot be read, or not written to `output`.
    fn pack(&self, path: Vec<u8>, name: &[u8], output: &mut dyn Write) -> CopyResult<()>;
    /// As [`CopyRequest::Unpack`] says. The archive is whole only if all of it can be read.
    ///
    /// # Errors
    /// Where it cannot be written, or `input` not be read.
    fn unpack(&self, directory: Vec<u8>, owners: bool, input: &mut dyn Read) -> CopyResult<()>;
}

/// Serves a connection to its end.
///
/// # Errors
/// Those of the connection. What goes wrong with files is told to who asked.
pub fn serve_copy<C>(connection: C, files: Result<&dyn CopyFiles, &dyn Error>) -> Result<(), FrameError>
where
    C: Read + Write + Copy,
{
    let files = match files {
        Ok(files) => files,
        Err(error) => return write_frame(connection, &CopyAnswer::Failed(failure(error))),
    };
    write_frame(connection, &CopyAnswer::Done)?;
    loop {
        let answer = match read_frame(connection) {
            Err(FrameError::Closed) => return Ok(()),
            Err(error) => return Err(error),
            Ok(CopyRequest::Find { path, follow }) => files
                .find(path, follow)
                .map(|(path, mode)| CopyAnswer::Found { path, mode }),
            Ok(CopyRequest::Pack { path, name }) => {
                write_frame(connection, &CopyAnswer::Done)?;
                let mut archive = ArchiveWriter::new(connection);
                let end = match files.pack(path, &name, &mut archive) {
                    Ok(()) => ArchiveEnd::Complete,
                    Err(error) => ArchiveEnd::Failed(failure(&*error)),
                };
                archive.end(&end)?;
                continue;
            }
            Ok(CopyRequest::Unpack { directory, owners }) => {
                let mut archive = ArchiveReader::new(connection, u64::MAX);
                let unpacked = files.unpack(directory, owners, &mut archive);
                if let Err(error) = unpacked {
                    write_frame(connection, &CopyAnswer::Failed(failure(&*error)))?;
                    // What is on its way has to be taken, or the answer is lost with it. The other side stops sending.
                    let mut connection = connection;
                    return io::copy(&mut connection, &mut io::sink())
                        .map(drop)
                        .map_err(FrameError::Io);
                }
                Ok(CopyAnswer::Done)
            }
        };
        let answer = answer.unwrap_or_else(|error| CopyAnswer::Failed(failure(&*error)));
        write_frame(connection, &answer)?;
    }
}

/// An error with its causes, on one line.
fn failure(error: &dyn Error) -> Failure {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // A transparent error shows its cause's text already.
        if !message.ends_with(&text) {
            message = format!("{message}: {text}");
        }
        cause = error.source();
    }
    Failure {
        kind: FailureKind::Other,
        message,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    /// Has a file `/a` with `content`, and takes anything but an archive that begins with `bad`.
    struct Memory;

    impl CopyFiles for Memory {
        fn find(&self, path: Vec<u8>, _: bool) -> CopyResult<(Vec<u8>, Option<u32>)> {
            let mode = (path == b"/a").then_some(0o100_644);
            Ok((path, mode))
        }

        fn pack(&self, path: Vec<u8>, _: &[u8], output: &mut dyn Write) -> CopyResult<()> {
            if path != b"/a" {
                return Err("no such file".into());
            }
            Ok(output.write_all(&[7; 200_000])?)
        }

        fn unpack(&self, _: Vec<u8>, _: bool, input: &mut dyn Read) -> CopyResult<()> {
            let mut begin = [0; 3];
            input.read_exact(&mut begin)?;
            if &begin == b"bad" {
                return Err("disk full".into());
            }
            io::copy(input, &mut io::sink())?;
            Ok(())
        }
    }

    fn served() -> (UnixStream, thread::JoinHandle<()>) {
        let (near, far) = UnixStream::pair().unwrap();
        let server = thread::spawn(move || serve_copy(&far, Ok(&Memory)).unwrap());
        assert_eq!(read_frame::<CopyAnswer>(&near).unwrap(), CopyAnswer::Done);
        (near, server)
    }

    fn refused(message: &str) -> CopyAnswer {
        CopyAnswer::Failed(Failure {
            kind: FailureKind::Other,
            message: message.into(),
        })
    }

    #[test]
    fn requests_are_answered_in_order() {
        let (near, server) = served();
        for (path, mode) in [(b"/a", Some(0o100_644)), (b"/b", None)] {
            let path = path.to_vec();
            write_frame(
                &near,
                &CopyRequest::Find {
                    path: path.clone(),
                    follow: true,
                },
            )
            .unwrap();
            assert_eq!(
                read_frame::<CopyAnswer>(&near).unwrap(),
                CopyAnswer::Found { path, mode }
            );
        }
        for (path, expected) in [("/a", Ok(200_000)), ("/b", Err("no such file".to_owned()))] {
            write_frame(
                &near,
                &CopyRequest::Pack {
                    path: path.into(),
                    name: b"a".to_vec(),
                },
            )
            .unwrap();
            assert_eq!(read_frame::<CopyAnswer>(&near).unwrap(), CopyAnswer::Done);
            let mut received = Vec::new();
            let outcome = ArchiveReader::new(&near, u64::MAX).read_to_end(&mut received);
            assert_eq!(outcome.map_err(|error| error.to_string()), expected);
        }
        for (end, expected) in [
            (ArchiveEnd::Complete, CopyAnswer::Done),
            (
                ArchiveEnd::Failed(Failure {
                    kind: FailureKind::Other,
                    message: "gone".into(),
                }),
                refused("gone"),
            ),
        ] {
            write_frame(
                &near,
                &CopyRequest::Unpack {
                    directory: b"/".to_vec(),
                    owners: false,
                },
            )
            .unwrap();
            let mut archive = ArchiveWriter::new(&near);
            archive.write_all(&[1; 100_000]).unwrap();
            archive.end(&end).unwrap();
            assert_eq!(read_frame::<CopyAnswer>(&near).unwrap(), expected);
        }
        drop(near);
        server.join().unwrap();
    }

    #[test]
    fn a_failure_is_told_before_the_archive_has_ended() {
        let (near, server) = served();
        write_frame(
            &near,
            &CopyRequest::Unpack {
                directory: b"/".to_vec(),
                owners: false,
            },
        )
        .unwrap();
        let mut archive = ArchiveWriter::new(&near);
        archive.write_all(b"bad").unwrap();
        assert_eq!(read_frame::<CopyAnswer>(&near).unwrap(), refused("disk full"));
        // Nobody is held up by what was sent meanwhile.
        archive.write_all(&[0; 1 << 20]).unwrap();
        drop(archive);
        drop(near);
        server.join().unwrap();
    }

    #[test]
    fn the_wire_format_is_frozen() {
        let check = |request: &CopyRequest, expected| {
            assert_eq!(serde_json::to_string(request).unwrap(), expected);
        };
        check(
            &CopyRequest::Find {
                path: b"/".to_vec(),
                follow: true,
            },
            r#"{"find":{"path":[47],"follow":true}}"#,
        );
        check(
            &CopyRequest::Pack {
                path: b"/".to_vec(),
                name: b"n".to_vec(),
            },
            r#"{"pack":{"path":[47],"name":[110]}}"#,
        );
        check(
            &CopyRequest::Unpack {
                directory: b"/".to_vec(),
                owners: true,
            },
            r#"{"unpack":{"directory":[47],"owners":true}}"#,
        );
        let found = CopyAnswer::Found {
            path: b"/".to_vec(),
            mode: Some(1),
        };
        assert_eq!(
            serde_json::to_string(&found).unwrap(),
            r#"{"found":{"path":[47],"mode":1}}"#
        );
        assert_eq!(serde_json::to_string(&CopyAnswer::Done).unwrap(), r#""done""#);
    }
}
