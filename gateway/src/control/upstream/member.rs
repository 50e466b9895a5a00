//! An address of an upstream, and what is known about it: requests under way, failures, health. All of it is atomics that
//! requests and checks write side by side; nothing waits for anything.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::connections::{Connections, Gate};

/// Longer ejections than this many times the first do not grow any more.
const EJECTIONS_MAX: u32 = 10;

/// An address that requests can be sent to. Times are milliseconds since its upstream was made.
#[derive(Debug)]
pub struct Member {
    /// Where it is.
    pub address: SocketAddr,
    /// Its share beside the others', 1 to 100.
    pub weight: u32,
    /// The name that it was found by, or its address: what its certificate and a check's `host` header are about.
    pub host: Arc<str>,
    gate: Arc<Gate>,
    in_flight: AtomicU32,
    /// In a row.
    failures: AtomicU32,
    ejected_until_ms: AtomicU64,
    /// Without a success in between.
    ejections: AtomicU32,
    healthy: AtomicBool,
    /// Since when it gets requests (again); 0: from the start.
    back_since_ms: AtomicU64,
}

impl Member {
    /// Returns an address about which nothing bad is known. `since_ms` is when it appeared; 0 for "was always there".
    pub fn new(address: SocketAddr, weight: u32, host: Arc<str>, since_ms: u64, connections: Arc<Connections>) -> Self {
        Self {
            address,
            weight,
            host,
            gate: Arc::new(Gate(connections)),
            in_flight: AtomicU32::new(0),
            failures: AtomicU32::new(0),
            ejected_until_ms: AtomicU64::new(0),
            ejections: AtomicU32::new(0),
            healthy: AtomicBool::new(true),
            back_since_ms: AtomicU64::new(since_ms),
        }
    }

    /// Returns whether it can be given requests.
    pub fn is_usable(&self, now_ms: u64) -> bool {
        self.healthy.load(Ordering::Relaxed) && !self.is_ejected(now_ms)
    }

    /// Returns whether its checks succeed; true without checks.
    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    /// Returns whether it was taken out for its failures.
    pub fn is_ejected(&self, now_ms: u64) -> bool {
        self.ejected_until_ms.load(Ordering::Relaxed) > now_ms
    }

    /// Returns until when it was taken out, the last time; 0 for never.
    pub fn ejected_until_ms(&self) -> u64 {
        self.ejected_until_ms.load(Ordering::Relaxed)
    }

    /// Returns the requests that it is working on.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Returns the connections to it.
    pub fn connections(&self) -> &Arc<Connections> {
        &self.gate.0
    }

    /// Returns what opens connections to it.
    pub fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.gate)
    }

    /// Returns whether it has room for a further request, as far as is known.
    pub fn has_room(&self) -> bool {
        !self.connections().is_full(self.in_flight.load(Ordering::SeqCst))
    }

    /// Returns which part of its share it is given: 1, or less while it starts slowly.
    pub fn warmth(&self, now_ms: u64, slow_start_ms: u64) -> f64 {
        let back = self.back_since_ms.load(Ordering::Relaxed).max(self.ejected_until_ms.load(Ordering::Relaxed));
        let since = now_ms.saturating_sub(back);
        if back == 0 || since >= slow_start_ms {
            return 1.0;
        }
        (since as f64 / slow_start_ms as f64).max(0.1)
    }

    /// Notes a request's success. One read where there was no failure.
    pub fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.ejections.store(0, Ordering::Relaxed);
        }
    }

    /// Notes a request's failure; returns whether there were as many in a row as `limit`.
    pub fn failed(&self, limit: u32) -> bool {
        limit > 0 && self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= limit
    }

    /// Takes it out for a while: longer each time, until a request succeeds. Returns false where it is out already.
    pub fn eject(&self, now_ms: u64, first: Duration) -> bool {
        let until = self.ejected_until_ms.load(Ordering::Relaxed);
        if until > now_ms {
            return false;
        }
        let times = self.ejections.load(Ordering::Relaxed).saturating_add(1).min(EJECTIONS_MAX);
        let span = u64::try_from(first.as_millis()).unwrap_or(u64::MAX).saturating_mul(u64::from(times));
        let mine = self.ejected_until_ms.compare_exchange(
            until,
            now_ms.saturating_add(span),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        if mine.is_ok() {
            self.ejections.store(times, Ordering::Relaxed);
            // Back again, it has as many chances as before.
            self.failures.store(0, Ordering::Relaxed);
        }
        mine.is_ok()
    }

    /// Notes what its checks say. Returns whether that is new.
    pub fn set_healthy(&self, healthy: bool, now_ms: u64) -> bool {
        let before = self.healthy.swap(healthy, Ordering::Relaxed);
        if healthy && !before {
            self.back_since_ms.store(now_ms.max(1), Ordering::Relaxed);
        }
        before != healthy
    }
}

/// A request that a member is working on.
#[derive(Debug)]
pub struct InFlight {
    member: Arc<Member>,
    /// When it began, as the member's connections count.
    moment: u64,
    /// Whether its end makes room for another one.
    makes_room: bool,
}

impl InFlight {
    /// Counts a request until the value is dropped.
    pub fn begin(member: Arc<Member>) -> Self {
        member.in_flight.fetch_add(1, Ordering::SeqCst);
        Self { moment: member.connections().moment(), member, makes_room: true }
    }

    /// Returns the member.
    pub fn member(&self) -> &Member {
        &self.member
    }

    /// Notes that there was no connection for it, nor room for another one.
    pub fn turn_back(mut self) {
        self.member.connections().found_full(self.moment);
        self.makes_room = false;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.member.in_flight.fetch_sub(1, Ordering::SeqCst);
        if self.makes_room {
            self.member.connections().changed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member() -> Member {
        Member::new("127.0.0.1:1".parse().unwrap(), 1, "127.0.0.1".into(), 0, Connections::of_a_test(None))
    }

    #[test]
    fn only_failures_in_a_row_count() {
        let member = member();
        assert!(!member.failed(2));
        member.succeeded();
        assert!(!member.failed(2));
        assert!(member.failed(2));
        assert!(!member.failed(0), "a limit of zero means never");
    }

    #[test]
    fn each_ejection_is_longer_than_the_last_until_a_request_succeeds() {
        let member = member();
        let second = Duration::from_secs(1);
        assert!(member.eject(100, second));
        assert!(!member.eject(500, second), "it is out already");
        assert!(member.is_ejected(1_099) && !member.is_ejected(1_100));
        assert!(member.eject(2_000, second));
        assert!(member.is_ejected(3_999) && !member.is_ejected(4_000));
        assert!(!member.failed(5));
        member.succeeded();
        assert!(member.eject(5_000, second));
        assert!(!member.is_ejected(6_000));
    }

    #[test]
    fn one_that_came_back_warms_up() {
        let member = member();
        assert_eq!(member.warmth(0, 1_000), 1.0);
        member.set_healthy(false, 100);
        assert!(!member.is_usable(100));
        assert!(member.set_healthy(true, 1_000));
        assert_eq!(member.warmth(1_000, 1_000), 0.1);
        assert_eq!(member.warmth(1_500, 1_000), 0.5);
        assert_eq!(member.warmth(2_000, 1_000), 1.0);
    }

    #[test]
    fn a_request_is_counted_until_it_is_dropped() {
        let member = Arc::new(member());
        let one = InFlight::begin(Arc::clone(&member));
        assert_eq!((member.in_flight(), one.member().address), (1, member.address));
        drop(one);
        assert_eq!(member.in_flight(), 0);
    }

    #[test]
    fn who_is_turned_back_makes_no_room_and_whoever_ends_does() {
        let connections = Connections::of_a_test(Some(2));
        let member = Member::new("127.0.0.1:1".parse().unwrap(), 1, "127.0.0.1".into(), 0, connections);
        let member = Arc::new(member);
        let (one, two) = (InFlight::begin(Arc::clone(&member)), InFlight::begin(Arc::clone(&member)));
        two.turn_back();
        assert!(!member.has_room(), "one is under way, and there was none for the second");
        drop(one);
        assert!(member.has_room());
    }
}
