//! Handles of metrics: what a request counts with. Each is resolved when a snapshot is built, and holds the lease of its
//! series.

use std::collections::HashMap;
use std::time::Duration;

use lockgate_host::{Filter, MetricDeclaration, MetricKind, Phase};
use prometheus::core::{Collector, Metric as _};
use prometheus::{
    Counter, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

use super::lease::Lease;
use super::limits::LimitSeries;
use crate::proxy::arrival::Cut;
use crate::shadow::capture::Skip;
use crate::shadow::compare::Kind;
use crate::tls::Failure;
use crate::track::Track;

/// Classes of a response's status, and `none` for a client that was gone before one was sent.
pub const STATUS_CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// What filters decide.
pub const OUTCOMES: [&str; 3] = ["continue", "respond", "fail"];

/// Phases of a request, in the order in which a filter meets them.
pub const PHASES: [Phase; 4] = [Phase::OnRequest, Phase::OnRequestBody, Phase::OnResponse, Phase::OnResponseBody];

/// Returns whether a filter exports a phase.
pub fn exports(filter: &Filter, phase: Phase) -> bool {
    let exported = filter.phases();
    match phase {
        Phase::OnRequest => exported.on_request,
        Phase::OnRequestBody => exported.on_request_body,
        Phase::OnResponse => exported.on_response,
        Phase::OnResponseBody => exported.on_response_body,
        Phase::Start | Phase::Configure | Phase::Handle => false,
    }
}

/// The kind of a failure that the filter itself reported.
pub const FAILED_BY_ITSELF: &str = "outcome";

/// Handles of a route.
#[derive(Debug)]
pub struct RouteSeries {
    /// In the order of [`STATUS_CLASSES`].
    pub(super) requests: [IntCounter; 6],
    /// In the same order.
    pub(super) durations: [Histogram; 6],
    pub(super) _lease: Lease,
}

impl RouteSeries {
    /// Counts a finished request. A status of 0 means that none was sent.
    pub fn record(&self, status: u16, duration: Duration) {
        let class = usize::from(status / 100).min(5);
        self.requests[class].inc();
        self.durations[class].observe(duration.as_secs_f64());
    }
}

/// The outcome of a handshake that did not fail.
pub(super) const HANDSHAKE_OK: &str = "ok";

/// Handles of a listener.
#[derive(Debug)]
pub struct ListenerSeries {
    /// Those that did not fail, then in the order of [`Failure::ALL`].
    pub(super) handshakes: Box<[IntCounter]>,
    /// In the order of [`Cut::ALL`].
    pub(super) cuts: [IntCounter; Cut::ALL.len()],
    pub(super) _lease: Lease,
}

impl ListenerSeries {
    /// Counts a connection that was closed before a request was counted.
    pub fn cut(&self, cut: Cut) {
        self.cuts[cut as usize].inc();
    }

    /// Counts a handshake, and why it failed if it did.
    pub fn handshake(&self, failure: Option<Failure>) {
        if let Some(counter) = self.handshakes.get(failure.map_or(0, |failure| 1 + failure as usize)) {
            counter.inc();
        }
    }
}

/// What a folder answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FolderOutcome {
    /// With a whole file.
    File,
    /// With a part of one.
    Part,
    /// That the client has it.
    NotModified,
    /// That the folder is elsewhere.
    Redirect,
    /// That there is no such file.
    Missing,
    /// That the method, a condition or a range is not met.
    Refused,
    /// That the file could not be read.
    Failed,
}

impl FolderOutcome {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 7] =
        [Self::File, Self::Part, Self::NotModified, Self::Redirect, Self::Missing, Self::Refused, Self::Failed];

    /// Returns the label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Part => "part",
            Self::NotModified => "not_modified",
            Self::Redirect => "redirect",
            Self::Missing => "missing",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// Handles of a folder.
#[derive(Debug)]
pub struct FolderSeries {
    /// In the order of [`FolderOutcome::ALL`].
    pub(super) answers: [IntCounter; 7],
    pub(super) duration: Histogram,
    pub(super) _lease: Lease,
}

impl FolderSeries {
    /// Counts an answer, with the time until it was known; none where the folder was not asked.
    pub fn record(&self, outcome: FolderOutcome, duration: Option<Duration>) {
        self.answers[outcome as usize].inc();
        if let Some(duration) = duration {
            self.duration.observe(duration.as_secs_f64());
        }
    }
}

/// Handles of one version of a filter on one track.
#[derive(Debug)]
pub struct VersionSeries {
    pub(super) phases: [Option<PhaseSeries>; 4],
    pub(super) failures: Box<[(&'static str, IntCounter)]>,
    pub(super) _lease: Lease,
}

/// What one version of a filter or an upstream counted.
#[derive(Clone, Debug, Default)]
pub struct CallSummary {
    /// Calls, or requests.
    pub calls: u64,
    /// Those that failed, by kind; without kinds that there were none of.
    pub failures: Vec<(&'static str, u64)>,
    /// How long calls took: counts by bucket.
    pub counts: Vec<u64>,
    /// The buckets' upper bounds, in seconds.
    pub bounds: Vec<f64>,
}

impl CallSummary {
    fn add_durations(&mut self, durations: &Histogram) {
        let metric = durations.metric();
        let buckets = metric.get_histogram().get_bucket();
        self.bounds = buckets.iter().map(|bucket| bucket.upper_bound()).collect();
        self.counts.resize(buckets.len(), 0);
        let mut below = 0;
        for (count, bucket) in self.counts.iter_mut().zip(buckets) {
            // They are told as Prometheus does: each with those below it.
            *count += bucket.cumulative_count().saturating_sub(below);
            below = bucket.cumulative_count();
        }
    }
}

/// Handles of one phase.
#[derive(Debug)]
pub struct PhaseSeries {
    /// In the order of [`OUTCOMES`].
    pub(super) calls: [IntCounter; 3],
    pub(super) duration: Histogram,
}

impl VersionSeries {
    /// Counts a call.
    pub fn call(&self, phase: Phase, outcome: usize, duration: Duration) {
        let of_phase = PHASES.iter().position(|known| *known == phase).and_then(|index| self.phases[index].as_ref());
        if let Some(series) = of_phase {
            if let Some(calls) = series.calls.get(outcome) {
                calls.inc();
            }
            series.duration.observe(duration.as_secs_f64());
        }
    }

    /// Returns everything that was counted, over all phases.
    pub fn summary(&self) -> CallSummary {
        let mut summary = CallSummary::default();
        for phase in self.phases.iter().flatten() {
            summary.calls += phase.calls.iter().map(|calls| calls.get()).sum::<u64>();
            summary.add_durations(&phase.duration);
        }
        let failed = self.failures.iter().map(|(kind, count)| (*kind, count.get()));
        summary.failures = failed.filter(|(_, count)| *count > 0).collect();
        summary
    }

    /// Counts a failure. `kind` is one of the host's, or `outcome` where the filter itself said that it failed.
    pub fn failure(&self, kind: &str) {
        if let Some((_, counter)) = self.failures.iter().find(|(known, _)| *known == kind) {
            counter.inc();
        }
    }
}

/// How calls of functions end.
pub const FUNCTION_OUTCOMES: [&str; 2] = ["respond", "fail"];

/// Handles of one version of a function on one track.
#[derive(Debug)]
pub struct FunctionSeries {
    /// In the order of [`FUNCTION_OUTCOMES`].
    pub(super) calls: [IntCounter; 2],
    pub(super) duration: Histogram,
    pub(super) busy: Counter,
    pub(super) failures: Box<[(&'static str, IntCounter)]>,
    pub(super) _lease: Lease,
}

impl FunctionSeries {
    /// Counts a call that ended, well or not; `busy` is for how long it kept a thread.
    pub fn call(&self, well: bool, duration: Duration, busy: Duration) {
        self.calls[usize::from(!well)].inc();
        self.duration.observe(duration.as_secs_f64());
        self.busy.inc_by(busy.as_secs_f64());
    }

    /// Returns everything that was counted.
    pub fn summary(&self) -> CallSummary {
        let calls = self.calls.iter().map(|calls| calls.get()).sum();
        let mut summary = CallSummary { calls, ..Default::default() };
        let failed = self.failures.iter().map(|(kind, count)| (*kind, count.get()));
        summary.failures = failed.filter(|(_, count)| *count > 0).collect();
        summary.add_durations(&self.duration);
        summary
    }

    /// Counts a failure, by one of the host's kinds.
    pub fn failure(&self, kind: &str) {
        if let Some((_, counter)) = self.failures.iter().find(|(known, _)| *known == kind) {
            counter.inc();
        }
    }
}

/// Handles of a rollout, by track.
#[derive(Debug)]
pub struct TrackSeries {
    pub(super) requests: [IntCounter; 2],
    /// What they showed when the rollout began with its versions.
    pub(super) before: [u64; 2],
    pub(super) spared: IntCounter,
    pub(super) _lease: Lease,
}

impl TrackSeries {
    /// Counts a request.
    pub fn record(&self, track: Track) {
        self.requests[track as usize].inc();
    }

    /// Counts a request of the canary's share that stable serves, since the canary cannot.
    pub fn spare(&self) {
        self.requests[Track::Stable as usize].inc();
        self.spared.inc();
    }

    /// Returns the requests counted since the rollout began with its versions.
    pub fn count(&self, track: Track) -> u64 {
        let all = self.requests[track as usize].get();
        // The series of a rollout that was gone for long enough began anew.
        all.checked_sub(self.before[track as usize]).unwrap_or(all)
    }
}

/// Handles of a rollout's shadow.
#[derive(Debug)]
pub struct ShadowSeries {
    /// Disagreed, agreed.
    pub(super) compared: [IntCounter; 2],
    /// In the order of [`Kind::ALL`].
    pub(super) differences: [IntCounter; Kind::ALL.len()],
    /// In the order of [`Skip::ALL`].
    pub(super) skipped: [IntCounter; Skip::ALL.len()],
    pub(super) cpu: Counter,
    pub(super) _lease: Lease,
}

impl ShadowSeries {
    /// Counts a request on which the shadow was tried.
    pub fn compared(&self, agreed: bool) {
        self.compared[usize::from(agreed)].inc();
    }

    /// Counts a request with a difference of a kind.
    pub fn differed(&self, kind: Kind) {
        self.differences[kind as usize].inc();
    }

    /// Counts a request that was not compared.
    pub fn skipped(&self, skip: Skip) {
        self.skipped[skip as usize].inc();
    }

    /// Counts processor time.
    pub fn used(&self, time: Duration) {
        self.cpu.inc_by(time.as_secs_f64());
    }
}

/// Handles of an upstream.
#[derive(Debug)]
pub struct UpstreamSeries {
    pub(super) requests: [IntCounter; 6],
    pub(super) duration: Histogram,
    pub(super) retries: [IntCounter; 3],
    /// Endpoints taken out for their failures.
    pub ejections: IntCounter,
    /// What there is room for.
    pub limits: LimitSeries,
    /// Endpoints that get requests.
    pub usable: IntGauge,
    /// Endpoints whose checks fail.
    pub unhealthy: IntGauge,
    /// Endpoints that are out for their failures.
    pub ejected: IntGauge,
    /// 1 while the file of endpoints cannot be used.
    pub file_failing: IntGauge,
    pub(super) _lease: Lease,
}

/// Why a request is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// It could not be connected.
    Connect,
    /// The endpoint answered with a status that is worth it.
    Status,
    /// The endpoint took it, and gave no answer that could be used.
    NoAnswer,
}

impl Retry {
    /// The label's values, in the order of the discriminants.
    pub(super) const LABELS: [&str; 3] = ["connect", "status", "no_answer"];
}

impl UpstreamSeries {
    /// Counts a further attempt.
    pub fn retry(&self, why: Retry) {
        if let Some(counter) = self.retries.get(why as usize) {
            counter.inc();
        }
    }

    /// Counts a request. A status of 0 means that the upstream gave none.
    pub fn record(&self, status: u16, duration: Duration) {
        self.requests[usize::from(status / 100).min(5)].inc();
        self.duration.observe(duration.as_secs_f64());
    }

    /// Returns everything that was counted: requests that were answered with an error of the server's, or not at all, are
    /// failures.
    pub fn summary(&self) -> CallSummary {
        let mut summary =
            CallSummary { calls: self.requests.iter().map(|count| count.get()).sum(), ..Default::default() };
        let failed = STATUS_CLASSES.into_iter().zip(&self.requests).map(|(class, count)| (class, count.get()));
        summary.failures = failed.filter(|(class, count)| matches!(*class, "none" | "5xx") && *count > 0).collect();
        summary.add_durations(&self.duration);
        summary
    }
}

/// Metrics that a filter declared for itself, and a count of its events.
#[derive(Debug)]
pub struct CustomSeries {
    pub(super) registry: Registry,
    metrics: Vec<CustomMetric>,
    /// Events emitted.
    pub events: IntCounter,
}

#[derive(Debug)]
enum CustomMetric {
    Counter(Vec<IntCounter>),
    Histogram(Vec<Histogram>),
}

impl CustomSeries {
    /// Adds to a counter; the host has checked id and label against the declaration.
    pub fn add(&self, id: u32, label: u32, by: u64) {
        if let Some(CustomMetric::Counter(by_label)) = self.metrics.get(id as usize)
            && let Some(counter) = by_label.get(label as usize)
        {
            counter.inc_by(by);
        }
    }

    /// Records in a histogram; the host has checked id and label against the declaration.
    pub fn observe(&self, id: u32, label: u32, value: f64) {
        if let Some(CustomMetric::Histogram(by_label)) = self.metrics.get(id as usize)
            && let Some(histogram) = by_label.get(label as usize)
        {
            histogram.observe(value);
        }
    }
}

impl CustomSeries {
    pub(super) fn new(filter: &str, version: &str, declared: &[MetricDeclaration], events: IntCounter) -> Self {
        let labels =
            HashMap::from([("filter".to_owned(), filter.to_owned()), ("version".to_owned(), version.to_owned())]);
        let registry = Registry::new_custom(None, Some(labels)).unwrap_or_default();
        let metrics = declared.iter().map(|metric| CustomMetric::new(&registry, metric)).collect();
        Self { registry, metrics, events }
    }
}

impl CustomMetric {
    /// Registers a metric. A declaration that Prometheus refuses (the host has validated it before) leaves a metric that
    /// is not exported.
    fn new(registry: &Registry, declared: &MetricDeclaration) -> Self {
        let (names, values): (Vec<&str>, Vec<&str>) = match &declared.label {
            Some(label) => (vec![&label.name], label.values.iter().map(String::as_str).collect()),
            None => (Vec::new(), vec![""]),
        };
        let of = |value: &&str| -> Vec<String> { names.iter().map(|_| (*value).to_owned()).collect() };
        match &declared.kind {
            MetricKind::Counter => {
                let opts = Opts::new(format!("lockgate_filter_custom_{}_total", declared.name), &declared.help);
                let family = IntCounterVec::new(opts, &names).and_then(|family| register(registry, family));
                Self::Counter(
                    family
                        .map_or_else(|_| Vec::new(), |f| values.iter().map(|v| f.with_label_values(&of(v))).collect()),
                )
            }
            MetricKind::Histogram { buckets } => {
                let opts = HistogramOpts::new(format!("lockgate_filter_custom_{}", declared.name), &declared.help)
                    .buckets(buckets.clone());
                let family = HistogramVec::new(opts, &names).and_then(|family| register(registry, family));
                Self::Histogram(
                    family
                        .map_or_else(|_| Vec::new(), |f| values.iter().map(|v| f.with_label_values(&of(v))).collect()),
                )
            }
        }
    }
}

pub(super) fn register<C: Collector + Clone + 'static>(registry: &Registry, family: C) -> prometheus::Result<C> {
    registry.register(Box::new(family.clone()))?;
    Ok(family)
}

/// What became of spans for a collector.
#[derive(Clone, Debug)]
pub struct SpanSeries {
    /// It took them.
    pub sent: IntCounter,
    /// Too many waited.
    pub dropped: IntCounter,
    /// It did not take them.
    pub failed: IntCounter,
}

impl SpanSeries {
    /// Resolves the handles, so that each is there from the start.
    pub(super) fn new(spans: &IntCounterVec) -> Self {
        let outcome = |outcome| spans.with_label_values(&[outcome]);
        Self { sent: outcome("sent"), dropped: outcome("dropped"), failed: outcome("failed") }
    }
}
