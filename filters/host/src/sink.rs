//! Where a filter's words go: log lines, events and metrics to a [`Sink`], the steps of loading it to a [`Progress`].

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A point in the life of a filter, or a function, at which its code runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The component is being instantiated; its start functions run.
    Start,
    /// `configure` runs.
    Configure,
    /// Request headers.
    OnRequest,
    /// A piece of the request's body.
    OnRequestBody,
    /// Response headers.
    OnResponse,
    /// A piece of the response's body.
    OnResponseBody,
    /// A function answers a request.
    Handle,
}

impl Phase {
    /// Returns the name for logs and metric labels, `on-request` for one.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Configure => "configure",
            Self::OnRequest => "on-request",
            Self::OnRequestBody => "on-request-body",
            Self::OnResponse => "on-response",
            Self::OnResponseBody => "on-response-body",
            Self::Handle => "handle",
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How much a log line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For the filter's author.
    Debug,
    /// Worth knowing. Standard output is logged so.
    Info,
    /// Something is off. Standard error is logged so: a panic's message arrives there.
    Warn,
    /// Something is broken.
    Error,
}

/// Which call a log line or an event came from.
#[derive(Debug, Clone, Copy)]
pub struct CallInfo<'a> {
    /// The request's id; empty while a filter is loaded.
    pub request_id: &'a str,
    /// `stable` or `canary`, as given to [`Filter::acquire`](crate::Filter::acquire) or
    /// [`Function::call`](crate::Function::call).
    pub track: &'static str,
    /// What was being called.
    pub phase: Phase,
}

/// Receives what a filter says while it serves. Bound once to each filter, after it was loaded.
///
/// Called on proxy threads in the middle of a guest's call: an implementation must not block.
pub trait Sink: Send + Sync {
    /// Takes one log line, without a line break at its end, at most 16 KiB.
    fn log(&self, call: &CallInfo<'_>, level: Level, message: &str);
    /// Takes one event; `data` is meant to be JSON, but nobody has checked.
    fn event(&self, call: &CallInfo<'_>, name: &str, data: &str);
    /// Adds `by` to counter `id`, at the label's value number `label`. Both were declared.
    fn add(&self, id: u32, label: u32, by: u64);
    /// Records a finite value in histogram `id`, at the label's value number `label`. Both were declared.
    fn observe(&self, id: u32, label: u32, value: f64);
}

/// A step in loading a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The artifact was in the cache; nothing needs to be compiled.
    CacheHit,
    /// The component is being compiled: seconds for a large one.
    Compiling {
        /// Size of the component.
        bytes: u64,
    },
    /// `configure` runs.
    Configuring,
    /// The memory that `configure` left is being made part of the component.
    Snapshotting,
    /// One instance is being started, to see whether it can be.
    Probing,
    /// The filter can serve.
    Ready {
        /// From the beginning of the load.
        millis: u64,
    },
}

/// Hears of each step of a load, on the thread that called [`Host::load`](crate::Host::load).
pub trait Progress {
    /// Takes note that `filter` has reached `stage`.
    fn stage(&self, filter: &str, stage: Stage);
}

/// A [`Progress`] and [`Sink`] for those who do not want to hear anything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn stage(&self, _filter: &str, _stage: Stage) {}
}

impl Sink for Silent {
    fn log(&self, _call: &CallInfo<'_>, _level: Level, _message: &str) {}
    fn event(&self, _call: &CallInfo<'_>, _name: &str, _data: &str) {}
    fn add(&self, _id: u32, _label: u32, _by: u64) {}
    fn observe(&self, _id: u32, _label: u32, _value: f64) {}
}

impl<P: Progress + ?Sized> Progress for Arc<P> {
    fn stage(&self, filter: &str, stage: Stage) {
        (**self).stage(filter, stage);
    }
}
