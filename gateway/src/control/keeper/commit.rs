//! Writes a change down: the state, and the audit log. Whoever is told of it is told afterwards.

use std::path::Path;
use std::sync::Arc;

use super::job::Tools;
use crate::control::audit::{Audit, AuditEntry};
use crate::control::events::Events;
use crate::control::rollout::ACTIONS;
use crate::control::state::{Restored, Saved};

/// Writes state and audit log. Where the log cannot be written, the state is put back: nothing happens without a trace.
pub(super) async fn commit(
    tools: &Tools,
    audit: &Audit,
    notices: &Events,
    before: &Saved,
    next: &Saved,
    entries: Vec<AuditEntry>,
) -> Result<(), String> {
    let (store, audit, before, next) = (Arc::clone(&tools.store), audit.clone(), before.clone(), next.clone());
    let notices = notices.clone();
    blocking(move || {
        let mut store = store.lock();
        let changed = next != before;
        if changed {
            store.save(&next, &entries).map_err(|error| error.to_string())?;
        }
        audit.append(&entries).map_err(|error| {
            if changed && let Err(error) = store.save(&before, &[]) {
                tracing::error!(%error, "the state on disk is ahead of the one in force");
            }
            format!("cannot write the audit log: {error}")
        })?;
        if changed {
            store.confirm(&next);
        }
        notices.note(&entries);
        Ok(())
    })
    .await?
}

/// Logs what the process before did not live to log, of the state that it left.
pub(super) fn complete(state_dir: &Path, restored: &Restored) -> Result<(), String> {
    let completed = Audit::new(state_dir).complete(&restored.entries);
    let completed = completed.map_err(|error| format!("cannot write the audit log: {error}"))?;
    if completed > 0 {
        tracing::warn!(
            entries = completed,
            "the process before ended while it logged a change; the audit log has it now"
        );
    }
    Ok(())
}

/// Runs what blocks on a thread that may. The error says that it panicked.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| format!("a job of the control plane failed: {error}"))
}

/// Returns the moves in entries for the audit log, by rollout and action. One that has ended is no move of anybody's.
pub(super) fn moves_of(entries: &[AuditEntry]) -> Vec<(String, String)> {
    let moves = entries.iter().filter(|entry| ACTIONS.contains(&&*entry.action));
    moves.filter_map(|entry| Some((entry.subject.strip_prefix("rollout ")?.to_owned(), entry.action.clone()))).collect()
}
