use crate::bindings::imports::lockgate::filter::{declare, metrics};

/// How a body is handed over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BodyMode {
    /// Chunk by chunk, as it passes: a request's headers are already on their way.
    #[default]
    Stream,
    /// As a whole, up to the operator's `limits.body`; a longer request is answered with 413. A request's headers have
    /// not been sent, so that the filter may still change them, choose the upstream or answer itself.
    Buffer,
}

impl From<BodyMode> for declare::BodyMode {
    fn from(mode: BodyMode) -> Self {
        match mode {
            BodyMode::Stream => Self::Stream,
            BodyMode::Buffer => Self::Buffer,
        }
    }
}

/// What a filter says about itself while it is configured: how it wants bodies, and which metrics it has.
///
/// A metric's name is `[a-z][a-z0-9_]*` and declared once; at most 32 metrics a filter. The gateway traps on others,
/// which an author sees at the first load.
#[derive(Debug)]
pub struct Declare {
    // Made by the glue alone: outside of `configure` the gateway traps.
    _private: (),
}

impl Declare {
    pub(crate) fn now() -> Self {
        Self { _private: () }
    }

    /// How [`on_request_body`](crate::Filter::on_request_body) is to be called. Default: [`BodyMode::Stream`].
    pub fn request_body(&self, mode: BodyMode) {
        declare::request_body(mode.into());
    }

    /// How [`on_response_body`](crate::Filter::on_response_body) is to be called. Default: [`BodyMode::Stream`].
    pub fn response_body(&self, mode: BodyMode) {
        declare::response_body(mode.into());
    }

    /// Declares a counter, exported as `lockgate_filter_custom_<name>_total`.
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        Counter { id: declare::counter(name, help, None) }
    }

    /// Declares a counter for each value of a label.
    pub fn counter_by(&self, name: &str, help: &str, label: Label<'_>) -> CounterBy {
        CounterBy { id: declare::counter(name, help, Some(&label.into())) }
    }

    /// Declares a histogram, exported as `lockgate_filter_custom_<name>`. `buckets` are upper bounds in ascending order,
    /// at most 32; put the unit into the name.
    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        Histogram { id: declare::histogram(name, help, None, buckets) }
    }

    /// Declares a histogram for each value of a label.
    pub fn histogram_by(&self, name: &str, help: &str, label: Label<'_>, buckets: &[f64]) -> HistogramBy {
        HistogramBy { id: declare::histogram(name, help, Some(&label.into()), buckets) }
    }
}

/// A label of a metric, with every value that it can take: no request can add one.
#[derive(Debug, Clone, Copy)]
pub struct Label<'a> {
    /// `[a-z][a-z0-9_]*`
    pub name: &'a str,
    /// At most 64. A metric's methods take the index of a value in here.
    pub values: &'a [&'a str],
}

impl From<Label<'_>> for declare::Label {
    fn from(label: Label<'_>) -> Self {
        Self { name: label.name.to_owned(), values: label.values.iter().map(|&value| value.to_owned()).collect() }
    }
}

/// A counter.
#[derive(Debug)]
pub struct Counter {
    id: u32,
}

impl Counter {
    /// Adds to it.
    pub fn add(&self, by: u64) {
        metrics::add(self.id, 0, by);
    }
}

/// A counter for each value of a label.
#[derive(Debug)]
pub struct CounterBy {
    id: u32,
}

impl CounterBy {
    /// Adds to the counter of the label's value with this index. Traps on an index that was not declared.
    pub fn add(&self, label: usize, by: u64) {
        metrics::add(self.id, index(label), by);
    }
}

/// A histogram.
#[derive(Debug)]
pub struct Histogram {
    id: u32,
}

impl Histogram {
    /// Records a value.
    pub fn observe(&self, value: f64) {
        metrics::observe(self.id, 0, value);
    }
}

/// A histogram for each value of a label.
#[derive(Debug)]
pub struct HistogramBy {
    id: u32,
}

impl HistogramBy {
    /// Records a value under the label's value with this index. Traps on an index that was not declared.
    pub fn observe(&self, label: usize, value: f64) {
        metrics::observe(self.id, index(label), value);
    }
}

/// An index that does not fit was not declared either: the gateway sees the largest, and traps.
fn index(label: usize) -> u32 {
    u32::try_from(label).unwrap_or(u32::MAX)
}
