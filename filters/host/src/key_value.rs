//! The key-value store of one filter name: values and counters in memory, bounded by bytes, shared by all versions and
//! all requests, lost at a restart.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::store::{ENTRY_BYTES, Quota};

/// Parts with a lock each, so that proxy threads seldom meet.
const SHARDS: usize = 16;
/// How often a full store looks for what has expired: the search takes time in proportion to its size.
const SWEEP_INTERVAL_MS: u64 = 100;

#[derive(Debug)]
pub(crate) struct KeyValue {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
    bytes: AtomicU64,
    entries: AtomicU64,
    /// Writes that did not fit.
    refused: AtomicU64,
    began: Instant,
    swept_ms: AtomicU64,
}

#[derive(Debug, Default)]
struct Shard {
    values: HashMap<Box<str>, Value<Box<[u8]>>>,
    counters: HashMap<Box<str>, Value<i64>>,
}

#[derive(Debug)]
struct Value<V> {
    value: V,
    expires: Option<Instant>,
}

impl<V> Value<V> {
    fn is_alive(&self, now: Instant) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }
}

impl Default for KeyValue {
    fn default() -> Self {
        Self {
            shards: Default::default(),
            hasher: RandomState::new(),
            bytes: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            began: Instant::now(),
            swept_ms: AtomicU64::new(0),
        }
    }
}

impl KeyValue {
    /// Returns the value of `key`.
    pub(crate) fn get(&self, key: &str, now: Instant) -> Option<Vec<u8>> {
        let shard = self.shard(key).lock();
        shard.values.get(key).filter(|value| value.is_alive(now)).map(|value| value.value.to_vec())
    }

    /// Sets `key` to `value`. False, and nothing changed, where the store would hold more than its quota.
    pub(crate) fn set(&self, key: &str, value: &[u8], ttl: Option<Duration>, now: Instant, quota: Quota) -> bool {
        let mut tried = false;
        loop {
            let mut shard = self.shard(key).lock();
            let held = shard.values.get(key).map(|old| old.value.len() as u64);
            let grows = match held {
                Some(held) => (value.len() as u64).saturating_sub(held),
                None => ENTRY_BYTES + (key.len() + value.len()) as u64,
            };
            if self.take(grows, held.is_none(), quota) {
                self.bytes.fetch_sub(held.map_or(0, |held| held.saturating_sub(value.len() as u64)), Ordering::Relaxed);
                shard.values.insert(
                    key.into(),
                    Value { value: value.into(), expires: ttl.and_then(|ttl| now.checked_add(ttl)) },
                );
                return true;
            }
            drop(shard);
            if tried || !self.sweep(now) {
                self.refused.fetch_add(1, Ordering::Relaxed);
                return false;
            }
            tried = true;
        }
    }

    /// Forgets the value of `key`.
    pub(crate) fn delete(&self, key: &str) {
        if let Some(old) = self.shard(key).lock().values.remove(key) {
            self.bytes.fetch_sub(ENTRY_BYTES + (key.len() + old.value.len()) as u64, Ordering::Relaxed);
            self.entries.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Adds `by` to the counter `key` and returns what it is then. None where a new counter does not fit. It stops at
    /// the ends of its range rather than wrap.
    pub(crate) fn increment(
        &self,
        key: &str,
        by: i64,
        ttl: Option<Duration>,
        now: Instant,
        quota: Quota,
    ) -> Option<i64> {
        let mut tried = false;
        loop {
            let mut shard = self.shard(key).lock();
            if let Some(counter) = shard.counters.get_mut(key) {
                if !counter.is_alive(now) {
                    *counter = Value { value: 0, expires: ttl.and_then(|ttl| now.checked_add(ttl)) };
                }
                counter.value = counter.value.saturating_add(by);
                return Some(counter.value);
            }
            if self.take(ENTRY_BYTES + key.len() as u64, true, quota) {
                shard
                    .counters
                    .insert(key.into(), Value { value: by, expires: ttl.and_then(|ttl| now.checked_add(ttl)) });
                return Some(by);
            }
            drop(shard);
            if tried || !self.sweep(now) {
                self.refused.fetch_add(1, Ordering::Relaxed);
                return None;
            }
            tried = true;
        }
    }

    /// Returns the counter `key`, if there is one.
    pub(crate) fn counter(&self, key: &str, now: Instant) -> Option<i64> {
        let shard = self.shard(key).lock();
        shard.counters.get(key).filter(|counter| counter.is_alive(now)).map(|counter| counter.value)
    }

    fn shard(&self, key: &str) -> &Mutex<Shard> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    /// Returns bytes and entries that it holds, and how many writes did not fit.
    pub(crate) fn size(&self) -> (u64, u64, u64) {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (read(&self.bytes), read(&self.entries), read(&self.refused))
    }

    fn take(&self, bytes: u64, new: bool, quota: Quota) -> bool {
        let room = |held: u64, more: u64, max: u64| held.checked_add(more).filter(|&held| held <= max || more == 0);
        let take = |from: &AtomicU64, more: u64, max: u64| {
            from.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| room(held, more, max)).is_ok()
        };
        if !take(&self.entries, u64::from(new), quota.entries) {
            return false;
        }
        let fits = take(&self.bytes, bytes, quota.bytes);
        if !fits {
            self.entries.fetch_sub(u64::from(new), Ordering::Relaxed);
        }
        fits
    }

    /// Drops what has expired. False where that was done a moment ago.
    fn sweep(&self, now: Instant) -> bool {
        // Counted from one interval before the store began, so that the first sweep is not refused.
        let now_ms = now.saturating_duration_since(self.began).as_millis() as u64 + SWEEP_INTERVAL_MS;
        let due = |swept: u64| (now_ms >= swept + SWEEP_INTERVAL_MS).then_some(now_ms);
        if self.swept_ms.fetch_update(Ordering::Relaxed, Ordering::Relaxed, due).is_err() {
            return false;
        }
        for shard in &self.shards {
            let mut shard = shard.lock();
            let mut freed = 0;
            let held = shard.values.len() + shard.counters.len();
            shard.values.retain(|key, value| keep(key, value.value.len(), value.is_alive(now), &mut freed));
            shard.counters.retain(|key, value| keep(key, 0, value.is_alive(now), &mut freed));
            let left = shard.values.len() + shard.counters.len();
            self.bytes.fetch_sub(freed, Ordering::Relaxed);
            self.entries.fetch_sub((held - left) as u64, Ordering::Relaxed);
        }
        true
    }
}

fn keep(key: &str, value_bytes: usize, alive: bool, freed: &mut u64) -> bool {
    if !alive {
        *freed += ENTRY_BYTES + (key.len() + value_bytes) as u64;
    }
    alive
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Quota = Quota { bytes: 1_000, entries: 10 };
    const TIGHT: Quota = Quota { bytes: 300, entries: 10 };
    const SECOND: Option<Duration> = Some(Duration::from_secs(1));

    #[test]
    fn values_and_counters_are_separate_and_expire() {
        let store = KeyValue::default();
        let now = Instant::now();
        assert!(store.set("key", b"value", SECOND, now, ROOM));
        assert_eq!(store.increment("key", 2, SECOND, now, ROOM), Some(2));
        assert_eq!(store.increment("key", 3, None, now, ROOM), Some(5));
        assert_eq!(store.get("key", now).as_deref(), Some(&b"value"[..]));
        let later = now + Duration::from_secs(1);
        assert_eq!(store.get("key", later), None);
        assert_eq!(store.increment("key", 1, SECOND, later, ROOM), Some(1), "counts from its first use again");
        store.delete("key");
        assert_eq!(store.get("key", now), None);
    }

    #[test]
    fn what_does_not_fit_changes_nothing_until_something_expires() {
        let store = KeyValue::default();
        let now = Instant::now();
        assert!(store.set("a", &[0; 100], SECOND, now, TIGHT));
        assert!(!store.set("b", &[0; 100], None, now, TIGHT));
        assert_eq!(store.get("b", now), None);
        assert!(!store.set("a", &[0; 300], None, now, TIGHT));
        assert_eq!(store.get("a", now).map(|value| value.len()), Some(100));
        let later = now + Duration::from_secs(2);
        assert!(store.set("b", &[0; 100], None, later, TIGHT));
        store.delete("b");
        assert_eq!(store.size(), (0, 0, 2));
    }

    #[test]
    fn no_more_entries_are_made_than_may_be_and_those_that_are_there_can_be_changed() {
        let store = KeyValue::default();
        let now = Instant::now();
        let two = Quota { entries: 2, ..ROOM };
        assert!(store.set("a", b"1", SECOND, now, two));
        assert_eq!(store.increment("b", 1, None, now, two), Some(1));
        assert!(!store.set("c", b"1", None, now, two));
        assert_eq!(store.increment("c", 1, None, now, two), None);
        assert!(store.set("a", b"longer", SECOND, now, two));
        assert_eq!(store.increment("b", 1, None, now, two), Some(2));
        let later = now + Duration::from_secs(2);
        assert!(store.set("c", b"1", None, later, two), "one has expired");
        assert_eq!(store.size().1, 2);
    }

    #[test]
    fn no_increment_is_lost() {
        let store = KeyValue::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        store.increment("hits", 1, None, Instant::now(), ROOM);
                    }
                });
            }
        });
        assert_eq!(store.increment("hits", 0, None, Instant::now(), ROOM), Some(40_000));
        assert_eq!(store.increment("top", i64::MAX, None, Instant::now(), ROOM), Some(i64::MAX));
        assert_eq!(store.increment("top", 1, None, Instant::now(), ROOM), Some(i64::MAX));
    }
}
