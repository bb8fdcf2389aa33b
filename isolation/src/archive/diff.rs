//! What a container's upper directory changes, told by comparing names with the layers below it. No content is read.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, BufWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::vec;

use rustix::fs::{Dir, FileType, OFlags, Stat};
use rustix::io::Errno;

use super::Error;
use super::tree::OVERLAY_OPAQUE;
use crate::files;
use crate::root::Root;

/// A directory that is being walked.
struct Level {
    path: PathBuf,
    /// Whether nothing of the layers shows through.
    hides: bool,
    /// What is in it, and whether that is in the upper directory.
    names: vec::IntoIter<(OsString, bool)>,
}

/// Writes the list that [`super::Extent::Diff`] describes. The workload may run: what is gone meanwhile is left out.
pub(super) fn write(upper: &Root, lower: &Root, output: impl Write) -> Result<(), Error> {
    let mut output = BufWriter::new(output);
    let mut levels = vec![level(upper, lower, PathBuf::from("/"), false)?];
    while let Some(level) = levels.last_mut() {
        let Some((name, is_upper)) = level.names.next() else {
            levels.pop();
            continue;
        };
        let (path, hides) = (level.path.join(name), level.hides);
        let below = status(lower, &path)?;
        let change = if is_upper {
            let Some(status) = status(upper, &path)? else {
                continue;
            };
            let kind = FileType::from_raw_mode(status.st_mode);
            let is_whiteout = kind == FileType::CharacterDevice && status.st_rdev == 0;
            if kind == FileType::Directory {
                let inside = self::level(upper, lower, path.clone(), hides)?;
                if below.is_some_and(|below| is_like(&status, &below))
                    && is_for_mounts(upper, lower, &inside)?
                {
                    continue;
                }
                levels.push(inside);
            }
            if below.is_none() && is_mount_point(upper, &path, &status)? {
                continue;
            }
            match (is_whiteout, below.is_some()) {
                // It hides what is not there.
                (true, false) => continue,
                (true, true) => b'D',
                (false, true) => b'C',
                (false, false) => b'A',
            }
        } else {
            b'D'
        };
        let line = [&[change], path.as_os_str().as_bytes(), b"\0"].concat();
        output.write_all(&line).map_err(Error::Write)?;
    }
    output.flush().map_err(Error::Write)
}

/// What a directory of the upper one has; where it hides the layers' one, also what that has.
fn level(upper: &Root, lower: &Root, path: PathBuf, hides: bool) -> Result<Level, Error> {
    let mut names = BTreeMap::new();
    let mut hides = hides;
    if let Some(directory) = open(upper, &path, OFlags::RDONLY | OFlags::DIRECTORY)? {
        let mut value = [0; 1];
        let opaque = rustix::fs::fgetxattr(&directory, OVERLAY_OPAQUE, &mut value[..]);
        hides |= opaque == Ok(1) && value == *b"y";
        if hides && let Some(hidden) = open(lower, &path, OFlags::RDONLY | OFlags::DIRECTORY)? {
            names.extend(list(&hidden, &path)?.into_iter().map(|name| (name, false)));
        }
        names.extend(list(&directory, &path)?.into_iter().map(|name| (name, true)));
    }
    let names = names.into_iter().collect::<Vec<_>>().into_iter();
    Ok(Level { path, hides, names })
}

fn list(directory: &OwnedFd, path: &Path) -> Result<Vec<OsString>, Error> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory).map_err(|error| failed(path, error))? {
        let entry = entry.map_err(|error| failed(path, error))?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name.to_vec()));
        }
    }
    Ok(names)
}

/// Whether a directory is as the layers have it; its time is that of the last change of what is in it.
fn is_like(upper: &Stat, lower: &Stat) -> bool {
    let about = |status: &Stat| (status.st_mode, status.st_uid, status.st_gid);
    about(upper) == about(lower)
}

/// Whether a directory was copied up for nothing but files for the container's own to be mounted on.
fn is_for_mounts(upper: &Root, lower: &Root, level: &Level) -> Result<bool, Error> {
    let mut is_any = false;
    for (name, is_upper) in level.names.as_slice() {
        let path = level.path.join(name);
        let found = status(upper, &path)?;
        match found {
            Some(found)
                if *is_upper && status(lower, &path)?.is_none() && is_mount_point(upper, &path, &found)? =>
            {
                is_any = true;
            }
            _ => return Ok(false),
        }
    }
    Ok(is_any && !level.hides)
}

/// Whether the file is there for one of the container's own to be mounted on.
fn is_mount_point(upper: &Root, path: &Path, status: &Stat) -> Result<bool, Error> {
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile || status.st_size != 0 {
        return Ok(false);
    }
    let file = open(upper, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW)?;
    let mut value = [0; 1];
    let mark = |file: OwnedFd| rustix::fs::fgetxattr(&file, files::MOUNT_POINT, &mut value[..]).is_ok();
    Ok(file.is_some_and(mark))
}

fn status(root: &Root, path: &Path) -> Result<Option<Stat>, Error> {
    let file = open(root, path, OFlags::PATH | OFlags::NOFOLLOW)?;
    file.map(|file| rustix::fs::fstat(file).map_err(|error| failed(path, error)))
        .transpose()
}

/// Opens what is at a path to which no link leads; none where there is no such thing.
fn open(root: &Root, path: &Path, flags: OFlags) -> Result<Option<OwnedFd>, Error> {
    match root.open_plain(path, flags) {
        Ok(file) => Ok(Some(file)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(failed(path, error)),
    }
}

fn failed(path: &Path, error: Errno) -> Error {
    Error::Read {
        path: path.to_owned(),
        source: io::Error::from(error),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Whiteouts and opaque directories need privileges: the end-to-end tests have them.
    #[test]
    fn parents_come_first_and_names_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let (upper, lower) = (directory.path().join("upper"), directory.path().join("lower"));
        for path in [
            "upper/etc",
            "upper/new/deep",
            "lower/etc",
            "lower/kept",
            "upper/was-link",
            "lower/target",
        ] {
            fs::create_dir_all(directory.path().join(path)).unwrap();
        }
        for path in [
            "upper/etc/passwd",
            "lower/etc/passwd",
            "upper/etc/zz",
            "upper/new/deep/x",
            "upper/was-link/y",
            "lower/target/y",
        ] {
            fs::write(directory.path().join(path), "").unwrap();
        }
        symlink("target", lower.join("was-link")).unwrap();
        fs::write(upper.join(OsStr::from_bytes(b"odd\n\xff")), "").unwrap();
        let mut bytes = Vec::new();
        write(&Root::at(&upper).unwrap(), &Root::at(&lower).unwrap(), &mut bytes).unwrap();
        let expected = [
            "C/etc",
            "C/etc/passwd",
            "A/etc/zz",
            "A/new",
            "A/new/deep",
            "A/new/deep/x",
            "A/odd\n\u{fffd}",
            "C/was-link",
            "A/was-link/y",
            "",
        ];
        assert_eq!(
            String::from_utf8_lossy(&bytes).split('\0').collect::<Vec<_>>(),
            expected
        );
    }
}
