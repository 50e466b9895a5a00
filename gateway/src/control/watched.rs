//! Watches rollouts that are under way: each second, what their tracks have counted goes into a history. Whoever looks gets
//! a copy. A history ends when the rollout gets other versions, or leaves the configuration; it outlives a promotion and a
//! rollback, since that is when one wants to know why.

use std::collections::BTreeMap;
use std::time::Duration;

use lockgate_config::units::Weight;
use lockgate_judge::latency;
use parking_lot::Mutex;

use crate::control::function::FunctionVersion;
use crate::control::history::{History, Latency, Slots, Span, Totals};
use crate::control::snapshot::{Pair, Rollout, Route, Snapshot, Target};
use crate::control::status::{Published, RolloutView};
use crate::control::time::Timestamp;
use crate::control::version::Version;
use crate::metrics::{CallSummary, TrackSeries, VersionSeries};
use crate::proxy::counts::Counts;
use crate::track::Track;

/// How often it looks.
pub(super) const EVERY: Duration = Duration::from_secs(1);

/// What a rollout was like.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    history: Option<History>,
    latency: Latency,
}

impl Watched {
    /// Returns what its tracks counted over time.
    pub fn slots(&self, span: Span) -> Slots {
        self.history.as_ref().map_or_else(Slots::none, |history| history.slots(span))
    }

    /// Returns how long its requests took.
    pub const fn latency(&self) -> &Latency {
        &self.latency
    }
}

/// Everything that is watched, by the rollout's name.
#[derive(Debug, Default)]
pub(super) struct Watching(Mutex<BTreeMap<String, Kept>>);

#[derive(Debug)]
struct Kept {
    stable: String,
    canary: String,
    watched: Watched,
}

impl Watching {
    /// Looks at every rollout.
    pub(super) fn look(&self, published: &Published, current: &Snapshot, now: Timestamp) {
        let rollouts = &published.loaded.facts.config.rollouts;
        let views: Vec<RolloutView> =
            (0..rollouts.len()).filter_map(|index| published.rollout(index, current, None)).collect();
        let mut kept = self.0.lock();
        kept.retain(|name, kept| {
            views.iter().any(|view| view.name == *name && view.stable == kept.stable && view.canary == kept.canary)
        });
        for view in views {
            let Some((totals, latency)) = counted(current, &view.name) else { continue };
            let weight = view.weight.parse().unwrap_or(Weight::ZERO);
            let RolloutView { name, stable, canary, .. } = view;
            let kept = kept.entry(name).or_insert_with(|| Kept { stable, canary, watched: Watched::default() });
            kept.watched.history.get_or_insert_with(|| History::new(now, totals)).observe(now, totals, weight);
            kept.watched.latency = latency;
        }
    }

    /// Returns what a rollout was like; nothing where it was not under way yet.
    pub(super) fn get(&self, rollout: &str) -> Watched {
        self.0.lock().get(rollout).map(|kept| kept.watched.clone()).unwrap_or_default()
    }
}

/// Returns what a rollout's tracks have counted; none where it is not under way.
fn counted(current: &Snapshot, rollout: &str) -> Option<([Totals; 2], Latency)> {
    let index = current.rollouts.iter().position(|known| *known.name == *rollout)?;
    let Rollout { requests, counts, .. } = &current.rollouts[index];
    Some(match counts {
        Some(counts) => guarded(requests, counts),
        None => {
            let summaries = current.routes.iter().find_map(|route| {
                let slot = route.rollouts.iter().position(|known| *known == index)?;
                summaries(route, slot)
            });
            unguarded(requests, summaries.unwrap_or_default())
        }
    })
}

/// What the guard counts is what is shown: of whole requests, whoever failed.
fn guarded(requests: &TrackSeries, counts: &Counts) -> ([Totals; 2], Latency) {
    let bound = |bucket| Duration::from_micros(latency::bound_micros(bucket)).as_secs_f64();
    let mut took = Latency { bounds: (0..latency::BUCKETS).map(bound).collect(), ..Latency::default() };
    let totals = Track::ALL.map(|track| {
        let counted = counts.read(track);
        took.counts[track as usize] = counted.latency;
        Totals { requests: requests.count(track), counted: counted.requests, failures: counted.failures }
    });
    (totals, took)
}

/// Without a guard, there is what the versions' own metrics say: of calls of a filter, or of requests to an upstream.
fn unguarded(requests: &TrackSeries, summaries: [Option<CallSummary>; 2]) -> ([Totals; 2], Latency) {
    let mut latency = Latency::default();
    let totals = Track::ALL.map(|track| {
        let requests = requests.count(track);
        let mut totals = Totals { requests, counted: requests, failures: 0 };
        if let Some(summary) = &summaries[track as usize] {
            totals.failures = summary.failures.iter().map(|(_, count)| count).sum();
            latency.counts[track as usize].clone_from(&summary.counts);
            latency.bounds.clone_from(&summary.bounds);
        }
        totals
    });
    (totals, latency)
}

/// Returns what both versions of a rollout's subject counted, by track, where a route has it in this slot.
fn summaries(route: &Route, slot: usize) -> Option<[Option<CallSummary>; 2]> {
    let of_slot = |canary: Option<u8>| canary.is_some_and(|known| usize::from(known) == slot);
    let filter = route.chain.iter().map(|link| &link.versions);
    let mut filter = filter.filter(|pair| of_slot(pair.canary.as_ref().map(|(slot, _)| *slot)));
    if let Some(Pair { stable, canary: Some((_, canary)) }) = filter.next() {
        let of = |version: &Version, track| version.series(track).map(VersionSeries::summary);
        return Some([of(stable, Track::Stable), of(canary, Track::Canary)]);
    }
    let target = match &route.target {
        Target::Function(pair) => Some(pair),
        Target::Upstream { .. } | Target::Static { .. } | Target::Redirect(_) | Target::Respond(_) => None,
    };
    let mut functions = route.middleware.iter().map(|link| &link.versions).chain(target);
    let function = functions.find(|pair| of_slot(pair.canary.as_ref().map(|(slot, _)| *slot)));
    if let Some(Pair { stable, canary: Some((_, canary)) }) = function {
        let of = |version: &FunctionVersion, track| version.series(track).map(|series| series.summary());
        return Some([of(stable, Track::Stable), of(canary, Track::Canary)]);
    }
    let Target::Upstream { upstreams, .. } = &route.target else { return None };
    let mut upstream = upstreams.iter().filter(|pair| of_slot(pair.canary.as_ref().map(|(slot, _)| *slot)));
    let Pair { stable, canary } = upstream.next()?;
    let (_, canary) = canary.as_ref()?;
    Some([Some(stable.series.summary()), Some(canary.series.summary())])
}
