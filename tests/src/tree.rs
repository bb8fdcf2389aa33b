//! A file tree, entry by entry: what `probe tree` prints from inside a container, and what the same code sees in the
//! tree that another tool unpacked from the same image.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// One entry. Bytes that are not text are written as escapes, so that nothing is lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Path below the top of the tree; empty for the top itself.
    pub path: String,
    /// `file`, `directory`, `link`, `character`, `block`, `fifo` or `socket`.
    pub kind: String,
    /// Permission bits with set-user-ID, set-group-ID and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes, of a regular file.
    pub size: Option<u64>,
    /// SHA-256 of the content, of a regular file.
    pub sha256: Option<String>,
    /// Target, of a symbolic link.
    pub target: Option<String>,
    /// Major and minor number, of a device.
    pub device: Option<(u32, u32)>,
    /// Modification time in seconds and nanoseconds; not of a directory, whose time any mount changes.
    pub modified: Option<(i64, i64)>,
    /// Extended attributes, except those with which overlayfs and the kernel's security modules keep their own books.
    pub attributes: BTreeMap<String, String>,
    /// The first path of the group of hard links that this entry belongs to, if it has more than one.
    pub linked_to: Option<String>,
}

/// Walks the tree at `top` on its own file system and below, leaving out the paths in `excluded` (relative to `top`)
/// with everything below them. Sorted by path.
///
/// # Errors
/// If an entry cannot be read.
pub fn walk(top: &Path, excluded: &[&str]) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut groups: BTreeMap<(u64, u64), String> = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        if excluded.iter().any(|path| relative == Path::new(path)) {
            continue;
        }
        let path = top.join(&relative);
        let metadata =
            fs::symlink_metadata(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if metadata.is_dir() {
            let mut names = fs::read_dir(&path)
                .and_then(Iterator::collect::<io::Result<Vec<_>>>)
                .with_context(|| format!("cannot list {}", path.display()))?;
            names.sort_by_key(fs::DirEntry::file_name);
            pending.extend(names.iter().rev().map(|name| relative.join(name.file_name())));
        }
        let mut entry = entry(&path, &relative, &metadata)
            .with_context(|| format!("cannot describe {}", path.display()))?;
        if !metadata.is_dir() && metadata.nlink() > 1 {
            let group = groups
                .entry((metadata.dev(), metadata.ino()))
                .or_insert_with(|| entry.path.clone());
            entry.linked_to = Some(group.clone());
        }
        entries.push(entry);
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

/// What differs between two trees, an entry a line; empty if they are equal.
#[must_use]
pub fn differences(left: &[Entry], right: &[Entry]) -> String {
    let index = |entries: &[Entry]| -> BTreeMap<String, Entry> {
        entries
            .iter()
            .map(|entry| (entry.path.clone(), entry.clone()))
            .collect()
    };
    let (left, right) = (index(left), index(right));
    let mut text = String::new();
    for (path, entry) in &left {
        match right.get(path) {
            None => {
                let _ = writeln!(text, "only left: {path:?} ({})", entry.kind);
            }
            Some(other) if other != entry => {
                let _ = writeln!(text, "{path:?}:\n  left  {entry:?}\n  right {other:?}");
            }
            Some(_) => {}
        }
    }
    for (path, entry) in right.iter().filter(|(path, _)| !left.contains_key(*path)) {
        let _ = writeln!(text, "only right: {path:?} ({})", entry.kind);
    }
    text
}

fn entry(path: &Path, relative: &Path, metadata: &Metadata) -> Result<Entry> {
    let kind = metadata.file_type();
    let is_device = kind.is_char_device() || kind.is_block_device();
    let device = (
        rustix::fs::major(metadata.rdev()),
        rustix::fs::minor(metadata.rdev()),
    );
    Ok(Entry {
        path: escape(relative.as_os_str().as_bytes()),
        kind: match () {
            () if kind.is_file() => "file",
            () if kind.is_dir() => "directory",
            () if kind.is_symlink() => "link",
            () if kind.is_char_device() => "character",
            () if kind.is_block_device() => "block",
            () if kind.is_fifo() => "fifo",
            () => "socket",
        }
        .to_owned(),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        size: kind.is_file().then(|| metadata.size()),
        sha256: if kind.is_file() {
            Some(sha256(File::open(path)?)?)
        } else {
            None
        },
        target: if kind.is_symlink() {
            Some(escape(fs::read_link(path)?.as_os_str().as_bytes()))
        } else {
            None
        },
        device: is_device.then_some(device),
        modified: (!kind.is_dir()).then(|| (metadata.mtime(), metadata.mtime_nsec())),
        attributes: attributes(path)?,
        linked_to: None,
    })
}

/// SHA-256 of everything that `reader` gives, in hexadecimal.
///
/// # Errors
/// If it cannot be read.
pub fn sha256(mut reader: impl io::Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(hexadecimal(&hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}

fn attributes(path: &Path) -> Result<BTreeMap<String, String>> {
    let mut names = vec![0; 1 << 16];
    let length = rustix::fs::llistxattr(path, &mut names[..])?;
    let mut attributes = BTreeMap::new();
    for name in names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        if name.starts_with(b"trusted.") || name.starts_with(b"security.selinux") {
            continue;
        }
        let mut value = vec![0; 1 << 16];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        attributes.insert(escape(name), hexadecimal(&value[..length]));
    }
    Ok(attributes)
}

fn escape(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// Lower-case hexadecimal digits.
#[must_use]
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_trees_have_no_differences_and_links_are_grouped() {
        let top = std::env::temp_dir().join(format!("rvm-tree-{}", std::process::id()));
        fs::create_dir_all(top.join("sub")).unwrap();
        fs::write(top.join("sub/one"), "x").unwrap();
        fs::hard_link(top.join("sub/one"), top.join("sub/two")).unwrap();
        let before = walk(&top, &[]).unwrap();
        assert_eq!(
            before.iter().map(|e| e.path.as_str()).collect::<Vec<_>>(),
            ["", "sub", "sub/one", "sub/two"]
        );
        assert_eq!(before[3].linked_to.as_deref(), Some("sub/one"));
        assert_eq!(differences(&before, &walk(&top, &[]).unwrap()), "");

        fs::write(top.join("sub/three"), "").unwrap();
        let after = walk(&top, &[]).unwrap();
        assert!(differences(&before, &after).contains("only right: \"sub/three\""));
        assert_eq!(differences(&before, &walk(&top, &["sub/three"]).unwrap()), "");
        fs::remove_dir_all(top).unwrap();
    }
}
