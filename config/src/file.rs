//! The written form of a configuration: what may stand in a file, key by key. The doc comments are the text of the
//! reference page and of the JSON Schema, so they speak to the operator.
//!
//! Nothing here looks beyond one value: names that are referred to, bounds that depend on each other and defaults that
//! depend on other keys are the matter of `resolve`.

mod access_log;
mod filter;
mod folder;
pub(crate) mod forms;
mod function;
mod grants;
mod key_value;
mod listener;
pub(crate) mod plan;
pub(crate) mod policy;
mod route;
mod server;
mod tracing;
pub(crate) mod upstream;
pub(crate) mod written;

use schemars::JsonSchema;
use serde::Deserialize;

pub(crate) use self::access_log::{AccessLog, AccessLogForm, AccessLogWord};
pub(crate) use self::filter::{
    FailureForm, FailureWord, FallBack, Filter, FilterLimits, Grants, IsolationForm, IsolationWord, Reused,
};
pub(crate) use self::folder::Static;
use self::forms::{Named, OneOrMany};
pub(crate) use self::function::{Function, FunctionLimits};
pub(crate) use self::grants::{Folder, OutboundForm, OutboundTo, RequireApproval};
pub(crate) use self::key_value::{StoreForm, StoreWord};
pub(crate) use self::listener::{Alpn, ClientAuthMode, ListenerForm, Tls};
pub(crate) use self::route::{
    Canary, Coding, HeaderCondition, KeyForm, KeyNamed, KeyWord, Link, LinkFailure, Match, Override, Rollout, Route,
};
pub(crate) use self::server::{Admin, Experiment, Server};
pub(crate) use self::tracing::{ContinueFrom, Tracing};
pub(crate) use self::upstream::{BalanceForm, EndpointForm, Protocol, Upstream, UpstreamForm};
pub(crate) use self::written::{FilePath, Status};

/// The configuration of a Lockgate gateway.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(title = "Lockgate configuration")]
pub(crate) struct File {
    /// What may change or go with any version, and is there for those who say so. `wasi-0.3`: functions of WASI 0.3, whose
    /// support Wasmtime calls unfinished.
    pub(crate) experimental: OneOrMany<Experiment>,
    /// What holds for the process.
    pub(crate) server: Server,
    /// Where requests come in; at least one. An address alone is short for a map with that `address`. A reload adds
    /// and removes them; one whose address cannot be bound is refused whole.
    pub(crate) listeners: Vec<ListenerForm>,
    /// Where the operator comes in: API, metrics and health.
    pub(crate) admin: Admin,
    /// Traces: the W3C's trace context, and spans for an OpenTelemetry collector. With this section each request has a
    /// trace id, which the access log has, and which filters, functions and upstreams see in `traceparent`; without it the
    /// header passes as it came.
    #[schemars(extend("x-default" = "none"))]
    pub(crate) tracing: Option<Tracing>,
    /// Named groups of endpoints that serve the same thing. A list alone is short for a map with these `endpoints`.
    pub(crate) upstreams: Named<UpstreamForm>,
    /// Named steps that requests and responses go through, each a WebAssembly component.
    pub(crate) filters: Named<Filter>,
    /// Named components that answer requests themselves: standard `wasi:http` ones, built by anyone with any toolchain.
    pub(crate) functions: Named<Function>,
    /// What answers which requests; at least one. Where several match, the more special wins, wherever it stands: an
    /// exact host before a wildcard before any; an exact path before a template before a prefix, a longer prefix
    /// before a shorter; then the one that asks for more methods and headers. Two that match the same are refused.
    pub(crate) routes: Vec<Route>,
    /// Named moves of a filter, a function or an upstream from its stable to its canary version.
    pub(crate) rollouts: Named<Rollout>,
}
