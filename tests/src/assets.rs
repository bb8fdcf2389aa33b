//! Directories of assets, as RVM_ASSETS names them, in which one thing is wrong.

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// A copy of an asset directory, made of links, in which files can be replaced.
#[derive(Debug)]
pub struct Assets {
    directory: PathBuf,
}

impl Assets {
    /// Links everything in `original` into the new directory `directory`.
    ///
    /// # Errors
    /// If that cannot be made.
    pub fn like(original: &Path, directory: PathBuf) -> Result<Self> {
        fs::create_dir_all(&directory)?;
        for entry in fs::read_dir(original).with_context(|| format!("cannot list {}", original.display()))? {
            let entry = entry?;
            symlink(entry.path(), directory.join(entry.file_name()))?;
        }
        Ok(Self { directory })
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Takes a file out.
    ///
    /// # Errors
    /// If it is not there.
    pub fn remove(&self, name: &str) -> Result<()> {
        fs::remove_file(self.directory.join(name)).with_context(|| format!("there is no asset {name}"))
    }

    /// Puts other bytes in a file's place, which may be executed as all of them may.
    ///
    /// # Errors
    /// If it is not there, or cannot be written.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.remove(name)?;
        let path = self.directory.join(name);
        fs::write(&path, bytes)?;
        Ok(fs::set_permissions(&path, Permissions::from_mode(0o755))?)
    }

    /// Gives the guest an /init that does nothing but what `behaviour` says, see the probe.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn misbehaving_guest(&self, probe: &Path, behaviour: &str) -> Result<()> {
        let probe = fs::read(probe).with_context(|| format!("cannot read {}", probe.display()))?;
        let files = [
            ("init", 0o755, probe.as_slice()),
            ("behaviour", 0o644, behaviour.as_bytes()),
        ];
        self.replace("initramfs", &cpio(&files)?)
    }
}

/// A cpio archive as the kernel unpacks it (Documentation/driver-api/early-userspace/buffer-format.rst).
fn cpio(files: &[(&str, u32, &[u8])]) -> Result<Vec<u8>> {
    const REGULAR: u32 = 0o100_000;
    let mut archive = Vec::new();
    let trailer: (&str, u32, &[u8]) = ("TRAILER!!!", 0, &[]);
    for (number, (name, mode, content)) in files.iter().chain([&trailer]).enumerate() {
        let mode = if *mode == 0 { 0 } else { REGULAR | mode };
        let fields = [
            number + 1,
            usize::try_from(mode)?,
            0,
            0,
            1,
            0,
            content.len(),
            0,
            0,
            0,
            0,
            name.len() + 1,
            0,
        ];
        write!(archive, "070701")?;
        for field in fields {
            write!(archive, "{field:08x}")?;
        }
        archive.extend_from_slice(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn cpio_reads_it() {
        let archive = cpio(&[("init", 0o755, b"abcde"), ("other", 0o644, b"")]).unwrap();
        let mut child = Command::new("cpio")
            .args(["--list", "--verbose", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&archive).unwrap();
        let listing = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        let lines = listing.lines().collect::<Vec<_>>();
        assert!(
            lines[0].starts_with("-rwxr-xr-x") && lines[0].ends_with("init"),
            "{listing}"
        );
        assert!(
            lines[1].starts_with("-rw-r--r--") && lines[1].ends_with("other"),
            "{listing}"
        );
    }
}
