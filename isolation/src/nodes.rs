//! Device nodes and the links beside them in `/dev`: those that every container has (OCI runtime specification,
//! config-linux, "Default Devices"; runtime-linux, "Dev symbolic links") and those a Spec adds.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::plan;
use crate::root::{self, Root, Target};

/// Why `/dev` could not be furnished.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot open the directory for {}", path.display())]
    Parent { path: PathBuf, source: root::Error },
    #[error("cannot make the device {}", path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error("cannot make the link {}", path.display())]
    Link { path: PathBuf, source: io::Error },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Block,
    Character,
    Fifo,
}

/// A device node to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Node {
    path: PathBuf,
    kind: Kind,
    major: u32,
    minor: u32,
    /// Permission bits.
    mode: u32,
    uid: u32,
    gid: u32,
}

/// Character devices that every container has, with their numbers from `Documentation/admin-guide/devices.txt`.
const STANDARD: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Links to make where nothing is in their place: the name, and what it says.
const LINKS: [(&str, &str); 6] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/core", "/proc/kcore"),
    ("/dev/ptmx", "pts/ptmx"),
];

impl Node {
    /// The standard nodes, then those of `linux.devices`.
    pub(crate) fn all(specified: &[LinuxDevice]) -> Result<Vec<Node>, plan::Error> {
        let standard = STANDARD.into_iter().map(|(path, major, minor)| {
            Ok(Node {
                path: path.into(),
                kind: Kind::Character,
                major,
                minor,
                mode: 0o666,
                uid: 0,
                gid: 0,
            })
        });
        standard
            .chain(specified.iter().enumerate().map(Node::new))
            .collect()
    }

    fn new((index, device): (usize, &LinuxDevice)) -> Result<Node, plan::Error> {
        let field = |name: &str| format!("linux.devices[{index}].{name}");
        let invalid = |name: &str, reason: &str| plan::Error::Invalid {
            field: field(name),
            reason: reason.into(),
        };
        let number =
            |name: &str, number: i64| u32::try_from(number).map_err(|_| invalid(name, "is no device number"));
        let path = root::inside(device.path()).filter(|path| path.file_name().is_some());
        let kind = match device.typ() {
            LinuxDeviceType::B => Kind::Block,
            LinuxDeviceType::C | LinuxDeviceType::U => Kind::Character,
            LinuxDeviceType::P => Kind::Fifo,
            LinuxDeviceType::A => return Err(invalid("type", "is not the type of one device")),
        };
        Ok(Node {
            path: path.ok_or_else(|| invalid("path", "not an absolute path below the root"))?,
            kind,
            major: number("major", device.major())?,
            minor: number("minor", device.minor())?,
            mode: device.file_mode().unwrap_or(0o666) & 0o7777,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
        })
    }

    /// Makes the node. The umask is expected to be zero. A node that is there already is left alone if it is this very
    /// device: a Spec may list a standard one.
    fn make(&self, root: &Root) -> Result<(), Error> {
        let failed = |error: Errno| Error::Make {
            path: self.path.clone(),
            source: error.into(),
        };
        let (directory, name) = parent(root, &self.path)?;
        let (kind, device) = match self.kind {
            Kind::Block => (FileType::BlockDevice, rustix::fs::makedev(self.major, self.minor)),
            Kind::Character => (
                FileType::CharacterDevice,
                rustix::fs::makedev(self.major, self.minor),
            ),
            Kind::Fifo => (FileType::Fifo, 0),
        };
        match rustix::fs::mknodat(&directory, name, kind, Mode::from_raw_mode(self.mode), device) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let status =
                    rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
                let same = FileType::from_raw_mode(status.st_mode) == kind && status.st_rdev == device;
                return if same { Ok(()) } else { Err(failed(Errno::EXIST)) };
            }
            Err(error) => return Err(failed(error)),
        }
        if self.uid == 0 && self.gid == 0 {
            return Ok(());
        }
        let (uid, gid) = (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)));
        rustix::fs::chownat(&directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)
    }
}

/// Makes the nodes and the links. `/dev/core` needs a `/proc/kcore` and `/dev/ptmx` a devpts; without them they would point
/// to nothing.
pub(crate) fn furnish(root: &Root, nodes: &[Node]) -> Result<(), Error> {
    nodes.iter().try_for_each(|node| node.make(root))?;
    for (link, content) in LINKS {
        let needs = match link {
            "/dev/core" => "proc/kcore",
            "/dev/ptmx" => "dev/pts/ptmx",
            _ => "dev",
        };
        if !root::exists(root, needs) {
            continue;
        }
        let (directory, name) = parent(root, Path::new(link))?;
        match rustix::fs::symlinkat(content, &directory, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => {
                return Err(Error::Link {
                    path: link.into(),
                    source: error.into(),
                });
            }
        }
    }
    Ok(())
}

fn parent<'p>(root: &Root, path: &'p Path) -> Result<(OwnedFd, &'p OsStr), Error> {
    let failed = |source| Error::Parent {
        path: path.into(),
        source,
    };
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed(root::Error::NotADirectory { path: path.into() }));
    };
    let directory = root.open_or_create(parent, Target::Directory).map_err(failed)?;
    Ok((directory, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_a_spec_follow_the_standard_ones() {
        let device = serde_json::from_value(serde_json::json!(
            {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o600, "gid": 5}
        ))
        .unwrap();
        let nodes = Node::all(&[device]).unwrap();
        assert_eq!(nodes.len(), STANDARD.len() + 1);
        let expected = Node {
            path: "/dev/fuse".into(),
            kind: Kind::Character,
            major: 10,
            minor: 229,
            mode: 0o600,
            uid: 0,
            gid: 5,
        };
        assert_eq!(nodes.last(), Some(&expected));
    }

    #[test]
    fn malformed_devices_are_refused() {
        let cases = [
            (("/dev/x", "a", 1), "type: is not the type of one device"),
            (("dev/x", "c", 1), "path: not an absolute path below the root"),
            (("/dev/x", "c", -1), "major: is no device number"),
        ];
        for ((path, kind, major), expected) in cases {
            let device = serde_json::from_value(serde_json::json!(
                {"path": path, "type": kind, "major": major, "minor": 1}
            ))
            .unwrap();
            let message = Node::all(&[device]).unwrap_err().to_string();
            assert_eq!(message, format!("linux.devices[0].{expected}"));
        }
    }
}
