//! Turns WebAssembly components into running filters and functions.
//!
//! A *component* is what a filter author ships. A [`Filter`] is one version of it, loaded: compiled, configured, and
//! proven to start. An [`Instance`] is one sandbox of a filter; it lives for one request and is called once for each
//! phase of an [`Exchange`]. A [`Function`] is a component that answers requests itself, and a [`Call`] one request's
//! answer in the making. The [`Host`] owns what they share: the engine, the compile threads, the artifact cache and
//! the budget of instances.
//!
//! This crate knows Wasmtime and nothing of the proxy around it: requests and responses are `http` types, log lines and
//! metrics go to a [`Sink`].
//!
//! What a filter may import and must export is `filters/wit/filter.wit`; a function is a standard `wasi:http` proxy of 0.2,
//! a service or middleware of 0.3, or a command of `wasi:cli` 0.2.

#![warn(missing_docs)]

mod artifact;
mod budget;
mod cache;
mod declare;
mod effects;
mod engine;
mod error;
mod exchange;
mod filter;
mod function;
mod grants;
mod headers;
mod host;
mod imports;
mod inspect;
mod instance;
mod key_value;
mod link;
mod load;
mod memory;
mod outbound;
mod outcome;
mod shape;
mod sink;
mod snapshot;
mod spec;
mod state;
mod store;
mod wasi;

pub use budget::{Need, PoolUse};
pub use cache::{Cache, CacheEntry, CacheStats, Reject};
pub use declare::{LabelDeclaration, MetricDeclaration, MetricKind};
pub use effects::{Effects, Kept, Notes};
pub use error::{CallError, CallErrorKind, HostError, LoadError};
pub use exchange::{Bag, Exchange};
pub use filter::{BodyMode, Filter, Lane, Live, Phases};
pub use function::{
    Call, Caller, Function, FunctionInspection, FunctionLimits, FunctionSpec, Handling, LogSink, Next, NextBody,
    NextError, PARAMETER_PREFIX, RequestBody, Settled, Tail, Upload, World,
};
pub use grants::{FolderGrant, OutboundGrant, UpstreamGrant};
pub use host::{Host, Options};
pub use inspect::Inspection;
pub use instance::Instance;
pub use link::CONTRACT;
pub use outbound::{UpstreamBody, UpstreamFailure, UpstreamSending, Upstreams};
pub use outcome::{BodyOutcome, Outcome, Response, ResponseBodyOutcome, ResponseOutcome};
pub use sink::{CallInfo, Level, Phase, Progress, Silent, Sink, Stage};
pub use spec::{Digest, FilterSpec, Grants, Isolation, Limits, VersionId};
pub use store::{KeyValueOperation, KeyValueOutcome, OperationCount, SpaceUse, StoreOptions};
