//! A *watch* follows one signal: it gathers blocks, bets on them in both directions, and says what that shows.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::bet::{self, Outcomes};
use crate::interval::{self, as_f64};
use crate::latency::{self, BUCKETS, OVERFLOW};
use crate::tally::{Counts, Histogram, Tally};
use crate::verdict::{Arm, Conclusion, Evidence, Interval, Measure, Missing};
use crate::wealth::{NOT_WORSE, WORSE, Wealth};
use crate::{Guard, Latencies, Reading, Signal, exact};

/// Requests of either track that make a block. With fewer, the tracks would often be out of proportion within it, and
/// much of what it shows be lost; with more, a verdict would wait for the block's end.
const BLOCK_REQUESTS_MIN: f64 = 8.0;

/// Stable's requests that must have been learned from before the first bet.
const LEARNED_MIN: f64 = 32.0;

/// Of these, the ones that must lie beyond a quantile, or it cannot be placed.
const LEARNED_BEYOND_MIN: f64 = 5.0;

/// Stable's requests after which what was learned is halved, so that it follows a drift.
const LEARNED_MAX: f64 = 200_000.0;

/// How much must be learned anew before a quantile is placed anew: searching it for every block would be most of the work.
const AIM_GROWTH: f64 = 1.05;

/// How far above its bar the wealth for "not worse" may rise, as a logarithm. What came later must be able to take it back.
const HEADROOM: f64 = 3.0;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Watch {
    worse: Wealth,
    not_worse: Wealth,
    block: Block,
    learned: Learned,
    /// Since the step began.
    step: Tally,
    /// Since the evidence for "worse" began to mount.
    mounting: Tally,
    is_worse: bool,
}

/// Requests that were not yet bet on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Block {
    stable: Outcomes,
    /// As "worse" counts them; only for a quantile do the two differ.
    canary: Outcomes,
    /// As "not worse" counts them.
    canary_mild: Outcomes,
    /// How bets are placed, settled before the first request; none while there is too little to learn from.
    plan: Option<Plan>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Plan {
    /// Stable's chance, as presumed.
    #[serde(with = "exact")]
    baseline: f64,
    aim: Aim,
}

/// The last buckets that do not count as slow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Aim {
    stable: usize,
    canary: usize,
    canary_mild: usize,
}

impl Aim {
    fn new(stable: usize, tolerance: f64) -> Self {
        let bound = as_f64(latency::bound_micros(stable)) * (1.0 + tolerance);
        let at_most = (stable..OVERFLOW).take_while(|bucket| as_f64(latency::bound_micros(*bucket)) <= bound).last();
        let canary_mild = at_most.unwrap_or(stable);
        let meets = as_f64(latency::bound_micros(canary_mild)) >= bound;
        Self { stable, canary: if meets { canary_mild } else { canary_mild + 1 }, canary_mild }
    }
}

/// What is known of stable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Learned {
    /// A fixed bound needs none.
    Nothing,
    Share(Outcomes),
    Latencies {
        #[serde(with = "exact::list")]
        counts: Vec<f64>,
        /// Beyond the aim, of all.
        share: Outcomes,
        aim: Option<Aim>,
        /// Requests that were known when the aim was taken.
        #[serde(with = "exact")]
        aimed_at: f64,
    },
}

impl Learned {
    fn new(signal: &Signal) -> Self {
        match signal {
            Signal::AtMost { .. } => Self::Nothing,
            Signal::Share { .. } => Self::Share(Outcomes::default()),
            Signal::Quantile { .. } => {
                Self::Latencies { counts: vec![0.0; BUCKETS], share: Outcomes::default(), aim: None, aimed_at: 0.0 }
            }
        }
    }

    /// Settles how to bet on the block that begins.
    fn plan(&mut self, signal: &Signal) -> Option<Plan> {
        match (&mut *self, signal) {
            (Self::Share(share), _) if share.requests >= LEARNED_MIN => {
                Some(Plan { baseline: presumed(*share), aim: Aim::default() })
            }
            (Self::Latencies { counts, share, aim, aimed_at }, Signal::Quantile { quantile, tolerance, .. }) => {
                let enough = share.requests * (1.0 - quantile) >= LEARNED_BEYOND_MIN && share.requests >= LEARNED_MIN;
                if enough && share.requests >= *aimed_at * AIM_GROWTH {
                    *aim = take_aim(counts, share, *quantile, *tolerance);
                    *aimed_at = share.requests;
                }
                aim.map(|aim| Plan { baseline: presumed(*share), aim })
            }
            _ => None,
        }
    }

    fn add(&mut self, reading: &Reading) {
        match (self, reading) {
            (Self::Share(share), Reading::Share { requests, events }) => {
                share.requests += as_f64(*requests);
                share.events += as_f64(*events);
                if share.requests > LEARNED_MAX {
                    (share.requests, share.events) = (share.requests / 2.0, share.events / 2.0);
                }
            }
            (Self::Latencies { counts, share, aim, aimed_at }, Reading::Quantile(latencies)) => {
                for (bucket, count) in &latencies.0 {
                    let (bucket, count) = (usize::from(*bucket), as_f64(*count));
                    share.requests += count;
                    share.events += if aim.is_some_and(|aim| bucket > aim.stable) { count } else { 0.0 };
                    if let Some(sum) = counts.get_mut(bucket) {
                        *sum += count;
                    }
                }
                if share.requests > LEARNED_MAX {
                    counts.iter_mut().for_each(|count| *count /= 2.0);
                    *share = Outcomes { requests: share.requests / 2.0, events: share.events / 2.0 };
                    *aimed_at /= 2.0;
                }
            }
            _ => {}
        }
    }
}

/// Returns stable's chance, never 0 or 1.
fn presumed(share: Outcomes) -> f64 {
    bet::chance((share.events + 0.5) / (share.requests + 1.0))
}

/// Places the bounds at stable's quantile, and counts what lies beyond. None where it lies in the bucket without a bound.
fn take_aim(counts: &[f64], share: &mut Outcomes, quantile: f64, tolerance: f64) -> Option<Aim> {
    let mut sum = 0.0;
    let stable = counts.iter().position(|count| {
        sum += count;
        sum >= quantile * share.requests
    });
    let stable = stable.filter(|bucket| *bucket < OVERFLOW)?;
    share.events = (share.requests - sum).max(0.0);
    Some(Aim::new(stable, tolerance))
}

impl Watch {
    pub(crate) fn new(signal: &Signal) -> Self {
        Self {
            worse: Wealth::new(&WORSE),
            not_worse: Wealth::new(&NOT_WORSE),
            block: Block::default(),
            learned: Learned::new(signal),
            step: Tally::new(signal),
            mounting: Tally::new(signal),
            is_worse: false,
        }
    }

    pub(crate) const fn is_worse(&self) -> bool {
        self.is_worse
    }

    /// Forgets what only concerns the step that ends.
    pub(crate) fn begin_step(&mut self) {
        self.not_worse = Wealth::new(&NOT_WORSE);
        self.block = Block::default();
        self.step.clear();
    }

    /// Takes what was counted; a block that is full is bet on.
    pub(crate) fn observe(&mut self, guard: &Guard, signal: &Signal, stable: &Reading, canary: &Reading) {
        if self.is_worse {
            return;
        }
        if self.block.is_empty() {
            self.block.plan = self.learned.plan(signal);
        }
        self.block.add(stable, canary);
        self.learned.add(stable);
        self.step.add(stable, canary);
        self.mounting.add(stable, canary);
        let stable_is_enough =
            matches!(signal, Signal::AtMost { .. }) || self.block.stable.requests >= BLOCK_REQUESTS_MIN;
        if stable_is_enough && self.block.canary.requests >= BLOCK_REQUESTS_MIN {
            let block = std::mem::take(&mut self.block);
            self.bet(guard, signal, &block);
        }
    }

    fn bet(&mut self, guard: &Guard, signal: &Signal, block: &Block) {
        let headroom = log_bar_not_worse(guard) + HEADROOM;
        if let Signal::AtMost { threshold, .. } = signal {
            let log_e = |ratio| bet::log_e_fixed(block.canary, bet::at_odds(*threshold, ratio), *threshold);
            self.worse.bet(&WORSE, f64::INFINITY, log_e);
            self.not_worse.bet(&NOT_WORSE, headroom, log_e);
        } else if let Some(Plan { baseline, .. }) = block.plan {
            // Where times are compared, the bounds carry the tolerance.
            let tolerance = if let Signal::Share { tolerance, .. } = signal { *tolerance } else { 0.0 };
            let edge = bet::chance(baseline + tolerance);
            let log_e = |canary: Outcomes, ratio| {
                bet::log_e(block.stable, canary, baseline, bet::at_odds(edge, ratio), tolerance)
            };
            self.worse.bet(&WORSE, f64::INFINITY, |ratio| log_e(block.canary, ratio));
            self.not_worse.bet(&NOT_WORSE, headroom, |ratio| log_e(block.canary_mild, ratio));
        }
        self.is_worse = self.worse.log() >= log_bar_worse(guard);
        if self.worse.is_spent() && !self.is_worse {
            self.mounting.clear();
        }
    }

    /// Says what is shown, and from what.
    pub(crate) fn evidence(&self, guard: &Guard, signal: &Signal) -> Evidence {
        let seen = if self.is_worse { &self.mounting } else { &self.step };
        let error = guard.error_each();
        let mut evidence = match (signal, seen) {
            (Signal::Quantile { quantile, tolerance, .. }, Tally::Latencies { stable, canary }) => {
                quantile_evidence(*quantile, *tolerance, error, stable, canary)
            }
            (Signal::Share { tolerance, .. }, Tally::Shares { stable, canary }) => {
                share_evidence(*tolerance, error, *stable, *canary)
            }
            (Signal::AtMost { threshold, .. }, Tally::Shares { canary, .. }) => {
                at_most_evidence(*threshold, error, *canary)
            }
            // A saved judge that was meddled with: there is nothing to show.
            (Signal::Quantile { tolerance: bound, .. } | Signal::Share { tolerance: bound, .. }, _)
            | (Signal::AtMost { threshold: bound, .. }, _) => at_most_evidence(*bound, error, Counts::default()),
        };
        evidence.signal = Arc::clone(signal.name());
        evidence.confidence = guard.confidence;
        evidence.p_worse = (-self.worse.log()).exp().min(1.0);
        evidence.p_not_worse = (-self.not_worse.log()).exp().min(1.0);
        self.conclude(guard, signal, &mut evidence);
        evidence
    }

    fn conclude(&self, guard: &Guard, signal: &Signal, evidence: &mut Evidence) {
        let range = &mut evidence.difference;
        let requests = self.step.canary_requests();
        if self.is_worse {
            evidence.conclusion = Conclusion::Worse;
            range.low = range.low.max(evidence.tolerance);
            range.high = range.high.max(range.low);
        } else if requests < guard.min_requests {
            evidence.missing = Some(Missing::Requests(guard.min_requests - requests));
        } else if self.not_worse.log() >= log_bar_not_worse(guard) {
            evidence.conclusion = Conclusion::NotWorse;
            range.high = range.high.min(evidence.tolerance);
            range.low = range.low.min(range.high);
        } else {
            evidence.missing = Some(Missing::Evidence(self.forecast(guard, signal)));
        }
    }

    /// Estimates how many more of the canary's requests it takes, if all goes on as it does in this step.
    fn forecast(&self, guard: &Guard, signal: &Signal) -> Option<u64> {
        let (stable, canary, canary_mild) = match (&self.step, signal) {
            (Tally::Shares { stable, canary }, _) => (outcomes(*stable), outcomes(*canary), outcomes(*canary)),
            (Tally::Latencies { stable, canary }, Signal::Quantile { quantile, tolerance, .. }) => {
                let aim = Aim::new(interval::quantile_bucket(&stable.0, *quantile).min(OVERFLOW - 1), *tolerance);
                (beyond(stable, aim.stable), beyond(canary, aim.canary), beyond(canary, aim.canary_mild))
            }
            (Tally::Latencies { .. }, _) => return None,
        };
        if canary.requests <= 0.0 {
            return None;
        }
        let growth = |canary: Outcomes| match signal {
            Signal::AtMost { threshold, .. } => bet::log_e_fixed(canary, presumed(canary), *threshold),
            Signal::Share { tolerance, .. } => bet::log_e(stable, canary, presumed(stable), presumed(canary), *tolerance),
            Signal::Quantile { .. } => bet::log_e(stable, canary, presumed(stable), presumed(canary), 0.0),
        } / canary.requests;
        let edge = match signal {
            Signal::AtMost { threshold, .. } => *threshold,
            Signal::Share { tolerance, .. } => presumed(stable) + tolerance,
            Signal::Quantile { .. } => presumed(stable),
        };
        let (growth, lacking) = if presumed(canary) > edge {
            (growth(canary), log_bar_worse(guard) - self.worse.log())
        } else {
            // What a bet begins with is a share of the stake, even where it has lost more.
            (growth(canary_mild), log_bar_not_worse(guard) - self.not_worse.log().max(-2.0))
        };
        as_requests(lacking / growth)
    }
}

/// Returns the bar that the wealth for "worse" has to reach, as a logarithm.
fn log_bar_worse(guard: &Guard) -> f64 {
    -guard.error_each().ln()
}

fn log_bar_not_worse(guard: &Guard) -> f64 {
    -(1.0 - guard.confidence).ln()
}

/// Returns a number of requests, if it is one that somebody may wait for.
fn as_requests(value: f64) -> Option<u64> {
    (value > 0.0 && value < 1e12).then(|| value.ceil() as u64)
}

const fn outcomes(counts: Counts) -> Outcomes {
    Outcomes { requests: as_f64(counts.requests), events: as_f64(counts.events) }
}

fn beyond(histogram: &Histogram, last: usize) -> Outcomes {
    let sum = |counts: &[u64]| counts.iter().map(|count| as_f64(*count)).sum();
    Outcomes { requests: sum(&histogram.0), events: sum(histogram.0.get(last + 1..).unwrap_or_default()) }
}

impl Block {
    fn is_empty(&self) -> bool {
        self.stable.requests == 0.0 && self.canary.requests == 0.0
    }

    fn add(&mut self, stable: &Reading, canary: &Reading) {
        let aim = self.plan.map(|plan| plan.aim).unwrap_or_default();
        self.stable.add(stable, aim.stable);
        self.canary.add(canary, aim.canary);
        self.canary_mild.add(canary, aim.canary_mild);
    }
}

impl Outcomes {
    fn add(&mut self, reading: &Reading, last: usize) {
        match reading {
            Reading::Share { requests, events } => {
                self.requests += as_f64(*requests);
                self.events += as_f64(*events);
            }
            Reading::Quantile(Latencies(counts)) => {
                for (bucket, count) in counts {
                    self.requests += as_f64(*count);
                    self.events += if usize::from(*bucket) > last { as_f64(*count) } else { 0.0 };
                }
            }
        }
    }
}

fn share_arm(counts: Counts, error: f64) -> Arm {
    let Outcomes { requests, events } = outcomes(counts);
    let (low, high) = interval::share(requests, events, error);
    let estimate = if requests > 0.0 { events / requests } else { 0.0 };
    Arm { requests: counts.requests, events: Some(counts.events), value: Interval { estimate, low, high } }
}

fn share_evidence(tolerance: f64, error: f64, stable: Counts, canary: Counts) -> Evidence {
    let (stable, canary) = (share_arm(stable, error / 2.0), share_arm(canary, error / 2.0));
    let difference = Interval {
        estimate: canary.value.estimate - stable.value.estimate,
        low: canary.value.low - stable.value.high,
        high: canary.value.high - stable.value.low,
    };
    Evidence::of(Measure::Share, Some(stable), canary, difference, tolerance, error)
}

fn at_most_evidence(threshold: f64, error: f64, canary: Counts) -> Evidence {
    let canary = share_arm(canary, error);
    Evidence::of(Measure::AtMost, None, canary, canary.value, threshold, error)
}

/// In seconds. Below a bucket's bound there is always its width, so no value is 0.
fn quantile_arm(histogram: &Histogram, quantile: f64, error: f64) -> Arm {
    let seconds = |bucket: usize| as_f64(latency::bound_micros(bucket)) / 1e6;
    let (first, last) = interval::quantile(&histogram.0, quantile, error);
    let value = Interval {
        estimate: seconds(interval::quantile_bucket(&histogram.0, quantile)),
        low: seconds(first.saturating_sub(1)),
        high: seconds(last),
    };
    Arm { requests: histogram.count(), events: None, value }
}

fn quantile_evidence(quantile: f64, tolerance: f64, error: f64, stable: &Histogram, canary: &Histogram) -> Evidence {
    let (stable, canary) = (quantile_arm(stable, quantile, error / 2.0), quantile_arm(canary, quantile, error / 2.0));
    let difference = Interval {
        estimate: canary.value.estimate / stable.value.estimate - 1.0,
        low: canary.value.low / stable.value.high - 1.0,
        high: canary.value.high / stable.value.low - 1.0,
    };
    Evidence::of(Measure::Quantile { quantile }, Some(stable), canary, difference, tolerance, error)
}
