//! A version of a function, loaded. As a filter's version it is immutable, and shared by reloads for as long as its
//! digests, limits and isolation stay the same. It never falls back: what fails is answered with 503.

use std::sync::{Arc, OnceLock};

use lockgate_host::{CallError, CallInfo, Function, Level, VersionId};

use crate::control::version::{LogBudget, label_of};
use crate::metrics::{FunctionSeries, Metrics};
use crate::track::Track;

/// A loaded version of a function, with its metric handles.
#[derive(Debug)]
pub struct FunctionVersion {
    function: Arc<Function>,
    label: Arc<str>,
    series: [OnceLock<Arc<FunctionSeries>>; 2],
    log: LogBudget,
}

macro_rules! line {
    ($level:ident, $name:ident, $label:ident, $call:ident, $line:ident) => {
        tracing::event!(
            target: "lockgate::function",
            tracing::Level::$level,
            function = %$name,
            version = %$label,
            track = $call.track,
            request_id = $call.request_id,
            "{}",
            $line
        )
    };
}

impl FunctionVersion {
    /// Returns a loaded function as a version, and binds its log lines.
    pub fn new(function: Arc<Function>, metrics: &Metrics) -> Arc<Self> {
        let label = label_of(function.version());
        metrics.watch_function(&function, &label);
        let (name, of) = (Arc::clone(function.name()), Arc::clone(&label));
        function.bind(Arc::new(move |call: &CallInfo<'_>, level, line: &str| match level {
            Level::Debug => line!(DEBUG, name, of, call, line),
            Level::Info => line!(INFO, name, of, call, line),
            Level::Warn => line!(WARN, name, of, call, line),
            Level::Error => line!(ERROR, name, of, call, line),
        }));
        Arc::new(Self { function, label, series: [OnceLock::new(), OnceLock::new()], log: LogBudget::new() })
    }

    /// Returns the running function.
    pub fn function(&self) -> &Arc<Function> {
        &self.function
    }

    /// Returns the digests.
    pub fn id(&self) -> &VersionId {
        self.function.version()
    }

    /// Returns what stands for the version in metrics, logs and commands.
    pub fn label(&self) -> &Arc<str> {
        &self.label
    }

    /// Resolves the metric handles of a track. Called when a snapshot is built that has the version on it.
    pub fn resolve(&self, track: Track, metrics: &Metrics) {
        self.series[track as usize].get_or_init(|| metrics.function(self.function.name(), &self.label, track));
    }

    /// Returns the metric handles of a track; none before [`Self::resolve`].
    pub fn series(&self, track: Track) -> Option<&FunctionSeries> {
        self.series[track as usize].get().map(|series| &**series)
    }

    /// Counts a failure, and logs it within the version's budget of lines.
    pub fn failed(&self, track: Track, request_id: &str, error: &CallError) {
        if let Some(series) = self.series(track) {
            series.failure(error.kind.as_str());
        }
        if let Some(unlogged) = self.log.may_log() {
            tracing::warn!(
                target: "lockgate::function",
                function = %self.function.name(),
                version = %self.label,
                component = %self.id().component,
                track = track.as_str(),
                kind = error.kind.as_str(),
                request_id,
                unlogged,
                "function failed: {}",
                error.message
            );
        }
    }
}
