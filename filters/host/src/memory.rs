//! What instances hold: the limits of one, and the sum over all of a version.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use wasmtime::{Result, bail};

use crate::error::CallErrorKind;
use crate::filter::Live;

/// What all instances of one loaded version hold together.
#[derive(Debug, Default)]
pub(crate) struct Alive {
    instances: AtomicU32,
    memory_bytes: AtomicU64,
    lines_dropped: AtomicU64,
    /// In the order of [`CallErrorKind::OF_OUTBOUND`].
    refused: [AtomicU64; CallErrorKind::OF_OUTBOUND.len()],
}

impl Alive {
    /// Counts an instance that begins.
    pub(crate) fn begin(&self) {
        self.instances.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a log line or an event that is not passed on.
    pub(crate) fn drop_line(&self) {
        self.lines_dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an outbound request that was refused.
    pub(crate) fn refuse(&self, kind: CallErrorKind) {
        let of = CallErrorKind::OF_OUTBOUND.iter().position(|known| *known == kind);
        if let Some(count) = of.and_then(|of| self.refused.get(of)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn live(&self) -> Live {
        Live {
            instances: self.instances.load(Ordering::Relaxed),
            memory_bytes: self.memory_bytes.load(Ordering::Relaxed),
            lines_dropped: self.lines_dropped.load(Ordering::Relaxed),
            refused: self.refused.each_ref().map(|count| count.load(Ordering::Relaxed)),
        }
    }
}

/// The memory of one instance, all its linear memories together.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) bytes: u64,
    /// What the limiter has said no to: an abort that follows is about that.
    pub(crate) refused: Option<CallErrorKind>,
    growing_bytes: u64,
}

impl Memory {
    /// Takes what a linear memory wants to grow by.
    pub(crate) fn grow(&mut self, alive: &Alive, limit: u64, current: usize, desired: usize) -> Result<bool> {
        let grows = desired.saturating_sub(current) as u64;
        let wanted = self.bytes.saturating_add(grows);
        if wanted > limit {
            self.refused = Some(CallErrorKind::Memory);
            // An error rather than a refusal, which most guests turn into an abort that does not say why.
            bail!("{wanted} bytes of memory were wanted; the limit is {limit}");
        }
        self.bytes = wanted;
        self.growing_bytes = grows;
        alive.memory_bytes.fetch_add(grows, Ordering::Relaxed);
        Ok(true)
    }

    /// Takes back what was taken for a memory that could not grow after all.
    pub(crate) fn grow_failed(&mut self, alive: &Alive, error: &wasmtime::Error) {
        self.bytes -= self.growing_bytes;
        alive.memory_bytes.fetch_sub(self.growing_bytes, Ordering::Relaxed);
        self.growing_bytes = 0;
        self.refused = Some(CallErrorKind::Memory);
        tracing::debug!(error = format!("{error:#}"), "a memory could not grow");
    }

    /// Checks the size that a table wants.
    pub(crate) fn check_table(&mut self, limit: u32, desired: usize) -> Result<bool> {
        if desired > limit as usize {
            self.refused = Some(CallErrorKind::Table);
            bail!("a table of {desired} elements was wanted; the limit is {limit}");
        }
        Ok(true)
    }

    /// Counts an instance that ends.
    pub(crate) fn end(&self, alive: &Alive) {
        alive.memory_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        alive.instances.fetch_sub(1, Ordering::Relaxed);
    }
}
