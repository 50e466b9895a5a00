//! Where a filter's log lines, events and metrics go.

use std::sync::Arc;

use lockgate_host::{CallInfo, Level, Sink};

use crate::metrics::CustomSeries;

/// The sink of one version of a filter.
#[derive(Debug)]
pub struct FilterSink {
    filter: Arc<str>,
    version: Arc<str>,
    series: Arc<CustomSeries>,
}

impl FilterSink {
    /// Returns a sink.
    pub fn new(filter: Arc<str>, version: Arc<str>, series: Arc<CustomSeries>) -> Self {
        Self { filter, version, series }
    }
}

macro_rules! line {
    ($level:ident, $self:ident, $call:ident, $($field:tt)*) => {
        tracing::event!(
            target: "lockgate::filter",
            tracing::Level::$level,
            filter = %$self.filter,
            version = %$self.version,
            track = $call.track,
            phase = $call.phase.as_str(),
            request_id = $call.request_id,
            $($field)*
        )
    };
}

impl Sink for FilterSink {
    fn log(&self, call: &CallInfo<'_>, level: Level, message: &str) {
        match level {
            Level::Debug => line!(DEBUG, self, call, "{message}"),
            Level::Info => line!(INFO, self, call, "{message}"),
            Level::Warn => line!(WARN, self, call, "{message}"),
            Level::Error => line!(ERROR, self, call, "{message}"),
        }
    }

    fn event(&self, call: &CallInfo<'_>, name: &str, data: &str) {
        self.series.events.inc();
        line!(INFO, self, call, event = name, data, "event");
    }

    fn add(&self, id: u32, label: u32, by: u64) {
        self.series.add(id, label, by);
    }

    fn observe(&self, id: u32, label: u32, value: f64) {
        self.series.observe(id, label, value);
    }
}
