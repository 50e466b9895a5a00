//! Runs the guest: from an instance to the end of its handler, as one future that owns everything it needs.

use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;
use http::Uri;
use http::uri::{Authority, PathAndQuery};
use tokio::sync::oneshot;
use wasmtime::{Store, UpdateDeadline};
use wasmtime_wasi_http::WasiHttpView as _;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::p2::bindings::{Proxy, ProxyPre};

use super::Function;
use super::body::RequestBody;
use super::call::{Answer, Call, Guest};
use super::command;
use super::state::{State, remove_forbidden};
use super::turn::{Tick, Turn, late};
use super::world::Pre;
use crate::budget::Reservation;
use crate::error::{CallError, CallErrorKind};

/// Bytes that one call of the guest's may copy to the host: more than any write or set of headers may have.
const COPY_BYTES_MAX: usize = 1 << 20;

/// A started instance.
pub(super) struct Warm {
    store: Store<State>,
    proxy: Proxy,
    /// Requests served so far.
    pub(super) requests: u32,
}

impl Warm {
    pub(super) fn memory_bytes(&self) -> u64 {
        self.store.data().memory.bytes
    }
}

/// Where a request finds its guest.
enum Ready {
    Warm(Warm),
    /// Limits are set, nothing is instantiated yet.
    Fresh(Store<State>, ProxyPre<State>),
}

impl Ready {
    fn turn(&self) -> &Arc<Turn> {
        match self {
            Self::Warm(Warm { store, .. }) | Self::Fresh(store, _) => &store.data().turn,
        }
    }
}

/// Puts a call together. Nothing of the guest runs yet.
pub(super) fn begin(
    function: &Arc<Function>,
    warm: Option<Warm>,
    reservation: Reservation,
    track: &'static str,
    request_id: Arc<str>,
    tls: bool,
    mut request: http::Request<RequestBody>,
) -> Call {
    let held = Held { function: Arc::clone(function), warm: None, reservation: Some(reservation) };
    name_authority(&mut request, tls);
    remove_forbidden(request.headers_mut());
    let head = *request.method() == http::Method::HEAD;
    let (sender, answer) = oneshot::channel();
    let (turn, guest): (_, Guest) = match &function.pre {
        Pre::Command(pre) => {
            let store = store(function);
            let turn = Arc::clone(&store.data().turn);
            (turn, Box::pin(command::answer(pre.clone(), store, held, tls, request, sender)))
        }
        Pre::Handler(pre) => {
            let ready = warm.map_or_else(|| Ready::Fresh(store(function), pre.clone()), Ready::Warm);
            let turn = Arc::clone(ready.turn());
            let scheme = if tls { Scheme::Https } else { Scheme::Http };
            (turn, Box::pin(handle(ready, held, scheme, request, sender)))
        }
    };
    turn.begin(track, request_id);
    Call::new(turn, guest, answer, head)
}

/// Moves the host from its header to the target, where guests have it from.
fn name_authority(request: &mut http::Request<RequestBody>, tls: bool) {
    let host = request.headers_mut().remove(http::header::HOST);
    // HTTP/1.0 knows requests without.
    let authority = host.and_then(|host| Authority::from_maybe_shared(Bytes::copy_from_slice(host.as_bytes())).ok());
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.authority = authority.or(parts.authority).or_else(|| Some(Authority::from_static("localhost")));
    parts.scheme = Some(if tls { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP });
    parts.path_and_query.get_or_insert_with(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
}

/// The room for an instance, and the instance itself once its request has ended well. Goes back when dropped.
pub(super) struct Held {
    function: Arc<Function>,
    warm: Option<Warm>,
    reservation: Option<Reservation>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(reservation) = self.reservation.take() {
            self.function.give_back(self.warm.take(), reservation);
        }
    }
}

// `ready` stands before `held`: wherever this future is dropped, slots are given back when the store no longer fills them.
async fn handle(
    ready: Ready,
    mut held: Held,
    scheme: Scheme,
    request: http::Request<RequestBody>,
    answer: oneshot::Sender<Answer>,
) -> Result<(), CallError> {
    let mut warm = match ready {
        Ready::Warm(warm) => warm,
        Ready::Fresh(store, pre) => start(&pre, store).await?,
    };
    warm.requests += 1;
    let Warm { store, proxy, .. } = &mut warm;
    let called = async {
        let request = store.data_mut().http().new_incoming_request(scheme, request)?;
        let answer = store.data_mut().http().new_response_outparam(answer)?;
        proxy.wasi_http_incoming_handler().call_handle(&mut *store, request, answer).await
    };
    let ended = called.await;
    let state = store.data();
    match ended {
        Ok(()) => {
            state.turn.end();
            held.warm = Some(warm);
            Ok(())
        }
        Err(error) => Err(state.turn.failure(&error, state.memory.refused)),
    }
}

/// Starts an instance for nobody, and within the time of a request: it must not trap.
pub(super) async fn probe(function: &Arc<Function>, store: Store<State>) -> Result<(), CallError> {
    let limit = function.shared.limits.deadline;
    let turn = Arc::clone(&store.data().turn);
    let mut starting = Box::pin(try_start(function, store));
    let metered = poll_fn(|context| {
        let began = turn.poll_begins();
        let polled = starting.as_mut().poll(context);
        turn.poll_ends(began);
        polled
    });
    match tokio::time::timeout(limit, metered).await {
        Ok(started) => started,
        Err(_) => Err(CallError::new(CallErrorKind::Deadline, late(limit))),
    }
}

async fn try_start(function: &Function, mut store: Store<State>) -> Result<(), CallError> {
    match function.pre.instance_pre().instantiate_async(&mut store).await {
        Ok(_) => Ok(()),
        Err(error) => {
            let state = store.data();
            Err(state.turn.failure(&error, state.memory.refused))
        }
    }
}

/// Starts an instance of a handler.
async fn start(pre: &ProxyPre<State>, mut store: Store<State>) -> Result<Warm, CallError> {
    match pre.instantiate_async(&mut store).await {
        Ok(proxy) => Ok(Warm { store, proxy, requests: 0 }),
        Err(error) => {
            let state = store.data();
            Err(state.turn.failure(&error, state.memory.refused))
        }
    }
}

/// Returns a store with the function's limits on it.
pub(super) fn store(function: &Function) -> Store<State> {
    let mut store = Store::new(function.pre.instance_pre().engine(), State::new(&function.shared));
    store.limiter(|state| state);
    store.set_hostcall_fuel(COPY_BYTES_MAX);
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(|store| {
        Ok(match store.data().turn.tick() {
            Tick::Run => UpdateDeadline::Continue(1),
            // Tokio's own: it lets the thread look after its sockets before the guest goes on.
            Tick::Yield => UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())),
            Tick::Cut => UpdateDeadline::Interrupt,
        })
    });
    store
}
