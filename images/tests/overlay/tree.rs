//! A tree as text: a line of everything that matters for each entry.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::hash::{DefaultHasher, Hasher as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// By escaped path.
pub(crate) type Tree = BTreeMap<String, String>;

/// Describes every entry below `top`. Hard links are described by the first of their names, not by their number:
/// overlayfs counts names that other layers removed.
pub(crate) fn list(top: &Path) -> Result<Tree> {
    let mut tree = Tree::new();
    let mut links: BTreeMap<(u64, u64), Vec<String>> = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        for entry in fs::read_dir(top.join(&relative))? {
            let relative = relative.join(entry?.file_name());
            let path = top.join(&relative);
            let metadata = path
                .symlink_metadata()
                .with_context(|| path.display().to_string())?;
            let name = escape(relative.as_os_str().as_bytes());
            tree.insert(
                name.clone(),
                describe(&path, &metadata).with_context(|| path.display().to_string())?,
            );
            if metadata.is_dir() {
                pending.push(relative);
            } else {
                links
                    .entry((metadata.dev(), metadata.ino()))
                    .or_default()
                    .push(name);
            }
        }
    }
    for mut names in links.into_values().filter(|names| names.len() > 1) {
        names.sort();
        for name in &names {
            tree.entry(name.clone())
                .and_modify(|text| *text += &format!(" linked to {}", names[0]));
        }
    }
    Ok(tree)
}

fn describe(path: &Path, metadata: &Metadata) -> Result<String> {
    let kind = metadata.file_type();
    let content = if kind.is_file() {
        let bytes = fs::read(path)?;
        let mut hasher = DefaultHasher::new();
        hasher.write(&bytes);
        format!("file {} {:x}", bytes.len(), hasher.finish())
    } else if kind.is_symlink() {
        format!("-> {}", escape(fs::read_link(path)?.as_os_str().as_bytes()))
    } else if kind.is_dir() {
        "directory".to_owned()
    } else {
        let what = [kind.is_char_device(), kind.is_block_device(), kind.is_fifo()];
        format!("special {what:?} {:x}", metadata.rdev())
    };
    // A directory's time is that of the last unpacking, in every tool.
    let time = if kind.is_dir() {
        String::new()
    } else {
        format!(" {}.{:09}", metadata.mtime(), metadata.mtime_nsec())
    };
    let owner = format!("{}:{}", metadata.uid(), metadata.gid());
    Ok(format!(
        "{content} {:o} {owner}{time}{}",
        metadata.mode(),
        attributes(path)?
    ))
}

fn attributes(path: &Path) -> Result<String> {
    let mut names = vec![0_u8; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut names[..])?;
    let mut attributes = Vec::new();
    for name in names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let text = escape(name);
        // The kernel's security modules label what is mounted by themselves.
        if text == "security.selinux" {
            continue;
        }
        let mut value = vec![0_u8; 64 << 10];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        attributes.push(format!(" {text}={}", escape(&value[..length])));
    }
    attributes.sort();
    Ok(attributes.concat())
}

fn escape(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
