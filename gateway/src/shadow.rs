//! Runs a canary in the shadow of stable. A *shadow* is a canary version that serves nobody: on a share of the requests
//! it is given what stable was given, after stable's answer has been sent, and what it decides is compared with what
//! stable decided. Nobody notices it: its effects are its own ([`Effects::Private`](lockgate_host::Effects)), it runs on
//! a thread that steps back for all others, within a share of one core, and what waits for it is bounded.
//!
//! Three parts. The request's half, in `proxy::shadow`, keeps stable's calls of a request as a [`Capture`]. One thread
//! for each shadow replays them (`worker`). A [`Tally`] counts what came of it, for metrics, guard and API; it lives as
//! long as the rollout is about the same two versions, whatever becomes of snapshots.
//!
//! What two versions cannot agree about even where they are the same: time, random numbers, what an instance remembers
//! of earlier requests (`isolation: reused`: a shadow's instance is always fresh), and answers of others, which is why a
//! request on which the canary wanted to send one of its own is not compared at all.

pub mod capture;
pub mod compare;
mod replay;
pub mod tally;
mod worker;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Weak};
use std::time::Instant;

use lockgate_config::units::{ByteSize, Share};
use lockgate_host::{Phase, VersionId};
use parking_lot::Mutex;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::control::version::Version;
use crate::metrics::{Metrics, PHASES, exports};
use capture::{Capture, Skip};
use tally::Tally;
use worker::{Budget, Work};

/// Requests that wait for the shadow's thread; what comes when so many wait is dropped, and counted.
const WAITING_MAX: usize = 256;
/// What they may hold together.
const WAITING_BYTES_MAX: usize = 16 << 20;

/// How a shadow runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Share of the requests that it is tried on.
    pub sample: Share,
    /// Processor time that it may use, as a share of one core.
    pub cpu: Share,
    /// Bytes of bodies that are kept of one request.
    pub body: ByteSize,
}

/// A canary that runs in the shadow of stable, while it does. Snapshots hold it; its thread ends with the last of them.
#[derive(Debug)]
pub struct Shadow {
    options: Options,
    seed: u64,
    work: Arc<Work>,
    /// None where no thread could be made.
    jobs: Option<SyncSender<Capture>>,
}

impl Shadow {
    fn start(tally: Arc<Tally>, canary: Arc<Version>, options: Options) -> Arc<Self> {
        let seed = seed(tally.rollout());
        let budget = Budget::new(options.cpu, Instant::now());
        let (waiting_bytes, ended) = (AtomicUsize::new(0), AtomicBool::new(false));
        let work = Arc::new(Work { canary, tally, budget, waiting_bytes, ended });
        let jobs = match worker::start(Arc::clone(&work), WAITING_MAX) {
            Ok(jobs) => Some(jobs),
            Err(error) => {
                let rollout = work.tally.rollout();
                tracing::error!(%error, rollout, "no thread can be made for the shadow: nothing is compared");
                None
            }
        };
        Arc::new(Self { options, seed, work, jobs })
    }

    /// Returns what it has found so far.
    pub fn tally(&self) -> &Arc<Tally> {
        &self.work.tally
    }

    /// Returns how it runs.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Returns whether the canary takes part in a phase.
    pub fn takes_part(&self, phase: Phase) -> bool {
        exports(self.work.canary.filter(), phase)
    }

    /// Returns whether it is tried on the request of this id. Independent of the split, which hashes users: of each
    /// user's requests about the same share is tried. A request for which there is no processor time left counts as
    /// skipped.
    pub fn samples(&self, id: &str, now: Instant) -> bool {
        let hash = xxh3_64_with_seed(id.as_bytes(), self.seed);
        let place = (u128::from(hash) * 10_000) >> 64;
        if place >= u128::from(self.options.sample.basis_points()) {
            return false;
        }
        let affordable = self.work.budget.has_room(now);
        if !affordable {
            self.work.tally.skip(Skip::CpuBudget);
        }
        affordable
    }

    /// Takes what stable did on a request, to try the canary on the same. Waits for nothing: where the queue is full, it
    /// is dropped, and counted.
    pub fn submit(&self, capture: Capture) {
        let tally = &self.work.tally;
        if let Some(skip) = capture.skipped() {
            tally.skip(skip);
        } else if !capture.is_empty() {
            let bytes = capture.bytes();
            let refused = if self.work.waiting_bytes.fetch_add(bytes, Ordering::Relaxed) > WAITING_BYTES_MAX {
                Skip::QueueFull
            } else {
                match self.jobs.as_ref().map(|jobs| jobs.try_send(capture)) {
                    Some(Ok(())) => return,
                    Some(Err(TrySendError::Full(_))) => Skip::QueueFull,
                    Some(Err(TrySendError::Disconnected(_))) | None => Skip::Ended,
                }
            };
            self.work.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            tally.skip(refused);
        }
    }
}

impl Drop for Shadow {
    /// What still waits is not worth the time.
    fn drop(&mut self) {
        self.work.ended.store(true, Ordering::Relaxed);
    }
}

fn seed(rollout: &str) -> u64 {
    xxh3_64(format!("shadow of {rollout}").as_bytes())
}

/// The shadows of a gateway, and what was found by those that there were.
#[derive(Debug, Default)]
pub struct Shadows(Mutex<BTreeMap<Arc<str>, Entry>>);

#[derive(Debug)]
struct Entry {
    versions: (VersionId, VersionId),
    tally: Arc<Tally>,
    running: Weak<Shadow>,
}

impl Shadows {
    /// Returns the shadow of a rollout: the one that runs, if it is about the same versions and runs in the same way.
    pub fn of(
        &self,
        rollout: &Arc<str>,
        stable: &Arc<Version>,
        canary: &Arc<Version>,
        options: Options,
        metrics: &Metrics,
    ) -> Arc<Shadow> {
        let versions = (*stable.id(), *canary.id());
        let mut entries = self.0.lock();
        let known = entries.get(rollout).filter(|entry| entry.versions == versions);
        if let Some(running) = known.and_then(|entry| entry.running.upgrade())
            && running.options == options
            && Arc::ptr_eq(&running.work.canary, canary)
        {
            return running;
        }
        let tally = match known {
            Some(entry) => Arc::clone(&entry.tally),
            None => Arc::new(Tally::new(
                Arc::clone(rollout),
                [stable, canary].map(|version| Arc::clone(version.label())),
                not_run(stable, canary),
                metrics.shadow(rollout),
            )),
        };
        let shadow = Shadow::start(Arc::clone(&tally), Arc::clone(canary), options);
        let running = Arc::downgrade(&shadow);
        entries.insert(Arc::clone(rollout), Entry { versions, tally, running });
        shadow
    }

    /// Returns what was found by a rollout's shadow: by the one that runs, or the last one.
    pub fn tally(&self, rollout: &str) -> Option<Arc<Tally>> {
        self.0.lock().get(rollout).map(|entry| Arc::clone(&entry.tally))
    }

    /// Forgets the rollouts that are gone.
    pub fn retain(&self, is_there: impl Fn(&str) -> bool) {
        self.0.lock().retain(|rollout, _| is_there(rollout));
    }
}

/// Body phases that only the canary has: nothing was handed to stable that it could be tried on.
fn not_run(stable: &Version, canary: &Version) -> Vec<Phase> {
    let bodies = PHASES.into_iter().filter(|phase| matches!(phase, Phase::OnRequestBody | Phase::OnResponseBody));
    bodies.filter(|phase| exports(canary.filter(), *phase) && !exports(stable.filter(), *phase)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Changing this tries shadows on other requests: harmless, but worth a thought.
    #[test]
    fn a_sample_is_the_same_on_every_build_and_of_its_size() {
        let seed = seed("auth-1.5");
        let place = |id: &str| (u128::from(xxh3_64_with_seed(id.as_bytes(), seed)) * 10_000) >> 64;
        let sampled = (0..10_000).filter(|number| place(&format!("{number:032x}")) < 1_000).count();
        assert!((900..1_100).contains(&sampled), "{sampled}");
    }
}
