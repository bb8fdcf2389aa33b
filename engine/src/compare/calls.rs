//! Which system calls of the host a workload reaches: the process that serves it is traced from the outside while the sample
//! workload runs, with all of its threads and children and nobody else's.

use std::collections::BTreeMap;

use crate::engine::Engine;
use crate::probe::strace::{self, Tracer};
use crate::probe::{Probed, SessionError};

/// How often each call was made, or why that is not known.
pub(super) type Calls = Result<BTreeMap<String, u64>, String>;

/// Runs the sample workload under strace.
pub(super) fn trace(engine: &Engine, probed: &Probed<'_>) -> Result<Calls, SessionError> {
    let mut held = probed.hold(engine, &["sample"])?;
    let tracer = match Tracer::attach(&[held.inspect()?.state.pid]) {
        Ok(tracer) => tracer,
        Err(error) => return Ok(Err(strace::why_not(&error))),
    };
    held.tell("go")?;
    let said = held.read_to_end();
    let calls = tracer.detach();
    if !said.ends_with("done") {
        return Err(held.failed("the sample workload", &said));
    }
    Ok(calls.map_err(|error| strace::why_not(&error)))
}
