//! `upstreams`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::forms::Either;
use super::server::seconds;
use super::written::{Timeout, Whole, Written};
use crate::model::Endpoint;

/// A list of endpoints, or a map.
pub(crate) type UpstreamForm = Either<Vec<Written<Endpoint>>, Upstream>;

/// A group of endpoints that serve the same thing.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Upstream {
    /// Hosts and ports, at least one; requests go to each in turn. Names are resolved again and again while the
    /// gateway runs.
    pub(crate) endpoints: Vec<Written<Endpoint>>,
    /// Which HTTP is spoken: HTTP/1.1, or HTTP/2 without TLS.
    #[serde(default)]
    pub(crate) protocol: Protocol,
    /// How long the gateway waits.
    #[serde(default)]
    pub(crate) timeouts: Timeouts,
    /// Further endpoints that are tried when connecting fails.
    #[serde(default = "one")]
    pub(crate) retries: Written<Whole<0, 16>>,
    /// Idle connections that are kept for reuse, for each endpoint.
    #[serde(default = "keepalive_connections")]
    pub(crate) keepalive_connections: Written<Whole<0, 65_535>>,
}

const fn one() -> Written<Whole<0, 16>> {
    Written(Whole(1))
}

const fn keepalive_connections() -> Written<Whole<0, 65_535>> {
    Written(Whole(128))
}

impl Upstream {
    /// Returns what the short form is short for.
    pub(crate) fn of(endpoints: Vec<Written<Endpoint>>) -> Self {
        Self {
            endpoints,
            protocol: Protocol::default(),
            timeouts: Timeouts::default(),
            retries: one(),
            keepalive_connections: keepalive_connections(),
        }
    }
}

/// Which HTTP is spoken.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(crate) enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 without TLS, with prior knowledge.
    H2c,
}

/// How long the gateway waits for an upstream.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Timeouts {
    /// To connect.
    pub(crate) connect: Written<Timeout>,
    /// Between two pieces of a response, and for its first.
    pub(crate) read: Written<Timeout>,
    /// To write a piece of a request.
    pub(crate) write: Written<Timeout>,
    /// Before an unused connection is closed.
    pub(crate) idle: Written<Timeout>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: seconds(5), read: seconds(60), write: seconds(60), idle: seconds(60) }
    }
}
