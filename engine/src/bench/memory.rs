//! The memory suite: what containers at rest take of the host, and what comes of memory that a workload takes and frees.

use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::plan::Subject;
use super::{Bench, Error, Sample, manifest, number};
use crate::engine::Engine;
use crate::memory::MIB;
use crate::probe::{Session, outside};

/// What the workload takes.
pub const HOG_BYTES: u64 = 128 * MIB;

/// What it then reads of a file.
const FILE_BYTES: u64 = 64 * MIB;

/// Of the host's; the workload writes to each.
const PAGE: u64 = 4096;

/// Time between two looks at something that settles.
const TURN: Duration = Duration::from_millis(200);

/// What a container takes has settled within this.
const SETTLE_LIMIT: Duration = Duration::from_secs(3);

/// What is freed is with the host again within this. A guest reports free memory after two seconds.
const RETURN_LIMIT: Duration = Duration::from_secs(8);

/// What the hog prints.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Holding {
    work: String,
    bytes: u64,
    check: u64,
}

/// Takes as much as its words say, and tells so.
pub(super) fn start<'a>(bench: &Bench<'a>, subject: Subject, bytes: u64) -> Result<Session<'a>, Error> {
    let mut session = bench.start(subject, &["hog", &bytes.to_string()])?;
    expect(&mut session, bytes)?;
    Ok(session)
}

fn expect(session: &mut Session, bytes: u64) -> Result<(), Error> {
    let holding: Holding = session.answer()?;
    let expected = Holding {
        work: "hog".to_owned(),
        bytes,
        check: bytes.div_ceil(PAGE),
    };
    if holding == expected {
        Ok(())
    } else {
        Err(Error::Wrong(format!(
            "it holds {} bytes instead of {bytes}",
            holding.bytes
        )))
    }
}

/// One run.
pub(super) fn measure(bench: &mut Bench, subject: Subject) -> Result<Vec<Sample>, Error> {
    let mut samples = at_rest(bench, subject)?;
    samples.extend(many(bench, subject)?);
    samples.extend(taken(bench, subject)?);
    Ok(samples)
}

/// One that does nothing.
fn at_rest(bench: &Bench, subject: Subject) -> Result<Vec<Sample>, Error> {
    let before = available()?;
    let session = start(bench, subject, 0)?;
    let memory = settled(&session)?;
    let mut samples = vec![
        Sample::new("available-first", before - available()?),
        Sample::new("pss", number(memory.pss)),
        Sample::new("private", number(memory.private)),
    ];
    let inspection = bench.engine.inspect(session.id())?;
    let supervisor = outside::memory(&[inspection.state.supervisor_pid]);
    samples.push(Sample::new("supervisor", number(supervisor.pss)));
    if let Some(machine) = inspection.machine {
        let (Some(guest), Some(monitor)) =
            (machine.memory.guest_resident_bytes, machine.memory.monitor_bytes)
        else {
            return Err(Error::Wrong(machine.missing.join("; ")));
        };
        let workload = workload(bench.engine, &session)?;
        samples.push(Sample::new("monitor", number(monitor)));
        samples.push(Sample::new("guest", number(guest)));
        samples.push(Sample::new("guest-kernel", number(guest) - workload));
    }
    session.finish()?;
    Ok(samples)
}

/// As many as the plan says, at rest at the same time.
fn many(bench: &Bench, subject: Subject) -> Result<Vec<Sample>, Error> {
    let before = available()?;
    let sessions = (0..bench.plan.instances)
        .map(|_| start(bench, subject, 0))
        .collect::<Result<Vec<_>, _>>()?;
    if let Some(last) = sessions.last() {
        settled(last)?;
    }
    let taken = before - available()?;
    let count = number(u64::try_from(sessions.len()).unwrap_or(u64::MAX));
    for session in sessions {
        session.finish()?;
    }
    let each = taken / count;
    let mut samples = vec![Sample::new("available-each", each)];
    // What the host did meanwhile may have hidden all that they take.
    if each > 0.0 {
        samples.push(Sample::new("would-fit", before / each));
    }
    Ok(samples)
}

/// Memory of known size is taken, and freed again.
fn taken(bench: &Bench, subject: Subject) -> Result<Vec<Sample>, Error> {
    let mut session = start(bench, subject, HOG_BYTES)?;
    // At first it has taken it, so that the pages of the program are there in both looks.
    session.say("free")?;
    expect(&mut session, 0)?;
    let rest = lowest(&session, number(HOG_BYTES) / 2.0)?;
    let inside = workload(bench.engine, &session)?;
    let before = available()?;
    session.say("take")?;
    expect(&mut session, HOG_BYTES)?;
    let full = settled(&session)?;
    let (full_inside, full_available) = (workload(bench.engine, &session)?, available()?);
    session.say("free")?;
    expect(&mut session, 0)?;
    let grown = number(full.pss) - rest;
    let after = lowest(&session, rest + grown / 20.0)?;
    session.say(&format!("read {FILE_BYTES}"))?;
    expect(&mut session, FILE_BYTES)?;
    let cached = number(settled(&session)?.pss) - after;
    session.finish()?;
    let returned = (number(full.pss) - after) / grown.max(1.0) * 100.0;
    Ok(vec![
        Sample::new("hog-inside", full_inside - inside),
        Sample::new("hog-host", grown),
        Sample::new("hog-available", before - full_available),
        Sample::new("hog-returned", returned.clamp(0.0, 100.0)),
        Sample::new("file-cache", cached.max(0.0)),
    ])
}

/// Bytes that the workload takes, as the kernel below it counts.
fn workload(engine: &Engine, session: &Session) -> Result<f64, Error> {
    let usage = engine.usage(&engine.container(session.id())?)?.workload;
    let bytes = usage.memory_bytes;
    bytes
        .map(number)
        .ok_or_else(|| Error::Wrong("its kernel does not count its memory".to_owned()))
}

fn available() -> Result<f64, Error> {
    manifest::memory("MemAvailable")
        .map(number)
        .ok_or(Error::NoMemInfo)
}

/// What its processes take once that does not change by a hundredth any more.
fn settled(session: &Session) -> Result<outside::Memory, Error> {
    let processes = session.processes()?;
    let deadline = Instant::now() + SETTLE_LIMIT;
    let mut before = outside::memory(&processes);
    loop {
        thread::sleep(TURN);
        let now = outside::memory(&processes);
        if now.pss.abs_diff(before.pss) <= now.pss / 100 || Instant::now() > deadline {
            return Ok(now);
        }
        before = now;
    }
}

/// The least that its processes take until it is at most `wanted`, or has not become less for as long as returning takes.
fn lowest(session: &Session, wanted: f64) -> Result<f64, Error> {
    let processes = session.processes()?;
    let deadline = Instant::now() + RETURN_LIMIT;
    let mut lowest = number(outside::memory(&processes).pss);
    while lowest > wanted && Instant::now() < deadline {
        thread::sleep(TURN);
        lowest = lowest.min(number(outside::memory(&processes).pss));
    }
    Ok(lowest)
}
