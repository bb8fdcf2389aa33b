//! `rvm save`.

use std::fs;
use std::io::{self, BufWriter, IsTerminal as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
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
        let saved = engine.images()?.save(&arguments.images, kind, output);
        saved.map_err(|error| rvm_engine::Error::from(error).into())
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
    let mut file = tempfile::Builder::new()
        .prefix(".rvm-")
        .tempfile_in(directory)
        .with_context(failed)?;
    write(&mut BufWriter::with_capacity(BUFFER_BYTES, &mut file))?;
    // As Docker's: an image may hold secrets.
    let permissions = fs::Permissions::from_mode(0o600);
    file.as_file().set_permissions(permissions).with_context(failed)?;
    file.persist(path).with_context(failed)?;
    Ok(())
}
