//! Confidence sequences: intervals that hold at all times at once.

use std::f64::consts::PI;

/// Halvings when an end is searched for: enough for all digits of a share.
const HALVINGS: usize = 60;

/// Returns the logarithm of the Beta(½, ½) mixture of likelihood ratios against a share: the evidence that the true
/// share is another.
fn log_evidence(requests: f64, events: f64, share: f64) -> f64 {
    let mixture = libm::lgamma(events + 0.5) + libm::lgamma(requests - events + 0.5) - libm::lgamma(requests + 1.0);
    let log = |count: f64, share: f64| if count > 0.0 { count * share.ln() } else { 0.0 };
    mixture - PI.ln() - log(events, share) - log(requests - events, 1.0 - share)
}

/// Returns the ends of a share's confidence sequence.
pub(crate) fn share(requests: f64, events: f64, error: f64) -> (f64, f64) {
    if requests <= 0.0 {
        return (0.0, 1.0);
    }
    let estimate = events / requests;
    let limit = error.recip().ln();
    let end = |mut inside: f64, mut outside: f64| {
        for _ in 0..HALVINGS {
            let middle = f64::midpoint(inside, outside);
            if log_evidence(requests, events, middle) < limit {
                inside = middle;
            } else {
                outside = middle;
            }
        }
        outside
    };
    (if events > 0.0 { end(estimate, 0.0) } else { 0.0 }, if events < requests { end(estimate, 1.0) } else { 1.0 })
}

/// Returns the first and the last bucket in which a quantile's confidence sequence lies, of a histogram.
pub(crate) fn quantile(counts: &[u64], level: f64, error: f64) -> (usize, usize) {
    let limit = error.recip().ln();
    let mut sum = 0.0;
    let below: Vec<f64> = counts
        .iter()
        .map(|count| {
            sum += as_f64(*count);
            sum
        })
        .collect();
    if sum <= 0.0 {
        return (0, counts.len().saturating_sub(1));
    }
    // Both predicates change once along the buckets, since the sums rise.
    let too_few = |upto: f64| upto / sum < level && log_evidence(sum, upto, level) >= limit;
    let surely_enough = |upto: f64| upto / sum > level && log_evidence(sum, upto, level) >= limit;
    let first = below.partition_point(|upto| too_few(*upto));
    let last = below.partition_point(|upto| !surely_enough(*upto));
    let top = counts.len().saturating_sub(1);
    (first.min(top), last.min(top))
}

/// Returns the bucket that a quantile lies in.
pub(crate) fn quantile_bucket(counts: &[u64], level: f64) -> usize {
    let total: f64 = counts.iter().map(|count| as_f64(*count)).sum();
    let mut sum = 0.0;
    counts
        .iter()
        .position(|count| {
            sum += as_f64(*count);
            sum > 0.0 && sum >= level * total
        })
        .unwrap_or(0)
}

/// Returns a count as a number to calculate with.
pub(crate) const fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_holds_the_estimate_and_narrows() {
        let mut width = 1.0;
        for requests in [10.0, 100.0, 10_000.0, 1e8] {
            let (low, high) = share(requests, requests / 10.0, 0.01);
            assert!(low < 0.1 && 0.1 < high && high - low < width, "{requests}: {low}..{high}");
            width = high - low;
        }
        assert!(width < 4e-4);
    }

    #[test]
    fn without_events_the_lower_end_is_nothing() {
        let (low, high) = share(1_000.0, 0.0, 0.01);
        assert!(low == 0.0 && high > 0.005 && high < 0.015, "{high}");
    }

    #[test]
    fn a_quantile_lies_within_its_buckets() {
        let counts: Vec<u64> = vec![100; 100];
        let (first, last) = quantile(&counts, 0.9, 0.01);
        assert_eq!(quantile_bucket(&counts, 0.9), 89);
        assert!((85..89).contains(&first) && (90..95).contains(&last), "{first} {last}");
        assert_eq!(quantile(&[0; 5], 0.9, 0.01), (0, 4));
    }
}
