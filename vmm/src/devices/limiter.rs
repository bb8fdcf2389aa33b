//! Token buckets: how much of something may pass in a time.
//!
//! A bucket is filled at its rate up to its burst. As long as there is anything in it, something may pass, however large,
//! and the bucket then owes what was missing: so nothing has to be known about a packet before it is there, the rate holds
//! over time, and a burst that is smaller than a packet stops nothing for good.
//!
//! Time is handed in, so that nothing here looks at a clock: a device that is not limited never does.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::bus::lock;
use crate::config::{LimitsConfig, RateConfig};

/// Tokens are counted in these parts, so that a nanosecond's share of any rate is a whole number.
const PARTS: i128 = 1_000_000_000;

/// One bucket.
#[derive(Clone, Debug)]
pub struct Bucket {
    per_second: i128,
    /// In parts, as the level is.
    most: i128,
    level: i128,
    filled: Instant,
}

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub fn new(rate: RateConfig, now: Instant) -> Self {
        let most = i128::from(rate.burst.max(1)) * PARTS;
        Self {
            per_second: i128::from(rate.per_second.max(1)),
            most,
            level: most,
            filled: now,
        }
    }

    /// How long nothing may pass; `None` if something may now.
    pub fn wait(&mut self, now: Instant) -> Option<Duration> {
        let elapsed = now.saturating_duration_since(self.filled).as_nanos();
        self.filled = self.filled.max(now);
        // Both factors are below 2^95 and 2^64, and an i128 is saturated rather than wrapped.
        let share = i128::try_from(elapsed).unwrap_or(i128::MAX);
        self.level = self
            .level
            .saturating_add(share.saturating_mul(self.per_second))
            .min(self.most);
        if self.level > 0 {
            return None;
        }
        // Until the level is above zero.
        let nanoseconds = -self.level / self.per_second + 1;
        Some(Duration::from_nanos(
            u64::try_from(nanoseconds).unwrap_or(u64::MAX),
        ))
    }

    /// Takes out what has passed.
    pub fn take(&mut self, count: usize) {
        let parts = i128::try_from(count).map_or(i128::MAX, |count| count.saturating_mul(PARTS));
        self.level = self.level.saturating_sub(parts);
    }
}

/// The limits of one stream, shared by all that serve it.
#[derive(Clone, Debug)]
pub struct Limiter(Option<Arc<Mutex<Buckets>>>);

#[derive(Debug)]
struct Buckets {
    bytes: Option<Bucket>,
    packets: Option<Bucket>,
}

impl Limiter {
    /// Full buckets for `limits`.
    #[must_use]
    pub fn new(limits: LimitsConfig, now: Instant) -> Self {
        if limits == LimitsConfig::default() {
            return Self(None);
        }
        let bucket = |rate: Option<RateConfig>| rate.map(|rate| Bucket::new(rate, now));
        Self(Some(Arc::new(Mutex::new(Buckets {
            bytes: bucket(limits.bytes),
            packets: bucket(limits.packets),
        }))))
    }

    /// How long no packet may pass; `None` if one may now. `clock` is only asked where there is a limit.
    #[must_use]
    pub fn wait(&self, clock: impl FnOnce() -> Instant) -> Option<Duration> {
        let mut buckets = lock(self.0.as_ref()?);
        let now = clock();
        let bytes = buckets.bytes.as_mut().and_then(|bucket| bucket.wait(now));
        let packets = buckets.packets.as_mut().and_then(|bucket| bucket.wait(now));
        bytes.max(packets)
    }

    /// A packet of `bytes` has passed.
    pub fn take(&self, bytes: usize) {
        let Some(shared) = &self.0 else { return };
        let mut buckets = lock(shared);
        if let Some(bucket) = &mut buckets.bytes {
            bucket.take(bytes);
        }
        if let Some(bucket) = &mut buckets.packets {
            bucket.take(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    fn rate(per_second: u64, burst: u64) -> RateConfig {
        RateConfig { per_second, burst }
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(rate(1000, 5), start);
        for _ in 0..5 {
            assert_eq!(bucket.wait(start), None);
            bucket.take(1);
        }
        // A token comes each millisecond; the first nanosecond of it lets one pass, on credit.
        assert_eq!(bucket.wait(start), Some(Duration::from_nanos(1)));
        let mut passed = 0;
        for millisecond in 1..=100 {
            while bucket.wait(start + MILLISECOND * millisecond).is_none() {
                bucket.take(1);
                passed += 1;
            }
        }
        assert_eq!(passed, 100);
        // Nothing is saved beyond the burst.
        let later = start + Duration::from_secs(3600);
        let mut passed = 0;
        while bucket.wait(later).is_none() {
            bucket.take(1);
            passed += 1;
        }
        assert_eq!(passed, 5);
    }

    #[test]
    fn what_was_too_large_is_owed() {
        let start = Instant::now();
        let mut bucket = Bucket::new(rate(1000, 10), start);
        bucket.take(65536);
        let wait = bucket.wait(start).unwrap();
        assert_eq!(wait, Duration::from_millis(65526) + Duration::from_nanos(1));
        assert_eq!(
            bucket.wait(start + wait - Duration::from_nanos(1)),
            Some(Duration::from_nanos(1))
        );
        assert_eq!(bucket.wait(start + wait), None);
    }

    #[test]
    fn nothing_overflows_and_time_may_stand_still() {
        let start = Instant::now();
        let mut bucket = Bucket::new(rate(u64::MAX, u64::MAX), start);
        let century = Duration::from_secs(100 * 365 * 86400);
        assert_eq!(bucket.wait(start + century), None);
        bucket.take(usize::MAX);
        assert_eq!(bucket.wait(start), Some(Duration::from_nanos(1)));
        let mut slow = Bucket::new(rate(1, 1), start);
        for _ in 0..100 {
            slow.take(usize::MAX);
        }
        assert!(slow.wait(start).is_some_and(|wait| wait > century));
    }

    #[test]
    fn both_limits_hold_for_all_who_share_them() {
        let start = Instant::now();
        let limits = LimitsConfig {
            bytes: Some(rate(1000, 3000)),
            packets: Some(rate(1, 4)),
        };
        let first = Limiter::new(limits, start);
        let second = first.clone();
        let mut passed = Vec::new();
        for (limiter, bytes) in [&first, &second].into_iter().cycle().zip([1500, 100, 1500, 1500]) {
            if limiter.wait(|| start).is_none() {
                limiter.take(bytes);
                passed.push(bytes);
            }
        }
        assert_eq!(passed, [1500, 100, 1500], "bytes");
        let later = start + Duration::from_secs(2);
        assert_eq!(second.wait(|| later), None);
        for _ in 0..3 {
            second.take(1);
        }
        assert_eq!(
            first.wait(|| later),
            Some(Duration::from_nanos(1)),
            "packets: three and one and two were saved"
        );
    }

    #[test]
    fn no_limit_asks_no_clock() {
        let limiter = Limiter::new(LimitsConfig::default(), Instant::now());
        limiter.take(usize::MAX);
        assert_eq!(limiter.wait(|| unreachable!("the clock was asked")), None);
    }
}
