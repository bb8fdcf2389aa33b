//! What `rvm bench` shows: how far it is, and what came of it.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rvm_engine::bench::catalogue::Unit;
use rvm_engine::bench::diff::{Change, Comparison, Machine, Verdict};
use rvm_engine::bench::report::Series;
use rvm_engine::bench::{Report, Step, Suite};

use anyhow::Result;
use comfy_table::{Cell, CellAlignment};

use super::Table;
use crate::args::ProgressMode;

const BAR: &str = "{prefix:9}  [{bar:30}]  {pos:>4} / {len:<4}  {msg:10}  {eta}";

/// Shows how far a measurement is: a bar on a terminal, else a line for each suite.
pub(crate) struct BenchProgress {
    mode: ProgressMode,
    bar: ProgressBar,
    suite: Option<Suite>,
}

impl BenchProgress {
    pub(crate) fn new(mode: ProgressMode) -> Self {
        let mode = match mode {
            ProgressMode::Auto if !super::is_watched() => ProgressMode::Plain,
            mode => mode,
        };
        let bar = ProgressBar::new(0);
        if mode != ProgressMode::Auto {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        // What is wrong with it is found by the test below.
        bar.set_style(ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self {
            mode,
            bar,
            suite: None,
        }
    }

    pub(crate) fn update(&mut self, step: Step) {
        if self.suite != Some(step.suite) {
            self.suite = Some(step.suite);
            if self.mode == ProgressMode::Plain {
                super::note(&format!("{}: {}", step.suite, step.suite.about()));
            }
        }
        self.bar.set_length(u64::try_from(step.total).unwrap_or(u64::MAX));
        self.bar.set_prefix(step.suite.name());
        self.bar.set_message(step.subject.name());
        self.bar
            .set_position(u64::try_from(step.done).unwrap_or(u64::MAX));
    }

    pub(crate) fn finish(self) {
        self.bar.finish_and_clear();
    }
}

/// Prints a report: a line for each row and subject.
pub(crate) fn bench_table(report: &Report) -> Result<()> {
    let mut table = Table::new(&["SUITE", "ROW", "OF", "MEDIAN", "95% INTERVAL", "P99", "N", "WHAT"]);
    let mut before = None;
    for series in &report.series {
        let place = (series.suite, series.row.as_str());
        let is_new = before != Some(place);
        before = Some(place);
        let summary = &series.summary;
        let shown = |value| value_in(series.unit, value);
        table.row([
            Cell::new(if is_new { series.suite.name() } else { "" }),
            Cell::new(if is_new { series.row.as_str() } else { "" }),
            Cell::new(series.subject),
            Cell::new(shown(summary.median)).set_alignment(CellAlignment::Right),
            Cell::new(interval(series)).set_alignment(CellAlignment::Right),
            Cell::new(shown(summary.p99)).set_alignment(CellAlignment::Right),
            Cell::new(summary.n).set_alignment(CellAlignment::Right),
            Cell::new(if is_new { series.title.as_str() } else { "" }),
        ]);
    }
    table.print()?;
    let brief = ["kernel", "CPU", "KVM"];
    let facts = facts(report).into_iter().filter(|(name, _)| brief.contains(name));
    let mut notes = vec![String::new()];
    notes.extend(facts.map(|(name, value)| format!("{name:7}{value}")));
    notes.extend(report.notes.iter().map(|note| format!("note   {note}")));
    super::lines(notes.iter().map(|note| super::single_line(note)))
}

/// The circumstances of a report, each with its name.
pub(super) fn facts(report: &Report) -> Vec<(&'static str, String)> {
    let (manifest, plan) = (&report.manifest, &report.plan);
    let known = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".to_owned());
    let exact = |bytes: u64| super::size(bytes);
    let suites: Vec<_> = plan
        .suites
        .iter()
        .map(|suite| format!("{suite} {}", suite.runs(plan.runs)))
        .collect();
    let warm_up = format!("{} of each before those that count", plan.warm_up);
    vec![
        ("image", format!("{} ({})", manifest.image, manifest.image_id)),
        ("from", manifest.began.clone()),
        ("to", manifest.ended.clone()),
        ("rvm", manifest.rvm.clone()),
        ("kernel", manifest.kernel.clone()),
        ("CPU", format!("{} of {}", manifest.cpus, manifest.cpu)),
        ("flags", manifest.flags.join(" ")),
        ("KVM", manifest.kvm.describe()),
        ("machine", known(&manifest.machine)),
        (
            "memory",
            manifest.memory_bytes.map_or_else(|| "unknown".to_owned(), exact),
        ),
        ("governor", known(&manifest.governor)),
        ("huge pages", known(&manifest.huge_pages)),
        ("clock", known(&manifest.clock)),
        ("cgroup2", known(&manifest.cgroup2)),
        (
            "load before",
            manifest
                .load
                .map_or_else(|| "unknown".to_owned(), |load| load.to_string()),
        ),
        ("runs", suites.join(", ")),
        ("warm-up", warm_up),
        ("caches", manifest.cache.clone()),
        (
            "pinned to",
            plan.pin.clone().unwrap_or_else(|| "nothing: all CPUs".to_owned()),
        ),
        ("many are", plan.instances.to_string()),
        ("memory limit", exact(plan.memory_bytes)),
    ]
}

/// Every sample on a line of its own, as spreadsheets and data frames read it. No field of it has a comma.
pub(crate) fn samples_csv(report: &Report) -> String {
    let mut text = String::from("suite,row,subject,run,value,unit\n");
    for series in &report.series {
        let (suite, row, subject) = (series.suite, &series.row, series.subject);
        let unit = series.unit.symbol();
        for (run, value) in series.samples.iter().enumerate() {
            text.push_str(&format!("{suite},{row},{subject},{run},{value},{unit}\n"));
        }
    }
    text
}

/// Prints what has become of each row, those that have changed first.
pub(crate) fn diff_table(comparison: &Comparison) -> Result<()> {
    let mut table = Table::new(&["SUITE", "ROW", "OF", "BEFORE", "AFTER", "RATIO", "INTERVAL", ""]);
    let (changed, same): (Vec<&Change>, Vec<&Change>) = comparison
        .changes
        .iter()
        .partition(|change| change.verdict.is_change());
    for change in changed.iter().chain(&same) {
        let shown = |value| value_in(change.unit, value);
        let ratio = change
            .ratio
            .map_or_else(|| "--".to_owned(), |ratio| format!("{ratio:.3}"));
        let interval = change
            .interval
            .map_or_else(|| "--".to_owned(), |(low, high)| format!("{low:.3} .. {high:.3}"));
        table.row([
            Cell::new(change.suite),
            Cell::new(super::single_line(&change.row)),
            Cell::new(change.subject),
            Cell::new(shown(change.before)).set_alignment(CellAlignment::Right),
            Cell::new(shown(change.after)).set_alignment(CellAlignment::Right),
            Cell::new(ratio).set_alignment(CellAlignment::Right),
            Cell::new(interval).set_alignment(CellAlignment::Right),
            Cell::new(verdict(change.verdict)),
        ]);
    }
    table.print()?;
    let counted = |what: fn(&Verdict) -> bool| {
        let verdicts = comparison.changes.iter().map(|change| change.verdict);
        verdicts.filter(what).count()
    };
    let mut notes = vec![String::new()];
    notes.extend(comparison.machine.iter().map(machine));
    notes.push(format!(
        "{} of {} rows have changed; for {} there are too few samples to tell",
        counted(|verdict| verdict.is_change()),
        comparison.changes.len(),
        counted(|verdict| *verdict == Verdict::TooFew),
    ));
    notes.extend(
        comparison
            .circumstances
            .iter()
            .map(|what| format!("differs  {what}")),
    );
    notes.extend(comparison.unmatched.iter().map(|what| format!("alone    {what}")));
    super::lines(notes.iter().map(|note| super::single_line(note)))
}

/// What the machine itself did between two reports.
fn machine(machine: &Machine) -> String {
    let interval = machine
        .interval
        .map_or_else(String::new, |(low, high)| format!(" ({low:.3} .. {high:.3})"));
    format!(
        "machine  {}: the host's own work took {:.3} times as long{interval}",
        machine.suite, machine.ratio
    )
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Same => "",
        Verdict::Better => "better",
        Verdict::Worse => "worse",
        Verdict::Changed => "changed",
        Verdict::TooFew => "too few samples",
    }
}

/// Between which numbers the median lies.
fn interval(series: &Series) -> String {
    let shown = |value| value_in(series.unit, value);
    format!("{} .. {}", shown(series.summary.low), shown(series.summary.high))
}

/// A number with its unit.
pub(crate) fn value_in(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Milliseconds => time(value * 1e6),
        Unit::Nanoseconds => time(value),
        Unit::Bytes => bytes(value),
        Unit::BytesPerSecond => format!("{}/s", bytes(value)),
        Unit::Percent => format!("{value:.1} %"),
        Unit::Count => digits(value),
        Unit::PerSecond => format!("{}/s", digits(value)),
    }
}

fn time(ns: f64) -> String {
    scaled(ns, &[(1e9, "s"), (1e6, "ms"), (1e3, "us"), (1.0, "ns")])
}

fn bytes(bytes: f64) -> String {
    let (gib, mib, kib) = (f64::from(1 << 30), f64::from(1 << 20), f64::from(1 << 10));
    scaled(bytes, &[(gib, "GiB"), (mib, "MiB"), (kib, "KiB"), (1.0, "B")])
}

/// In the largest unit of which there is at least one.
fn scaled(value: f64, units: &[(f64, &str)]) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let fits = |(size, _): &&(f64, &str)| value.abs() >= *size;
    let (size, name) = units
        .iter()
        .find(fits)
        .or(units.last())
        .copied()
        .unwrap_or((1.0, ""));
    format!("{} {name}", digits(value / size))
}

/// With three or more digits in all.
fn digits(value: f64) -> String {
    let decimals = match value.abs() {
        0.0 => 0,
        ..10.0 => 2,
        10.0..100.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.decimals$}");
    // A whole number is one: of things that are counted.
    match text.split_once('.') {
        Some((whole, rest)) if rest.bytes().all(|digit| digit == b'0') => whole.to_owned(),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_their_units() {
        let check = |unit, value, expected| assert_eq!(value_in(unit, value), expected);
        check(Unit::Milliseconds, 157.52, "158 ms");
        check(Unit::Milliseconds, 0.25, "250 us");
        check(Unit::Milliseconds, 1234.0, "1.23 s");
        check(Unit::Nanoseconds, 88.84, "88.8 ns");
        check(Unit::Nanoseconds, 0.5, "0.50 ns");
        check(Unit::Bytes, 43_008.0 * 1024.0, "42 MiB");
        check(Unit::Bytes, -2048.0, "-2 KiB");
        check(Unit::Bytes, 0.0, "0");
        check(Unit::Milliseconds, 0.0, "0");
        check(Unit::BytesPerSecond, 1.5e9, "1.40 GiB/s");
        check(Unit::Percent, 99.94, "99.9 %");
        check(Unit::Count, 37.0, "37");
        check(Unit::PerSecond, 12.34, "12.3/s");
    }

    #[test]
    fn the_bar_can_be_drawn() {
        ProgressStyle::with_template(BAR).unwrap();
    }
}
