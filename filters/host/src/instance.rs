//! An [`Instance`] is one sandbox of a filter, for the time of one request.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use wasmtime::component::{self, ComponentExportIndex, ComponentNamedList, Lift, Lower, TypedFunc};
use wasmtime::{Result, Store, bail};

use crate::budget::Reservation;
use crate::declare::Declarations;
use crate::effects::{Effects, Kept, Notes};
use crate::engine::epochs;
use crate::error::{CallError, CallErrorKind};
use crate::exchange::Exchange;
use crate::filter::{Filter, Lane};
use crate::outbound::Upstreams;
use crate::outcome::{
    BodyOutcome, Outcome, ResponseBodyOutcome, ResponseOutcome, WireBodyOutcome, WireOutcome, WireResponseBodyOutcome,
    WireResponseOutcome,
};
use crate::sink::Phase;
use crate::snapshot::Accepted;
use crate::state::{OVERTIME_WALL, State};

/// One sandbox of a filter, for the time of one request and for all its phases. Dropping it gives it back.
///
/// Calls on the inline lane run to their end when first polled; only those on the fibre lane wait, and those need a
/// tokio runtime with time and I/O. Dropping a call that waits ends the guest.
///
/// After a failed call the instance is not called again: later calls fail at once.
pub struct Instance {
    filter: Arc<Filter>,
    track: &'static str,
    effects: Effects,
    /// What the next call is to find in the key-value store.
    shown: Option<Notes>,
    // In this order: slots are given back when the store no longer fills them. Both are there until the drop.
    warm: Option<Warm>,
    reservation: Option<Reservation>,
    failed: bool,
    called: bool,
    /// When the next call begins, where the caller has said so.
    now: Option<Instant>,
    upstreams: Option<Arc<dyn Upstreams>>,
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Instance")
            .field("filter", &self.filter.shared.name)
            .field("track", &self.track)
            .field("started", &self.warm.is_some())
            .field("failed", &self.failed)
            .finish()
    }
}

/// A started instance. Functions that were looked up are kept: a reused instance looks them up once.
pub(crate) struct Warm {
    store: Store<State>,
    instance: component::Instance,
    on_request: Option<TypedFunc<(), (WireOutcome,)>>,
    on_response: Option<TypedFunc<(), (WireResponseOutcome,)>>,
    /// Requests served before this one.
    pub(crate) requests: u32,
}

impl Warm {
    fn new(store: Store<State>, instance: component::Instance) -> Self {
        Self { store, instance, on_request: None, on_response: None, requests: 0 }
    }

    pub(crate) fn renew(&mut self, track: &'static str, effects: Effects) {
        self.store.data_mut().renew(track, effects);
    }

    pub(crate) fn memory_bytes(&self) -> u64 {
        self.store.data().memory.bytes
    }

    fn function<P, R>(&mut self, index: ComponentExportIndex) -> Result<TypedFunc<P, R>>
    where
        P: ComponentNamedList + Lower,
        R: ComponentNamedList + Lift,
    {
        self.instance.get_typed_func(&mut self.store, index)
    }
}

impl Instance {
    pub(crate) fn fresh(filter: Arc<Filter>, track: &'static str, effects: Effects, reservation: Reservation) -> Self {
        let reservation = Some(reservation);
        Self {
            filter,
            track,
            effects,
            shown: None,
            warm: None,
            reservation,
            failed: false,
            called: false,
            now: None,
            upstreams: None,
        }
    }

    pub(crate) fn reused(
        filter: Arc<Filter>,
        track: &'static str,
        effects: Effects,
        warm: Warm,
        reservation: Reservation,
    ) -> Self {
        let mut instance = Self::fresh(filter, track, effects, reservation);
        instance.warm = Some(warm);
        instance
    }

    /// Returns its linear memory in bytes; 0 before its first call.
    pub fn memory_bytes(&self) -> u64 {
        self.warm.as_ref().map_or(0, Warm::memory_bytes)
    }

    /// Returns what the instance has found in its key-value store since this was last asked; nothing unless its effects
    /// are noted.
    pub fn take_notes(&mut self) -> Notes {
        self.warm.as_mut().map(|warm| warm.store.data_mut().effects.take_notes()).unwrap_or_default()
    }

    /// Lets the next call find in the key-value store what another instance found there; without effect unless this
    /// one's effects are private.
    pub fn show(&mut self, notes: Notes) {
        self.shown = Some(notes);
    }

    /// Returns what the instance kept to itself since this was last asked; nothing unless its effects are private.
    pub fn take_kept(&mut self) -> Kept {
        self.warm.as_mut().map(|warm| warm.store.data_mut().effects.take_kept()).unwrap_or_default()
    }

    /// Lets the filter reach the upstreams that it is granted, for all calls that follow.
    pub fn reach(&mut self, upstreams: Arc<dyn Upstreams>) {
        self.upstreams = Some(upstreams);
    }

    /// Says when the call that follows begins, so that a caller who has just asked the clock spares it asking again. Its
    /// deadline is counted from there.
    pub fn at(&mut self, now: Instant) -> &mut Self {
        self.now = Some(now);
        self
    }

    /// Calls `on-request`.
    ///
    /// # Errors
    ///
    /// The guest trapped, ran past a limit, or answered with what cannot be sent. What it wrote before stays written.
    pub async fn on_request(&mut self, exchange: &mut Box<Exchange>) -> Result<Outcome, CallError> {
        let Some(index) = self.filter.exports.on_request else {
            return Ok(Outcome::Continue);
        };
        self.start().await?;
        let function = self.look_up(|warm| match warm.on_request {
            Some(function) => Ok(function),
            None => {
                let function = warm.function(index)?;
                Ok(*warm.on_request.insert(function))
            }
        })?;
        let wire = self.call(Phase::OnRequest, exchange, function, ()).await?;
        wire.try_into().map_err(|error| self.fail(error))
    }

    /// Calls `on-request-body`; `end` tells that nothing follows `chunk`.
    ///
    /// # Errors
    ///
    /// As [`Instance::on_request`].
    pub async fn on_request_body(
        &mut self,
        exchange: &mut Box<Exchange>,
        chunk: Bytes,
        end: bool,
    ) -> Result<BodyOutcome, CallError> {
        let Some(index) = self.filter.exports.on_request_body else {
            return Ok(BodyOutcome::Continue);
        };
        self.start().await?;
        let function: TypedFunc<(&[u8], bool), (WireBodyOutcome,)> = self.look_up(|warm| warm.function(index))?;
        let wire = self.call(Phase::OnRequestBody, exchange, function, (&chunk, end)).await?;
        wire.try_into().map_err(|error| self.fail(error))
    }

    /// Calls `on-response`; the exchange has a response.
    ///
    /// # Errors
    ///
    /// As [`Instance::on_request`].
    pub async fn on_response(&mut self, exchange: &mut Box<Exchange>) -> Result<ResponseOutcome, CallError> {
        let Some(index) = self.filter.exports.on_response else {
            return Ok(ResponseOutcome::Continue);
        };
        self.start().await?;
        let function = self.look_up(|warm| match warm.on_response {
            Some(function) => Ok(function),
            None => {
                let function = warm.function(index)?;
                Ok(*warm.on_response.insert(function))
            }
        })?;
        Ok(self.call(Phase::OnResponse, exchange, function, ()).await?.into())
    }

    /// Calls `on-response-body`; `end` tells that nothing follows `chunk`. Never waits: a filter that does this is on
    /// the inline lane.
    ///
    /// # Errors
    ///
    /// As [`Instance::on_request`].
    pub fn on_response_body(
        &mut self,
        exchange: &mut Box<Exchange>,
        chunk: Bytes,
        end: bool,
    ) -> Result<ResponseBodyOutcome, CallError> {
        let Some(index) = self.filter.exports.on_response_body else {
            return Ok(ResponseBodyOutcome::Continue);
        };
        self.check_usable()?;
        self.start_now()?;
        let function: TypedFunc<(&[u8], bool), (WireResponseBodyOutcome,)> =
            self.look_up(|warm| warm.function(index))?;
        Ok(self.call_now(Phase::OnResponseBody, exchange, function, (&chunk, end))?.into())
    }

    /// Starts the instance, and looks every function up that requests may call.
    pub(crate) async fn probe(&mut self) -> Result<(), CallError> {
        self.start().await?;
        let exports = self.filter.exports;
        self.look_up(|warm| {
            if let Some(index) = exports.on_request {
                warm.function::<(), (WireOutcome,)>(index)?;
            }
            if let Some(index) = exports.on_request_body {
                warm.function::<(&[u8], bool), (WireBodyOutcome,)>(index)?;
            }
            if let Some(index) = exports.on_response {
                warm.function::<(), (WireResponseOutcome,)>(index)?;
            }
            if let Some(index) = exports.on_response_body {
                warm.function::<(&[u8], bool), (WireResponseBodyOutcome,)>(index)?;
            }
            Ok(())
        })
    }

    fn check_usable(&self) -> Result<(), CallError> {
        if self.failed {
            return Err(CallError::new(CallErrorKind::Trap, "the instance has failed before"));
        }
        Ok(())
    }

    async fn start(&mut self) -> Result<(), CallError> {
        self.check_usable()?;
        match self.filter.lane {
            Lane::Inline => self.start_now(),
            Lane::Fibre if self.warm.is_some() => Ok(()),
            Lane::Fibre => {
                // What is dropped while it starts, or fails to, is never called.
                self.failed = true;
                let mut store = self.filter.store(self.track, self.effects);
                let deadline = self.start_deadline();
                store.data_mut().set_deadline(self.now.unwrap_or_else(Instant::now), deadline);
                let deadline = self.wall(deadline);
                // The future must be one that can be sent, and a reference to the instance cannot be.
                let (filter, unconfigured) = (Arc::clone(&self.filter), self.unconfigured());
                let started = tokio::time::timeout(deadline, async {
                    store.set_epoch_deadline(1);
                    let instance = filter.pre.instantiate_async(&mut store).await?;
                    if let Some(index) = unconfigured {
                        let function = instance.get_typed_func::<(&str,), Accepted>(&mut store, index)?;
                        begin_configure(&mut store);
                        let accepted = function.call_async(&mut store, (&filter.shared.settings,)).await?;
                        Self::end_configure(&filter, &mut store, accepted)?;
                    }
                    Ok(instance)
                });
                match started.await {
                    Ok(Ok(instance)) => {
                        self.warm = Some(Warm::new(store, instance));
                        self.failed = false;
                        Ok(())
                    }
                    Ok(Err(error)) => Err(self.failure(&mut store, &error)),
                    Err(_) => Err(overdue()),
                }
            }
        }
    }

    fn start_now(&mut self) -> Result<(), CallError> {
        if self.warm.is_some() {
            return Ok(());
        }
        let mut store = self.filter.store(self.track, self.effects);
        store.set_epoch_deadline(epochs(self.start_deadline()));
        store.data_mut().set_deadline(self.now.unwrap_or_else(Instant::now), self.start_deadline());
        let started = self.filter.pre.instantiate(&mut store).and_then(|instance| {
            if let Some(index) = self.unconfigured() {
                let function = instance.get_typed_func::<(&str,), Accepted>(&mut store, index)?;
                begin_configure(&mut store);
                let settings = self.filter.shared.settings.clone();
                let accepted = function.call(&mut store, (&settings,))?;
                Self::end_configure(&self.filter, &mut store, accepted)?;
            }
            Ok(instance)
        });
        match started {
            Ok(instance) => {
                self.warm = Some(Warm::new(store, instance));
                Ok(())
            }
            Err(error) => Err(self.failure(&mut store, &error)),
        }
    }

    /// Returns where `configure` is, if each instance has to run it.
    fn unconfigured(&self) -> Option<ComponentExportIndex> {
        self.filter.exports.configure.filter(|_| self.filter.not_snapshotted.is_some())
    }

    fn start_deadline(&self) -> std::time::Duration {
        let limits = &self.filter.shared.limits;
        if self.unconfigured().is_some() { limits.configure_deadline } else { limits.deadline }
    }

    fn end_configure(filter: &Filter, store: &mut Store<State>, (accepted,): Accepted) -> Result<()> {
        let state = store.data_mut();
        state.flush_stdio();
        state.phase = Phase::Start;
        let declarations = state.declarations.take().unwrap_or_default();
        if let Err(complaint) = accepted {
            bail!("`configure` refused in an instance what it accepted at load: {complaint}");
        }
        if declarations != filter.declarations {
            bail!("`configure` declared something else in an instance than at load");
        }
        Ok(())
    }

    /// Does something with the started instance that is not a call; it fails only where the component lies about its types.
    fn look_up<T>(&mut self, look: impl FnOnce(&mut Warm) -> Result<T>) -> Result<T, CallError> {
        match &mut self.warm {
            Some(warm) => look(warm).map_err(|error| CallError::new(CallErrorKind::Trap, format!("{error:#}"))),
            None => Err(CallError::new(CallErrorKind::Trap, "the instance was not started")),
        }
    }

    async fn call<P, R>(
        &mut self,
        phase: Phase,
        exchange: &mut Box<Exchange>,
        function: TypedFunc<P, (R,)>,
        parameters: P,
    ) -> Result<R, CallError>
    where
        P: ComponentNamedList + Lower,
        R: Lift + 'static,
        (R,): ComponentNamedList + Lift,
    {
        if self.filter.lane == Lane::Inline {
            return self.call_now(phase, exchange, function, parameters);
        }
        self.called = true;
        let deadline = self.filter.shared.limits.deadline;
        let wall = self.wall(deadline);
        let now = self.now.take().unwrap_or_else(Instant::now);
        // Whoever drops this future leaves the guest in the middle of something.
        self.failed = true;
        let Some(warm) = &mut self.warm else {
            return self.look_up(|_| bail!("the instance was not started"));
        };
        warm.store.set_epoch_deadline(1);
        warm.store.data_mut().reach(self.upstreams.as_ref());
        warm.store.data_mut().begin(now, deadline, self.shown.take());
        let loan = Loan::new(&mut warm.store, exchange, phase);
        let called = tokio::time::timeout(wall, function.call_async(&mut *loan.store, parameters)).await;
        loan.end();
        match called {
            Ok(Ok((outcome,))) => {
                self.failed = false;
                Ok(outcome)
            }
            Ok(Err(error)) => Err(warm.store.data().failure(&error)),
            Err(_) => Err(overdue()),
        }
    }

    fn call_now<P, R>(
        &mut self,
        phase: Phase,
        exchange: &mut Box<Exchange>,
        function: TypedFunc<P, (R,)>,
        parameters: P,
    ) -> Result<R, CallError>
    where
        P: ComponentNamedList + Lower,
        R: Lift + 'static,
        (R,): ComponentNamedList + Lift,
    {
        self.called = true;
        let deadline = self.filter.shared.limits.deadline;
        let now = self.now.take().unwrap_or_else(Instant::now);
        let Some(warm) = &mut self.warm else {
            return self.look_up(|_| bail!("the instance was not started"));
        };
        warm.store.set_epoch_deadline(epochs(deadline));
        warm.store.data_mut().begin(now, deadline, self.shown.take());
        let loan = Loan::new(&mut warm.store, exchange, phase);
        let called = function.call(&mut *loan.store, parameters);
        loan.end();
        match called {
            Ok((outcome,)) => Ok(outcome),
            Err(error) => {
                self.failed = true;
                Err(warm.store.data().failure(&error))
            }
        }
    }

    /// Returns how long a call on the fibre lane may take by the clock on the wall.
    fn wall(&self, deadline: std::time::Duration) -> std::time::Duration {
        if self.effects == Effects::Private { deadline + OVERTIME_WALL } else { deadline }
    }

    fn failure(&mut self, store: &mut Store<State>, error: &wasmtime::Error) -> CallError {
        self.failed = true;
        store.data_mut().flush_stdio();
        store.data().failure(error)
    }

    fn fail(&mut self, error: CallError) -> CallError {
        self.failed = true;
        error
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let Some(reservation) = self.reservation.take() else {
            return;
        };
        let used_up = self.failed || self.effects == Effects::Private;
        let warm = self.warm.take().filter(|_| !used_up).map(|mut warm| {
            // A probe is started, and serves nobody.
            warm.requests += u32::from(self.called);
            warm.store.data_mut().reach(None);
            warm
        });
        self.filter.give_back(warm, reservation);
    }
}

fn begin_configure(store: &mut Store<State>) {
    let state = store.data_mut();
    state.phase = Phase::Configure;
    state.declarations = Some(Declarations::default());
}

fn overdue() -> CallError {
    CallError::new(CallErrorKind::Deadline, "the deadline passed while the filter was running or waiting")
}

/// The exchange while it is the guest's. It goes back however the call ends, also where it is dropped in the middle.
struct Loan<'a> {
    store: &'a mut Store<State>,
    exchange: &'a mut Box<Exchange>,
}

impl<'a> Loan<'a> {
    fn new(store: &'a mut Store<State>, exchange: &'a mut Box<Exchange>, phase: Phase) -> Self {
        let state = store.data_mut();
        state.phase = phase;
        std::mem::swap(&mut state.exchange, exchange);
        Self { store, exchange }
    }

    /// Ends the loan; as dropping it, but it says so.
    fn end(self) {}
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        let state = self.store.data_mut();
        state.flush_stdio();
        std::mem::swap(&mut state.exchange, self.exchange);
    }
}
