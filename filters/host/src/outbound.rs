//! Outbound HTTP: what a filter on the fibre lane may do besides looking at its request, through an allow-list and
//! through the gateway's own connections.
//!
//! There is one way out, [`Hooks::send_request`]: the crate that implements `wasi:http` is built without its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::uri::Scheme;
use http_body_util::BodyExt;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::bindings::http::types as wire;
use wasmtime_wasi_http::p2::types::{HostFutureIncomingResponse, HostOutgoingRequest};
use wasmtime_wasi_http::{
    Error, RequestOptions, WasiBody, WasiHttp, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView,
};

use crate::sink::Level;
use crate::spec::OutboundGrant;
use crate::state::State;
use crate::wasi::{self, Print, Printer};

/// Time to connect, TLS included: filters sit in the path of requests, and their deadlines are shorter still.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time that an unused connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Unused connections that are kept to one host.
const IDLE_PER_HOST_MAX: usize = 32;
/// Bytes that a guest may print in one call before they are read.
const PRINTED_BYTES_MAX: usize = 256 << 10;

/// The connections of all filters of a host. Cloning shares them.
pub(crate) type Connections = Client<HttpsConnector<HttpConnector>, WasiBody>;

/// Returns a pool without connections.
pub(crate) fn connections() -> Connections {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_nodelay(true);
    let tls =
        HttpsConnectorBuilder::new().with_webpki_roots().https_or_http().enable_all_versions().wrap_connector(tcp);
    Client::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .build(tls)
}

/// Where a filter may go, and by which connections.
#[derive(Clone)]
pub(crate) struct Access {
    pub(crate) grants: Arc<[OutboundGrant]>,
    pub(crate) connections: Connections,
}

/// What an instance holds for `wasi:http`, and on the fibre lane for the rest of WASI.
pub(crate) struct Outbound {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    hooks: Hooks,
    printed: Printed,
}

impl Outbound {
    /// `kept_in` is told of requests that would be sent, and are not.
    pub(crate) fn new(access: Option<Access>, kept_in: Option<Arc<AtomicBool>>) -> Self {
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
        let hooks = Hooks { access, kept_in, printed: printed.clone() };
        Self { wasi, http: WasiHttpCtx::new(), hooks, printed }
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
            state.log(
                Level::Warn,
                &format!("an outbound request to `{to}` was denied: the filter has no outbound grant"),
            );
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
        let (access, effects) = (&self.shared.access, &self.effects);
        let outbound =
            self.outbound.get_or_insert_with(|| Box::new(Outbound::new(access.clone(), effects.outbound_denied())));
        (outbound, &mut self.table)
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

struct Hooks {
    access: Option<Access>,
    kept_in: Option<Arc<AtomicBool>>,
    printed: Printed,
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
        match granted(self.access.as_ref(), &request) {
            Err(problem) => {
                self.printed.push(Level::Warn, format!("{problem}\n").as_bytes());
                denied()
            }
            Ok(connections) => match &self.kept_in {
                Some(kept_in) => {
                    kept_in.store(true, Ordering::Relaxed);
                    denied()
                }
                None => dispatch(connections, request, options),
            },
        }
    }
}

/// Returns the connections by which a request may go.
///
/// # Errors
///
/// No grant covers it; what is to be said about that.
pub(crate) fn granted(access: Option<&Access>, request: &http::Request<WasiBody>) -> Result<Connections, String> {
    let uri = request.uri();
    let tls = uri.scheme() == Some(&Scheme::HTTPS);
    // An address of version 6 is written in brackets in a URI, and may be in a grant.
    let bare = |host: &str| host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let host = bare(uri.host().unwrap_or_default());
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let connections = access.and_then(|access| {
        let covered = access.grants.iter().any(|grant| {
            grant.covers(tls, &host, port)
                || OutboundGrant { host: bare(&grant.host), ..grant.clone() }.covers(tls, &host, port)
        });
        covered.then(|| access.connections.clone())
    });
    connections.ok_or_else(|| {
        let scheme = if tls { "https" } else { "http" };
        format!("an outbound request to `{scheme}://{host}:{port}` was denied: no grant covers it")
    })
}

/// Returns what a guest gets for a request that is not sent.
pub(crate) fn denied() -> Sending {
    Box::new(async { Err(Error::HttpRequestDenied) })
}

/// Sends a request.
pub(crate) fn dispatch(
    connections: Connections,
    request: http::Request<WasiBody>,
    options: Option<RequestOptions>,
) -> Sending {
    let wait = options.and_then(|options| options.first_byte_timeout);
    Box::new(async move {
        let response = connections.request(request);
        let response = match wait {
            Some(wait) => tokio::time::timeout(wait, response).await.map_err(|_| Error::ConnectionReadTimeout)?,
            None => response.await,
        };
        let response = response.map_err(|error| failure(&error))?;
        let finished: Box<dyn Future<Output = Result<(), Error>> + Send> = Box::new(async { Ok(()) });
        Ok((response.map(|body| body.map_err(Error::from).boxed_unsync()), finished))
    })
}

fn failure(error: &hyper_util::client::legacy::Error) -> Error {
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
}

impl Printed {
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
