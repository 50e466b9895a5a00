//! A *guard* says what good means for a canary: signals, each with what is tolerated, and how sure a verdict must be.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::exact;

/// What a canary is held to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Guard {
    /// Any of them can show that the canary is worse; all of them must show that it is not.
    pub signals: Vec<Signal>,
    /// Above 0.5 and below 1. Each of the two claims errs with a probability of at most `1 - confidence`, over all time;
    /// for "worse" this is shared out evenly over the signals.
    #[serde(with = "exact")]
    pub confidence: f64,
    /// Requests that each signal must have seen of the canary since the step began, before "not worse" can be said.
    pub min_requests: u64,
}

/// One thing that is compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Signal {
    /// The share of requests that something bad happened to: failures, denials, failures of the filter itself.
    Share {
        /// What the operator calls it, as in `failures`.
        name: Arc<str>,
        /// By how much the canary's share may exceed stable's: absolute, above 0 and below 1.
        #[serde(with = "exact")]
        tolerance: f64,
    },
    /// A quantile of a duration.
    Quantile {
        /// What the operator calls it, as in `latency`.
        name: Arc<str>,
        /// Above 0 and below 1.
        #[serde(with = "exact")]
        quantile: f64,
        /// By how much the canary's quantile may exceed stable's: relative, above 0 and at most 10. Below the buckets'
        /// width, about 0.016, nothing can be shown.
        #[serde(with = "exact")]
        tolerance: f64,
    },
    /// A share of the canary's alone, against a fixed bound: the disagreement of a shadow with what users were served.
    AtMost {
        /// What the operator calls it, as in `disagreement`.
        name: Arc<str>,
        /// Above 0 and below 1.
        #[serde(with = "exact")]
        threshold: f64,
    },
}

impl Signal {
    /// Returns what the operator calls it.
    pub const fn name(&self) -> &Arc<str> {
        match self {
            Self::Share { name, .. } | Self::Quantile { name, .. } | Self::AtMost { name, .. } => name,
        }
    }
}

/// Why a guard cannot be judged by.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GuardError {
    /// Nothing to compare.
    #[error("a guard needs at least one signal")]
    Empty,
    /// The confidence is none.
    #[error("`confidence` must be above 50 % and below 100 %, not {} %", .0 * 100.0)]
    Confidence(f64),
    /// A tolerance or threshold out of its range.
    #[error("`{signal}`: `{setting}` must be above 0 and {below}, not {value}")]
    Range {
        /// The signal's name.
        signal: Arc<str>,
        /// `tolerance`, `quantile` or `threshold`.
        setting: &'static str,
        /// The upper end, in words.
        below: &'static str,
        /// What was given.
        value: f64,
    },
}

impl Guard {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// If there is no signal, or a number is out of its range.
    pub fn check(&self) -> Result<(), GuardError> {
        if self.signals.is_empty() {
            return Err(GuardError::Empty);
        }
        if !(self.confidence > 0.5 && self.confidence < 1.0) {
            return Err(GuardError::Confidence(self.confidence));
        }
        let share = |signal: &Arc<str>, setting, value: f64| {
            if value > 0.0 && value < 1.0 {
                return Ok(());
            }
            Err(GuardError::Range { signal: Arc::clone(signal), setting, below: "below 1", value })
        };
        for signal in &self.signals {
            match signal {
                Signal::Share { name, tolerance } => share(name, "tolerance", *tolerance)?,
                Signal::AtMost { name, threshold } => share(name, "threshold", *threshold)?,
                Signal::Quantile { name, quantile, tolerance } => {
                    share(name, "quantile", *quantile)?;
                    if !(*tolerance > 0.0 && *tolerance <= 10.0) {
                        let (signal, below, value) = (Arc::clone(name), "at most 10", *tolerance);
                        return Err(GuardError::Range { signal, setting: "tolerance", below, value });
                    }
                }
            }
        }
        Ok(())
    }

    /// Returns the error probability of "worse" for one signal.
    pub(crate) fn error_each(&self) -> f64 {
        (1.0 - self.confidence) / self.signals.len() as f64
    }
}
