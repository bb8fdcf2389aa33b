//! What has changed between two reports, told from noise.
//!
//! For each row and subject that both have, the ratio of the medians gets an interval. Four things make it honest:
//! - With many rows some would seem to change by chance alone, so each is held to a confidence that makes the chance of one or
//!   more such rows in the whole comparison what a person takes it for (Bonferroni).
//! - A machine that drifts makes samples alike that follow each other; how much, is taken from the samples of a suite together
//!   ([`dependence`]), because one row has too few to tell, and from the row's own where that is beyond chance.
//! - What the machine itself did between the reports is known from the host's own piece of work ([`super::control`]). An interval
//!   of times is extended to where it would lie if the row had been [`SENSITIVITY`] times as sensitive to that, and by both ends of
//!   what is known of it: a host whose own work varies by half does not tell whether it became slower.
//! - A difference of less than [`SMALLEST`] is not spoken of: two sessions differ by where things lie in memory and on the disk,
//!   and by what neighbours do, which no number of runs of one session averages out.

use serde::Serialize;

use super::catalogue::{Better, CONTROL, Unit};
use super::plan::{Subject, Suite};
use super::report::{Report, Series};
use super::statistics::{dependence, ratio_interval};

/// Confidence of a comparison as a whole: where nothing has changed, 19 of 20 comparisons say so for every row.
pub const CONFIDENCE: f64 = 0.95;

/// With fewer samples on either side nothing is told from noise: how much they vary is hardly known.
pub const FEWEST_SAMPLES: usize = 10;

/// The smallest difference that is spoken of, as a part of what it was before. Counts that are the same in every run are exact:
/// of them the least difference is one.
pub const SMALLEST: f64 = 0.05;

/// How many times as sensitive as the host's own piece of work a row may be to what slows the machine, in orders of magnitude:
/// where that took 1.1 times as long, a row may take 1.21 times as long for the same reason.
pub const SENSITIVITY: f64 = 2.0;

/// What became of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// No change can be told from noise.
    Same,
    /// It has changed for the better.
    Better,
    /// It has changed for the worse.
    Worse,
    /// It has changed, and neither is better.
    Changed,
    /// There are too few samples to tell.
    TooFew,
}

impl Verdict {
    /// Whether something has changed.
    #[must_use]
    pub fn is_change(self) -> bool {
        matches!(self, Self::Better | Self::Worse | Self::Changed)
    }
}

/// A row in both reports.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// Where it belongs.
    pub suite: Suite,
    /// Name of the row within the suite.
    pub row: String,
    /// What was measured.
    pub subject: Subject,
    /// What the medians are in.
    pub unit: Unit,
    /// The median in the first report.
    pub before: f64,
    /// That in the second.
    pub after: f64,
    /// The second by the first; `None` where the first is not positive.
    pub ratio: Option<f64>,
    /// Between which numbers the ratio lies, with a confidence that makes [`CONFIDENCE`] of all rows together, and extended by what
    /// the machine did.
    pub interval: Option<(f64, f64)>,
    /// What became of it.
    pub verdict: Verdict,
}

/// The host's own piece of work in a suite.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Machine {
    /// During which it was done.
    pub suite: Suite,
    /// How long it took in the second report, by how long in the first.
    pub ratio: f64,
    /// Between which numbers that lies, with [`CONFIDENCE`].
    pub interval: Option<(f64, f64)>,
}

/// Two reports side by side.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Rows that both have.
    pub changes: Vec<Change>,
    /// What the machine itself did between them.
    pub machine: Vec<Machine>,
    /// Circumstances that differ, which may be all there is to a change.
    pub circumstances: Vec<String>,
    /// Rows that only one of them has.
    pub unmatched: Vec<String>,
}

/// Compares.
#[must_use]
pub fn compare(before: &Report, after: &Report) -> Comparison {
    let machine: Vec<_> = Suite::ALL
        .into_iter()
        .filter_map(|suite| machine(before, after, suite))
        .collect();
    let is_row = |series: &&Series| series.subject != Subject::Host;
    let pairs: Vec<_> = before
        .series
        .iter()
        .filter(is_row)
        .filter_map(|old| Some((old, after.series(old.suite, &old.row, old.subject)?)))
        .collect();
    let changes = pairs
        .iter()
        .map(|(old, new)| {
            let pair = Pair {
                old,
                new,
                dependences: [dependence_in(before, old), dependence_in(after, new)],
                machine: machine.iter().find(|machine| machine.suite == old.suite),
            };
            change(&pair, each_of(pairs.len()))
        })
        .collect();
    Comparison {
        changes,
        machine,
        circumstances: circumstances(before, after),
        unmatched: alone(before, after, "first")
            .chain(alone(after, before, "second"))
            .collect(),
    }
}

/// What the machine itself did during a suite that both reports have.
fn machine(before: &Report, after: &Report, suite: Suite) -> Option<Machine> {
    let control = |report: &'_ Report| report.series(suite, CONTROL, Subject::Host).cloned();
    let (old, new) = (control(before)?, control(after)?);
    let known = |series: &Series, report| (series.samples.clone(), dependence_in(report, series));
    let (one, other) = (known(&old, before), known(&new, after));
    let ratio = new.summary.median / old.summary.median;
    (ratio.is_finite() && ratio > 0.0).then(|| Machine {
        suite,
        ratio,
        interval: ratio_interval((&one.0, one.1), (&other.0, other.1), CONFIDENCE),
    })
}

/// How much samples of a series are like the ones before them.
fn dependence_in(report: &Report, series: &Series) -> f64 {
    let of_suite = report.series.iter().filter(|other| other.suite == series.suite);
    let all: Vec<f64> = of_suite.map(|other| dependence(&other.samples)).collect();
    let count = u32::try_from(all.len().max(1)).map_or(f64::MAX, f64::from);
    let common = all.iter().sum::<f64>() / count;
    let own = dependence(&series.samples);
    // Of independent samples one in forty is greater than two standard errors (Bartlett: On the theoretical specification and
    // sampling properties of autocorrelated time-series, 1946).
    let samples = u32::try_from(series.samples.len().max(1)).map_or(f64::MAX, f64::from);
    if own > 2.0 / samples.sqrt() {
        own.max(common)
    } else {
        common
    }
}

/// A row in both reports, and what is known of it.
struct Pair<'a> {
    old: &'a Series,
    new: &'a Series,
    dependences: [f64; 2],
    /// What the machine itself did, where that is known.
    machine: Option<&'a Machine>,
}

impl Pair<'_> {
    /// Between which numbers the ratio lies.
    fn interval(&self, confidence: f64) -> Option<(f64, f64)> {
        let [before, after] = self.dependences;
        let (low, high) = ratio_interval(
            (&self.old.samples, before),
            (&self.new.samples, after),
            confidence,
        )?;
        let mut reach = (1.0_f64, 1.0_f64);
        for explained in self.explained() {
            reach = (reach.0.min(explained), reach.1.max(explained));
        }
        Some((low * reach.0, high * reach.1))
    }

    /// By what the ratio may have to be multiplied to be without what the machine did: if the row was as sensitive to that as a row
    /// may be, and if the machine did as much as it may have done by what is known.
    fn explained(&self) -> Vec<f64> {
        let speed = speed(self.old.unit);
        let known = self.machine.into_iter().flat_map(|machine| {
            let (low, high) = machine.interval.unwrap_or((machine.ratio, machine.ratio));
            [machine.ratio.powf(SENSITIVITY), low, high]
        });
        known.map(|slower| slower.powf(-speed)).collect()
    }
}

/// In which power of a machine's slowness numbers grow.
fn speed(unit: Unit) -> f64 {
    match unit {
        Unit::Milliseconds | Unit::Nanoseconds => 1.0,
        Unit::BytesPerSecond | Unit::PerSecond => -1.0,
        Unit::Bytes | Unit::Percent | Unit::Count => 0.0,
    }
}

fn change(pair: &Pair, confidence: f64) -> Change {
    let (old, new) = (pair.old, pair.new);
    let samples = [&old.samples, &new.samples];
    let few = samples.iter().any(|samples| samples.len() < FEWEST_SAMPLES);
    let interval = if few { None } else { pair.interval(confidence) };
    let verdict = match interval {
        _ if few => Verdict::TooFew,
        Some((low, high)) => {
            let is_exact = old.unit == Unit::Count && samples.iter().all(|samples| is_constant(samples));
            let smallest = if is_exact { 1.0 } else { 1.0 + SMALLEST };
            if low > smallest {
                direction(old.better, true)
            } else if high < 1.0 / smallest {
                direction(old.better, false)
            } else {
                Verdict::Same
            }
        }
        // There is no ratio of numbers that may be zero: of those, all samples have to agree.
        None if apart(&old.samples, &new.samples) => {
            direction(old.better, new.summary.median > old.summary.median)
        }
        None => Verdict::Same,
    };
    Change {
        suite: old.suite,
        row: old.row.clone(),
        subject: old.subject,
        unit: old.unit,
        before: old.summary.median,
        after: new.summary.median,
        ratio: (old.summary.median > 0.0).then(|| new.summary.median / old.summary.median),
        interval,
        verdict,
    }
}

fn is_constant(samples: &[f64]) -> bool {
    samples.windows(2).all(|pair| pair.first() == pair.last())
}

/// The confidence of each of so many rows that makes [`CONFIDENCE`] of all.
fn each_of(rows: usize) -> f64 {
    let rows = u32::try_from(rows.max(1)).map_or(f64::MAX, f64::from);
    1.0 - (1.0 - CONFIDENCE) / rows
}

fn direction(better: Better, more: bool) -> Verdict {
    match (better, more) {
        (Better::Less, true) | (Better::More, false) => Verdict::Worse,
        (Better::Less, false) | (Better::More, true) => Verdict::Better,
        (Better::Neither, _) => Verdict::Changed,
    }
}

/// Whether each of one is beyond each of the other.
fn apart(one: &[f64], other: &[f64]) -> bool {
    let least = |samples: &[f64]| samples.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = |samples: &[f64]| samples.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    greatest(one) < least(other) || greatest(other) < least(one)
}

fn alone<'a>(one: &'a Report, other: &'a Report, which: &'a str) -> impl Iterator<Item = String> + 'a {
    one.series
        .iter()
        .filter(|series| other.series(series.suite, &series.row, series.subject).is_none())
        .map(move |series| {
            format!(
                "{}/{} of {} is in the {which} only",
                series.suite, series.row, series.subject
            )
        })
}

/// What differs of where, how and of what was measured.
fn circumstances(before: &Report, after: &Report) -> Vec<String> {
    let (old, new) = (&before.manifest, &after.manifest);
    let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".to_owned());
    let pairs = [
        ("image", old.image_id.clone(), new.image_id.clone()),
        ("rvm", old.rvm.clone(), new.rvm.clone()),
        ("kernel", old.kernel.clone(), new.kernel.clone()),
        ("cpu", old.cpu.clone(), new.cpu.clone()),
        ("cpus", old.cpus.to_string(), new.cpus.to_string()),
        ("kvm", old.kvm.describe(), new.kvm.describe()),
        ("governor", shown(&old.governor), shown(&new.governor)),
        ("huge pages", shown(&old.huge_pages), shown(&new.huge_pages)),
        ("clock", shown(&old.clock), shown(&new.clock)),
        ("cgroup2", shown(&old.cgroup2), shown(&new.cgroup2)),
        ("caches", old.cache.clone(), new.cache.clone()),
        ("pin", shown(&before.plan.pin), shown(&after.plan.pin)),
        (
            "instances",
            before.plan.instances.to_string(),
            after.plan.instances.to_string(),
        ),
    ];
    pairs
        .into_iter()
        .filter(|(_, old, new)| old != new)
        .map(|(name, old, new)| format!("{name}: {old} before, {new} after"))
        .collect()
}

#[cfg(test)]
mod tests;
