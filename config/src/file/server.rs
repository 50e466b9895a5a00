//! `server` and `admin`.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::access_log::{AccessLogForm, AccessLogWord};
use super::grants::RequireApproval;
use super::key_value::{StoreForm, StoreWord};
use super::policy::ErrorPage;
use super::written::{FilePath, Timeout, Whole, Written};
use crate::model::ListenAddress;
use crate::units::{ByteSize, Secret};

/// What is not finished.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[schemars(inline)]
pub(crate) enum Experiment {
    /// Functions of WASI 0.3.
    #[serde(rename = "wasi-0.3")]
    Wasi03,
}

/// What holds for the process.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Server {
    /// Threads that serve requests. Read at start only.
    #[schemars(extend("x-default" = "one for each core"))]
    pub(crate) threads: Option<Written<Whole<1, 1024>>>,
    /// Threads that compile components, at low priority. Read at start only.
    pub(crate) compile_threads: Written<Whole<1, 64>>,
    /// Folder for what must survive a restart: the state of rollouts, the quarantine, last good versions and the
    /// audit log. A relative path starts at the folder of this file. Read at start only.
    #[schemars(extend("x-default" = "`state` beside this file"))]
    pub(crate) state_dir: Option<Written<FilePath>>,
    /// Folder for precompiled components. It may be emptied while the gateway is down; the next start then takes
    /// longer. Read at start only.
    #[schemars(extend("x-default" = "`cache` beside this file"))]
    pub(crate) cache_dir: Option<Written<FilePath>>,
    /// Size of the precompiled components that are kept; beyond it, those that were used least recently go.
    /// Read at start only.
    pub(crate) cache_size: Written<ByteSize>,
    /// Instances of filters that may live at the same time, of all filters together. Read at start only.
    pub(crate) instances: Written<Whole<1, 100_000>>,
    /// The largest `limits.memory` that any filter may have. Each instance reserves this much address space, not
    /// memory. Read at start only.
    pub(crate) instance_memory: Written<ByteSize>,
    /// Where the spaces of `grants.key_value` are. `embedded`: in a file in `state_dir`. A map with `redis`: on a server,
    /// which several gateways may share. Read at start only.
    pub(crate) key_value: StoreForm,
    /// How long requests may go on after a stop, and on the old configuration after a reload.
    pub(crate) drain: Written<Duration>,
    /// How long connections that became tunnels (WebSockets, say) may go on after a stop.
    #[schemars(extend("x-default" = "as long as `drain`"))]
    pub(crate) drain_tunnels: Option<Written<Duration>>,
    /// Whether this file and the components that it names are watched, and reloaded when they change.
    pub(crate) watch: Written<bool>,
    /// The access log, with a line for each request. A word is short for where it goes.
    pub(crate) access_log: AccessLogForm,
    /// Networks of the proxies in front of this one. Only of these are `x-forwarded-for`, `forwarded` and the like,
    /// `x-forwarded-client-cert`, `x-request-id` and PROXY headers believed.
    pub(crate) trusted_proxies: Vec<Written<IpNet>>,
    /// Limits of every request, whatever its filters.
    pub(crate) limits: RequestLimits,
    /// What the gateway's own errors look like, on every route that has no page of its own for them.
    #[schemars(extend("x-default" = "a line of text, and the request's id"))]
    pub(crate) error_pages: Vec<ErrorPage>,
    /// `grants`: a version of a filter or function that may do more than the one that serves waits until somebody lets it
    /// in with `lockgate approve`. A canary's rollout does not begin before; a file with such a stable version is not
    /// taken. What serves goes on meanwhile. `nothing`: nobody is asked.
    pub(crate) require_approval: RequireApproval,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            threads: None,
            compile_threads: Written(Whole(1)),
            state_dir: None,
            cache_dir: None,
            cache_size: Written(ByteSize::gib(1)),
            instances: Written(Whole(1_000)),
            instance_memory: Written(ByteSize::mib(64)),
            key_value: StoreForm::Short(StoreWord::Embedded),
            drain: Written(Duration::from_secs(30)),
            drain_tunnels: None,
            watch: Written(true),
            access_log: AccessLogForm::Short(AccessLogWord::Stdout),
            trusted_proxies: Vec::new(),
            limits: RequestLimits::default(),
            error_pages: Vec::new(),
            require_approval: RequireApproval::Nothing,
        }
    }
}

/// Limits of every request.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RequestLimits {
    /// Size of a request's body; a longer one is answered with 413.
    #[schemars(extend("x-default" = "no limit"))]
    pub(crate) body: Option<Written<ByteSize>>,
    /// Requests under way at the same time, on all routes together; further ones are answered with 503 at once. Tunnels
    /// count.
    #[schemars(extend("x-default" = "no limit"))]
    pub(crate) requests: Option<Written<Whole<1, 1_000_000>>>,
    /// Time to read a request's headers, and between two pieces of its body.
    pub(crate) read_timeout: Written<Timeout>,
    /// Time to write a piece of a response to the client.
    pub(crate) write_timeout: Written<Timeout>,
    /// Time that an unused connection stays open. For HTTP/2, read at start only.
    pub(crate) idle_timeout: Written<Timeout>,
    /// Time that a connection that became a tunnel (a WebSocket, say) stays open without a byte.
    pub(crate) tunnel_idle_timeout: Written<Timeout>,
    /// Size that a request's body must grow by each second, on average, once `read_timeout` has passed; a slower one
    /// is answered with 408. Bodies of gRPC may wait, and so may everything with `0`.
    pub(crate) body_rate: Written<ByteSize>,
    /// Lines of a request's header; with more it is answered with 431.
    pub(crate) headers: Written<Whole<8, 256>>,
    /// Size of a request's header; a longer one is answered with 431. For HTTP/2, read at start only.
    pub(crate) header_bytes: Written<ByteSize>,
    /// Requests of one connection; then it is closed, and the client makes another one.
    pub(crate) requests_per_connection: Written<Whole<1, 1_000_000_000>>,
    /// Requests that one HTTP/2 connection may have under way. Read at start only.
    pub(crate) http2_streams: Written<Whole<1, 10_000>>,
    /// Client connections that may be open; further ones are closed at once.
    pub(crate) connections: Written<Whole<1, 1_000_000>>,
    /// Connections that may be open from one address, for IPv6 from one network of 64 bits; further ones are closed at
    /// once. The addresses of `trusted_proxies` and Unix sockets may have any number.
    pub(crate) connections_per_address: Written<Whole<1, 1_000_000>>,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            body: None,
            requests: None,
            read_timeout: seconds(60),
            write_timeout: seconds(60),
            idle_timeout: seconds(75),
            tunnel_idle_timeout: seconds(600),
            body_rate: Written(ByteSize(64)),
            headers: Written(Whole(100)),
            header_bytes: Written(ByteSize::kib(64)),
            requests_per_connection: Written(Whole(10_000)),
            http2_streams: Written(Whole(100)),
            connections: Written(Whole(20_000)),
            connections_per_address: Written(Whole(1_000)),
        }
    }
}

pub(super) const fn seconds(count: u64) -> Written<Timeout> {
    Written(Timeout(Duration::from_secs(count)))
}

pub(super) const fn no() -> Written<bool> {
    Written(false)
}

pub(super) const fn yes() -> Written<bool> {
    Written(true)
}

/// Where the operator comes in.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Admin {
    /// Address and port, or `unix:` and the path of a socket (made with mode 0600). Read at start only.
    pub(crate) address: Written<ListenAddress>,
    /// Asked of each call but `/healthz`, `/readyz` and `/metrics`, as `authorization: Bearer …`. Required where the
    /// address is neither loopback nor a Unix socket. Let it come from a variable: `"${LOCKGATE_TOKEN}"`.
    #[schemars(extend("x-default" = "none"))]
    pub(crate) token: Option<Written<Secret>>,
}

impl Default for Admin {
    fn default() -> Self {
        Self { address: Written(ListenAddress::Tcp(SocketAddr::from(([127, 0, 0, 1], 9901)))), token: None }
    }
}
