//! Metrics of key-value stores. The host keeps the figures, and knows which spaces there are: they are told anew for each
//! scrape, so that a space that nobody has any more has no series.

use lockgate_host::Host;
use prometheus::proto::MetricFamily;
use prometheus::{CounterVec, IntCounterVec, IntGaugeVec, Opts, Registry};

use super::series::register;

/// Returns what a host tells of its stores.
pub(super) fn gather(host: &Host) -> prometheus::Result<Vec<MetricFamily>> {
    let registry = Registry::new();
    let counters = |name: &str, help: &str, labels: &[&str]| {
        IntCounterVec::new(Opts::new(name, help), labels).and_then(|family| register(&registry, family))
    };
    let gauges = |name: &str, help: &str| {
        let family = IntGaugeVec::new(Opts::new(name, help), &["store", "space"]);
        family.and_then(|family| register(&registry, family))
    };
    let operations = counters(
        "lockgate_key_value_operations_total",
        "Operations on the key-value store that outlives the process, by what became of them.",
        &["operation", "outcome"],
    )?;
    let opts = Opts::new(
        "lockgate_key_value_wait_seconds_total",
        "Time for which operations on the key-value store were waited for.",
    );
    let waited = register(&registry, CounterVec::new(opts, &["operation"])?)?;
    for counted in host.key_value_counts() {
        let operation = counted.operation.as_str();
        operations.with_label_values(&[operation, counted.outcome.as_str()]).inc_by(counted.count);
        waited.with_label_values(&[operation]).inc_by(counted.waited.as_secs_f64());
    }
    let bytes = gauges("lockgate_key_value_bytes", "Bytes in a key-value space, with 64 for each entry.")?;
    let entries = gauges("lockgate_key_value_entries", "Entries in a key-value space.")?;
    let refused = counters(
        "lockgate_key_value_refused_total",
        "Writes that did not fit into their key-value space.",
        &["store", "space"],
    )?;
    for space in host.key_value_sizes() {
        let labels = [if space.in_memory { "memory" } else { "shared" }, &space.space];
        refused.with_label_values(&labels).inc_by(space.refused);
        if let Some((held, count)) = space.size {
            bytes.with_label_values(&labels).set(i64::try_from(held).unwrap_or(i64::MAX));
            entries.with_label_values(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
    Ok(registry.gather())
}
