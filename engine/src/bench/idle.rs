//! What a container that does nothing takes of a processor.

use std::thread;
use std::time::{Duration, Instant};

use super::plan::Subject;
use super::{Bench, Error, Sample, memory};
use crate::probe::outside;

/// What a start leaves behind, such as memory that a guest gives back, is done after this.
const SETTLE: Duration = Duration::from_secs(2);

/// How long it is watched.
const WATCHED: Duration = Duration::from_secs(2);

/// One at rest, in milliseconds each second.
pub(super) fn measure(bench: &Bench, subject: Subject) -> Result<Sample, Error> {
    let session = memory::start(bench, subject, 0)?;
    thread::sleep(SETTLE);
    let processes = session.processes()?;
    let (begun, before) = (Instant::now(), outside::processor_time(&processes));
    thread::sleep(WATCHED);
    let (after, watched) = (outside::processor_time(&processes), begun.elapsed());
    session.finish()?;
    let unknown = || Error::Wrong("the host's kernel does not count its processor time".to_owned());
    let (before, after) = (before.ok_or_else(unknown)?, after.ok_or_else(unknown)?);
    let taken = after.saturating_sub(before).as_secs_f64();
    Ok(Sample::new("idle", taken * 1000.0 / watched.as_secs_f64()))
}
