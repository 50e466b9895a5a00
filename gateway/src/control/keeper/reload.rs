//! Reloads: one at a time is prepared by a job beside the loop, and applied to what is in force when it is done. Those that
//! are asked for meanwhile wait, and get one answer together.

use std::sync::Arc;

use lockgate_config::Warnings;
use tokio::sync::oneshot;

use super::commit::moves_of;
use super::job::{self, Prepared, Ready};
use super::{Event, Keeper};
use crate::control::events;
use crate::control::reconcile::{entry, reconcile, undone_promotions};
use crate::control::status::LastReload;
use crate::control::time::Timestamp;
use crate::control::watch::Fingerprint;
use crate::control::{Actor, Cause, Refusal, Reloaded};
use crate::metrics::ReloadOutcome;

/// A reload that was asked for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) cause: Cause,
    pub(super) by: Actor,
    pub(super) reply: Option<oneshot::Sender<Result<Reloaded, Refusal>>>,
}

impl Keeper {
    pub(super) fn reload(&mut self, asked: Asked) {
        if !self.deciding {
            answer(vec![asked], &Err(Refusal::HandedOver));
        } else if self.answering.is_empty() {
            self.begin_reload(vec![asked]);
        } else {
            self.waiting.push(asked);
        }
    }

    fn begin_reload(&mut self, asked: Vec<Asked>) {
        self.answering = asked;
        let (tools, current) = (Arc::clone(&self.tools), Arc::clone(&self.loaded));
        let events = self.events.clone();
        let job = tokio::spawn(job::prepare(current, self.saved.clone(), tools));
        tokio::spawn(async move {
            // Whatever becomes of the job, the loop hears of its end: it begins no other before.
            let failed = |error| (None, Err(Refusal::Stopped(format!("the reload failed: {error}"))));
            let (seen, outcome) = job.await.unwrap_or_else(failed);
            if let Some(events) = events.upgrade() {
                // An error means that the loop has ended.
                drop(events.send(Event::Prepared { seen, outcome }).await);
            }
        });
    }

    pub(super) async fn prepared(&mut self, seen: Option<Fingerprint>, outcome: Result<Prepared, Refusal>) {
        let asked = std::mem::take(&mut self.answering);
        let (cause, by) =
            asked.first().map_or_else(|| (Cause::FileChanged, Actor::file()), |asked| (asked.cause, asked.by.clone()));
        let outcome = match outcome {
            _ if !self.deciding => Err(Refusal::HandedOver),
            Err(refusal) => Err(refusal),
            Ok(Prepared::Unchanged(facts)) => {
                // Places may have moved, and later problems are shown at them.
                Arc::make_mut(&mut self.loaded).facts = facts;
                Ok(Reloaded::Unchanged)
            }
            Ok(Prepared::New(ready)) => self.apply(*ready, &by).await,
        };
        let metric = match &outcome {
            Ok(Reloaded::Swapped { generation, loaded, reused, warnings }) => {
                for warning in warnings {
                    tracing::warn!(generation, "{warning}");
                }
                tracing::info!(generation, loaded, reused, cause = cause.as_str(), %by, "reloaded");
                ReloadOutcome::Swapped
            }
            Ok(Reloaded::Unchanged) => {
                tracing::info!(cause = cause.as_str(), %by, "reloaded, nothing is new");
                ReloadOutcome::Unchanged
            }
            Err(refusal) => {
                tracing::error!(kind = refusal.kind(), cause = cause.as_str(), %by, "reload refused, everything stays as it is\n{refusal}");
                // What was bound for it is not needed.
                self.listeners.send_replace(self.loaded.facts.config.listeners.as_slice().into());
                ReloadOutcome::Refused
            }
        };
        self.unapproved = match &outcome {
            Err(Refusal::Unapproved { waiting, .. }) => waiting.clone(),
            Ok(_) | Err(_) => Vec::new(),
        };
        self.show_waiting();
        if self.deciding {
            self.tools.metrics.reloaded(metric);
            let problems = outcome.as_ref().err().map(ToString::to_string);
            if metric != ReloadOutcome::Swapped {
                self.notices.note_other(not_swapped(metric, &by, problems.as_deref()));
            }
            self.last_reload = last_reload(cause, &by, metric, problems);
            if let Some(seen) = seen {
                self.watch_files(seen);
            }
        }
        self.publish();
        answer(asked, &outcome);
        if !self.waiting.is_empty() {
            let waiting = std::mem::take(&mut self.waiting);
            self.begin_reload(waiting);
        }
    }

    /// Makes what a job has prepared serve.
    async fn apply(&mut self, ready: Ready, by: &Actor) -> Result<Reloaded, Refusal> {
        let Ready { mut loaded, fresh } = ready;
        let (next, mut entries) = reconcile(&loaded.facts, &self.saved, by, Timestamp::now());
        let (before, after) = (generation(self.generation), generation(self.generation + 1));
        entries.insert(0, entry(by, "reload", "configuration", &before, &after));
        let mut warnings = undone_promotions(&self.loaded.facts, &self.saved, &loaded.facts);
        warnings.extend(Warnings::of(&loaded.facts.config, &loaded.facts.source).lines());
        let moves = moves_of(&entries);
        self.commit(&next, entries).await?;
        // Those that were loaded meanwhile.
        loaded.spares.extend(self.loaded.spares_for(&loaded.facts));
        let before = std::mem::replace(&mut self.saved, next);
        let old = std::mem::replace(&mut self.loaded, Arc::new(loaded));
        self.prune_components().await;
        self.unusable.clear();
        self.swap();
        self.show_metrics(&old.facts, &before);
        self.count(&moves);
        self.listeners.send_replace(self.loaded.facts.config.listeners.as_slice().into());
        self.recover();
        let reused = (self.loaded.stable.len() + self.loaded.canaries.iter().flatten().count()).saturating_sub(fresh);
        Ok(Reloaded::Swapped { generation: self.generation, loaded: fresh, reused, warnings })
    }
}

/// Tells those who asked what became of it.
pub(super) fn answer(asked: Vec<Asked>, outcome: &Result<Reloaded, Refusal>) {
    for reply in asked.into_iter().filter_map(|asked| asked.reply) {
        // Whoever asked may have gone away.
        drop(reply.send(outcome.clone()));
    }
}

pub(super) fn generation(number: u64) -> String {
    format!("generation {number}")
}

/// Returns what is told of a reload after which serves what served before.
fn not_swapped(outcome: ReloadOutcome, by: &Actor, problems: Option<&str>) -> events::Draft {
    let subject = "configuration".to_owned();
    let (action, text) = match problems {
        Some(problems) => ("refused", format!("configuration: reload refused ({by}); {problems}")),
        None => (outcome.as_str(), format!("configuration: reloaded, nothing is new ({by})")),
    };
    events::Draft { kind: events::Kind::Reload, action, subject, text }
}

pub(super) fn last_reload(cause: Cause, by: &Actor, outcome: ReloadOutcome, problems: Option<String>) -> LastReload {
    LastReload {
        time: Timestamp::now(),
        cause: cause.as_str(),
        actor: by.to_string(),
        outcome: outcome.as_str(),
        problems,
    }
}
