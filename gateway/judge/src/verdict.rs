//! A *verdict*, and the *evidence* that it rests on, as numbers and as a sentence.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// What is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Conclusion {
    /// Beyond the tolerance on at least one signal: take it back.
    Worse,
    /// Within the tolerance on all signals, and enough requests: a step up is safe.
    NotWorse,
    /// Neither.
    Undecided,
}

impl fmt::Display for Conclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Worse => "worse",
            Self::NotWorse => "not worse",
            Self::Undecided => "undecided",
        })
    }
}

/// What a judge knows at one moment. Printed, it is one line for each signal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Of all signals together.
    pub conclusion: Conclusion,
    /// In the order of the guard's signals.
    pub evidence: Vec<Evidence>,
}

/// What one signal shows. While nothing or "not worse" is shown, counts and estimates are those since the step began;
/// for "worse", those since the evidence for it began to mount, and they stay as they were when it was shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// Its name.
    pub signal: Arc<str>,
    /// What is compared.
    pub measure: Measure,
    /// None where the canary is held to a fixed bound.
    pub stable: Option<Arm>,
    /// The canary's counts.
    pub canary: Arm,
    /// Of the canary to stable: absolute for a share, relative for a quantile; for a fixed bound, the share itself.
    pub difference: Interval,
    /// What the difference may be at most.
    pub tolerance: f64,
    /// Of the guard: what "not worse" is shown with.
    pub confidence: f64,
    /// This signal's part of it: what "worse" is shown with, and how sure the intervals are.
    pub confidence_worse: f64,
    /// How likely evidence for "worse" as strong as this would ever be, if the canary were within tolerance. At most 1.
    pub p_worse: f64,
    /// The same for "not worse", if it were beyond.
    pub p_not_worse: f64,
    /// What is shown.
    pub conclusion: Conclusion,
    /// What a conclusion waits for, if there is none.
    pub missing: Option<Missing>,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Measure {
    /// Shares of requests.
    Share,
    /// Quantiles of a duration.
    Quantile {
        /// Which one.
        quantile: f64,
    },
    /// A share against a fixed bound.
    AtMost,
}

/// One track.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    /// That were counted.
    pub requests: u64,
    /// Those that went bad; none for a quantile.
    pub events: Option<u64>,
    /// The share, or the quantile in seconds.
    pub value: Interval,
}

/// An estimate and the ends of its confidence sequence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The best guess.
    pub estimate: f64,
    /// Not below this.
    pub low: f64,
    /// Not above this.
    pub high: f64,
}

/// What a conclusion waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "requests", rename_all = "kebab-case")]
pub enum Missing {
    /// So many more of the canary's requests, whatever they show: the guard's least.
    Requests(u64),
    /// Evidence: about so many more of the canary's requests, if all goes on like this. None if that cannot be told.
    Evidence(Option<u64>),
}

impl Evidence {
    /// Nothing concluded yet; the watch fills in the rest.
    pub(crate) fn of(
        measure: Measure,
        stable: Option<Arm>,
        canary: Arm,
        difference: Interval,
        tolerance: f64,
        error: f64,
    ) -> Self {
        Self {
            signal: Arc::from(""),
            measure,
            stable,
            canary,
            difference,
            tolerance,
            confidence: 0.0,
            confidence_worse: 1.0 - error,
            p_worse: 1.0,
            p_not_worse: 1.0,
            conclusion: Conclusion::Undecided,
            missing: None,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, evidence) in self.evidence.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            evidence.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { signal, canary, difference, tolerance, .. } = self;
        let requests = Count(canary.requests);
        write!(f, "{signal}: ")?;
        match (&self.measure, &self.stable) {
            _ if canary.requests == 0 => write!(f, "no request of the canary was counted yet")?,
            (Measure::Share, Some(stable)) => {
                let (of_stable, of_canary) = (Percent(stable.value.estimate), Percent(canary.value.estimate));
                let stable = Count(stable.requests);
                write!(f, "{of_canary} of {requests} canary requests against {of_stable} of {stable} on stable, ")?;
                let (low, high) = (Points(difference.low), Points(difference.high));
                write!(
                    f,
                    "{} points ({low} to {high}) where {} is tolerated",
                    Points(difference.estimate),
                    Bound(*tolerance)
                )?;
            }
            (Measure::Quantile { quantile }, Some(stable)) => {
                let (of_stable, of_canary) = (Time(stable.value.estimate), Time(canary.value.estimate));
                let (stable, quantile) = (Count(stable.requests), Bound(*quantile));
                write!(
                    f,
                    "the {quantile} quantile is {of_canary} over {requests} canary requests against {of_stable} "
                )?;
                let (low, high) = (Points(difference.low), Points(difference.high));
                write!(f, "over {stable} on stable, {} % ({low} to {high}) where ", Points(difference.estimate))?;
                write!(f, "{} is tolerated", Bound(*tolerance))?;
            }
            _ => {
                let (low, high, share) =
                    (Percent(difference.low), Percent(difference.high), Percent(canary.value.estimate));
                write!(
                    f,
                    "{share} of {requests} canary requests ({low} to {high}) where {} is allowed",
                    Bound(*tolerance)
                )?;
            }
        }
        match (self.conclusion, self.missing) {
            (Conclusion::Worse, _) => write!(f, ": worse, with a confidence of {}", Bound(self.confidence_worse)),
            (Conclusion::NotWorse, _) => write!(f, ": not worse, with a confidence of {}", Bound(self.confidence)),
            (_, Some(Missing::Requests(requests))) => {
                write!(f, ": undecided, {} more canary requests are required", Count(requests))
            }
            (_, Some(Missing::Evidence(Some(requests)))) => {
                write!(
                    f,
                    ": undecided, about {} more canary requests would do if all goes on like this",
                    Count(requests)
                )
            }
            (_, Some(Missing::Evidence(None)) | None) => write!(f, ": undecided, too little evidence yet"),
        }
    }
}

/// A count with its thousands apart.
struct Count(u64);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

/// Digits after the point, so that a percentage shows two or three that matter.
fn decimals(percent: f64) -> usize {
    match percent.abs() {
        0.0 => 0,
        percent if percent >= 100.0 => 0,
        percent if percent >= 10.0 => 1,
        percent if percent >= 0.095 => 2,
        _ => 3,
    }
}

/// A share as it was measured.
struct Percent(f64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = self.0 * 100.0;
        write!(f, "{percent:.*} %", decimals(percent))
    }
}

/// A difference, with its sign.
struct Points(f64);

impl fmt::Display for Points {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = self.0 * 100.0;
        write!(f, "{percent:+.*}", decimals(percent))
    }
}

/// A share as it was set: in full, without the noise of a binary fraction.
struct Bound(f64);

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", (self.0 * 1e7).round() / 1e5)
    }
}

/// A duration of some seconds.
struct Time(f64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            seconds if seconds >= 1.0 => write!(f, "{seconds:.2} s"),
            seconds if seconds >= 0.01 => write!(f, "{:.1} ms", seconds * 1e3),
            seconds => write!(f, "{:.2} ms", seconds * 1e3),
        }
    }
}
