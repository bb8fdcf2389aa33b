//! What the machine itself did meanwhile: a fixed piece of work on the host, without any isolation, in every round of every suite
//! beside the subjects and timed by the same clock.
//!
//! Two reports of the same are apart where the machine was slower during one of them. This tells by how much, so that
//! [`super::diff`] does not take it for a change. It is the probe, as a process of the host's: it computes, asks the kernel,
//! starts processes and touches memory; for the suites of disks it writes and waits for the disk that containers are on.

use std::process::{Command, Stdio};

use super::catalogue::CONTROL;
use super::command::time;
use super::plan::Suite;
use super::startup::milliseconds;
use super::{Bench, Error, Sample};
use crate::layout::Asset;

/// What it prints: the sum of what it has done.
const OUTPUT: &str = "10787083729787077224\n";

/// The same on the disk.
const OUTPUT_OF_DISK: &str = "228\n";

/// One run.
pub(super) fn measure(bench: &Bench, suite: Suite) -> Result<Vec<Sample>, Error> {
    let program = Asset::Probe.find().map_err(crate::engine::Error::from)?;
    let mut command = Command::new(program);
    let expected = if matches!(suite, Suite::Disk | Suite::Volume) {
        let cache = bench.engine.layout().cache();
        // It has no name, so nothing of it is left.
        let file = tempfile::tempfile_in(&cache).map_err(|error| Error::Control(cache, error))?;
        command.args(["work", "control-disk"]).stdin(file);
        OUTPUT_OF_DISK
    } else {
        command.args(["work", "control"]).stdin(Stdio::null());
        OUTPUT
    };
    let timed = time(command, expected)?;
    Ok(vec![Sample::new(CONTROL, milliseconds(timed.total_us))])
}
