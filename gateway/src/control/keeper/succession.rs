//! Who decides: this process begins to, with what another one left, or stops, so that another one can.

use std::sync::Arc;

use super::commit::{blocking, commit, complete, moves_of};
use super::{Asked, Keeper, answer, generation};
use crate::control::reconcile::{entry, reconcile};
use crate::control::time::Timestamp;
use crate::control::watch::Fingerprint;
use crate::control::{Actor, Cause, Refusal, StartError};

impl Keeper {
    /// Makes this process the one that decides.
    pub(super) async fn begin(&mut self) -> Result<(), StartError> {
        if self.deciding {
            return Ok(());
        }
        let store = Arc::clone(&self.tools.store);
        let state_dir = self.loaded.facts.config.server.state_dir.clone();
        let restored = blocking(move || {
            let mut store = store.lock();
            store.lock().map_err(StartError::State)?;
            let restored = store.restore().map_err(StartError::State)?;
            let completed = complete(&state_dir, &restored).map_err(StartError::System);
            completed.inspect_err(|_| store.unlock()).map(|()| restored)
        })
        .await
        .map_err(StartError::System)??;
        if let Some(trouble) = &restored.trouble {
            tracing::error!(%trouble, "the state directory is damaged");
            self.tools.metrics.state_corruptions.inc_by(restored.corrupted);
            self.trouble = Some(trouble.clone());
        }
        let by = Actor::gateway();
        let facts = Arc::clone(&self.loaded.facts);
        let (next, mut entries) = reconcile(&facts, &restored.saved, &by, Timestamp::now());
        entries.insert(0, entry(&by, "take-over", "gateway", "", &generation(self.generation + 1)));
        let moves = moves_of(&entries);
        if let Err(refusal) = commit(&self.tools, &self.audit, &self.notices, &restored.saved, &next, entries).await {
            self.tools.store.lock().unlock();
            return Err(StartError::System(refusal));
        }
        let before = std::mem::replace(&mut self.saved, next);
        self.cases = self.tools.store.lock().evidence();
        self.deciding = true;
        self.swap();
        self.show_metrics(&facts, &before);
        self.count(&moves);
        self.publish();
        self.recover();
        // Files may have changed since they were read; their copies in the store may be missing.
        self.reload(Asked { cause: Cause::Start, by, reply: None });
        Ok(())
    }

    /// Lets another process decide.
    pub(super) fn stop(&mut self) {
        if !self.deciding {
            return;
        }
        self.deciding = false;
        self.watch_files(Fingerprint::default());
        self.tools.store.lock().unlock();
        answer(std::mem::take(&mut self.waiting), &Err(Refusal::HandedOver));
        self.publish();
        tracing::info!("this process no longer decides");
    }
}
