//! The key-value store of one filter name: values and counters in memory, bounded by bytes, shared by all versions and
//! all requests, lost at a restart.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Parts with a lock each, so that proxy threads seldom meet.
const SHARDS: usize = 16;
/// What an entry costs besides its key and value: without it, a million empty values would be free.
const ENTRY_BYTES: u64 = 64;
/// How often a full store looks for what has expired: the search takes time in proportion to its size.
const SWEEP_INTERVAL_MS: u64 = 100;

#[derive(Debug)]
pub(crate) struct KeyValue {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
    bytes: AtomicU64,
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

    /// Sets `key` to `value`. False, and nothing changed, where the store would hold more than `bytes_max`.
    pub(crate) fn set(&self, key: &str, value: &[u8], ttl: Option<Duration>, now: Instant, bytes_max: u64) -> bool {
        let mut tried = false;
        loop {
            let mut shard = self.shard(key).lock();
            let held = shard.values.get(key).map(|old| old.value.len() as u64);
            let grows = match held {
                Some(held) => (value.len() as u64).saturating_sub(held),
                None => ENTRY_BYTES + (key.len() + value.len()) as u64,
            };
            if self.take(grows, bytes_max) {
                self.bytes.fetch_sub(held.map_or(0, |held| held.saturating_sub(value.len() as u64)), Ordering::Relaxed);
                shard.values.insert(
                    key.into(),
                    Value { value: value.into(), expires: ttl.and_then(|ttl| now.checked_add(ttl)) },
                );
                return true;
            }
            drop(shard);
            if tried || !self.sweep(now) {
                return false;
            }
            tried = true;
        }
    }

    /// Forgets the value of `key`.
    pub(crate) fn delete(&self, key: &str) {
        if let Some(old) = self.shard(key).lock().values.remove(key) {
            self.bytes.fetch_sub(ENTRY_BYTES + (key.len() + old.value.len()) as u64, Ordering::Relaxed);
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
        bytes_max: u64,
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
            if self.take(ENTRY_BYTES + key.len() as u64, bytes_max) {
                shard
                    .counters
                    .insert(key.into(), Value { value: by, expires: ttl.and_then(|ttl| now.checked_add(ttl)) });
                return Some(by);
            }
            drop(shard);
            if tried || !self.sweep(now) {
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

    fn take(&self, bytes: u64, bytes_max: u64) -> bool {
        let fits = |held: u64| held.checked_add(bytes).filter(|&held| held <= bytes_max || bytes == 0);
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
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
            shard.values.retain(|key, value| keep(key, value.value.len(), value.is_alive(now), &mut freed));
            shard.counters.retain(|key, value| keep(key, 0, value.is_alive(now), &mut freed));
            self.bytes.fetch_sub(freed, Ordering::Relaxed);
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

    const SECOND: Option<Duration> = Some(Duration::from_secs(1));

    #[test]
    fn values_and_counters_are_separate_and_expire() {
        let store = KeyValue::default();
        let now = Instant::now();
        assert!(store.set("key", b"value", SECOND, now, 1_000));
        assert_eq!(store.increment("key", 2, SECOND, now, 1_000), Some(2));
        assert_eq!(store.increment("key", 3, None, now, 1_000), Some(5));
        assert_eq!(store.get("key", now).as_deref(), Some(&b"value"[..]));
        let later = now + Duration::from_secs(1);
        assert_eq!(store.get("key", later), None);
        assert_eq!(store.increment("key", 1, SECOND, later, 1_000), Some(1), "counts from its first use again");
        store.delete("key");
        assert_eq!(store.get("key", now), None);
    }

    #[test]
    fn what_does_not_fit_changes_nothing_until_something_expires() {
        let store = KeyValue::default();
        let now = Instant::now();
        assert!(store.set("a", &[0; 100], SECOND, now, 300));
        assert!(!store.set("b", &[0; 100], None, now, 300));
        assert_eq!(store.get("b", now), None);
        assert!(!store.set("a", &[0; 300], None, now, 300));
        assert_eq!(store.get("a", now).map(|value| value.len()), Some(100));
        let later = now + Duration::from_secs(2);
        assert!(store.set("b", &[0; 100], None, later, 300));
        store.delete("b");
        assert_eq!(store.bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn no_increment_is_lost() {
        let store = KeyValue::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        store.increment("hits", 1, None, Instant::now(), 1_000);
                    }
                });
            }
        });
        assert_eq!(store.increment("hits", 0, None, Instant::now(), 1_000), Some(40_000));
        assert_eq!(store.increment("top", i64::MAX, None, Instant::now(), 1_000), Some(i64::MAX));
        assert_eq!(store.increment("top", 1, None, Instant::now(), 1_000), Some(i64::MAX));
    }
}
