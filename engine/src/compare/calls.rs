//! Which system calls of the host a workload reaches: the process that serves it is traced from the outside while the sample
//! workload runs, with all of its threads and children and nobody else's.

use std::collections::BTreeMap;

use crate::engine::Engine;
use crate::probe::strace::{self, Tracer};
use crate::probe::{Probed, Session, SessionError};

/// How often each call was made, or why that is not known.
pub(super) type Calls = Result<BTreeMap<String, u64>, String>;

/// Runs the sample workload under strace.
pub(super) fn trace(engine: &Engine, probed: &Probed<'_>) -> Result<Calls, SessionError> {
    let mut session = probed.start(engine, &["sample"])?;
    expect(&mut session, "ready")?;
    let tracer = match Tracer::attach(&[session.inspect()?.state.pid]) {
        Ok(tracer) => tracer,
        Err(error) => return Ok(Err(strace::why_not(&error))),
    };
    session.say("go")?;
    expect(&mut session, "done")?;
    session.finish()?;
    Ok(tracer.detach().map_err(|error| strace::why_not(&error)))
}

fn expect(session: &mut Session<'_>, word: &str) -> Result<(), SessionError> {
    let said: String = session.answer()?;
    if said == word {
        Ok(())
    } else {
        Err(session.failed(format!("it said {:?}", crate::printable(&said))))
    }
}
