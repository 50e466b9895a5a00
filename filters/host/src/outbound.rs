//! Outbound HTTP: what a guest may do besides looking at its request, through what its grants cover and through the
//! gateway's own connections.
//!
//! There is one way out, [`Hooks::send_request`]: the crate that implements `wasi:http` is built without its own. It
//! follows no redirects; a guest that does asks again, and is checked again.

mod address;
mod connections;
mod policy;
mod upstreams;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http_body_util::BodyExt;
use parking_lot::Mutex;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::bindings::http::types as wire;
use wasmtime_wasi_http::p2::types::{HostFutureIncomingResponse, HostOutgoingRequest};
use wasmtime_wasi_http::{
    Error, RequestOptions, WasiBody, WasiHttp, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView,
};

pub(crate) use self::connections::Pools;
use self::connections::{Connections, Prohibited, Unresolved};
pub(crate) use self::policy::{Access, Way, check};
pub use self::upstreams::{UpstreamBody, UpstreamFailure, UpstreamSending, Upstreams};
use crate::error::{CallError, CallErrorKind};
use crate::sink::Level;
use crate::state::{Shared, State};
use crate::wasi::{self, Print, Printer};

/// Bytes that a guest may print in one call before they are read.
const PRINTED_BYTES_MAX: usize = 256 << 10;

/// What an instance holds for `wasi:http`, and on the fibre lane for the rest of WASI.
pub(crate) struct Outbound {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    hooks: Hooks,
    printed: Printed,
}

impl Outbound {
    /// `kept_in` is told of requests that would be sent, and are not.
    pub(crate) fn new(
        shared: Arc<Shared>,
        kept_in: Option<Arc<AtomicBool>>,
        upstreams: Option<Arc<dyn Upstreams>>,
    ) -> Self {
        let printed = Printed::default();
        // Nothing is granted but what is named here: no folder, no variable, no socket.
        let wasi = WasiCtx::builder()
            .stdout(Printer::new(Level::Info, printed.clone()))
            .stderr(Printer::new(Level::Warn, printed.clone()))
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false)
            .max_random_size(64 << 10)
            .build();
        let hooks = Hooks { shared, kept_in, upstreams, printed: printed.clone() };
        Self { wasi, http: WasiHttpCtx::new(), hooks, printed }
    }

    /// Returns what the guest was refused since this was last asked: where it then failed, that is why.
    pub(crate) fn take_refused(&self) -> Option<CallError> {
        self.printed.0.lock().refused.take()
    }

    /// Returns the lines printed since the last time.
    pub(crate) fn take_printed(&self) -> Vec<(Level, String)> {
        let mut printed = self.printed.0.lock();
        let lines = |level, bytes: &[u8]| {
            bytes
                .split(|&byte| byte == b'\n')
                .filter(|line| !line.is_empty())
                .map(|line| (level, wasi::text(line)))
                .collect::<Vec<_>>()
        };
        let mut taken = lines(Level::Info, &printed.stdout);
        taken.append(&mut lines(Level::Warn, &printed.stderr));
        printed.stdout.clear();
        printed.stderr.clear();
        taken
    }
}

/// Links `wasi:http` for a filter that has no grant: everything is there, and sending is denied. Nothing of it waits.
pub(crate) fn link_denied(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    link_types(linker)?;
    let mut handler = linker.instance(&format!("wasi:http/outgoing-handler@{}", wasi::VERSION))?;
    handler.func_wrap(
        "handle",
        |mut store: wasmtime::StoreContextMut<'_, State>,
         (request, _options): (Resource<HostOutgoingRequest>, Option<Resource<RequestOptions>>)| {
            let state = store.data_mut();
            let request = state.table.delete(request)?;
            let to = request.authority.unwrap_or_default();
            let message = format!("an outbound request to `{to}` was denied: the filter has no outbound grant");
            let (outbound, _) = state.outbound();
            outbound.hooks.refuse(CallError::new(CallErrorKind::Denied, message));
            Ok((Err::<Resource<HostFutureIncomingResponse>, _>(wire::ErrorCode::HttpRequestDenied),))
        },
    )
}

/// Links `wasi:http` for a filter with a grant.
pub(crate) fn link_granted(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    link_types(linker)?;
    wasmtime_wasi_http::p2::bindings::http::outgoing_handler::add_to_linker::<State, WasiHttp>(linker, State::http)
}

fn link_types(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let options = wasmtime_wasi_http::p2::bindings::LinkOptions::default();
    wire::add_to_linker::<State, WasiHttp>(linker, &(&options).into(), State::http)
}

impl State {
    fn outbound(&mut self) -> (&mut Outbound, &mut wasmtime::component::ResourceTable) {
        let (shared, effects, upstreams) = (&self.shared, &self.effects, &self.upstreams);
        let outbound = self.outbound.get_or_insert_with(|| {
            Box::new(Outbound::new(Arc::clone(shared), effects.outbound_denied(), upstreams.clone()))
        });
        (outbound, &mut self.table)
    }

    /// Sets by what the request reaches upstreams; none for one that is over: an instance that waits for the next one keeps
    /// nothing of it.
    pub(crate) fn reach(&mut self, upstreams: Option<&Arc<dyn Upstreams>>) {
        self.upstreams = upstreams.cloned();
        if let Some(outbound) = &mut self.outbound {
            outbound.hooks.upstreams = upstreams.cloned();
        }
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let (outbound, table) = self.outbound();
        WasiCtxView { ctx: &mut outbound.wasi, table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        let (outbound, table) = self.outbound();
        WasiHttpCtxView { hooks: &mut outbound.hooks, table, ctx: &mut outbound.http }
    }
}

#[derive(Clone)]
struct Hooks {
    shared: Arc<Shared>,
    kept_in: Option<Arc<AtomicBool>>,
    upstreams: Option<Arc<dyn Upstreams>>,
    printed: Printed,
}

impl Hooks {
    fn refuse(&self, refused: CallError) {
        self.shared.alive.refuse(refused.kind);
        self.printed.refuse(refused);
    }
}

type Sent = (http::Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>);

/// A request on its way.
pub(crate) type Sending = Box<dyn Future<Output = Result<Sent, Error>> + Send>;

impl WasiHttpHooks for Hooks {
    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _finished: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Sending {
        match check(self.shared.access.as_ref(), &request) {
            Err(refused) => {
                let kind = refused.kind;
                self.refuse(refused);
                denied(kind)
            }
            Ok(way) => match &self.kept_in {
                Some(kept_in) => {
                    kept_in.store(true, Ordering::Relaxed);
                    denied(CallErrorKind::Denied)
                }
                None => {
                    let hooks = self.clone();
                    let upstreams = self.upstreams.as_deref();
                    dispatch(way, upstreams, request, options, move |refused| hooks.refuse(refused))
                }
            },
        }
    }
}

/// Returns what a guest gets for a request that is not sent.
pub(crate) fn denied(kind: CallErrorKind) -> Sending {
    Box::new(async move { Err(refusal(kind)) })
}

/// Returns how a guest is told what was refused, each by its own name.
fn refusal(kind: CallErrorKind) -> Error {
    match kind {
        CallErrorKind::DeniedMethod => Error::HttpRequestMethodInvalid,
        CallErrorKind::DeniedAddress => Error::DestinationIpProhibited,
        _ => Error::HttpRequestDenied,
    }
}

/// Sends a request by the way that it may go.
pub(crate) fn dispatch(
    way: Way,
    upstreams: Option<&dyn Upstreams>,
    request: http::Request<WasiBody>,
    options: Option<RequestOptions>,
    refuse: impl FnOnce(CallError) + Send + 'static,
) -> Sending {
    match way {
        Way::Connections(connections) => connect(connections, request, options, refuse),
        Way::Upstream(name) => upstreams::send(upstreams, &name, request, options),
    }
}

/// Sends a request over a connection of its own. `refuse` is told where its name leads to an address that no guest may reach.
fn connect(
    connections: Arc<Connections>,
    request: http::Request<WasiBody>,
    options: Option<RequestOptions>,
    refuse: impl FnOnce(CallError) + Send + 'static,
) -> Sending {
    let wait = options.and_then(|options| options.first_byte_timeout);
    Box::new(async move {
        let shown = policy::shown(request.uri());
        let response = connections.request(request);
        let response = match wait {
            Some(wait) => tokio::time::timeout(wait, response).await.map_err(|_| Error::ConnectionReadTimeout)?,
            None => response.await,
        };
        let response = match response {
            Ok(response) => response,
            Err(error) => {
                let prohibited = Prohibited::of(&error);
                if let Some(prohibited) = prohibited {
                    refuse(policy::refused_address(&shown, prohibited));
                }
                return Err(failure(&error));
            }
        };
        let finished: Box<dyn Future<Output = Result<(), Error>> + Send> = Box::new(async { Ok(()) });
        Ok((response.map(|body| body.map_err(Error::from).boxed_unsync()), finished))
    })
}

fn failure(error: &hyper_util::client::legacy::Error) -> Error {
    if Prohibited::of(error).is_some() {
        return refusal(CallErrorKind::DeniedAddress);
    }
    if Unresolved::is_why(error) {
        return Error::DnsError { rcode: None, info_code: None };
    }
    if error.is_connect() {
        return Error::ConnectionRefused;
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    Error::InternalError(Some(text))
}

/// What was printed on the fibre lane, where the streams are Wasmtime's and cannot reach the store.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Pages>>);

#[derive(Default)]
struct Pages {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    refused: Option<CallError>,
}

impl Printed {
    /// Logs a refusal, and keeps the first.
    fn refuse(&self, refused: CallError) {
        self.push(Level::Warn, format!("{refused}\n").as_bytes());
        self.0.lock().refused.get_or_insert(refused);
    }

    fn push(&self, level: Level, bytes: &[u8]) {
        let mut pages = self.0.lock();
        let page = if level == Level::Warn { &mut pages.stderr } else { &mut pages.stdout };
        let room = PRINTED_BYTES_MAX.saturating_sub(page.len());
        page.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

impl Print for Printed {
    fn print(&self, level: Level, bytes: &[u8]) {
        self.push(level, bytes);
    }
}
