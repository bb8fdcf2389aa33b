//! That a change is found, that noise is none, and that each is told as often as it is said to be.

use super::*;
use crate::bench::statistics::tests::chain;
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
            cold: false,
            memory_bytes: 1,
        },
        series,
        waterfalls: Vec::new(),
        exposures: Vec::new(),
        failures: Vec::new(),
        notes: Vec::new(),
    }
}

/// The host's own piece of work.
fn host(samples: Vec<f64>) -> Series {
    Series {
        row: CONTROL.to_owned(),
        subject: Subject::Host,
        ..series(0, samples)
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

/// Samples that are like the ones before them, by chance, in both sessions.
#[test]
fn a_machine_that_drifts_shows_no_change_in_19_of_20_tries() {
    for like in [0.3, 0.6, 0.85] {
        let mut draw = Draw::new(13);
        let mut session = || {
            let mut rows: Vec<_> = (0..42)
                .map(|row| series(row, chain(&mut draw, 30, like, 0.05)))
                .collect();
            rows.push(host(chain(&mut draw, 30, like, 0.05)));
            report(rows)
        };
        let tries = 20;
        let same = (0..tries).filter(|_| changes(&compare(&session(), &session())) == 0);
        let same = same.count();
        assert!(same >= 19, "{same} of {tries} with {like}");
    }
}

/// The second session is on a machine with another load: the host's own work is slower, and rows are by a part of that, by all of
/// it, or by more.
#[test]
fn a_step_between_sessions_is_the_machines() {
    let mut draw = Draw::new(17);
    let mut found = 0;
    let tries = 20;
    for slower in (0..tries).map(|number| 0.7 + 0.03 * f64::from(number)) {
        let mut session = |slower: f64| {
            let mut rows: Vec<_> = (0..42)
                .map(|row| {
                    let sensitive = 0.5 + f64::from(u32::try_from(row).unwrap()) / 42.0;
                    series(row, times(&mut draw, 30, 10.0 * slower.powf(sensitive)))
                })
                .collect();
            rows.push(host(times(&mut draw, 30, 5.0 * slower)));
            report(rows)
        };
        let comparison = compare(&session(1.0), &session(slower));
        found += u32::from(changes(&comparison) > 0);
        let machine = &comparison.machine[0];
        let (low, high) = machine.interval.unwrap();
        assert!(
            (machine.ratio / slower - 1.0).abs() < 0.03,
            "{machine:?} and {slower}"
        );
        assert!(low < machine.ratio && machine.ratio < high);
    }
    assert!(found <= 1, "{found} of {tries} tries");
}

/// A host whose own work was uneven does not tell whether the machine became slower, so it may have.
#[test]
fn an_uneven_machine_excuses_more() {
    let mut draw = Draw::new(23);
    let uneven: Vec<f64> = (0..30).map(|run| if run % 2 == 0 { 5.0 } else { 15.0 }).collect();
    let before = report(vec![series(0, times(&mut draw, 30, 10.0)), host(uneven.clone())]);
    let after = report(vec![series(0, times(&mut draw, 30, 14.0)), host(uneven)]);
    assert_eq!(compare(&before, &after).changes[0].verdict, Verdict::Same);
    let even = || host(vec![5.0; 30]);
    let before = report(vec![series(0, times(&mut draw, 30, 10.0)), even()]);
    let after = report(vec![series(0, times(&mut draw, 30, 14.0)), even()]);
    assert_eq!(compare(&before, &after).changes[0].verdict, Verdict::Worse);
}

/// What a workload takes of memory has nothing to do with how fast the machine is.
#[test]
fn bytes_are_not_excused_by_a_slow_machine() {
    let mut draw = Draw::new(19);
    let mut session = |slower: f64| {
        let mut bytes = series(0, times(&mut draw, 30, 10.0 * slower));
        bytes.unit = Unit::Bytes;
        report(vec![bytes, host(times(&mut draw, 30, 5.0 * slower))])
    };
    let comparison = compare(&session(1.0), &session(1.3));
    assert_eq!(comparison.changes[0].verdict, Verdict::Worse);
}

#[test]
fn a_count_that_never_varies_is_exact() {
    let counted = |count| {
        let mut counted = series(0, vec![count; 10]);
        counted.unit = Unit::Count;
        report(vec![counted])
    };
    let verdict = |before, after| compare(&counted(before), &counted(after)).changes[0].verdict;
    assert_eq!(verdict(60.0, 61.0), Verdict::Worse);
    assert_eq!(verdict(60.0, 60.0), Verdict::Same);
}

#[test]
fn a_change_of_a_tenth_is_found() {
    let mut draw = Draw::new(11);
    let mut quiet = |factor: f64| {
        let mut rows: Vec<_> = (0..20)
            .map(|row| series(row, chain(&mut draw, 30, 0.0, 0.012)))
            .collect();
        for sample in rows.iter_mut().flat_map(|row| &mut row.samples) {
            *sample *= factor;
        }
        for row in &mut rows {
            row.summary = Summary::of(&row.samples).unwrap();
        }
        rows.push(host(chain(&mut draw, 30, 0.0, 0.012)));
        report(rows)
    };
    let (before, slower) = (quiet(1.0), quiet(1.1));
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
