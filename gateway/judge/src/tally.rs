//! A *tally* is what was counted on both tracks over a time, to be shown.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::latency::BUCKETS;
use crate::{Latencies, Reading, Signal};

/// Requests and those that went bad.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) requests: u64,
    pub(crate) events: u64,
}

/// One count for each latency bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Histogram(pub(crate) Box<[u64]>);

impl Histogram {
    fn new() -> Self {
        Self(vec![0; BUCKETS].into_boxed_slice())
    }

    fn add(&mut self, latencies: &Latencies) {
        for (bucket, count) in &latencies.0 {
            if let Some(sum) = self.0.get_mut(usize::from(*bucket)) {
                *sum = sum.saturating_add(*count);
            }
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }
}

// Saved without its empty buckets, which are nearly all.
impl Serialize for Histogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let filled = (0_u16..).zip(self.0.iter().copied()).filter(|(_, count)| *count > 0);
        Latencies(filled.collect()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Histogram {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut histogram = Self::new();
        histogram.add(&Latencies::deserialize(deserializer)?);
        Ok(histogram)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Tally {
    Shares { stable: Counts, canary: Counts },
    Latencies { stable: Histogram, canary: Histogram },
}

impl Tally {
    pub(crate) fn new(signal: &Signal) -> Self {
        match signal {
            Signal::Share { .. } | Signal::AtMost { .. } => {
                Self::Shares { stable: Counts::default(), canary: Counts::default() }
            }
            Signal::Quantile { .. } => Self::Latencies { stable: Histogram::new(), canary: Histogram::new() },
        }
    }

    pub(crate) fn add(&mut self, stable: &Reading, canary: &Reading) {
        match self {
            Self::Shares { stable: to_stable, canary: to_canary } => {
                for (to, reading) in [(to_stable, stable), (to_canary, canary)] {
                    if let Reading::Share { requests, events } = reading {
                        to.requests = to.requests.saturating_add(*requests);
                        to.events = to.events.saturating_add(*events);
                    }
                }
            }
            Self::Latencies { stable: to_stable, canary: to_canary } => {
                for (to, reading) in [(to_stable, stable), (to_canary, canary)] {
                    if let Reading::Quantile(latencies) = reading {
                        to.add(latencies);
                    }
                }
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        match self {
            Self::Shares { stable, canary } => (*stable, *canary) = (Counts::default(), Counts::default()),
            Self::Latencies { stable, canary } => {
                stable.0.fill(0);
                canary.0.fill(0);
            }
        }
    }

    pub(crate) fn canary_requests(&self) -> u64 {
        match self {
            Self::Shares { canary, .. } => canary.requests,
            Self::Latencies { canary, .. } => canary.count(),
        }
    }
}
