//! `tracing`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::forms::Named;
use super::server::seconds;
use super::written::{Timeout, Written};
use crate::text::CollectorUrl;
use crate::units::{Secret, Share};

/// Traces.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Tracing {
    /// Whose `traceparent` is continued, with its decision on sampling; the others' requests begin a trace of their own.
    /// `trusted`: that of `server.trusted_proxies`; `any`: everybody's, so that clients decide how much is traced;
    /// `none`: nobody's.
    pub(crate) continue_from: ContinueFrom,
    /// Address of a collector that takes OTLP over HTTP; `/v1/traces` is put behind it. It gets a span for each sampled
    /// request, and below it one for each call of a filter, the function's call, and each attempt at the upstream.
    #[schemars(extend("x-default" = "nothing is sent"))]
    pub(crate) otlp: Option<Written<CollectorUrl>>,
    /// Headers of what is sent to the collector, by name. Let secrets come from variables: `"${OTLP_TOKEN}"`.
    pub(crate) headers: Named<Written<Secret>>,
    /// Share of the traces begun here that are sampled. What a trace was continued with stays as it was decided.
    pub(crate) sample: Written<Share>,
    /// The name of this service in the traces.
    pub(crate) service: Written<String>,
    /// Time that the collector has to take what is sent; then it is lost, and counted.
    pub(crate) timeout: Written<Timeout>,
}

impl Default for Tracing {
    fn default() -> Self {
        Self {
            continue_from: ContinueFrom::Trusted,
            otlp: None,
            headers: Named::default(),
            sample: Written(Share::from_basis_points(100).unwrap_or(Share::ZERO)),
            service: Written("lockgate".into()),
            timeout: seconds(10),
        }
    }
}

/// Whose trace context is continued.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(crate) enum ContinueFrom {
    /// That of trusted proxies.
    Trusted,
    /// Everybody's.
    Any,
    /// Nobody's.
    None,
}
