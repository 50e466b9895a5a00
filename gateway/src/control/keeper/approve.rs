//! Lets versions in that may do more than what serves.

use std::sync::Arc;

use super::{Asked, Keeper};
use crate::control::approvals::{Waiting, waiting_canaries};
use crate::control::reconcile::enter;
use crate::control::rollout::{Event, step};
use crate::control::status::ApprovalView;
use crate::control::time::Timestamp;
use crate::control::version::label_of;
use crate::control::{Actor, Cause, Refusal, approvals};

impl Keeper {
    /// Returns all versions that wait.
    fn waiting_versions(&self) -> Vec<Waiting> {
        let canaries = waiting_canaries(&self.loaded.facts, &self.saved);
        self.unapproved.iter().cloned().chain(canaries).collect()
    }

    /// Lets in what waits under a name: canaries begin their rollouts, and a file that was refused is read again.
    pub(super) async fn approve(
        &mut self,
        name: &str,
        version: Option<&str>,
        by: &Actor,
    ) -> Result<Vec<ApprovalView>, Refusal> {
        if !self.deciding {
            return Err(Refusal::HandedOver);
        }
        let waiting = self.waiting_versions();
        let (approved, others): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|waiting| waiting.is_meant(name, version));
        if approved.is_empty() {
            let known = others.iter().map(Waiting::shown).collect();
            return Err(Refusal::NothingWaits { name: name.to_owned(), known });
        }
        let (facts, now) = (Arc::clone(&self.loaded.facts), Timestamp::now());
        let mut next = self.saved.clone();
        let mut entries: Vec<_> = approved.iter().map(|waiting| waiting.let_in(&mut next, by, now)).collect();
        for (index, rollout) in facts.config.rollouts.iter().enumerate() {
            if approvals::unapproved(&facts, &next.approvals, index).is_none()
                && let Some(state) = next.rollouts.get(&*rollout.name)
                && let Ok(moved) = step(state, Event::Approved, now)
                && !moved.1.is_empty()
            {
                enter(&mut next, &mut entries, &rollout.name, moved, by, now);
            }
        }
        self.commit(&next, entries).await?;
        let before = std::mem::replace(&mut self.saved, next);
        self.swap();
        self.show_metrics(&facts, &before);
        let file_waits = approved.iter().any(|approved| approved.rollout.is_none());
        for approved in &approved {
            tracing::info!(subject = approved.subject, version = %label_of(&approved.version), %by, "version approved");
        }
        let views = approved.iter().map(ApprovalView::of).collect();
        self.publish();
        if file_waits {
            self.reload(Asked { cause: Cause::Api, by: by.clone(), reply: None });
        }
        Ok(views)
    }

    /// Brings the gauge of what waits up to date.
    pub(super) fn show_waiting(&self) {
        let waiting = self.waiting_versions();
        let labels = waiting.iter().map(|waiting| (waiting.subject.as_str(), label_of(&waiting.version)));
        self.tools.metrics.show_waiting(labels);
    }
}
