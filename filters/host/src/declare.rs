//! What a filter declares about itself in `configure`: body modes, and metrics with their labels.

use serde::{Deserialize, Serialize};

use crate::filter::BodyMode;

/// Metrics of one filter.
const METRICS_MAX: usize = 32;
/// Values of one label.
const LABEL_VALUES_MAX: usize = 64;
/// Bytes of one label value.
const LABEL_VALUE_BYTES_MAX: usize = 128;
/// Upper bounds of one histogram.
const BUCKETS_MAX: usize = 32;
/// Bytes of a metric's or a label's name.
const NAME_BYTES_MAX: usize = 64;
/// Bytes of a metric's help.
const HELP_BYTES_MAX: usize = 1024;
/// Labels that the gateway itself puts on a filter's metrics, or that Prometheus reserves.
const LABELS_TAKEN: [&str; 6] = ["filter", "version", "track", "phase", "route", "le"];

/// A metric that a filter declared. Its id is its place in [`Filter::declarations`](crate::Filter::declarations).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricDeclaration {
    /// `[a-z][a-z0-9_]*`, not repeated within a filter.
    pub name: String,
    /// A sentence for people.
    pub help: String,
    /// Its label, where it has one.
    pub label: Option<LabelDeclaration>,
    /// Counter or histogram.
    pub kind: MetricKind,
}

/// A label with every value that it can take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelDeclaration {
    /// `[a-z][a-z0-9_]*`
    pub name: String,
    /// 1 to 64 different values.
    pub values: Vec<String>,
}

/// What is measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MetricKind {
    /// A number that only grows.
    Counter,
    /// A distribution.
    Histogram {
        /// Upper bounds, ascending, finite; 1 to 32.
        buckets: Vec<f64>,
    },
}

/// Everything that one run of `configure` declared.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Declarations {
    pub(crate) request_body: Option<BodyMode>,
    pub(crate) response_body: Option<BodyMode>,
    pub(crate) metrics: Vec<MetricDeclaration>,
}

impl Declarations {
    /// Adds a metric and returns its id. The error says what is wrong with it.
    pub(crate) fn metric(&mut self, metric: MetricDeclaration) -> Result<u32, String> {
        let MetricDeclaration { name, help, label, kind } = &metric;
        check_name("metric", name)?;
        if self.metrics.len() >= METRICS_MAX {
            return Err(format!("the metric `{name}` is one too many: a filter has at most {METRICS_MAX}"));
        }
        if self.metrics.iter().any(|other| other.name == *name) {
            return Err(format!("the metric `{name}` is declared twice"));
        }
        if help.len() > HELP_BYTES_MAX {
            return Err(format!("the help of the metric `{name}` is longer than {HELP_BYTES_MAX} bytes"));
        }
        if let Some(LabelDeclaration { name: label, values }) = label {
            check_name("label", label)?;
            if LABELS_TAKEN.contains(&label.as_str()) {
                return Err(format!("the label `{label}` of the metric `{name}` is one that the gateway sets"));
            }
            if values.is_empty() || values.len() > LABEL_VALUES_MAX {
                return Err(format!(
                    "the label `{label}` has {} values; it must be 1 to {LABEL_VALUES_MAX}",
                    values.len()
                ));
            }
            for (at, value) in values.iter().enumerate() {
                if value.len() > LABEL_VALUE_BYTES_MAX {
                    return Err(format!("a value of the label `{label}` is longer than {LABEL_VALUE_BYTES_MAX} bytes"));
                }
                if values[..at].contains(value) {
                    return Err(format!("the label `{label}` has the value `{value}` twice"));
                }
            }
        }
        if let MetricKind::Histogram { buckets } = kind {
            if buckets.is_empty() || buckets.len() > BUCKETS_MAX {
                return Err(format!(
                    "the histogram `{name}` has {} buckets; it must be 1 to {BUCKETS_MAX}",
                    buckets.len()
                ));
            }
            if !buckets.iter().all(|bound| bound.is_finite()) || !buckets.is_sorted_by(|a, b| a < b) {
                return Err(format!("the buckets of the histogram `{name}` must be finite and ascending"));
            }
        }
        self.metrics.push(metric);
        Ok(self.metrics.len() as u32 - 1)
    }
}

/// Returns whether `metrics` has an `id` of this sort with a label value number `label`.
pub(crate) fn is_declared(metrics: &[MetricDeclaration], id: u32, label: u32, histogram: bool) -> bool {
    metrics.get(id as usize).is_some_and(|metric| {
        let values = metric.label.as_ref().map_or(1, |label| label.values.len());
        (label as usize) < values && matches!(metric.kind, MetricKind::Histogram { .. }) == histogram
    })
}

fn check_name(what: &str, name: &str) -> Result<(), String> {
    let valid = name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        && name.len() <= NAME_BYTES_MAX;
    if valid {
        return Ok(());
    }
    let shown: String = name.escape_debug().take(NAME_BYTES_MAX).collect();
    Err(format!("`{shown}` is no name for a {what}: it must be `[a-z][a-z0-9_]*`, at most {NAME_BYTES_MAX} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter(name: &str, label: Option<(&str, &[&str])>) -> MetricDeclaration {
        let label = label.map(|(name, values)| LabelDeclaration {
            name: name.to_owned(),
            values: values.iter().map(|value| (*value).to_owned()).collect(),
        });
        MetricDeclaration { name: name.to_owned(), help: String::new(), label, kind: MetricKind::Counter }
    }

    fn histogram(buckets: &[f64]) -> MetricDeclaration {
        MetricDeclaration { kind: MetricKind::Histogram { buckets: buckets.to_vec() }, ..counter("h", None) }
    }

    #[test]
    fn ids_count_up_and_know_their_labels() {
        let mut declared = Declarations::default();
        assert_eq!(declared.metric(counter("plain", None)), Ok(0));
        assert_eq!(declared.metric(counter("by_reason", Some(("reason", &["a", "b"])))), Ok(1));
        assert_eq!(declared.metric(histogram(&[0.1, 1.0])), Ok(2));
        let metrics = &declared.metrics;
        for (id, label, histogram, expected) in [
            (0, 0, false, true),
            (0, 1, false, false),
            (0, 0, true, false),
            (1, 1, false, true),
            (1, 2, false, false),
            (2, 0, true, true),
            (3, 0, false, false),
        ] {
            assert_eq!(is_declared(metrics, id, label, histogram), expected, "{id} {label} {histogram}");
        }
    }

    #[test]
    fn bad_declarations_are_refused() {
        for metric in [
            counter("", None),
            counter("Upper", None),
            counter("1st", None),
            counter("a-b", None),
            counter(&"a".repeat(65), None),
            counter("a", Some(("track", &["x"]))),
            counter("a", Some(("l", &[]))),
            counter("a", Some(("l", &["x", "x"]))),
            counter("a", Some(("l", &[&"x".repeat(129)]))),
            histogram(&[]),
            histogram(&[1.0, 1.0]),
            histogram(&[2.0, 1.0]),
            histogram(&[1.0, f64::INFINITY]),
            histogram(&[f64::NAN]),
            histogram(&[0.0; 33]),
        ] {
            assert!(Declarations::default().metric(metric.clone()).is_err(), "{metric:?}");
        }
        let mut declared = Declarations::default();
        declared.metric(counter("a", None)).unwrap();
        assert!(declared.metric(counter("a", None)).is_err(), "twice");
        for number in 1..METRICS_MAX {
            declared.metric(counter(&format!("m{number}"), None)).unwrap();
        }
        assert!(declared.metric(counter("one_too_many", None)).is_err());
    }
}
