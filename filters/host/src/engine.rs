//! The engines. One *serves*: pooled slots, optimised code, the artifacts are for it. The other *prepares*: it runs
//! `configure` once and is never seen by a request, so its code is compiled fast rather than well, and its instances
//! come from the heap, where no pool can run out. A third one serves as the first does, for components of WASI 0.3:
//! tasks of theirs overlap, and the machinery for that makes every call slower. It is made when the first such
//! component is loaded; most gateways never have it.
//!
//! Epochs are advanced every millisecond by one thread for all.

use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use wasmtime::{
    Config, Enabled, Engine, EngineWeak, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig,
    WasmBacktraceDetails,
};

use crate::budget::Need;
use crate::error::HostError;

/// Length of an epoch, and so the resolution of deadlines.
pub(crate) const EPOCH: Duration = Duration::from_millis(1);

/// Stack of a guest. Calls run on proxy threads, whose stacks are 2 MiB: a quarter leaves room for what is below and above.
const STACK_BYTES: usize = 512 << 10;
/// Stack of a fibre: the guest's, and as much again and more for the host functions that it calls.
const FIBRE_STACK_BYTES: usize = 2 << 20;
/// Frames of a guest's backtrace. More than that is recursion.
const BACKTRACE_FRAMES: NonZeroUsize = NonZeroUsize::new(20).unwrap();

/// Bytes of a slot's memory that are cleared by writing zeroes, the rest by giving the pages back. With a scan of which
/// pages were touched this saves most page faults; without one all of it would be written each time, and cost more.
const KEEP_RESIDENT_BYTES: usize = 256 << 10;
/// Table entries are few.
const TABLE_KEEP_RESIDENT_BYTES: usize = 64 << 10;
/// Without a page scan: slots that are given back together, in one system call, which is worth half of an instance's
/// time. With one it is worth nothing, and each slot is given back at once: a slot that waits keeps the code of its
/// version mapped, when the version itself has long been dropped.
const DECOMMIT_BATCH: usize = 32;
/// Memory images up to this size are mapped copy-on-write even where most of them is zeroes: a filter that has
/// configured itself is worth more than the address space.
const DENSE_IMAGE_BYTES_MAX: u64 = 64 << 20;
/// Elements of a table; the limits of a filter may only lower it.
pub(crate) const TABLE_ELEMENTS_MAX: u32 = 100_000;
/// Bytes of the bookkeeping of one instance. Guests with many functions need more than Wasmtime's default of 1 MiB.
const INSTANCE_METADATA_BYTES_MAX: usize = 4 << 20;

pub(crate) struct Engines {
    pub(crate) serve: Engine,
    pub(crate) prepare: Engine,
    /// As `serve`, for components whose tasks overlap; none before the first of them.
    overlapping: Mutex<Option<Engine>>,
    /// What that is made from.
    config: Config,
    /// Tells the clock.
    late: Arc<OnceLock<EngineWeak>>,
}

impl std::fmt::Debug for Engines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engines").field("overlapping", &self.late.get().is_some()).finish_non_exhaustive()
    }
}

/// Returns the slots of a pool for `instances` lean filters. Kinds of which a guest may need several are more plenty.
pub(crate) fn slots(instances: u32) -> Need {
    Need {
        component_instances: instances,
        core_instances: instances.saturating_mul(8),
        memories: instances,
        tables: instances.saturating_mul(4),
        stacks: instances,
    }
}

impl Engines {
    /// Starts both engines and their clock. `memory_bytes_max` is what the largest instance may have.
    pub(crate) fn new(slots: Need, memory_bytes_max: u64) -> Result<Self, HostError> {
        let memory_bytes_max = usize::try_from(memory_bytes_max).unwrap_or(usize::MAX);
        let scanned = PoolingAllocationConfig::is_pagemap_scan_available();
        let mut pool = PoolingAllocationConfig::new();
        pool.total_component_instances(slots.component_instances)
            .total_core_instances(slots.core_instances)
            .total_memories(slots.memories)
            .total_tables(slots.tables)
            .total_stacks(slots.stacks)
            .max_memories_per_module(4)
            .max_tables_per_module(4)
            .max_memory_size(memory_bytes_max)
            .max_component_instance_size(INSTANCE_METADATA_BYTES_MAX)
            .max_core_instance_size(INSTANCE_METADATA_BYTES_MAX)
            .table_elements(TABLE_ELEMENTS_MAX as usize)
            .decommit_batch_size(if scanned { 1 } else { DECOMMIT_BATCH });
        if scanned {
            pool.linear_memory_keep_resident(KEEP_RESIDENT_BYTES)
                .table_keep_resident(TABLE_KEEP_RESIDENT_BYTES)
                .pagemap_scan(Enabled::Auto);
        }
        let mut config = base();
        config
            .cranelift_opt_level(OptLevel::Speed)
            .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
            .memory_guaranteed_dense_image_size(DENSE_IMAGE_BYTES_MAX);
        let serve = engine(&mut config)?;
        let serving = config;
        let mut config = base();
        config.cranelift_opt_level(OptLevel::None).allocation_strategy(InstanceAllocationStrategy::OnDemand);
        let prepare = Engine::new(&config).map_err(|error| HostError::Engine(format!("{error:#}")))?;
        let engines =
            Self { serve, prepare, overlapping: Mutex::new(None), config: serving, late: Arc::new(OnceLock::new()) };
        engines.start_clock()?;
        Ok(engines)
    }

    /// Returns the engine for components whose tasks overlap.
    pub(crate) fn overlapping(&self) -> Result<Engine, HostError> {
        let mut overlapping = self.overlapping.lock();
        if let Some(engine) = &*overlapping {
            return Ok(engine.clone());
        }
        let mut config = self.config.clone();
        config.concurrency_support(true).wasm_component_model_async(true);
        let engine = engine(&mut config)?;
        // There is one, made under the lock: nobody was here before.
        let _ = self.late.set(engine.weak());
        Ok(overlapping.insert(engine).clone())
    }

    fn start_clock(&self) -> Result<(), HostError> {
        let engines = [self.serve.weak(), self.prepare.weak()];
        let late = Arc::clone(&self.late);
        let tick = move || {
            loop {
                std::thread::sleep(EPOCH);
                let mut alive = false;
                for engine in engines.iter().chain(late.get()) {
                    if let Some(engine) = engine.upgrade() {
                        engine.increment_epoch();
                        alive = true;
                    }
                }
                if !alive {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("lockgate-epoch".to_owned())
            .spawn(tick)
            .map_err(|error| HostError::Thread(error.to_string()))?;
        Ok(())
    }
}

/// Returns an engine with a pool, or where none can be had, without.
fn engine(config: &mut Config) -> Result<Engine, HostError> {
    Engine::new(config).or_else(|error| {
        // A container or `ulimit -v` may not give away that much address space. Slower is better than not at all.
        tracing::warn!(
            error = format!("{error:#}"),
            "the instance pool cannot be reserved; instances are allocated one by one, which is slower"
        );
        config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
        Engine::new(config).map_err(|error| HostError::Engine(format!("{error:#}")))
    })
}

/// What all engines agree on, but for overlapping tasks: a component means the same to all.
fn base() -> Config {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        // Filters do not overlap in one instance, and calls without the machinery for it take a fifth of the time.
        .concurrency_support(false)
        .epoch_interruption(true)
        .max_wasm_stack(STACK_BYTES)
        .async_stack_size(FIBRE_STACK_BYTES)
        .wasm_backtrace_max_frames(Some(BACKTRACE_FRAMES))
        .wasm_backtrace_details(WasmBacktraceDetails::Enable);
    config
}

/// Returns a deadline in epochs from now: at least one whole epoch, since the present one may end at once.
pub(crate) fn epochs(deadline: Duration) -> u64 {
    let millis = deadline.as_nanos().div_ceil(EPOCH.as_nanos());
    u64::try_from(millis).unwrap_or(u64::MAX / 2).min(u64::MAX / 2) + 1
}
