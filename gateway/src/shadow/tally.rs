//! What a shadow has found: counts for the guard and the metrics, and the last examples of each kind of difference.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockgate_host::{Level, Phase};
use parking_lot::Mutex;
use serde::Serialize;
use utoipa::ToSchema;

use crate::control::time::Timestamp;
use crate::metrics::ShadowSeries;
use crate::shadow::Options;
use crate::shadow::capture::{Capture, Skip};
use crate::shadow::compare::{Difference, Kind, Redactor};
use crate::shadow::replay::Replayed;

/// Examples that are kept of each kind: the frequent ones do not push out the rare ones.
const EXAMPLES_MAX: usize = 4;
/// Bytes of a path, and of a failure's message, in an example.
const TEXT_BYTES_MAX: usize = 1 << 10;

/// What was found while one rollout was about the same two versions.
#[derive(Debug)]
pub struct Tally {
    rollout: Arc<str>,
    /// Labels of stable and canary.
    versions: [Arc<str>; 2],
    not_run: Vec<Phase>,
    series: ShadowSeries,
    compared: AtomicU64,
    disagreed: AtomicU64,
    differences: [AtomicU64; Kind::ALL.len()],
    skipped: [AtomicU64; Skip::ALL.len()],
    used_ns: AtomicU64,
    redactor: Redactor,
    examples: Mutex<[VecDeque<Example>; Kind::ALL.len()]>,
}

/// How often both versions were asked, and how often they did not do the same: what a guard on agreement reads. Both
/// only grow while a rollout is about the same versions; after a restart they begin at zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests on which the canary was tried.
    pub compared: u64,
    /// Those of them on which it did something else than stable.
    pub disagreed: u64,
}

/// Which request it was.
#[derive(Debug)]
pub(super) struct About {
    request_id: Arc<str>,
    route: Arc<str>,
    method: String,
    path: String,
}

/// A request on which the versions differ.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Example {
    /// When it was compared, as RFC 3339 in UTC.
    #[schema(value_type = String)]
    pub time: Timestamp,
    /// The request's id, by which the access log has it.
    pub request_id: String,
    /// Its route.
    pub route: String,
    /// Its method.
    pub method: String,
    /// Its path, without the query.
    pub path: String,
    /// What differs; at most 16 of one kind.
    pub differences: Vec<Difference>,
    /// How the canary failed, as the log would have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// The canary's first log lines, which are in no log.
    pub lines: Vec<String>,
}

/// What a shadow has found.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ShadowView {
    /// The rollout.
    pub rollout: String,
    /// Label of the stable version.
    pub stable: String,
    /// Label of the version that is the shadow.
    pub canary: String,
    /// Whether it runs now.
    pub running: bool,
    /// Share of the requests that it is tried on, as `10%`, while it runs.
    pub sample: Option<String>,
    /// Processor time that it may use, as a share of one core, while it runs.
    pub cpu: Option<String>,
    /// Requests on which both versions were asked.
    pub compared: u64,
    /// Those on which both did the same.
    pub agreed: u64,
    /// Their share, 0 to 1; none before the first.
    pub agreement: Option<f64>,
    /// Requests with a difference, by kind; one may have several.
    pub differences: Vec<DifferenceCount>,
    /// Requests that were sampled and not compared, by why.
    pub skipped: Vec<SkipCount>,
    /// Processor time that it has used.
    pub cpu_seconds: f64,
    /// Phases of the canary's that cannot be tried, since stable has none of them.
    pub not_run: Vec<&'static str>,
    /// The last four of each kind, by their first difference, the latest first.
    pub examples: Vec<Example>,
}

/// How often versions differed in one way.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct DifferenceCount {
    /// In which.
    pub kind: Kind,
    /// Requests.
    pub requests: u64,
}

/// How often a request was not compared for one reason.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct SkipCount {
    /// `queue-full`, `cpu-budget`, `too-large`, `exhausted`, `outbound` or `ended`.
    pub reason: &'static str,
    /// Requests.
    pub requests: u64,
}

impl Tally {
    pub(super) fn new(rollout: Arc<str>, versions: [Arc<str>; 2], not_run: Vec<Phase>, series: ShadowSeries) -> Self {
        Self {
            rollout,
            versions,
            not_run,
            series,
            compared: AtomicU64::new(0),
            disagreed: AtomicU64::new(0),
            differences: std::array::from_fn(|_| AtomicU64::new(0)),
            skipped: std::array::from_fn(|_| AtomicU64::new(0)),
            used_ns: AtomicU64::new(0),
            redactor: Redactor::new(),
            examples: Mutex::default(),
        }
    }

    /// Returns the rollout's name.
    pub fn rollout(&self) -> &str {
        &self.rollout
    }

    /// Returns the counts that a guard on agreement judges by.
    pub fn counts(&self) -> Counts {
        // Compared last: more agreement than there is would be claimed otherwise.
        let disagreed = self.disagreed.load(Ordering::Acquire);
        Counts { compared: self.compared.load(Ordering::Relaxed).max(disagreed), disagreed }
    }

    /// Counts a request that was sampled and is not compared.
    pub fn skip(&self, skip: Skip) {
        self.skipped[skip as usize].fetch_add(1, Ordering::Relaxed);
        self.series.skipped(skip);
    }

    pub(super) fn redactor(&self) -> &Redactor {
        &self.redactor
    }

    /// Returns which request a capture is of; none of one without calls.
    pub(super) fn about(&self, capture: &Capture) -> Option<About> {
        let exchange = capture.first()?;
        Some(About {
            request_id: Arc::clone(&exchange.id),
            route: Arc::clone(&exchange.route),
            method: exchange.request.method.to_string(),
            path: cut(exchange.request.uri.path()),
        })
    }

    /// Counts the time that a request took.
    pub(super) fn used(&self, time: Duration) {
        self.used_ns.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.series.used(time);
    }

    /// Counts a request that was compared.
    pub(super) fn compared(&self, about: About, replayed: Replayed) {
        let Replayed { differences, failure, lines } = replayed;
        self.series.compared(differences.is_empty());
        self.compared.fetch_add(1, Ordering::Relaxed);
        let Some(first) = differences.first().map(|difference| difference.kind) else { return };
        self.disagreed.fetch_add(1, Ordering::Release);
        for (number, kind) in Kind::ALL.into_iter().enumerate() {
            if differences.iter().any(|difference| difference.kind == kind) {
                self.differences[number].fetch_add(1, Ordering::Relaxed);
                self.series.differed(kind);
            }
        }
        let example = Example {
            time: Timestamp::now(),
            request_id: about.request_id.to_string(),
            route: about.route.to_string(),
            method: about.method,
            path: about.path,
            differences,
            failure: failure.as_deref().map(cut),
            lines: lines.into_iter().map(|(level, line)| format!("{}: {line}", word(level))).collect(),
        };
        let mut examples = self.examples.lock();
        let of_kind = &mut examples[first as usize];
        of_kind.truncate(EXAMPLES_MAX - 1);
        of_kind.push_front(example);
    }

    /// Returns all of it, as people and programs see it. `running` is how it runs now, where it does.
    pub fn view(&self, running: Option<&Options>) -> ShadowView {
        let Counts { compared, disagreed } = self.counts();
        let agreed = compared - disagreed;
        let mut examples: Vec<Example> = self.examples.lock().iter().flatten().cloned().collect();
        examples.sort_by_key(|example| std::cmp::Reverse(example.time));
        let counted =
            |counts: &[AtomicU64]| -> Vec<u64> { counts.iter().map(|count| count.load(Ordering::Relaxed)).collect() };
        ShadowView {
            rollout: self.rollout.to_string(),
            stable: self.versions[0].to_string(),
            canary: self.versions[1].to_string(),
            running: running.is_some(),
            sample: running.map(|options| options.sample.to_string()),
            cpu: running.map(|options| options.cpu.to_string()),
            compared,
            agreed,
            agreement: (compared > 0).then(|| agreed as f64 / compared as f64),
            differences: Kind::ALL
                .into_iter()
                .zip(counted(&self.differences))
                .filter(|(_, requests)| *requests > 0)
                .map(|(kind, requests)| DifferenceCount { kind, requests })
                .collect(),
            skipped: Skip::ALL
                .into_iter()
                .zip(counted(&self.skipped))
                .filter(|(_, requests)| *requests > 0)
                .map(|(skip, requests)| SkipCount { reason: skip.as_str(), requests })
                .collect(),
            cpu_seconds: self.used_ns.load(Ordering::Relaxed) as f64 / 1e9,
            not_run: self.not_run.iter().map(|phase| phase.as_str()).collect(),
            examples,
        }
    }
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}

const fn word(level: Level) -> &'static str {
    match level {
        Level::Debug => "debug",
        Level::Info => "info",
        Level::Warn => "warn",
        Level::Error => "error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn replayed(kind: Option<Kind>, name: &str) -> Replayed {
        let differences = kind.map(|kind| Difference {
            kind,
            phase: "on-request",
            name: Some(name.to_owned()),
            stable: None,
            canary: None,
        });
        Replayed { differences: differences.into_iter().collect(), failure: None, lines: Vec::new() }
    }

    fn about() -> About {
        About { request_id: "id".into(), route: "route".into(), method: "GET".to_owned(), path: "/".to_owned() }
    }

    #[test]
    fn frequent_differences_do_not_push_out_rare_ones() {
        let metrics = Metrics::new().unwrap();
        let rollout: Arc<str> = "auth-1.5".into();
        let versions = ["a".into(), "b".into()];
        let tally = Tally::new(Arc::clone(&rollout), versions, Vec::new(), metrics.shadow(&rollout));
        tally.compared(about(), replayed(Some(Kind::Status), "rare"));
        for number in 0..100 {
            tally.compared(about(), replayed(Some(Kind::Trap), &format!("{number}")));
        }
        for _ in 0..99 {
            tally.compared(about(), replayed(None, ""));
        }
        tally.skip(Skip::QueueFull);
        assert_eq!(tally.counts(), Counts { compared: 200, disagreed: 101 });
        let view = tally.view(None);
        assert_eq!(view.agreement, Some(0.495));
        let shown: Vec<_> = view.examples.iter().filter_map(|example| example.differences[0].name.clone()).collect();
        assert_eq!(shown.len(), 1 + EXAMPLES_MAX);
        assert!(["rare", "99", "96"].iter().all(|name| shown.iter().any(|shown| shown == name)), "{shown:?}");
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!(json["differences"][0], serde_json::json!({ "kind": "status", "requests": 1 }));
        assert_eq!(json["skipped"], serde_json::json!([{ "reason": "queue-full", "requests": 1 }]));
    }
}
