//! `upstreams`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::forms::{Either, OneOrMany};
use super::route::KeyForm;
use super::server::seconds;
use super::written::{FilePath, HostText, HttpPath, Status, Timeout, Whole, Written};
use crate::model::Endpoint;
use crate::units::Share;

/// A list of endpoints, or a map.
pub(crate) type UpstreamForm = Either<Vec<EndpointForm>, Upstream>;

/// Host and port, or a map with a weight.
pub(crate) type EndpointForm = Either<Written<Endpoint>, WeightedEndpoint>;

/// Where endpoints stand in a file of their own.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EndpointFile {
    /// A relative path starts at the folder of this file.
    pub(crate) file: Written<FilePath>,
}

/// A group of endpoints that serve the same thing.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Upstream {
    /// Hosts and ports, at least one. Names are resolved again when what the name server said expires. Or `{ file: FILE }`,
    /// a file with such a list, which is looked at each second: what it says holds at once, and one that cannot be used
    /// changes nothing.
    pub(crate) endpoints: Either<Vec<EndpointForm>, EndpointFile>,
    /// Whose turn it is: `round_robin`; `least_requests`, the less busy of two that are drawn; or `{ hash: KEY }`, with a
    /// key as rollouts have it, so that requests with the same key go to the same endpoint as long as it lives and has
    /// room.
    #[serde(default = "round_robin")]
    #[schemars(extend("x-default" = "`round_robin`"))]
    pub(crate) balance: BalanceForm,
    /// Which HTTP is spoken: HTTP/1.1 (`http1`), HTTP/2 without TLS (`h2c`), HTTP/2 over TLS (`h2`), or with TLS whichever
    /// the endpoint prefers (`auto`).
    #[serde(default)]
    pub(crate) protocol: Protocol,
    /// TLS to the endpoints: `true`, or a map. Certificates are always verified.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) tls: Option<Either<Written<bool>, Tls>>,
    /// How long the gateway waits.
    #[serde(default)]
    pub(crate) timeouts: Timeouts,
    /// Further attempts, each at another endpoint if there is one: a number, which is for failures to connect, or a map.
    #[serde(default = "one")]
    #[schemars(extend("x-default" = "`1`"))]
    pub(crate) retries: Either<Written<Whole<0, 16>>, Retries>,
    /// Idle connections that are kept for reuse, for each endpoint.
    #[serde(default = "keepalive_connections")]
    pub(crate) keepalive_connections: Written<Whole<0, 65_535>>,
    /// What it is given at a time. Where a limit is used up, requests wait a little, and are then answered with 503.
    #[serde(default)]
    pub(crate) limits: Limits,
    /// Asks the endpoints whether they are well. One that is not gets no requests.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) health: Option<Health>,
    /// Takes an endpoint out whose requests fail one after the other.
    #[serde(default)]
    pub(crate) ejection: Ejection,
    /// How long an endpoint that came back, or is new, gets less than its share, which grows meanwhile.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) slow_start: Option<Written<Timeout>>,
    /// When less than this share of the endpoints is well, requests go to all of them: the checks are more likely wrong
    /// than everything is broken, and the few that are left would not bear it all. `0%`: never.
    #[serde(default = "half")]
    #[schemars(extend("x-default" = "`50%`"))]
    pub(crate) panic: Written<Share>,
}

const fn one() -> Either<Written<Whole<0, 16>>, Retries> {
    Either::Short(Written(Whole(1)))
}

const fn keepalive_connections() -> Written<Whole<0, 65_535>> {
    Written(Whole(128))
}

const fn round_robin() -> BalanceForm {
    Either::Short(BalanceWord::RoundRobin)
}

fn half() -> Written<Share> {
    Written(Share::from_basis_points(5_000).unwrap_or(Share::FULL))
}

impl Upstream {
    /// Returns what the short form is short for.
    pub(crate) fn of(endpoints: Vec<EndpointForm>) -> Self {
        Self {
            endpoints: Either::Short(endpoints),
            balance: round_robin(),
            protocol: Protocol::default(),
            tls: None,
            timeouts: Timeouts::default(),
            retries: one(),
            keepalive_connections: keepalive_connections(),
            limits: Limits::default(),
            health: None,
            ejection: Ejection::default(),
            slow_start: None,
            panic: half(),
        }
    }
}

/// What an upstream is given at a time. A setting of the upstream that changes begins the counts anew.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "UpstreamLimits")]
pub(crate) struct Limits {
    /// Requests under way, to all endpoints together. Tunnels and mirrored requests count.
    #[schemars(extend("x-default" = "no limit"))]
    pub(crate) requests: Option<Written<Whole<1, 1_000_000>>>,
    /// Open connections to each endpoint, idle ones included. One of HTTP/2 counts once, however many requests it
    /// carries. Requests go to the endpoints that have room; health checks are not counted.
    #[schemars(extend("x-default" = "no limit"))]
    pub(crate) connections_per_endpoint: Option<Written<Whole<1, 65_535>>>,
    /// Requests that wait for room, in the order in which they came. Further ones are answered with 503 at once. Mirrored
    /// requests never wait: they are dropped.
    #[schemars(extend("x-default" = "`1024`"))]
    pub(crate) pending: Option<Written<Whole<0, 100_000>>>,
    /// How long a request waits, at most; then it is answered with 503. The time counts for `timeouts.total` as well.
    #[schemars(extend("x-default" = "`1s`"))]
    pub(crate) pending_timeout: Option<Written<Timeout>>,
}

/// An endpoint with a weight.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Endpoint")]
pub(crate) struct WeightedEndpoint {
    /// Host and port.
    pub(crate) address: Written<Endpoint>,
    /// Its share of the requests, beside the others' weights.
    pub(crate) weight: Written<Whole<1, 100>>,
}

/// A word, or a hash.
pub(crate) type BalanceForm = Either<BalanceWord, BalanceHash>;

/// Whose turn it is.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum BalanceWord {
    /// One after the other.
    RoundRobin,
    /// The less busy of two that are drawn.
    LeastRequests,
}

/// Requests with the same key go to the same endpoint.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BalanceHash {
    /// What is hashed: the first of these that a request has. One that has none goes where its turn is.
    pub(crate) hash: Vec<KeyForm>,
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
    /// HTTP/2 over TLS.
    H2,
    /// HTTP/2 or HTTP/1.1 over TLS, as the endpoint prefers.
    Auto,
}

/// TLS to the endpoints.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "UpstreamTls")]
pub(crate) struct Tls {
    /// The name that is asked for and that the certificate must have. Needed where an endpoint is an address.
    #[schemars(extend("x-default" = "the endpoint's name"))]
    pub(crate) server_name: Option<Written<HostText>>,
    /// Certificates of the authorities that are trusted, as a PEM file.
    #[schemars(extend("x-default" = "those of the system"))]
    pub(crate) ca: Option<Written<FilePath>>,
    /// The gateway's own certificate and those that lead to its authority, as a PEM file; together with `key`.
    #[schemars(extend("x-default" = "none"))]
    pub(crate) cert: Option<Written<FilePath>>,
    /// The private key of `cert`, as a PEM file.
    #[schemars(extend("x-default" = "none"))]
    pub(crate) key: Option<Written<FilePath>>,
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
    /// For all attempts of a request together, until the header of a response.
    #[schemars(extend("x-default" = "none"))]
    pub(crate) total: Option<Written<Timeout>>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: seconds(5), read: seconds(60), write: seconds(60), idle: seconds(60), total: None }
    }
}

/// When a request is sent again.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Retries {
    /// Further attempts, at most.
    pub(crate) attempts: Written<Whole<0, 16>>,
    /// Statuses that are worth another attempt, such as `[502, 503, 504]`. An endpoint that breaks off before it has
    /// answered, or answers with something else than HTTP, counts as `502`, and one that does not answer within
    /// `timeouts.read` as `504`. A request that cannot be connected, or whose pooled connection was just closed, is sent
    /// again anyway.
    pub(crate) on: OneOrMany<Written<Status>>,
    /// Further attempts as a share of the requests, so that an upstream that is down is not buried in them.
    pub(crate) budget: Written<Share>,
    /// The pause before the first further attempt, at most; it doubles with each, and a random part of it is waited.
    pub(crate) backoff: Written<Timeout>,
    /// Whether requests whose method is not idempotent (POST, PATCH) are sent again because of a status, or of no answer.
    pub(crate) non_idempotent: Written<bool>,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            attempts: Written(Whole(1)),
            on: OneOrMany::default(),
            budget: Written(Share::from_basis_points(2_000).unwrap_or(Share::FULL)),
            backoff: Written(Timeout(std::time::Duration::from_millis(25))),
            non_idempotent: Written(false),
        }
    }
}

/// Asks an endpoint whether it is well.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Health {
    /// `http`, a GET of `path`; `grpc`, the standard health service; or `tcp`, just a connection.
    pub(crate) check: HealthCheck,
    /// What is asked for by HTTP.
    pub(crate) path: Written<HttpPath>,
    /// The host that is asked for by HTTP.
    #[schemars(extend("x-default" = "the endpoint"))]
    pub(crate) host: Option<Written<HostText>>,
    /// Statuses of an endpoint that is well.
    #[schemars(extend("x-default" = "`200` to `299`"))]
    pub(crate) statuses: OneOrMany<Written<Status>>,
    /// Between two checks of an endpoint.
    pub(crate) interval: Written<Timeout>,
    /// How long a check takes at most.
    pub(crate) timeout: Written<Timeout>,
    /// Successes in a row until an endpoint is well again. Its first check decides alone.
    pub(crate) healthy: Written<Whole<1, 100>>,
    /// Failures in a row until it is not.
    pub(crate) unhealthy: Written<Whole<1, 100>>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            check: HealthCheck::Http,
            path: Written(HttpPath("/".to_owned())),
            host: None,
            statuses: OneOrMany::default(),
            interval: seconds(5),
            timeout: seconds(1),
            healthy: Written(Whole(2)),
            unhealthy: Written(Whole(3)),
        }
    }
}

/// How an endpoint is asked.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(crate) enum HealthCheck {
    /// GET over HTTP.
    #[default]
    Http,
    /// `grpc.health.v1.Health/Check`.
    Grpc,
    /// A connection.
    Tcp,
}

/// Takes an endpoint out whose requests fail one after the other: no connection, no answer, or 502, 503, 504.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Ejection {
    /// Failures in a row. `0`: never.
    pub(crate) failures: Written<Whole<0, 1_000>>,
    /// How long the first time; longer each time, up to ten times as long.
    #[serde(rename = "for")]
    pub(crate) duration: Written<Timeout>,
    /// Share of the endpoints that can be out at the same time.
    pub(crate) max: Written<Share>,
}

impl Default for Ejection {
    fn default() -> Self {
        Self { failures: Written(Whole(5)), duration: seconds(10), max: half() }
    }
}
