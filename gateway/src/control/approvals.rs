//! Which versions people have let in. Where `require_approval: grants` holds, a version that may do more than the one that
//! serves waits for a person's word: a canary's rollout does not begin, and a file with a new stable version is not taken.
//! An approval is for one version, by its digests, and stays for good.
//!
//! What served last is kept as well, so that a restart with another file is no way around it. What is there at the very
//! first start is taken as it is.

use std::collections::BTreeMap;

use lockgate_config::model::{Config, Rollout, RolloutSubject};
use lockgate_config::problem::{Place, Problem};
use lockgate_host::VersionId;
use serde::{Deserialize, Serialize};

use crate::control::audit::{Audit, AuditEntry};
use crate::control::choose::{self, intended, intended_function};
use crate::control::facts::Facts;
use crate::control::gains::{Gain, Powers, gains, in_words};
use crate::control::quarantine::Why;
use crate::control::reconcile::{entry, reconcile};
use crate::control::state::{Saved, Store, StoreError};
use crate::control::status::ApprovalView;
use crate::control::time::Timestamp;
use crate::control::version::label_of;
use crate::control::{Actor, Refusal};

/// Approvals that are kept, the newest of them: far more than a file has versions.
const APPROVED_MAX: usize = 256;

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Approvals {
    /// What the stable versions may do that served last, by `filter NAME` and `function NAME`; none before the first start.
    served: Option<BTreeMap<String, Powers>>,
    /// The oldest first.
    approved: Vec<Approved>,
}

/// A version that a person has let in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approved {
    /// `filter auth`, `function greeter`.
    pub subject: String,
    /// Which version of it.
    pub version: VersionId,
    /// Who.
    pub by: String,
    /// When.
    pub since: Timestamp,
}

/// A version that waits to be let in.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// `filter auth`, `function greeter`.
    pub subject: String,
    /// Which version of it.
    pub version: VersionId,
    /// What it may do that the one which serves may not; at least one thing.
    pub gains: Vec<Gain>,
    /// The rollout whose canary it is; none where it would be stable, and the file waits with it.
    pub rollout: Option<String>,
    place: Place,
}

impl Waiting {
    /// Returns the name of the filter or function.
    pub fn name(&self) -> &str {
        self.subject.split_once(' ').map_or(&*self.subject, |(_, name)| name)
    }

    /// Returns whether it is what a person means by a name and perhaps a label.
    pub(super) fn is_meant(&self, name: &str, label: Option<&str>) -> bool {
        self.name() == name && label.is_none_or(|label| *label_of(&self.version) == *label)
    }

    /// Returns name and label, as they are given to approve it.
    pub(super) fn shown(&self) -> String {
        format!("{} {}", self.name(), label_of(&self.version))
    }

    /// Lets it in, and returns the entry for the audit log.
    pub(super) fn let_in(&self, saved: &mut Saved, by: &Actor, now: Timestamp) -> AuditEntry {
        let Self { subject, version, gains, .. } = self;
        saved.approvals.approve(subject, *version, by, now);
        entry(by, "approve", &format!("{subject} {}", label_of(version)), "", &format!("may {}", in_words(gains)))
    }

    /// Returns what is wrong with a file that would make the version serve.
    pub fn problem(&self) -> Problem {
        let Self { subject, version, gains, .. } = self;
        let (label, name, gains) = (label_of(version), self.name(), in_words(gains));
        let message = format!("{subject} {label} waits for approval: it may {gains}, and what serves may not");
        Problem::new(message, self.place.clone())
            .hint(format!("to let it in, run `lockgate approve {name}`; with `--offline` where no gateway runs"))
    }
}

impl Approvals {
    /// Returns whether a person has let a version in.
    pub fn has(&self, subject: &str, version: &VersionId) -> bool {
        self.approved.iter().any(|approved| approved.subject == subject && approved.version == *version)
    }

    /// Lets a version in.
    pub fn approve(&mut self, subject: &str, version: VersionId, by: &Actor, now: Timestamp) {
        if !self.has(subject, &version) {
            self.approved.push(Approved { subject: subject.to_owned(), version, by: by.to_string(), since: now });
            let over = self.approved.len().saturating_sub(APPROVED_MAX);
            self.approved.drain(..over);
        }
    }
}

/// A filter or a function, in the version that is to be stable.
struct Stable {
    subject: String,
    version: VersionId,
    powers: Powers,
    required: bool,
    place: Place,
}

fn stable_versions(facts: &Facts, saved: &Saved) -> impl Iterator<Item = Stable> {
    let filters = facts.config.filters.iter().enumerate().map(|(index, filter)| {
        let intended = intended(facts, saved, index);
        Stable {
            subject: format!("filter {}", filter.name),
            version: intended.id,
            powers: Powers::of_filter(intended.version),
            required: filter.require_approval,
            place: filter.place.clone(),
        }
    });
    let functions = facts.config.functions.iter().enumerate().map(|(index, function)| {
        let (version, id) = intended_function(facts, saved, index);
        Stable {
            subject: format!("function {}", function.name),
            version: id,
            powers: Powers::of_function(version),
            required: function.require_approval,
            place: function.place.clone(),
        }
    });
    filters.chain(functions).collect::<Vec<_>>().into_iter()
}

/// Returns what each stable version of `next` may do that the one before may not, where that is anything. A filter or
/// function that was not there before could do nothing. Empty where nothing has served yet.
fn gained(facts: &Facts, next: &Saved, before: &Saved) -> Vec<(Stable, Vec<Gain>)> {
    let Some(served) = &before.approvals.served else { return Vec::new() };
    let nothing = Powers::default();
    let gained = stable_versions(facts, next).map(|stable| {
        let gains = gains(served.get(&stable.subject).unwrap_or(&nothing), &stable.powers);
        (stable, gains)
    });
    gained.filter(|(_, gains)| !gains.is_empty()).collect()
}

/// Returns what the stable versions may newly do, one line for each filter and function, for the audit log.
pub(super) fn grown(facts: &Facts, next: &Saved, before: &Saved) -> Vec<(String, String)> {
    let gained = gained(facts, next, before).into_iter();
    gained
        .map(|(stable, gains)| (format!("{} {}", stable.subject, label_of(&stable.version)), in_words(&gains)))
        .collect()
}

/// Returns the stable versions that wait. `next` is what would be kept if they did not, `before` what was.
pub(super) fn waiting_stable(facts: &Facts, next: &Saved, before: &Saved) -> Vec<Waiting> {
    let gained = gained(facts, next, before).into_iter();
    let waiting =
        gained.filter(|(stable, _)| stable.required && !before.approvals.has(&stable.subject, &stable.version));
    waiting
        .map(|(Stable { subject, version, place, .. }, gains)| Waiting {
            subject,
            version,
            gains,
            rollout: None,
            place,
        })
        .collect()
}

/// Returns what a rollout's canary may do that stable may not; nothing for an upstream.
pub fn gains_of_canary(config: &Config, rollout: &Rollout) -> Vec<Gain> {
    match &rollout.subject {
        RolloutSubject::Filter { filter, canary } => {
            gains(&Powers::of_filter(&config.filters[*filter].version), &Powers::of_filter(canary))
        }
        RolloutSubject::Function { function, canary } => {
            gains(&Powers::of_function(&config.functions[*function].version), &Powers::of_function(canary))
        }
        RolloutSubject::Upstream { .. } => Vec::new(),
    }
}

/// Returns what canaries may do that stable may not, a line for each that may do anything.
pub fn gains_of_canaries(config: &Config) -> Vec<String> {
    let gaining = config.rollouts.iter().filter_map(|rollout| {
        let gains = gains_of_canary(config, rollout);
        (!gains.is_empty())
            .then(|| format!("the canary of rollout {} may {}, and stable may not", rollout.name, in_words(&gains)))
    });
    gaining.collect()
}

/// Returns a rollout's canary, where it has not been let in and has to be.
fn waiting_canary(facts: &Facts, approvals: &Approvals, rollout: usize) -> Option<Waiting> {
    let config = &facts.config;
    let (subject, required, place) = match config.rollouts[rollout].subject {
        RolloutSubject::Filter { filter, .. } => {
            let filter = &config.filters[filter];
            (format!("filter {}", filter.name), filter.require_approval, &filter.place)
        }
        RolloutSubject::Function { function, .. } => {
            let function = &config.functions[function];
            (format!("function {}", function.name), function.require_approval, &function.place)
        }
        RolloutSubject::Upstream { .. } => return None,
    };
    let version = facts.canaries[rollout]?;
    if !required || approvals.has(&subject, &version) {
        return None;
    }
    let gains = gains_of_canary(config, &config.rollouts[rollout]);
    let rollout = Some(config.rollouts[rollout].name.to_string());
    (!gains.is_empty()).then(|| Waiting { subject, version, gains, rollout, place: place.clone() })
}

/// Returns why a rollout may not begin, where its canary or that of one which it moves with waits.
pub(super) fn unapproved(facts: &Facts, approvals: &Approvals, rollout: usize) -> Option<Why> {
    let why = |waiting: &Waiting| Why::Unapproved { name: waiting.name().to_owned(), gains: in_words(&waiting.gains) };
    if let Some(waiting) = waiting_canary(facts, approvals, rollout) {
        return Some(why(&waiting));
    }
    let linked = facts.linked(rollout).into_iter().filter(|other| *other != rollout);
    linked.into_iter().find_map(|other| {
        let waiting = waiting_canary(facts, approvals, other)?;
        let rollout = facts.config.rollouts[other].name.to_string();
        Some(Why::Linked { rollout, why: Box::new(why(&waiting)) })
    })
}

/// Returns the canaries that wait: of rollouts that have not begun for it.
pub(super) fn waiting_canaries(facts: &Facts, saved: &Saved) -> Vec<Waiting> {
    let waits = |index: &usize| choose::state(facts, saved, *index).is_some_and(|state| state.waits());
    let rollouts = (0..facts.config.rollouts.len()).filter(waits);
    rollouts.filter_map(|index| waiting_canary(facts, &saved.approvals, index)).collect()
}

/// Lets in what waits under a name, in the state directory of a gateway that does not run.
///
/// # Errors
///
/// A gateway runs, nothing waits under that name, or the state cannot be read or written.
pub fn approve_offline(
    facts: &Facts,
    name: &str,
    version: Option<&str>,
    by: &Actor,
) -> Result<Vec<ApprovalView>, String> {
    let dir = &facts.config.server.state_dir;
    let failed = |error: StoreError| match error {
        StoreError::Locked(_) => "a gateway runs: ask it, without `--offline`".to_owned(),
        other => other.to_string(),
    };
    let mut store = Store::open(dir).map_err(failed)?;
    store.lock().map_err(failed)?;
    let mut saved = store.restore().map_err(failed)?.saved;
    let now = Timestamp::now();
    let (next, _) = reconcile(facts, &saved, by, now);
    let all = waiting_stable(facts, &next, &saved).into_iter().chain(waiting_canaries(facts, &next));
    let (approved, others): (Vec<_>, Vec<_>) = all.partition(|waiting| waiting.is_meant(name, version));
    if approved.is_empty() {
        let known = others.iter().map(Waiting::shown).collect();
        return Err(Refusal::NothingWaits { name: name.to_owned(), known }.to_string());
    }
    let entries: Vec<_> = approved.iter().map(|waiting| waiting.let_in(&mut saved, by, now)).collect();
    store.save(&saved, &entries).map_err(failed)?;
    Audit::new(dir).append(&entries).map_err(|error| format!("cannot write the audit log: {error}"))?;
    store.confirm(&saved);
    Ok(approved.iter().map(ApprovalView::of).collect())
}

/// Takes note of what serves now.
pub(super) fn remember(facts: &Facts, saved: &mut Saved) {
    let served = stable_versions(facts, saved).map(|stable| (stable.subject, stable.powers)).collect();
    saved.approvals.served = Some(served);
}
