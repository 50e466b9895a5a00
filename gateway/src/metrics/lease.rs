//! Keeps series for as long as something uses them. Snapshots of different generations share versions and routes, so a
//! *lease* is counted; a set of series is removed when its last lease has been gone for a while, unless it was leased
//! again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Removes one series from its family.
pub(super) type Remove = Box<dyn Fn() + Send + Sync>;

/// Series that live and die together.
pub(super) struct Series {
    key: Key,
    remove: Vec<Remove>,
}

type Key = Vec<String>;

impl Series {
    pub(super) fn new(key: &[&str], remove: Vec<Remove>) -> Self {
        Self { key: key.iter().map(|&part| part.to_owned()).collect(), remove }
    }
}

/// All leases of a registry.
#[derive(Default)]
pub(super) struct Leases(Arc<Mutex<HashMap<Key, Entry>>>);

struct Entry {
    leases: usize,
    remove: Vec<Remove>,
    /// When the last lease ended.
    unused_since: Option<Instant>,
}

/// Keeps a set of series alive.
pub(super) struct Lease {
    key: Key,
    entries: Arc<Mutex<HashMap<Key, Entry>>>,
}

impl std::fmt::Debug for Leases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Leases").field(&self.0.lock().len()).finish()
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Lease").field(&self.key).finish()
    }
}

impl Leases {
    pub(super) fn take(&self, series: Series) -> Lease {
        let mut entries = self.0.lock();
        let entry =
            entries.entry(series.key.clone()).or_insert(Entry { leases: 0, remove: series.remove, unused_since: None });
        entry.leases += 1;
        entry.unused_since = None;
        Lease { key: series.key, entries: Arc::clone(&self.0) }
    }

    /// Removes what has been unused for `linger`, and returns its keys.
    pub(super) fn sweep(&self, now: Instant, linger: Duration) -> Vec<Key> {
        let mut removed = Vec::new();
        self.0.lock().retain(|key, entry| {
            let over = entry.unused_since.is_some_and(|since| now.saturating_duration_since(since) >= linger);
            if over {
                entry.remove.iter().for_each(|remove| remove());
                removed.push(key.clone());
            }
            !over
        });
        removed
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(entry) = self.entries.lock().get_mut(&self.key) {
            entry.leases -= 1;
            if entry.leases == 0 {
                entry.unused_since = Some(Instant::now());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const LINGER: Duration = Duration::from_secs(600);

    fn series(removed: &Arc<AtomicUsize>) -> Series {
        let removed = Arc::clone(removed);
        Series::new(
            &["a"],
            vec![Box::new(move || {
                removed.fetch_add(1, Ordering::Relaxed);
            })],
        )
    }

    #[test]
    fn a_series_lingers_after_its_last_lease() {
        let (leases, removed) = (Leases::default(), Arc::default());
        let (first, second) = (leases.take(series(&removed)), leases.take(series(&removed)));
        drop(first);
        let now = Instant::now();
        assert!(leases.sweep(now + LINGER * 2, LINGER).is_empty());
        drop(second);
        assert!(leases.sweep(Instant::now(), LINGER).is_empty());
        assert_eq!(leases.sweep(Instant::now() + LINGER, LINGER), [["a"]]);
        assert_eq!(removed.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_new_lease_keeps_a_lingering_series() {
        let (leases, removed) = (Leases::default(), Arc::default());
        drop(leases.take(series(&removed)));
        let _again = leases.take(series(&removed));
        assert!(leases.sweep(Instant::now() + LINGER, LINGER).is_empty());
        assert_eq!(removed.load(Ordering::Relaxed), 0);
    }
}
