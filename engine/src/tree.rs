//! Removing a directory that a workload has filled.
//!
//! A workload can nest directories deeper than there are descriptors, or than a path may be long, and a recursive removal
//! then fails. Here directories that lie deep are first moved to one level, so that neither depth nor length matters.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where directories are moved to: inside the directory to be removed, so that a removal that was killed is finished
/// by the next. No file of rvm's has this name.
const FLAT: &str = ".removing";

/// How deep directories may lie to be removed where they are: with names of 255 bytes a path is still short enough.
const SHALLOW: u32 = 8;

/// Removes a directory of rvm's with everything in it. One that is not there is fine. Symbolic links are removed, not
/// followed: nobody but the caller, who has ended the workload, can reach the tree.
pub(crate) fn remove(directory: &Path) -> io::Result<()> {
    match remove_existing(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !directory.exists() => Ok(()),
        outcome => outcome,
    }
}

fn remove_existing(directory: &Path) -> io::Result<()> {
    // What needs no further directory comes first: on a full disk there is no room for one.
    if remove_shallow(directory, SHALLOW)? {
        return Ok(());
    }
    let flat = directory.join(FLAT);
    match fs::create_dir(&flat) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let mut number = 0_u64;
    let mut waiting: VecDeque<PathBuf> = subdirectories(&flat)?.into();
    empty(directory, &flat, &mut number, &mut waiting)?;
    while let Some(next) = waiting.pop_front() {
        empty(&next, &flat, &mut number, &mut waiting)?;
        fs::remove_dir(&next)?;
    }
    fs::remove_dir(&flat)?;
    fs::remove_dir(directory)
}

/// Removes a directory with everything in it that lies at most `depth` levels below it. Says whether that was all.
fn remove_shallow(directory: &Path, depth: u32) -> io::Result<bool> {
    let mut all = true;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            fs::remove_file(entry.path())?;
        } else if depth == 0 || !remove_shallow(&entry.path(), depth - 1)? {
            all = false;
        }
    }
    if all {
        fs::remove_dir(directory)?;
    }
    Ok(all)
}

/// Removes the files of one directory, and moves its subdirectories to `flat`.
fn empty(directory: &Path, flat: &Path, number: &mut u64, waiting: &mut VecDeque<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if path == flat {
            continue;
        }
        if !entry.file_type()?.is_dir() {
            fs::remove_file(&path)?;
            continue;
        }
        let target = loop {
            let target = flat.join(number.to_string());
            *number += 1;
            // A removal that was killed may have left some.
            if !target.try_exists()? {
                break target;
            }
        };
        fs::rename(&path, &target)?;
        waiting.push_back(target);
    }
    Ok(())
}

fn subdirectories(flat: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(flat)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn depth_does_not_matter() {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path().join("top");
        fs::create_dir(&top).unwrap();
        // Built from the bottom, because a path of this length cannot be named.
        let (inner, outer) = (top.join("a"), directory.path().join("b"));
        fs::create_dir(&inner).unwrap();
        for _ in 0..5000 {
            fs::create_dir(&outer).unwrap();
            fs::rename(&inner, outer.join("a")).unwrap();
            fs::rename(&outer, &inner).unwrap();
        }
        remove(&top).unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn links_are_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (top, outside) = (directory.path().join("top"), directory.path().join("outside"));
        fs::create_dir(&top).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "").unwrap();
        symlink(&outside, top.join("link")).unwrap();
        symlink("nowhere", top.join("dangling")).unwrap();
        remove(&top).unwrap();
        assert!(outside.join("file").exists() && !top.exists());
    }

    #[test]
    fn a_removal_that_was_killed_is_finished() {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path().join("top");
        fs::create_dir_all(top.join(FLAT).join("0").join("deep")).unwrap();
        fs::create_dir_all(top.join("upper").join("more")).unwrap();
        remove(&top).unwrap();
        assert!(!top.exists());
        remove(&top).unwrap();
    }
}
