//! Who serves: from the file, the rollouts' states, the quarantine and what is loaded, to what a snapshot is built of.
//! Pure, but for the versions that it passes on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lockgate_config::model::{self, FailureMode, Filter, FilterPolicy, FilterVersion, Function, ShadowLimits};
use lockgate_config::units::Weight;
use lockgate_host::{Digest, VersionId};

use crate::control::approvals;
use crate::control::build::{Chose, Chosen};
use crate::control::facts::{Facts, grants};
use crate::control::function::FunctionVersion;
use crate::control::judging::Counters;
use crate::control::quarantine::Entry;
use crate::control::rollout::State;
use crate::control::state::{Kept, Saved};
use crate::control::time::Timestamp;
use crate::control::upstream::Upstream;
use crate::control::version::Version;
use crate::shadow;

/// Last good versions by filter and version, with the policy that they were loaded under.
pub type Spares = BTreeMap<(String, VersionId), (FilterPolicy, Arc<Version>)>;

/// What the file names, loaded. All of it, also what does not serve at the moment, so that promoting, rolling back and
/// resuming wait for nothing.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What the file says.
    pub facts: Arc<Facts>,
    /// The stable version of each filter, in the configuration's order.
    pub stable: Vec<Arc<Version>>,
    /// The canary of each rollout, in the configuration's order; none for one that moves an upstream.
    pub canaries: Vec<Option<Arc<Version>>>,
    /// The stable version of each function, in the configuration's order.
    pub functions: Vec<Arc<FunctionVersion>>,
    /// The canary of each rollout that moves a function, in the configuration's order of rollouts.
    pub function_canaries: Vec<Option<Arc<FunctionVersion>>>,
    /// In the configuration's order.
    pub upstreams: Vec<Arc<Upstream>>,
    /// Those that serve in the place of quarantined ones.
    pub spares: Spares,
}

impl Loaded {
    /// Returns a version of a filter that is loaded under just this policy.
    pub fn version(&self, filter: &Filter, id: &VersionId) -> Option<&Arc<Version>> {
        let known = self.facts.filter(&filter.name)?;
        if self.facts.config.filters[known].policy == filter.policy {
            let stable = Some(&self.stable[known]);
            let canary = self.facts.rollout_of_filter(known).and_then(|(rollout, ..)| self.canaries[rollout].as_ref());
            let found = [stable, canary].into_iter().flatten().find(|version| version.id() == id);
            if found.is_some() {
                return found;
            }
        }
        self.spare(filter, id)
    }

    /// Returns a version of a function that is loaded under just this policy.
    pub fn function(&self, function: &Function, id: &VersionId) -> Option<&Arc<FunctionVersion>> {
        let known = self.facts.function(&function.name)?;
        if self.facts.config.functions[known].policy != function.policy {
            return None;
        }
        self.function_versions(known).into_iter().find(|version| version.id() == id)
    }

    /// Returns the versions of a function that are loaded.
    pub fn function_versions(&self, function: usize) -> Vec<&Arc<FunctionVersion>> {
        let rollout = self.facts.rollout_of_function(function);
        let canary = rollout.and_then(|(rollout, ..)| self.function_canaries[rollout].as_ref());
        std::iter::once(&self.functions[function]).chain(canary).collect()
    }

    /// Returns a loaded last good version.
    pub fn spare(&self, filter: &Filter, id: &VersionId) -> Option<&Arc<Version>> {
        let (policy, version) = self.spares.get(&(filter.name.to_string(), *id))?;
        (*policy == filter.policy).then_some(version)
    }

    /// Returns the spares that other facts can use: those of filters that are still there, with the same policy.
    pub fn spares_for(&self, facts: &Facts) -> Spares {
        let fits = |name: &str, policy: &FilterPolicy| {
            facts.filter(name).is_some_and(|filter| facts.config.filters[filter].policy == *policy)
        };
        let spares = self.spares.iter().filter(|((name, _), (policy, _))| fits(name, policy));
        spares.map(|(key, spare)| (key.clone(), spare.clone())).collect()
    }

    /// Returns all versions of a filter that are loaded, each once.
    pub fn versions(&self, filter: usize) -> Vec<&Arc<Version>> {
        let name = &self.facts.config.filters[filter].name;
        let canary = self.facts.rollout_of_filter(filter).and_then(|(rollout, ..)| self.canaries[rollout].as_ref());
        let spares = self.spares.iter().filter(|((filter, _), _)| **filter == **name).map(|(_, (_, version))| version);
        let mut versions: Vec<&Arc<Version>> = Vec::new();
        for version in std::iter::once(&self.stable[filter]).chain(canary).chain(spares) {
            if versions.iter().all(|known| known.id() != version.id()) {
                versions.push(version);
            }
        }
        versions
    }
}

/// A filter's stable version, as the file and its rollout's state ask for it.
#[derive(Clone, Copy, Debug)]
pub struct Intended<'a> {
    /// Which.
    pub id: VersionId,
    /// As the file has it.
    pub version: &'a FilterVersion,
    /// The rollout that was promoted, where it is its canary.
    pub promoted: Option<usize>,
}

/// Returns a filter's stable version, the quarantine left aside.
pub fn intended<'a>(facts: &'a Facts, saved: &Saved, filter: usize) -> Intended<'a> {
    if let Some((rollout, version, id)) = facts.rollout_of_filter(filter)
        && state(facts, saved, rollout).is_some_and(State::is_promoted)
    {
        return Intended { id, version, promoted: Some(rollout) };
    }
    Intended { id: facts.stable[filter], version: &facts.config.filters[filter].version, promoted: None }
}

/// Returns a function's stable version, as the file and its rollout's state ask for it.
pub fn intended_function<'a>(
    facts: &'a Facts,
    saved: &Saved,
    function: usize,
) -> (&'a model::FunctionVersion, VersionId) {
    match facts.rollout_of_function(function) {
        Some((rollout, version, id)) if state(facts, saved, rollout).is_some_and(State::is_promoted) => (version, id),
        Some(_) | None => (&facts.config.functions[function].version, facts.functions[function]),
    }
}

/// Returns a rollout's state.
pub fn state<'a>(facts: &Facts, saved: &'a Saved, rollout: usize) -> Option<&'a State> {
    saved.rollouts.get(&*facts.config.rollouts[rollout].name)
}

/// Returns the entry for which a filter's stable version must not serve, where it has a fall-back in the first place.
pub fn barred<'a>(facts: &Facts, saved: &'a Saved, filter: usize) -> Option<&'a Entry> {
    if !falls_back(&facts.config.filters[filter]) {
        return None;
    }
    saved.quarantine.get(&facts.config.filters[filter].name, &intended(facts, saved, filter).id)
}

/// Returns the versions that may serve in the place of a filter's stable one, the best first; none unless it is barred.
pub fn fallbacks<'a>(facts: &Facts, saved: &'a Saved, filter: usize) -> impl Iterator<Item = &'a Kept> {
    let name = facts.config.filters[filter].name.to_string();
    let history = barred(facts, saved, filter).and_then(|_| saved.filters.get(&name));
    let kept = history.map(|history| history.last_good.as_slice()).unwrap_or_default();
    kept.iter().filter(move |kept| saved.quarantine.get(&name, &kept.version).is_none())
}

/// Returns whether a filter is replaced by its last good version when it fails too often.
pub fn falls_back(filter: &Filter) -> bool {
    matches!(filter.policy.on_failure, FailureMode::FallBack { .. })
}

/// Returns what a snapshot is built of.
pub fn chosen(loaded: &Loaded, saved: &Saved, counters: &Counters) -> Chosen {
    let facts = &loaded.facts;
    let under_way = |rollout: usize| state(facts, saved, rollout).is_some_and(State::is_under_way);
    let filter = |index: usize| Chose {
        stable: Arc::clone(stable(loaded, saved, index)),
        canary: facts
            .rollout_of_filter(index)
            .filter(|(rollout, ..)| under_way(*rollout))
            .and_then(|(rollout, ..)| Some((rollout, Arc::clone(loaded.canaries[rollout].as_ref()?)))),
    };
    let function = |index: usize| {
        let rollout = facts.rollout_of_function(index).map(|(rollout, ..)| rollout);
        let canary = rollout.and_then(|rollout| Some((rollout, loaded.function_canaries[rollout].as_ref()?)));
        let stable = Arc::clone(&loaded.functions[index]);
        match canary {
            Some((rollout, canary)) if state(facts, saved, rollout).is_some_and(State::is_promoted) => {
                Chose { stable: Arc::clone(canary), canary: None }
            }
            Some((rollout, canary)) if under_way(rollout) => {
                Chose { stable, canary: Some((rollout, Arc::clone(canary))) }
            }
            Some(_) | None => Chose { stable, canary: None },
        }
    };
    let upstream = |index: usize| {
        let of = |index: usize| Arc::clone(&loaded.upstreams[index]);
        match facts.rollout_of_upstream(index) {
            Some((rollout, canary)) if state(facts, saved, rollout).is_some_and(State::is_promoted) => {
                Chose { stable: of(canary), canary: None }
            }
            Some((rollout, canary)) if under_way(rollout) => {
                Chose { stable: of(index), canary: Some((rollout, of(canary))) }
            }
            Some(_) | None => Chose { stable: of(index), canary: None },
        }
    };
    let weight = |rollout: usize| state(facts, saved, rollout).map_or(Weight::ZERO, State::weight_in_effect);
    Chosen {
        filters: (0..facts.config.filters.len()).map(filter).collect(),
        functions: (0..facts.config.functions.len()).map(function).collect(),
        upstreams: (0..facts.config.upstreams.len()).map(upstream).collect(),
        weights: (0..facts.config.rollouts.len()).map(weight).collect(),
        counts: (0..facts.config.rollouts.len()).map(|rollout| counters.of(facts, saved, rollout)).collect(),
        shadows: (0..facts.config.rollouts.len()).map(|rollout| shadow(facts, saved, rollout)).collect(),
    }
}

/// Returns how a rollout's canary runs as a shadow; none where it serves, or nobody needs it.
pub fn shadow(facts: &Facts, saved: &Saved, rollout: usize) -> Option<shadow::Options> {
    let sample = state(facts, saved, rollout)?.shadow_in_effect()?;
    let ShadowLimits { cpu, body, .. } = facts.config.rollouts[rollout].shadow;
    Some(shadow::Options { sample, cpu, body })
}

/// Returns the version that serves a filter's stable track.
pub fn stable<'a>(loaded: &'a Loaded, saved: &Saved, filter: usize) -> &'a Arc<Version> {
    let facts = &loaded.facts;
    let spare =
        fallbacks(facts, saved, filter).find_map(|kept| loaded.spare(&facts.config.filters[filter], &kept.version));
    let promoted = || loaded.canaries[intended(facts, saved, filter).promoted?].as_ref();
    spare.or_else(promoted).unwrap_or(&loaded.stable[filter])
}

/// Takes note of what serves now, for a later comparison, and of each filter's version for a later fall-back. `superseding` says that a version which no
/// longer serves was replaced, and not given up for being bad.
pub fn remember(facts: &Facts, saved: &mut Saved, superseding: bool, now: Timestamp) {
    let mut histories = std::mem::take(&mut saved.filters);
    for (index, filter) in facts.config.filters.iter().enumerate().filter(|(_, filter)| falls_back(filter)) {
        let Intended { id, version, .. } = intended(facts, saved, index);
        let mut history = histories.remove(&*filter.name).unwrap_or_default();
        let quarantined = |kept: &Kept| saved.quarantine.get(&filter.name, &kept.version).is_some();
        let good = superseding && !history.serving.as_ref().is_some_and(quarantined);
        let kept = Kept {
            version: id,
            component: version.component.clone(),
            settings: version.settings.clone(),
            grants: grants(&version.grants),
            since: now,
        };
        history.serve(kept, good);
        saved.filters.insert(filter.name.to_string(), history);
    }
    approvals::remember(facts, saved);
}

/// Returns the components of which the store has to have a copy: of all versions that serve or may come to serve a
/// filter that falls back.
pub fn components(facts: &Facts, saved: &Saved) -> BTreeSet<Digest> {
    let remembered = saved.filters.values().flat_map(|history| history.serving.iter().chain(&history.last_good));
    named(facts).map(|(_, id)| id.component).chain(remembered.map(|kept| kept.version.component)).collect()
}

/// Returns the versions in the file of filters that fall back.
pub fn named(facts: &Facts) -> impl Iterator<Item = (&FilterVersion, VersionId)> {
    let falling_back = facts.config.filters.iter().enumerate().filter(|(_, filter)| falls_back(filter));
    falling_back.flat_map(|(index, filter)| {
        let canary = facts.rollout_of_filter(index).map(|(_, version, id)| (version, id));
        std::iter::once((&filter.version, facts.stable[index])).chain(canary)
    })
}
