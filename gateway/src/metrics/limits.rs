//! Metrics of what an upstream has room for.

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::{Families, REQUEST_BUCKETS, lease, remove};

/// A limit of an upstream, as it is called in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Requests under way.
    Requests,
    /// Open connections to an endpoint.
    Connections,
}

impl Limit {
    const ALL: [Self; 2] = [Self::Requests, Self::Connections];

    /// Returns the word for logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Connections => "connections_per_endpoint",
        }
    }
}

/// How a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// There was no room to wait either.
    Refused,
    /// It has waited in vain.
    TimedOut,
}

impl Overflow {
    const ALL: [Self; 2] = [Self::Refused, Self::TimedOut];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
        }
    }
}

/// The families.
#[derive(Debug)]
pub(super) struct LimitFamilies {
    connections: IntGaugeVec,
    pending: IntGaugeVec,
    waited: HistogramVec,
    overflows: IntCounterVec,
}

impl LimitFamilies {
    pub(super) fn register(families: &Families<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            connections: families.gauges(
                "lockgate_upstream_connections",
                "Open connections to an upstream's endpoints: in use, idle, or being opened.",
                &["upstream"],
            )?,
            pending: families.gauges(
                "lockgate_upstream_pending",
                "Requests that wait for room at an upstream.",
                &["upstream"],
            )?,
            waited: families.histograms(
                "lockgate_upstream_pending_seconds",
                "Time for which requests waited for room at an upstream, those that waited in vain included.",
                &["upstream"],
                REQUEST_BUCKETS,
            )?,
            overflows: families.counters(
                "lockgate_upstream_overflows_total",
                "Requests refused for want of room at an upstream, by the limit that was used up, and whether they had waited.",
                &["upstream", "limit", "outcome"],
            )?,
        })
    }

    /// Returns the handles of an upstream.
    pub(super) fn of(&self, upstream: &str) -> LimitSeries {
        let overflow = |limit: Limit, outcome: Overflow| {
            self.overflows.with_label_values(&[upstream, limit.as_str(), outcome.as_str()])
        };
        LimitSeries {
            connections: self.connections.with_label_values(&[upstream]),
            pending: self.pending.with_label_values(&[upstream]),
            waited: self.waited.with_label_values(&[upstream]),
            overflows: Limit::ALL.map(|limit| Overflow::ALL.map(|outcome| overflow(limit, outcome))),
        }
    }

    /// Returns what removes them.
    pub(super) fn removes(&self, upstream: &str) -> Vec<lease::Remove> {
        let mut removes = vec![
            remove(&self.connections, &[upstream]),
            remove(&self.pending, &[upstream]),
            remove(&self.waited, &[upstream]),
        ];
        for limit in Limit::ALL {
            let of = Overflow::ALL.map(|outcome| [upstream, limit.as_str(), outcome.as_str()]);
            removes.extend(of.map(|labels| remove(&self.overflows, &labels)));
        }
        removes
    }
}

/// Handles of an upstream's limits. Their lease is the upstream's.
#[derive(Clone, Debug)]
pub struct LimitSeries {
    /// Open connections.
    pub connections: IntGauge,
    /// Requests that wait.
    pub pending: IntGauge,
    /// How long they did.
    pub waited: Histogram,
    /// In the order of [`Limit::ALL`] and [`Overflow::ALL`].
    overflows: [[IntCounter; Overflow::ALL.len()]; Limit::ALL.len()],
}

impl LimitSeries {
    /// Counts a request that was refused.
    pub fn refused(&self, limit: Limit, outcome: Overflow) {
        self.overflows[limit as usize][outcome as usize].inc();
    }
}
