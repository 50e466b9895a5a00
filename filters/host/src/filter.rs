//! A [`Filter`] is one version of a filter, loaded: compiled, configured, and proven to start. It hands out instances.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use wasmtime::Store;
use wasmtime::UpdateDeadline;
use wasmtime::component::{ComponentExportIndex, InstancePre};

use crate::budget::{Budget, Need, Reservation};
use crate::declare::{Declarations, MetricDeclaration};
use crate::effects::Effects;
use crate::error::{CallError, CallErrorKind};
use crate::instance::{Instance, Warm};
use crate::sink::Sink;
use crate::spec::{Isolation, Limits, VersionId};
use crate::state::{Shared, State};

/// Unused instances that a filter with `reused` isolation keeps. Requests run at the same time in larger numbers, but
/// then they come back at a rate at which a fresh instance now and then does not matter.
const IDLE_MAX: usize = 64;

/// How a body is handed to a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BodyMode {
    /// Not at all.
    #[default]
    None,
    /// Chunk by chunk, as it passes.
    Stream,
    /// As a whole.
    Buffer,
}

/// How a filter is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lane {
    /// On the thread of the request, which does nothing else meanwhile. Nothing waits.
    Inline,
    /// On a stack of its own, so that it can wait while the thread serves others.
    Fibre,
}

/// Which phases a filter takes part in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Phases {
    /// It exports `on-request`.
    pub on_request: bool,
    /// It exports `on-request-body`.
    pub on_request_body: bool,
    /// It exports `on-response`.
    pub on_response: bool,
    /// It exports `on-response-body`.
    pub on_response_body: bool,
}

/// What a filter has in memory at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Live {
    /// Instances, those that wait for reuse included.
    pub instances: u32,
    /// Their linear memories.
    pub memory_bytes: u64,
    /// Log lines and events beyond what a request may write, since the filter was loaded.
    pub lines_dropped: u64,
    /// Outbound requests that were refused since it was loaded, in the order of
    /// [`CallErrorKind::OF_OUTBOUND`](crate::CallErrorKind::OF_OUTBOUND).
    pub refused: [u64; 3],
}

/// Where the functions are that the host calls; none where the component does not have them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Exports {
    pub(crate) configure: Option<ComponentExportIndex>,
    pub(crate) on_request: Option<ComponentExportIndex>,
    pub(crate) on_request_body: Option<ComponentExportIndex>,
    pub(crate) on_response: Option<ComponentExportIndex>,
    pub(crate) on_response_body: Option<ComponentExportIndex>,
}

impl Exports {
    pub(crate) fn phases(&self) -> Phases {
        Phases {
            on_request: self.on_request.is_some(),
            on_request_body: self.on_request_body.is_some(),
            on_response: self.on_response.is_some(),
            on_response_body: self.on_response_body.is_some(),
        }
    }
}

/// One version of a filter, ready to serve. Made by [`Host::load`](crate::Host::load).
pub struct Filter {
    pub(crate) version: VersionId,
    pub(crate) shared: Arc<Shared>,
    pub(crate) pre: InstancePre<State>,
    pub(crate) exports: Exports,
    pub(crate) declarations: Declarations,
    pub(crate) not_snapshotted: Option<String>,
    pub(crate) lane: Lane,
    pub(crate) isolation: Isolation,
    pub(crate) need: Need,
    pub(crate) budget: Arc<Budget>,
    /// Instances in use and idle.
    pub(crate) taken: AtomicU32,
    pub(crate) idle: Mutex<Vec<Idle>>,
}

/// An instance that waits for its next request.
pub(crate) struct Idle {
    // In this order: slots are given back when the store no longer fills them.
    pub(crate) warm: Warm,
    pub(crate) reservation: Reservation,
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filter")
            .field("name", &self.shared.name)
            .field("version", &self.version)
            .field("phases", &self.phases())
            .field("lane", &self.lane)
            .field("live", &self.live())
            .finish_non_exhaustive()
    }
}

impl Filter {
    /// Returns the filter's name in the configuration.
    pub fn name(&self) -> &Arc<str> {
        &self.shared.name
    }

    /// Returns which version this is.
    pub fn version(&self) -> &VersionId {
        &self.version
    }

    /// Returns the phases that the filter takes part in. Calling it in another does nothing.
    pub fn phases(&self) -> Phases {
        self.exports.phases()
    }

    /// Returns how a request's body is handed over.
    pub fn request_body(&self) -> BodyMode {
        mode(self.exports.on_request_body.is_some(), self.declarations.request_body)
    }

    /// Returns how a response's body is handed over.
    pub fn response_body(&self) -> BodyMode {
        mode(self.exports.on_response_body.is_some(), self.declarations.response_body)
    }

    /// Returns how the filter is called.
    pub fn lane(&self) -> Lane {
        self.lane
    }

    /// Returns how long its instances live.
    pub fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// Returns the metrics that `configure` declared, in the order of their ids.
    pub fn declarations(&self) -> &[MetricDeclaration] {
        &self.declarations.metrics
    }

    /// Returns what the filter may use up.
    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// Returns the slots that each of its instances takes.
    pub fn need(&self) -> Need {
        self.need
    }

    /// Returns whether instances start configured.
    ///
    /// # Errors
    ///
    /// Why each instance has to run `configure` itself.
    pub fn snapshotted(&self) -> Result<(), &str> {
        self.not_snapshotted.as_deref().map_or(Ok(()), Err)
    }

    /// Sets where log lines, events and metrics go. Once, before the first request; later calls are without effect.
    pub fn bind(&self, sink: Arc<dyn Sink>) {
        // A second sink is a mistake of the caller's that does no harm: the first stays.
        let _ = self.shared.sink.set(sink);
    }

    /// Returns what the filter has in memory now. Two loads of a number: cheap enough for every scrape.
    pub fn live(&self) -> Live {
        self.shared.alive.live()
    }

    /// Returns an instance for one request: a fresh one, or one that served before where isolation is `reused`. A fresh
    /// one is started by its first call.
    ///
    /// # Errors
    ///
    /// Kind `exhausted`: the filter's `instances`, or the slots of the whole gateway, are all in use.
    pub fn acquire(self: &Arc<Self>, track: &'static str) -> Result<Instance, CallError> {
        self.acquire_for(track, Effects::Real)
    }

    /// As [`Filter::acquire`], with a say in where effects go. A private instance is always a fresh one, serves once,
    /// and takes no slot where half of the gateway's are in use.
    ///
    /// # Errors
    ///
    /// As [`Filter::acquire`].
    pub fn acquire_for(self: &Arc<Self>, track: &'static str, effects: Effects) -> Result<Instance, CallError> {
        if effects == Effects::Private {
            if self.budget.is_tight() {
                let message = "half of the gateway's pool is in use, and the rest is for requests";
                return Err(CallError::new(CallErrorKind::Exhausted, message));
            }
        } else if let Isolation::Reused { .. } = self.isolation {
            let idle = self.idle.lock().pop();
            if let Some(Idle { mut warm, reservation }) = idle {
                warm.renew(track, effects);
                return Ok(Instance::reused(self.clone(), track, effects, warm, reservation));
            }
        }
        let limit = self.shared.limits.instances;
        if self.taken.fetch_add(1, Ordering::Relaxed) >= limit {
            self.taken.fetch_sub(1, Ordering::Relaxed);
            let message = format!("all {limit} instances of the filter are in use");
            return Err(CallError::new(CallErrorKind::Exhausted, message));
        }
        match self.budget.reserve(self.need) {
            Ok(reservation) => Ok(Instance::fresh(self.clone(), track, effects, reservation)),
            Err(kind) => {
                self.taken.fetch_sub(1, Ordering::Relaxed);
                Err(CallError::new(CallErrorKind::Exhausted, format!("no {kind} are left in the gateway's pool")))
            }
        }
    }

    /// Takes an instance back, or lets it go.
    pub(crate) fn give_back(&self, warm: Option<Warm>, reservation: Reservation) {
        if let (Isolation::Reused { requests, memory_bytes }, Some(warm)) = (self.isolation, warm)
            && warm.requests < requests
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

    pub(crate) fn store(&self, track: &'static str, effects: Effects) -> Store<State> {
        let mut store = Store::new(self.pre.engine(), State::new(self.shared.clone(), track, effects));
        store.limiter(|state| state);
        store.set_hostcall_fuel(usize::try_from(self.shared.limits.copy_bytes).unwrap_or(usize::MAX));
        if self.lane == Lane::Fibre && effects == Effects::Private {
            store.epoch_deadline_callback(|mut store| {
                Ok(match store.data_mut().overdue() {
                    UpdateDeadline::Continue(_) => UpdateDeadline::Yield(1),
                    over => over,
                })
            });
        } else if self.lane == Lane::Fibre {
            // A busy guest lets others have the thread once an epoch, and can be dropped there.
            store.epoch_deadline_async_yield_and_update(1);
        } else {
            store.epoch_deadline_callback(|mut store| Ok(store.data_mut().overdue()));
        }
        store
    }
}

fn mode(exported: bool, declared: Option<BodyMode>) -> BodyMode {
    if exported { declared.unwrap_or(BodyMode::Stream) } else { BodyMode::None }
}
