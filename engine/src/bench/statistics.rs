//! The few statistics that a report needs, each by one documented method, so that anybody can compute them again from the
//! raw samples.
//!
//! - Percentiles are those of Hyndman and Fan's definition 7 (Sample quantiles in statistical packages, 1996): linear
//!   between order statistics, which R and NumPy have as default.
//! - Samples are drawn again, with replacement (Efron, Tibshirani: An introduction to the bootstrap, 1993), by a generator with a
//!   fixed seed, so the same samples have the same interval. The interval of a median is that of percentiles (chapter 13), the
//!   error of a ratio the standard deviation of what was drawn (chapter 6).
//! - Samples that follow each other are alike where the machine drifts, and then tell less than as many independent ones. What
//!   an interval of independent samples would be is widened by the square root of (1 + r) / (1 - r), and the degrees of freedom
//!   are fewer by that factor's square (Zwiers, von Storch: Taking serial correlation into account in tests of the mean, 1995);
//!   r is the correlation of each sample's rank with the next one's ([`dependence`]).

use serde::{Deserialize, Serialize};

/// Confidence of the intervals that a report shows.
pub const CONFIDENCE: f64 = 0.95;

/// Times that samples are drawn again.
const RESAMPLES: usize = 2000;

/// Of the generator that draws them.
const SEED: u64 = 0x7276_6d20_6265_6e63;

/// What is told of some samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// Number of samples.
    pub n: usize,
    /// The least.
    pub min: f64,
    /// Half of them are at most this.
    pub median: f64,
    /// Nine of ten are at most this.
    pub p90: f64,
    /// 95 of a hundred are.
    pub p95: f64,
    /// 99 of a hundred are.
    pub p99: f64,
    /// The greatest.
    pub max: f64,
    /// Between these is the median of what was sampled, with [`CONFIDENCE`].
    pub low: f64,
    /// See `low`.
    pub high: f64,
}

impl Summary {
    /// Of these samples; `None` of none, and of what is no number.
    #[must_use]
    pub fn of(samples: &[f64]) -> Option<Self> {
        let sorted = sorted(samples)?;
        let (low, high) = interval(RESAMPLES, CONFIDENCE, |draw| draw.median(&sorted))?;
        let median = quantile(&sorted, 0.5)?;
        let factor = widening(dependence(samples)).sqrt();
        // By proportion where all are more than nothing, so that no bound of times or sizes comes to be less.
        let positive = sorted.first().is_some_and(|least| *least > 0.0);
        let widen = |bound: f64| {
            if positive {
                median * (bound / median).powf(factor)
            } else {
                (bound - median).mul_add(factor, median)
            }
        };
        Some(Self {
            n: sorted.len(),
            min: *sorted.first()?,
            median,
            p90: quantile(&sorted, 0.9)?,
            p95: quantile(&sorted, 0.95)?,
            p99: quantile(&sorted, 0.99)?,
            max: *sorted.last()?,
            low: widen(low),
            high: widen(high),
        })
    }
}

/// The samples in order; `None` if there are none, or one is not finite.
fn sorted(samples: &[f64]) -> Option<Vec<f64>> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    (!sorted.is_empty() && sorted.iter().all(|sample| sample.is_finite())).then_some(sorted)
}

/// The sample below which a part of `sorted` lies.
fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let place = number(sorted.len().checked_sub(1)?) * part;
    let below = place.floor();
    let index = sorted.len().min(index(below));
    let lower = *sorted.get(index)?;
    let upper = *sorted.get(index + 1).unwrap_or(&lower);
    Some((upper - lower).mul_add(place - below, lower))
}

/// The median of samples in any order.
#[must_use]
pub fn median(samples: &[f64]) -> Option<f64> {
    percentile(samples, 0.5)
}

/// The sample below which a part of them lies, in any order.
#[must_use]
pub fn percentile(samples: &[f64], part: f64) -> Option<f64> {
    quantile(&sorted(samples)?, part)
}

/// No more is believed: of so few samples a higher one cannot be told from a slope.
const HIGHEST_DEPENDENCE: f64 = 0.9;

/// How much each sample is like the one before it, from 0 (or less, by chance) to 0.9: the lag-1 autocorrelation of their ranks, which outliers do not
/// move, without its bias in few samples (Marriott, Pope: Bias in the estimation of autocorrelations, 1954).
#[must_use]
pub fn dependence(samples: &[f64]) -> f64 {
    let ranks = ranks(samples);
    let count = number(ranks.len()).max(1.0);
    let mean = ranks.iter().sum::<f64>() / count;
    let variance: f64 = ranks.iter().map(|rank| (rank - mean).powi(2)).sum();
    if variance == 0.0 {
        return 0.0;
    }
    let together: f64 = ranks
        .windows(2)
        .filter_map(|pair| match pair {
            [one, next] => Some((one - mean) * (next - mean)),
            _ => None,
        })
        .sum();
    let found = together / variance;
    (found + (1.0 + 4.0 * found) / count).min(HIGHEST_DEPENDENCE)
}

/// The place of each sample in their order; those that are equal share theirs.
fn ranks(samples: &[f64]) -> Vec<f64> {
    let place = |sample: &f64| {
        let below = samples.iter().filter(|other| *other < sample).count();
        let equal = samples.iter().filter(|other| *other == sample).count();
        number(below) + number(equal) / 2.0
    };
    samples.iter().map(place).collect()
}

/// By how much the variance of a median of samples with this dependence is greater than of independent ones.
fn widening(dependence: f64) -> f64 {
    let dependence = dependence.clamp(0.0, HIGHEST_DEPENDENCE);
    (1.0 + dependence) / (1.0 - dependence)
}

/// What is known of the logarithm of a median.
struct Estimate {
    value: f64,
    /// Its standard error.
    error: f64,
    /// Degrees of freedom of that error.
    freedom: f64,
}

impl Estimate {
    /// Of positive samples.
    fn of(samples: &[f64], dependence: f64) -> Option<Self> {
        let sorted = sorted(samples).filter(|sorted| sorted.first() > Some(&0.0))?;
        let mut draw = Draw::new(SEED);
        let drawn = (0..RESAMPLES)
            .map(|_| draw.median(&sorted).map(f64::ln))
            .collect::<Option<Vec<f64>>>()?;
        let mean = drawn.iter().sum::<f64>() / number(drawn.len());
        let variance = drawn.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / number(drawn.len());
        let widening = widening(dependence);
        Some(Self {
            value: quantile(&sorted, 0.5)?.ln(),
            error: (variance * widening).sqrt(),
            freedom: (number(sorted.len()) / widening - 1.0).max(FEWEST_FREEDOM),
        })
    }
}

/// With fewer degrees of freedom an interval has no end that could be read.
const FEWEST_FREEDOM: f64 = 2.0;

/// Between which numbers the ratio of the second median to the first lies, with this confidence, given how much samples are like
/// the ones before them. `None` where there are no samples, or they are not all positive.
///
/// It is that of Welch (The generalization of Student's problem, 1947) for the difference of the medians' logarithms.
#[must_use]
pub fn ratio_interval(before: (&[f64], f64), after: (&[f64], f64), confidence: f64) -> Option<(f64, f64)> {
    let (before, after) = (Estimate::of(before.0, before.1)?, Estimate::of(after.0, after.1)?);
    let difference = after.value - before.value;
    let (one, other) = (before.error.powi(2), after.error.powi(2));
    if one + other == 0.0 {
        return Some((difference.exp(), difference.exp()));
    }
    let freedom = (one + other).powi(2) / (one.powi(2) / before.freedom + other.powi(2) / after.freedom);
    let reach = (one + other).sqrt() * student(confidence, freedom);
    Some(((difference - reach).exp(), (difference + reach).exp()))
}

/// Steps of an integral. The tails that are asked for are hundreds of them wide.
const STEPS: u32 = 5_000;

/// How many standard errors to both sides hold this part of Student's distribution: with `t = sqrt(freedom) tan a`, its density is
/// `cos(a) ^ (freedom - 1)` but for a constant, which is added up from the tail until enough is left out.
fn student(confidence: f64, freedom: f64) -> f64 {
    let angle = |step: u32| std::f64::consts::FRAC_PI_2 * (f64::from(step) + 0.5) / f64::from(STEPS);
    // The sine of the angle to the tail's end is the cosine, without loss of digits.
    let density = |step: u32| angle(step).sin().powf(freedom - 1.0);
    let whole: f64 = (0..STEPS).map(density).sum();
    let mut left_out = 0.0;
    for step in 0..STEPS {
        left_out += density(step);
        if left_out >= (1.0 - confidence) * whole {
            return freedom.sqrt() / angle(step).tan();
        }
    }
    0.0
}

/// Draws samples again and again, and says between which numbers the middle part of what comes out lies.
fn interval(
    times: usize,
    confidence: f64,
    mut statistic: impl FnMut(&mut Draw) -> Option<f64>,
) -> Option<(f64, f64)> {
    let mut draw = Draw::new(SEED);
    let mut outcomes = (0..times)
        .map(|_| statistic(&mut draw))
        .collect::<Option<Vec<f64>>>()?;
    outcomes.sort_by(f64::total_cmp);
    let tail = (1.0 - confidence) / 2.0;
    Some((quantile(&outcomes, tail)?, quantile(&outcomes, 1.0 - tail)?))
}

/// Draws with replacement.
pub(super) struct Draw {
    state: u64,
    /// How often each sample was drawn.
    counts: Vec<usize>,
}

impl Draw {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            state: seed,
            counts: Vec::new(),
        }
    }

    /// The median of as many samples as there are, drawn from them; they are in order, so counting takes the place of sorting.
    fn median(&mut self, sorted: &[f64]) -> Option<f64> {
        self.counts.clear();
        self.counts.resize(sorted.len(), 0);
        for _ in sorted {
            let drawn = self.below(sorted.len())?;
            *self.counts.get_mut(drawn)? += 1;
        }
        // The same one where their number is odd.
        let lower = self.drawn(sorted, (sorted.len() - 1) / 2)?;
        let upper = self.drawn(sorted, sorted.len() / 2)?;
        Some(f64::midpoint(lower, upper))
    }

    /// What comes at a place in the order of what was drawn.
    fn drawn(&self, sorted: &[f64], place: usize) -> Option<f64> {
        let mut passed = 0;
        for (sample, count) in sorted.iter().zip(&self.counts) {
            passed += count;
            if passed > place {
                return Some(*sample);
            }
        }
        None
    }

    /// A number below `count`, by the upper half of a product (Lemire: Fast random integer generation in an interval, 2019);
    /// with 64 bits its bias is far below what could be seen.
    fn below(&mut self, count: usize) -> Option<usize> {
        let product = u128::from(self.next()) * u128::try_from(count).ok()?;
        usize::try_from(product >> 64).ok()
    }

    /// `SplitMix64` (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[expect(clippy::cast_precision_loss, reason = "there are never 2^52 samples")]
fn number(count: usize) -> f64 {
    count as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a whole number between 0 and the number of samples"
)]
fn index(place: f64) -> usize {
    place.max(0.0) as usize
}

#[cfg(test)]
pub(super) mod tests;
