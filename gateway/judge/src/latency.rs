//! The buckets that latencies are counted in. They are log-linear: by the microsecond up to 64 µs, then 64 to each
//! doubling, up to 67 s. A bucket is at most 1.6 % wide, so quantiles that differ by a few per cent can be told apart.

use serde::{Deserialize, Serialize};

/// Buckets to a doubling, as a power of two.
const SUB_BITS: u32 = 6;

/// Latencies of 2²⁶ µs, about 67 s, and longer share the last bucket.
const TOP_BITS: u32 = 26;

/// Buckets that there are; an array of as many counters holds one track's latencies.
pub const BUCKETS: usize = (((TOP_BITS - SUB_BITS) as usize + 1) << SUB_BITS) + 1;

/// The last bucket, for all that took too long.
pub(crate) const OVERFLOW: usize = BUCKETS - 1;

/// Returns the bucket of a latency, below [`BUCKETS`].
pub const fn bucket(micros: u64) -> usize {
    if micros >= 1 << TOP_BITS {
        return OVERFLOW;
    }
    if micros < 1 << SUB_BITS {
        return micros as usize;
    }
    let shift = micros.ilog2() - SUB_BITS;
    ((shift as usize) << SUB_BITS) + (micros >> shift) as usize
}

/// Returns the first latency in microseconds that is beyond a bucket. Of the last one, that is the same as of the one
/// before: what lies there has no bound.
pub const fn bound_micros(bucket: usize) -> u64 {
    let next = if bucket >= OVERFLOW { OVERFLOW } else { bucket + 1 };
    if next < 1 << SUB_BITS {
        return next as u64;
    }
    let shift = (next >> SUB_BITS) - 1;
    ((next - (shift << SUB_BITS)) as u64) << shift
}

/// Latencies that were counted, as pairs of a bucket and a count. Empty buckets need not be there; the order is free.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latencies(pub Vec<(u16, u64)>);

impl Latencies {
    /// Takes one counter for each bucket, as the data plane has them; what was already taken is `before`.
    pub fn since(counters: impl IntoIterator<Item = u64>, before: &mut [u64]) -> Self {
        let mut grown = Vec::new();
        for (bucket, (now, before)) in (0_u16..).zip(counters.into_iter().zip(before)) {
            let increment = now.saturating_sub(*before);
            *before = now;
            if increment > 0 {
                grown.push((bucket, increment));
            }
        }
        Self(grown)
    }

    /// Returns how many latencies there are.
    pub fn count(&self) -> u64 {
        self.0.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }
}

impl FromIterator<u64> for Latencies {
    /// Counts latencies in microseconds.
    fn from_iter<T: IntoIterator<Item = u64>>(micros: T) -> Self {
        let mut counts: Vec<(u16, u64)> = Vec::new();
        let mut buckets: Vec<_> =
            micros.into_iter().map(|micros| u16::try_from(bucket(micros)).unwrap_or(u16::MAX)).collect();
        buckets.sort_unstable();
        for bucket in buckets {
            match counts.last_mut() {
                Some((last, count)) if *last == bucket => *count += 1,
                _ => counts.push((bucket, 1)),
            }
        }
        Self(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_latency_lies_below_the_bound_of_its_bucket_and_not_below_that_of_the_one_before() {
        for micros in (0..100_000).chain((1..26).flat_map(|bits| [(1 << bits) - 1, 1 << bits, (1 << bits) + 1])) {
            let bucket = bucket(micros);
            assert!(micros < bound_micros(bucket), "{micros} in {bucket}");
            assert!(bucket == 0 || micros >= bound_micros(bucket - 1), "{micros} in {bucket}");
        }
    }

    #[test]
    fn a_bucket_is_at_most_one_sixty_fourth_wide_above_64_microseconds() {
        for bucket in 64..OVERFLOW {
            let (from, to) = (bound_micros(bucket - 1), bound_micros(bucket));
            assert!((to - from) * 64 <= from, "{bucket}: {from}..{to}");
        }
    }

    #[test]
    fn what_takes_longer_than_a_minute_is_in_the_last_bucket() {
        assert!(bucket(60_000_000) < OVERFLOW);
        assert_eq!([bucket(1 << TOP_BITS), bucket(u64::MAX)], [OVERFLOW; 2]);
        assert_eq!(bound_micros(OVERFLOW - 1), 1 << TOP_BITS);
    }

    #[test]
    fn counters_are_taken_once() {
        let mut before = [0; 4];
        assert_eq!(Latencies::since([0, 2, 0, 1], &mut before), Latencies(vec![(1, 2), (3, 1)]));
        assert_eq!(Latencies::since([0, 2, 0, 4], &mut before), Latencies(vec![(3, 3)]));
    }
}
