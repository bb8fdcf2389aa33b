//! What the options of a mount mean: those of the OCI runtime specification, and two of rvm's own.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::mount::{MountAttrFlags, MountPropagationFlags};
use serde::{Deserialize, Serialize};

use crate::sys;

/// Not in the specification: what the image has at the destination of a bind mount is copied to its source before.
pub const FILL_OPTION: &str = "rvm-fill";

/// Not in the specification: only what is at this path below the source is mounted, which no symbolic link leads to.
pub const BELOW_OPTION: &str = "rvm-below=";

/// What a bind mount and the mounts below its source tell each other of what is mounted later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Propagation {
    kind: PropagationKind,
    /// Whether this is so of what is mounted below it, too.
    recursive: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PropagationKind {
    Private,
    Slave,
    Shared,
}

impl Propagation {
    /// What every mount of the container is, if nothing is said.
    pub(super) const DEFAULT: Self = Self {
        kind: PropagationKind::Private,
        recursive: true,
    };

    fn parse(option: &str) -> Option<Self> {
        use PropagationKind::{Private, Shared, Slave};
        let (kind, recursive) = match option {
            "private" => (Private, false),
            "rprivate" => (Private, true),
            "slave" => (Slave, false),
            "rslave" => (Slave, true),
            "shared" => (Shared, false),
            "rshared" => (Shared, true),
            _ => return None,
        };
        Some(Self { kind, recursive })
    }

    pub(super) fn apply(self, tree: &OwnedFd) -> io::Result<()> {
        let flag = match self.kind {
            PropagationKind::Private => MountPropagationFlags::PRIVATE,
            PropagationKind::Slave => MountPropagationFlags::DOWNSTREAM,
            PropagationKind::Shared => MountPropagationFlags::SHARED,
        };
        sys::set_propagation(tree, self.recursive, flag.bits().into())
    }
}

/// What the options of a mount mean.
pub(super) struct Options {
    pub(super) bind: bool,
    pub(super) recursive: bool,
    pub(super) set: MountAttrFlags,
    pub(super) clear: MountAttrFlags,
    pub(super) set_recursive: MountAttrFlags,
    pub(super) propagation: Option<Propagation>,
    pub(super) fills: bool,
    pub(super) below: Option<PathBuf>,
    pub(super) parameters: Vec<String>,
}

impl Options {
    pub(super) fn none() -> Options {
        let (set, clear) = (MountAttrFlags::empty(), MountAttrFlags::empty());
        let set_recursive = MountAttrFlags::empty();
        Options {
            bind: false,
            recursive: false,
            set,
            clear,
            set_recursive,
            propagation: None,
            fills: false,
            below: None,
            parameters: Vec::new(),
        }
    }

    /// Whether a propagation was asked for that is not what every mount has anyway.
    pub(super) fn is_propagated(&self) -> bool {
        self.propagation
            .is_some_and(|propagation| propagation.kind != PropagationKind::Private)
    }

    /// Reads one option of the table in the OCI runtime specification, config, "Linux mount options". What is not in it
    /// is the file system's own.
    pub(super) fn add(&mut self, option: &str) -> Result<(), String> {
        if let Some((flag, on)) = attribute(option) {
            let (to, from) = if on {
                (&mut self.set, &mut self.clear)
            } else {
                (&mut self.clear, &mut self.set)
            };
            to.insert(flag);
            from.remove(flag);
            return Ok(());
        }
        if let Some(propagation) = Propagation::parse(option) {
            self.propagation = Some(propagation);
            return Ok(());
        }
        if let Some(below) = option.strip_prefix(BELOW_OPTION) {
            self.below = Some(below.into());
            return Ok(());
        }
        match option {
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive) = (true, true),
            "rro" => self.set_recursive.insert(MountAttrFlags::MOUNT_ATTR_RDONLY),
            "rnosuid" => self.set_recursive.insert(MountAttrFlags::MOUNT_ATTR_NOSUID),
            "rnodev" => self.set_recursive.insert(MountAttrFlags::MOUNT_ATTR_NODEV),
            "rnoexec" => self.set_recursive.insert(MountAttrFlags::MOUNT_ATTR_NOEXEC),
            FILL_OPTION => self.fills = true,
            "defaults" => {}
            "unbindable" | "runbindable" | "remount" | "tmpcopyup" | "idmap" | "ridmap" | "rrw" | "rsuid"
            | "rdev" | "rexec" | "ratime" | "rnoatime" | "rrelatime" | "rstrictatime" | "rdiratime"
            | "rnodiratime" | "rnosymfollow" | "rsymfollow" => {
                return Err(format!("{option:?}"));
            }
            own => self.parameters.push(own.into()),
        }
        Ok(())
    }
}

/// The attribute that an option sets (`true`) or clears.
fn attribute(option: &str) -> Option<(MountAttrFlags, bool)> {
    Some(match option {
        "ro" => (MountAttrFlags::MOUNT_ATTR_RDONLY, true),
        "rw" => (MountAttrFlags::MOUNT_ATTR_RDONLY, false),
        "nosuid" => (MountAttrFlags::MOUNT_ATTR_NOSUID, true),
        "suid" => (MountAttrFlags::MOUNT_ATTR_NOSUID, false),
        "nodev" => (MountAttrFlags::MOUNT_ATTR_NODEV, true),
        "dev" => (MountAttrFlags::MOUNT_ATTR_NODEV, false),
        "noexec" => (MountAttrFlags::MOUNT_ATTR_NOEXEC, true),
        "exec" => (MountAttrFlags::MOUNT_ATTR_NOEXEC, false),
        "nodiratime" => (MountAttrFlags::MOUNT_ATTR_NODIRATIME, true),
        "diratime" => (MountAttrFlags::MOUNT_ATTR_NODIRATIME, false),
        "noatime" => (MountAttrFlags::MOUNT_ATTR_NOATIME, true),
        "strictatime" => (MountAttrFlags::MOUNT_ATTR_STRICTATIME, true),
        "atime" | "relatime" => (MountAttrFlags::MOUNT_ATTR_NOATIME, false),
        "norelatime" | "nostrictatime" => (MountAttrFlags::MOUNT_ATTR_STRICTATIME, false),
        "nosymfollow" => (MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW, true),
        "symfollow" => (MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW, false),
        _ => return None,
    })
}
