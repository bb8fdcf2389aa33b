//! The few statistics that a report needs, each by one documented method, so that anybody can compute them again from the
//! raw samples.
//!
//! - Percentiles are those of Hyndman and Fan's definition 7 (Sample quantiles in statistical packages, 1996): linear
//!   between order statistics, which R and NumPy have as default.
//! - Intervals are percentile bootstrap intervals (Efron, Tibshirani: An introduction to the bootstrap, 1993, chapter 13):
//!   samples are drawn again, with replacement, by a generator with a fixed seed, so the same samples have the same interval.

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
        Some(Self {
            n: sorted.len(),
            min: *sorted.first()?,
            median: quantile(&sorted, 0.5)?,
            p90: quantile(&sorted, 0.9)?,
            p95: quantile(&sorted, 0.95)?,
            p99: quantile(&sorted, 0.99)?,
            max: *sorted.last()?,
            low,
            high,
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
    quantile(&sorted(samples)?, 0.5)
}

/// How often samples are drawn again for an interval that leaves out so little that it has to be found in the tails.
const RESAMPLES_OF_RATIO: usize = 5000;

/// Between which numbers the ratio of the second median to the first lies, with this confidence. `None` where there are no
/// samples, or the first ones are not all positive.
#[must_use]
pub fn ratio_interval(before: &[f64], after: &[f64], confidence: f64) -> Option<(f64, f64)> {
    let positive = |samples: &[f64]| sorted(samples).filter(|sorted| sorted.first() > Some(&0.0));
    let (before, after) = (positive(before)?, positive(after)?);
    interval(RESAMPLES_OF_RATIO, confidence, |draw| {
        Some(draw.median(&after)? / draw.median(&before)?)
    })
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
mod tests;
