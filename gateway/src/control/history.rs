//! What a rollout's tracks were like over time, for whoever looks. A *history* is fed with totals, about every second, and
//! keeps their differences in slots: the last five minutes by the second, and everything since its beginning in slots that
//! double their length whenever there would be too many of them. So its size is bounded, however long a rollout takes:
//! [`RECENT_SLOTS`] and [`WHOLE_SLOTS`] of 28 bytes each, less than 30 KiB for each rollout in the configuration.

use std::collections::VecDeque;

use lockgate_config::units::Weight;

use crate::control::time::Timestamp;
use crate::track::Track;

/// Slots of a second.
pub const RECENT_SLOTS: usize = 300;

/// Slots of the whole. Even, since they are folded in pairs; between half and all of them are in use.
pub const WHOLE_SLOTS: usize = 720;

const SECOND_MS: u64 = 1000;

/// What a track has counted since some moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests.
    pub requests: u64,
    /// Those of them of which it is known whether they failed: of one key, a guard counts a few only.
    pub counted: u64,
    /// Those of the counted that failed.
    pub failures: u64,
}

impl Totals {
    /// Returns what was added to `before`. Counters that began anew added what they show.
    fn since(self, before: Self) -> Self {
        if self.requests < before.requests || self.counted < before.counted || self.failures < before.failures {
            return self;
        }
        Self {
            requests: self.requests - before.requests,
            counted: self.counted - before.counted,
            failures: self.failures - before.failures,
        }
    }
}

/// What happened in a span of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    requests: [u32; 2],
    counted: [u32; 2],
    failures: [u32; 2],
    weight: u16,
}

impl Slot {
    /// Returns what a track counted in it.
    pub fn track(&self, track: Track) -> Totals {
        let index = track as usize;
        Totals {
            requests: self.requests[index].into(),
            counted: self.counted[index].into(),
            failures: self.failures[index].into(),
        }
    }

    /// Returns the canary's share at its end, 0 to 1.
    pub fn weight(&self) -> f64 {
        f64::from(self.weight) / 10_000.0
    }

    fn add(&mut self, other: &Self) {
        for index in 0..2 {
            self.requests[index] = self.requests[index].saturating_add(other.requests[index]);
            self.counted[index] = self.counted[index].saturating_add(other.counted[index]);
            self.failures[index] = self.failures[index].saturating_add(other.failures[index]);
        }
        self.weight = other.weight;
    }
}

/// Which part of a history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Span {
    /// The last five minutes.
    #[default]
    Recent,
    /// Since the beginning.
    Whole,
}

/// Slots of one length, the oldest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Slots {
    /// How long each of them is.
    pub seconds: f64,
    /// The last one is not over yet.
    pub slots: Vec<Slot>,
}

impl Slots {
    /// Returns nothing.
    pub const fn none() -> Self {
        Self { seconds: 1.0, slots: Vec::new() }
    }
}

/// How long requests took, by track: counts in buckets of one scheme.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Latency {
    /// In the order of [`Track`].
    pub counts: [Vec<u64>; 2],
    /// Upper bounds of the buckets, in seconds. What is beyond the last one counts in it.
    pub bounds: Vec<f64>,
}

impl Latency {
    /// Returns the requests of a track.
    pub fn total(&self, track: Track) -> u64 {
        self.counts[track as usize].iter().sum()
    }

    /// Returns the upper bound of the bucket that a quantile falls into; none without requests.
    pub fn quantile(&self, track: Track, quantile: f64) -> Option<f64> {
        let counts = &self.counts[track as usize];
        let rank = (self.total(track) as f64 * quantile).ceil().max(1.0);
        let mut sum = 0;
        let found = counts.iter().position(|count| {
            sum += count;
            sum as f64 >= rank
        })?;
        self.bounds.get(found).copied()
    }
}

/// A rollout's tracks over time.
#[derive(Clone, Debug)]
pub struct History {
    began: Timestamp,
    totals: [Totals; 2],
    recent: VecDeque<Slot>,
    /// Seconds since `began` that are not in `recent` any more.
    forgotten: u64,
    whole: Vec<Slot>,
    /// Seconds that a slot of the whole takes.
    length: u64,
}

impl History {
    /// Begins with totals as they are now.
    pub fn new(now: Timestamp, totals: [Totals; 2]) -> Self {
        Self { began: now, totals, recent: VecDeque::new(), forgotten: 0, whole: Vec::new(), length: 1 }
    }

    /// Takes totals as they are now. A clock that was set back does not turn anything over.
    pub fn observe(&mut self, now: Timestamp, totals: [Totals; 2], weight: Weight) {
        let [stable, canary] = [0, 1].map(|index| totals[index].since(self.totals[index]));
        self.totals = totals;
        let narrow = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        let slot = Slot {
            requests: [narrow(stable.requests), narrow(canary.requests)],
            counted: [narrow(stable.counted), narrow(canary.counted)],
            failures: [narrow(stable.failures), narrow(canary.failures)],
            weight: weight.basis_points(),
        };
        // Whoever looks comes a little early or late: half a second off is still the same look.
        let second = (now.millis().saturating_sub(self.began.millis()) + SECOND_MS / 2) / SECOND_MS;
        self.add_recent(second, slot);
        self.add_whole(second, slot);
    }

    fn add_recent(&mut self, second: u64, slot: Slot) {
        let end = self.forgotten + self.recent.len() as u64;
        let missing = (second + 1).saturating_sub(end);
        if missing > RECENT_SLOTS as u64 {
            // Nobody looked for so long that nothing of what is kept is recent.
            self.recent.clear();
            self.forgotten = second;
        }
        let idle = Slot { weight: self.recent.back().map_or(slot.weight, |last| last.weight), ..Slot::default() };
        while self.forgotten + self.recent.len() as u64 <= second {
            self.recent.push_back(idle);
            if self.recent.len() > RECENT_SLOTS {
                self.recent.pop_front();
                self.forgotten += 1;
            }
        }
        if let Some(last) = self.recent.back_mut() {
            last.add(&slot);
        }
    }

    fn add_whole(&mut self, second: u64, slot: Slot) {
        while second / self.length >= WHOLE_SLOTS as u64 {
            self.fold();
        }
        let index = usize::try_from(second / self.length).unwrap_or(0);
        let idle = Slot { weight: self.whole.last().map_or(slot.weight, |last| last.weight), ..Slot::default() };
        while self.whole.len() <= index {
            self.whole.push(idle);
        }
        if let Some(last) = self.whole.last_mut() {
            last.add(&slot);
        }
    }

    fn fold(&mut self) {
        let folded = self.whole.chunks(2).map(|pair| {
            let mut sum = pair[0];
            pair[1..].iter().for_each(|later| sum.add(later));
            sum
        });
        self.whole = folded.collect();
        self.length *= 2;
    }

    /// Returns a part of it.
    pub fn slots(&self, span: Span) -> Slots {
        match span {
            Span::Recent => Slots { seconds: 1.0, slots: self.recent.iter().copied().collect() },
            Span::Whole => Slots { seconds: self.length as f64, slots: self.whole.clone() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + second * SECOND_MS)
    }

    fn totals(requests: u64, failures: u64) -> [Totals; 2] {
        let (counted, nine) = (requests, requests * 9);
        [Totals { requests: nine, counted: nine, failures: 0 }, Totals { requests, counted, failures }]
    }

    fn sum(slots: &Slots, track: Track) -> u64 {
        slots.slots.iter().map(|slot| slot.track(track).requests).sum()
    }

    #[test]
    fn a_slot_has_what_was_added_in_it() {
        let mut history = History::new(at(0), totals(100, 5));
        history.observe(at(0), totals(103, 5), Weight::ZERO);
        history.observe(at(1), totals(110, 7), Weight::ZERO);
        let recent = history.slots(Span::Recent);
        let canary: Vec<Totals> = recent.slots.iter().map(|slot| slot.track(Track::Canary)).collect();
        assert_eq!(
            canary,
            [Totals { requests: 3, counted: 3, failures: 0 }, Totals { requests: 7, counted: 7, failures: 2 }]
        );
        assert_eq!(sum(&recent, Track::Stable), 90);
    }

    #[test]
    fn its_size_is_bounded_and_it_loses_no_request() {
        let mut history = History::new(at(0), totals(0, 0));
        for second in 0..10_000 {
            history.observe(at(second), totals(second + 1, 0), Weight::ZERO);
        }
        let (recent, whole) = (history.slots(Span::Recent), history.slots(Span::Whole));
        assert_eq!((recent.slots.len(), sum(&recent, Track::Canary)), (RECENT_SLOTS, RECENT_SLOTS as u64));
        assert_eq!(whole.seconds, 16.0);
        assert_eq!((whole.slots.len(), sum(&whole, Track::Canary)), (625, 10_000));
    }

    #[test]
    fn time_in_which_nobody_looked_is_there_and_empty() {
        let mut history = History::new(at(0), totals(0, 0));
        history.observe(at(0), totals(1, 0), Weight::ZERO);
        history.observe(at(5), totals(2, 0), Weight::ZERO);
        assert_eq!(history.slots(Span::Recent).slots.len(), 6);
        history.observe(at(1_000_000), totals(3, 0), Weight::ZERO);
        assert_eq!(history.slots(Span::Recent).slots.len(), 1);
        let whole = history.slots(Span::Whole);
        assert!(whole.slots.len() <= WHOLE_SLOTS);
        assert_eq!(sum(&whole, Track::Canary), 3);
    }

    #[test]
    fn a_clock_that_is_set_back_and_counters_that_begin_anew_do_no_harm() {
        let mut history = History::new(at(100), totals(50, 0));
        history.observe(at(101), totals(51, 0), Weight::ZERO);
        history.observe(at(3), totals(52, 0), Weight::ZERO);
        history.observe(at(102), totals(4, 0), Weight::ZERO);
        assert_eq!(sum(&history.slots(Span::Recent), Track::Canary), 6);
        assert_eq!(sum(&history.slots(Span::Whole), Track::Canary), 6);
    }
}
