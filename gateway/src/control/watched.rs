//! Watches rollouts that are under way: each second, what their tracks have counted goes into a history. Whoever looks gets
//! a copy. A history ends when the rollout gets other versions, or leaves the configuration; it outlives a promotion and a
//! rollback, since that is when one wants to know why.

use std::collections::BTreeMap;
use std::time::Duration;

use lockgate_config::units::Weight;
use parking_lot::Mutex;

use crate::control::history::{History, Latency, Slots, Span, Totals};
use crate::control::snapshot::Snapshot;
use crate::control::status::{Published, RolloutView};
use crate::control::time::Timestamp;
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
            (0..rollouts.len()).filter_map(|index| published.rollout(index, current)).collect();
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
    let requests = &current.rollouts[index].requests;
    let versions = current.routes.iter().find_map(|route| {
        let slot = route.rollouts.iter().position(|known| *known == index)?;
        let of_slot = |canary: &(u8, _)| usize::from(canary.0) == slot;
        route.chain.iter().map(|link| &link.versions).find(|pair| pair.canary.as_ref().is_some_and(of_slot))
    });
    let mut latency = Latency::default();
    let totals = Track::ALL.map(|track| {
        let version = versions.and_then(|pair| match track {
            Track::Stable => Some(&pair.stable),
            Track::Canary => pair.canary.as_ref().map(|(_, canary)| canary),
        });
        let calls = version.and_then(|version| version.series(track)).map(|series| series.summary());
        let failures = calls.as_ref().map_or(0, |calls| calls.failures.iter().map(|(_, count)| count).sum());
        if let Some(calls) = calls {
            latency.counts[track as usize] = calls.counts;
            latency.bounds = calls.bounds;
        }
        Totals { requests: requests.count(track), failures }
    });
    Some((totals, latency))
}
