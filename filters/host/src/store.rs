//! The store that outlives a process: where filters and functions with the grant `key_value` keep keys and values. It is
//! divided into *spaces*, each with a name and a quota: one for each filter and function, the same for all its versions,
//! and those that several share. In a space, values and the counters of filters are apart.
//!
//! Two kinds. The *embedded* one is a file, written by a thread of its own; two processes may have it open, as during an
//! upgrade. The *Redis* one is a server that several machines share. Either way an operation is one transaction, so that
//! a counter counts whoever else counts, and what was answered survives the end of the process.

mod embedded;
mod meter;
mod redis;
mod space;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::meter::Meter;
pub use self::meter::{KeyValueOperation, KeyValueOutcome, OperationCount, SpaceUse};
pub(crate) use self::space::{Space, Spaces, unexpected};

/// How long one operation may take: less than the usual deadline of who asks, so that it is told what was late.
const TIMEOUT: Duration = Duration::from_secs(4);

/// What an entry costs besides its key and value: without it, a million empty values would be free.
pub(crate) const ENTRY_BYTES: u64 = 64;

/// Where the store is.
#[derive(Clone, PartialEq, Eq)]
pub enum StoreOptions {
    /// A file, which is made where it does not exist.
    Embedded {
        /// Its path. Two further files appear beside it.
        file: PathBuf,
    },
    /// A Redis server, 5 or later.
    Redis {
        /// `redis://user:password@host:6379/0`. A secret: never shown.
        url: String,
    },
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded { file } => f.debug_struct("Embedded").field("file", file).finish(),
            // Its address may hold a password.
            Self::Redis { .. } => f.debug_struct("Redis").finish_non_exhaustive(),
        }
    }
}

/// Why the store did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the key-value store failed: {0}")]
pub(crate) struct StoreError(pub(crate) String);

/// What a space may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quota {
    /// Keys, values, and [`ENTRY_BYTES`] for each entry.
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
}

/// An operation in a space.
#[derive(Debug, Clone)]
pub(crate) enum Operation {
    /// Replies [`Reply::Values`], in the order of the keys.
    Get { keys: Vec<Box<str>> },
    /// Sets one after the other. Replies [`Reply::Done`]; or [`Reply::Full`] at the first that does not fit.
    Set { entries: Vec<(Box<str>, Vec<u8>)>, ttl: Option<Duration>, quota: Quota },
    /// Replies [`Reply::Done`].
    Delete { keys: Vec<Box<str>> },
    /// Adds to a counter, which stops at the ends of its range. Replies [`Reply::Number`]; or [`Reply::Full`] where a new
    /// one does not fit.
    Increment { key: Box<str>, by: i64, ttl: Option<Duration>, quota: Quota },
    /// Replies [`Reply::Number`]; or [`Reply::Absent`].
    Counter { key: Box<str> },
    /// Adds to a value that is a number in decimal, and stops at the ends of its range. Replies [`Reply::Number`];
    /// [`Reply::Full`] where a new one does not fit; or [`Reply::Conflict`] where the value is no number.
    Add { key: Box<str>, by: i64, quota: Quota },
    /// Sets a value if it is what is expected. Replies [`Reply::Done`], [`Reply::Full`] or [`Reply::Conflict`].
    Swap { key: Box<str>, expected: Option<Vec<u8>>, value: Vec<u8>, quota: Quota },
    /// Replies [`Reply::Keys`]: some keys of values, from `cursor` on.
    List { cursor: Option<String> },
    /// Replies [`Reply::Use`].
    Measure,
}

impl Operation {
    const fn kind(&self) -> Option<KeyValueOperation> {
        match self {
            Self::Get { .. } | Self::Counter { .. } => Some(KeyValueOperation::Get),
            Self::Set { .. } => Some(KeyValueOperation::Set),
            Self::Delete { .. } => Some(KeyValueOperation::Delete),
            Self::Increment { .. } | Self::Add { .. } => Some(KeyValueOperation::Increment),
            Self::Swap { .. } => Some(KeyValueOperation::Swap),
            Self::List { .. } => Some(KeyValueOperation::List),
            // Asked by who looks at the metrics: it would count itself.
            Self::Measure => None,
        }
    }
}

/// What an operation answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Values(Vec<Option<Vec<u8>>>),
    Done,
    /// It does not fit.
    Full,
    Number(i64),
    Absent,
    /// The value is not what it would have to be.
    Conflict,
    /// Keys, and where the next ones begin.
    Keys(Vec<String>, Option<String>),
    Use {
        bytes: u64,
        entries: u64,
    },
}

/// The store. Cloning shares it.
#[derive(Debug, Clone)]
pub(crate) struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kind: Kind,
    meter: Meter,
}

#[derive(Debug)]
enum Kind {
    Embedded(embedded::Embedded),
    Redis(redis::Redis),
}

impl Store {
    /// Returns a store that nobody has asked anything yet: it opens its file, or connects, when somebody does.
    ///
    /// # Errors
    ///
    /// The URL is none.
    pub(crate) fn new(options: &StoreOptions) -> Result<Self, StoreError> {
        let kind = match options {
            StoreOptions::Embedded { file } => Kind::Embedded(embedded::Embedded::new(file.clone())),
            StoreOptions::Redis { url } => Kind::Redis(redis::Redis::new(url)?),
        };
        Ok(Self(Arc::new(Inner { kind, meter: Meter::default() })))
    }

    /// Does one operation in a space.
    ///
    /// # Errors
    ///
    /// The file or the server is not to be had, or took too long.
    pub(crate) async fn run(&self, space: &Arc<str>, operation: Operation) -> Result<Reply, StoreError> {
        let (kind, began) = (operation.kind(), Instant::now());
        let running = async {
            match &self.0.kind {
                Kind::Embedded(embedded) => embedded.run(space, operation).await,
                Kind::Redis(redis) => redis.run(space, operation).await,
            }
        };
        let late = |_| Err(StoreError(format!("it gave no answer within {TIMEOUT:?}")));
        let answer = tokio::time::timeout(TIMEOUT, running).await.unwrap_or_else(late);
        if let Some(kind) = kind {
            self.0.meter.count(kind, KeyValueOutcome::of(&answer), began.elapsed());
        }
        answer
    }

    /// Returns whether there may be something in it. Asking a file that is not there would make it.
    pub(crate) fn is_there(&self) -> bool {
        match &self.0.kind {
            Kind::Embedded(embedded) => embedded.is_there(),
            Kind::Redis(_) => true,
        }
    }

    /// Returns what was asked of it so far, by kind and outcome.
    pub(crate) fn counts(&self) -> Vec<OperationCount> {
        self.0.meter.counts()
    }
}

/// Milliseconds since 1970 at which something expires.
fn expires(now_ms: i64, ttl: Option<Duration>) -> Option<i64> {
    ttl.map(|ttl| now_ms.saturating_add(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX)))
}
