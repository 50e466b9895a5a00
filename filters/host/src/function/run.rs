//! Runs the guest: from an instance to the end of its handler, as one future that owns everything it needs.
//!
//! A guest of 0.2 is one call on one stack. Those of 0.3 have tasks, which go on after the handler has returned: the
//! future is over when none is left.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http::uri::{Authority, PathAndQuery};
use tokio::sync::oneshot;
use wasmtime::{Store, UpdateDeadline};
use wasmtime_wasi_http::handler::{Proxy, ProxyPre};
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::{WasiHttpView as _, p2, p3};

use super::body::RequestBody;
use super::call::{Answer, Call, Guest};
use super::fate::Fate;
use super::state::{State, remove_forbidden};
use super::turn::{Tick, late};
use super::world::Pre;
use super::{Function, Next, command};
use crate::budget::Reservation;
use crate::error::{CallError, CallErrorKind};
use crate::outbound::Upstreams;

/// Bytes that one call of the guest's may copy to the host: more than any write or set of headers may have.
const COPY_BYTES_MAX: usize = 1 << 20;

/// How long an instance without a task stays for what is on its way through it to the response. That is there at the next
/// turn; a body that goes on after this either comes from elsewhere, or will never end.
const TRANSIT: Duration = Duration::from_secs(1);

/// A started instance.
pub(super) struct Warm {
    store: Store<State>,
    proxy: Proxy,
    /// Requests that it may still serve.
    pub(super) left: u32,
}

/// A request, and for whom it is answered.
pub(super) struct Asked {
    pub(super) track: &'static str,
    pub(super) request_id: Arc<str>,
    pub(super) upstreams: Option<Arc<dyn Upstreams>>,
    pub(super) tls: bool,
    pub(super) request: http::Request<RequestBody>,
    pub(super) next: Option<Box<dyn Next>>,
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
    Fresh(Store<State>, Arc<ProxyPre<State>>),
}

impl Ready {
    fn state(&mut self) -> &mut State {
        match self {
            Self::Warm(Warm { store, .. }) | Self::Fresh(store, _) => store.data_mut(),
        }
    }
}

/// Puts a call together. Nothing of the guest runs yet.
pub(super) fn begin(function: &Arc<Function>, warm: Option<Warm>, reservation: Reservation, asked: Asked) -> Call {
    let Asked { track, request_id, upstreams, tls, mut request, next } = asked;
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
            let mut ready = warm.map_or_else(|| Ready::Fresh(store(function), Arc::clone(pre)), Ready::Warm);
            let state = ready.state();
            state.next = next;
            let turn = Arc::clone(&state.turn);
            let scheme = if tls { Scheme::Https } else { Scheme::Http };
            (turn, Box::pin(handle(ready, held, scheme, request, sender)))
        }
    };
    turn.begin(track, request_id, upstreams);
    Call::new(turn, guest, answer, head, function.world.is_03())
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
        Ready::Fresh(store, pre) => start(&held.function, &pre, store).await?,
    };
    warm.left = warm.left.saturating_sub(1);
    let again = warm.left > 0;
    let Warm { store, proxy, .. } = &mut warm;
    let ended = match proxy {
        Proxy::P2(proxy) => handle_02(store, proxy, scheme, request, answer).await.map(|()| true),
        Proxy::P3(service) => handle_03(store, service, request, answer).await,
    };
    let state = store.data_mut();
    state.next = None;
    match ended {
        Ok(clean) => {
            state.turn.end();
            held.warm = Some(warm).filter(|_| again && clean);
            Ok(())
        }
        Err(error) => Err(state.turn.failure(&error, state.memory.refused)),
    }
}

async fn handle_02(
    store: &mut Store<State>,
    proxy: &p2::bindings::Proxy,
    scheme: Scheme,
    request: http::Request<RequestBody>,
    answer: oneshot::Sender<Answer>,
) -> wasmtime::Result<()> {
    let request = store.data_mut().http().new_incoming_request(scheme, request)?;
    let answer = store.data_mut().http().new_response_outparam_from_callback(move |given| {
        // Whoever wanted it may be gone.
        let _ = answer.send(given.map_err(|code| format!("{code:?}")));
    })?;
    proxy.wasi_http_incoming_handler().call_handle(&mut *store, request, answer).await
}

/// Returns whether the instance has nothing left of this request.
async fn handle_03(
    store: &mut Store<State>,
    service: &p3::bindings::Service,
    request: http::Request<RequestBody>,
    answer: oneshot::Sender<Answer>,
) -> wasmtime::Result<bool> {
    let running = store.run_concurrent(async |accessor| {
        // The other half would tell how the request's body was taken.
        let request = accessor.with(|mut access| p3::Request::from_http(access.data_mut().http().hooks, request).0);
        let answered = match service.handle(accessor, request).await? {
            Ok(response) => Ok(accessor.with(|mut access| response.into_http(&mut access, async { Ok(()) }))?),
            Err(code) => Err(format!("{code:?}")),
        };
        let fate = Arc::new(Fate::default());
        // Whoever wanted it may be gone.
        let _ = answer.send(answered.map(|response| response.map(|body| Fate::watch(&fate, body))));
        poll_fn(|context| accessor.poll_no_interesting_tasks(context)).await;
        let over = poll_fn(|context| fate.poll_over(context));
        Ok(tokio::time::timeout(TRANSIT, over).await.is_ok())
    });
    running.await?
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
async fn start(function: &Function, pre: &ProxyPre<State>, mut store: Store<State>) -> Result<Warm, CallError> {
    match pre.instantiate_async(&mut store).await {
        Ok(proxy) => Ok(Warm { store, proxy, left: function.uses() }),
        Err(error) => {
            let state = store.data();
            Err(state.turn.failure(&error, state.memory.refused))
        }
    }
}

/// Returns a store with the function's limits on it.
pub(super) fn store(function: &Function) -> Store<State> {
    let mut store = Store::new(&function.engine, State::new(&function.shared));
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
