//! From what is asked for to what is mounted in a new container, which makes what is not there: volumes, and directories of
//! the host where `-v` names them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};

use super::{Asked, Kind, MountError, MountPoint, Mounts, Propagation, Recursion, Wishes, destination};
use crate::engine::{Engine, Error, Request};
use crate::record::Isolation;
use crate::volumes::Volumes;

/// What is mounted in a new container.
pub(crate) struct Decided {
    pub(crate) mounts: Mounts,
    /// Directories in memory, and their options.
    pub(crate) tmpfs: BTreeMap<String, String>,
    /// Volumes without a name that were made for it.
    made: Vec<String>,
    /// No volume is removed as long as this is there: until the container's record refers to them.
    _stay: Option<File>,
}

impl Decided {
    /// Removes what was made for a container that came to nothing.
    pub(crate) fn discard(&self, volumes: &Volumes) {
        for name in &self.made {
            // It is one that nobody uses, if it stays.
            let _ = volumes.remove_new(name);
        }
    }
}

/// What is mounted, before anything is made.
#[derive(Default)]
struct Plan {
    points: Vec<MountPoint>,
    labels: BTreeMap<PathBuf, BTreeMap<String, String>>,
    tmpfs: BTreeMap<String, String>,
}

impl Engine {
    /// Decides what is mounted in a new container of an image with these volumes.
    pub(crate) fn decide_mounts(&self, request: &Request, of_image: &[String]) -> Result<Decided, Error> {
        let mut plan = Plan {
            tmpfs: request.options.given.tmpfs.clone(),
            ..Plan::default()
        };
        plan.add_asked(&request.mounts)?;
        // Before any lock: looking a container up may put right what a dead one left.
        // Of two that have something on one place the later one counts, as with Docker.
        for text in request.mounts.volumes_from.iter().rev() {
            self.add_from(&mut plan, text)?;
        }
        for text in of_image {
            let path = destination(text)?;
            if !plan.has(&path) {
                plan.points.push(MountPoint {
                    fills: true,
                    ..new_point(Kind::Volume, path)
                });
            }
        }
        // Each before those below it.
        plan.points
            .sort_by_key(|point| point.destination.components().count());
        check(request.isolation, &plan.points)?;
        let mut decided = Decided {
            mounts: Mounts {
                points: Vec::new(),
                wishes: request.mounts.clone(),
            },
            tmpfs: plan.tmpfs,
            made: Vec::new(),
            _stay: None,
        };
        if plan.points.iter().any(|point| point.kind == Kind::Volume) {
            decided._stay = Some(self.volumes()?.stay()?);
        }
        for mut point in plan.points {
            let labels = plan.labels.remove(&point.destination).unwrap_or_default();
            match self.make(&mut point, labels) {
                Ok(made) => decided.made.extend(made),
                Err(error) => {
                    if let Ok(volumes) = self.volumes() {
                        decided.discard(&volumes);
                    }
                    return Err(error);
                }
            }
            decided.mounts.points.push(point);
        }
        Ok(decided)
    }

    /// Adds what another container has mounted.
    fn add_from(&self, plan: &mut Plan, text: &str) -> Result<(), Error> {
        let (wanted, read_only) = match text.split_once(':') {
            None | Some((_, "rw" | "z" | "Z")) => (text.split(':').next().unwrap_or(text), false),
            Some((wanted, "ro")) => (wanted, true),
            Some((_, mode)) => return Err(MountError::FromMode(mode.to_owned()).into()),
        };
        let record = self.container(wanted)?;
        for point in record.mounts.shared() {
            if !plan.has(&point.destination) {
                plan.points.push(MountPoint {
                    read_only: read_only || point.read_only,
                    ..point.clone()
                });
            }
        }
        Ok(())
    }

    /// Makes what a mount point comes from, if it is not there; the answer is a volume without a name that was made.
    fn make(
        &self,
        point: &mut MountPoint,
        labels: BTreeMap<String, String>,
    ) -> Result<Option<String>, Error> {
        match point.kind {
            Kind::Tmpfs => Ok(None),
            Kind::Bind => {
                make_source(point)?;
                Ok(None)
            }
            Kind::Volume => {
                let volumes = self.volumes()?;
                let is_anonymous = point.name.is_empty();
                let volume = if is_anonymous {
                    volumes.create_anonymous(labels)?
                } else {
                    volumes.create(&point.name, labels)?
                };
                point.source = volumes.data(&volume.name);
                point.name.clone_from(&volume.name);
                Ok(is_anonymous.then_some(volume.name))
            }
        }
    }
}

/// Makes the directory that is mounted, where that is wanted.
pub(crate) fn make_source(point: &MountPoint) -> Result<(), MountError> {
    if !point.makes_source || point.source.exists() {
        return Ok(());
    }
    fs::create_dir_all(&point.source).map_err(|source| MountError::MakeSource {
        path: point.source.display().to_string(),
        source,
    })
}

fn new_point(kind: Kind, destination: PathBuf) -> MountPoint {
    MountPoint {
        kind,
        name: String::new(),
        source: PathBuf::new(),
        destination,
        mode: String::new(),
        read_only: false,
        propagation: Propagation::RPrivate,
        recursion: None,
        makes_source: false,
        fills: false,
        subpath: None,
    }
}

impl Plan {
    fn has(&self, path: &Path) -> bool {
        self.points.iter().any(|point| point.destination == path)
            || self.tmpfs.keys().any(|text| is_same(text, path))
    }

    fn add_asked(&mut self, wishes: &Wishes) -> Result<(), MountError> {
        let binds = wishes.binds.iter().map(|text| Asked::from_volume_flag(text));
        let binds = binds.collect::<Result<Vec<_>, _>>()?;
        for asked in binds.iter().chain(&wishes.mounts) {
            let path = destination(&asked.target)?;
            if self.has(&path) {
                return Err(MountError::Duplicate(path.display().to_string()));
            }
            let mut point = point(asked, path)?;
            if asked.kind == Kind::Tmpfs {
                let text = point.destination.display().to_string();
                point.read_only = asked.read_only;
                self.points.push(point);
                self.tmpfs.insert(text, asked.tmpfs.clone());
                continue;
            }
            if !asked.labels.is_empty() {
                self.labels
                    .insert(point.destination.clone(), asked.labels.clone());
            }
            self.points.push(point);
        }
        Ok(())
    }
}

fn is_same(text: &str, path: &Path) -> bool {
    Path::new(text).components().eq(path.components())
}

fn point(asked: &Asked, path: PathBuf) -> Result<MountPoint, MountError> {
    let mut point = MountPoint {
        mode: asked.mode.clone(),
        read_only: asked.read_only,
        propagation: asked.propagation.unwrap_or_default(),
        recursion: asked.recursion,
        makes_source: asked.makes_source,
        ..new_point(asked.kind, path)
    };
    match asked.kind {
        Kind::Tmpfs => {}
        Kind::Bind => {
            point.source = source(&asked.source)?;
            if !asked.makes_source && !point.source.exists() {
                return Err(MountError::Config {
                    kind: "bind",
                    reason: format!("bind source path does not exist: {}", asked.source),
                });
            }
        }
        Kind::Volume => {
            if !asked.source.is_empty() && !crate::names::is_valid_name(&asked.source) {
                return Err(MountError::Name(asked.source.clone()));
            }
            point.name.clone_from(&asked.source);
            point.subpath = subpath(&asked.subpath)?;
            // A part of a volume is somebody's already.
            point.fills = !asked.no_copy && point.subpath.is_none();
        }
    }
    Ok(point)
}

fn source(text: &str) -> Result<PathBuf, MountError> {
    let path = Path::new(text);
    if !path.is_absolute() || text.contains('\0') {
        return Err(MountError::Config {
            kind: "bind",
            reason: format!("invalid mount path: '{text}' mount path must be absolute"),
        });
    }
    Ok(path.components().collect())
}

fn subpath(text: &str) -> Result<Option<PathBuf>, MountError> {
    if text.is_empty() {
        return Ok(None);
    }
    let path = Path::new(text);
    let is_fine = path
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !is_fine || text.contains('\0') {
        return Err(MountError::Subpath(text.to_owned()));
    }
    Ok(Some(path.components().collect()))
}

/// Refuses what this way of isolation cannot do.
fn check(isolation: Isolation, points: &[MountPoint]) -> Result<(), MountError> {
    match isolation {
        Isolation::Container => points.iter().try_for_each(check_propagation),
        Isolation::Vm => {
            let shared = points.iter().filter(|point| point.kind != Kind::Tmpfs);
            for point in shared.clone() {
                if !point.propagation.is_private() {
                    return Err(MountError::NoPropagation(point.propagation.name()));
                }
                match point.recursion {
                    Some(Recursion::Enabled) => return Err(MountError::NoRecursion("enabled")),
                    Some(Recursion::Writable) => return Err(MountError::NoRecursion("writable")),
                    Some(Recursion::ReadOnly) => return Err(MountError::NoRecursion("readonly")),
                    Some(Recursion::Disabled) | None => {}
                }
            }
            let count = shared.count();
            if count > rvm_vmm::config::MAX_FILE_SYSTEMS {
                return Err(MountError::TooMany(count));
            }
            Ok(())
        }
    }
}

/// What is mounted on a private mount of the host reaches nobody.
fn check_propagation(point: &MountPoint) -> Result<(), MountError> {
    let wanted = match point.propagation {
        Propagation::Private | Propagation::RPrivate => return Ok(()),
        Propagation::Slave | Propagation::RSlave => "shared or slave",
        Propagation::Shared | Propagation::RShared => "shared",
    };
    let path = fs::canonicalize(&point.source).unwrap_or_else(|_| point.source.clone());
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let (mount, optional) = mount_of(&table, &path);
    let has = |name: &str| optional.iter().any(|field| field.starts_with(name));
    if has("shared:") || (wanted != "shared" && has("master:")) {
        return Ok(());
    }
    Err(MountError::NotPropagated {
        path: point.source.display().to_string(),
        mount: mount.to_owned(),
        wanted,
    })
}

/// The mount that a path is in, by `/proc/self/mountinfo` (proc(5)), and its optional fields.
fn mount_of<'a>(table: &'a str, path: &Path) -> (&'a str, Vec<&'a str>) {
    let mut found = ("/", Vec::new());
    for line in table.lines() {
        let mut fields = line.split(' ');
        let Some(point) = fields.nth(4) else { continue };
        // Of several mounts on one directory the last one counts.
        if path.starts_with(point) && point.len() >= found.0.len() {
            found = (point, fields.skip(1).take_while(|field| *field != "-").collect());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_twice_is_refused() {
        let wishes = |binds: &[&str]| Wishes {
            binds: binds.iter().map(|text| (*text).to_owned()).collect(),
            ..Wishes::default()
        };
        let plan = |binds: &[&str]| {
            let mut plan = Plan::default();
            plan.tmpfs.insert("/run//lock/".into(), String::new());
            plan.add_asked(&wishes(binds))
                .map(|()| plan.points)
                .map_err(|error| error.to_string())
        };
        assert_eq!(plan(&["a1:/x", "/srv:/x/y"]).unwrap().len(), 2);
        for (binds, expected) in [
            (&["a1:/x", "/srv:/x/"][..], "Duplicate mount point: /x"),
            (&["/run/lock"], "Duplicate mount point: /run/lock"),
            (&["a1:/"], "invalid specification: destination can't be '/'"),
            (
                &["/srv:x"],
                "invalid mount path: 'x' mount path must be absolute, and without \"..\"",
            ),
            (
                &["/srv:/proc/x"],
                "\"/proc/x\" cannot be mounted on: it is the kernel's, or inside it; choose another directory",
            ),
        ] {
            assert_eq!(plan(binds).unwrap_err(), expected);
        }
        assert!(
            plan(&["a/b:/x"])
                .unwrap_err()
                .contains("includes invalid characters")
        );
    }

    #[test]
    fn a_path_is_in_the_deepest_mount() {
        let table = "22 1 8:1 / / rw shared:1 - ext4 /dev/a rw\n\
                     23 22 8:2 / /srv rw - ext4 /dev/b rw\n\
                     24 22 8:3 / /mnt rw master:1 - ext4 /dev/c rw\n";
        assert_eq!(mount_of(table, Path::new("/etc")), ("/", vec!["shared:1"]));
        assert_eq!(mount_of(table, Path::new("/srv/x")), ("/srv", vec![]));
        assert_eq!(mount_of(table, Path::new("/mnt")), ("/mnt", vec!["master:1"]));
    }

    #[test]
    fn a_part_of_a_volume_is_below_it() {
        assert_eq!(subpath("a/./b").unwrap(), Some("a/b".into()));
        for text in ["/a", "../a", "a/../../b", "a\0"] {
            assert!(subpath(text).is_err(), "{text}");
        }
    }
}
