//! What the store was asked, and what became of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Reply, StoreError};

/// What a store is asked to do. A closed set: its names are metric labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyValueOperation {
    /// To read values or a counter.
    Get,
    /// To set values.
    Set,
    /// To delete values.
    Delete,
    /// To add to a counter, or to a value that is a number.
    Increment,
    /// To set a value if it is what is expected.
    Swap,
    /// To list keys.
    List,
}

impl KeyValueOperation {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 6] = [Self::Get, Self::Set, Self::Delete, Self::Increment, Self::Swap, Self::List];

    /// Returns the label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Set => "set",
            Self::Delete => "delete",
            Self::Increment => "increment",
            Self::Swap => "swap",
            Self::List => "list",
        }
    }
}

/// What became of an operation. A closed set: its names are metric labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyValueOutcome {
    /// It was done.
    Done,
    /// It did not fit into its space.
    Full,
    /// The value was not what it would have had to be.
    Conflict,
    /// The store was not to be had, or took too long.
    Failed,
}

impl KeyValueOutcome {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 4] = [Self::Done, Self::Full, Self::Conflict, Self::Failed];

    /// Returns the label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Full => "full",
            Self::Conflict => "conflict",
            Self::Failed => "failed",
        }
    }

    pub(super) const fn of(answer: &Result<Reply, StoreError>) -> Self {
        match answer {
            Ok(Reply::Full) => Self::Full,
            Ok(Reply::Conflict) => Self::Conflict,
            Ok(_) => Self::Done,
            Err(_) => Self::Failed,
        }
    }
}

/// How often something was asked of the store and became of it, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OperationCount {
    /// What was asked.
    pub operation: KeyValueOperation,
    /// What became of it.
    pub outcome: KeyValueOutcome,
    /// How often.
    pub count: u64,
    /// For how long that was waited for, all in all.
    pub waited: Duration,
}

/// What a space holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpaceUse {
    /// `filter/NAME`, `function/NAME`, or `shared/NAME` for one that several may be granted.
    pub space: String,
    /// Whether it is in the memory of the process, rather than in the store that outlives it.
    pub in_memory: bool,
    /// Bytes and entries; none where the store has not told.
    pub size: Option<(u64, u64)>,
    /// Writes of this process that did not fit.
    pub refused: u64,
}

/// Counts operations.
#[derive(Debug, Default)]
pub(super) struct Meter([[Count; KeyValueOutcome::ALL.len()]; KeyValueOperation::ALL.len()]);

#[derive(Debug, Default)]
struct Count {
    operations: AtomicU64,
    waited_ns: AtomicU64,
}

impl Meter {
    pub(super) fn count(&self, operation: KeyValueOperation, outcome: KeyValueOutcome, waited: Duration) {
        let count = &self.0[operation as usize][outcome as usize];
        count.operations.fetch_add(1, Ordering::Relaxed);
        count.waited_ns.fetch_add(u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn counts(&self) -> Vec<OperationCount> {
        let of = |operation: KeyValueOperation| {
            KeyValueOutcome::ALL.into_iter().map(move |outcome| {
                let count = &self.0[operation as usize][outcome as usize];
                OperationCount {
                    operation,
                    outcome,
                    count: count.operations.load(Ordering::Relaxed),
                    waited: Duration::from_nanos(count.waited_ns.load(Ordering::Relaxed)),
                }
            })
        };
        KeyValueOperation::ALL.into_iter().flat_map(of).collect()
    }
}
