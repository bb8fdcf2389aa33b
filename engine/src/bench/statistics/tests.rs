//! That the numbers are right: against another implementation, and against what is known of the samples.

use super::*;

impl Draw {
    /// A number from 0 to 1.
    pub(in super::super) fn part(&mut self) -> f64 {
        number(usize::try_from(self.next() >> 12).unwrap()) / f64::from(1 << 26) / f64::from(1 << 26)
    }
}

/// Samples; their median and 90th, 95th and 99th percentile by `statistics.quantiles(n=100, method="inclusive")` of Python 3,
/// which is Hyndman and Fan's definition 7.
#[rustfmt::skip]
const VECTORS: [(&[f64], [f64; 4]); 6] = [
    (&[1.0], [1.0, 1.0, 1.0, 1.0]),
    (&[1.0, 2.0], [1.5, 1.9, 1.95, 1.99]),
    (&[15.0, 20.0, 35.0, 40.0, 50.0], [35.0, 46.0, 48.0, 49.6]),
    (&[3.0, 3.0, 3.0, 7.0], [3.0, 5.8, 6.4, 6.88]),
    (&[13.538, 16.034, 22.028, 16.189, 31.215, 22.474, 40.501, 21.359, 22.775, 30.981, 17.449, 32.321, 13.985, 11.134, 14.599, 35.393, 22.745, 20.249, 15.696, 36.727, 23.114, 38.263, 24.191, 34.246, 17.158, 18.684, 10.895, 21.808, 25.13, 17.435], [21.918, 35.526399999999995, 37.571799999999996, 39.85198]),
    (&[-2.05, -1.48, 3.32, 9.68, -4.48, -3.73, 19.41, 5.3, -9.85, 23.24, 7.76, -5.89, -11.74, 2.98, -8.32, -10.58, -12.96, -5.06, 11.08, -4.34, -14.49, 6.69, 0.66, 8.44, 12.02, -1.69, -1.45, -0.45, -11.35, 6.69, 13.72, 1.74, -2.37, -2.6, -7.81, -8.04, -4.01, -8.42, -4.37, -15.77, 3.5, 0.49, -11.53, -22.98, -0.08, 11.04, -7.34, -4.83, -5.68, 6.53, -9.16, 9.86, -3.03, 9.25, 0.33, -2.31, -14.78, -6.87, -2.61, 6.6, 2.45, -6.97, 4.1, 9.87, -1.49, -4.39, -3.94, 8.11, 5.38, -9.3, 3.75, -4.8, -7.51, 12.4, 8.21, -7.25, 0.79, 5.01, -6.39, -1.2, 6.67, -17.89, 3.28, 7.39, 5.04, -13.42, 3.19, -8.63, 5.7, 6.05, 2.16, -7.65, -5.91, 8.54, -8.99, 4.96, 5.11, -2.79, 23.95, 0.7, 21.46], [-1.45, 9.86, 12.4, 23.24]),
];

#[test]
fn percentiles_agree_with_another_implementation() {
    for (samples, expected) in VECTORS {
        let summary = Summary::of(samples).unwrap();
        let found = [summary.median, summary.p90, summary.p95, summary.p99];
        for (found, expected) in found.into_iter().zip(expected) {
            assert!(
                (found - expected).abs() < 1e-9,
                "{found} instead of {expected} of {samples:?}"
            );
        }
    }
}

#[test]
fn of_nothing_there_is_no_summary() {
    assert_eq!(Summary::of(&[]), None);
    assert_eq!(Summary::of(&[1.0, f64::NAN]), None);
    assert_eq!(median(&[]), None);
    assert_eq!(ratio_interval((&[0.0, 1.0], 0.0), (&[1.0], 0.0), 0.95), None);
    assert_eq!(ratio_interval((&[1.0], 0.0), (&[], 0.0), 0.95), None);
    assert!(dependence(&[]).abs() < 1e-9 && dependence(&[1.0; 5]).abs() < 1e-9);
}

#[test]
fn no_bound_of_times_is_less_than_none() {
    let drifting = [1.0, 20.0, 50.0, 100.0, 120.0, 130.0];
    let summary = Summary::of(&drifting).unwrap();
    assert!(
        dependence(&drifting) > 0.5 && summary.low > 0.0 && summary.low < 20.0,
        "{summary:?}"
    );
    // What may be less, as a difference may, is widened by as much on both sides.
    let differences = drifting.map(|sample| sample - 75.0);
    let summary = Summary::of(&differences).unwrap();
    assert!(summary.low < -75.0 && summary.high > 55.0, "{summary:?}");
}

#[test]
fn the_same_samples_have_the_same_interval() {
    let samples: Vec<f64> = (1..=30).map(f64::from).collect();
    let summary = Summary::of(&samples).unwrap();
    assert_eq!(Summary::of(&samples), Some(summary));
    assert!(summary.low < 15.5 && 15.5 < summary.high, "{summary:?}");
    let one = Summary::of(&[4.0]).unwrap();
    assert_eq!(
        (one.n, one.min, one.low, one.high, one.max),
        (1, 4.0, 4.0, 4.0, 4.0)
    );
}

/// Intervals hold what they are said to hold, as often as they are said to: samples of a known median.
#[test]
fn intervals_hold_the_median_as_often_as_they_say() {
    let mut draw = Draw::new(5);
    let tries = 200;
    let held = (0..tries).filter(|_| {
        let samples: Vec<f64> = (0..30).map(|_| 100.0 - 20.0 * draw.part().ln()).collect();
        // The median of an exponential distribution is its mean times ln 2.
        let median = 100.0 + 20.0 * std::f64::consts::LN_2;
        let summary = Summary::of(&samples).unwrap();
        summary.low <= median && median <= summary.high
    });
    let held = held.count();
    assert!((180..=199).contains(&held), "{held} of {tries}");
}

/// A chain of samples, each like the one before it by as much as is said, around 1.
pub(in super::super) fn chain(draw: &mut Draw, count: usize, like: f64, spread: f64) -> Vec<f64> {
    let mut state = 0.0;
    let step = (1.0 - like * like).sqrt();
    (0..count)
        .map(|_| {
            // Near enough to a normal distribution, with the variance 1.
            let common = (0..12).map(|_| draw.part()).sum::<f64>() - 6.0;
            state = like * state + step * common;
            1.0 + spread * state
        })
        .collect()
}

#[test]
fn what_is_like_the_sample_before_it_is_seen() {
    let mut draw = Draw::new(3);
    for like in [0.0, 0.4, 0.8] {
        let tries = 100;
        let sum: f64 = (0..tries)
            .map(|_| dependence(&chain(&mut draw, 30, like, 0.1)))
            .sum();
        let mean = sum / f64::from(tries);
        assert!((mean - like).abs() < 0.08, "{mean} instead of {like}");
    }
    let slope: Vec<f64> = (0..30).map(f64::from).collect();
    assert!(dependence(&slope) > 0.89);
}

/// Intervals of samples that drift hold the median nearly as often, and far more often than they would if the samples were
/// taken for independent ones.
#[test]
fn intervals_of_what_drifts_are_wider() {
    let mut draw = Draw::new(9);
    let tries = 200;
    let (mut held, mut held_unwidened) = (0, 0);
    for _ in 0..tries {
        let samples = chain(&mut draw, 60, 0.6, 0.1);
        let summary = Summary::of(&samples).unwrap();
        let factor = widening(dependence(&samples)).sqrt();
        let holds = |factor: f64| {
            let (below, above) = (summary.median - summary.low, summary.high - summary.median);
            summary.median - below / factor <= 1.0 && 1.0 <= summary.median + above / factor
        };
        held += u32::from(holds(1.0));
        held_unwidened += u32::from(holds(factor));
    }
    assert!(
        held >= 175 && held_unwidened + 25 <= held,
        "{held} and {held_unwidened} of {tries}"
    );
}

/// Of tables of Student's distribution.
#[test]
fn students_distribution_agrees_with_tables() {
    let check = |confidence, freedom, expected: f64| {
        let found = student(confidence, freedom);
        assert!(
            (found / expected - 1.0).abs() < 0.003,
            "{found} instead of {expected}"
        );
    };
    check(0.95, 1.0, 12.706);
    check(0.95, 10.0, 2.228);
    check(0.99, 2.0, 9.925);
    check(0.999, 30.0, 3.646);
    check(0.9999, 60.0, 4.169);
}

#[test]
fn drawing_is_even() {
    let mut draw = Draw::new(1);
    let mut counts = [0; 7];
    (0..7000).for_each(|_| counts[draw.below(7).unwrap()] += 1);
    assert!(
        counts.iter().all(|count| (900..1100).contains(count)),
        "{counts:?}"
    );
}
