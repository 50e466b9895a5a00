//! The control plane: decides what serves. One task, the control loop, owns the configuration, the loaded versions, the
//! rollouts' states, the quarantine and the generation; everything that happens reaches it as an event, one after
//! the other. What it decides becomes a snapshot, and one pointer is swapped.
//!
//! The order of every change is: write the state, write the audit log, swap, publish, answer. Nobody is told of a
//! promotion that a crash could undo, and no request is served by a state that is not on disk.
//!
//! [`Control`] is the handle: for the admin API, signals and the watcher it asks the loop, and for whoever only looks it
//! reads what the loop published last.

pub mod approvals;
pub mod audit;
pub mod build;
pub mod choose;
pub mod drain;
pub mod events;
pub mod explain;
mod export;
pub mod facts;
pub mod function;
pub mod gains;
pub mod history;
pub mod judging;
mod keeper;
pub mod quarantine;
mod reconcile;
pub mod reload;
pub mod rollout;
pub mod snapshot;
pub mod state;
pub mod status;
pub mod time;
pub mod upstream;
pub mod version;
pub mod watch;
pub mod watched;
pub mod why;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use lockgate_config::model::{Config, Listener};
use lockgate_config::problem::Report;
use lockgate_config::units::Weight;
use lockgate_host::{Host, HostError, Progress, Stage};
use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot, watch as tokio_watch};
use tokio::time::MissedTickBehavior;

use self::approvals::Waiting;
use self::audit::Audit;
pub use self::audit::AuditEntry;
use self::events::Events;
pub use self::explain::{Asked, Explanation};
use self::judging::{Counters, Looked};
use self::keeper::{Decision, Event, Keeper};
use self::rollout::Refused;
use self::snapshot::SnapshotCell;
use self::state::StoreError;
use self::status::Published;
pub use self::status::{ApprovalView, RolloutView, Status};
use self::time::Timestamp;
pub use self::watched::Watched;
use self::watched::Watching;
pub use self::why::{CountsView, WhyView};
use crate::metrics::Metrics;
use crate::shadow::Shadows;
use crate::shadow::tally::ShadowView;
use crate::track::Track;

/// Binds listeners that are not bound yet, before a reload takes effect; those that are no longer wanted stay until
/// [`Control::listeners`] says so. The error says which one cannot be bound, and why.
pub type Bind = Arc<dyn Fn(&[Listener]) -> Result<(), String> + Send + Sync>;

/// What the control plane starts with.
#[derive(Clone)]
pub struct Options {
    /// The configuration's file.
    pub config: PathBuf,
    /// Whether this process decides from the start. One that is to replace another does not, until
    /// [`Control::begin_deciding`].
    pub deciding: bool,
    /// Binds new listeners. Called at reloads that change them, not at the start.
    pub bind: Bind,
    /// Hears of each step in loading filters. [`LogProgress`] writes log lines.
    pub progress: Arc<dyn Progress + Send + Sync>,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { config, deciding, bind: _, progress: _ } = self;
        f.debug_struct("Options").field("config", config).field("deciding", deciding).finish_non_exhaustive()
    }
}

/// Writes the steps of loading filters to the log.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogProgress;

impl Progress for LogProgress {
    fn stage(&self, filter: &str, stage: Stage) {
        match stage {
            Stage::Compiling { bytes } => tracing::info!(filter, bytes, "compiling"),
            Stage::Ready { millis } => tracing::info!(filter, millis, "loaded"),
            Stage::CacheHit | Stage::Configuring | Stage::Snapshotting | Stage::Probing => {
                tracing::debug!(filter, ?stage, "loading");
            }
        }
    }
}

/// What caused a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The start, or the moment when this process took over.
    Start,
    /// The configuration or a component changed on disk.
    FileChanged,
    /// SIGHUP.
    Signal,
    /// The admin API, and so the command line.
    Api,
}

impl Cause {
    /// Returns the cause in a word, as in status and log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::FileChanged => "file",
            Self::Signal => "signal",
            Self::Api => "api",
        }
    }
}

/// Who asks for something, as the audit log has it: `cli by uid 1000`, `api 127.0.0.1`, `signal`, `file`, `gateway`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor(String);

impl Actor {
    /// Returns somebody by a description.
    pub fn new(description: impl Into<String>) -> Self {
        Self(description.into())
    }

    /// Returns whoever sent a signal.
    pub fn signal() -> Self {
        Self::new("signal")
    }

    /// Returns whoever changed a file.
    pub fn file() -> Self {
        Self::new("file")
    }

    /// Returns the gateway itself.
    pub fn gateway() -> Self {
        Self::new("gateway")
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What came of a reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// A new snapshot serves.
    Swapped {
        /// Its generation.
        generation: u64,
        /// Versions that were loaded for it.
        loaded: usize,
        /// Versions that were taken over as they were.
        reused: usize,
        /// What is right in the file, and hardly meant so.
        warnings: Vec<String>,
    },
    /// The file and its components mean what they meant before.
    Unchanged,
}

/// Why something asked of the control plane is not done. Displays for a person: what, where, and what to do.
#[derive(Clone, Debug)]
pub enum Refusal {
    /// There is no such rollout.
    UnknownRollout {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// No such version is in quarantine.
    UnknownVersion {
        /// What was asked for.
        label: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The rollout's canary was never a shadow.
    NoShadow {
        /// The rollout.
        rollout: String,
    },
    /// Nothing is counted of the rollout.
    NotCounted {
        /// The rollout.
        rollout: String,
    },
    /// The rollout's state does not allow it.
    NotAllowed {
        /// The rollout.
        rollout: String,
        /// Why not.
        refused: Refused,
    },
    /// The configuration file is wrong.
    Config(Report),
    /// A component that it names is refused.
    Load(Report),
    /// It changes what is read at start only.
    Restart(Report),
    /// A version that it makes stable may do more than what serves, and nobody has let it in.
    Unapproved {
        /// All of them, in the file.
        report: Report,
        /// All of them.
        waiting: Vec<Waiting>,
    },
    /// Nothing waits for approval under this name.
    NothingWaits {
        /// What was asked for.
        name: String,
        /// What waits, by name and label.
        known: Vec<String>,
    },
    /// A listener cannot be bound.
    Listener(String),
    /// The state cannot be written down.
    State(String),
    /// Another process decides.
    HandedOver,
    /// The control loop has ended, or failed at this.
    Stopped(String),
}

impl Refusal {
    /// Returns the kind, one of a closed set: `unknown-rollout`, `unknown-version`, `no-shadow`, `not-counted`, `not-allowed`,
    /// `config`, `load`, `restart`, `unapproved`, `nothing-waits`, `listener`, `state`, `handed-over`, `stopped`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::UnknownRollout { .. } => "unknown-rollout",
            Self::UnknownVersion { .. } => "unknown-version",
            Self::NoShadow { .. } => "no-shadow",
            Self::NotCounted { .. } => "not-counted",
            Self::NotAllowed { .. } => "not-allowed",
            Self::Config(_) => "config",
            Self::Load(_) => "load",
            Self::Restart(_) => "restart",
            Self::Unapproved { .. } => "unapproved",
            Self::NothingWaits { .. } => "nothing-waits",
            Self::Listener(_) => "listener",
            Self::State(_) => "state",
            Self::HandedOver => "handed-over",
            Self::Stopped(_) => "stopped",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |known: &[String]| known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        match self {
            Self::UnknownRollout { name, known } if known.is_empty() => {
                write!(f, "unknown rollout `{name}`: the configuration has none")
            }
            Self::UnknownRollout { name, known } => {
                write!(f, "unknown rollout `{name}`: the configuration has {}", list(known))
            }
            Self::UnknownVersion { label, known } if known.is_empty() => {
                write!(f, "no version `{label}` is in quarantine: it is empty")
            }
            Self::UnknownVersion { label, known } => {
                write!(f, "no version `{label}` is in quarantine: it has {}", list(known))
            }
            Self::NoShadow { rollout } => {
                write!(f, "rollout `{rollout}` has no shadow: give it `mode: shadow`, or a first step `shadow`")
            }
            Self::NotCounted { rollout } => write!(
                f,
                "nothing is counted of rollout `{rollout}`: give it a `guard` or `decider: external`, and let it be under way"
            ),
            Self::NotAllowed { rollout, refused } => write!(f, "rollout `{rollout}`: {}", refused.explain(rollout)),
            Self::Config(report) | Self::Load(report) | Self::Restart(report) | Self::Unapproved { report, .. } => {
                report.fmt(f)
            }
            Self::NothingWaits { name, known } if known.is_empty() => {
                write!(f, "nothing of `{name}` waits for approval: nothing does")
            }
            Self::NothingWaits { name, known } => {
                write!(f, "nothing of `{name}` waits for approval that is so called: what waits is {}", list(known))
            }
            Self::Listener(why) | Self::State(why) | Self::Stopped(why) => f.write_str(why),
            Self::HandedOver => f.write_str("this process has handed over to another one, which decides: ask that one"),
        }
    }
}

impl std::error::Error for Refusal {}

/// Why the control plane did not start. Displays for a person.
#[derive(Debug)]
pub enum StartError {
    /// The configuration file is wrong, or a component that it names is refused.
    Config(Report),
    /// The host of the filters could not be made.
    Host(HostError),
    /// The state directory cannot be used.
    State(StoreError),
    /// The operating system refuses something, or the control loop has ended.
    System(String),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(report) => report.fmt(f),
            Self::Host(error) => error.fmt(f),
            Self::State(error) => error.fmt(f),
            Self::System(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for StartError {}

/// The handle of the control plane. Cheap to clone; the control loop ends when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Control(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    events: mpsc::Sender<Event>,
    cell: Arc<SnapshotCell>,
    host: Arc<Host>,
    metrics: Arc<Metrics>,
    audit: Audit,
    shadows: Arc<Shadows>,
    counters: Arc<Counters>,
    looked: Arc<RwLock<BTreeMap<String, Looked>>>,
    notices: Events,
    watching: Watching,
    published: Arc<RwLock<Arc<Published>>>,
    listeners: tokio_watch::Receiver<Arc<[Listener]>>,
    started: Instant,
}

/// Events that may wait for the control loop; who asks more waits.
const EVENTS_MAX: usize = 64;

/// How long a process that is to decide waits for another one to let go: a successor that gave up needs a moment to end.
const LOCKED_MAX: Duration = Duration::from_secs(3);

/// How often it looks. The kernel tells nobody that a lock is free but those who wait for it without end.
const LOCKED_POLL: Duration = Duration::from_millis(50);

impl Control {
    /// Loads the configuration and everything that it names, restores the state, builds the first snapshot and starts the
    /// control loop.
    ///
    /// # Errors
    ///
    /// Whatever keeps a gateway from serving as the file says. A corrupted state file does not.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let started = Instant::now();
        let (events, inbox) = mpsc::channel(EVENTS_MAX);
        let (keeper, failing) = Keeper::start(options, events.downgrade()).await?;
        let control = Self(Arc::new(Inner {
            events,
            cell: Arc::clone(keeper.cell()),
            host: Arc::clone(keeper.host()),
            metrics: Arc::clone(keeper.metrics()),
            audit: keeper.audit().clone(),
            shadows: Arc::clone(keeper.shadows()),
            counters: Arc::clone(keeper.counters()),
            looked: keeper.looked(),
            notices: keeper.notices().clone(),
            watching: Watching::default(),
            published: keeper.published(),
            listeners: keeper.listeners(),
            started,
        }));
        tokio::spawn(keeper.run(inbox, failing));
        tokio::spawn(watch_rollouts(Arc::downgrade(&control.0)));
        Ok(control)
    }

    /// Returns the cell that holds the current snapshot.
    pub fn cell(&self) -> &Arc<SnapshotCell> {
        &self.0.cell
    }

    /// Returns the host of the filters.
    pub fn host(&self) -> &Arc<Host> {
        &self.0.host
    }

    /// Returns the metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    /// Returns the configuration in force.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.published().loaded.facts.config)
    }

    /// Returns the wanted listeners, to be followed: after a reload that took effect those that are missing are to be
    /// closed, and after one that did not, those that were bound for it.
    pub fn listeners(&self) -> tokio_watch::Receiver<Arc<[Listener]>> {
        self.0.listeners.clone()
    }

    /// Reads the configuration and its components again. A reload that is asked for during another one runs after it.
    ///
    /// # Errors
    ///
    /// Whatever is wrong; everything is as it was.
    pub async fn reload(&self, cause: Cause, by: Actor) -> Result<Reloaded, Refusal> {
        self.ask(|reply| Event::Reload { cause, by, reply: Some(reply) }).await
    }

    /// Sets the canary's share of a rollout, until the file's weight or one of its versions changes.
    ///
    /// # Errors
    ///
    /// The rollout is unknown or not under way, or the state cannot be written.
    pub async fn set_weight(&self, rollout: &str, weight: Weight, by: Actor) -> Result<RolloutView, Refusal> {
        self.decide(rollout, Decision::SetWeight(weight), by).await
    }

    /// Makes a rollout's canary serve everybody, until one of its versions changes in the file.
    ///
    /// # Errors
    ///
    /// The rollout is unknown or rolled back, or the state cannot be written.
    pub async fn promote(&self, rollout: &str, by: Actor) -> Result<RolloutView, Refusal> {
        self.decide(rollout, Decision::Promote, by).await
    }

    /// Makes a rollout's stable version serve everybody, until one of its versions changes in the file.
    ///
    /// # Errors
    ///
    /// The rollout is unknown, or the state cannot be written.
    pub async fn roll_back(&self, rollout: &str, why: Option<String>, by: Actor) -> Result<RolloutView, Refusal> {
        self.decide(rollout, Decision::RollBack(why), by).await
    }

    /// Ends a rollout: stable serves everybody, until the file names other versions.
    ///
    /// # Errors
    ///
    /// The rollout is unknown or promoted, or the state cannot be written.
    pub async fn abandon(&self, rollout: &str, why: Option<String>, by: Actor) -> Result<RolloutView, Refusal> {
        self.decide(rollout, Decision::Abandon(why), by).await
    }

    /// Stops a rollout that climbs by itself where it is. Its guard still takes it back.
    ///
    /// # Errors
    ///
    /// The rollout is unknown, not under way or moved by hand anyway, or the state cannot be written.
    pub async fn pause(&self, rollout: &str, why: Option<String>, by: Actor) -> Result<RolloutView, Refusal> {
        self.decide(rollout, Decision::Pause(why), by).await
    }

    /// Lets a paused rollout go on, or takes a rolled-back one up again, with the weight that it had.
    ///
    /// # Errors
    ///
    /// The rollout is unknown or promoted, its canary is in quarantine, or the state cannot be written.
    pub async fn resume(&self, rollout: &str, by: Actor) -> Result<RolloutView, Refusal> {
        self.decide(rollout, Decision::Resume, by).await
    }

    /// Lets in what waits for approval under the name of a filter or function; only the version with the label `version`,
    /// where there is one. Returns what was let in. A file that waited with it is read again.
    ///
    /// # Errors
    ///
    /// Nothing waits under that name, or the state cannot be written.
    pub async fn approve(&self, name: &str, version: Option<String>, by: Actor) -> Result<Vec<ApprovalView>, Refusal> {
        let name = name.to_owned();
        self.ask(|reply| Event::Approve { name, version, by, reply }).await
    }

    /// Takes a version out of quarantine, by its label. A stable version serves again at once; a rollout that was rolled
    /// back because of it stays so until it is resumed.
    ///
    /// # Errors
    ///
    /// No such version is in quarantine, or the state cannot be written.
    pub async fn release(&self, version: &str, by: Actor) -> Result<(), Refusal> {
        let label = version.to_owned();
        self.ask(|reply| Event::Release { label, by, reply }).await
    }

    /// Returns the state of everything. Waits for nothing.
    pub fn status(&self) -> Arc<Status> {
        Arc::new(self.published().status(self.0.started, &self.0.cell.current(), &self.0.host, &self.0.looked.read()))
    }

    /// Explains which track a rollout puts a key or a request on.
    ///
    /// # Errors
    ///
    /// The rollout is unknown.
    pub fn explain(&self, rollout: &str, asked: &Asked) -> Result<Explanation, Refusal> {
        let published = self.published();
        let facts = &published.loaded.facts;
        let found = facts.rollout(rollout);
        let state = found.and_then(|index| Some((index, choose::state(facts, &published.saved, index)?)));
        match state {
            Some((index, state)) => Ok(explain::explain(&facts.config.rollouts[index], state, asked)),
            None => Err(keeper::unknown_rollout(facts, rollout)),
        }
    }

    /// Returns what a rollout's shadow has found: the one that runs, or the last one.
    ///
    /// # Errors
    ///
    /// The rollout is unknown, or its canary was never a shadow.
    pub fn shadow(&self, rollout: &str) -> Result<ShadowView, Refusal> {
        if let Some(tally) = self.0.shadows.tally(rollout) {
            let snapshot = self.0.cell.current();
            return Ok(tally.view(snapshot.shadow(rollout).map(|running| running.options())));
        }
        let facts = &self.published().loaded.facts;
        match facts.rollout(rollout) {
            Some(_) => Err(Refusal::NoShadow { rollout: rollout.to_owned() }),
            None => Err(keeper::unknown_rollout(facts, rollout)),
        }
    }

    /// Returns why a rollout is where it is: its steps, and what the judge knows.
    ///
    /// # Errors
    ///
    /// The rollout is unknown.
    pub fn why(&self, rollout: &str) -> Result<WhyView, Refusal> {
        let published = self.published();
        let facts = &published.loaded.facts;
        let found = facts.rollout(rollout);
        let found = found.and_then(|index| Some((index, choose::state(facts, &published.saved, index)?)));
        let Some((index, state)) = found else { return Err(keeper::unknown_rollout(facts, rollout)) };
        let looked = self.0.looked.read();
        let rollout = &facts.config.rollouts[index];
        let about = why::About { rollout, state, looked: looked.get(&*rollout.name), now: Timestamp::now() };
        Ok(why::why(&about))
    }

    /// Returns what was counted of a rollout, for a decider elsewhere.
    ///
    /// # Errors
    ///
    /// The rollout is unknown, or nothing is counted of it: it has neither a guard nor a decider elsewhere, or is not under
    /// way and has not been since the start.
    pub fn counts(&self, rollout: &str) -> Result<CountsView, Refusal> {
        let published = self.published();
        let facts = &published.loaded.facts;
        let view = facts.rollout(rollout).and_then(|index| published.rollout(index, &self.0.cell.current(), None));
        let view = view.ok_or_else(|| keeper::unknown_rollout(facts, rollout))?;
        let counted = self.0.counters.get(rollout);
        let (counts, since) = counted.ok_or_else(|| Refusal::NotCounted { rollout: rollout.to_owned() })?;
        Ok(CountsView {
            rollout: view.name,
            stable_version: view.stable,
            canary_version: view.canary,
            weight: view.weight,
            since,
            stable: why::track_counts(&counts, Track::Stable),
            canary: why::track_counts(&counts, Track::Canary),
        })
    }

    /// Returns the YAML that brings the file up to the state.
    pub fn export(&self) -> String {
        let published = self.published();
        export::Export { facts: &published.loaded.facts, saved: &published.saved }.to_string()
    }

    /// Returns the last entries of the audit log, the oldest of them first. Reads a file.
    pub fn audit(&self, last: usize) -> Vec<AuditEntry> {
        self.0.audit.tail(last)
    }

    /// Returns what a rollout was like since this process watches it.
    ///
    /// # Errors
    ///
    /// The rollout is unknown.
    pub fn watched(&self, rollout: &str) -> Result<Watched, Refusal> {
        let facts = &self.published().loaded.facts;
        facts
            .rollout(rollout)
            .map(|_| self.0.watching.get(rollout))
            .ok_or_else(|| keeper::unknown_rollout(facts, rollout))
    }

    /// Returns what tells of everything that happens.
    pub fn notices(&self) -> &Events {
        &self.0.notices
    }

    /// Makes this process stop watching, judging and writing state, so that another one can. It goes on serving as it
    /// is. Returns when the last write is done.
    pub async fn stop_deciding(&self) {
        // An error means that the loop has ended, and so decides nothing.
        drop(self.ask(|reply| Event::Stop { reply }).await);
    }

    /// Makes this process the one that decides: what another one wrote is read, and takes effect before this returns.
    ///
    /// # Errors
    ///
    /// Another process decides, and goes on doing so for three seconds, or the state cannot be read or written.
    pub async fn begin_deciding(&self) -> Result<(), StartError> {
        let latest = Instant::now() + LOCKED_MAX;
        loop {
            let began = self.ask_for(|reply| Event::Begin { reply }).await;
            match began.unwrap_or_else(|| Err(StartError::System(STOPPED.to_owned()))) {
                Err(StartError::State(StoreError::Locked(_))) if Instant::now() < latest => {
                    tokio::time::sleep(LOCKED_POLL).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn decide(&self, rollout: &str, decision: Decision, by: Actor) -> Result<RolloutView, Refusal> {
        let rollout = rollout.to_owned();
        self.ask(|reply| Event::Decide { rollout, decision, by, reply }).await
    }

    async fn ask<T>(&self, event: impl FnOnce(oneshot::Sender<Result<T, Refusal>>) -> Event) -> Result<T, Refusal> {
        self.ask_for(event).await.unwrap_or_else(|| Err(Refusal::Stopped(STOPPED.to_owned())))
    }

    /// Returns the loop's answer; none where it has ended.
    async fn ask_for<T>(&self, event: impl FnOnce(oneshot::Sender<T>) -> Event) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.0.events.send(event(reply)).await.ok()?;
        answer.await.ok()
    }

    fn published(&self) -> Arc<Published> {
        Arc::clone(&self.0.published.read())
    }
}

/// Looks at the rollouts until the last handle is dropped.
async fn watch_rollouts(control: Weak<Inner>) {
    let mut tick = tokio::time::interval(watched::EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tick.tick().await;
        let Some(control) = control.upgrade() else { return };
        let published = Arc::clone(&control.published.read());
        control.watching.look(&published, &control.cell.current(), Timestamp::now());
    }
}

const STOPPED: &str = "the control loop has ended";
