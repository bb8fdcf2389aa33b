//! `rvm save`.

use std::fs;
use std::io::{self, BufWriter, IsTerminal as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rvm_engine::Engine;
use rvm_images::ArchiveKind;

use crate::args::{Save, SaveFormat};

/// Bytes written at once.
const BUFFER_BYTES: usize = 1 << 20;

pub(super) fn run(engine: &Engine, arguments: &Save) -> Result<u8> {
    let kind = match arguments.format {
        SaveFormat::DockerArchive => ArchiveKind::Docker,
        SaveFormat::OciArchive => ArchiveKind::Oci,
    };
    to_file(arguments.output.as_deref(), |output| {
        Ok(engine.save(&arguments.images, kind, output)?)
    })?;
    Ok(0)
}

/// Writes to a file that is there once it is whole, or to standard output unless that is a terminal.
pub(super) fn to_file(
    path: Option<&Path>,
    write: impl FnOnce(&mut dyn io::Write) -> Result<()>,
) -> Result<()> {
    let Some(path) = path else {
        if io::stdout().is_terminal() {
            bail!("an archive is not written to a terminal: use -o FILE, or redirect standard output");
        }
        return write(&mut BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock()));
    };
    let failed = || format!("cannot write {}", path.display());
    // A device or a pipe cannot be replaced by a file.
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        let file = fs::File::options().write(true).open(path).with_context(failed)?;
        return write(&mut BufWriter::with_capacity(BUFFER_BYTES, file));
    }
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let directory = fs::canonicalize(directory).with_context(failed)?;
    match nameless(&directory) {
        Ok(mut file) => {
            write(&mut BufWriter::with_capacity(BUFFER_BYTES, &mut file))?;
            publish(&file, &directory, path).with_context(failed)
        }
        Err(error) if [Errno::OPNOTSUPP, Errno::ISDIR, Errno::INVAL].contains(&error) => {
            let mut file = temporary().tempfile_in(&directory).with_context(failed)?;
            write(&mut BufWriter::with_capacity(BUFFER_BYTES, &mut file))?;
            file.persist(path).with_context(failed)?;
            Ok(())
        }
        Err(error) => Err(io::Error::from(error)).with_context(failed),
    }
}

/// A file that is gone with this process, whatever happens to it; not every file system has them. As Docker's, it is
/// readable for its owner alone: an image may hold secrets.
fn nameless(directory: &Path) -> Result<fs::File, Errno> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// Gives a nameless file its name, and takes it from what has it.
fn publish(file: &fs::File, directory: &Path, path: &Path) -> io::Result<()> {
    let descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
    let link = |name: &Path| rustix::fs::linkat(CWD, &descriptor, CWD, name, AtFlags::SYMLINK_FOLLOW);
    match link(path) {
        Err(Errno::EXIST) => {
            let linked = temporary().make_in(directory, |name| Ok(link(name)?))?;
            linked.persist(path)?;
            Ok(())
        }
        result => Ok(result?),
    }
}

/// A name for what is to be renamed at once, or where there are no nameless files.
fn temporary() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder
        .prefix(".rvm-")
        .permissions(fs::Permissions::from_mode(0o600));
    builder
}
