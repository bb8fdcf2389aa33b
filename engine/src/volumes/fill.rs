//! Filling a new volume with what the image has where it is mounted, once.
//!
//! That is done while a container is started for the first time, or when files are copied into it or out of it before that,
//! where its files are: by the isolation crate, on the host or in a guest. Here is decided whether, under the volume's lock, so that of two containers that are started at once one
//! does and the other one waits. A file beside the data says that it has begun: one that was cut short is done again,
//! by whichever container is started next.

use std::fs::{self, File};
use std::path::PathBuf;

use oci_spec::runtime::Mount;
use rustix::fs::{FlockOperation, flock};

use super::{Error, Volumes};
use crate::mounts::{self, MountPoint};
use crate::path;
use crate::record::{Record, State};

/// The file that says so.
const MARK: &str = "filling";

/// Volumes that are being filled. They stay marked as such, unless it is told that they have been.
#[derive(Debug, Default)]
pub(crate) struct Filling {
    /// Their locks and marks.
    volumes: Vec<(File, PathBuf)>,
}

impl Filling {
    /// Decides which volumes of a container are to be filled, and says so in `mounts`, those of its specification.
    pub(crate) fn begin(volumes: &Volumes, record: &Record, mounts: &mut [Mount]) -> Result<Self, Error> {
        let is_new = record.state == State::Created;
        let mut filling = Self::default();
        let mut points: Vec<&MountPoint> = record.mounts.volumes().filter(|point| point.fills).collect();
        // Two containers lock in the same order.
        points.sort_by(|one, other| one.name.cmp(&other.name));
        points.dedup_by(|one, other| one.name == other.name);
        for point in points {
            let directory = volumes.directory.join(&point.name);
            let mark = directory.join(MARK);
            if !is_new && !mark.exists() {
                continue;
            }
            let lock = File::open(&directory).map_err(path::failed("open", &directory))?;
            flock(&lock, FlockOperation::LockExclusive)
                .map_err(|error| path::failed("lock", &directory)(error.into()))?;
            let data = volumes.data(&point.name);
            let is_empty = || fs::read_dir(&data).map(|mut entries| entries.next().is_none());
            if !mark.exists() && !is_empty().map_err(path::failed("list", &data))? {
                continue;
            }
            File::create(&mark).map_err(path::failed("create", &mark))?;
            filling.volumes.push((lock, mark));
            let same = mounts.iter_mut().filter(|mount| point.is(mount));
            same.for_each(mounts::add_fill);
        }
        Ok(filling)
    }

    /// They have been filled.
    pub(crate) fn done(self) -> Result<(), Error> {
        for (_lock, mark) in &self.volumes {
            fs::remove_file(mark).map_err(path::failed("remove", mark))?;
        }
        Ok(())
    }
}
