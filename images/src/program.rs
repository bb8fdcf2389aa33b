//! Layers that are made of files of this machine and not of anybody's blob: one program, or an archive.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rvm_tar as tar;

use crate::erofs::Reader;
use crate::rootfs::{self, Lower};

/// Longest program, as it is held in memory.
const MAX_BYTES: u64 = 64 << 20;

/// Why there is no layer.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The program could not be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// It is far longer than a program of rvm's.
    #[error("{0} is longer than {MAX_BYTES} bytes")]
    TooLong(PathBuf),
    /// The layer could not be written.
    #[error("cannot make a layer of it")]
    Convert(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Likewise.
    #[error("cannot write the layer")]
    Write(#[source] io::Error),
}

/// Writes the EROFS image of a layer that has `program` as `name`, for everybody to execute, into the empty file `image`.
/// It is meant to lie below all others, so that it changes nothing that they have. Returns its length in bytes.
///
/// # Errors
/// As [`ProgramError`] says.
pub fn program_layer(program: &Path, name: &str, image: File) -> Result<u64, ProgramError> {
    let read = |source| ProgramError::Read(program.to_owned(), source);
    let mut bytes = Vec::new();
    File::open(program)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
        .map_err(read)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(ProgramError::TooLong(program.to_owned()));
    }
    let archive = archive(name, &bytes).map_err(ProgramError::Write)?;
    archive_layer(archive.as_slice(), image)
}

/// Writes the EROFS image of a layer that has what is in a tar stream into the empty file `image`. Returns its length in bytes.
///
/// # Errors
/// As [`ProgramError`] says.
pub fn archive_layer(archive: impl Read, image: File) -> Result<u64, ProgramError> {
    let mut stream = tar::Reader::new(tar::Forward(archive));
    let finished = rootfs::read_layer(&mut stream, image)
        .and_then(|unfinished| unfinished.finish(&Lower::new(Vec::new())));
    let file = finished.map_err(|error| ProgramError::Convert(Box::new(error)))?;
    file.sync_data().map_err(ProgramError::Write)?;
    Ok(file.metadata().map_err(ProgramError::Write)?.len())
}

/// Whether a layer's EROFS image has something of this name in its root directory, a whiteout included.
///
/// # Errors
/// Where it cannot be read, or is damaged.
pub fn has_in_root(layer: &Path, name: &str) -> io::Result<bool> {
    let find = |file| {
        let reader = Reader::new(file)?;
        reader.lookup(&reader.root()?, name.as_bytes())
    };
    Ok(find(File::open(layer)?).map_err(io::Error::other)?.is_some())
}

/// A tar with one file.
fn archive(name: &str, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut header = ::tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    let mut builder = ::tar::Builder::new(Vec::with_capacity(bytes.len() + 2048));
    builder.append_data(&mut header, name, bytes)?;
    builder.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layer_has_the_program_and_nothing_else() {
        let program = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&program, [7; 10_000]).unwrap();
        let image = tempfile::tempfile().unwrap();
        let bytes = program_layer(program.path(), ".probe", image.try_clone().unwrap()).unwrap();
        assert!(bytes.is_multiple_of(4096) && bytes > 10_000, "{bytes}");
        let reader = Reader::new(image).unwrap();
        let root = reader.root().unwrap();
        let found = reader.lookup(&root, b".probe").unwrap().unwrap();
        let inode = reader.inode(found.nid).unwrap();
        let mut content = [0; 20_000];
        assert_eq!(reader.read(&inode, 0, &mut content).unwrap(), 10_000);
        assert_eq!(content[..10_000], [7; 10_000]);
        assert_eq!(reader.metadata(&inode).unwrap().mode & 0o7777, 0o755);
        assert_eq!(reader.entries(&root).count(), 1);
    }

    #[test]
    fn names_in_the_root_are_found() {
        let program = tempfile::NamedTempFile::new().unwrap();
        let image = tempfile::NamedTempFile::new().unwrap();
        program_layer(program.path(), ".probe", image.reopen().unwrap()).unwrap();
        assert!(has_in_root(image.path(), ".probe").unwrap());
        assert!(!has_in_root(image.path(), "probe").unwrap());
        assert!(
            has_in_root(program.path(), "probe").is_err(),
            "an empty file is no image"
        );
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let image = tempfile::tempfile().unwrap();
        let error = program_layer(Path::new("/nonexistent/program"), ".probe", image).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /nonexistent/program");
    }
}
