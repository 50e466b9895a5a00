//! The jobs that run beside the control loop: preparing a reload, and loading last good versions. A job changes nothing
//! that serves; what it hands back does, if the loop still wants it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lockgate_config::model::{Filter, Rollout, RolloutSubject};
use lockgate_config::problem::Report;
use lockgate_host::{Host, Progress, VersionId};
use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedSender;

use super::blocking;
use crate::control::approvals::{Waiting, waiting_stable};
use crate::control::choose::{Loaded, fallbacks, named};
use crate::control::facts::{Facts, spec};
use crate::control::function::FunctionVersion;
use crate::control::judging::Counters;
use crate::control::policies::Policies;
use crate::control::reconcile::reconcile;
use crate::control::reload::Draft;
use crate::control::state::{Kept, Saved, Store};
use crate::control::time::Timestamp;
use crate::control::upstream::resolve::Resolver;
use crate::control::upstream::{Upstream, digest_of};
use crate::control::version::{Failing, Version};
use crate::control::watch::Fingerprint;
use crate::control::{Actor, Bind, Refusal};
use crate::metrics::Metrics;
use crate::seeing::spans::Collectors;
use crate::shadow::Shadows;

/// How long a reload waits for an upstream's names and the first checks of its endpoints. What takes longer is known later.
const RESOLVE_MAX: Duration = Duration::from_secs(5);

/// What the control loop and its jobs work with.
pub(super) struct Tools {
    pub(super) config: PathBuf,
    pub(super) host: Arc<Host>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) shadows: Arc<Shadows>,
    pub(super) policies: Policies,
    pub(super) collectors: Collectors,
    pub(super) counters: Arc<Counters>,
    pub(super) resolver: Resolver,
    pub(super) store: Arc<Mutex<Store>>,
    pub(super) bind: Bind,
    pub(super) progress: Arc<dyn Progress + Send + Sync>,
    pub(super) failing: UnboundedSender<Failing>,
}

impl fmt::Debug for Tools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tools").field("config", &self.config).finish_non_exhaustive()
    }
}

/// What a reload has found.
#[derive(Debug)]
pub(in crate::control) enum Prepared {
    /// Nothing new, but perhaps for the file's layout.
    Unchanged(Arc<Facts>),
    /// All that is new is loaded.
    New(Box<Ready>),
}

/// Everything that a file names, loaded.
#[derive(Debug)]
pub(in crate::control) struct Ready {
    pub(super) loaded: Loaded,
    /// Versions that were not loaded before.
    pub(super) fresh: usize,
}

/// Reads the file, and loads what is new in it. Also returns what the files looked like before they were read.
pub(super) async fn prepare(
    current: Arc<Loaded>,
    saved: Saved,
    tools: Arc<Tools>,
) -> (Option<Fingerprint>, Result<Prepared, Refusal>) {
    let (serving, reading) = (Arc::clone(&current), Arc::clone(&tools));
    let read = blocking(move || {
        let mut seen = Fingerprint::default();
        let draft = Draft::read(&reading.config, &mut seen, Some(&serving.facts));
        let draft = draft.map_err(|incomplete| incomplete.load_rest(&reading.host, &*reading.progress, Some(&serving)));
        (seen, draft)
    })
    .await;
    match read {
        Ok((seen, draft)) => {
            let outcome = match draft {
                Ok(draft) => load_new(current, &saved, draft, tools).await,
                Err(report) => Err(Refusal::Config(report)),
            };
            (Some(seen), outcome)
        }
        Err(failed) => (None, Err(Refusal::Stopped(failed))),
    }
}

async fn load_new(current: Arc<Loaded>, saved: &Saved, draft: Draft, tools: Arc<Tools>) -> Result<Prepared, Refusal> {
    let facts = Arc::clone(&draft.facts);
    if facts.mean_the_same_as(&current.facts) {
        blocking(move || keep_components(&draft, &tools)).await.map_err(Refusal::Stopped)??;
        return Ok(Prepared::Unchanged(facts));
    }
    let problems = facts.needing_restart(&current.facts);
    if !problems.is_empty() {
        return Err(Refusal::Restart(Report::new(facts.source.clone(), problems)));
    }
    let untimely = facts.untimely(Timestamp::now(), Some(&current.facts));
    if !untimely.is_empty() {
        return Err(Refusal::Config(Report::new(facts.source.clone(), untimely)));
    }
    let (prospective, _) = reconcile(&facts, saved, &Actor::gateway(), Timestamp::now());
    unapproved(&facts, &prospective, saved)?;
    let mut ready = load(draft, Some(Arc::clone(&current)), true, Arc::clone(&tools)).await?;
    // The file may bring back what is in quarantine; who serves instead has to be there at the swap.
    ready.loaded = recover_all(ready.loaded, &prospective, Arc::clone(&tools)).await;
    if facts.config.listeners != current.facts.config.listeners {
        // Last, so that nothing is bound for a reload that is refused anyway.
        (tools.bind)(&facts.config.listeners).map_err(Refusal::Listener)?;
    }
    Ok(Prepared::New(Box::new(ready)))
}

/// Checks that nothing is to serve that may do more than what serves, and that nobody has let in.
///
/// # Errors
///
/// Something is.
pub(super) fn unapproved(facts: &Facts, next: &Saved, before: &Saved) -> Result<(), Refusal> {
    let waiting = waiting_stable(facts, next, before);
    if waiting.is_empty() {
        return Ok(());
    }
    let problems = waiting.iter().map(Waiting::problem).collect();
    Err(Refusal::Unapproved { report: Report::new(facts.source.clone(), problems), waiting })
}

/// Loads everything that a file names, and takes over what `current` has of it already. `keeping` says whether this process
/// may write copies of components.
pub(super) async fn load(
    draft: Draft,
    current: Option<Arc<Loaded>>,
    keeping: bool,
    tools: Arc<Tools>,
) -> Result<Ready, Refusal> {
    let facts = Arc::clone(&draft.facts);
    let upstreams = upstreams(&facts, current.as_deref(), &tools).await;
    blocking(move || {
        if keeping {
            keep_components(&draft, &tools)?;
        }
        let mut versions: BTreeMap<(Arc<str>, VersionId), Arc<Version>> = BTreeMap::new();
        let mut missing = Vec::new();
        for wanted in draft.versions() {
            let key = (Arc::clone(&wanted.filter.name), wanted.id);
            match current.as_ref().and_then(|current| current.version(wanted.filter, &wanted.id)) {
                Some(version) => drop(versions.insert(key, Arc::clone(version))),
                None => missing.push(wanted),
            }
        }
        // A filter's stable version and its canary may be the same, halfway to the next state of a file.
        missing.sort_by(|a, b| (&a.filter.name, a.id).cmp(&(&b.filter.name, b.id)));
        missing.dedup_by(|a, b| (&a.filter.name, a.id) == (&b.filter.name, b.id));
        let mut functions: BTreeMap<(Arc<str>, VersionId), Arc<FunctionVersion>> = BTreeMap::new();
        let mut missing_functions = Vec::new();
        for wanted in draft.functions() {
            let key = (Arc::clone(&wanted.function.name), wanted.id);
            match current.as_ref().and_then(|current| current.function(wanted.function, &wanted.id)) {
                Some(version) => drop(functions.insert(key, Arc::clone(version))),
                None => missing_functions.push(wanted),
            }
        }
        missing_functions.sort_by(|a, b| (&a.function.name, a.id).cmp(&(&b.function.name, b.id)));
        missing_functions.dedup_by(|a, b| (&a.function.name, a.id) == (&b.function.name, b.id));
        let brought = draft.load(&missing, &missing_functions, &tools.host, &*tools.progress).map_err(Refusal::Load)?;
        for (wanted, function) in missing_functions.iter().zip(brought.functions) {
            let version = FunctionVersion::new(function, &tools.metrics);
            functions.insert((Arc::clone(&wanted.function.name), wanted.id), version);
        }
        for (wanted, filter) in missing.iter().zip(brought.filters) {
            let version = Version::new(filter, wanted.filter.policy.on_failure, &tools.metrics, &tools.failing);
            versions.insert((Arc::clone(&wanted.filter.name), wanted.id), version);
        }
        let fresh = missing.len() + missing_functions.len();
        // In the order of `Draft::versions`: first the filters, then the canaries.
        let mut found = draft
            .versions()
            .into_iter()
            .filter_map(|wanted| versions.get(&(Arc::clone(&wanted.filter.name), wanted.id)).cloned());
        let stable = found.by_ref().take(facts.config.filters.len()).collect();
        let rollouts = facts.config.rollouts.iter().zip(&facts.canaries);
        let canary_of = |(rollout, id): (&Rollout, &Option<VersionId>)| match rollout.subject {
            RolloutSubject::Filter { .. } => id.as_ref().and_then(|_| found.next()),
            RolloutSubject::Function { .. } | RolloutSubject::Upstream { .. } => None,
        };
        let canaries = rollouts.map(canary_of).collect();
        let function = |name: &Arc<str>, id: &VersionId| functions.get(&(Arc::clone(name), *id)).cloned();
        let stable_functions = facts.config.functions.iter().zip(&facts.functions);
        let stable_functions = stable_functions.filter_map(|(of, id)| function(&of.name, id)).collect();
        let rollouts = facts.config.rollouts.iter().zip(&facts.canaries);
        let function_canaries = rollouts
            .map(|(rollout, id)| match rollout.subject {
                RolloutSubject::Function { function: moved, .. } => {
                    function(&facts.config.functions[moved].name, id.as_ref()?)
                }
                RolloutSubject::Filter { .. } | RolloutSubject::Upstream { .. } => None,
            })
            .collect();
        let spares = current.map(|current| current.spares_for(&facts)).unwrap_or_default();
        let loaded = Loaded {
            facts: Arc::clone(&draft.facts),
            stable,
            canaries,
            functions: stable_functions,
            function_canaries,
            upstreams,
            spares,
        };
        Ok(Ready { loaded, fresh })
    })
    .await
    .map_err(Refusal::Stopped)?
}

/// Makes the upstreams of a file; those whose settings did not change are taken over, with the addresses they know.
async fn upstreams(facts: &Facts, current: Option<&Loaded>, tools: &Tools) -> Vec<Arc<Upstream>> {
    let mut upstreams = Vec::new();
    let mut fresh = tokio::task::JoinSet::new();
    for (config, tls) in facts.config.upstreams.iter().zip(&facts.upstream_tls) {
        let digest = digest_of(config);
        let same = |known: &&Arc<Upstream>| known.digest() == digest && known.tls() == tls.as_ref();
        let known = current.and_then(|current| current.upstreams.iter().find(same));
        upstreams.push(known.cloned().unwrap_or_else(|| {
            let upstream = Upstream::new(config, tls.clone(), &tools.metrics);
            let (new, resolver) = (Arc::clone(&upstream), tools.resolver.clone());
            fresh.spawn(async move { new.tend(&resolver).await });
            upstream
        }));
    }
    // What takes longer goes on by itself.
    if tokio::time::timeout(RESOLVE_MAX, async { while fresh.join_next().await.is_some() {} }).await.is_err() {
        fresh.detach_all();
    }
    upstreams
}

/// Keeps copies of the components that may have to serve when their files have long been replaced.
fn keep_components(draft: &Draft, tools: &Tools) -> Result<(), Refusal> {
    let store = tools.store.lock();
    for (version, id) in named(&draft.facts) {
        if let Some(bytes) = draft.component(&version.component) {
            store.keep_component(&id.component, bytes).map_err(|error| Refusal::State(error.to_string()))?;
        }
    }
    Ok(())
}

/// Returns the best last good version of each filter that needs one, where it is not loaded.
pub(super) fn missing<'a>(
    loaded: &'a Loaded,
    saved: &'a Saved,
    unusable: &BTreeSet<(String, VersionId)>,
) -> Vec<(&'a Filter, &'a Kept)> {
    let filters = loaded.facts.config.filters.iter().enumerate();
    let best = filters.filter_map(|(index, filter)| {
        let mut usable = fallbacks(&loaded.facts, saved, index)
            .filter(|kept| !unusable.contains(&(filter.name.to_string(), kept.version)));
        usable.next().map(|kept| (filter, kept))
    });
    best.filter(|(filter, kept)| loaded.spare(filter, &kept.version).is_none()).collect()
}

/// Loads a last good version from the store's copy of its component.
pub(super) fn load_kept(filter: &Filter, kept: &Kept, tools: &Tools) -> Result<Arc<lockgate_host::Filter>, String> {
    let component = tools.store.lock().component(&kept.version.component).map_err(|error| error.to_string())?;
    let spec = spec(filter, kept.settings.reveal(), kept.grants.clone(), component);
    let loaded = tools.host.load(&spec, &*tools.progress);
    loaded.map_err(|error| format!("component `{}` {error}", kept.component.display()))
}

/// Loads the last good versions that have to serve from the start. One that cannot be loaded prevents nothing: the next best
/// is tried, and in the end the filter's own version serves.
pub(super) async fn recover_all(mut loaded: Loaded, saved: &Saved, tools: Arc<Tools>) -> Loaded {
    let mut unusable = BTreeSet::new();
    loop {
        let next = missing(&loaded, saved, &unusable).into_iter().next();
        let Some((filter, kept)) = next.map(|(filter, kept)| (filter.clone(), kept.clone())) else { return loaded };
        let (key, policy) = ((filter.name.to_string(), kept.version), filter.policy.clone());
        let working = Arc::clone(&tools);
        let outcome = blocking(move || load_kept(&filter, &kept, &working)).await.and_then(std::convert::identity);
        match outcome {
            Ok(filter) => {
                let version = Version::new(filter, policy.on_failure, &tools.metrics, &tools.failing);
                loaded.spares.insert(key, (policy, version));
            }
            Err(error) => {
                tracing::error!(filter = key.0, %error, "the last good version cannot be loaded");
                unusable.insert(key);
            }
        }
    }
}
