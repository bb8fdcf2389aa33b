//! What is mounted inside the root file system, with the new mount API: options of a Spec become parameters of a file
//! system context, mounts are made detached and then attached to a directory that was opened beforehand.
//!
//! The image decides where its symbolic links point, so no path inside it is ever given to the kernel to resolve as
//! it likes: everything goes through [`Root`], which stays inside and refuses the links of /proc.

mod options;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime as oci;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};
use serde::{Deserialize, Serialize};

use crate::plan;
use crate::root::{self, Root, Target};
use crate::sys;
pub use options::{BELOW_OPTION, FILL_OPTION};
use options::{Options, Propagation};

/// Why a mount could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot open the bind mount's source {}", path.display())]
    Source { path: PathBuf, source: io::Error },
    #[error("cannot make the mount point {}", path.display())]
    MountPoint { path: PathBuf, source: root::Error },
    #[error("cannot set the option {option:?} of the {kind} for {}", path.display())]
    Option {
        path: PathBuf,
        kind: String,
        option: String,
        source: io::Error,
    },
    #[error("cannot make the {kind} for {}", path.display())]
    Make {
        path: PathBuf,
        kind: String,
        source: io::Error,
    },
    #[error("cannot mount on {}", path.display())]
    Attach { path: PathBuf, source: io::Error },
    #[error("cannot protect {}", path.display())]
    Protect { path: PathBuf, source: io::Error },
    #[error("cannot open {} to protect it", path.display())]
    ProtectOpen { path: PathBuf, source: root::Error },
    #[error("/dev/null is not the null device, so that nothing can be masked with it")]
    NotNull,
}

/// A mount of a Spec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mount {
    destination: PathBuf,
    kind: Kind,
    /// `MOUNT_ATTR_*` to set and to clear on the mount itself.
    set: u32,
    clear: u32,
    /// The same for all mounts below it as well; bind mounts only.
    set_recursive: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Bind {
        source: PathBuf,
        /// What is mounted of it, if that is not all: no link leads there.
        below: Option<PathBuf>,
        recursive: bool,
        propagation: Propagation,
        /// Whether what the image has at the destination is copied to the source first.
        fills: bool,
    },
    FileSystem {
        name: String,
        source: String,
        parameters: Vec<String>,
    },
}

/// File systems that the kernel makes out of nothing. Those that parse what lies on a device are not for mounting here.
const FILE_SYSTEMS: [&str; 7] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"];

impl Mount {
    /// Reads entry `index` of `mounts`.
    pub(crate) fn new(index: usize, mount: &oci::Mount) -> Result<Mount, plan::Error> {
        let field = |name: &str| format!("mounts[{index}].{name}");
        let unsupported = |name: &str, what: &str| plan::Error::Unsupported {
            field: field(name),
            what: what.into(),
        };
        let mapped = mount.uid_mappings().is_some() || mount.gid_mappings().is_some();
        if mapped {
            return Err(unsupported("uidMappings", "an ID-mapped mount"));
        }
        let destination = root::inside(mount.destination())
            .filter(|path| path.as_os_str() != "/")
            .ok_or_else(|| invalid(field("destination"), "not an absolute path below the root"))?;
        let mut read = Options::none();
        for option in mount.options().iter().flatten() {
            read.add(option).map_err(|what| unsupported("options", &what))?;
        }
        let name = mount.typ().as_deref().unwrap_or("none");
        let is_bind = read.bind || name == "bind";
        if !is_bind && read.set_recursive != MountAttrFlags::empty() {
            return Err(unsupported(
                "options",
                "a recursive option for a mount without mounts below it",
            ));
        }
        let kind = if is_bind {
            if let Some(parameter) = read.parameters.first() {
                return Err(unsupported("options", &format!("{parameter:?} for a bind mount")));
            }
            let source = mount.source().as_deref().filter(|path| path.is_absolute());
            let source = source
                .ok_or_else(|| invalid(field("source"), "not an absolute path"))?
                .into();
            Kind::Bind {
                source,
                below: read.below,
                recursive: read.recursive,
                propagation: read.propagation.unwrap_or(Propagation::DEFAULT),
                fills: read.fills,
            }
        } else if read.fills || read.below.is_some() || read.is_propagated() {
            return Err(unsupported("options", "an option of bind mounts for another one"));
        } else if FILE_SYSTEMS.contains(&name) {
            // On a unified hierarchy "cgroup" can only mean version 2.
            let name = if name == "cgroup" { "cgroup2" } else { name };
            let source = mount.source().as_deref().and_then(Path::to_str).unwrap_or(name);
            Kind::FileSystem {
                name: name.into(),
                source: source.into(),
                parameters: read.parameters,
            }
        } else {
            return Err(unsupported("type", &format!("a file system of type {name:?}")));
        };
        Ok(Mount {
            destination,
            kind,
            set: read.set.bits(),
            clear: read.clear.bits(),
            set_recursive: read.set_recursive.bits(),
        })
    }

    /// Where it is mounted.
    pub(crate) fn destination(&self) -> &Path {
        &self.destination
    }

    /// Whether the container's file system shows something of the host here.
    pub(crate) fn is_bind(&self) -> bool {
        matches!(self.kind, Kind::Bind { .. })
    }

    /// The directory that is to be filled with what the image has at the destination, if there is one.
    pub(crate) fn to_fill(&self) -> Result<Option<OwnedFd>, Error> {
        match &self.kind {
            Kind::Bind {
                source,
                below,
                fills: true,
                ..
            } => open_source(source, below.as_deref()).map(Some),
            _ => Ok(None),
        }
    }

    /// Makes a bind mount, not attached anywhere yet, while the host's files can still be reached and its mounts still tell
    /// each other what is mounted.
    pub(crate) fn open_source(&self) -> Result<Option<OwnedFd>, Error> {
        let Kind::Bind {
            source,
            below,
            recursive,
            propagation,
            ..
        } = &self.kind
        else {
            return Ok(None);
        };
        let failed = |source_error: io::Error| Error::Source {
            path: source.clone(),
            source: source_error,
        };
        let mut flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        if *recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let file = open_source(source, below.as_deref())?;
        let tree = rustix::mount::open_tree(&file, "", flags).map_err(|error| failed(error.into()))?;
        propagation.apply(&tree).map_err(failed)?;
        sys::mount_setattr(&tree, false, self.set.into(), clear_mask(self.set, self.clear))
            .map_err(failed)?;
        if self.set_recursive != 0 {
            let (set, clear) = (self.set_recursive, clear_mask(self.set_recursive, 0));
            sys::mount_setattr(&tree, true, set.into(), clear).map_err(failed)?;
        }
        Ok(Some(tree))
    }

    /// Attaches the mount; `source` is what [`Mount::open_source`] returned.
    pub(crate) fn attach(&self, root: &Root, source: Option<OwnedFd>) -> Result<(), Error> {
        let path = &self.destination;
        let (mount, target) = match (&self.kind, source) {
            (
                Kind::FileSystem {
                    name,
                    source,
                    parameters,
                },
                _,
            ) => {
                let mode = mode_of(root, path, name, parameters)?;
                let parameters: Vec<String> = parameters.iter().cloned().chain(mode).collect();
                let mount = self.make(name, source, &parameters)?;
                // A link would let the image choose which directory hides behind the real /proc.
                let strict = matches!(name.as_str(), "proc" | "sysfs");
                (
                    mount,
                    if strict {
                        Target::RealDirectory
                    } else {
                        Target::Directory
                    },
                )
            }
            (Kind::Bind { .. }, Some(tree)) => {
                let status = rustix::fs::fstat(&tree).map_err(|error| Error::Source {
                    path: path.clone(),
                    source: error.into(),
                })?;
                let directory = FileType::from_raw_mode(status.st_mode) == FileType::Directory;
                (
                    tree,
                    if directory {
                        Target::Directory
                    } else {
                        Target::File
                    },
                )
            }
            (Kind::Bind { source, .. }, None) => {
                let missing = io::Error::from(io::ErrorKind::NotFound);
                return Err(Error::Source {
                    path: source.clone(),
                    source: missing,
                });
            }
        };
        let point = root
            .open_or_create(path, target)
            .map_err(|source| Error::MountPoint {
                path: path.clone(),
                source,
            })?;
        attach(mount, point).map_err(|source| Error::Attach {
            path: path.clone(),
            source,
        })
    }

    fn make(&self, name: &str, source: &str, parameters: &[String]) -> Result<OwnedFd, Error> {
        let failed = |error: rustix::io::Errno| Error::Make {
            path: self.destination.clone(),
            kind: name.into(),
            source: error.into(),
        };
        let context = rustix::mount::fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed)?;
        rustix::mount::fsconfig_set_string(&context, "source", source).map_err(failed)?;
        for parameter in parameters {
            let set = match parameter.split_once('=') {
                Some((key, value)) => rustix::mount::fsconfig_set_string(&context, key, value),
                None => rustix::mount::fsconfig_set_flag(&context, parameter.as_str()),
            };
            set.map_err(|error| Error::Option {
                path: self.destination.clone(),
                kind: name.into(),
                option: parameter.clone(),
                source: error.into(),
            })?;
        }
        rustix::mount::fsconfig_create(&context).map_err(failed)?;
        let attributes = MountAttrFlags::from_bits_retain(self.set);
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed)
    }
}

/// Opens the source of a bind mount, or what is below it. Whoever writes there is not to choose what that is.
fn open_source(source: &Path, below: Option<&Path>) -> Result<OwnedFd, Error> {
    let failed = |path: &Path, error: rustix::io::Errno| Error::Source {
        path: path.to_owned(),
        source: error.into(),
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let top = rustix::fs::open(source, flags, Mode::empty()).map_err(|error| failed(source, error))?;
    let Some(below) = below else {
        return Ok(top);
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(&top, below, flags, Mode::empty(), resolve)
        .map_err(|error| failed(&source.join(below), error))
}

/// A tmpfs of which nobody says so has the mode of the directory below it, as with runc: not everybody may write where
/// only root could.
fn mode_of(root: &Root, path: &Path, name: &str, parameters: &[String]) -> Result<Option<String>, Error> {
    if name != "tmpfs" || parameters.iter().any(|parameter| parameter.starts_with("mode=")) {
        return Ok(None);
    }
    let failed = |source| Error::MountPoint {
        path: path.to_owned(),
        source,
    };
    let Some(found) = root.open(path).map_err(failed)? else {
        return Ok(None);
    };
    let status = rustix::fs::fstat(&found).map_err(|error| Error::Attach {
        path: path.to_owned(),
        source: error.into(),
    })?;
    Ok(Some(format!("mode={:o}", status.st_mode & 0o7777)))
}

fn invalid(field: String, reason: &str) -> plan::Error {
    plan::Error::Invalid {
        field,
        reason: reason.into(),
    }
}

/// `mount_setattr` changes the access time mode only if its whole mask is cleared along with it.
fn clear_mask(set: u32, clear: u32) -> u64 {
    let modes = (MountAttrFlags::MOUNT_ATTR_NOATIME | MountAttrFlags::MOUNT_ATTR_STRICTATIME).bits();
    let mask = MountAttrFlags::MOUNT_ATTR__ATIME.bits();
    u64::from(if (set | clear) & modes == 0 {
        clear & !mask
    } else {
        clear | mask
    })
}

/// Lets the open file `file` appear at `point` as well.
pub(crate) fn bind(file: impl AsFd, point: impl AsFd) -> io::Result<()> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    attach(rustix::mount::open_tree(file, "", flags)?, point)
}

/// Puts a mount, which is nowhere as yet, at `point`.
pub(crate) fn attach(mount: impl AsFd, point: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", point, "", flags)?)
}

/// Hides `paths`: a directory behind an empty, read-only tmpfs, anything else behind the null device. A path that is not
/// there needs no hiding.
pub(crate) fn mask(root: &Root, paths: &[PathBuf]) -> Result<(), Error> {
    let mut null = None;
    let mut empty = None;
    for path in paths {
        let failed = |source| Error::Protect {
            path: path.clone(),
            source,
        };
        let Some(target) = open_to_protect(root, path)? else {
            continue;
        };
        let status = rustix::fs::fstat(&target).map_err(|error| failed(error.into()))?;
        let cover = if FileType::from_raw_mode(status.st_mode) == FileType::Directory {
            match &empty {
                // An attached mount can be copied, a detached one cannot.
                Some(first) => clone_tree(first, false).map_err(failed)?,
                None => make_empty().map_err(failed)?,
            }
        } else {
            if null.is_none() {
                null = Some(open_null(root)?);
            }
            null.as_ref().map_or(Err(Error::NotNull), |null| {
                clone_tree(null, false).map_err(failed)
            })?
        };
        attach(&cover, &target).map_err(failed)?;
        if FileType::from_raw_mode(status.st_mode) == FileType::Directory {
            empty.get_or_insert(cover);
        }
    }
    Ok(())
}

/// Makes `paths` read-only, with everything mounted below them.
pub(crate) fn make_read_only(root: &Root, paths: &[PathBuf]) -> Result<(), Error> {
    for path in paths {
        let failed = |source| Error::Protect {
            path: path.clone(),
            source,
        };
        let Some(target) = open_to_protect(root, path)? else {
            continue;
        };
        let tree = clone_tree(&target, true).map_err(failed)?;
        let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY.bits().into();
        sys::mount_setattr(&tree, true, read_only, 0).map_err(failed)?;
        attach(&tree, &target).map_err(failed)?;
    }
    Ok(())
}

/// Makes the root mount read-only; what is mounted on it stays as it is.
pub(crate) fn make_root_read_only(root: &Root) -> Result<(), Error> {
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY.bits().into();
    sys::mount_setattr(root.directory(), false, read_only, 0).map_err(|source| Error::Protect {
        path: "/".into(),
        source,
    })
}

fn open_to_protect(root: &Root, path: &Path) -> Result<Option<OwnedFd>, Error> {
    root.open(path).map_err(|source| Error::ProtectOpen {
        path: path.into(),
        source,
    })
}

fn clone_tree(tree: impl AsFd, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(rustix::mount::open_tree(tree, "", flags)?)
}

fn make_empty() -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "nr_inodes", "1")?;
    rustix::mount::fsconfig_set_string(&context, "size", "4k")?;
    rustix::mount::fsconfig_set_string(&context, "mode", "755")?;
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

/// An image could have put anything where the null device belongs, if nothing was mounted on /dev (CVE-2025-31133).
fn open_null(root: &Root) -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let null = rustix::fs::openat(root.directory(), "dev/null", flags, Mode::empty()).map_err(|error| {
        Error::Protect {
            path: "/dev/null".into(),
            source: error.into(),
        }
    })?;
    let status = rustix::fs::fstat(&null).map_err(|error| Error::Protect {
        path: "/dev/null".into(),
        source: error.into(),
    })?;
    let is_null = FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice
        && status.st_rdev == rustix::fs::makedev(1, 3);
    if is_null { Ok(null) } else { Err(Error::NotNull) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: serde_json::Value) -> Result<Mount, String> {
        let mount = serde_json::from_value(json).unwrap();
        Mount::new(0, &mount).map_err(|error| error.to_string())
    }

    #[test]
    fn options_are_attributes_or_parameters() {
        let mount = read(serde_json::json!({
            "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "noexec", "exec", "strictatime", "mode=755", "size=65536k"],
        }))
        .unwrap();
        let expected = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_STRICTATIME;
        assert_eq!(mount.set, expected.bits());
        assert_eq!(mount.clear, MountAttrFlags::MOUNT_ATTR_NOEXEC.bits());
        let parameters = vec!["mode=755".to_owned(), "size=65536k".to_owned()];
        assert_eq!(
            mount.kind,
            Kind::FileSystem {
                name: "tmpfs".into(),
                source: "tmpfs".into(),
                parameters
            }
        );
    }

    #[test]
    fn bind_mounts_are_recognised_by_type_or_option() {
        let cases = [
            (serde_json::json!({"type": "bind"}), false),
            (serde_json::json!({"options": ["bind", "ro"]}), false),
            (
                serde_json::json!({"type": "none", "options": ["rbind", "rprivate"]}),
                true,
            ),
        ];
        for (mut json, recursive) in cases {
            json["destination"] = "/etc//hosts/".into();
            json["source"] = "/run/hosts".into();
            let mount = read(json).unwrap();
            assert_eq!(
                mount.kind,
                Kind::Bind {
                    source: "/run/hosts".into(),
                    below: None,
                    recursive,
                    propagation: Propagation::DEFAULT,
                    fills: false,
                }
            );
            assert_eq!(mount.destination, Path::new("/etc/hosts"));
        }
    }

    #[test]
    fn what_cannot_be_mounted_is_refused() {
        let cases = [
            (
                serde_json::json!({"destination": "/a", "type": "ext4", "source": "/dev/sda"}),
                "mounts[0].type: a file system of type \"ext4\" is not supported",
            ),
            (
                serde_json::json!({"destination": "/a", "type": "bind", "source": "b"}),
                "mounts[0].source: not an absolute path",
            ),
            (
                serde_json::json!({"destination": "a", "type": "tmpfs"}),
                "mounts[0].destination: not an absolute path below the root",
            ),
            (
                serde_json::json!({"destination": "/a/../..", "type": "tmpfs"}),
                "mounts[0].destination: not an absolute path below the root",
            ),
            (
                serde_json::json!({"destination": "/", "type": "tmpfs"}),
                "mounts[0].destination: not an absolute path below the root",
            ),
            (
                serde_json::json!({"destination": "/a", "type": "tmpfs", "options": ["rshared"]}),
                "mounts[0].options: an option of bind mounts for another one is not supported",
            ),
            (
                serde_json::json!({"destination": "/a", "type": "bind", "source": "/b", "options": ["size=1"]}),
                "mounts[0].options: \"size=1\" for a bind mount is not supported",
            ),
        ];
        for (json, expected) in cases {
            assert_eq!(read(json).unwrap_err(), expected);
        }
    }

    #[test]
    fn the_access_time_mode_is_cleared_as_a_whole() {
        let (noatime, mask) = (
            MountAttrFlags::MOUNT_ATTR_NOATIME.bits(),
            MountAttrFlags::MOUNT_ATTR__ATIME.bits(),
        );
        assert_eq!(clear_mask(noatime, 0), u64::from(mask));
        assert_eq!(clear_mask(MountAttrFlags::MOUNT_ATTR_RDONLY.bits(), 0), 0);
        assert_eq!(clear_mask(0, noatime), u64::from(mask));
    }
}
