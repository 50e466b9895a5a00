//! Every metric: name, unit, labels, help. The registry belongs to the gateway, not to the process, so that tests do not
//! share counters.
//!
//! Handles are resolved when a snapshot is built ([`RouteSeries`], [`VersionSeries`] …): a request looks nothing up by
//! label. Label values come from the configuration or from a closed set, never from a request. A series is leased by
//! what uses it; ten minutes after its last user is gone it disappears, so that a last scrape has seen it.

mod key_value;
mod lease;
mod limits;
mod policy;
mod series;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use lockgate_config::model::ListenAddress;
use lockgate_host::{CallErrorKind, Filter, Function, Host};
use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{
    CounterVec, Encoder as _, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::control::quarantine::{Entry, Held};
use crate::control::rollout::{self, Versions};
use crate::proxy::arrival::Cut;
use crate::proxy::fault::Fault;
use crate::shadow::capture::Skip;
use crate::shadow::compare::Kind;
use crate::tls::{Certificate, Failure};
use crate::track::Track;
use lease::{Lease, Leases};
use limits::LimitFamilies;
pub use limits::{Limit, LimitSeries, Overflow};
use policy::PolicyFamilies;
pub use policy::{MirrorOutcome, MirrorSeries, PolicyAnswer, PolicySeries, RateSeries};
pub use series::{
    CallSummary, CustomSeries, FAILED_BY_ITSELF, FUNCTION_OUTCOMES, FolderOutcome, FolderSeries, FunctionSeries,
    ListenerSeries, OUTCOMES, PHASES, PhaseSeries, Retry, RouteSeries, STATUS_CLASSES, ShadowSeries, SpanSeries,
    TrackSeries, UpstreamSeries, VersionSeries, exports,
};
use series::{HANDSHAKE_OK, register};

/// How long a series outlives its last user: longer than any sane scrape interval.
const LINGER: Duration = Duration::from_secs(600);

/// Upper bounds in seconds, for whole requests.
const REQUEST_BUCKETS: &[f64] =
    &[0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Upper bounds in seconds, for one call of a filter.
const CALL_BUCKETS: &[f64] = &[
    0.000_001,
    0.000_002_5,
    0.000_005,
    0.000_01,
    0.000_025,
    0.000_05,
    0.000_1,
    0.000_25,
    0.000_5,
    0.001,
    0.002_5,
    0.005,
    0.01,
    0.05,
    0.25,
    1.0,
    5.0,
];

/// All metrics of a gateway.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    leases: Leases,
    filters: Mutex<Vec<LoadedFilter>>,
    custom: Mutex<BTreeMap<(String, String), Arc<CustomSeries>>>,
    limits: LimitFamilies,
    policy: PolicyFamilies,
    requests: IntCounterVec,
    request_duration: HistogramVec,
    static_answers: IntCounterVec,
    static_duration: HistogramVec,
    errors: Vec<IntCounter>,
    filter_calls: IntCounterVec,
    filter_duration: HistogramVec,
    filter_failures: IntCounterVec,
    filter_events: IntCounterVec,
    filter_lines_dropped: IntCounterVec,
    filter_refused: IntCounterVec,
    filter_instances: IntGaugeVec,
    filter_memory: IntGaugeVec,
    filter_snapshotted: IntGaugeVec,
    functions: Mutex<Vec<LoadedFunction>>,
    function_calls: IntCounterVec,
    function_duration: HistogramVec,
    function_busy: CounterVec,
    function_failures: IntCounterVec,
    function_lines_dropped: IntCounterVec,
    function_refused: IntCounterVec,
    function_instances: IntGaugeVec,
    function_memory: IntGaugeVec,
    rollout_requests: IntCounterVec,
    /// The versions that each rollout was last about, and what its tracks had counted when it began with them.
    rollout_beginnings: Mutex<BTreeMap<String, (Versions, [u64; 2])>>,
    rollout_spared: IntCounterVec,
    rollout_weight: GaugeVec,
    shadow_compared: IntCounterVec,
    shadow_differences: IntCounterVec,
    shadow_skipped: IntCounterVec,
    shadow_cpu: CounterVec,
    rollout_step: IntGaugeVec,
    rollout_held: IntGaugeVec,
    rollout_evidence: GaugeVec,
    rollout_decisions: IntCounterVec,
    upstream_requests: IntCounterVec,
    upstream_duration: HistogramVec,
    upstream_retries: IntCounterVec,
    upstream_ejections: IntCounterVec,
    upstream_endpoints: IntGaugeVec,
    upstream_file_failing: IntGaugeVec,
    quarantined: IntGaugeVec,
    quarantined_functions: IntGaugeVec,
    quarantined_upstreams: IntGaugeVec,
    waiting: IntGaugeVec,
    reloads: IntCounterVec,
    cache: CacheFamilies,
    pool_used: IntGaugeVec,
    pool_size: IntGaugeVec,
    /// Swaps of the snapshot since the start.
    pub generation: IntGauge,
    /// When the configuration was last loaded, in seconds since 1970.
    pub reload_success_timestamp: Gauge,
    /// One while the configuration on disk is refused.
    pub reload_failing: IntGauge,
    /// How long the exchange of the pointer took.
    pub swap_duration: Histogram,
    /// Old snapshots that requests still read.
    pub draining_snapshots: IntGauge,
    /// Requests that read old snapshots.
    pub draining_requests: IntGauge,
    /// Requests that were still reading an old snapshot when its drain deadline passed.
    pub drain_left: IntCounter,
    /// One for each state file that was found corrupted.
    pub state_corruptions: IntCounter,
    handshakes: IntCounterVec,
    connections_cut: IntCounterVec,
    /// Connections that became tunnels, and are open.
    pub tunnels: IntGauge,
    /// Connections that became tunnels.
    pub tunnels_opened: IntCounter,
    /// Tunnels that were ended since a drain could wait no longer.
    pub tunnels_cut: IntCounter,
    certificate_expiry: GaugeVec,
    /// Open client connections.
    pub connections: IntGauge,
    /// Client connections accepted.
    pub connections_accepted: IntCounter,
    /// Access log lines that were dropped because nobody read them, or since they could not be written.
    pub access_log_dropped: IntCounter,
    /// Spans for a collector.
    pub spans: SpanSeries,
    /// Failed accepts, for want of file descriptors most of the time.
    pub accept_errors: IntCounter,
}

#[derive(Debug)]
struct CacheFamilies {
    hits: IntCounter,
    misses: IntCounter,
    rejects: IntCounterVec,
    compile_seconds: prometheus::Counter,
    bytes: IntGauge,
}

#[derive(Debug)]
struct LoadedFilter {
    filter: Weak<Filter>,
    instances: IntGauge,
    memory: IntGauge,
    lines_dropped: IntCounter,
    refused: [IntCounter; REFUSALS],
    lease: Option<Lease>,
}

#[derive(Debug)]
struct LoadedFunction {
    function: Weak<Function>,
    instances: IntGauge,
    memory: IntGauge,
    lines_dropped: IntCounter,
    refused: [IntCounter; REFUSALS],
    lease: Option<Lease>,
}

/// Kinds of outbound requests that are refused.
const REFUSALS: usize = CallErrorKind::OF_OUTBOUND.len();

/// Returns the labels of the refusals of one version.
fn refusals<'a>(of: &[&'a str; 2]) -> [[&'a str; 3]; REFUSALS] {
    CallErrorKind::OF_OUTBOUND.map(|kind| [of[0], of[1], kind.as_str()])
}

/// How a reload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReloadOutcome {
    /// A new snapshot serves.
    Swapped,
    /// There was nothing new.
    Unchanged,
    /// It was refused; nothing changed.
    Refused,
}

impl ReloadOutcome {
    const ALL: [Self; 3] = [Self::Swapped, Self::Unchanged, Self::Refused];

    /// Returns the label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Swapped => "swapped",
            Self::Unchanged => "unchanged",
            Self::Refused => "refused",
        }
    }
}

impl Metrics {
    /// Registers every family.
    ///
    /// # Errors
    /// Two families of one name, which a test rules out.
    pub fn new() -> prometheus::Result<Arc<Self>> {
        let registry = Registry::new();
        let r = Families(&registry);
        let metrics = Self {
            limits: LimitFamilies::register(&r)?,
            policy: PolicyFamilies::register(&r)?,
            requests: r.counters("lockgate_requests_total", "Requests finished.", &["route", "class"])?,
            request_duration: r.histograms(
                "lockgate_request_duration_seconds",
                "Time from the request's header to the end of its response.",
                &["route", "class"],
                REQUEST_BUCKETS,
            )?,
            static_answers: r.counters(
                "lockgate_static_answers_total",
                "Answers of folders, by what they were.",
                &["route", "outcome"],
            )?,
            static_duration: r.histograms(
                "lockgate_static_duration_seconds",
                "Time to find and open a file, and to read its first 64 KiB.",
                &["route"],
                REQUEST_BUCKETS,
            )?,
            errors: {
                let help = "Requests that did not get their target's answer, by who caused it and what it was.";
                let errors = r.counters("lockgate_errors_total", help, &["source", "kind"])?;
                let series = |fault: &Fault| errors.with_label_values(&[fault.source().as_str(), fault.kind()]);
                Fault::ALL.iter().map(series).collect()
            },
            filter_calls: r.counters(
                "lockgate_filter_calls_total",
                "Calls of filters, by what they decided.",
                &["filter", "version", "track", "phase", "outcome"],
            )?,
            filter_duration: r.histograms(
                "lockgate_filter_duration_seconds",
                "Time of one call of a filter; in the first phase of a request its instance's start included.",
                &["filter", "version", "track", "phase"],
                CALL_BUCKETS,
            )?,
            filter_failures: r.counters(
                "lockgate_filter_failures_total",
                "Calls of filters that failed, by kind.",
                &["filter", "version", "track", "kind"],
            )?,
            filter_events: r.counters(
                "lockgate_filter_events_total",
                "Events that filters emitted.",
                &["filter", "version"],
            )?,
            filter_lines_dropped: r.counters(
                "lockgate_filter_lines_dropped_total",
                "Log lines and events of filters beyond what a request may write.",
                &["filter", "version"],
            )?,
            filter_refused: r.counters(
                "lockgate_filter_outbound_refused_total",
                "Outbound requests of filters that no grant covers, by what is not granted.",
                &["filter", "version", "reason"],
            )?,
            filter_instances: r.gauges(
                "lockgate_filter_instances",
                "Instances alive, idle ones that wait for reuse included.",
                &["filter", "version"],
            )?,
            filter_memory: r.gauges(
                "lockgate_filter_memory_bytes",
                "Linear memory of the instances alive.",
                &["filter", "version"],
            )?,
            filter_snapshotted: r.gauges(
                "lockgate_filter_snapshotted",
                "Whether `configure` ran once, at load: 1; 0 if each instance runs it. The status says why.",
                &["filter", "version"],
            )?,
            functions: Mutex::default(),
            function_calls: r.counters(
                "lockgate_function_calls_total",
                "Requests that functions answered, or failed to.",
                &["function", "version", "track", "outcome"],
            )?,
            function_duration: r.histograms(
                "lockgate_function_duration_seconds",
                "Time from calling a function to the end of its response, its instance's start included.",
                &["function", "version", "track"],
                REQUEST_BUCKETS,
            )?,
            function_busy: {
                let opts =
                    Opts::new("lockgate_function_busy_seconds_total", "Time for which functions kept a thread busy.");
                r.register(CounterVec::new(opts, &["function", "version", "track"])?)?
            },
            function_failures: r.counters(
                "lockgate_function_failures_total",
                "Calls of functions that failed, by kind.",
                &["function", "version", "track", "kind"],
            )?,
            function_lines_dropped: r.counters(
                "lockgate_function_lines_dropped_total",
                "Log lines of functions beyond what a request may write.",
                &["function", "version"],
            )?,
            function_refused: r.counters(
                "lockgate_function_outbound_refused_total",
                "Outbound requests of functions that no grant covers, by what is not granted.",
                &["function", "version", "reason"],
            )?,
            function_instances: r.gauges(
                "lockgate_function_instances",
                "Instances alive, idle ones that wait for reuse included.",
                &["function", "version"],
            )?,
            function_memory: r.gauges(
                "lockgate_function_memory_bytes",
                "Linear memory of the instances alive.",
                &["function", "version"],
            )?,
            rollout_beginnings: Mutex::default(),
            rollout_requests: r.counters(
                "lockgate_rollout_requests_total",
                "Requests that a rollout put on a track.",
                &["rollout", "track"],
            )?,
            rollout_spared: r.counters(
                "lockgate_rollout_spared_total",
                "Requests of the canary's share that stable served, since no endpoint of the canary was well.",
                &["rollout"],
            )?,
            rollout_weight: {
                let opts = Opts::new(
                    "lockgate_rollout_weight_ratio",
                    "Share of the canary, 0 to 1, in force: 1 once promoted, 0 once rolled back.",
                );
                r.register(GaugeVec::new(opts, &["rollout"])?)?
            },
            shadow_compared: r.counters(
                "lockgate_shadow_compared_total",
                "Requests on which a shadow was tried, by whether it did as stable did.",
                &["rollout", "verdict"],
            )?,
            shadow_differences: r.counters(
                "lockgate_shadow_differences_total",
                "Requests on which a shadow did something else than stable, by what differs; one may count for several.",
                &["rollout", "kind"],
            )?,
            shadow_skipped: r.counters(
                "lockgate_shadow_skipped_total",
                "Requests that were sampled for a shadow and not compared, by why.",
                &["rollout", "reason"],
            )?,
            shadow_cpu: {
                let help = "Processor time that a shadow has used.";
                r.register(CounterVec::new(Opts::new("lockgate_shadow_cpu_seconds_total", help), &["rollout"])?)?
            },
            rollout_step: r.gauges(
                "lockgate_rollout_step",
                "Step that a rollout is at, from 1; of rollouts with steps, while they are under way.",
                &["rollout"],
            )?,
            rollout_held: r.gauges(
                "lockgate_rollout_held",
                "1 while a rollout does not go on: paused by a person or by its guard, or stalled for want of evidence.",
                &["rollout", "reason"],
            )?,
            rollout_evidence: {
                let opts = Opts::new(
                    "lockgate_rollout_evidence_ratio",
                    "How sure it is that the canary is worse, or not worse, by a signal: 1 minus the chance that evidence as \
                     strong as this would ever come up if it were otherwise.",
                );
                r.register(GaugeVec::new(opts, &["rollout", "signal", "claim"])?)?
            },
            rollout_decisions: r.counters(
                "lockgate_rollout_decisions_total",
                "Moves of a rollout: begin, set-weight, step, stall, pause, resume, promote, roll-back, abandon, change-plan.",
                &["rollout", "action"],
            )?,
            upstream_requests: r.counters(
                "lockgate_upstream_requests_total",
                "Requests sent to upstreams, by the class of the answer.",
                &["upstream", "class"],
            )?,
            upstream_duration: r.histograms(
                "lockgate_upstream_duration_seconds",
                "Time from choosing an endpoint to the header of its response.",
                &["upstream"],
                REQUEST_BUCKETS,
            )?,
            upstream_retries: r.counters(
                "lockgate_upstream_retries_total",
                "Further attempts at upstreams, by why.",
                &["upstream", "reason"],
            )?,
            upstream_ejections: r.counters(
                "lockgate_upstream_ejections_total",
                "Endpoints taken out for a while, since their requests failed one after the other.",
                &["upstream"],
            )?,
            upstream_endpoints: r.gauges(
                "lockgate_upstream_endpoints",
                "Endpoints by state: those that get requests, those whose checks fail, and those out for their failures.",
                &["upstream", "state"],
            )?,
            quarantined: r.gauges(
                "lockgate_filter_quarantined",
                "Versions in quarantine, by why: failures, guard, linked or person.",
                &["filter", "version", "why"],
            )?,
            quarantined_functions: r.gauges(
                "lockgate_function_quarantined",
                "Versions of functions in quarantine, by why.",
                &["function", "version", "why"],
            )?,
            quarantined_upstreams: r.gauges(
                "lockgate_upstream_quarantined",
                "Upstreams that are not to take another one's place, by why.",
                &["upstream", "version", "why"],
            )?,
            waiting: r.gauges(
                "lockgate_approval_waiting",
                "Versions that may do more than what serves, and wait for `lockgate approve`.",
                &["kind", "name", "version"],
            )?,
            upstream_file_failing: r.gauges(
                "lockgate_upstream_file_failing",
                "1 while the file of an upstream's endpoints cannot be used: the last good ones are in use.",
                &["upstream"],
            )?,
            reloads: r.counters("lockgate_reloads_total", "Reloads, by how they ended.", &["outcome"])?,
            cache: CacheFamilies {
                hits: r.counter("lockgate_cache_hits_total", "Artifacts found in the cache.")?,
                misses: r.counter("lockgate_cache_misses_total", "Artifacts that had to be compiled.")?,
                rejects: r.counters(
                    "lockgate_cache_rejects_total",
                    "Artifacts that were found but not trusted, by why.",
                    &["reason"],
                )?,
                compile_seconds: r.register(prometheus::Counter::new(
                    "lockgate_compile_seconds_total",
                    "Time spent compiling components.",
                )?)?,
                bytes: r.gauge("lockgate_cache_bytes", "Size of the artifacts in the cache.")?,
            },
            pool_used: r.gauges("lockgate_pool_used", "Slots of the instance pool in use.", &["resource"])?,
            pool_size: r.gauges("lockgate_pool_size", "Slots of the instance pool.", &["resource"])?,
            generation: r.gauge("lockgate_generation", "Snapshots built since the start.")?,
            reload_success_timestamp: r.register(Gauge::new(
                "lockgate_reload_success_timestamp_seconds",
                "When the configuration was last accepted, in seconds since 1970.",
            )?)?,
            reload_failing: r.gauge(
                "lockgate_reload_failing",
                "1 while the last reload was refused: what is on disk is not what serves.",
            )?,
            swap_duration: r.register(Histogram::with_opts(
                HistogramOpts::new("lockgate_swap_duration_seconds", "Time to exchange the snapshot.")
                    .buckets(CALL_BUCKETS.to_vec()),
            )?)?,
            draining_snapshots: r.gauge("lockgate_draining_snapshots", "Old snapshots that requests still read.")?,
            draining_requests: r.gauge("lockgate_draining_requests", "Requests that read old snapshots.")?,
            drain_left: r.counter(
                "lockgate_drain_left_total",
                "Requests that still read an old snapshot when its drain deadline passed.",
            )?,
            state_corruptions: r
                .counter("lockgate_state_corruptions_total", "State files that were found corrupted, and set aside.")?,
            handshakes: r.counters(
                "lockgate_tls_handshakes_total",
                "TLS handshakes with clients, by how they ended: ok, or why they failed.",
                &["listener", "outcome"],
            )?,
            connections_cut: r.counters(
                "lockgate_connections_cut_total",
                "Client connections closed before a request was counted, by why.",
                &["listener", "reason"],
            )?,
            tunnels: r.gauge("lockgate_tunnels", "Client connections that became tunnels by an upgrade, and are open.")?,
            tunnels_opened: r.counter("lockgate_tunnels_total", "Client connections that became tunnels.")?,
            tunnels_cut: r
                .counter("lockgate_tunnels_cut_total", "Tunnels that were ended since a drain could wait no longer.")?,
            certificate_expiry: {
                let opts = Opts::new(
                    "lockgate_certificate_expiry_timestamp_seconds",
                    "When a certificate of a listener expires, in seconds since 1970.",
                );
                r.register(GaugeVec::new(opts, &["listener", "certificate"])?)?
            },
            connections: r.gauge("lockgate_connections", "Open client connections.")?,
            connections_accepted: r.counter("lockgate_connections_total", "Client connections accepted.")?,
            access_log_dropped: r.counter(
                "lockgate_access_log_dropped_total",
                "Access log lines that were dropped because nobody read them fast enough, or since they could not be written.",
            )?,
            spans: {
                let help = "Spans for a collector: sent; dropped, since too many waited; or failed, since it did not take them.";
                let spans = r.counters("lockgate_trace_spans_total", help, &["outcome"])?;
                SpanSeries::new(&spans)
            },
            accept_errors: r
                .counter("lockgate_accept_errors_total", "Client connections that could not be accepted.")?,
            leases: Leases::default(),
            filters: Mutex::default(),
            custom: Mutex::default(),
            registry: registry.clone(),
        };
        for outcome in ReloadOutcome::ALL {
            metrics.reloads.with_label_values(&[outcome.as_str()]);
        }
        Ok(Arc::new(metrics))
    }

    /// Returns the handles of a route.
    pub fn route(&self, name: &str) -> Arc<RouteSeries> {
        Arc::new(RouteSeries {
            requests: STATUS_CLASSES.map(|class| self.requests.with_label_values(&[name, class])),
            durations: STATUS_CLASSES.map(|class| self.request_duration.with_label_values(&[name, class])),
            _lease: self.leases.take({
                let mut series: Vec<_> = STATUS_CLASSES.map(|class| remove(&self.requests, &[name, class])).into();
                series.extend(STATUS_CLASSES.map(|class| remove(&self.request_duration, &[name, class])));
                lease::Series::new(&["route", name], series)
            }),
        })
    }

    /// Returns the handles of a listener, by its address as configured.
    pub fn listener(&self, address: &str) -> Arc<ListenerSeries> {
        let outcomes = || std::iter::once(HANDSHAKE_OK).chain(Failure::ALL.map(Failure::kind));
        Arc::new(ListenerSeries {
            handshakes: outcomes().map(|outcome| self.handshakes.with_label_values(&[address, outcome])).collect(),
            cuts: Cut::ALL.map(|cut| self.connections_cut.with_label_values(&[address, cut.reason()])),
            _lease: self.leases.take(lease::Series::new(&["listener", address], {
                let cuts = Cut::ALL.map(|cut| remove(&self.connections_cut, &[address, cut.reason()]));
                outcomes().map(|outcome| remove(&self.handshakes, &[address, outcome])).chain(cuts).collect()
            })),
        })
    }

    /// Shows when each certificate expires, in the place of what was shown before.
    pub fn show_certificates<'a>(&self, certificates: impl Iterator<Item = (&'a ListenAddress, &'a Certificate)>) {
        self.certificate_expiry.reset();
        for (listener, certificate) in certificates {
            let labels = [&listener.to_string(), &certificate.file];
            self.certificate_expiry.with_label_values(&labels).set(certificate.not_after as f64);
        }
    }

    /// Returns the handles of a route's folder.
    pub fn folder(&self, route: &str) -> Arc<FolderSeries> {
        let labels = FolderOutcome::ALL.map(|outcome| [route, outcome.as_str()]);
        Arc::new(FolderSeries {
            answers: labels.map(|labels| self.static_answers.with_label_values(&labels)),
            duration: self.static_duration.with_label_values(&[route]),
            _lease: self.leases.take({
                let mut series: Vec<_> = labels.map(|labels| remove(&self.static_answers, &labels)).into();
                series.push(remove(&self.static_duration, &[route]));
                lease::Series::new(&["static", route], series)
            }),
        })
    }

    /// Counts a request that did not get its target's answer.
    pub fn fault(&self, fault: Fault) {
        if let Some(counter) = self.errors.get(fault as usize) {
            counter.inc();
        }
    }

    /// Returns the handles of one version on one track, for the phases that it exports.
    pub fn version(&self, filter: &Filter, label: &str, track: Track) -> Arc<VersionSeries> {
        let (name, track) = (&**filter.name(), track.as_str());
        let mut series = Vec::new();
        let phases = PHASES.map(|phase| {
            let of_phase = [name, label, track, phase.as_str()];
            exports(filter, phase).then(|| PhaseSeries {
                calls: OUTCOMES.map(|outcome| {
                    let labels = [name, label, track, phase.as_str(), outcome];
                    series.push(remove(&self.filter_calls, &labels));
                    self.filter_calls.with_label_values(&labels)
                }),
                duration: {
                    series.push(remove(&self.filter_duration, &of_phase));
                    self.filter_duration.with_label_values(&of_phase)
                },
            })
        });
        let failures = lockgate_host::CallErrorKind::OF_FILTERS
            .iter()
            .map(|kind| kind.as_str())
            .chain([FAILED_BY_ITSELF])
            .map(|kind| {
                let labels = [name, label, track, kind];
                series.push(remove(&self.filter_failures, &labels));
                (kind, self.filter_failures.with_label_values(&labels))
            })
            .collect();
        Arc::new(VersionSeries {
            phases,
            failures,
            _lease: self.leases.take(lease::Series::new(&["version", name, label, track], series)),
        })
    }

    /// Follows a filter's instances and memory until it is gone, and returns the handles of the metrics that it
    /// declared.
    pub fn watch(&self, filter: &Arc<Filter>, label: &str) -> Arc<CustomSeries> {
        let name: &str = filter.name();
        let labels = [name, label];
        self.filter_snapshotted.with_label_values(&labels).set(filter.snapshotted().is_ok().into());
        self.filters.lock().push(LoadedFilter {
            filter: Arc::downgrade(filter),
            instances: self.filter_instances.with_label_values(&labels),
            memory: self.filter_memory.with_label_values(&labels),
            lines_dropped: self.filter_lines_dropped.with_label_values(&labels),
            refused: refusals(&labels).map(|labels| self.filter_refused.with_label_values(&labels)),
            lease: Some(self.leases.take(lease::Series::new(&["filter", name, label], {
                let mut series = vec![
                    remove(&self.filter_instances, &labels),
                    remove(&self.filter_memory, &labels),
                    remove(&self.filter_snapshotted, &labels),
                    remove(&self.filter_events, &labels),
                    remove(&self.filter_lines_dropped, &labels),
                ];
                series.extend(refusals(&labels).map(|labels| remove(&self.filter_refused, &labels)));
                series
            }))),
        });
        let events = self.filter_events.with_label_values(&labels);
        let mut custom = self.custom.lock();
        let series = custom
            .entry((name.to_owned(), label.to_owned()))
            .or_insert_with(|| Arc::new(CustomSeries::new(name, label, filter.declarations(), events)));
        Arc::clone(series)
    }

    /// Returns the handles of one version of a function on one track.
    pub fn function(&self, name: &str, label: &str, track: Track) -> Arc<FunctionSeries> {
        let of = [name, label, track.as_str()];
        let [name, label, track] = of;
        let mut series = vec![remove(&self.function_duration, &of), remove(&self.function_busy, &of)];
        let calls = FUNCTION_OUTCOMES.map(|outcome| {
            let labels = [name, label, track, outcome];
            series.push(remove(&self.function_calls, &labels));
            self.function_calls.with_label_values(&labels)
        });
        let failures = CallErrorKind::OF_FUNCTIONS
            .iter()
            .map(|kind| {
                let labels = [name, label, track, kind.as_str()];
                series.push(remove(&self.function_failures, &labels));
                (kind.as_str(), self.function_failures.with_label_values(&labels))
            })
            .collect();
        Arc::new(FunctionSeries {
            calls,
            duration: self.function_duration.with_label_values(&of),
            busy: self.function_busy.with_label_values(&of),
            failures,
            _lease: self.leases.take(lease::Series::new(&["function version", name, label, track], series)),
        })
    }

    /// Follows a function's instances and memory until it is gone.
    pub fn watch_function(&self, function: &Arc<Function>, label: &str) {
        let labels = [&**function.name(), label];
        self.functions.lock().push(LoadedFunction {
            function: Arc::downgrade(function),
            instances: self.function_instances.with_label_values(&labels),
            memory: self.function_memory.with_label_values(&labels),
            lines_dropped: self.function_lines_dropped.with_label_values(&labels),
            refused: refusals(&labels).map(|labels| self.function_refused.with_label_values(&labels)),
            lease: Some(self.leases.take(lease::Series::new(&["function", labels[0], label], {
                let mut series = vec![
                    remove(&self.function_instances, &labels),
                    remove(&self.function_memory, &labels),
                    remove(&self.function_lines_dropped, &labels),
                ];
                series.extend(refusals(&labels).map(|labels| remove(&self.function_refused, &labels)));
                series
            }))),
        });
    }

    /// Returns the handles of a rollout that is about these versions; none before it has a state.
    pub fn rollout(&self, name: &str, versions: Option<&Versions>) -> Arc<TrackSeries> {
        let requests = Track::ALL.map(|track| self.rollout_requests.with_label_values(&[name, track.as_str()]));
        let now = || requests.each_ref().map(IntCounter::get);
        let before = versions.map_or_else(now, |versions| {
            let mut beginnings = self.rollout_beginnings.lock();
            match beginnings.get(name) {
                Some((known, before)) if known == versions => *before,
                _ => {
                    let before = now();
                    beginnings.insert(name.to_owned(), (versions.clone(), before));
                    before
                }
            }
        });
        Arc::new(TrackSeries {
            requests,
            before,
            spared: self.rollout_spared.with_label_values(&[name]),
            _lease: self.leases.take({
                let requests = Track::ALL.map(|track| remove(&self.rollout_requests, &[name, track.as_str()]));
                let moves = rollout::ACTIONS.map(|action| remove(&self.rollout_decisions, &[name, action]));
                lease::Series::new(
                    &["rollout", name],
                    requests.into_iter().chain(moves).chain([remove(&self.rollout_spared, &[name])]).collect(),
                )
            }),
        })
    }

    /// Returns the handles of a rollout's shadow.
    pub fn shadow(&self, rollout: &str) -> ShadowSeries {
        let mut series = vec![remove(&self.shadow_cpu, &[rollout])];
        let mut counter = |family: &IntCounterVec, value: &str| {
            series.push(remove(family, &[rollout, value]));
            family.with_label_values(&[rollout, value])
        };
        ShadowSeries {
            compared: ["disagreed", "agreed"].map(|verdict| counter(&self.shadow_compared, verdict)),
            differences: Kind::ALL.map(|kind| counter(&self.shadow_differences, kind.as_str())),
            skipped: Skip::ALL.map(|skip| counter(&self.shadow_skipped, skip.as_str())),
            cpu: self.shadow_cpu.with_label_values(&[rollout]),
            _lease: self.leases.take(lease::Series::new(&["shadow", rollout], series)),
        }
    }

    /// Sets the share of a rollout's canary that is in force, 0 to 1; none removes the series.
    pub fn set_rollout_weight(&self, name: &str, ratio: Option<f64>) {
        match ratio {
            Some(ratio) => self.rollout_weight.with_label_values(&[name]).set(ratio),
            // An error means that it was not there.
            None => drop(self.rollout_weight.remove_label_values(&[name])),
        }
    }

    /// Shows where a rollout is on its way: its step, counted from 1, and whether it is paused or stalled; none removes
    /// the series.
    pub fn set_rollout_place(&self, name: &str, place: Option<(Option<usize>, bool, bool)>) {
        let (step, paused, stalled) = place.unwrap_or_default();
        match step {
            Some(step) => self.rollout_step.with_label_values(&[name]).set(i64::try_from(step).unwrap_or(i64::MAX)),
            // An error means that it was not there.
            None => drop(self.rollout_step.remove_label_values(&[name])),
        }
        for (reason, held) in [("paused", paused), ("stalled", stalled)] {
            match place {
                Some(_) => self.rollout_held.with_label_values(&[name, reason]).set(i64::from(held)),
                None => drop(self.rollout_held.remove_label_values(&[name, reason])),
            }
        }
    }

    /// Shows how sure the judge is of each claim by a signal, 0 to 1; none removes the series.
    pub fn set_rollout_evidence(&self, name: &str, signal: &str, worse_and_not_worse: Option<(f64, f64)>) {
        for (claim, of) in [("worse", 0), ("not-worse", 1)] {
            let labels = [name, signal, claim];
            match worse_and_not_worse {
                Some((worse, not_worse)) => {
                    self.rollout_evidence.with_label_values(&labels).set(if of == 0 { worse } else { not_worse });
                }
                // An error means that it was not there.
                None => drop(self.rollout_evidence.remove_label_values(&labels)),
            }
        }
    }

    /// Counts a move of a rollout, one of [`rollout::ACTIONS`]. The series goes with the rollout.
    pub fn decided(&self, rollout: &str, action: &str) {
        self.rollout_decisions.with_label_values(&[rollout, action]).inc();
    }

    /// Returns the handles of an upstream.
    pub fn upstream(&self, name: &str) -> Arc<UpstreamSeries> {
        Arc::new(UpstreamSeries {
            requests: STATUS_CLASSES.map(|class| self.upstream_requests.with_label_values(&[name, class])),
            duration: self.upstream_duration.with_label_values(&[name]),
            retries: Retry::LABELS.map(|why| self.upstream_retries.with_label_values(&[name, why])),
            ejections: self.upstream_ejections.with_label_values(&[name]),
            limits: self.limits.of(name),
            usable: self.upstream_endpoints.with_label_values(&[name, "usable"]),
            unhealthy: self.upstream_endpoints.with_label_values(&[name, "unhealthy"]),
            ejected: self.upstream_endpoints.with_label_values(&[name, "ejected"]),
            file_failing: self.upstream_file_failing.with_label_values(&[name]),
            _lease: self.leases.take({
                let mut series: Vec<_> =
                    STATUS_CLASSES.map(|class| remove(&self.upstream_requests, &[name, class])).into();
                series.push(remove(&self.upstream_duration, &[name]));
                series.extend(Retry::LABELS.map(|why| remove(&self.upstream_retries, &[name, why])));
                series.push(remove(&self.upstream_ejections, &[name]));
                series.extend(self.limits.removes(name));
                let states = ["usable", "unhealthy", "ejected"];
                series.extend(states.map(|state| remove(&self.upstream_endpoints, &[name, state])));
                series.push(remove(&self.upstream_file_failing, &[name]));
                lease::Series::new(&["upstream", name], series)
            }),
        })
    }

    /// Says whether a version is in quarantine.
    pub fn set_quarantined(&self, entry: &Entry, quarantined: bool) {
        let (family, name) = match &entry.held {
            Held::Filter { filter, .. } => (&self.quarantined, filter),
            Held::Function { function, .. } => (&self.quarantined_functions, function),
            Held::Upstream { upstream, .. } => (&self.quarantined_upstreams, upstream),
        };
        let labels = [name, &*entry.held.label(), entry.why.kind()];
        if quarantined {
            family.with_label_values(&labels).set(1);
        } else {
            // An error means that it was not there.
            drop(family.remove_label_values(&labels));
        }
    }

    /// Shows the versions that wait for approval, each as `filter NAME` or `function NAME`, in the place of what was shown
    /// before.
    pub fn show_waiting<'a>(&self, waiting: impl Iterator<Item = (&'a str, Arc<str>)>) {
        self.waiting.reset();
        for (subject, label) in waiting {
            let (kind, name) = subject.split_once(' ').unwrap_or_default();
            self.waiting.with_label_values(&[kind, name, &*label]).set(1);
        }
    }

    /// Counts a reload.
    pub fn reloaded(&self, outcome: ReloadOutcome) {
        self.reloads.with_label_values(&[outcome.as_str()]).inc();
        self.reload_failing.set(i64::from(outcome == ReloadOutcome::Refused));
        if outcome != ReloadOutcome::Refused {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            self.reload_success_timestamp.set(now.map_or(0.0, |since| since.as_secs_f64()));
        }
    }

    /// Removes what nothing has used for ten minutes. The control plane calls it now and then.
    pub fn sweep(&self, now: Instant) {
        self.filters.lock().retain(|loaded| loaded.filter.strong_count() > 0);
        self.functions.lock().retain(|loaded| loaded.function.strong_count() > 0);
        for key in self.leases.sweep(now, LINGER) {
            if let [kind, name, label] = &key[..]
                && kind == "filter"
            {
                self.custom.lock().remove(&(name.clone(), label.clone()));
            }
        }
    }

    fn refresh_functions(&self) {
        let mut functions = self.functions.lock();
        for loaded in &*functions {
            loaded.instances.set(0);
            loaded.memory.set(0);
        }
        // A version is loaded twice while its limits change: their instances add up.
        for loaded in &mut *functions {
            let Some(function) = loaded.function.upgrade() else {
                loaded.lease = None;
                continue;
            };
            let live = function.live();
            loaded.instances.add(i64::from(live.instances));
            loaded.memory.add(i64::try_from(live.memory_bytes).unwrap_or(i64::MAX));
            raise(&loaded.lines_dropped, live.lines_dropped);
            for (counter, count) in loaded.refused.iter().zip(live.refused) {
                raise(counter, count);
            }
        }
    }

    /// Returns everything in Prometheus' text format. `host` gives the figures that it keeps itself.
    pub fn render(&self, host: &Host) -> String {
        self.refresh(host);
        let mut families = self.registry.gather();
        for custom in self.custom.lock().values() {
            families.extend(custom.registry.gather());
        }
        match key_value::gather(host) {
            Ok(gathered) => families.extend(gathered),
            Err(error) => tracing::error!(%error, "the key-value store's metrics could not be gathered"),
        }
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&merge(families), &mut text) {
            tracing::error!(%error, "metrics could not be rendered");
        }
        String::from_utf8(text).unwrap_or_default()
    }

    fn refresh(&self, host: &Host) {
        self.refresh_functions();
        let mut filters = self.filters.lock();
        for loaded in &*filters {
            loaded.instances.set(0);
            loaded.memory.set(0);
        }
        // A version is loaded twice while its limits change: their instances add up.
        for loaded in &mut *filters {
            let Some(filter) = loaded.filter.upgrade() else {
                loaded.lease = None;
                continue;
            };
            let live = filter.live();
            loaded.instances.add(i64::from(live.instances));
            loaded.memory.add(i64::try_from(live.memory_bytes).unwrap_or(i64::MAX));
            raise(&loaded.lines_dropped, live.lines_dropped);
            for (counter, count) in loaded.refused.iter().zip(live.refused) {
                raise(counter, count);
            }
        }
        drop(filters);
        let stats = host.cache().stats();
        raise(&self.cache.hits, stats.hits);
        raise(&self.cache.misses, stats.misses);
        for (reason, count) in stats.rejects {
            raise(&self.cache.rejects.with_label_values(&[reason.as_str()]), count);
        }
        let more = stats.compile_seconds - self.cache.compile_seconds.get();
        if more > 0.0 {
            self.cache.compile_seconds.inc_by(more);
        }
        let bytes: u64 = host.cache().entries().unwrap_or_default().iter().map(|entry| entry.bytes).sum();
        self.cache.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        let pool = host.pool();
        let slots = [
            ("component_instances", pool.used.component_instances, pool.total.component_instances),
            ("core_instances", pool.used.core_instances, pool.total.core_instances),
            ("memories", pool.used.memories, pool.total.memories),
            ("tables", pool.used.tables, pool.total.tables),
            ("stacks", pool.used.stacks, pool.total.stacks),
        ];
        for (resource, used, size) in slots {
            self.pool_used.with_label_values(&[resource]).set(i64::from(used));
            self.pool_size.with_label_values(&[resource]).set(i64::from(size));
        }
    }
}

/// Registers families under their names.
struct Families<'a>(&'a Registry);

impl Families<'_> {
    fn register<C: Collector + Clone + 'static>(&self, family: C) -> prometheus::Result<C> {
        register(self.0, family)
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.register(IntCounter::new(name, help)?)
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.register(IntGauge::new(name, help)?)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
        self.register(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> prometheus::Result<HistogramVec> {
        self.register(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)?)
    }
}

/// Returns what removes one series from a family.
fn remove<B>(family: &prometheus::core::MetricVec<B>, labels: &[&str]) -> lease::Remove
where
    B: prometheus::core::MetricVecBuilder + 'static,
{
    let family = family.clone();
    let labels: Vec<String> = labels.iter().map(|&label| label.to_owned()).collect();
    // An error means that it was not there.
    Box::new(move || drop(family.remove_label_values(&labels)))
}

/// Raises a counter to a total that is kept elsewhere.
fn raise(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

/// Puts families of one name together, as the text format asks: two filters may declare the same metric.
fn merge(families: Vec<MetricFamily>) -> Vec<MetricFamily> {
    let mut merged: Vec<MetricFamily> = Vec::with_capacity(families.len());
    for family in families {
        match merged.iter_mut().find(|known| known.name() == family.name()) {
            None => merged.push(family),
            Some(known) if known.get_field_type() == family.get_field_type() => {
                let mut metrics = known.take_metric();
                metrics.extend(family.get_metric().iter().cloned());
                known.set_metric(metrics);
            }
            Some(_) => tracing::warn!(
                metric = family.name(),
                "two filters declare one metric with different types; the second is not exported"
            ),
        }
    }
    merged
}
