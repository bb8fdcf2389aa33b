//! What has changed between two reports, told from noise.
//!
//! For each row and subject that both have, the ratio of the medians gets a bootstrap interval; where that leaves out 1,
//! something has changed. With many rows some would seem to change by chance alone, so each is held to a confidence that
//! makes the chance of one or more such rows in the whole comparison what a person takes it for (Bonferroni).

use serde::Serialize;

use super::catalogue::{Better, Unit};
use super::plan::{Subject, Suite};
use super::report::{Report, Series};
use super::statistics::ratio_interval;

/// Confidence of a comparison as a whole: where nothing has changed, 19 of 20 comparisons say so for every row.
pub const CONFIDENCE: f64 = 0.95;

/// With fewer samples on either side nothing is told from noise: a bootstrap of so few finds too many changes. With 40 rows of
/// 10 samples each some 97 of 100 comparisons of noise with itself show none, with 8 samples 92.
pub const FEWEST_SAMPLES: usize = 10;

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
    /// Between which numbers the ratio lies, with a confidence that makes [`CONFIDENCE`] of all rows together.
    pub interval: Option<(f64, f64)>,
    /// What became of it.
    pub verdict: Verdict,
}

/// Two reports side by side.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Rows that both have.
    pub changes: Vec<Change>,
    /// Circumstances that differ, which may be all there is to a change.
    pub circumstances: Vec<String>,
    /// Rows that only one of them has.
    pub unmatched: Vec<String>,
}

/// Compares.
#[must_use]
pub fn compare(before: &Report, after: &Report) -> Comparison {
    let pairs: Vec<_> = before
        .series
        .iter()
        .filter_map(|old| Some((old, after.series(old.suite, &old.row, old.subject)?)))
        .collect();
    let changes = pairs
        .iter()
        .map(|(old, new)| change(old, new, pairs.len()))
        .collect();
    Comparison {
        changes,
        circumstances: circumstances(before, after),
        unmatched: alone(before, after, "first")
            .chain(alone(after, before, "second"))
            .collect(),
    }
}

fn change(old: &Series, new: &Series, rows: usize) -> Change {
    let samples = [&old.samples, &new.samples];
    let few = samples.iter().any(|samples| samples.len() < FEWEST_SAMPLES);
    let interval = if few {
        None
    } else {
        ratio_interval(&old.samples, &new.samples, each_of(rows))
    };
    let verdict = match interval {
        _ if few => Verdict::TooFew,
        Some((low, high)) if low <= 1.0 && 1.0 <= high => Verdict::Same,
        Some((low, _)) => direction(old.better, low > 1.0),
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
