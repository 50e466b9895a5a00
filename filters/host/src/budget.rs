//! The budget of instances. Wasmtime's pool answers with an error when a slot of any kind is missing; a [`Budget`]
//! counts the same slots and is asked before, so that a request learns early, and in one place, that nothing is left.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::Serialize;

/// Slots that one instance of a component takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Need {
    /// Component instances: always one.
    pub component_instances: u32,
    /// Core instances: three or four for a lean guest, dozens for a Python one.
    pub core_instances: u32,
    /// Linear memories.
    pub memories: u32,
    /// Tables.
    pub tables: u32,
    /// Stacks: one on the fibre lane.
    pub stacks: u32,
}

impl Need {
    const KINDS: usize = 5;
    const NAMES: [&'static str; Self::KINDS] =
        ["component instances", "core instances", "memories", "tables", "stacks"];

    fn slots(self) -> [u32; Self::KINDS] {
        [self.component_instances, self.core_instances, self.memories, self.tables, self.stacks]
    }
}

/// How much of the pool is in use, by the same kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct PoolUse {
    /// Reserved by living instances.
    pub used: Need,
    /// All there is.
    pub total: Need,
}

#[derive(Debug)]
pub(crate) struct Budget {
    total: Need,
    used: [AtomicU32; Need::KINDS],
}

impl Budget {
    pub(crate) fn new(total: Need) -> Self {
        Self { total, used: Default::default() }
    }

    /// Takes what `need` asks for, all or nothing. The error names the kind that ran out.
    pub(crate) fn reserve(self: &Arc<Self>, need: Need) -> Result<Reservation, &'static str> {
        let slots = need.slots();
        for (kind, total) in self.total.slots().into_iter().enumerate() {
            let used = self.used[kind].fetch_add(slots[kind], Ordering::Relaxed);
            if used.saturating_add(slots[kind]) > total {
                for (taken, slots) in slots.iter().enumerate().take(kind + 1) {
                    self.used[taken].fetch_sub(*slots, Ordering::Relaxed);
                }
                return Err(Need::NAMES[kind]);
            }
        }
        Ok(Reservation { budget: self.clone(), need })
    }

    /// Returns the kind of slot of which `need` asks for more than there are at all, with how many.
    pub(crate) fn can_never_hold(&self, need: Need) -> Option<(&'static str, u32, u32)> {
        let kinds = Need::NAMES.into_iter().zip(need.slots().into_iter().zip(self.total.slots()));
        kinds.map(|(name, (need, total))| (name, need, total)).find(|(_, need, total)| need > total)
    }

    /// Returns whether half of any kind is in use. Then nobody keeps idle instances, so that the other half is always
    /// there for those who need fresh ones.
    pub(crate) fn is_tight(&self) -> bool {
        let totals = self.total.slots();
        self.used.iter().zip(totals).any(|(used, total)| used.load(Ordering::Relaxed) > total / 2)
    }

    pub(crate) fn pool_use(&self) -> PoolUse {
        let [component_instances, core_instances, memories, tables, stacks] =
            std::array::from_fn(|kind| self.used[kind].load(Ordering::Relaxed));
        PoolUse { used: Need { component_instances, core_instances, memories, tables, stacks }, total: self.total }
    }
}

/// Slots taken from a budget; given back when dropped, so drop it after the store that fills them.
#[derive(Debug)]
pub(crate) struct Reservation {
    budget: Arc<Budget>,
    need: Need,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        for (used, slots) in self.budget.used.iter().zip(self.need.slots()) {
            used.fetch_sub(slots, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAN: Need = Need { component_instances: 1, core_instances: 3, memories: 1, tables: 2, stacks: 0 };

    #[test]
    fn a_reservation_is_all_or_nothing() {
        let budget = Arc::new(Budget::new(Need {
            memories: 2,
            tables: 3,
            core_instances: 9,
            component_instances: 9,
            stacks: 0,
        }));
        let first = budget.reserve(LEAN).unwrap();
        assert_eq!(budget.reserve(LEAN).unwrap_err(), "tables");
        assert_eq!(budget.pool_use().used, LEAN);
        drop(first);
        assert_eq!(budget.pool_use().used, Need::default());
        assert_eq!(budget.can_never_hold(Need { stacks: 1, ..LEAN }), Some(("stacks", 1, 0)));
    }

    #[test]
    fn many_threads_never_take_more_than_there_is() {
        let budget = Arc::new(Budget::new(Need {
            memories: 5,
            tables: 10,
            core_instances: 15,
            component_instances: 5,
            stacks: 0,
        }));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let held: Vec<_> = (0..3).filter_map(|_| budget.reserve(LEAN).ok()).collect();
                        assert!(held.len() <= 3);
                    }
                });
            }
        });
        assert_eq!(budget.pool_use().used, Need::default());
    }
}
