//! What a container that does nothing takes of a processor.

use std::thread;
use std::time::Duration;

use super::plan::Subject;
use super::{Bench, Error, Sample, memory, number};
use crate::cgroup;

/// From its start until it is watched. A guest still gives memory back then, as it does for half a minute, a little every two
/// seconds.
const SETTLE: Duration = Duration::from_secs(2);

/// How long it is watched.
const WATCHED: Duration = Duration::from_secs(2);

/// One at rest, in milliseconds each second: all that its cgroups have, so its supervisor and its VMM as well.
pub(super) fn measure(bench: &Bench, subject: Subject) -> Result<Sample, Error> {
    let session = memory::start(bench, subject, 0)?;
    let unknown = || Error::Wrong("the host's kernel does not count its processor time".to_owned());
    let usage = || {
        let usage = cgroup::usage(session.id()).ok_or_else(unknown)?;
        Ok::<_, Error>((usage.at_us, usage.processor_us))
    };
    thread::sleep(SETTLE);
    let before = usage()?;
    thread::sleep(WATCHED);
    let after = usage()?;
    session.finish()?;
    let (watched, taken) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
    Ok(Sample::new(
        "idle",
        number(taken) * 1000.0 / number(watched.max(1)),
    ))
}
