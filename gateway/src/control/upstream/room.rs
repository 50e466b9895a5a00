//! Room at an upstream: how many requests it is given at a time, and who waits for more. A request that finds no room is
//! *pending*: it stands in a queue, by its age, and is woken when there may be room for it. To be woken is a chance, not a
//! place: whoever finds that somebody was faster goes back to where it stood.
//!
//! As long as nobody waits, requests see two atomics of all this, and without limits nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Instant;

use lockgate_config::model::UpstreamLimits;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::metrics::{Limit, LimitSeries};

/// What an upstream has room for. Outlives snapshots, as its upstream does.
#[derive(Debug)]
pub struct Room {
    limits: UpstreamLimits,
    /// Counted where their number is limited.
    under_way: AtomicU32,
    queue: Mutex<Queue>,
    /// Those in the queue, to be looked at without its lock.
    waiting: AtomicUsize,
    /// Metric handles.
    pub series: LimitSeries,
}

/// Who waits, by age. A number is given to a request when it first waits, and stays its own.
#[derive(Debug, Default)]
struct Queue {
    next: u64,
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A request that has a place, until it is dropped.
#[derive(Debug)]
pub struct Admitted(Option<Arc<Room>>);

/// A request that waits, until it is dropped: whoever gives up leaves the queue by that.
#[derive(Debug)]
pub struct Pending<'a> {
    room: &'a Room,
    ticket: u64,
    woken: oneshot::Receiver<()>,
    /// Whether it has heard that it was woken.
    heard: bool,
    since: Instant,
}

impl Room {
    /// Returns room for requests, of which there are none yet.
    pub fn new(limits: UpstreamLimits, series: LimitSeries) -> Self {
        Self { limits, under_way: AtomicU32::new(0), queue: Mutex::default(), waiting: AtomicUsize::new(0), series }
    }

    /// Returns the limits.
    pub fn limits(&self) -> &UpstreamLimits {
        &self.limits
    }

    /// Returns how many requests wait.
    pub fn pending(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Returns whether the number of requests leaves room for one more.
    pub fn has_place(&self) -> bool {
        self.limits.requests.is_none_or(|max| self.under_way.load(Ordering::SeqCst) < max)
    }

    /// Gives a request a place; none while as many as may be are under way. One atomic operation, without a limit none.
    pub fn admit(self: &Arc<Self>) -> Option<Admitted> {
        let Some(max) = self.limits.requests else { return Some(Admitted(None)) };
        let more = |under_way: u32| (under_way < max).then(|| under_way + 1);
        // Never above the limit, not even for a moment: to take that back would look like a place that became free.
        self.under_way.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).ok()?;
        Some(Admitted(Some(Arc::clone(self))))
    }

    /// Puts a request into the queue: where it stood, if it has waited before. None where as many as may be wait; one that
    /// was `promised` room and did not find it may wait whatever their number.
    ///
    /// Room may have become free since the request looked for it. Whoever joins looks once more, and calls [`Self::wake`]
    /// if there is some: what becomes free later finds it in the queue.
    pub fn join(&self, ticket: Option<u64>, promised: bool) -> Option<Pending<'_>> {
        let mut queue = self.queue.lock();
        if ticket.is_none() && !promised && queue.waiting.len() >= self.limits.pending as usize {
            return None;
        }
        let ticket = ticket.unwrap_or_else(|| {
            queue.next += 1;
            queue.next
        });
        let (wake, woken) = oneshot::channel();
        queue.waiting.insert(ticket, wake);
        self.waiting.store(queue.waiting.len(), Ordering::SeqCst);
        drop(queue);
        self.series.pending.inc();
        Some(Pending { room: self, ticket, woken, heard: false, since: Instant::now() })
    }

    /// Wakes the one that came first, since there may be room. One read where nobody waits.
    pub fn wake(&self) {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut queue = self.queue.lock();
        if let Some((_, wake)) = queue.waiting.pop_first() {
            self.waiting.store(queue.waiting.len(), Ordering::SeqCst);
            // Whoever left the queue by itself is not in it any more, so that there is somebody who hears it.
            let _ = wake.send(());
        }
    }

    /// Wakes everybody, since much may have changed.
    pub fn wake_all(&self) {
        for _ in 0..self.pending() {
            self.wake();
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(room) = &self.0 {
            room.under_way.fetch_sub(1, Ordering::SeqCst);
            room.wake();
        }
    }
}

impl Pending<'_> {
    /// Returns the request's place in the queue, for the next time.
    pub fn ticket(&self) -> u64 {
        self.ticket
    }

    /// Waits until there may be room.
    pub async fn woken(&mut self) {
        // An error would mean that the queue is gone, which outlives those in it.
        let _ = (&mut self.woken).await;
        self.heard = true;
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.room.series.pending.dec();
        self.room.series.waited.observe(self.since.elapsed().as_secs_f64());
        if self.heard {
            return;
        }
        let mut queue = self.room.queue.lock();
        let left = queue.waiting.remove(&self.ticket).is_some();
        self.room.waiting.store(queue.waiting.len(), Ordering::SeqCst);
        drop(queue);
        if !left {
            // It was woken as it gave up: somebody else can have what it was woken for.
            self.room.wake();
        }
    }
}

/// Why a request is not let in now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crowded {
    /// A limit is used up.
    Full(Limit),
    /// There is no endpoint that could be asked.
    Nobody,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::Metrics;

    fn room(requests: u32, pending: u32) -> Arc<Room> {
        let limits = UpstreamLimits {
            requests: Some(requests),
            connections_per_endpoint: None,
            pending,
            pending_timeout: Duration::from_secs(1),
        };
        let metrics = Metrics::new().expect("every family has a name of its own");
        Arc::new(Room::new(limits, metrics.upstream("app").limits.clone()))
    }

    fn is_woken(pending: &mut Pending<'_>) -> bool {
        futures_util::FutureExt::now_or_never(pending.woken()).is_some()
    }

    #[test]
    fn places_become_free_one_by_one() {
        let room = room(2, 0);
        let (one, two) = (room.admit().unwrap(), room.admit().unwrap());
        assert!(room.admit().is_none() && !room.has_place());
        drop(one);
        assert!(room.has_place() && room.admit().is_some());
        drop(two);
        assert_eq!(room.under_way.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn who_came_first_is_woken_first_even_after_another_look() {
        let room = room(1, 9);
        let place = room.admit().unwrap();
        let (mut first, mut second) = (room.join(None, false).unwrap(), room.join(None, false).unwrap());
        drop(place);
        assert!(is_woken(&mut first) && !is_woken(&mut second));
        // Somebody else was faster.
        let ticket = first.ticket();
        drop(first);
        let (place, mut first) = (room.admit().unwrap(), room.join(Some(ticket), false).unwrap());
        drop(place);
        assert!(is_woken(&mut first) && !is_woken(&mut second));
        drop((first, second));
        assert_eq!((room.pending(), room.series.pending.get()), (0, 0));
    }

    #[test]
    fn who_gives_up_as_it_is_woken_wakes_the_next() {
        let room = room(1, 9);
        let place = room.admit().unwrap();
        let (first, mut second) = (room.join(None, false).unwrap(), room.join(None, false).unwrap());
        drop(place);
        drop(first);
        assert!(is_woken(&mut second));
    }

    #[test]
    fn who_gives_up_leaves_its_room_in_the_queue() {
        let room = room(1, 1);
        let first = room.join(None, false).unwrap();
        assert!(room.join(None, false).is_none());
        assert!(room.join(None, true).is_some(), "it was promised room");
        drop(first);
        assert!(room.join(None, false).is_some());
    }
}
