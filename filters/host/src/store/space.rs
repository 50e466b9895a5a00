//! A *space*: the part of the store that belongs to a name.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::{Operation, Quota, Reply, SpaceUse, Store, StoreError};

/// The name under which somebody is granted the space of its own.
const OWN: &str = "default";
/// A size that is not known.
const UNKNOWN: u64 = u64::MAX;

/// A space. Cloning shares it.
#[derive(Debug, Clone)]
pub(crate) struct Space {
    store: Store,
    name: Arc<str>,
    seen: Arc<Seen>,
}

/// What is known of a space.
#[derive(Debug)]
struct Seen {
    bytes: AtomicU64,
    entries: AtomicU64,
    refused: AtomicU64,
}

impl Default for Seen {
    fn default() -> Self {
        Self { bytes: AtomicU64::new(UNKNOWN), entries: AtomicU64::new(UNKNOWN), refused: AtomicU64::new(0) }
    }
}

/// The spaces that something loaded may write to.
#[derive(Debug)]
pub(crate) struct Spaces {
    store: Store,
    known: Mutex<HashMap<Arc<str>, Weak<Seen>>>,
}

impl Spaces {
    pub(crate) fn new(store: Store) -> Self {
        Self { store, known: Mutex::default() }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Returns the space that a filter or function has by a name that it is granted. `kind` is `filter` or `function`.
    pub(crate) fn granted(&self, kind: &str, owner: &str, name: &str) -> Space {
        let name: Arc<str> = if name == OWN { format!("{kind}/{owner}") } else { format!("shared/{name}") }.into();
        let mut known = self.known.lock();
        let seen = known.get(&name).and_then(Weak::upgrade).unwrap_or_else(|| {
            known.retain(|_, seen| seen.strong_count() > 0);
            let seen = Arc::default();
            known.insert(Arc::clone(&name), Arc::downgrade(&seen));
            seen
        });
        Space { store: self.store.clone(), name, seen }
    }

    /// Returns the spaces that something loaded has, in the order of their names.
    fn alive(&self) -> Vec<Space> {
        let known = self.known.lock();
        let alive = known.iter().filter_map(|(name, seen)| {
            Some(Space { store: self.store.clone(), name: Arc::clone(name), seen: seen.upgrade()? })
        });
        let mut alive: Vec<_> = alive.collect();
        alive.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        alive
    }

    /// Asks the store for the sizes of its spaces, for at most that long. Those that it does not tell stay as they were.
    pub(crate) async fn measure(&self, patience: Duration) {
        if !self.store.is_there() {
            return;
        }
        let measuring = async {
            for space in self.alive() {
                let Ok(Reply::Use { bytes, entries }) = space.run(Operation::Measure).await else {
                    return;
                };
                space.seen.bytes.store(bytes, Ordering::Relaxed);
                space.seen.entries.store(entries, Ordering::Relaxed);
            }
        };
        // What was not told in time is told the next time.
        let _ = tokio::time::timeout(patience, measuring).await;
    }

    /// Returns what is known of the spaces.
    pub(crate) fn sizes(&self) -> Vec<SpaceUse> {
        let of = |space: Space| {
            let read = |count: &AtomicU64| Some(count.load(Ordering::Relaxed)).filter(|count| *count != UNKNOWN);
            SpaceUse {
                space: space.name.to_string(),
                in_memory: false,
                size: read(&space.seen.bytes).zip(read(&space.seen.entries)),
                refused: space.seen.refused.load(Ordering::Relaxed),
            }
        };
        self.alive().into_iter().map(of).collect()
    }
}

impl Space {
    pub(crate) async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.get_many(vec![key.into()]).await?.pop().flatten())
    }

    /// Returns the values of keys, in their order.
    pub(crate) async fn get_many(&self, keys: Vec<Box<str>>) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        match self.run(Operation::Get { keys }).await? {
            Reply::Values(values) => Ok(values),
            _ => Err(unexpected()),
        }
    }

    /// False where one does not fit; those before it are set.
    pub(crate) async fn set(
        &self,
        entries: Vec<(Box<str>, Vec<u8>)>,
        ttl: Option<Duration>,
        quota: Quota,
    ) -> Result<bool, StoreError> {
        match self.run(Operation::Set { entries, ttl, quota }).await? {
            Reply::Done => Ok(true),
            Reply::Full => Ok(false),
            _ => Err(unexpected()),
        }
    }

    pub(crate) async fn delete(&self, keys: Vec<Box<str>>) -> Result<(), StoreError> {
        self.run(Operation::Delete { keys }).await.map(drop)
    }

    /// None where a new counter does not fit.
    pub(crate) async fn increment(
        &self,
        key: &str,
        by: i64,
        ttl: Option<Duration>,
        quota: Quota,
    ) -> Result<Option<i64>, StoreError> {
        match self.run(Operation::Increment { key: key.into(), by, ttl, quota }).await? {
            Reply::Number(sum) => Ok(Some(sum)),
            Reply::Full => Ok(None),
            _ => Err(unexpected()),
        }
    }

    /// None where there is no such counter.
    pub(crate) async fn counter(&self, key: &str) -> Result<Option<i64>, StoreError> {
        match self.run(Operation::Counter { key: key.into() }).await? {
            Reply::Number(value) => Ok(Some(value)),
            Reply::Absent => Ok(None),
            _ => Err(unexpected()),
        }
    }

    /// Does an operation, and notes where it does not fit.
    pub(crate) async fn run(&self, operation: Operation) -> Result<Reply, StoreError> {
        let reply = self.store.run(&self.name, operation).await?;
        if reply == Reply::Full {
            self.seen.refused.fetch_add(1, Ordering::Relaxed);
        }
        Ok(reply)
    }
}

/// Returns the error for an answer to another question.
pub(crate) fn unexpected() -> StoreError {
    StoreError("it answered another question".into())
}
