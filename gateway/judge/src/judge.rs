//! The judge: a watch for each signal of a guard.

use serde::{Deserialize, Serialize};

use crate::verdict::{Conclusion, Verdict};
use crate::watch::Watch;
use crate::{Guard, GuardError, Period, PeriodError};

/// Compares one canary with its stable version, for the length of one rollout.
///
/// Saved and restored, it goes on exactly where it was. It costs about a microsecond for a block of requests, and
/// nothing worth noting for a period that completes none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judge {
    guard: Guard,
    watches: Vec<Watch>,
    is_worse: bool,
}

impl Judge {
    /// Begins with nothing known.
    ///
    /// # Errors
    /// If the guard cannot be judged by.
    pub fn new(guard: Guard) -> Result<Self, GuardError> {
        guard.check()?;
        let watches = guard.signals.iter().map(Watch::new).collect();
        Ok(Self { guard, watches, is_worse: false })
    }

    /// Returns what the canary is held to.
    pub const fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Takes what was counted since the last look. Called as often as one likes; a second is a good period.
    ///
    /// # Errors
    /// If the period is not one of this guard's; then nothing of it is taken.
    pub fn observe(&mut self, period: &Period) -> Result<(), PeriodError> {
        period.check(&self.guard)?;
        let readings = period.stable.iter().zip(&period.canary);
        for ((watch, signal), (stable, canary)) in self.watches.iter_mut().zip(&self.guard.signals).zip(readings) {
            watch.observe(&self.guard, signal, stable, canary);
            self.is_worse |= watch.is_worse();
        }
        Ok(())
    }

    /// Begins another step: "not worse" has to be shown anew, from requests of this step. What speaks for "worse" is
    /// kept over all steps.
    pub fn begin_step(&mut self) {
        self.watches.iter_mut().for_each(Watch::begin_step);
    }

    /// Returns whether the canary was shown to be worse. Once it was, it stays so.
    pub const fn is_worse(&self) -> bool {
        self.is_worse
    }

    /// Returns the verdict with its evidence. It searches the ends of intervals: for people and once a period, where
    /// [`Judge::is_worse`] is for each request.
    pub fn verdict(&self) -> Verdict {
        let signals = self.watches.iter().zip(&self.guard.signals);
        let evidence: Vec<_> = signals.map(|(watch, signal)| watch.evidence(&self.guard, signal)).collect();
        let conclusion = if self.is_worse {
            Conclusion::Worse
        } else if evidence.iter().all(|evidence| evidence.conclusion == Conclusion::NotWorse) {
            Conclusion::NotWorse
        } else {
            Conclusion::Undecided
        };
        Verdict { conclusion, evidence }
    }
}
