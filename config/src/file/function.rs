//! `functions`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::filter::{Grants, IsolationForm, request};
use super::forms::Named;
use super::grants::RequireApproval;
use super::written::{FilePath, Timeout, Whole, Written};
use crate::units::ByteSize;

/// A component that answers requests itself, in its stable version: a standard `wasi:http` 0.2 proxy, with
/// `experimental: [wasi-0.3]` a 0.3 service, or a program, a standard `wasi:cli` 0.2 command. Or a 0.3 middleware, which
/// stands in the `filters` of routes. A program gets the request as CGI has it (RFC 3875): the body from standard input, all
/// else from variables (`REQUEST_METHOD`, `PATH_INFO`, `QUERY_STRING`, `HTTP_…`), and it prints a header with `Status`,
/// `Content-Type` or `Location` in it, an empty line and the body. What it prints to standard error is logged.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Function {
    /// The component's file. A relative path starts at the folder of this file.
    pub(crate) component: Written<FilePath>,
    /// The function's environment: names and texts. What variables of the gateway's environment expand to here is shown
    /// nowhere.
    #[serde(default)]
    pub(crate) vars: Named<Written<String>>,
    /// What the function reads by `wasi:config`: names and texts. What variables of the gateway's environment expand to
    /// here is shown nowhere.
    #[serde(default)]
    pub(crate) config: Named<Written<String>>,
    /// What the function may touch beside the request. Nothing, unless it is said here.
    #[serde(default)]
    pub(crate) grants: Grants,
    /// How long an instance lives. `request`: each request gets a fresh one. `reused`: one serves many requests, one
    /// after the other.
    #[serde(default = "request")]
    pub(crate) isolation: IsolationForm,
    /// What the function may use up.
    #[serde(default)]
    pub(crate) limits: FunctionLimits,
    /// Whether a version that may do more than the one that serves waits for `lockgate approve`.
    #[serde(default)]
    #[schemars(extend("x-default" = "as `server.require_approval`"))]
    pub(crate) require_approval: Option<RequireApproval>,
}

/// What a function may use up. A request that is past a limit is answered with 503, or cut off where its response has
/// begun.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct FunctionLimits {
    /// Time to the header of the response. The body may take its time: an event stream has no end. What is behind a
    /// middleware takes its own time.
    pub(crate) deadline: Written<Timeout>,
    /// Time for which one request may keep a thread busy, all in all.
    pub(crate) cpu: Written<Timeout>,
    /// Memory of one instance. At most `server.instance_memory`.
    #[schemars(extend("x-default" = "`64MiB`, or `server.instance_memory` where that is less"))]
    pub(crate) memory: Option<Written<ByteSize>>,
    /// Elements of each of an instance's tables.
    pub(crate) table_elements: Written<Whole<1, 100_000>>,
    /// Instances that may live at the same time, each version for itself. At most `server.instances`.
    #[schemars(extend("x-default" = "`256`, or `server.instances` where that is less"))]
    pub(crate) instances: Option<Written<Whole<1, 100_000>>>,
    /// Size of each key-value space that it writes to: keys, values, and 64 bytes for each entry. What does not fit is refused.
    pub(crate) key_value: Written<ByteSize>,
    /// Entries of each key-value space that it writes to. What does not fit is refused.
    pub(crate) key_value_entries: Written<Whole<1, 100_000_000>>,
}

impl Default for FunctionLimits {
    fn default() -> Self {
        Self {
            deadline: Written(Timeout(Duration::from_secs(30))),
            cpu: Written(Timeout(Duration::from_secs(10))),
            memory: None,
            table_elements: Written(Whole(20_000)),
            instances: None,
            key_value: Written(ByteSize::mib(16)),
            key_value_entries: Written(Whole(100_000)),
        }
    }
}
