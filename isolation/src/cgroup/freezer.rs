//! Stopping a cgroup's processes where they stand, and letting them go on (`cgroup.freeze`).
//!
//! A frozen process takes nothing in but `SIGKILL`, so that a frozen cgroup can still be killed and removed.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Error, wait_for, write};

/// How long processes may take to stop. Each does on its next way out of the kernel; one that waits for a device
/// uninterruptibly does not before that has answered.
pub(super) const FROZEN_WITHIN: Duration = Duration::from_secs(5);

/// Freezes all processes of the cgroup at `path` and of its descendants; they stand still when this returns. A process that
/// is born there or moves there later is frozen as well.
///
/// # Errors
/// [`Error::NotFrozen`] after five seconds, with the processes let go on; [`Error::Write`], [`Error::Read`].
pub fn freeze(path: &Path) -> Result<(), Error> {
    set(path, "1")?;
    let frozen = wait_for(path, ("frozen", 1), Instant::now() + FROZEN_WITHIN);
    if let Ok(true) = frozen {
        return Ok(());
    }
    // What went wrong first is worth more than that this cannot be done either.
    let _ = thaw(path);
    frozen.and(Err(Error::NotFrozen { path: path.into() }))
}

/// Lets the processes of a frozen cgroup go on. One that is not frozen is left as it is.
///
/// # Errors
/// [`Error::Write`].
pub fn thaw(path: &Path) -> Result<(), Error> {
    set(path, "0")
}

fn set(path: &Path, value: &str) -> Result<(), Error> {
    write(&path.join("cgroup.freeze"), value).map_err(|source: io::Error| Error::Write {
        path: path.into(),
        file: "cgroup.freeze".into(),
        value: value.into(),
        source,
    })
}
