//! What is mounted in a container from outside its image: directories and files of the host, volumes, and memory.
//!
//! What a person asks for ([`Asked`], from `-v`, `--mount` and `--volumes-from`) becomes mount points, which are on the
//! container's record, and these become bind mounts of its specification. Both modes have the same; in VM mode the source of
//! each is replaced by where the guest has it (`runtime/shares.rs`).

mod mount_flag;
mod resolve;
mod volume_flag;

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{Mount, MountBuilder};
use rvm_isolation::{BELOW_OPTION, FILL_OPTION};
use serde::{Deserialize, Serialize};

pub(crate) use resolve::{Decided, make_source};

/// Where a mount comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A directory or file of the host.
    Bind,
    /// A volume.
    Volume,
    /// Memory.
    Tmpfs,
}

impl Kind {
    /// Docker's word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Volume => "volume",
            Self::Tmpfs => "tmpfs",
        }
    }
}

/// What a bind mount and the mounts below its source tell each other of what is mounted later (mount_namespaces(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Propagation {
    /// Nothing, of the mount alone.
    Private,
    /// Nothing, of those below it either.
    #[default]
    RPrivate,
    /// The container sees what the host mounts.
    Slave,
    /// Likewise, of those below it.
    RSlave,
    /// Each sees what the other mounts.
    Shared,
    /// Likewise, of those below it.
    RShared,
}

impl Propagation {
    const ALL: [Self; 6] = [
        Self::Private,
        Self::RPrivate,
        Self::Slave,
        Self::RSlave,
        Self::Shared,
        Self::RShared,
    ];

    /// mount(8)'s word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::RPrivate => "rprivate",
            Self::Slave => "slave",
            Self::RSlave => "rslave",
            Self::Shared => "shared",
            Self::RShared => "rshared",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|propagation| propagation.name() == text)
    }

    fn is_private(self) -> bool {
        matches!(self, Self::Private | Self::RPrivate)
    }
}

/// What is done with mounts below the source of a bind mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recursion {
    /// They are mounted, and read-only where the mount is.
    Enabled,
    /// They are not mounted.
    Disabled,
    /// They are mounted, and not made read-only.
    Writable,
    /// They are mounted and read-only; a kernel that cannot do that is an error.
    ReadOnly,
}

/// What a person asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Where it comes from.
    pub kind: Kind,
    /// A path of the host, or a volume's name; nothing for a new volume, and for memory.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Where it is mounted.
    pub target: String,
    /// Whether writes are refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// As it was written with `-v`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mode: String,
    /// Of a bind mount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub propagation: Option<Propagation>,
    /// Of a bind mount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recursion: Option<Recursion>,
    /// Whether a directory of the host is made if it is not there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub makes_source: bool,
    /// Whether a new volume stays empty whatever the image has there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_copy: bool,
    /// What is mounted of a volume.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subpath: String,
    /// Labels of a new volume.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Options of a tmpfs, separated by commas.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tmpfs: String,
}

impl Asked {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            source: String::new(),
            target: String::new(),
            read_only: false,
            mode: String::new(),
            propagation: None,
            recursion: None,
            makes_source: false,
            no_copy: false,
            subpath: String::new(),
            labels: BTreeMap::new(),
            tmpfs: String::new(),
        }
    }
}

/// Everything that is asked for of one container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wishes {
    /// `-v`, as text and as what it means.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub binds: Vec<String>,
    /// `--mount`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Asked>,
    /// `--volumes-from`: a container, and `:ro` or `:rw`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes_from: Vec<String>,
}

/// Something that is mounted in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountPoint {
    /// Where it comes from.
    pub kind: Kind,
    /// The volume's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// A path of the host.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub source: PathBuf,
    /// Where it is mounted.
    pub destination: PathBuf,
    /// As it was written with `-v`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mode: String,
    /// Whether writes are refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Of a bind mount.
    #[serde(default, skip_serializing_if = "is_default")]
    pub propagation: Propagation,
    /// Of a bind mount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recursion: Option<Recursion>,
    /// Whether the directory is made if it is not there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub makes_source: bool,
    /// Whether a volume that is empty gets what the image has there, when the container is started for the first time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fills: bool,
    /// What is mounted of the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subpath: Option<PathBuf>,
}

/// What is mounted in a container, on its record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mounts {
    /// In the order of mounting.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub points: Vec<MountPoint>,
    /// As it was asked for.
    #[serde(skip_serializing_if = "is_default")]
    pub wishes: Wishes,
}

impl Mounts {
    pub(crate) fn is_default(&self) -> bool {
        is_default(self)
    }

    /// Whether the container refers to this volume.
    pub(crate) fn has_volume(&self, name: &str) -> bool {
        self.volumes().any(|point| point.name == name)
    }

    /// Those that are volumes.
    pub fn volumes(&self) -> impl Iterator<Item = &MountPoint> {
        self.points.iter().filter(|point| point.kind == Kind::Volume)
    }

    /// Those that come from the host's file systems.
    pub fn shared(&self) -> impl Iterator<Item = &MountPoint> {
        self.points.iter().filter(|point| point.kind != Kind::Tmpfs)
    }
}

impl MountPoint {
    /// The bind mount that it is in a specification.
    pub(crate) fn as_mount(&self) -> Result<Mount, OciSpecError> {
        let mut options = vec![match self.recursion {
            Some(Recursion::Disabled) => "bind".to_owned(),
            _ => "rbind".to_owned(),
        }];
        options.push(self.propagation.name().to_owned());
        if self.read_only {
            options.push("ro".to_owned());
            match self.recursion {
                Some(Recursion::Disabled | Recursion::Writable) => {}
                Some(Recursion::Enabled | Recursion::ReadOnly) | None => options.push("rro".to_owned()),
            }
        }
        if let Some(subpath) = &self.subpath {
            options.push(format!("{BELOW_OPTION}{}", subpath.display()));
        }
        MountBuilder::default()
            .destination(self.destination.clone())
            .typ("bind")
            .source(self.source.clone())
            .options(options)
            .build()
    }

    /// Whether `mount` is what this has become.
    pub(crate) fn is(&self, mount: &Mount) -> bool {
        mount.typ().as_deref() == Some("bind") && *mount.destination() == self.destination
    }
}

/// Has a volume filled before `mount` is made.
pub(crate) fn add_fill(mount: &mut Mount) {
    let mut options = mount.options().clone().unwrap_or_default();
    options.push(FILL_OPTION.to_owned());
    mount.set_options(Some(options));
}

/// Whether a volume is filled before `mount` is made.
pub(crate) fn is_to_fill(mount: &Mount) -> bool {
    mount
        .options()
        .iter()
        .flatten()
        .any(|option| option == FILL_OPTION)
}

/// Mounts what is at `source`, all of it, instead of what `mount` says.
pub(crate) fn set_source(mount: &mut Mount, source: PathBuf) {
    let options = mount.options().clone().unwrap_or_default();
    let kept = options
        .into_iter()
        .filter(|option| !option.starts_with(BELOW_OPTION));
    mount.set_options(Some(kept.collect()));
    mount.set_source(Some(source));
}

/// Why nothing can be mounted as asked. Docker's words where it has some.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// It cannot be taken apart.
    #[error("invalid volume specification: '{0}'")]
    Volume(String),
    /// A part of it is empty.
    #[error("invalid spec: {0}: empty section between colons")]
    EmptySection(String),
    /// An option of `-v` that means nothing, or is there twice.
    #[error("invalid mode: {0}")]
    Mode(String),
    /// A relative or climbing destination.
    #[error("invalid mount path: '{0}' mount path must be absolute, and without \"..\"")]
    Path(String),
    /// Nothing of the container would be left.
    #[error("invalid specification: destination can't be '/'")]
    Root,
    /// The kernel's file systems.
    #[error("{0:?} cannot be mounted on: it is the kernel's, or inside it; choose another directory")]
    Reserved(String),
    /// Twice the same.
    #[error("Duplicate mount point: {0}")]
    Duplicate(String),
    /// No name of a volume.
    #[error(
        "create {0}: \"{0}\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" \
         are allowed, and at least two of them. If you intended to pass a host directory, use absolute path"
    )]
    Name(String),
    /// A field of `--mount`.
    #[error("invalid field '{0}' must be a key=value pair")]
    Field(String),
    /// A field of `--mount` that there is not.
    #[error("unexpected key '{key}' in '{field}'")]
    Key {
        /// Its name.
        key: String,
        /// All of it.
        field: String,
    },
    /// A field of `--mount` with a value that means nothing.
    #[error("invalid value for {key}: {value}")]
    Value {
        /// Its name.
        key: String,
        /// Its value.
        value: String,
    },
    /// A field of `--mount` that is not for this type.
    #[error("cannot mix '{prefix}-*' options with mount type '{kind}'")]
    Mix {
        /// Beginning of the field's name.
        prefix: &'static str,
        /// The type.
        kind: &'static str,
    },
    /// A type that there is not.
    #[error("mount type unknown: \"{0}\": there are bind, volume and tmpfs")]
    Type(String),
    /// No destination.
    #[error("target is required")]
    NoTarget,
    /// The combination makes no sense.
    #[error("invalid mount config for type \"{kind}\": {reason}")]
    Config {
        /// The type.
        kind: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// No part of a volume.
    #[error("invalid volume-subpath {0:?}: it is relative, and without \"..\"")]
    Subpath(String),
    /// Not possible in VM mode.
    #[error(
        "bind propagation {0} is not possible in VM mode: what is mounted on this machine does not reach a guest. Use --isolation container, or leave it out"
    )]
    NoPropagation(&'static str),
    /// Not possible in VM mode.
    #[error(
        "bind-recursive={0} is not possible in VM mode: what is mounted below the source does not reach the guest. Use --isolation container, or leave it out"
    )]
    NoRecursion(&'static str),
    /// Not possible in VM mode.
    #[error("{0} directories and files of this machine were asked for, and a virtual machine takes {max} at most", max = rvm_vmm::config::MAX_FILE_SYSTEMS)]
    TooMany(usize),
    /// The directory to be made could not be.
    #[error("error while creating mount source path '{path}'")]
    MakeSource {
        /// The directory.
        path: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The propagation cannot work.
    #[error("path {path} is mounted on {mount} but it is not a {wanted} mount")]
    NotPropagated {
        /// The source.
        path: String,
        /// The mount that it is in.
        mount: String,
        /// What the mount has to be.
        wanted: &'static str,
    },
    /// `--volumes-from` with a mode that means nothing.
    #[error("invalid volumes-from mode {0:?}: there are ro, rw, z and Z")]
    FromMode(String),
    /// A part of the specification lacks a required field.
    #[error("cannot assemble the specification")]
    Assemble(#[from] OciSpecError),
}

/// Where the kernel's own file systems are, and what belongs to them.
const KERNELS: [&str; 2] = ["/proc", "/sys"];

/// A destination without doubled slashes.
fn destination(text: &str) -> Result<PathBuf, MountError> {
    let path = Path::new(text);
    let climbs = path.components().any(|part| part == Component::ParentDir);
    if !path.is_absolute() || climbs || text.contains('\0') {
        return Err(MountError::Path(text.to_owned()));
    }
    let path: PathBuf = path.components().collect();
    if path == Path::new("/") {
        return Err(MountError::Root);
    }
    if path == Path::new("/dev") || KERNELS.iter().any(|above| path.starts_with(above)) {
        return Err(MountError::Reserved(text.to_owned()));
    }
    Ok(path)
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn is_empty(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_is_a_bind_mount_wherever_its_source_is() {
        let json = r#"{"kind":"volume","name":"v1","source":"/r/v1/_data","destination":"/data","read_only":true,"subpath":"a/b"}"#;
        let point: MountPoint = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&point).unwrap(), json);
        let mut mount = point.as_mount().unwrap();
        let options = |mount: &Mount| mount.options().clone().unwrap().join(",");
        assert_eq!(options(&mount), "rbind,rprivate,ro,rro,rvm-below=a/b");
        assert!(point.is(&mount) && !is_to_fill(&mount));
        add_fill(&mut mount);
        assert!(is_to_fill(&mount));
        set_source(&mut mount, "/run/0".into());
        assert_eq!(options(&mount), "rbind,rprivate,ro,rro,rvm-fill");
        assert_eq!(mount.source().as_deref(), Some(Path::new("/run/0")));
        let point = MountPoint {
            recursion: Some(Recursion::Writable),
            propagation: Propagation::RSlave,
            subpath: None,
            ..point
        };
        assert_eq!(options(&point.as_mount().unwrap()), "rbind,rslave,ro");
    }
}
