//! Directories of the host, each the file system of a virtio device.

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, mount};
use rvm_protocol::Share;

use crate::boot::make_directory;

/// Where all of them are.
const SHARES: &str = "/run/rvm/shares";

/// Mounts them where the host wants them.
pub(crate) fn mount_all(shares: &[Share]) -> Result<()> {
    if shares.is_empty() {
        return Ok(());
    }
    make_directory(SHARES)?;
    for Share { tag, directory } in shares {
        ensure!(
            directory
                .parent()
                .is_some_and(|parent| parent.as_os_str() == SHARES),
            "{} is no place for a share: {SHARES} is",
            directory.display()
        );
        let path = directory.to_str().context("a directory is not named in UTF-8")?;
        make_directory(path)?;
        mount(tag.as_str(), path, "virtiofs", MountFlags::empty(), None)
            .with_context(|| format!("mount {tag}"))?;
    }
    Ok(())
}
