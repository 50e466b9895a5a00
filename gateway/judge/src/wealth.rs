//! The *wealth* of a bettor against one claim: the sum of bets on several alternatives, each begun anew with a small
//! stake at every block. It ever exceeds `1 / error` with a probability of at most `error`, if the claim is true.

use serde::{Deserialize, Serialize};

use crate::exact;

/// The share that is staked at the first block; the rest is spread over all later ones.
const STAKE_FIRST: f64 = 0.75;

/// The part of a stake's logarithm at which a wealth counts as spent. It is a part, not a distance, so that early on,
/// where stakes are large, all that was seen belongs together.
const SPENT: f64 = 0.75;

/// Odds ratios of the canary's chance to the edge of the tolerance, and the share of the stake on each. Most of it is on
/// two to nine times: worth the hurry, where a request more or less counts. Hopeless canaries are found in a few
/// requests anyhow, and for slight differences the shares cost little beside what has to be gathered.
pub(crate) const WORSE: [(f64, f64); 9] = [
    (1.08, 0.05),
    (1.2, 0.07),
    (1.5, 0.11),
    (2.0, 0.16),
    (3.2, 0.25),
    (5.0, 0.17),
    (9.0, 0.10),
    (20.0, 0.05),
    (100.0, 0.04),
];

/// The same for a canary that is within tolerance. A canary like stable lies near 1.5 where the tolerance is half of
/// stable's share, and near 1 where it is a small part of it.
pub(crate) const NOT_WORSE: [(f64, f64); 6] = [
    (1.0 / 1.05, 0.1),
    (1.0 / 1.15, 0.15),
    (1.0 / 1.35, 0.25),
    (1.0 / 1.8, 0.25),
    (1.0 / 3.0, 0.15),
    (1.0 / 20.0, 0.1),
];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Wealth {
    /// Logarithms, one for each alternative.
    #[serde(with = "exact::list")]
    bets: Vec<f64>,
    /// Blocks that were bet on.
    blocks: u64,
    /// Logarithm of the sum.
    #[serde(with = "exact")]
    total: f64,
}

impl Wealth {
    pub(crate) fn new(alternatives: &[(f64, f64)]) -> Self {
        Self { bets: vec![f64::NEG_INFINITY; alternatives.len()], blocks: 0, total: STAKE_FIRST.ln() }
    }

    /// Returns the logarithm of the wealth: of how many times likelier what was seen is than the claim allows.
    pub(crate) const fn log(&self) -> f64 {
        self.total
    }

    /// Returns whether nothing has mounted: older bets are worth little more than the stake on the next block. They are
    /// always worth a bit more, since those on slight differences lose slowly; hence the margin.
    pub(crate) fn is_spent(&self) -> bool {
        self.blocks > 0 && self.total <= SPENT * log_stake(self.blocks)
    }

    /// Bets on a block; `log_e` has its e-value against an alternative's odds ratio. What exceeds `log_max` is given
    /// away, so that a long good time does not hide what comes after it.
    pub(crate) fn bet(&mut self, alternatives: &[(f64, f64)], log_max: f64, log_e: impl Fn(f64) -> f64) {
        let stake = log_stake(self.blocks);
        self.total = f64::NEG_INFINITY;
        for (bet, (ratio, share)) in self.bets.iter_mut().zip(alternatives) {
            *bet = log_sum(*bet, stake + share.ln()) + log_e(*ratio);
            self.total = log_sum(self.total, *bet);
        }
        self.blocks = self.blocks.saturating_add(1);
        if self.total > log_max {
            for bet in &mut self.bets {
                *bet -= self.total - log_max;
            }
            self.total = log_max;
        }
    }
}

/// Returns the logarithm of what is newly staked at a block. The shares of all later ones are differences of a sequence
/// that falls from 1 to 0 as slowly as one over a logarithm, so that starting late costs little more than its logarithm.
fn log_stake(block: u64) -> f64 {
    if block == 0 {
        return STAKE_FIRST.ln();
    }
    let block = block as f64;
    let (from, to) = (1.0 + block.ln(), 1.0 + (block + 1.0).ln());
    // Rounded down by a hair, so that rounding cannot make the sum exceed 1.
    ((1.0 - STAKE_FIRST) * (1.0 - 1e-9)).ln() + libm::log1p(1.0 / block).ln() - from.ln() - to.ln()
}

/// Returns `ln(eᵃ + eᵇ)`.
fn log_sum(a: f64, b: f64) -> f64 {
    let (most, least) = if a > b { (a, b) } else { (b, a) };
    if least - most < -40.0 {
        return most;
    }
    most + libm::log1p((least - most).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_staked_than_there_is() {
        for alternatives in [&WORSE[..], &NOT_WORSE[..]] {
            assert!(alternatives.iter().map(|(_, share)| share).sum::<f64>() <= 1.0 + 1e-12);
        }
        let staked: f64 = (0..1_000_000).map(|block| log_stake(block).exp()).sum();
        assert!(staked < 1.0 && staked > 0.95, "{staked}");
    }

    #[test]
    fn after_a_long_good_time_a_bet_begins_anew() {
        let mut wealth = Wealth::new(&WORSE);
        for _ in 0..100_000 {
            wealth.bet(&WORSE, f64::INFINITY, |_| -1.0);
        }
        assert!(wealth.is_spent() && wealth.log() > -20.0, "{}", wealth.log());
        for _ in 0..25 {
            wealth.bet(&WORSE, f64::INFINITY, |_| 1.0);
        }
        assert!(wealth.log() > 0.01_f64.recip().ln());
    }
}
