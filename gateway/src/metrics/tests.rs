//! What is shown of things that are gone.

use lockgate_host::{Grants, VersionId};

use super::*;
use crate::control::quarantine::Why;
use crate::control::time::Timestamp;

/// The label values of all series of a family, each set in the order of the labels' names.
fn series(metrics: &Metrics, name: &str) -> Vec<Vec<String>> {
    let families = metrics.registry.gather();
    let family = families.iter().find(|family| family.name() == name);
    let series = family.into_iter().flat_map(|family| family.get_metric());
    series.map(|metric| metric.get_label().iter().map(|label| label.value().to_owned()).collect()).collect()
}

#[test]
fn what_was_counted_of_a_rollout_goes_when_it_is_gone() {
    let metrics = Metrics::new().expect("every family has a name of its own");
    let (old, other) = (metrics.rollout("auth-2", None), metrics.rollout("auth-3", None));
    old.record(Track::Canary);
    rollout::ACTIONS.into_iter().for_each(|action| metrics.decided("auth-2", action));
    metrics.decided("auth-3", "begin");
    drop(old);
    metrics.sweep(Instant::now());
    let moves = "lockgate_rollout_decisions_total";
    assert_eq!(series(&metrics, moves).len(), rollout::ACTIONS.len() + 1, "a last scrape is to see them");
    metrics.sweep(Instant::now() + LINGER);
    assert_eq!(series(&metrics, moves), [["begin", "auth-3"]]);
    assert_eq!(series(&metrics, "lockgate_rollout_requests_total"), [["auth-3", "canary"], ["auth-3", "stable"]]);
    drop(other);
}

#[test]
fn a_version_in_quarantine_is_shown_by_what_it_is_of() {
    let metrics = Metrics::new().expect("every family has a name of its own");
    let version = VersionId::of(b"v2", "{}", &Grants::default());
    let entry = |held, why| Entry { held, why, since: Timestamp::from_millis(1) };
    let function = Held::Function { function: "hello".to_owned(), version };
    let function = entry(function, Why::Person { by: "cli by uid 1000".to_owned(), reason: None });
    let upstream = Held::Upstream { upstream: "app".to_owned(), version: "app-2@4be01f77b0e4".to_owned() };
    let upstream = entry(upstream, Why::Guard { findings: Vec::new(), others: Vec::new() });
    for entry in [&function, &upstream] {
        metrics.set_quarantined(entry, true);
    }
    let of_function = ["hello".to_owned(), version.to_string(), "person".to_owned()];
    assert_eq!(series(&metrics, "lockgate_function_quarantined"), [of_function]);
    assert_eq!(series(&metrics, "lockgate_upstream_quarantined"), [["app", "app-2@4be01f", "guard"]]);
    assert!(series(&metrics, "lockgate_filter_quarantined").is_empty());
    metrics.set_quarantined(&upstream, false);
    assert!(series(&metrics, "lockgate_upstream_quarantined").is_empty());
}
