//! What an instance of a function carries with it: the store's data.

use std::sync::{Arc, LazyLock};

use http::{HeaderMap, HeaderName};
use wasmtime::component::ResourceTable;
use wasmtime::{ResourceLimiter, Result};
use wasmtime_wasi::cli::{StdinStream, StdoutStream};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{
    DEFAULT_FORBIDDEN_HEADERS, Error, ForbiddenHeaderFilter, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView,
    WasiHttpHooks, WasiHttpView,
};

use super::Next;
use super::turn::{Shared, Turn};
use crate::error::{CallError, CallErrorKind};
use crate::memory::Memory;
use crate::outbound::{self, Sending};
use crate::sink::Level;
use crate::wasi::Printer;

/// What the names of headers begin with by which a function gets the parameters of its path. The gateway takes those of
/// clients away, and a guest may pass them on.
pub const PARAMETER_PREFIX: &str = "x-lockgate-param-";

/// Handles that a guest may hold at a time. Each may stand for up to [`FIELDS_BYTES_MAX`] of the host's memory.
const HANDLES_MAX: usize = 1_000;
/// Size of one set of headers that a guest makes.
const FIELDS_BYTES_MAX: usize = 64 << 10;
/// Bytes of a body that one write may have: what is under way of a response, and no more, is in memory.
const WRITE_BYTES_MAX: usize = 64 << 10;
/// Random bytes that one call may ask for.
const RANDOM_BYTES_MAX: u64 = 64 << 10;

/// The data of one store.
pub(super) struct State {
    pub(super) turn: Arc<Turn>,
    pub(super) memory: Memory,
    pub(super) table: ResourceTable,
    /// Bytes of values that handles to compare and swap hold.
    pub(super) compared_bytes: usize,
    /// Made when first asked for: a hello asks for nothing.
    wasi: Option<Box<WasiCtx>>,
    http: WasiHttpCtx,
    hooks: Hooks,
    /// What is behind it, for the request under way; none once that was asked.
    pub(super) next: Option<Box<dyn Next>>,
}

impl State {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        shared.alive.begin();
        let turn = Turn::new(Arc::clone(shared));
        let mut table = ResourceTable::new();
        table.set_max_capacity(HANDLES_MAX);
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(FIELDS_BYTES_MAX);
        let hooks = Hooks { turn: Arc::clone(&turn) };
        Self { turn, memory: Memory::default(), table, compared_bytes: 0, wasi: None, http, hooks, next: None }
    }

    /// Gives a program its standard streams and its environment. Before anything of it runs.
    pub(super) fn be_command(
        &mut self,
        input: impl StdinStream + 'static,
        output: impl StdoutStream + 'static,
        environment: &[(String, String)],
    ) {
        let mut wasi = granted(&self.turn);
        wasi.stdin(input).stdout(output).envs(environment);
        self.wasi = Some(Box::new(wasi.build()));
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.turn.end();
        self.memory.end(&self.turn.shared.alive);
    }
}

impl ResourceLimiter for State {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> Result<bool> {
        let shared = &self.turn.shared;
        self.memory.grow(&shared.alive, shared.limits.memory_bytes, current, desired)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> Result<()> {
        self.memory.grow_failed(&self.turn.shared.alive, &error);
        Ok(())
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> Result<bool> {
        self.memory.check_table(self.turn.shared.limits.table_elements, desired)
    }
}

/// Begins what a guest finds of WASI. Nothing is granted but what is named here: no socket.
fn granted(turn: &Arc<Turn>) -> WasiCtxBuilder {
    let mut wasi = WasiCtx::builder();
    wasi.stderr(Printer::new(Level::Warn, Arc::clone(turn)))
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false)
        .max_random_size(RANDOM_BYTES_MAX);
    for folder in &turn.shared.folders {
        if let Err(problem) = folder.show(&mut wasi) {
            turn.log(Level::Warn, &problem);
        }
    }
    wasi
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let turn = &self.turn;
        let wasi = self.wasi.get_or_insert_with(|| {
            let mut wasi = granted(turn);
            wasi.stdout(Printer::new(Level::Info, Arc::clone(turn))).envs(&turn.shared.vars);
            Box::new(wasi.build())
        });
        WasiCtxView { ctx: wasi, table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.hooks, table: &mut self.table, ctx: &mut self.http }
    }
}

struct Hooks {
    turn: Arc<Turn>,
}

/// Returns whether a header is the gateway's: about the connection, or between the gateway and its operators.
pub(super) fn is_forbidden(name: &HeaderName) -> bool {
    let own = |name: &str| name.starts_with("x-lockgate-") && !name.starts_with(PARAMETER_PREFIX);
    DEFAULT_FORBIDDEN_HEADERS.contains(name) || own(name.as_str())
}

/// Removes what no guest gets to see. Wasmtime would as well, and ask the hooks, for which it would be the guest's doing.
pub(super) fn remove_forbidden(headers: &mut HeaderMap) {
    for name in DEFAULT_FORBIDDEN_HEADERS {
        headers.remove(name);
    }
    let own: Vec<HeaderName> = headers.keys().filter(|name| is_forbidden(name)).cloned().collect();
    for name in own {
        headers.remove(name);
    }
}

impl WasiHttpHooks for Hooks {
    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        let forbidden = is_forbidden(name);
        if forbidden {
            // The guest is told, and may go on without. If it does not, this is why.
            let message = format!("it was refused to set the header `{name}`, which belongs to the gateway");
            self.turn.refuse(CallErrorKind::ForbiddenHeader, message);
        }
        forbidden
    }

    fn forbidden_header_filter(&mut self) -> ForbiddenHeaderFilter {
        static FILTER: LazyLock<ForbiddenHeaderFilter> = LazyLock::new(|| Arc::new(is_forbidden));
        Arc::clone(&FILTER)
    }

    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _finished: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Sending {
        let turn = Arc::clone(&self.turn);
        let refuse = move |refused: CallError| {
            turn.log(Level::Warn, &refused.message);
            turn.shared.alive.refuse(refused.kind);
            turn.refuse(refused.kind, refused.message);
        };
        let sending = match outbound::check(self.turn.shared.access.as_ref(), &request) {
            Ok(way) => outbound::dispatch(way, self.turn.upstreams().as_deref(), request, options, refuse),
            Err(refused) => {
                let kind = refused.kind;
                refuse(refused);
                return outbound::denied(kind);
            }
        };
        Box::new(async move {
            let (mut response, finished) = Box::into_pin(sending).await?;
            remove_forbidden(response.headers_mut());
            Ok((response, finished))
        })
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        WRITE_BYTES_MAX
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        WRITE_BYTES_MAX
    }
}
