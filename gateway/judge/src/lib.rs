//! Compares a canary with stable on several signals, and says at any moment whether it is *worse*, *not worse*, or not
//! yet known.
//!
//! A [`Guard`] says what good means: signals, each with a tolerance. A [`Period`] is what was counted since the last
//! look, on either track. A [`Judge`] takes one period after the other; its [`Verdict`] carries the [`Evidence`] for
//! each signal, which prints as a sentence. Beside it: [`latency`], the buckets to count latencies in, and [`Cap`],
//! which bounds what one client can add to the counts.
//!
//! No clock, no I/O, no task. The caller decides when a period ends, and may look after every request.
//!
//! # What is promised
//!
//! - Over all time, a canary that is within tolerance on every signal is called worse with a probability of at most
//!   1 − confidence. This budget is shared out evenly over the signals, since each of them can raise the alarm.
//! - At each step, a canary that is beyond tolerance on some signal is called not worse with a probability of at most
//!   1 − confidence. This budget is not shared: *not worse* takes all signals at once, so the one that is beyond
//!   tolerance has to err, whichever it is.
//!
//! Both hold however often one looks, whatever the looks lead to, and however requests are cut into periods, as long
//! as the cut does not depend on how requests ended.
//!
//! # Method
//!
//! Evidence is a bet against what is to be refuted. Requests are gathered into *blocks*: at least eight of either
//! track, in a live gateway usually one period. In a block with `n` canary and `m` stable requests, the judge bets on
//! each outcome `y` (1: failed): a factor `1 + a (y − c)` for the canary's, `1 + b (y − s)` for stable's, with
//! `c = s + tolerance`, and `a n = −b m`. Let the chances of the two tracks be `s + x + tolerance` and `s + x`, the edge
//! of what is to be refuted. The expected product is `(1 + a x)ⁿ (1 + b x)ᵐ`; its logarithm is concave in `x` and has
//! slope 0 at `x = 0`, where it is 0. So it is at most 1, whatever `x` is, and still less inside of the edge. Multiplied
//! over blocks this is an e-process: by Ville's inequality, it ever exceeds `1 / error` with a probability of at
//! most `error`. `a` and `s` are chosen so that the product is the likelihood ratio of an alternative and the
//! nearest point that is to be refuted, which no bet on that alternative beats (Turner, Ly,
//! Grünwald, "Generic E-variables for exact sequential k-sample tests that allow for optional stopping", 2024; Turner,
//! Grünwald, "Exact anytime-valid confidence intervals for contingency tables and beyond", 2023).
//!
//! - *The alternative* is not known, so the stake is spread over a few odds ratios, from a little worse to hopeless.
//!   The cost is the logarithm of a share, paid once. Stable's share is learned from blocks that are over.
//! - *When* the canary turns bad is not known either. A quarter of the stake is kept for starting again at every later
//!   block, in shares whose sum is bounded. Without it, an hour of good behaviour would have to be outweighed before a
//!   leak could be seen.
//! - *Latency*: the same test. Let `u` be a bound near stable's quantile, learned from blocks that are over, and `v` the
//!   bound `(1 + tolerance) u`. A stable request counts when it took longer than `u`, a canary's when it took longer
//!   than `v`. If the canary's times were stable's, stretched by the tolerance, both would have the same chance.
//!   Where buckets do not meet `v`, it is rounded to the side that makes the claim harder.
//! - *Intervals* are confidence sequences: for a share, the Beta(½, ½) mixture of likelihood ratios (Howard, Ramdas,
//!   McAuliffe, Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences", 2021); for a quantile, all
//!   bounds at which the same sequence for the distribution function contains the level (Howard, Ramdas, "Sequential
//!   estimation of quantiles with applications to A/B testing and best-arm identification", 2022). The interval of the
//!   difference joins two of them, each with half the error. They are there to be read; verdicts rest on the bets,
//!   which are sharper. Where a claim is shown, the interval is cut at the tolerance, which the claim excludes.
//!
//! # Assumptions, and what breaks them
//!
//! - *Requests are independent, given their chances.* Chances may differ between requests and drift: only their means
//!   within one block are compared, so a daily cycle or an upstream's outage that meets both tracks alike is not the
//!   canary's fault. What breaks it: one client that retries. Hence [`Cap`]. What also breaks it: failures in bursts
//!   that meet one track by chance, as from a connection that is shared by many of its requests.
//! - *The tracks are alike.* The split is by user, so a few users with very many requests and chances of their own can
//!   make the tracks differ though the versions do not. The cap bounds that too; the tolerance has to cover the rest.
//! - *Counts do not depend on outcomes.* If failing requests are repeated, a block has more requests the worse it goes.
//!   The cap bounds it.
//! - *For latency, "not worse" and "worse" are said of the tail near the quantile*, as stable's tail stretched by the
//!   tolerance; the level wanders with the estimate. A canary whose distribution crosses stable's exactly there can be
//!   called either.
//! - *Intervals* assume that a share is constant since the step began. Under drift they are approximate.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod bet;
mod cap;
mod exact;
mod guard;
mod interval;
mod judge;
pub mod latency;
mod period;
mod tally;
mod verdict;
mod watch;
mod wealth;

pub use cap::Cap;
pub use guard::{Guard, GuardError, Signal};
pub use judge::Judge;
pub use latency::Latencies;
pub use period::{Period, PeriodError, Reading};
pub use verdict::{Arm, Conclusion, Evidence, Interval, Measure, Missing, Verdict};
