//! The bet on one block: how much likelier its outcomes are if the canary is as bad, or as good, as an alternative says
//! than at the edge of the tolerance. The crate's documentation has the proof that the expectation is at most 1.

use serde::{Deserialize, Serialize};

use crate::exact;

/// Chances are kept this far away from 0 and 1, so that no logarithm is infinite.
const CHANCE_MIN: f64 = 1e-9;

/// What is left of a stake at worst, for one request. Without it, one outcome could end a bet for good.
const FACTOR_MIN: f64 = 1e-6;

/// Steps towards the best middle between the tracks. Any middle makes a valid bet; after four, none is found that gains
/// a thousandth.
const STEPS: usize = 4;

/// Requests of one track in a block, and how many of them went bad.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcomes {
    #[serde(with = "exact")]
    pub(crate) requests: f64,
    #[serde(with = "exact")]
    pub(crate) events: f64,
}

impl Outcomes {
    /// Returns the logarithm of the factors `1 + slope (y − center)`, multiplied over all requests.
    fn log_factor(self, slope: f64, center: f64) -> f64 {
        let bad = libm::log1p(slope * (1.0 - center));
        let good = libm::log1p(-slope * center);
        self.events * bad + (self.requests - self.events) * good
    }
}

/// Keeps a chance where logarithms are finite.
pub(crate) const fn chance(value: f64) -> f64 {
    value.clamp(CHANCE_MIN, 1.0 - CHANCE_MIN)
}

/// Returns the chance whose odds are `ratio` times those of `edge`.
pub(crate) fn at_odds(edge: f64, ratio: f64) -> f64 {
    chance(edge * ratio / (1.0 - edge + edge * ratio))
}

/// Returns the logarithm of a block's e-value against "the canary's chance is stable's plus the tolerance, or on the
/// other side of that than the alternative".
///
/// `baseline` is stable's chance and `alternative` the canary's, as they are presumed; both must have been settled
/// before the block began.
pub(crate) fn log_e(stable: Outcomes, canary: Outcomes, baseline: f64, alternative: f64, tolerance: f64) -> f64 {
    let edge = baseline + tolerance;
    if stable.requests <= 0.0 || canary.requests <= 0.0 || edge >= 1.0 - CHANCE_MIN {
        return 0.0;
    }
    let alternative = chance(alternative);
    // The middle: the nearest point of the edge, where both presumed chances are wrong and together least so. Each
    // track pulls with its requests and its precision.
    let mut middle = baseline;
    for _ in 0..STEPS {
        let precision_stable = stable.requests / (middle * (1.0 - middle));
        let precision_canary = canary.requests / ((middle + tolerance) * (1.0 - middle - tolerance));
        let pulled = (precision_stable * baseline + precision_canary * (alternative - tolerance))
            / (precision_stable + precision_canary);
        middle = pulled.max(middle * 0.1).clamp(CHANCE_MIN, (1.0 - tolerance) * (1.0 - CHANCE_MIN));
    }
    let center = chance(middle + tolerance);
    let slope = (alternative - center) / (center * (1.0 - center));
    let balance = -slope * canary.requests / stable.requests;
    // Off the exact middle, the balanced slope can be too steep to leave a positive factor.
    let allowed = (1.0 - FACTOR_MIN) / if balance > 0.0 { middle } else { 1.0 - middle };
    let shrink = (allowed / balance.abs()).min(1.0);
    if !shrink.is_finite() {
        return 0.0;
    }
    canary.log_factor(slope * shrink, center) + stable.log_factor(balance * shrink, middle)
}

/// The same for one track against a fixed bound.
pub(crate) fn log_e_fixed(canary: Outcomes, alternative: f64, bound: f64) -> f64 {
    let bound = chance(bound);
    canary.log_factor((alternative - bound) / (bound * (1.0 - bound)), bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn of(requests: f64, events: f64) -> Outcomes {
        Outcomes { requests, events }
    }

    /// Sums over everything that can happen in a block.
    fn expectation(m: u32, n: u32, p_stable: f64, p_canary: f64, log_e: impl Fn(Outcomes, Outcomes) -> f64) -> f64 {
        let binomial = |n: u32, k: u32, p: f64| {
            let ways = (0..k).map(|i| f64::from(n - i) / f64::from(i + 1)).product::<f64>();
            ways * p.powi(k.cast_signed()) * (1.0 - p).powi((n - k).cast_signed())
        };
        let mut sum = 0.0;
        for bad_stable in 0..=m {
            for bad_canary in 0..=n {
                let e = log_e(of(m as f64, bad_stable as f64), of(n as f64, bad_canary as f64)).exp();
                sum += binomial(m, bad_stable, p_stable) * binomial(n, bad_canary, p_canary) * e;
            }
        }
        sum
    }

    #[test]
    fn against_a_canary_within_tolerance_no_bet_is_expected_to_gain() {
        for (m, n) in [(1, 1), (19, 1), (1, 19), (12, 8), (40, 10)] {
            for baseline in [0.001, 0.01, 0.3, 0.9] {
                for ratio in [1.05, 3.0, 100.0] {
                    for tolerance in [1e-9, 0.005, 0.09] {
                        let worse = |stable, canary| {
                            log_e(stable, canary, baseline, at_odds(baseline + tolerance, ratio), tolerance)
                        };
                        let better = |stable, canary| {
                            log_e(stable, canary, baseline, at_odds(baseline + tolerance, 1.0 / ratio), tolerance)
                        };
                        for truth in [1e-4, 0.008, 0.01, 0.05, 0.4, 0.9] {
                            let edge = truth + tolerance;
                            for inside in [edge, edge * 0.7, 0.0] {
                                let e = expectation(m, n, truth, inside, worse);
                                assert!(
                                    e <= 1.0 + 1e-9,
                                    "worse: {e} at {m} {n} {baseline} {ratio} {tolerance} {truth} {inside}"
                                );
                            }
                            for inside in [edge, (edge * 1.3).min(1.0), 1.0] {
                                let e = expectation(m, n, truth, inside, better);
                                assert!(
                                    e <= 1.0 + 1e-9,
                                    "better: {e} at {m} {n} {baseline} {ratio} {tolerance} {truth} {inside}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_bet_on_the_truth_gains_nearly_what_it_would_if_stable_were_known() {
        let (stable, canary) = (of(19_000.0, 190.0), of(1_000.0, 50.0));
        let gained = log_e(stable, canary, 0.01, 0.05, 0.005);
        let known = log_e_fixed(canary, 0.05, 0.015);
        assert!(gained > 0.93 * known && gained <= known, "{gained} of {known}");
    }
}
