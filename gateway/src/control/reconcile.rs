//! Brings together what the file says and what was kept. Pure.

use std::sync::Arc;

use lockgate_config::model::{self, RolloutSubject};

use crate::control::Actor;
use crate::control::approvals;
use crate::control::audit::AuditEntry;
use crate::control::choose::{remember, state};
use crate::control::facts::Facts;
use crate::control::gains::in_words;
use crate::control::quarantine::Entry;
use crate::control::rollout::{self, Effect, Plan, State, Step, step};
use crate::control::state::Saved;
use crate::control::time::Timestamp;
use crate::control::upstream::digest_of;
use crate::control::version::label_of;

/// Returns the entry of a rollout's canary in the quarantine, where it has one.
pub(super) fn quarantined_canary<'a>(facts: &Facts, saved: &'a Saved, rollout: usize) -> Option<&'a Entry> {
    saved.quarantine.get(&facts.canary(rollout)?)
}

/// Returns what is to be kept for a file, from what was kept before it was read, with the entries for the audit log.
pub(super) fn reconcile(facts: &Facts, saved: &Saved, by: &Actor, now: Timestamp) -> (Saved, Vec<AuditEntry>) {
    let mut next = saved.clone();
    let mut entries = Vec::new();
    for (name, state) in &saved.rollouts {
        if facts.rollout(name).is_none() {
            next.rollouts.remove(name);
            entries.push(entry(by, "end", &format!("rollout {name}"), &state.to_string(), ""));
        }
    }
    for (index, rollout) in facts.config.rollouts.iter().enumerate() {
        let (versions, plan) = (facts.versions(index), Plan::of(rollout));
        let unapproved = approvals::unapproved(facts, &saved.approvals, index);
        let new = saved.rollouts.get(&*rollout.name).is_none_or(|state| state.versions != versions);
        let quarantined = quarantined_canary(facts, saved, index).map(|entry| entry.why.clone());
        let quarantined = quarantined.or_else(|| unapproved.clone());
        let stepped = match saved.rollouts.get(&*rollout.name) {
            None => Ok(State::begin(versions, &plan, quarantined, now)),
            Some(state) => step(state, rollout::Event::Declared { versions, plan, quarantined }, now),
        };
        // What the file declares is never refused.
        if let Ok(stepped) = stepped {
            enter(&mut next, &mut entries, &rollout.name, stepped, by, now);
        }
        let gains = approvals::gains_of_canary(&facts.config, rollout);
        if new && !gains.is_empty() {
            let may = format!("its canary may {}, and stable may not", in_words(&gains));
            entries.push(entry(by, "grant", &format!("rollout {}", rollout.name), "", &may));
        }
        // Nobody asks for an approval any more.
        if unapproved.is_none()
            && let Some(state) = next.rollouts.get(&*rollout.name).filter(|state| state.waits())
            && let Ok(stepped) = step(state, rollout::Event::Approved, now)
        {
            enter(&mut next, &mut entries, &rollout.name, stepped, by, now);
        }
    }
    for (subject, gains) in approvals::grown(facts, &next, saved) {
        entries.push(entry(by, "grant", &subject, "", &format!("may {gains}, and what served may not")));
    }
    remember(facts, &mut next, true, now);
    (next, entries)
}

/// Returns a warning for each promotion that a new file undoes: its rollout is gone, and what it moved has not been given
/// its canary's version. `before` and `saved` are what was in force.
pub(super) fn undone_promotions(before: &Facts, saved: &Saved, next: &Facts) -> Vec<String> {
    let gone = before.config.rollouts.iter().enumerate().filter(|(_, rollout)| next.rollout(&rollout.name).is_none());
    let promoted = gone.filter(|(index, _)| state(before, saved, *index).is_some_and(State::is_promoted));
    let back = promoted.filter_map(|(index, rollout)| {
        let (what, now, was) = match rollout.subject {
            RolloutSubject::Filter { filter, .. } => {
                let name = &before.config.filters[filter].name;
                let (now, was) = (next.stable[next.filter(name)?], before.canaries[index]?);
                (format!("filter `{name}`"), label_of(&now), (now != was).then(|| label_of(&was))?)
            }
            RolloutSubject::Function { function, .. } => {
                let name = &before.config.functions[function].name;
                let now = next.config.functions.iter().position(|function| function.name == *name)?;
                let (now, was) = (next.functions[now], before.canaries[index]?);
                (format!("function `{name}`"), label_of(&now), (now != was).then(|| label_of(&was))?)
            }
            RolloutSubject::Upstream { upstream, canary } => {
                let name = &before.config.upstreams[upstream].name;
                let now = next.config.upstreams.iter().find(|upstream| upstream.name == *name)?;
                let was = &before.config.upstreams[canary];
                let renamed = model::Upstream { name: Arc::clone(name), ..was.clone() };
                let differs = digest_of(now) != digest_of(&renamed);
                (format!("upstream `{name}`"), Arc::clone(name), differs.then(|| Arc::clone(&was.name))?)
            }
        };
        let name = &rollout.name;
        Some(format!(
            "rollout `{name}` was promoted, and is gone from the file, which does not give the {what} its canary's \
             version: everybody went back from {was} to {now}; `lockgate rollout export` prints what to commit, while the \
             rollout is still there"
        ))
    });
    back.collect()
}

/// Enters a step into what is kept and what is logged.
pub(super) fn enter(
    saved: &mut Saved,
    entries: &mut Vec<AuditEntry>,
    name: &str,
    step: Step,
    by: &Actor,
    now: Timestamp,
) {
    let (state, effects) = step;
    saved.rollouts.insert(name.to_owned(), state);
    for effect in effects {
        if let Effect::Record { action, before, after, why } = effect {
            let subject = format!("rollout {name}");
            entries.push(AuditEntry {
                time: now,
                actor: by.to_string(),
                action: action.to_owned(),
                subject,
                before,
                after,
                why,
            });
        }
    }
}

/// Returns an entry for the audit log, of now.
pub(super) fn entry(by: &Actor, action: &str, subject: &str, before: &str, after: &str) -> AuditEntry {
    AuditEntry {
        time: Timestamp::now(),
        actor: by.to_string(),
        action: action.to_owned(),
        subject: subject.to_owned(),
        before: before.to_owned(),
        after: after.to_owned(),
        why: None,
    }
}
