//! What moves rollouts and the quarantine: people's decisions, and versions that fail.

use std::sync::Arc;

use lockgate_config::model::{Decider, FilterPolicy, RolloutSubject};
use lockgate_host::VersionId;

use super::{Decision, Event, Keeper, blocking, job, unknown_rollout};
use crate::control::audit::AuditEntry;
use crate::control::choose::{self, fallbacks, remember};
use crate::control::facts::Facts;
use crate::control::quarantine::{Entry, Why};
use crate::control::reconcile::{enter, entry, quarantined_canary};
use crate::control::rollout::{self, Effect, Refused, Step, step};
use crate::control::time::Timestamp;
use crate::control::version::{Failing, Version, label_of};
use crate::control::{Actor, Refusal, RolloutView, approvals};

impl Keeper {
    pub(super) async fn decide(&mut self, name: &str, decision: Decision, by: Actor) -> Result<RolloutView, Refusal> {
        if !self.deciding {
            return Err(Refusal::HandedOver);
        }
        let facts = Arc::clone(&self.loaded.facts);
        let Some(index) = facts.rollout(name) else { return Err(unknown_rollout(&facts, name)) };
        let now = Timestamp::now();
        let mut moves = Vec::new();
        for member in facts.linked(index) {
            let Some(state) = choose::state(&facts, &self.saved, member) else { continue };
            let event = self.event(&facts, member, &decision, &by);
            let unapproved = approvals::unapproved(&facts, &self.saved.approvals, member);
            let stepped = match unapproved.filter(|_| matches!(decision, Decision::Resume)) {
                Some(why) => Err(Refused::Unapproved(why)),
                None => step(state, event, now),
            };
            match stepped {
                Ok(step) => moves.push((member, step)),
                Err(refused) if member == index => {
                    return Err(Refusal::NotAllowed { rollout: name.to_owned(), refused });
                }
                // Linked ones move along as far as they can: one may have been promoted before.
                Err(_) => {}
            }
        }
        self.make(moves, &by, now).await?;
        let view = self.published.read().rollout(index, &self.cell.current(), Some(&*self.looked.read()));
        view.ok_or_else(|| unknown_rollout(&facts, name))
    }

    fn event(&self, facts: &Facts, index: usize, decision: &Decision, by: &Actor) -> rollout::Event {
        let person = |reason: Option<&str>| Why::Person { by: by.to_string(), reason: reason.map(ToOwned::to_owned) };
        match decision {
            Decision::SetWeight(weight) => {
                let local = facts.config.rollouts[index].decider == Decider::Local;
                let pausing = local.then(|| person(Some(&format!("set the weight to {weight}"))));
                rollout::Event::SetWeight { weight: *weight, pausing }
            }
            Decision::Promote => rollout::Event::Promote,
            Decision::RollBack(why) => rollout::Event::RollBack(person(why.as_deref())),
            Decision::Abandon(why) => rollout::Event::Abandon(person(why.as_deref())),
            Decision::Pause(why) => rollout::Event::Pause(person(why.as_deref())),
            Decision::Resume => {
                let quarantined = quarantined_canary(facts, &self.saved, index).and(facts.canaries[index].as_ref());
                rollout::Event::Resume { quarantined: quarantined.map(|canary| label_of(canary).to_string()) }
            }
        }
    }

    /// Makes moves that are allowed: all of them, or none.
    ///
    /// # Errors
    ///
    /// The state cannot be written. A version that is to stay away goes all the same: users come first, and a canary that
    /// is worse does not go on serving because a disk is full.
    pub(super) async fn make(&mut self, moves: Vec<(usize, Step)>, by: &Actor, now: Timestamp) -> Result<(), Refusal> {
        let facts = Arc::clone(&self.loaded.facts);
        let mut next = self.saved.clone();
        let mut entries = Vec::new();
        let (mut moved, mut swap, mut superseding, mut urgent) = (Vec::new(), false, false, false);
        for (index, step) in moves {
            let name = &facts.config.rollouts[index].name;
            swap |= step.1.contains(&Effect::Swap);
            superseding |= step.1.contains(&Effect::Supersede);
            let actions = step.1.iter().filter_map(|effect| match effect {
                Effect::Record { action, .. } => Some(*action),
                _ => None,
            });
            moved.extend(actions.map(|action| (Arc::clone(name), action)));
            for why in step.1.iter().filter_map(|effect| match effect {
                Effect::Quarantine(why) => Some(why),
                _ => None,
            }) {
                urgent = true;
                let (Some(canary), RolloutSubject::Filter { filter, .. }) =
                    (facts.canaries[index], &facts.config.rollouts[index].subject)
                else {
                    continue;
                };
                let filter = facts.config.filters[*filter].name.to_string();
                let subject = format!("filter {filter} {}", label_of(&canary));
                if next.quarantine.add(Entry { filter, version: canary, why: why.clone(), since: now }) {
                    entries.push(AuditEntry {
                        why: Some(why.clone()),
                        ..entry(by, "quarantine", &subject, "", "in quarantine")
                    });
                }
            }
            enter(&mut next, &mut entries, name, step, by, now);
        }
        if next == self.saved && entries.is_empty() {
            return Ok(());
        }
        remember(&facts, &mut next, superseding, now);
        match self.commit(&next, entries).await {
            Ok(()) => {}
            Err(refusal) if urgent => {
                tracing::error!(error = %refusal, "the rollback holds, but is lost with this process");
            }
            Err(refusal) => return Err(refusal),
        }
        let before = std::mem::replace(&mut self.saved, next);
        if swap {
            self.swap();
        }
        self.show_metrics(&facts, &before);
        self.publish();
        for (name, action) in moved {
            let state = self.saved.rollouts.get(&*name).map(ToString::to_string).unwrap_or_default();
            self.tools.metrics.decided(&name, action);
            tracing::info!(rollout = %name, action, %by, %state, generation = self.generation, "rollout moved");
        }
        Ok(())
    }

    pub(super) async fn quarantine(&mut self, failing: Failing) {
        if !self.deciding {
            tracing::warn!(filter = %failing.filter, "a version fails too often, but another process decides");
            return;
        }
        let facts = Arc::clone(&self.loaded.facts);
        let (now, by) = (Timestamp::now(), Actor::gateway());
        let window_ms = u64::try_from(failing.window.as_millis()).unwrap_or(u64::MAX);
        let why = Why::Failures { failures: failing.failures, window_ms };
        let mut next = self.saved.clone();
        let added = next.quarantine.add(Entry {
            filter: failing.filter.to_string(),
            version: failing.version,
            why: why.clone(),
            since: now,
        });
        if !added {
            return;
        }
        let label = label_of(&failing.version);
        let mut entries = vec![AuditEntry {
            why: Some(why.clone()),
            ..entry(&by, "quarantine", &format!("filter {} {label}", failing.filter), "", "in quarantine")
        }];
        // Wherever it is a canary, its rollout ends.
        for index in 0..facts.config.rollouts.len() {
            let name = facts.config.rollouts[index].name.to_string();
            if quarantined_canary(&facts, &next, index).is_some()
                && let Some(state) = choose::state(&facts, &next, index)
                && let Ok(step) = step(state, rollout::Event::RollBack(why.clone()), now)
            {
                enter(&mut next, &mut entries, &name, step, &by, now);
            }
        }
        remember(&facts, &mut next, false, now);
        tracing::error!(filter = %failing.filter, version = %label, %why, "version quarantined");
        if let Err(refusal) = self.commit(&next, entries).await {
            // Users come first: a version that fails does not go on serving because a disk is full.
            tracing::error!(error = %refusal, "the quarantine holds, but is lost with this process");
        }
        let before = std::mem::replace(&mut self.saved, next);
        self.swap();
        self.show_metrics(&facts, &before);
        self.publish();
        self.recover();
    }

    pub(super) async fn release(&mut self, label: &str, by: &Actor) -> Result<(), Refusal> {
        if !self.deciding {
            return Err(Refusal::HandedOver);
        }
        let facts = Arc::clone(&self.loaded.facts);
        let mut next = self.saved.clone();
        let released = next.quarantine.release(|entry| &*label_of(&entry.version) == label);
        if released.is_empty() {
            let known = self.saved.quarantine.entries().map(|entry| label_of(&entry.version).to_string()).collect();
            return Err(Refusal::UnknownVersion { label: label.to_owned(), known });
        }
        let entries = released.iter().map(|released| AuditEntry {
            why: Some(released.why.clone()),
            ..entry(by, "release", &format!("filter {} {label}", released.filter), "in quarantine", "")
        });
        self.commit(&next, entries.collect()).await?;
        let before = std::mem::replace(&mut self.saved, next);
        for released in &released {
            if let Some(filter) = facts.filter(&released.filter) {
                let versions = self.loaded.versions(filter).into_iter();
                versions.filter(|version| *version.id() == released.version).for_each(|version| version.forgive());
            }
        }
        self.swap();
        self.show_metrics(&facts, &before);
        self.publish();
        tracing::info!(version = label, %by, "version released from quarantine");
        Ok(())
    }

    /// Loads last good versions that have to serve, but are not loaded.
    pub(super) fn recover(&mut self) {
        for (filter, kept) in job::missing(&self.loaded, &self.saved, &self.unusable) {
            let key = (filter.name.to_string(), kept.version);
            if !self.recovering.insert(key.clone()) {
                continue;
            }
            let (tools, events, policy) = (Arc::clone(&self.tools), self.events.clone(), filter.policy.clone());
            let (filter, kept) = (filter.clone(), kept.clone());
            tokio::spawn(async move {
                let loaded = blocking(move || job::load_kept(&filter, &kept, &tools)).await;
                let outcome = loaded.and_then(std::convert::identity);
                if let Some(events) = events.upgrade() {
                    let event = Event::Recovered { filter: key.0, id: key.1, policy: Box::new(policy), outcome };
                    drop(events.send(event).await);
                }
            });
        }
    }

    pub(super) async fn recovered(
        &mut self,
        name: String,
        id: VersionId,
        policy: FilterPolicy,
        outcome: Result<Arc<lockgate_host::Filter>, String>,
    ) {
        let key = (name.clone(), id);
        self.recovering.remove(&key);
        let label = label_of(&id);
        match outcome {
            Ok(_) if !self.wants(&key, &policy) => {}
            Ok(filter) => {
                let version = Version::new(filter, policy.on_failure, &self.tools.metrics, &self.tools.failing);
                Arc::make_mut(&mut self.loaded).spares.insert(key, (policy, version));
                tracing::warn!(filter = name, version = %label, "the last good version serves");
                let entry =
                    entry(&Actor::gateway(), "fall-back", &format!("filter {name}"), "", &format!("{label} serves"));
                if self.deciding
                    && let Err(refusal) = self.commit(&self.saved.clone(), vec![entry]).await
                {
                    tracing::error!(error = %refusal, "the audit log has no entry of a fall-back");
                }
                self.swap();
                self.publish();
            }
            Err(error) => {
                tracing::error!(filter = name, version = %label, %error, "the last good version cannot be loaded");
                self.unusable.insert(key);
            }
        }
        self.recover();
    }

    /// Returns whether a last good version is still to serve, under this policy.
    fn wants(&self, (name, id): &(String, VersionId), policy: &FilterPolicy) -> bool {
        let (facts, saved) = (&self.loaded.facts, &self.saved);
        facts.filter(name).is_some_and(|filter| {
            facts.config.filters[filter].policy == *policy
                && fallbacks(facts, saved, filter).any(|kept| kept.version == *id)
        })
    }
}
