//! That a change is found, that noise is none, and that each is told as often as it is said to be.

use super::*;
use crate::bench::statistics::{Draw, Summary};
use crate::bench::{Plan, manifest};

/// Times with the noise that times have: most near each other, some much longer, and steps of a clock.
fn times(draw: &mut Draw, count: usize, typical: f64) -> Vec<f64> {
    let mut uniform = || draw.part();
    (0..count)
        .map(|_| {
            let common = (0..6).map(|_| uniform()).sum::<f64>() / 6.0;
            let late = if uniform() < 0.08 { uniform() * 1.5 } else { 0.0 };
            let time = typical * (0.9 + 0.2 * common + late);
            (time * 1000.0).round() / 1000.0
        })
        .collect()
}

fn series(row: usize, samples: Vec<f64>) -> Series {
    Series {
        suite: Suite::Startup,
        row: format!("row-{row}"),
        subject: Subject::Vm,
        title: String::new(),
        unit: Unit::Milliseconds,
        better: Better::Less,
        summary: Summary::of(&samples).unwrap(),
        samples,
    }
}

fn report(series: Vec<Series>) -> Report {
    Report {
        version: crate::bench::report::VERSION,
        manifest: manifest::tests::example(),
        plan: Plan {
            image: "debian".to_owned(),
            suites: vec![Suite::Startup],
            runs: 30,
            warm_up: 1,
            also: Vec::new(),
            pin: None,
            instances: 10,
            memory_bytes: 1,
        },
        series,
        waterfalls: Vec::new(),
        exposures: Vec::new(),
        failures: Vec::new(),
        notes: Vec::new(),
    }
}

/// A report of `rows` rows, each `factor` times what it would be.
fn measured(draw: &mut Draw, rows: usize, runs: usize, factor: f64) -> Report {
    let row = |row| {
        series(
            row,
            times(draw, runs, factor * f64::from(10 + u32::try_from(row).unwrap())),
        )
    };
    report((0..rows).map(row).collect())
}

fn changes(comparison: &Comparison) -> usize {
    comparison
        .changes
        .iter()
        .filter(|change| change.verdict.is_change())
        .count()
}

/// The promise of the documentation, for whole reports, with as many and as few runs as people make.
#[test]
fn the_same_measured_twice_shows_no_change_in_19_of_20_tries() {
    for (rows, runs) in [(12, 30), (40, 10)] {
        let mut draw = Draw::new(7);
        let tries = 20;
        let same = (0..tries).filter(|_| {
            let before = measured(&mut draw, rows, runs, 1.0);
            let after = measured(&mut draw, rows, runs, 1.0);
            changes(&compare(&before, &after)) == 0
        });
        let same = same.count();
        assert!(same >= 19, "{same} of {tries} with {rows} rows of {runs} runs");
    }
}

#[test]
fn a_change_of_a_tenth_is_found() {
    let mut draw = Draw::new(11);
    let before = measured(&mut draw, 20, 30, 1.0);
    let slower = measured(&mut draw, 20, 30, 1.1);
    let comparison = compare(&before, &slower);
    let worse = comparison
        .changes
        .iter()
        .filter(|change| change.verdict == Verdict::Worse);
    assert_eq!(worse.count(), 20, "{comparison:?}");
    let comparison = compare(&slower, &before);
    assert!(
        comparison
            .changes
            .iter()
            .all(|change| change.verdict == Verdict::Better)
    );
    let change = &comparison.changes[0];
    let (low, high) = change.interval.unwrap();
    let ratio = change.ratio.unwrap();
    assert!(low < ratio && ratio < high && high < 1.0, "{change:?}");
}

#[test]
fn few_samples_tell_nothing() {
    let before = report(vec![series(0, vec![1.0, 1.1, 1.2, 1.0])]);
    let after = report(vec![series(0, vec![9.0; 30])]);
    assert_eq!(compare(&before, &after).changes[0].verdict, Verdict::TooFew);
}

#[test]
fn numbers_without_a_ratio_are_compared_all_the_same() {
    let none = report(vec![series(0, vec![0.0; 10])]);
    let some = report(vec![series(
        0,
        vec![1.0, 2.0, 1.0, 3.0, 2.0, 1.0, 1.0, 1.0, 2.0, 1.0],
    )]);
    assert_eq!(compare(&none, &some).changes[0].verdict, Verdict::Worse);
    assert_eq!(compare(&none, &none).changes[0].verdict, Verdict::Same);
    assert_eq!(compare(&none, &none).changes[0].ratio, None);
}

#[test]
fn what_cannot_be_compared_is_named() {
    let mut after = report(vec![series(1, vec![1.0; 6])]);
    after.manifest.kernel = "another".to_owned();
    let comparison = compare(&report(vec![series(0, vec![1.0; 6])]), &after);
    assert!(comparison.changes.is_empty());
    assert_eq!(comparison.unmatched.len(), 2, "{comparison:?}");
    assert_eq!(comparison.circumstances, ["kernel: 6.1 before, another after"]);
}
