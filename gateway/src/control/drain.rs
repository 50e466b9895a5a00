//! Lets requests on old snapshots finish. A *draining* snapshot is no longer current, but requests still read it. It is
//! kept here until the last of them is done, so that it is never a proxy thread that drops it: dropping a snapshot may
//! unmap megabytes of compiled code. The reaper, a thread of its own, drops it.
//!
//! A deadline does not end requests. It is when what is left gets counted and logged; the memory of a snapshot cannot be
//! had back before its last reader is gone.

use std::io;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;
use utoipa::ToSchema;

use crate::control::events::{Draft, Events, Kind};
use crate::control::snapshot::Snapshot;
use crate::metrics::Metrics;

/// How often draining snapshots are looked at, while there are any.
pub const POLL: Duration = Duration::from_millis(50);

/// A snapshot that requests still read, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct DrainingView {
    /// Its generation.
    pub generation: u64,
    /// Requests that read it.
    pub requests: usize,
    /// Whether its deadline has passed.
    pub overdue: bool,
}

/// The draining snapshots.
#[derive(Debug)]
pub struct Drains {
    draining: Vec<Draining>,
    shown: Arc<Mutex<Vec<DrainingView>>>,
    reaper: mpsc::Sender<Arc<Snapshot>>,
    metrics: Arc<Metrics>,
    notices: Events,
}

#[derive(Debug)]
struct Draining {
    snapshot: Arc<Snapshot>,
    since: Instant,
    deadline: Instant,
    overdue: bool,
    /// Whether it was told that requests hold it.
    told: bool,
}

impl Drains {
    /// Starts the reaper. It ends when this is dropped.
    ///
    /// # Errors
    ///
    /// The thread cannot be started.
    pub fn start(metrics: Arc<Metrics>, notices: Events) -> io::Result<Self> {
        let (reaper, doomed) = mpsc::channel::<Arc<Snapshot>>();
        std::thread::Builder::new().name("reaper".to_owned()).spawn(move || {
            for snapshot in doomed {
                drop(snapshot);
            }
        })?;
        Ok(Self { draining: Vec::new(), shown: Arc::default(), reaper, metrics, notices })
    }

    /// Returns what is shown of the draining snapshots; it is kept up to date.
    pub fn shown(&self) -> Arc<Mutex<Vec<DrainingView>>> {
        Arc::clone(&self.shown)
    }

    /// Returns whether nothing is draining.
    pub fn is_empty(&self) -> bool {
        self.draining.is_empty()
    }

    /// Takes a snapshot that is no longer current. Its requests have until `deadline` before they are counted as left.
    pub fn add(&mut self, snapshot: Arc<Snapshot>, deadline: Duration, now: Instant) {
        self.draining.push(Draining { snapshot, since: now, deadline: now + deadline, overdue: false, told: false });
        self.look(now);
    }

    /// Hands to the reaper what nobody reads any more, and counts what is late.
    pub fn look(&mut self, now: Instant) {
        let (metrics, reaper, notices) = (&self.metrics, &self.reaper, &self.notices);
        self.draining.retain_mut(|draining| {
            // Nobody can begin to read it, so a count of one, our own, stays one.
            if draining.snapshot.in_flight() == 0 && Arc::strong_count(&draining.snapshot) == 1 {
                let took = now.saturating_duration_since(draining.since);
                tracing::debug!(
                    generation = draining.snapshot.generation,
                    millis = took.as_millis(),
                    "snapshot drained"
                );
                if draining.told {
                    notices.note_other(notice(&draining.snapshot, "drained"));
                }
                // Fails when the process is about to end; it is dropped then, too.
                drop(reaper.send(Arc::clone(&draining.snapshot)));
                return false;
            }
            // Most are drained before anybody looks a second time, and are not worth a word.
            if !draining.told && now > draining.since {
                draining.told = true;
                notices.note_other(notice(&draining.snapshot, "draining"));
            }
            if !draining.overdue && now >= draining.deadline {
                draining.overdue = true;
                notices.note_other(notice(&draining.snapshot, "overdue"));
                let left = draining.snapshot.in_flight();
                metrics.drain_left.inc_by(left as u64);
                tracing::warn!(
                    generation = draining.snapshot.generation,
                    requests = left,
                    "requests still read an old snapshot after `server.drain`"
                );
            }
            true
        });
        self.show();
    }

    fn show(&self) {
        let shown: Vec<DrainingView> = self
            .draining
            .iter()
            .map(|draining| DrainingView {
                generation: draining.snapshot.generation,
                requests: draining.snapshot.in_flight(),
                overdue: draining.overdue,
            })
            .collect();
        let requests: usize = shown.iter().map(|draining| draining.requests).sum();
        self.metrics.draining_snapshots.set(shown.len().try_into().unwrap_or(i64::MAX));
        self.metrics.draining_requests.set(requests.try_into().unwrap_or(i64::MAX));
        *self.shown.lock() = shown;
    }
}

/// Returns what is told of a snapshot that drains.
fn notice(snapshot: &Snapshot, action: &'static str) -> Draft {
    let subject = format!("generation {}", snapshot.generation);
    let requests = match snapshot.in_flight() {
        0 => "no request reads it any more".to_owned(),
        1 => "1 request reads it".to_owned(),
        requests => format!("{requests} requests read it"),
    };
    let text = format!("{subject}: {action}, {requests}");
    Draft { kind: Kind::Drain, action, subject, text }
}
