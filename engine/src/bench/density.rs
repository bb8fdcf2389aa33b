//! The density suite: many containers at once, and what one does to a container that runs.

use std::thread;
use std::time::Instant;

use super::plan::Subject;
use super::startup::{self, milliseconds};
use super::{Bench, Error, Sample, number};
use crate::life::Stop;
use crate::probe::{self, Session};

/// One run.
pub(super) fn measure(bench: &mut Bench, subject: Subject) -> Result<Vec<Sample>, Error> {
    let mut samples = many(bench, subject)?;
    samples.extend(one(bench, subject)?);
    Ok(samples)
}

/// As many as the plan says are run to their end at the same time.
fn many(bench: &Bench, subject: Subject) -> Result<Vec<Sample>, Error> {
    let commands = (0..bench.plan.instances)
        .map(|_| bench.command(subject))
        .collect::<Result<Vec<_>, _>>()?;
    let begun = Instant::now();
    let runs: Vec<_> = commands
        .into_iter()
        .map(|command| thread::spawn(move || startup::time(command, startup::OUTPUT)))
        .collect();
    let mut slowest = 0;
    let mut count = 0;
    for run in runs {
        // A panic aborts the process, so joining cannot fail.
        let Ok(timed) = run.join() else { continue };
        slowest = slowest.max(timed?.total_us);
        count += 1;
    }
    Ok(vec![
        Sample::new("starts", number(count) / begun.elapsed().as_secs_f64()),
        Sample::new("slowest", milliseconds(slowest)),
    ])
}

/// A further command in one that runs; one is stopped; one is removed while it runs.
fn one(bench: &Bench, subject: Subject) -> Result<Vec<Sample>, Error> {
    let mut probed = bench.probed(subject)?;
    // A first process without a handler does not hear of a signal; this one hands it on.
    probed.options.init = true;
    let start = || -> Result<Session, Error> {
        let mut session = probed.start(bench.engine, &["work", "hog", "0"])?;
        session.answer::<serde_json::Value>()?;
        Ok(session)
    };
    let session = start()?;
    let begun = Instant::now();
    session.exec(&[probe::PATH, "work", "end"], None)?;
    let mut samples = vec![Sample::new("exec", elapsed(begun))];
    let begun = Instant::now();
    bench.engine.stop(session.id(), &Stop::default())?;
    samples.push(Sample::new("stop", elapsed(begun)));
    drop(session);
    let session = start()?;
    let begun = Instant::now();
    bench.engine.remove(session.id(), true, true)?;
    samples.push(Sample::new("remove", elapsed(begun)));
    Ok(samples)
}

fn elapsed(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1000.0
}
