//! Counts what the guard of a rollout watches: of each request that is over, once for each rollout that it could meet, on
//! the track that it was on. Atomics only; the control plane reads them each second.
//!
//! Only requests that were split by a key are counted, so that both tracks have the same kind of users: not those that
//! asked for their track, nor those that had no key and so could not but be stable's. Of one key only a few requests count
//! in a while, whichever track it is on: one client that tries again and again neither takes a canary back nor hides what
//! is wrong with it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lockgate_config::model::FailureKind;
use lockgate_judge::{Cap, latency};

use crate::control::snapshot::Target;
use crate::metrics::{FUNCTION_OUTCOMES, OUTCOMES};
use crate::proxy::chain::Step;
use crate::proxy::context::Context;
use crate::proxy::fault;
use crate::track::Track;

/// How long a key's requests are counted together.
pub const WINDOW: Duration = Duration::from_secs(10);

/// Requests of one key that count within a window. One: the judge takes requests for independent, and those that one client
/// sends in a burst are not.
pub const PER_KEY: u32 = 1;

/// Slots for keys: a quarter of a MiB for each rollout with a guard. With more keys in a window some share a slot, and
/// count a little less.
const SLOTS: usize = 1 << 15;

/// Calls take microseconds, which is what the buckets begin with: they are counted in these instead.
pub const CALL_UNIT: Duration = Duration::from_nanos(16);

/// Memory is counted in these.
pub const MEMORY_UNIT_BYTES: u64 = 1 << 10;

const RESPOND: &str = OUTCOMES[1];
const FAIL: &str = OUTCOMES[2];
const ANSWERED: &str = FUNCTION_OUTCOMES[0];
const FAILED: &str = FUNCTION_OUTCOMES[1];

/// The counts of one rollout, for as long as it is about the same versions.
#[derive(Debug)]
pub struct Counts {
    tracks: [OnTrack; 2],
    failures: Failures,
    cap: Cap,
    began: Instant,
}

#[derive(Debug)]
struct OnTrack {
    requests: AtomicU64,
    failures: AtomicU64,
    denials: AtomicU64,
    call_failures: AtomicU64,
    latency: Histogram,
    call_duration: Histogram,
    call_memory: Histogram,
}

#[derive(Debug)]
struct Histogram(Box<[AtomicU64]>);

/// What was counted on one track. Everything but histograms that are empty only grows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests.
    pub requests: u64,
    /// Those that failed, as the guard has it.
    pub failures: u64,
    /// Those that the filter or function itself answered with a 4xx.
    pub denials: u64,
    /// Those with a failed call of the filter or function.
    pub call_failures: u64,
    /// By bucket of microseconds.
    pub latency: Vec<u64>,
    /// By bucket of [`CALL_UNIT`].
    pub call_duration: Vec<u64>,
    /// By bucket of [`MEMORY_UNIT_BYTES`].
    pub call_memory: Vec<u64>,
}

/// What counts as a failure, ready to be asked.
#[derive(Debug, Default)]
struct Failures {
    gateway_errors: bool,
    upstream_5xx: bool,
    filter_failures: bool,
    /// A bit for each status below 640.
    statuses: [u64; 10],
}

/// How a request ended.
#[derive(Clone, Copy, Debug)]
struct Ended {
    status: u16,
    gateway_error: bool,
    upstream_5xx: bool,
    filter_failed: bool,
    duration: Duration,
}

/// What the version that a rollout moves did itself, as far as it was asked at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Own {
    denied: bool,
    failed: bool,
    spent: Duration,
    memory_bytes: u64,
}

impl Own {
    /// Of a filter, over all its calls for a request that was answered with this status.
    fn of_filter<'a>(calls: impl Iterator<Item = &'a Step>, status: u16) -> Self {
        calls.fold(Self::default(), |own, step| Self {
            denied: own.denied || (step.outcome == Some(RESPOND) && (400..500).contains(&status)),
            failed: own.failed || step.outcome == Some(FAIL),
            spent: own.spent + step.spent,
            memory_bytes: own.memory_bytes.max(step.memory_bytes),
        })
    }

    /// Of a function that answered with this status. Its time is that for which it kept a thread: what it waits for is
    /// the time of clients and upstreams. Its memory is not known.
    fn of_function(outcome: Option<&str>, status: u16, busy: Duration) -> Self {
        Self {
            denied: outcome == Some(ANSWERED) && (400..500).contains(&status),
            failed: outcome == Some(FAILED),
            spent: busy,
            memory_bytes: 0,
        }
    }
}

impl Histogram {
    fn new() -> Self {
        Self(std::iter::repeat_with(AtomicU64::default).take(latency::BUCKETS).collect())
    }

    fn add(&self, value: u64) {
        if let Some(count) = self.0.get(latency::bucket(value)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn read(&self) -> Vec<u64> {
        self.0.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }
}

impl Failures {
    fn of(kinds: &[FailureKind]) -> Self {
        let mut failures = Self::default();
        for kind in kinds {
            match *kind {
                FailureKind::GatewayErrors => failures.gateway_errors = true,
                FailureKind::Upstream5xx => failures.upstream_5xx = true,
                FailureKind::FilterFailures => failures.filter_failures = true,
                FailureKind::Status(status) => failures.add(status),
                FailureKind::Class(class) => (0..100).for_each(|status| failures.add(u16::from(class) * 100 + status)),
            }
        }
        failures
    }

    fn add(&mut self, status: u16) {
        if let Some(bits) = self.statuses.get_mut(usize::from(status / 64)) {
            *bits |= 1 << (status % 64);
        }
    }

    fn include(&self, ended: &Ended) -> bool {
        let status =
            self.statuses.get(usize::from(ended.status / 64)).is_some_and(|bits| bits >> (ended.status % 64) & 1 == 1);
        status
            || (self.gateway_errors && ended.gateway_error)
            || (self.upstream_5xx && ended.upstream_5xx)
            || (self.filter_failures && ended.filter_failed)
    }
}

impl Counts {
    /// Returns counts of nothing yet.
    pub fn new(failures: &[FailureKind]) -> Self {
        let on_track = || OnTrack {
            requests: AtomicU64::default(),
            failures: AtomicU64::default(),
            denials: AtomicU64::default(),
            call_failures: AtomicU64::default(),
            latency: Histogram::new(),
            call_duration: Histogram::new(),
            call_memory: Histogram::new(),
        };
        Self {
            tracks: [on_track(), on_track()],
            failures: Failures::of(failures),
            cap: Cap::new(SLOTS, PER_KEY),
            began: Instant::now(),
        }
    }

    /// Returns whether a request with this key, which began now, is to be counted when it is over.
    pub fn admit(&self, key: u64, now: Instant) -> bool {
        let window = now.saturating_duration_since(self.began).as_secs() / WINDOW.as_secs();
        // Numbers may wrap: two windows that meet again are a thousand years apart.
        self.cap.admit(key, window as u32)
    }

    fn record(&self, track: Track, ended: &Ended, own: Own) {
        let on = &self.tracks[track as usize];
        on.requests.fetch_add(1, Ordering::Relaxed);
        if self.failures.include(ended) {
            on.failures.fetch_add(1, Ordering::Relaxed);
        }
        on.latency.add(u64::try_from(ended.duration.as_micros()).unwrap_or(u64::MAX));
        if own.denied {
            on.denials.fetch_add(1, Ordering::Relaxed);
        }
        if own.failed {
            on.call_failures.fetch_add(1, Ordering::Relaxed);
        }
        if !own.spent.is_zero() {
            on.call_duration.add(u64::try_from(own.spent.as_nanos() / CALL_UNIT.as_nanos()).unwrap_or(u64::MAX));
        }
        if own.memory_bytes > 0 {
            on.call_memory.add(own.memory_bytes / MEMORY_UNIT_BYTES);
        }
    }

    /// Returns what was counted on a track since [`Self::new`].
    pub fn read(&self, track: Track) -> Totals {
        let on = &self.tracks[track as usize];
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        // What happened to requests before the requests themselves: a request between the two is one that went well, not a
        // failure of none.
        let (failures, denials, call_failures) = (read(&on.failures), read(&on.denials), read(&on.call_failures));
        Totals {
            failures,
            denials,
            call_failures,
            requests: read(&on.requests),
            latency: on.latency.read(),
            call_duration: on.call_duration.read(),
            call_memory: on.call_memory.read(),
        }
    }
}

/// Counts a request that is over. Called once for each, when its filters have given their instances back.
pub fn count(context: &Context, status: u16, duration: Duration) {
    let Some(route) = context.route().filter(|_| !context.counted.is_empty()) else { return };
    let steps = context.chain.steps();
    let ended = Ended {
        status,
        gateway_error: context.fault.is_some_and(|fault| fault.source() != fault::Source::Downstream),
        upstream_5xx: context.attempt.as_ref().is_some_and(|attempt| attempt.status / 100 == 5),
        filter_failed: steps
            .iter()
            .chain(context.middleware.iter().map(|(_, step)| step))
            .any(|step| step.outcome == Some(FAIL)),
        duration,
    };
    for (slot, rollout) in (0_u8..).zip(&*route.rollouts) {
        let rollout = context.snapshot.rollouts.get(*rollout).filter(|_| context.counted.contains(slot));
        let Some(counts) = rollout.and_then(|rollout| rollout.counts.as_ref()) else { continue };
        let track = if context.tracks.is_canary(slot) { Track::Canary } else { Track::Stable };
        let own = match (&route.target, &context.answering) {
            (Target::Function(versions), Some(answering)) if versions.slot() == Some(slot) => {
                Own::of_function(answering.outcome, answering.status, answering.busy)
            }
            _ => {
                let moved = route.chain.iter().zip(steps).filter(|(link, _)| link.versions.slot() == Some(slot));
                let middleware = context.middleware.iter();
                let middleware = middleware.filter(|(index, _)| {
                    route.middleware.get(*index).is_some_and(|link| link.versions.slot() == Some(slot))
                });
                Own::of_filter(moved.map(|(_, step)| step).chain(middleware.map(|(_, step)| step)), status)
            }
        };
        counts.record(track, &ended, own);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Ended = Ended {
        status: 200,
        gateway_error: false,
        upstream_5xx: false,
        filter_failed: false,
        duration: Duration::from_millis(2),
    };

    fn step(outcome: &'static str) -> Step {
        let mut step = Step::default();
        step.outcome = Some(outcome);
        step.spent = Duration::from_micros(8);
        step.memory_bytes = 3 << 16;
        step
    }

    #[test]
    fn what_counts_as_a_failure_is_what_the_guard_says() {
        let default = Failures::of(&FailureKind::DEFAULT);
        assert!(!default.include(&WELL) && !default.include(&Ended { status: 429, ..WELL }));
        assert!(default.include(&Ended { status: 500, ..WELL }) && default.include(&Ended { status: 599, ..WELL }));
        assert!(default.include(&Ended { gateway_error: true, ..WELL }));
        // A filter that is `open`, and one that hides what the upstream said.
        assert!(default.include(&Ended { filter_failed: true, ..WELL }));
        assert!(default.include(&Ended { upstream_5xx: true, ..WELL }));
        let one = Failures::of(&[FailureKind::Status(429)]);
        assert!(one.include(&Ended { status: 429, ..WELL }) && !one.include(&Ended { status: 503, ..WELL }));
    }

    #[test]
    fn a_request_counts_on_its_track_only() {
        let counts = Counts::new(&FailureKind::DEFAULT);
        counts.record(Track::Canary, &Ended { status: 403, ..WELL }, Own::of_filter([step(RESPOND)].iter(), 403));
        counts.record(Track::Canary, &Ended { filter_failed: true, ..WELL }, Own::of_filter([step(FAIL)].iter(), 503));
        let canary = counts.read(Track::Canary);
        assert_eq!((canary.requests, canary.failures, canary.denials, canary.call_failures), (2, 1, 1, 1));
        assert_eq!(canary.latency[latency::bucket(2_000)], 2);
        assert_eq!(canary.call_duration[latency::bucket(500)], 2);
        assert_eq!(canary.call_memory[latency::bucket(192)], 2);
        assert_eq!(counts.read(Track::Stable).requests, 0);
    }

    #[test]
    fn an_answer_of_an_upstream_is_no_denial_of_the_filter() {
        assert!(!Own::of_filter([step("continue")].iter(), 404).denied);
    }

    #[test]
    fn of_a_function_its_own_answers_and_failures_count_and_the_time_that_it_was_busy() {
        let busy = Duration::from_micros(8);
        let of = |outcome, status| Own::of_function(outcome, status, busy);
        assert_eq!(of(Some(ANSWERED), 200), Own { spent: busy, ..Own::default() });
        assert_eq!(of(Some(ANSWERED), 403), Own { denied: true, spent: busy, ..Own::default() });
        // It had begun an answer, and did not end it.
        assert_eq!(of(Some(FAILED), 404), Own { failed: true, spent: busy, ..Own::default() });
        // The client was gone first.
        assert_eq!(of(None, 404), Own { spent: busy, ..Own::default() });
    }

    #[test]
    fn of_one_key_a_few_requests_count_in_a_while() {
        let counts = Counts::new(&[]);
        let admitted = |key, after| (0..100).filter(|_| counts.admit(key, counts.began + after)).count();
        assert_eq!(admitted(7, Duration::ZERO), PER_KEY as usize);
        assert_eq!(admitted(8, Duration::ZERO), PER_KEY as usize);
        assert_eq!(admitted(7, WINDOW), PER_KEY as usize);
    }
}
