//! What whoever only looks may ask of the control plane. It is answered from what the loop published last and from live
//! counters: nothing here waits for the loop, or changes anything.

use crate::control::audit::AuditEntry;
use crate::control::choose;
use crate::control::events::Events;
use crate::control::explain::{self, Asked, Explanation};
use crate::control::export;
use crate::control::keeper::unknown_rollout;
use crate::control::time::Timestamp;
use crate::control::watched::Watched;
use crate::control::why::{self, CountsView, WhyView};
use crate::control::{Control, Refusal};
use crate::shadow::tally::ShadowView;
use crate::track::Track;

impl Control {
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
            None => Err(unknown_rollout(facts, rollout)),
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
            None => Err(unknown_rollout(facts, rollout)),
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
        let Some((index, state)) = found else { return Err(unknown_rollout(facts, rollout)) };
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
        let view = view.ok_or_else(|| unknown_rollout(facts, rollout))?;
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
        facts.rollout(rollout).map(|_| self.0.watching.get(rollout)).ok_or_else(|| unknown_rollout(facts, rollout))
    }

    /// Returns what tells of everything that happens.
    pub fn notices(&self) -> &Events {
        &self.0.notices
    }
}
