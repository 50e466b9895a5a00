//! The [`Host`]: what all filters of a gateway share.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::budget::{Budget, PoolUse};
use crate::cache::Cache;
use crate::engine::{self, Engines};
use crate::error::{HostError, LoadError};
use crate::filter::Filter;
use crate::function::{self, Function, FunctionInspection, FunctionSpec};
use crate::inspect::{self, Inspection};
use crate::key_value::KeyValue;
use crate::load;
use crate::outbound::Pools;
use crate::sink::Progress;
use crate::spec::{FilterSpec, VersionId};
use crate::store::{OperationCount, SpaceUse, Spaces, Store, StoreOptions};

/// How far compile threads step back: traffic comes first.
const COMPILE_NICENESS: i32 = 10;

/// What a [`Host`] is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where artifacts are kept. Made with mode 0700 where it does not exist.
    pub cache_dir: PathBuf,
    /// What the artifacts together may have, in bytes.
    pub cache_bytes_max: u64,
    /// The key that seals artifacts; made with mode 0600 where it does not exist. Belongs outside of `cache_dir`, so
    /// that who copies the one does not copy the other.
    pub key_file: PathBuf,
    /// Threads that compile. One or two: they are for the background.
    pub compile_threads: usize,
    /// Instances of all filters that may live at the same time. Each reserves about 4 GiB of address space, and no
    /// memory before it is used.
    pub instances_max: u32,
    /// The most memory that one linear memory can have, whatever a filter's limit is.
    pub instance_memory_bytes_max: u64,
    /// Where the key-value store is that outlives the process. It is not looked at before somebody who is granted a space
    /// of it is called.
    pub store: StoreOptions,
}

/// Loads filters and functions, and owns what they share: the engine, its clock, the compile threads, the cache, the budget of
/// instances, the key-value stores, the outbound connections.
///
/// Make it after the process has forked for the last time: it starts threads.
pub struct Host {
    pub(crate) engines: Engines,
    pub(crate) cache: Cache,
    pub(crate) budget: Arc<Budget>,
    pub(crate) compiler: ThreadPool,
    pub(crate) instance_memory_bytes_max: u64,
    key_values: Mutex<HashMap<Arc<str>, Weak<KeyValue>>>,
    pub(crate) pools: Pools,
    pub(crate) spaces: Spaces,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("cache", &self.cache).field("pool", &self.pool()).finish_non_exhaustive()
    }
}

impl Host {
    /// Makes a host.
    ///
    /// # Errors
    ///
    /// The cache's folder or key is not the gateway's own, or a thread or engine cannot be started.
    pub fn new(options: Options) -> Result<Arc<Self>, HostError> {
        let cache = Cache::new(&options.cache_dir, &options.key_file, options.cache_bytes_max)?;
        let store = Store::new(&options.store).map_err(|error| HostError::Store(error.to_string()))?;
        let slots = engine::slots(options.instances_max);
        let engines = Engines::new(slots, options.instance_memory_bytes_max)?;
        let compiler = ThreadPoolBuilder::new()
            .num_threads(options.compile_threads.max(1))
            .thread_name(|number| format!("lockgate-compile-{number}"))
            .start_handler(|_| {
                // On Linux a thread has a priority of its own, under its own id.
                let thread = rustix::thread::gettid();
                if let Err(error) = rustix::process::setpriority_process(Some(thread), COMPILE_NICENESS) {
                    tracing::debug!(%error, "a compile thread keeps its priority");
                }
            })
            .build()
            .map_err(|error| HostError::Thread(error.to_string()))?;
        Ok(Arc::new(Self {
            engines,
            cache,
            budget: Arc::new(Budget::new(slots)),
            compiler,
            instance_memory_bytes_max: options.instance_memory_bytes_max,
            key_values: Mutex::default(),
            pools: Pools::default(),
            spaces: Spaces::new(store),
        }))
    }

    /// Loads a filter. Blocks, for seconds where a large component has to be compiled: never on a proxy thread.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the component, its settings or its limits; each can be shown as it is.
    pub fn load(&self, spec: &FilterSpec, progress: &dyn Progress) -> Result<Arc<Filter>, LoadError> {
        load::load(self, spec, progress)
    }

    /// Loads a function, as [`Host::load`] does a filter: blocks, and never on a proxy thread.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the component or its limits; each can be shown as it is.
    pub fn load_function(&self, spec: &FunctionSpec, progress: &dyn Progress) -> Result<Arc<Function>, LoadError> {
        function::load(self, spec, progress)
    }

    /// Returns what a component that answers requests is, without running it. Compiles it.
    ///
    /// # Errors
    ///
    /// The component could not be a function.
    pub fn inspect_function(&self, component: &[u8]) -> Result<FunctionInspection, LoadError> {
        function::inspect(self, component)
    }

    /// Returns what a component is, without running it. Compiles it, so it blocks as [`Host::load`] does.
    ///
    /// # Errors
    ///
    /// The component could not be a filter.
    pub fn inspect(&self, component: &[u8]) -> Result<Inspection, LoadError> {
        inspect::inspect(self, component)
    }

    /// Returns the cache of artifacts.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Returns the key of a version's artifact, as [`CacheEntry::key`](crate::CacheEntry::key) has it, whether or not it is
    /// in the cache.
    pub fn artifact_key(&self, version: &VersionId) -> String {
        Cache::key(&self.engines.serve, &version.component, &version.settings).to_string()
    }

    /// Returns how much of the pool is in use.
    pub fn pool(&self) -> PoolUse {
        self.budget.pool_use()
    }

    /// Returns the key-value store of a filter's name: the same for all its versions, gone with the last of them.
    pub(crate) fn key_value(&self, name: &Arc<str>) -> Arc<KeyValue> {
        let mut stores = self.key_values.lock();
        if let Some(store) = stores.get(name).and_then(Weak::upgrade) {
            return store;
        }
        stores.retain(|_, store| store.strong_count() > 0);
        let store = Arc::default();
        stores.insert(name.clone(), Arc::downgrade(&store));
        store
    }

    /// Asks the key-value store how large its spaces are, for at most that long; [`Host::key_value_sizes`] tells then.
    pub async fn measure_key_value(&self, patience: Duration) {
        self.spaces.measure(patience).await;
    }

    /// Returns how large the key-value spaces of loaded filters and functions are, those in memory first.
    pub fn key_value_sizes(&self) -> Vec<SpaceUse> {
        let stores: Vec<_> = {
            let stores = self.key_values.lock();
            stores.iter().filter_map(|(name, store)| Some((Arc::clone(name), store.upgrade()?))).collect()
        };
        let in_memory = stores.into_iter().map(|(name, store)| {
            let (bytes, entries, refused) = store.size();
            SpaceUse { space: format!("filter/{name}"), in_memory: true, size: Some((bytes, entries)), refused }
        });
        let mut sizes: Vec<_> = in_memory.collect();
        sizes.sort_unstable_by(|one, other| one.space.cmp(&other.space));
        sizes.extend(self.spaces.sizes());
        sizes
    }

    /// Returns what was asked of the key-value store that outlives the process, by kind and outcome.
    pub fn key_value_counts(&self) -> Vec<OperationCount> {
        self.spaces.store().counts()
    }
}
