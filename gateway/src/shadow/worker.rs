//! The thread of a shadow: one for each, so that none waits for another's canary. It steps back for all other threads,
//! and for itself when its share of processor time is used up.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use lockgate_config::units::Share;

use crate::control::version::Version;
use crate::shadow::capture::{Capture, Skip};
use crate::shadow::replay::replay;
use crate::shadow::tally::Tally;

/// How far the thread steps back: as far as there is.
const NICENESS: i32 = 19;

/// How far a shadow may be ahead of its share: what one that was idle may use at once.
const AHEAD_MAX: Duration = Duration::from_secs(1);

/// What a shadow's thread and its requests share.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) canary: Arc<Version>,
    pub(super) tally: Arc<Tally>,
    pub(super) budget: Budget,
    /// What waits, in bytes.
    pub(super) waiting_bytes: AtomicUsize,
    /// Nobody needs it any more.
    pub(super) ended: AtomicBool,
}

/// Starts the thread. It ends when the sender is dropped.
///
/// # Errors
/// The operating system has no thread or event queue left.
pub(super) fn start(work: Arc<Work>, waiting_max: usize) -> io::Result<SyncSender<Capture>> {
    let (sender, jobs) = sync_channel(waiting_max);
    // A canary with outbound grants runs on a stack of its own and may sleep, which takes a runtime.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("shadow".to_owned()).spawn(move || {
        let thread = rustix::thread::gettid();
        if let Err(error) = rustix::process::setpriority_process(Some(thread), NICENESS) {
            tracing::debug!(%error, "a shadow's thread keeps its priority");
        }
        run(&work, &jobs, &runtime);
    })?;
    Ok(sender)
}

fn run(work: &Work, jobs: &Receiver<Capture>, runtime: &tokio::runtime::Runtime) {
    while let Ok(capture) = jobs.recv() {
        work.waiting_bytes.fetch_sub(capture.bytes(), Ordering::Relaxed);
        if work.ended.load(Ordering::Relaxed) {
            work.tally.skip(Skip::Ended);
            continue;
        }
        if !work.budget.has_room(Instant::now()) {
            work.tally.skip(Skip::CpuBudget);
            continue;
        }
        let began = thread_time();
        let about = work.tally.about(&capture);
        let outcome = runtime.block_on(replay(work.canary.filter(), capture, work.tally.redactor()));
        match (outcome, about) {
            (Ok(replayed), Some(about)) => work.tally.compared(about, replayed),
            (Ok(_), None) => {}
            (Err(skip), _) => work.tally.skip(skip),
        }
        let used = thread_time().saturating_sub(began);
        work.tally.used(used);
        work.budget.charge(used, Instant::now());
    }
}

/// Returns the processor time that this thread has used.
fn thread_time() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(used).unwrap_or_default()
}

/// Processor time as a share of one core. What is used is paid for with time that passes: a share of 5 % pays 20 s for
/// 1 s.
#[derive(Debug)]
pub(super) struct Budget {
    share: u64,
    began: Instant,
    /// Up to when all that was used is paid for, in ns since it began.
    paid_until_ns: AtomicU64,
}

impl Budget {
    pub(super) fn new(share: Share, now: Instant) -> Self {
        Self { share: u64::from(share.basis_points().max(1)), began: now, paid_until_ns: AtomicU64::new(0) }
    }

    /// Returns whether more may be used. One load: requests ask, too.
    pub(super) fn has_room(&self, now: Instant) -> bool {
        self.paid_until_ns.load(Ordering::Relaxed) <= self.since(now).saturating_add(nanos(AHEAD_MAX))
    }

    /// Charges for what was used. By one thread only.
    pub(super) fn charge(&self, used: Duration, now: Instant) {
        let price = nanos(used).saturating_mul(10_000) / self.share;
        let from = self.paid_until_ns.load(Ordering::Relaxed).max(self.since(now));
        self.paid_until_ns.store(from.saturating_add(price), Ordering::Relaxed);
    }

    fn since(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.began))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_is_used_over_time_is_the_share_and_a_second_ahead() {
        let began = Instant::now();
        let budget = Budget::new(Share::from_basis_points(500).unwrap(), began);
        let mut used = Duration::ZERO;
        for passed in 0..100_000 {
            let now = began + MS * passed;
            if budget.has_room(now) {
                budget.charge(MS, now);
                used += MS;
            }
        }
        // 5 % of 100 s, and 5 % of the second that it may be ahead.
        assert!((Duration::from_millis(4_990)..=Duration::from_millis(5_100)).contains(&used), "{used:?}");
    }

    #[test]
    fn time_in_which_nothing_ran_is_not_saved_up() {
        let began = Instant::now();
        let budget = Budget::new(Share::FULL, began);
        let later = began + Duration::from_secs(3_600);
        budget.charge(Duration::from_millis(1_500), later);
        assert!(!budget.has_room(later));
        assert!(budget.has_room(later + Duration::from_millis(500)));
    }
}
