//! The processor: a computation with a known result, and memory.

use std::hint::black_box;

use anyhow::Result;

use super::{Measure, timed};

/// Steps of the computation.
const STEPS: u64 = 20_000_000;

/// Bytes of each of two buffers: more than caches hold.
const BUFFER: usize = 32 << 20;

/// Times that a buffer is copied or read.
const PASSES: u64 = 8;

pub(super) fn measure() -> Result<Vec<Measure>> {
    let compute = timed("compute", STEPS, || Ok(compute(black_box(STEPS))))?;
    let source: Vec<u8> = (0..BUFFER).map(pattern).collect();
    // Written before it is timed, so that its pages are there.
    let mut copy = vec![1; BUFFER];
    let bytes = u64::try_from(BUFFER)? * PASSES;
    let copied = timed("memory-copy", bytes, || {
        for _ in 0..PASSES {
            black_box(&mut copy).copy_from_slice(black_box(&source));
        }
        Ok(0)
    })?;
    let copied = Measure {
        check: sum_of_bytes(&copy),
        ..copied
    };
    let read = timed("memory-read", bytes, || {
        Ok((0..PASSES)
            .map(|_| sum_of_words(black_box(&source)))
            .fold(0, u64::wrapping_add))
    })?;
    Ok(vec![compute, copied, read])
}

/// A chain of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014), each output folded into
/// the next.
pub(super) fn compute(steps: u64) -> u64 {
    let (mut state, mut sum) = (0_u64, 0_u64);
    for _ in 0..steps {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state ^ sum;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        sum = sum.rotate_left(1) ^ mixed ^ (mixed >> 31);
    }
    sum
}

fn pattern(index: usize) -> u8 {
    index.wrapping_mul(31).wrapping_add(7).to_le_bytes()[0]
}

fn sum_of_bytes(bytes: &[u8]) -> u64 {
    bytes.iter().map(|byte| u64::from(*byte)).sum()
}

fn sum_of_words(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    words
        .iter()
        .fold(0, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected numbers are of a program in another language.
    #[test]
    fn the_computation_has_a_known_result() {
        assert_eq!(compute(1), 0xe220_a839_7b1d_cdaf);
        assert_eq!(compute(1000), 0xae1d_7353_a1dc_d695);
        assert_eq!(
            sum_of_bytes(&(0..512).map(pattern).collect::<Vec<_>>()),
            2 * 255 * 128
        );
        assert_eq!(
            sum_of_words(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
            257
        );
    }
}
