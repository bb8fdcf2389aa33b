//! The density suite: many containers at once, and what one does to a container that runs.

use std::thread;
use std::time::{Duration, Instant};

use super::command::{Timed, time};
use super::plan::Subject;
use super::startup::{self, milliseconds};
use super::statistics::median;
use super::{Bench, Error, Sample, number};
use crate::life::Stop;
use crate::probe::{self, Session};

/// One run.
pub(super) fn measure(bench: &mut Bench, subject: Subject) -> Result<Vec<Sample>, Error> {
    let mut samples = many(bench, subject)?;
    samples.extend(one(bench, subject)?);
    Ok(samples)
}

/// Containers that are run at the same time, and the row of how soon each has its output.
const AT_ONCE: [(usize, &str); 3] = [(1, "output-1"), (10, "output-10"), (50, "output-50")];

/// As many as the plan says are run to their end at the same time, and before them fewer.
fn many(bench: &Bench, subject: Subject) -> Result<Vec<Sample>, Error> {
    let most = bench.plan.instances;
    let mut samples = Vec::new();
    for (count, row) in AT_ONCE.into_iter().filter(|(count, _)| *count < most) {
        samples.extend(at_once(bench, subject, count)?.output(row));
    }
    let all = at_once(bench, subject, most)?;
    let row = AT_ONCE.into_iter().find(|(count, _)| *count == most);
    samples.extend(row.and_then(|(_, row)| all.output(row)));
    let count = number(u64::try_from(all.runs.len()).unwrap_or(u64::MAX));
    let slowest = all.runs.iter().map(|run| run.total_us).max().unwrap_or_default();
    samples.extend([
        Sample::new("starts", count / all.elapsed.as_secs_f64()),
        Sample::new("slowest", milliseconds(slowest)),
    ]);
    Ok(samples)
}

/// What was run at the same time.
struct Together {
    runs: Vec<Timed>,
    /// From the first start to the last end.
    elapsed: Duration,
}

impl Together {
    /// How soon the one in the middle had its output.
    fn output(&self, row: &'static str) -> Option<Sample> {
        let outputs: Vec<f64> = self.runs.iter().map(|run| milliseconds(run.output_us)).collect();
        median(&outputs).map(|output| Sample::new(row, output))
    }
}

fn at_once(bench: &Bench, subject: Subject, count: usize) -> Result<Together, Error> {
    let commands = (0..count)
        .map(|_| bench.command(subject))
        .collect::<Result<Vec<_>, _>>()?;
    let begun = Instant::now();
    let threads: Vec<_> = commands
        .into_iter()
        .map(|command| thread::spawn(move || time(command, startup::OUTPUT)))
        .collect();
    // A panic aborts the process, so joining cannot fail.
    let joined = threads.into_iter().filter_map(|thread| thread.join().ok());
    // All of them, so that none goes on beside what is measured next.
    let ended: Vec<_> = joined.collect();
    let elapsed = begun.elapsed();
    Ok(Together {
        runs: ended.into_iter().collect::<Result<_, _>>()?,
        elapsed,
    })
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
