//! A [`Function`] is one version of a component that answers requests itself: a `wasi:http` proxy of 0.2, a service or
//! middleware of 0.3, or a program of `wasi:cli` 0.2 in the manner of CGI, built by anyone with any toolchain. It is loaded as a filter is (compiled, sealed, proven to start),
//! and called once for each request: a [`Call`] runs the guest on a stack of its own and hands its answer out piece by piece.
//!
//! Nothing is granted but what the [`FunctionSpec`] names. All of WASI 0.2 links, for components of 0.3 all of that as
//! well, and is Wasmtime's own, which waits without holding a thread; `wasi:keyvalue`, `wasi:config` and `wasi:logging`,
//! which Wasmtime has not or has for memory alone, are ours.

mod body;
mod call;
mod command;
mod fate;
mod folders;
mod key_value;
mod load;
mod next;
mod run;
mod spec;
mod state;
mod told;
mod turn;
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use wasmtime::Engine;

pub use self::body::{RequestBody, Upload};
pub use self::call::{Call, Settled, Tail};
pub use self::command::Caller;
pub use self::load::FunctionInspection;
pub(crate) use self::load::{inspect, load};
pub use self::next::{Handling, Next, NextBody, NextError};
use self::run::{Asked, Warm};
pub use self::spec::{FunctionLimits, FunctionSpec};
pub use self::state::PARAMETER_PREFIX;
use self::turn::Shared;
use self::world::Pre;
pub use self::world::World;
use crate::budget::{Budget, Need, Reservation};
use crate::error::{CallError, CallErrorKind};
use crate::filter::Live;
use crate::outbound::Upstreams;
use crate::sink::{CallInfo, Level};
use crate::spec::{Isolation, VersionId};

/// Unused instances that a function with `reused` isolation keeps.
const IDLE_MAX: usize = 64;

/// Where a function's log lines go, its standard output and error among them. Called on proxy threads in the middle of
/// a guest's call: it must not block.
pub type LogSink = dyn Fn(&CallInfo<'_>, Level, &str) + Send + Sync;

/// One version of a function, ready to serve. Made by [`Host::load_function`](crate::Host::load_function).
pub struct Function {
    version: VersionId,
    world: World,
    shared: Arc<Shared>,
    engine: Engine,
    pre: Pre,
    isolation: Isolation,
    need: Need,
    budget: Arc<Budget>,
    /// Instances in use and idle.
    taken: AtomicU32,
    /// Instances so far.
    made: AtomicU32,
    idle: Mutex<Vec<Idle>>,
}

/// An instance that waits for its next request.
struct Idle {
    // In this order: slots are given back when the store no longer fills them.
    warm: Warm,
    reservation: Reservation,
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Function")
            .field("name", &self.shared.name)
            .field("version", &self.version)
            .field("live", &self.live())
            .finish_non_exhaustive()
    }
}

impl Function {
    /// Returns the function's name in the configuration.
    pub fn name(&self) -> &Arc<str> {
        &self.shared.name
    }

    /// Returns which version this is.
    pub fn version(&self) -> &VersionId {
        &self.version
    }

    /// Returns the world that it is built for.
    pub fn world(&self) -> World {
        self.world
    }

    /// Returns how long its instances live.
    pub fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// Returns what the function may use up.
    pub fn limits(&self) -> &FunctionLimits {
        &self.shared.limits
    }

    /// Returns the slots that each of its instances takes.
    pub fn need(&self) -> Need {
        self.need
    }

    /// Sets where log lines go. Once, before the first request; later calls are without effect.
    pub fn bind(&self, sink: Arc<LogSink>) {
        // A second sink is a mistake of the caller's that does no harm: the first stays.
        let _ = self.shared.sink.set(sink);
    }

    /// Returns what the function has in memory now. Cheap enough for every scrape.
    pub fn live(&self) -> Live {
        self.shared.alive.live()
    }

    /// Begins to answer a request, on a fresh instance, or on one that served before where isolation is `reused`. The
    /// guest runs when the call is asked for its response, not before.
    ///
    /// `track` and `request_id` are what log lines are told with; `tls` says how the client came. The request's target
    /// is path and query, its authority that of the `host` header. `upstreams` is by what it reaches those of the gateway's
    /// that it is granted. `next` is what is behind a middleware, where there is something. A program is told what
    /// [`Caller`] says, where it is among the request's extensions.
    ///
    /// # Errors
    ///
    /// Kind `exhausted`: the function's `instances`, or the slots of the whole gateway, are all in use.
    pub fn call(
        self: &Arc<Self>,
        track: &'static str,
        request_id: Arc<str>,
        upstreams: Option<Arc<dyn Upstreams>>,
        tls: bool,
        request: http::Request<RequestBody>,
        next: Option<Box<dyn Next>>,
    ) -> Result<Call, CallError> {
        let (warm, reservation) = self.acquire()?;
        Ok(run::begin(self, warm, reservation, Asked { track, request_id, upstreams, tls, request, next }))
    }

    /// Returns how many requests the next instance may serve. A little less than the isolation says, and for each
    /// instance something else: those that began together do not all end together.
    fn uses(&self) -> u32 {
        let Isolation::Reused { requests, .. } = self.isolation else { return 1 };
        // Multiples of the golden ratio fill a range evenly, however many they are.
        let place = self.made.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9);
        let spread = u64::from(requests / 8);
        requests - u32::try_from((u64::from(place) * spread) >> 32).unwrap_or(0)
    }

    /// Returns an instance that is there already, if there is one, and its slots.
    fn acquire(&self) -> Result<(Option<Warm>, Reservation), CallError> {
        if let Isolation::Reused { .. } = self.isolation
            && let Some(Idle { warm, reservation }) = self.idle.lock().pop()
        {
            return Ok((Some(warm), reservation));
        }
        let limit = self.shared.limits.instances;
        if self.taken.fetch_add(1, Ordering::Relaxed) >= limit {
            self.taken.fetch_sub(1, Ordering::Relaxed);
            let message = format!("all {limit} instances of the function are in use");
            return Err(CallError::new(CallErrorKind::Exhausted, message));
        }
        match self.budget.reserve(self.need) {
            Ok(reservation) => Ok((None, reservation)),
            Err(kind) => {
                self.taken.fetch_sub(1, Ordering::Relaxed);
                Err(CallError::new(CallErrorKind::Exhausted, format!("no {kind} are left in the gateway's pool")))
            }
        }
    }

    /// Takes an instance back, or lets it go.
    fn give_back(&self, warm: Option<Warm>, reservation: Reservation) {
        if let (Isolation::Reused { memory_bytes, .. }, Some(warm)) = (self.isolation, warm)
            && warm.memory_bytes() <= memory_bytes
            && !self.budget.is_tight()
        {
            let mut idle = self.idle.lock();
            if idle.len() < IDLE_MAX {
                idle.push(Idle { warm, reservation });
                return;
            }
        }
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }
}
