//! A *period* is what was counted on both tracks since the last look.

use crate::latency::BUCKETS;
use crate::{Guard, Latencies, Signal};

/// What one signal counted on one track, as increments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// For [`Signal::Share`] and [`Signal::AtMost`].
    Share {
        /// Requests that could have gone bad.
        requests: u64,
        /// Those that did.
        events: u64,
    },
    /// For [`Signal::Quantile`].
    Quantile(Latencies),
}

impl Reading {
    /// Returns a reading of nothing, of the kind that a signal wants.
    pub const fn none(signal: &Signal) -> Self {
        match signal {
            Signal::Quantile { .. } => Self::Quantile(Latencies(Vec::new())),
            Signal::Share { .. } | Signal::AtMost { .. } => Self::Share { requests: 0, events: 0 },
        }
    }
}

/// Readings of both tracks, from the same time and the same routes, in the order of the guard's signals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Period {
    /// For [`Signal::AtMost`] it is not looked at.
    pub stable: Vec<Reading>,
    /// What the canary did.
    pub canary: Vec<Reading>,
}

/// Why a period was not taken. Nothing of it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeriodError {
    /// As many readings on each track as the guard has signals.
    #[error("a period has {readings} readings of one track for {signals} signals")]
    Length {
        /// That there are.
        readings: usize,
        /// That the guard has.
        signals: usize,
    },
    /// A share for a quantile, or the other way round.
    #[error("reading {0} is not of its signal's kind")]
    Kind(usize),
    /// More went bad than there was, or a bucket that there is not.
    #[error("reading {0} contradicts itself")]
    Count(usize),
}

impl Period {
    /// Checks that it is one of this guard's.
    pub(crate) fn check(&self, guard: &Guard) -> Result<(), PeriodError> {
        for track in [&self.stable, &self.canary] {
            if track.len() != guard.signals.len() {
                return Err(PeriodError::Length { readings: track.len(), signals: guard.signals.len() });
            }
            for (index, (reading, signal)) in track.iter().zip(&guard.signals).enumerate() {
                match (reading, signal) {
                    (Reading::Share { requests, events }, Signal::Share { .. } | Signal::AtMost { .. }) => {
                        if events > requests {
                            return Err(PeriodError::Count(index));
                        }
                    }
                    (Reading::Quantile(latencies), Signal::Quantile { .. }) => {
                        if latencies.0.iter().any(|(bucket, _)| usize::from(*bucket) >= BUCKETS) {
                            return Err(PeriodError::Count(index));
                        }
                    }
                    _ => return Err(PeriodError::Kind(index)),
                }
            }
        }
        Ok(())
    }
}
