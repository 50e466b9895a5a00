//! What a configuration means. A *model* is the outcome of resolving a file: every name is found, every unit is parsed,
//! every default is filled in, and whatever could be contradictory is an enum. Nothing here knows how it was written,
//! but for the [`Place`] that each item keeps, so that a later complaint (a component that refuses its settings, say)
//! can be shown where the operator wrote it.

mod grants;
mod plan;
mod policy;
mod seeing;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::problem::Place;
use crate::units::{ByteSize, Secret, Share, Weight};

pub use self::grants::{FolderGrant, OutboundGrant, UpstreamGrant, reached_upstreams};
pub use self::plan::{
    Decider, FailureGuard, FailureKind, Guard, OnBad, Plan, ShadowLimits, SlownessGuard, Stage, Step,
};
pub use self::policy::{
    Body, Cors, ErrorPage, FixedResponse, HeaderEdits, Mirror, Origin, PathRewrite, Placeholder, REGEX_BYTES_MAX,
    RateLimit, Redirect, Rewrite, RoutePolicy, RouteTimeouts, StatusPattern, Template, TemplatePiece,
};

pub use self::seeing::{AccessLog, ContinueFrom, LogField, LogFormat, LogOutput, LogPiece, Otlp, Redact, Tracing};

/// A whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// What is not finished, and allowed all the same.
    pub experimental: Experimental,
    /// What holds for the process.
    pub server: Server,
    /// Where requests come in; at least one.
    pub listeners: Vec<Listener>,
    /// Where the operator comes in.
    pub admin: Admin,
    /// Traces. Default: none.
    pub tracing: Option<Tracing>,
    /// In the order of the file. Names are unique.
    pub upstreams: Vec<Upstream>,
    /// In the order of the file. Names are unique.
    pub filters: Vec<Filter>,
    /// In the order of the file. Names are unique among the functions.
    pub functions: Vec<Function>,
    /// In the order of the file. Names are unique, and no two match the same requests.
    pub routes: Vec<Route>,
    /// In the order of the file. Names are unique, and no two move the same filter, function or upstream.
    pub rollouts: Vec<Rollout>,
}

/// What is not finished. Nothing of it is allowed by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Experimental {
    /// Functions of WASI 0.3.
    pub wasi_03: bool,
}

/// What holds for the process. Read at start only: threads, directories, pool and compiler settings. All else reloads.
#[derive(Clone, Debug)]
pub struct Server {
    /// Threads that serve requests. Default: one for each core.
    pub threads: usize,
    /// Threads that compile components, at low priority. Default: 1.
    pub compile_threads: usize,
    /// Where rollouts' state, the quarantine, last good versions and the audit log are kept. Default: `state` beside
    /// the configuration file.
    pub state_dir: PathBuf,
    /// Where artifacts are kept. Default: `cache` beside the configuration file.
    pub cache_dir: PathBuf,
    /// Artifacts are dropped, least recently used first, beyond this. Default: 1 GiB.
    pub cache_size: ByteSize,
    /// Instances of filters that may live at the same time, in the whole process. Default: 1,000.
    pub instances: u32,
    /// The largest `limits.memory` of any filter; each instance reserves address space of this size. Default: 64 MiB.
    pub instance_memory: ByteSize,
    /// Where the spaces of grants are. Default: embedded.
    pub key_value: KeyValueStore,
    /// How long requests may go on after a stop, and on an old snapshot after a reload. Default: 30 s.
    pub drain: Duration,
    /// Whether the file and the components it names are watched, and reloaded when they change. Default: true.
    pub watch: bool,
    /// The access log; none where it is off. Default: JSON to stdout.
    pub access_log: Option<AccessLog>,
    /// How long connections that became tunnels may go on after a stop. Default: as long as [`Self::drain`].
    pub drain_tunnels: Duration,
    /// Peers whose forwarding headers, PROXY headers and `x-request-id` are believed. Default: none.
    pub trusted_proxies: Arc<[IpNet]>,
    /// Limits of a request, before any filter's.
    pub limits: RequestLimits,
    /// What the gateway's own errors look like, behind a route's pages. Default: a line of text.
    pub error_pages: Vec<ErrorPage>,
    /// Whether a version that may do more than the one that serves waits for a person's word, where neither filter nor
    /// function says so itself. Default: no.
    pub require_approval: bool,
}

/// A key-value store that outlives the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyValueStore {
    /// A file in [`Server::state_dir`].
    Embedded,
    /// A Redis server, by its address.
    Redis(Secret),
}

/// Limits of a request, before any filter's.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    /// Bytes of a request's body; a longer one is answered with 413. Default: none.
    pub body: Option<ByteSize>,
    /// Requests under way at the same time, in the whole gateway. Default: no limit.
    pub requests: Option<u32>,
    /// Time to read the request's headers, and between two pieces of its body. Default: 60 s.
    pub read_timeout: Duration,
    /// Time to write a piece of a response to the client. Default: 60 s.
    pub write_timeout: Duration,
    /// Time that an unused connection stays open. Default: 75 s.
    pub idle_timeout: Duration,
    /// Time that a connection stays open after an upgrade without a byte. Default: 10 min.
    pub tunnel_idle_timeout: Duration,
    /// Bytes a second that a request's body must come with on average, once `read_timeout` has passed. Default: 64.
    pub body_rate: ByteSize,
    /// Lines of a request's header. Default: 100.
    pub headers: u32,
    /// Bytes of a request's header. Default: 64 KiB.
    pub header_bytes: ByteSize,
    /// Requests of one connection, after which it closes. Default: 10,000.
    pub requests_per_connection: u32,
    /// Requests under way of one HTTP/2 connection. Default: 100. Read at start only.
    pub http2_streams: u32,
    /// Open client connections. Default: 20,000.
    pub connections: u32,
    /// Open connections of one client address, where it is no trusted proxy's. Default: 1,000.
    pub connections_per_address: u32,
}

/// Where requests come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// An address and port, or a Unix socket. Port 0 takes a free one, which the log tells.
    pub address: ListenAddress,
    /// Whether connections begin with a PROXY header, of version 1 or 2. Default: false.
    pub proxy_protocol: bool,
    /// Whether HTTP/2 without TLS (prior knowledge) is understood beside HTTP/1.1. Default: true.
    pub h2c: bool,
    /// How TLS ends here. Default: not at all.
    pub tls: Option<Tls>,
    /// The port of HTTPS that clients are sent to instead of being served; never with [`Self::tls`]. Default: none.
    pub redirect_to_https: Option<u16>,
}

impl Listener {
    /// Returns a listener with every default.
    #[must_use]
    pub const fn new(address: ListenAddress) -> Self {
        Self { address, proxy_protocol: false, h2c: true, tls: None, redirect_to_https: None }
    }
}

/// TLS on a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// At least one; the first is the default.
    pub certificates: Vec<Certificate>,
    /// Default: 1.2.
    pub min_version: TlsVersion,
    /// In the order of preference, at least one. Default: HTTP/2, then HTTP/1.1.
    pub alpn: Vec<Alpn>,
    /// Default: clients are not asked for a certificate.
    pub client_auth: Option<ClientAuth>,
    /// Default: 10 s.
    pub handshake_timeout: Duration,
    /// Default: none.
    pub hsts: Option<Hsts>,
}

/// The files of a certificate, relative paths resolved against the configuration file's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The certificate, and those between it and its authority.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    /// RFC 5246.
    Tls12,
    /// RFC 8446.
    Tls13,
}

/// What is spoken inside TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// HTTP/2.
    H2,
    /// HTTP/1.1.
    Http1,
}

/// How clients show who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAuth {
    /// The authorities that their certificates must come from.
    pub ca: PathBuf,
    /// Whether a client without a certificate is turned away. Default: true.
    pub required: bool,
}

/// What browsers are told about HTTPS (RFC 6797).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hsts {
    /// How long it holds, in whole days. Default: 365 days.
    pub max_age: Duration,
    /// Whether it holds for all hosts below as well. Default: false.
    pub include_subdomains: bool,
    /// Whether the host may be put on the lists that browsers ship. Default: false.
    pub preload: bool,
}

/// Where the operator comes in: API, metrics and health.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Default: `127.0.0.1:9901`.
    pub address: ListenAddress,
    /// Asked of each call but `/healthz`, `/readyz` and `/metrics` as `authorization: Bearer …`. Required where the
    /// address is neither loopback nor a Unix socket.
    pub token: Option<Secret>,
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    /// `127.0.0.1:9901`
    Tcp(SocketAddr),
    /// `unix:/run/lockgate/admin.sock`. The mode is 0600 for the admin, and 0660 for a listener.
    Unix(PathBuf),
}

/// A named group of endpoints that serve the same thing.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Unique among the upstreams.
    pub name: Arc<str>,
    /// At least one unless they are in a file, each with its share beside the others', 1 to 100. Host names are resolved by the gateway, never on a
    /// thread that serves requests.
    pub endpoints: Vec<(Endpoint, u32)>,
    /// The file that has them instead, and where it is named; then there are none above.
    pub endpoints_file: Option<(PathBuf, Place)>,
    /// Whose turn it is. Default: one after the other.
    pub balance: Balance,
    /// All set by default.
    pub timeouts: UpstreamTimeouts,
    /// Which HTTP version is spoken. Default: HTTP/1.1.
    pub protocol: UpstreamProtocol,
    /// TLS, where it is spoken.
    pub tls: Option<UpstreamTls>,
    /// When a request is sent again.
    pub retries: Retries,
    /// Idle connections kept for reuse, per endpoint. Default: 128.
    pub keepalive_connections: usize,
    /// What it is given at a time.
    pub limits: UpstreamLimits,
    /// How endpoints are asked whether they are well.
    pub health: Option<Health>,
    /// When an endpoint is taken out for its failures.
    pub ejection: Ejection,
    /// How long an endpoint that came back gets less than its share; zero for not at all.
    pub slow_start: Duration,
    /// Share of usable endpoints below which all of them are used. Default: 50 %.
    pub panic: Share,
    /// Where it stands in the file.
    pub place: Place,
}

/// What an upstream is given at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamLimits {
    /// Requests under way, to all endpoints together. Default: no limit.
    pub requests: Option<u32>,
    /// Open connections to each endpoint. Default: no limit.
    pub connections_per_endpoint: Option<u32>,
    /// Requests that wait for room. Default: [`Self::PENDING`].
    pub pending: u32,
    /// How long a request waits, at most. Default: [`Self::PENDING_TIMEOUT`].
    pub pending_timeout: Duration,
}

impl UpstreamLimits {
    /// A burst that is worth waiting for: a few megabytes of memory, and far more than what gets room within the time.
    pub const PENDING: u32 = 1_024;

    /// Long enough for a burst to pass; whoever waits longer than this waits for something that is too slow, and makes
    /// it slower.
    pub const PENDING_TIMEOUT: Duration = Duration::from_secs(1);
}

/// Whose turn it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Balance {
    /// One after the other, by weight.
    RoundRobin,
    /// The less busy of two that are drawn by weight.
    LeastRequests,
    /// By consistent hashing of the first of these that the request has.
    Hash(Vec<KeyPart>),
}

/// TLS to an upstream. Certificates are always verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// The name that the certificate must have; none: the endpoint's own, which then is no address.
    pub server_name: Option<String>,
    /// Trusted authorities, with the place where the file is named; none: the system's.
    pub ca: Option<(PathBuf, Place)>,
    /// Certificate chain and private key of the gateway.
    pub identity: Option<UpstreamIdentity>,
}

/// What the gateway shows to an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamIdentity {
    /// The certificate chain's file, and where it is named.
    pub cert: (PathBuf, Place),
    /// The private key's file, and where it is named.
    pub key: (PathBuf, Place),
}

/// When a request is sent again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retries {
    /// Further attempts. Default: 1.
    pub attempts: u32,
    /// Statuses that are worth one. Default: none.
    pub statuses: Vec<u16>,
    /// Further attempts as a share of the requests. Default: 20 %.
    pub budget: Share,
    /// The longest pause before the first further attempt; it doubles. Default: 25 ms.
    pub backoff: Duration,
    /// Whether a status is a reason for methods that are not idempotent, too. Default: no.
    pub non_idempotent: bool,
}

/// How endpoints are asked whether they are well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// What is asked.
    pub check: HealthCheck,
    /// Between two checks of an endpoint. Default: 5 s.
    pub interval: Duration,
    /// Of one check. Default: 1 s.
    pub timeout: Duration,
    /// Successes in a row until an endpoint is well again. Default: 2.
    pub healthy: u32,
    /// Failures in a row until it is not. Default: 3.
    pub unhealthy: u32,
}

/// What an endpoint is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthCheck {
    /// A GET.
    Http {
        /// Path and query. Default: `/`.
        path: String,
        /// Default: the endpoint.
        host: Option<String>,
        /// Statuses of one that is well; empty for 200 to 299.
        statuses: Vec<u16>,
    },
    /// The standard health service of gRPC.
    Grpc,
    /// To take a connection.
    Tcp,
}

/// When an endpoint is taken out for its failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// Failures in a row; 0 for never. Default: 5.
    pub failures: u32,
    /// How long the first time. Default: 10 s.
    pub duration: Duration,
    /// Share of the endpoints that can be out at the same time. Default: 50 %.
    pub max: Share,
}

/// One address of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// An address, or a name to resolve.
    pub host: Host,
    /// 1 to 65,535.
    pub port: u16,
}

/// An address, or a name to resolve.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// An address.
    Address(IpAddr),
    /// A name, in lower case.
    Name(String),
}

/// Timeouts towards an upstream.
#[derive(Clone, Copy, Debug)]
pub struct UpstreamTimeouts {
    /// To connect. Default: 5 s.
    pub connect: Duration,
    /// Between two reads. Default: 60 s.
    pub read: Duration,
    /// Of one write. Default: 60 s.
    pub write: Duration,
    /// Of an unused connection in the pool. Default: 60 s.
    pub idle: Duration,
    /// Of all attempts together, until the header of a response. Default: none.
    pub total: Option<Duration>,
}

/// Which HTTP version is spoken to an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS, by prior knowledge.
    H2c,
    /// HTTP/2 over TLS.
    H2,
    /// HTTP/2 or HTTP/1.1 over TLS, as the endpoint prefers.
    Auto,
}

/// A named step in a chain, in its stable version.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Unique among the filters.
    pub name: Arc<str>,
    /// What a rollout may change.
    pub version: FilterVersion,
    /// What all versions of the filter share.
    pub policy: FilterPolicy,
    /// Whether a version that may do more than the one that serves waits for a person's word. Default:
    /// [`Server::require_approval`].
    pub require_approval: bool,
    /// Where it stands in the file.
    pub place: Place,
}

/// What a rollout of a filter may change: the triple that makes a version.
#[derive(Clone, Debug)]
pub struct FilterVersion {
    /// The component's file, relative paths resolved against the configuration file's folder.
    pub component: PathBuf,
    /// Where the component is named.
    pub component_place: Place,
    /// The settings handed to `configure`, as JSON with variables expanded. May hold secrets: never shown.
    pub settings: Secret,
    /// The same settings as they were written, for dumps.
    pub settings_written: serde_json::Value,
    /// Where the settings are written; the filter's place where there are none.
    pub settings_place: Place,
    /// What it may touch.
    pub grants: Grants,
}

/// What a filter may touch. Nothing, by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Where outbound HTTP may go. They add up.
    pub outbound: Vec<OutboundGrant>,
    /// Upstreams that it may send HTTP requests to.
    pub upstreams: Vec<UpstreamGrant>,
    /// Folders that it sees, each under a path of its own. Functions only.
    pub folders: Vec<FolderGrant>,
    /// Names of spaces in [`Server::key_value`]; `default` is its own. A filter has at most one, and without keeps keys
    /// and values in the memory of the process.
    pub key_value: Vec<String>,
}

/// What all versions of a filter share.
#[derive(Clone, Debug, PartialEq)]
pub struct FilterPolicy {
    /// Default: [`Isolation::Request`].
    pub isolation: Isolation,
    /// Default: [`FailureMode::Closed`].
    pub on_failure: FailureMode,
    /// All set by default.
    pub limits: FilterLimits,
}

/// How long an instance lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// One request, all its phases.
    Request,
    /// Many requests, one after the other.
    Reused {
        /// Requests after which it is replaced. Default: 10,000.
        requests: u32,
        /// Linear memory beyond which it is replaced. Default: half of `limits.memory`.
        memory: ByteSize,
    },
}

/// What becomes of a request whose filter failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureMode {
    /// 503.
    Closed,
    /// As if the filter were not there.
    Open,
    /// 503, and after `failures` within `window` the version is quarantined, and the last good one serves.
    FallBack {
        /// Default: 5.
        failures: u32,
        /// Default: 30 s.
        window: Duration,
    },
}

/// Limits of a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterLimits {
    /// Of one call. Default: 10 ms, and 5 s where a grant may make it wait. At most 60 s; at most 1 s where none does, since
    /// the call holds a thread.
    pub deadline: Duration,
    /// Of `configure`. Default: 10 s.
    pub configure_deadline: Duration,
    /// Of one instance's linear memory. Default: 16 MiB; at most `server.instance_memory`.
    pub memory: ByteSize,
    /// Elements of its tables, together. Default: 20,000.
    pub table_elements: u32,
    /// Bytes that one host call may copy. Default: 4 MiB.
    pub copy: ByteSize,
    /// Instances alive at the same time, each version for itself. Default: 256.
    pub instances: u32,
    /// Bytes of a body that `buffer` holds. Default: 1 MiB.
    pub body: ByteSize,
    /// Bytes of the filter's key-value store. Default: 1 MiB.
    pub key_value: ByteSize,
    /// Entries of the filter's key-value store. Default: 100,000.
    pub key_value_entries: u32,
}

/// A component that answers requests itself, in its stable version.
#[derive(Clone, Debug)]
pub struct Function {
    /// Unique among the functions.
    pub name: Arc<str>,
    /// What a rollout may change.
    pub version: FunctionVersion,
    /// What all versions of the function share.
    pub policy: FunctionPolicy,
    /// Whether a version that may do more than the one that serves waits for a person's word. Default:
    /// [`Server::require_approval`].
    pub require_approval: bool,
    /// Where it stands in the file.
    pub place: Place,
}

/// What a rollout of a function may change: the triple that makes a version.
#[derive(Clone, Debug)]
pub struct FunctionVersion {
    /// The component's file, relative paths resolved against the configuration file's folder.
    pub component: PathBuf,
    /// Where the component is named.
    pub component_place: Place,
    /// Its environment, names and values, with variables expanded.
    pub vars: Vec<(String, Secret)>,
    /// The same environment as it was written, for dumps.
    pub vars_written: serde_json::Value,
    /// What it reads by `wasi:config`, names and texts, with variables expanded.
    pub config: Vec<(String, Secret)>,
    /// The same as it was written, for dumps.
    pub config_written: serde_json::Value,
    /// What it may touch.
    pub grants: Grants,
}

/// What all versions of a function share.
#[derive(Clone, Debug, PartialEq)]
pub struct FunctionPolicy {
    /// Default: [`Isolation::Request`].
    pub isolation: Isolation,
    /// All set by default.
    pub limits: FunctionLimits,
}

/// Limits of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionLimits {
    /// Time to the header of the response. Default: 30 s.
    pub deadline: Duration,
    /// Time for which one request may keep a thread busy. Default: 10 s.
    pub cpu: Duration,
    /// Of one instance's linear memory. Default: 64 MiB; at most `server.instance_memory`.
    pub memory: ByteSize,
    /// Elements of each of its tables. Default: 20,000.
    pub table_elements: u32,
    /// Instances alive at the same time, each version for itself. Default: 256.
    pub instances: u32,
    /// Bytes of each key-value space that it writes to. Default: 16 MiB.
    pub key_value: ByteSize,
    /// Entries of each key-value space that it writes to. Default: 100,000.
    pub key_value_entries: u32,
}

/// What answers which requests.
#[derive(Clone, Debug)]
pub struct Route {
    /// Unique among the routes. Default: what it matches, `GET api.example.com/users/{id}`.
    pub name: Arc<str>,
    /// Which requests.
    pub matcher: RouteMatch,
    /// Indices into [`Config::filters`], in the order of the request.
    pub filters: Vec<usize>,
    /// Middleware among the filters, in the order of the request. Default: none.
    pub middleware: Vec<Middleware>,
    /// Protocols that a connection may change to, in lower case. Default: `websocket`.
    pub upgrades: Vec<String>,
    /// How responses are compressed, the best first, where the client takes it. Default: not at all.
    pub compress: Vec<Coding>,
    /// Whether calls of gRPC-Web go to the upstream as gRPC. Default: no.
    pub grpc_web: bool,
    /// What it asks for that needs no filter.
    pub policy: RoutePolicy,
    /// What answers.
    pub target: Target,
    /// Where it stands in the file.
    pub place: Place,
}

/// A way to compress a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// RFC 8878.
    Zstd,
    /// RFC 7932.
    Brotli,
    /// RFC 1952.
    Gzip,
}

/// Which requests a route takes. Where several routes match, the more special wins: exact host before wildcard before
/// any; exact path before template before prefix, a longer one before a shorter; then more methods and headers asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteMatch {
    /// Default: any.
    pub hosts: Vec<HostPattern>,
    /// Default: any, the prefix `/`.
    pub path: PathPattern,
    /// In upper case. Default: any.
    pub methods: Vec<String>,
    /// All of them must hold.
    pub headers: Vec<HeaderMatch>,
}

/// A middleware in a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Middleware {
    /// Filters of the route that are in front of it.
    pub after: usize,
    /// An index into [`Config::functions`].
    pub function: usize,
    /// [`FailureMode::Closed`], the default, or [`FailureMode::Open`].
    pub on_failure: FailureMode,
}

/// Hosts in lower case, without a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// `api.example.com`
    Exact(String),
    /// `*.example.com`, kept as `.example.com`: one or more labels before it.
    Wildcard(String),
}

/// Paths.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathPattern {
    /// `path: /a/b`: nothing else.
    Exact(String),
    /// `path: /users/{id}/posts`: each `{name}` is one whole, non-empty segment.
    Template(Vec<Segment>),
    /// `path: /a/*`, kept as `/a/`: `/a`, and all below it. `/*` is kept as `/`: everything.
    Prefix(String),
}

/// A segment of a template.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Segment {
    /// As it stands.
    Literal(String),
    /// `{name}`
    Parameter(String),
}

/// A condition on a header.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeaderMatch {
    /// In lower case.
    pub name: String,
    /// None: it is there, with any value. Some: one of its values is this.
    pub value: Option<String>,
}

/// What answers a route.
#[derive(Clone, Debug)]
pub enum Target {
    /// Indices into [`Config::upstreams`].
    Upstream {
        /// What is used unless a filter chooses another.
        upstream: usize,
        /// What a filter may choose.
        alternatives: Vec<usize>,
    },
    /// Index into [`Config::functions`].
    Function {
        /// What answers.
        function: usize,
    },
    /// The files of a folder.
    Static(StaticFolder),
    /// Another address.
    Redirect(Redirect),
    /// Always the same.
    Respond(FixedResponse),
}

/// A folder whose files answer requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticFolder {
    /// Relative paths are resolved against the configuration file's folder.
    pub folder: PathBuf,
    /// Names of the file that answers for a folder, in order of preference; paths inside of it. Default: `index.html`.
    pub index: Vec<String>,
    /// The file that answers for what is not there; a path inside the folder. Default: none.
    pub fallback: Option<String>,
    /// Whether files with `.br`, `.zst` or `.gz` behind their names are sent in the place of those without. Default: true.
    pub precompressed: bool,
    /// The header `cache-control` of files. Default: none.
    pub cache_control: Option<String>,
    /// Where the folder is named.
    pub place: Place,
}

/// The state of moving one filter, function or upstream from its stable to its canary version.
#[derive(Clone, Debug)]
pub struct Rollout {
    /// Unique among the rollouts.
    pub name: Arc<str>,
    /// What moves, and where to.
    pub subject: RolloutSubject,
    /// How it moves, as the file has it. The state may overlay it.
    pub plan: Plan,
    /// What is watched. Default: none where a person moves the weight, and [`Guard`]'s own defaults otherwise.
    pub guard: Option<Guard>,
    /// What happens when the guard has shown that the canary is worse. Default: [`OnBad::RollBack`].
    pub on_bad: OnBad,
    /// Who decides. Default: [`Decider::Local`].
    pub decider: Decider,
    /// How the canary runs where it is a shadow. All set by default.
    pub shadow: ShadowLimits,
    /// Rollouts with the same link move together. They have the same plan, key and salt. Default: none.
    pub link: Option<Arc<str>>,
    /// What is hashed, in order of preference; at least one. Default: the client's address.
    pub key: Vec<KeyPart>,
    /// Hashed with the key. Default: the link, or else the rollout's name. Rollouts with the same salt and key send the same users to
    /// their canaries.
    pub salt: Arc<str>,
    /// Who may ask for a track outright. Default: nobody.
    pub overriding: Option<Override>,
    /// Where it stands in the file.
    pub place: Place,
}

impl Rollout {
    /// Returns the canary's share that the rollout begins with.
    #[must_use]
    pub fn weight(&self) -> Weight {
        match &self.plan {
            Plan::Weight(weight) => *weight,
            Plan::Steps(steps) => steps.first().map_or(Weight::ZERO, |step| step.stage.weight()),
            Plan::Shadow => Weight::ZERO,
        }
    }
}

/// What a rollout moves.
#[derive(Clone, Debug)]
pub enum RolloutSubject {
    /// A filter.
    Filter {
        /// Index into [`Config::filters`].
        filter: usize,
        /// Component, settings and grants; what the file leaves out is stable's.
        canary: FilterVersion,
    },
    /// A function.
    Function {
        /// Index into [`Config::functions`].
        function: usize,
        /// Component, environment and grants; what the file leaves out is stable's.
        canary: FunctionVersion,
    },
    /// An upstream.
    Upstream {
        /// Index into [`Config::upstreams`].
        upstream: usize,
        /// Index into [`Config::upstreams`].
        canary: usize,
    },
}

/// An attribute of a request that may be hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPart {
    /// A header's first value, by its name in lower case.
    Header(String),
    /// A cookie's value.
    Cookie(String),
    /// A query parameter's first value.
    Query(String),
    /// The client's address.
    ClientIp,
    /// The path.
    Path,
}

/// Who may ask for a track outright.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// The header, in lower case; its value is `stable` or `canary`. Default: `x-lockgate-track`.
    pub header: String,
    /// Peers (not forwarded addresses) from which it is honoured; at least one.
    pub trusted: Vec<IpNet>,
}
