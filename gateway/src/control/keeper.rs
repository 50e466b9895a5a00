//! The control loop. The *keeper* owns everything that changes, and handles one event after the other. What takes long, a
//! reload or the loading of a last good version, runs as a job beside it and comes back as an event, so that a person can
//! set a weight or roll back meanwhile; a job's outcome is applied to the state as it is by then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockgate_config::Warnings;
use lockgate_config::model::{FilterPolicy, Listener};
use lockgate_config::units::Weight;
use lockgate_host::{Host, VersionId};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::control::approvals::Waiting;
use crate::control::audit::{Audit, AuditEntry};
use crate::control::build::build;
use crate::control::choose::{self, Loaded, chosen, components, fallbacks};
use crate::control::drain::{self, Drains};
use crate::control::events::Events;
use crate::control::facts::Facts;
use crate::control::judging::{Cases, Counters, Looked};
use crate::control::policies::Policies;
use crate::control::reconcile::{entry, reconcile};
use crate::control::reload::{Draft, host};
use crate::control::rollout::State;
use crate::control::snapshot::SnapshotCell;
use crate::control::state::{Saved, Store};
use crate::control::status::{ApprovalView, LastReload, Published};
use crate::control::time::Timestamp;
use crate::control::upstream::resolve::Resolver;
use crate::control::version::Failing;
use crate::control::watch::Fingerprint;
use crate::control::{Actor, Cause, Options, Refusal, Reloaded, RolloutView, StartError};
use crate::metrics::{Metrics, ReloadOutcome};
use crate::seeing::spans::Collectors;
use crate::shadow::Shadows;

mod approve;
mod commit;
mod decide;
mod job;
mod judge;
mod reload;
mod succession;

use commit::{blocking, commit, complete, moves_of};
use job::{Prepared, Tools};
use reload::{Asked, answer, generation, last_reload};

/// How often upstreams' names are resolved again, and metrics that nothing uses are dropped.
const TICK: Duration = Duration::from_secs(30);

/// What happens to the control plane.
#[derive(Debug)]
pub(super) enum Event {
    /// The configuration is to be read again.
    Reload { cause: Cause, by: Actor, reply: Option<oneshot::Sender<Result<Reloaded, Refusal>>> },
    /// A reload's job has ended. No fingerprint means that it did not come to reading anything.
    Prepared { seen: Option<Fingerprint>, outcome: Result<Prepared, Refusal> },
    /// A person decides about a rollout.
    Decide { rollout: String, decision: Decision, by: Actor, reply: oneshot::Sender<Result<RolloutView, Refusal>> },
    /// A person lets the versions in that wait under a name, or the one with this label.
    Approve {
        name: String,
        version: Option<String>,
        by: Actor,
        reply: oneshot::Sender<Result<Vec<ApprovalView>, Refusal>>,
    },
    /// A person takes a version out of quarantine.
    Release { label: String, by: Actor, reply: oneshot::Sender<Result<(), Refusal>> },
    /// A last good version was loaded, or could not be.
    Recovered {
        filter: String,
        id: VersionId,
        policy: Box<FilterPolicy>,
        outcome: Result<Arc<lockgate_host::Filter>, String>,
    },
    /// This process is to decide.
    Begin { reply: oneshot::Sender<Result<(), StartError>> },
    /// Another process is to decide.
    Stop { reply: oneshot::Sender<Result<(), Refusal>> },
}

/// What a person decides about a rollout.
#[derive(Debug)]
pub(super) enum Decision {
    SetWeight(Weight),
    Promote,
    RollBack(Option<String>),
    Abandon(Option<String>),
    Pause(Option<String>),
    Resume,
}

/// Owns everything that changes.
#[derive(Debug)]
pub(super) struct Keeper {
    tools: Arc<Tools>,
    audit: Audit,
    notices: Events,
    /// What is known about the rollouts under way.
    cases: Cases,
    /// What was seen when they were looked at last.
    looked: Arc<RwLock<BTreeMap<String, Looked>>>,
    /// When the cases were written down.
    kept: Instant,
    events: mpsc::WeakSender<Event>,
    loaded: Arc<Loaded>,
    saved: Saved,
    generation: u64,
    cell: Arc<SnapshotCell>,
    drains: Drains,
    deciding: bool,
    trouble: Option<String>,
    last_reload: LastReload,
    /// The stable versions for which the last reload was refused.
    unapproved: Vec<Waiting>,
    /// Reloads that the running job answers; none runs where it is empty.
    answering: Vec<Asked>,
    /// Reloads that were asked for meanwhile: one job after this one answers them all.
    waiting: Vec<Asked>,
    /// Last good versions that are being loaded.
    recovering: BTreeSet<(String, VersionId)>,
    /// Last good versions that could not be loaded. Tried again after the next reload.
    unusable: BTreeSet<(String, VersionId)>,
    published: Arc<RwLock<Arc<Published>>>,
    listeners: watch::Sender<Arc<[Listener]>>,
    seen: watch::Sender<Arc<Fingerprint>>,
}

impl Keeper {
    /// Loads everything, restores the state and builds the first snapshot.
    pub(super) async fn start(
        options: Options,
        events: mpsc::WeakSender<Event>,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Failing>), StartError> {
        let metrics = Metrics::new().map_err(|error| StartError::System(format!("the metrics: {error}")))?;
        let (failing, failures) = mpsc::unbounded_channel();
        let path = options.config.clone();
        let deciding = options.deciding;
        let progress = Arc::clone(&options.progress);
        let (seen, draft, host, store, restored) = blocking(move || {
            let mut seen = Fingerprint::default();
            let draft = Draft::read(&path, &mut seen, None)
                .map_err(|incomplete| StartError::Config(incomplete.load_rest_alone(&*progress)))?;
            let config = &draft.facts.config;
            let mut store = Store::open(&config.server.state_dir).map_err(StartError::State)?;
            if deciding {
                store.lock().map_err(StartError::State)?;
            }
            let restored = store.restore().map_err(StartError::State)?;
            if deciding {
                complete(&config.server.state_dir, &restored).map_err(StartError::System)?;
            }
            let host = host(config).map_err(StartError::Host)?;
            Ok((seen, draft, host, store, restored))
        })
        .await
        .map_err(StartError::System)??;
        if let Some(trouble) = &restored.trouble {
            tracing::error!(%trouble, "the state directory is damaged");
            metrics.state_corruptions.inc_by(restored.corrupted);
        }
        let audit = Audit::new(&draft.facts.config.server.state_dir);
        let tools = Arc::new(Tools {
            resolver: Resolver::new(),
            config: options.config,
            host,
            metrics: Arc::clone(&metrics),
            shadows: Arc::default(),
            policies: Policies::default(),
            collectors: Collectors::default(),
            counters: Arc::default(),
            store: Arc::new(Mutex::new(store)),
            bind: options.bind,
            progress: options.progress,
            failing,
        });
        let notices = Events::default();
        let drains = Drains::start(Arc::clone(&metrics), notices.clone())
            .map_err(|error| StartError::System(format!("cannot start the reaper: {error}")))?;

        let facts = Arc::clone(&draft.facts);
        for untimely in facts.untimely(Timestamp::now(), None) {
            // A restart is no moment to fail: the other hosts would go down with this one.
            tracing::error!(listener = untimely.place.path.as_ref(), "{}", untimely.message);
        }
        let refused = |refusal| match refusal {
            Refusal::Config(report) | Refusal::Load(report) | Refusal::Restart(report) => StartError::Config(report),
            Refusal::Unapproved { report, .. } => StartError::Config(report),
            other => StartError::System(other.to_string()),
        };
        let (saved, mut entries) = reconcile(&facts, &restored.saved, &Actor::gateway(), Timestamp::now());
        job::unapproved(&facts, &saved, &restored.saved).map_err(refused)?;
        let ready = job::load(draft, None, deciding, Arc::clone(&tools)).await.map_err(refused)?;
        entries.insert(0, entry(&Actor::gateway(), "start", "gateway", "", &generation(1)));
        let loaded = job::recover_all(ready.loaded, &saved, Arc::clone(&tools)).await;
        let moves = moves_of(&entries);
        if deciding {
            commit(&tools, &audit, &notices, &restored.saved, &saved, entries).await.map_err(StartError::System)?;
        }

        let chosen_first = chosen(&loaded, &saved, &tools.counters);
        let first = build(1, &facts, &chosen_first, &metrics, &tools.shadows, &tools.policies, &tools.collectors);
        let first = Arc::new(first);
        metrics.generation.set(1);
        let last_reload = last_reload(Cause::Start, &Actor::gateway(), ReloadOutcome::Swapped, None);
        let loaded = Arc::new(loaded);
        let published = Arc::new(RwLock::new(Arc::new(Published {
            loaded: Arc::clone(&loaded),
            saved: saved.clone(),
            generation: 1,
            deciding,
            trouble: restored.trouble.clone(),
            last_reload: last_reload.clone(),
            unapproved: Vec::new(),
            draining: drains.shown(),
        })));
        let keeper = Self {
            audit,
            notices,
            cases: if deciding { tools.store.lock().evidence() } else { Cases::default() },
            looked: Arc::default(),
            kept: Instant::now(),
            events,
            saved,
            generation: 1,
            cell: Arc::new(SnapshotCell::new(first)),
            drains,
            deciding,
            trouble: restored.trouble,
            last_reload,
            unapproved: Vec::new(),
            answering: Vec::new(),
            waiting: Vec::new(),
            recovering: BTreeSet::new(),
            unusable: BTreeSet::new(),
            published,
            listeners: watch::Sender::new(facts.config.listeners.as_slice().into()),
            seen: watch::Sender::default(),
            loaded,
            tools,
        };
        for warning in Warnings::of(&facts.config, &facts.source).lines() {
            tracing::warn!("{warning}");
        }
        keeper.show_metrics(&facts, &Saved::default());
        if deciding {
            keeper.count(&moves);
        }
        keeper.notices.flush();
        keeper.watch_files(seen);
        keeper.follow_files();
        Ok((keeper, failures))
    }

    pub(super) fn cell(&self) -> &Arc<SnapshotCell> {
        &self.cell
    }

    pub(super) fn host(&self) -> &Arc<Host> {
        &self.tools.host
    }

    pub(super) fn metrics(&self) -> &Arc<Metrics> {
        &self.tools.metrics
    }

    pub(super) fn shadows(&self) -> &Arc<Shadows> {
        &self.tools.shadows
    }

    pub(super) fn audit(&self) -> &Audit {
        &self.audit
    }

    pub(super) fn counters(&self) -> &Arc<Counters> {
        &self.tools.counters
    }

    pub(super) fn looked(&self) -> Arc<RwLock<BTreeMap<String, Looked>>> {
        Arc::clone(&self.looked)
    }

    pub(super) fn notices(&self) -> &Events {
        &self.notices
    }

    pub(super) fn published(&self) -> Arc<RwLock<Arc<Published>>> {
        Arc::clone(&self.published)
    }

    pub(super) fn listeners(&self) -> watch::Receiver<Arc<[Listener]>> {
        self.listeners.subscribe()
    }

    /// Handles events until the last handle is dropped.
    pub(super) async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut failing: mpsc::UnboundedReceiver<Failing>,
    ) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = tokio::time::interval(judge::LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut drain = tokio::time::interval(drain::POLL);
        drain.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.handle(event).await,
                    None => return,
                },
                Some(failing) = failing.recv() => self.quarantine(failing).await,
                _ = drain.tick(), if !self.drains.is_empty() => {
                    self.drains.look(Instant::now());
                    self.notices.flush();
                }
                _ = tick.tick() => self.tick(),
                _ = look.tick() => self.look().await,
            }
        }
    }

    async fn handle(&mut self, event: Event) {
        // Whoever asked may have gone away; nothing depends on the answer's arrival.
        match event {
            Event::Reload { cause, by, reply } => self.reload(Asked { cause, by, reply }),
            Event::Prepared { seen, outcome } => self.prepared(seen, outcome).await,
            Event::Decide { rollout, decision, by, reply } => {
                drop(reply.send(self.decide(&rollout, decision, by).await))
            }
            Event::Approve { name, version, by, reply } => {
                drop(reply.send(self.approve(&name, version.as_deref(), &by).await));
            }
            Event::Release { label, by, reply } => drop(reply.send(self.release(&label, &by).await)),
            Event::Recovered { filter, id, policy, outcome } => self.recovered(filter, id, *policy, outcome).await,
            Event::Begin { reply } => drop(reply.send(self.begin().await)),
            Event::Stop { reply } => {
                self.stop();
                drop(reply.send(Ok(())));
            }
        }
    }

    fn tick(&self) {
        self.tools.metrics.sweep(Instant::now());
        for upstream in &self.loaded.upstreams {
            upstream.show(Instant::now());
        }
    }

    /// Drops copies of components that nothing needs any more. Called when no reload's job runs, which may just have
    /// made one.
    async fn prune_components(&self) {
        let (store, needed) = (Arc::clone(&self.tools.store), components(&self.loaded.facts, &self.saved));
        // What stays this time goes the next time.
        drop(blocking(move || store.lock().prune_components(&needed)).await);
    }

    /// Tells the watcher what was read.
    fn watch_files(&self, seen: Fingerprint) {
        let watching = self.deciding && self.loaded.facts.config.server.watch;
        self.seen.send_replace(Arc::new(if watching { seen } else { Fingerprint::default() }));
    }

    fn follow_files(&self) {
        let events = self.events.clone();
        tokio::spawn(crate::control::watch::watch(self.seen.subscribe(), move || {
            let event = Event::Reload { cause: Cause::FileChanged, by: Actor::file(), reply: None };
            // Where the channel is full, the next poll finds the difference again.
            events.upgrade().is_some_and(|events| events.try_send(event).is_ok())
        }));
    }

    async fn commit(&self, next: &Saved, entries: Vec<AuditEntry>) -> Result<(), Refusal> {
        commit(&self.tools, &self.audit, &self.notices, &self.saved, next, entries).await.map_err(Refusal::State)
    }

    /// Builds a snapshot of what is in force, and puts it in the place of the current one.
    fn swap(&mut self) {
        let (facts, saved) = (&self.loaded.facts, &self.saved);
        let needed = |name: &str, id: &VersionId| {
            facts.filter(name).is_some_and(|filter| fallbacks(facts, saved, filter).any(|kept| kept.version == *id))
        };
        if self.loaded.spares.keys().any(|(name, id)| !needed(name, id)) {
            let mut loaded = Loaded::clone(&self.loaded);
            loaded.spares.retain(|(name, id), _| needed(name, id));
            self.loaded = Arc::new(loaded);
        }
        let metrics = &self.tools.metrics;
        self.generation += 1;
        let chosen = chosen(&self.loaded, &self.saved, &self.tools.counters);
        let facts = &self.loaded.facts;
        let Tools { shadows, policies, collectors, .. } = &*self.tools;
        let next = Arc::new(build(self.generation, facts, &chosen, metrics, shadows, policies, collectors));
        let began = Instant::now();
        let old = self.cell.swap(next);
        metrics.swap_duration.observe(began.elapsed().as_secs_f64());
        metrics.generation.set(i64::try_from(self.generation).unwrap_or(i64::MAX));
        self.drains.add(old, facts.config.server.drain, Instant::now());
        self.tools.counters.retain(|rollout| self.loaded.facts.rollout(rollout).is_some());
        self.cases.retain(|rollout| self.loaded.facts.rollout(rollout).is_some());
        self.tools.shadows.retain(|rollout| self.loaded.facts.rollout(rollout).is_some());
    }

    /// Brings the gauges of rollouts and quarantine up to date. `facts` and `saved` are what they showed before.
    fn show_metrics(&self, facts: &Facts, saved: &Saved) {
        let metrics = &self.tools.metrics;
        let now = &self.loaded.facts;
        for gone in facts.config.rollouts.iter().filter(|rollout| now.rollout(&rollout.name).is_none()) {
            metrics.set_rollout_weight(&gone.name, None);
            metrics.set_rollout_place(&gone.name, None);
        }
        metrics.show_certificates(now.certificates());
        for (index, rollout) in now.config.rollouts.iter().enumerate() {
            let state = choose::state(now, &self.saved, index);
            let weight = state.map_or(Weight::ZERO, State::weight_in_effect);
            let step =
                state.filter(|state| state.is_under_way()).and_then(|state| Some(state.climb.as_ref()?.step + 1));
            let held = state.map(|state| (step, state.word() == "paused", state.is_stalled()));
            metrics.set_rollout_place(&rollout.name, held);
            metrics.set_rollout_weight(&rollout.name, Some(f64::from(weight.basis_points()) / 10_000.0));
        }
        self.show_waiting();
        let in_quarantine = &self.saved.quarantine;
        for gone in saved.quarantine.entries().filter(|entry| in_quarantine.get(&entry.held).is_none()) {
            metrics.set_quarantined(gone, false);
        }
        for entry in in_quarantine.entries() {
            metrics.set_quarantined(entry, true);
        }
    }

    /// Counts moves of rollouts that the file has made.
    fn count(&self, moves: &[(String, String)]) {
        moves.iter().for_each(|(rollout, action)| self.tools.metrics.decided(rollout, action));
    }

    fn publish(&self) {
        *self.published.write() = Arc::new(Published {
            loaded: Arc::clone(&self.loaded),
            saved: self.saved.clone(),
            generation: self.generation,
            deciding: self.deciding,
            trouble: self.trouble.clone(),
            last_reload: self.last_reload.clone(),
            unapproved: self.unapproved.clone(),
            draining: self.drains.shown(),
        });
        self.notices.flush();
    }
}

/// Returns the refusal for a rollout that is not there.
pub(super) fn unknown_rollout(facts: &Facts, name: &str) -> Refusal {
    let known = facts.config.rollouts.iter().map(|rollout| rollout.name.to_string()).collect();
    Refusal::UnknownRollout { name: name.to_owned(), known }
}
