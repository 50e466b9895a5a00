//! A version of a filter, loaded. A *version* is immutable: component, settings and grants, by their digests. Reloads
//! share it for as long as its digests, limits and isolation stay the same.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use lockgate_config::model::FailureMode;
use lockgate_host::{Filter, VersionId};
use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedSender;

use crate::metrics::{Metrics, VersionSeries};
use crate::proxy::sink::FilterSink;
use crate::track::Track;

/// A loaded version, with its metric handles.
#[derive(Debug)]
pub struct Version {
    filter: Arc<Filter>,
    label: Arc<str>,
    series: [OnceLock<Arc<VersionSeries>>; 2],
    failures: Option<FailureWindow>,
    log: LogBudget,
}

/// Failures of one version that are logged in a second: a filter that fails on every request must not fill the disk.
const LOGGED_PER_SECOND: u32 = 10;

/// Keeps a version that fails on every request from filling the log. The lock is taken on failures only.
#[derive(Debug)]
pub(super) struct LogBudget(Mutex<Logged>);

#[derive(Debug)]
struct Logged {
    second: Instant,
    logged: u32,
    unlogged: u64,
}

impl LogBudget {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Logged { second: Instant::now(), logged: 0, unlogged: 0 }))
    }

    /// Returns whether a failure may be logged, and how many were not since the last one that was.
    pub(super) fn may_log(&self) -> Option<u64> {
        let mut budget = self.0.lock();
        let now = Instant::now();
        if now.duration_since(budget.second) >= Duration::from_secs(1) {
            budget.second = now;
            budget.logged = 0;
        }
        if budget.logged < LOGGED_PER_SECOND {
            budget.logged += 1;
            Some(std::mem::take(&mut budget.unlogged))
        } else {
            budget.unlogged += 1;
            None
        }
    }
}

/// A version has failed as often as its failure mode bears. Sent by the data plane, once for each version.
#[derive(Clone, Debug)]
pub struct Failing {
    /// The filter's name.
    pub filter: Arc<str>,
    /// The version.
    pub version: VersionId,
    /// Failures within the window.
    pub failures: u32,
    /// The window.
    pub window: Duration,
}

/// Counts failures within a sliding window.
#[derive(Debug)]
struct FailureWindow {
    failures: u32,
    window: Duration,
    recent: Mutex<VecDeque<Instant>>,
    reported: AtomicBool,
    report: UnboundedSender<Failing>,
}

impl Version {
    /// Returns a loaded filter as a version, and binds its log lines, events and declared metrics.
    pub fn new(
        filter: Arc<Filter>,
        on_failure: FailureMode,
        metrics: &Metrics,
        report: &UnboundedSender<Failing>,
    ) -> Arc<Self> {
        let label = label_of(filter.version());
        let custom = metrics.watch(&filter, &label);
        filter.bind(Arc::new(FilterSink::new(Arc::clone(filter.name()), Arc::clone(&label), custom)));
        let failures = match on_failure {
            FailureMode::Closed | FailureMode::Open => None,
            FailureMode::FallBack { failures, window } => Some(FailureWindow {
                failures,
                window,
                recent: Mutex::default(),
                reported: AtomicBool::new(false),
                report: report.clone(),
            }),
        };
        Arc::new(Self { filter, label, series: [OnceLock::new(), OnceLock::new()], failures, log: LogBudget::new() })
    }

    /// Returns the running filter.
    pub fn filter(&self) -> &Arc<Filter> {
        &self.filter
    }

    /// Returns the digests.
    pub fn id(&self) -> &VersionId {
        self.filter.version()
    }

    /// Returns what stands for the version in metrics, logs and commands: `9f2c1a.4be01f.e3b0c4`.
    pub fn label(&self) -> &Arc<str> {
        &self.label
    }

    /// Resolves the metric handles of a track. Called when a snapshot is built that has the version on it.
    pub fn resolve(&self, track: Track, metrics: &Metrics) {
        self.series[track as usize].get_or_init(|| metrics.version(&self.filter, &self.label, track));
    }

    /// Returns the metric handles of a track; none before [`Self::resolve`].
    pub fn series(&self, track: Track) -> Option<&VersionSeries> {
        self.series[track as usize].get().map(|series| &**series)
    }

    /// Returns whether a failure may be logged, and how many were not since the last one that was.
    pub fn may_log(&self) -> Option<u64> {
        self.log.may_log()
    }

    /// Counts a failure against the window of `on_failure: fall-back`, and reports the version when it is full. The lock
    /// is taken on failures only.
    pub fn failed(&self) {
        let Some(window) = &self.failures else { return };
        if window.reported.load(Ordering::Relaxed) {
            return;
        }
        let now = Instant::now();
        let mut recent = window.recent.lock();
        recent.push_back(now);
        while recent.front().is_some_and(|first| now.duration_since(*first) > window.window) {
            recent.pop_front();
        }
        let full = u32::try_from(recent.len()).is_ok_and(|count| count >= window.failures);
        if full && !window.reported.swap(true, Ordering::Relaxed) {
            // An error means that the control plane has stopped, and with it the process.
            drop(window.report.send(Failing {
                filter: Arc::clone(self.filter.name()),
                version: *self.id(),
                failures: window.failures,
                window: window.window,
            }));
        }
    }

    /// Starts the count of failures anew: a person has taken the version out of quarantine.
    pub fn forgive(&self) {
        if let Some(window) = &self.failures {
            window.recent.lock().clear();
            window.reported.store(false, Ordering::Relaxed);
        }
    }
}

/// Returns the label of a version: the first six digits of each of its digests, which shows what changed.
pub fn label_of(id: &VersionId) -> Arc<str> {
    id.to_string().into()
}
