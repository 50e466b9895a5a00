//! `functions`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::filter::{Grants, IsolationForm, request};
use super::forms::Named;
use super::written::{FilePath, Timeout, Whole, Written};
use crate::units::ByteSize;

/// A component that answers requests itself, in its stable version: a standard `wasi:http` 0.2 proxy, or with
/// `experimental: [wasi-0.3]` a 0.3 service. Or a 0.3 middleware, which stands in the `filters` of routes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Function {
    /// The component's file. A relative path starts at the folder of this file.
    pub(crate) component: Written<FilePath>,
    /// The function's environment: names and texts. What variables of the gateway's environment expand to here is shown
    /// nowhere.
    #[serde(default)]
    pub(crate) vars: Named<Written<String>>,
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
}

impl Default for FunctionLimits {
    fn default() -> Self {
        Self {
            deadline: Written(Timeout(Duration::from_secs(30))),
            cpu: Written(Timeout(Duration::from_secs(10))),
            memory: None,
            table_elements: Written(Whole(20_000)),
            instances: None,
        }
    }
}
