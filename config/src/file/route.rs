//! `routes` and `rollouts`.

use std::borrow::Cow;
use std::fmt;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

use super::filter::Grants;
use super::folder::Static;
use super::forms::{Either, Named, OneOrMany};
use super::plan::{Decider, Guard, Mode, OnBad, Shadow, StepForm, local, serve};
use super::policy::{
    Cors, ErrorPage, HeaderRules, Mirror, RateLimit, Redirect, RedirectTo, Respond, Rewrite, RouteLimits, RouteTimeouts,
};
use super::server::no;
use super::written::{CookieName, FilePath, Name, Reference, Status, Token, Written, quoting};
use crate::model::{HostPattern, PathPattern};
use crate::text::{HeaderName, Method};
use crate::units::{ByteSize, Weight};

/// What answers which requests.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Route {
    /// How logs and metrics call it.
    #[serde(default)]
    #[schemars(extend("x-default" = "what it matches: `GET api.example.com/users/{id}`"))]
    pub(crate) name: Option<Written<Name>>,
    /// Which requests; all of it must hold. Any, unless it is said here.
    #[serde(default, rename = "match")]
    pub(crate) matches: Match,
    /// Names of filters, in the order in which they see the request; they see the response in reverse. A map with
    /// `function` puts a middleware among them.
    #[serde(default)]
    pub(crate) filters: Vec<Either<Written<Reference>, Link>>,
    /// Protocols that a connection may change to by HTTP/1.1's `upgrade`: filters see the handshake, then bytes pass
    /// unseen, until `limits.tunnel_idle_timeout`. What is not listed is asked for in vain: the header goes no further.
    #[serde(default = "websocket")]
    pub(crate) upgrades: Vec<Written<Token>>,
    /// Compresses the upstream's responses with the first of these that the client takes: `zstd`, `br`, `gzip`. What has come
    /// goes out at once. Only kinds of content that grow smaller, nothing that is compressed already, no parts, no event
    /// streams, and nothing with `cache-control: no-transform`. Not for pages that show secrets beside what others may
    /// choose (BREACH).
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) compress: Vec<Coding>,
    /// Lets browsers call gRPC: what comes as gRPC-Web (`application/grpc-web`, or `-text` in base64), by HTTP/1.1 or HTTP/2,
    /// goes to the upstream as gRPC, and its answer back as it was asked for, trailers in the body. Filters see gRPC. Needs
    /// an upstream that speaks HTTP/2, and no middleware. Pages of other origins need `cors` as well, which lets them read
    /// `grpc-status` and `grpc-message` of itself.
    #[serde(default = "no")]
    pub(crate) grpc_web: Written<bool>,
    /// Decompresses the bodies of requests (`gzip`, `zstd`, `br`) for filters that look at bodies, which then see them whole,
    /// as the target does: up to this size; what becomes longer is answered with 413, and what is compressed in another way
    /// with 415.
    #[serde(default)]
    #[schemars(extend("x-default" = "none: filters see bodies as they come"))]
    pub(crate) decompress: Option<Written<ByteSize>>,
    /// How often who may ask, each for itself; one that is reached answers with 429. Asked before any filter.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) rate_limits: Vec<RateLimit>,
    /// Limits of its requests.
    #[serde(default)]
    pub(crate) limits: RouteLimits,
    /// How long its requests may take.
    #[serde(default)]
    pub(crate) timeouts: RouteTimeouts,
    /// Edits of headers.
    #[serde(default)]
    pub(crate) headers: HeaderRules,
    /// What the target is asked for, where that differs from what the client asked for.
    #[serde(default)]
    pub(crate) rewrite: Rewrite,
    /// Which pages of other origins may ask.
    #[serde(default)]
    #[schemars(extend("x-default" = "none: browsers are told nothing"))]
    pub(crate) cors: Option<Cors>,
    /// Where a share of the requests goes as well, beside the route's upstream. A name alone is short for a map with that
    /// `upstream`.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) mirror: Option<Either<Written<Reference>, Mirror>>,
    /// What the gateway's own errors look like.
    #[serde(default)]
    #[schemars(extend("x-default" = "`server.error_pages`"))]
    pub(crate) error_pages: Vec<ErrorPage>,
    /// Name of the upstream that answers. Either this, `function`, `static`, `redirect` or `respond`.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) upstream: Option<Written<Reference>>,
    /// Name of the function that answers. Either this, `upstream`, `static`, `redirect` or `respond`.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) function: Option<Written<Reference>>,
    /// Names of further upstreams, which a filter may choose instead of `upstream`.
    #[serde(default)]
    pub(crate) alternatives: Vec<Written<Reference>>,
    /// The folder whose files answer. A path alone is short for a map with that `folder`. Either this, `upstream`,
    /// `function`, `redirect` or `respond`.
    #[serde(default, rename = "static")]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) files: Option<Either<Written<FilePath>, Static>>,
    /// Where requests are sent instead. An address alone is short for a map with that `to`. Either this, `upstream`,
    /// `function`, `static` or `respond`.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) redirect: Option<Either<Written<RedirectTo>, Redirect>>,
    /// What is always answered. A status alone is short for a map with that `status`. Either this, `upstream`,
    /// `function`, `static` or `redirect`.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) respond: Option<Either<Written<Status>, Respond>>,
}

/// A middleware in a chain: a function that has requests handled by what is behind it, the filters that follow and the
/// target. It may change request and response, or answer by itself. Needs `experimental: [wasi-0.3]`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Link {
    /// Name of the function: a component for `wasi:http/middleware` 0.3.
    pub(crate) function: Written<Reference>,
    /// What becomes of a request when the function fails. `closed`: it is answered with 503. `open`: it goes on as if the
    /// function were not there; but for requests that it has passed on already, or of whose body it has read.
    #[serde(default = "shut")]
    pub(crate) on_failure: LinkFailure,
}

/// What becomes of a request when a middleware fails.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(crate) enum LinkFailure {
    /// It is answered with 503.
    Closed,
    /// It goes on without, where it can.
    Open,
}

const fn shut() -> LinkFailure {
    LinkFailure::Closed
}

fn websocket() -> Vec<Written<Token>> {
    vec![Written(Token("websocket".into()))]
}

/// A way to compress.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(crate) enum Coding {
    /// Fast and small.
    Zstd,
    /// Smallest, and slower.
    #[serde(rename = "br")]
    Brotli,
    /// What everybody understands.
    Gzip,
}

/// Which requests a route takes.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Match {
    /// One host or several, without a port. `*.example.com` takes every host below `example.com`, not itself.
    #[schemars(extend("x-default" = "any"))]
    pub(crate) host: OneOrMany<Written<HostPattern>>,
    /// `/exact` takes just that. `/below/*` takes `/below` and everything below it. In `/users/{id}`, a parameter
    /// takes one whole segment; a function gets it as the header `x-lockgate-param-id`, as it stands in the path.
    #[schemars(extend("x-default" = "any, `/*`"))]
    pub(crate) path: Option<Written<PathPattern>>,
    /// Methods, in capitals.
    #[schemars(extend("x-default" = "any"))]
    pub(crate) methods: Vec<Written<Method>>,
    /// Headers that must be there: with a text, one of the header's values is that; with `true`, any value will do.
    #[schemars(extend("x-default" = "any"))]
    pub(crate) headers: Named<HeaderCondition>,
}

/// What a header must be.
#[derive(Debug)]
pub(crate) enum HeaderCondition {
    Present,
    Value(String),
}

impl<'de> Deserialize<'de> for HeaderCondition {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl Visitor<'_> for Reader {
            type Value = HeaderCondition;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, or `true` for any value")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<HeaderCondition, E> {
                if crate::text::is_value(text) {
                    return Ok(HeaderCondition::Value(text.to_owned()));
                }
                Err(E::custom("a text that a header may have: no control characters, and no space at its ends"))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<HeaderCondition, E> {
                Err(E::custom(quoting("a text, or `true` for any value", value)))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<HeaderCondition, E> {
                Err(E::custom(quoting("a text, or `true` for any value", value)))
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<HeaderCondition, E> {
                Err(E::custom(quoting("a text, or `true` for any value", value)))
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<HeaderCondition, E> {
                if value {
                    return Ok(HeaderCondition::Present);
                }
                Err(E::custom("a text, or `true` for any value\nhint: what must not be there cannot be asked for"))
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

impl JsonSchema for HeaderCondition {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "HeaderCondition".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "string", "title": "text" }, { "const": true }] })
    }
}

/// The state of moving one filter, function or upstream from its stable to its canary version.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rollout {
    /// Name of the filter that moves. Either this, `function` or `upstream`.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) filter: Option<Written<Reference>>,
    /// Name of the function that moves. Either this, `filter` or `upstream`.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) function: Option<Written<Reference>>,
    /// Name of the upstream that moves. Either this, `filter` or `function`. As long as the checks of the canary's
    /// `health` find none of its endpoints well, stable serves its share.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) upstream: Option<Written<Reference>>,
    /// Where it moves to: of an upstream, another one's name; of a filter or a function, what is different in the new
    /// version.
    pub(crate) canary: Either<Written<Reference>, Canary>,
    /// The canary's share of the keys, in steps of 0.01%; stable takes the rest. Raising it moves nobody back. A person
    /// moves it; what is set at run time goes before what stands here. Either this or `steps`.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) weight: Option<Written<Weight>>,
    /// What the canary's weight climbs, by itself: each step is a weight, `shadow`, or a map. A step is left when its
    /// time is over and the guard has shown that the canary is not worse; after the last, `100%`, the canary is promoted.
    /// Either this or `weight`.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) steps: Option<Vec<StepForm>>,
    /// What is watched, and how much worse the canary may be. There is always one where there are `steps`; beside a
    /// `weight` it only takes the canary back.
    #[serde(default)]
    #[schemars(extend("x-default" = "where there are `steps`, failures and denials"))]
    pub(crate) guard: Option<Guard>,
    /// What happens when the guard has shown that the canary is worse: `roll_back`, and the version goes into quarantine,
    /// or `pause`, which leaves it where it is until a person decides.
    #[serde(default)]
    #[schemars(extend("x-default" = "`roll_back`"))]
    pub(crate) on_bad: Option<OnBad>,
    /// Who decides. `local`: this gateway, by what it sees itself. `external`: whoever reads the counts of all gateways
    /// and sets the weight by the API; this gateway never moves by itself. Where several gateways serve the same users,
    /// they would disagree, and users would go back and forth.
    #[serde(default = "local")]
    pub(crate) decider: Decider,
    /// `shadow`: the canary serves nobody. It runs on requests that stable has served, and what it does is compared.
    #[serde(default = "serve")]
    pub(crate) mode: Mode,
    /// How a filter's canary runs where it is a shadow: in `mode: shadow`, or in a step.
    #[serde(default)]
    #[schemars(extend("x-default" = "see below"))]
    pub(crate) shadow: Option<Shadow>,
    /// A name that several rollouts share. They move together: none climbs before all may, and what is bad for one is bad
    /// for all. They have the same steps and key, and the same salt, which is this name.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) link: Option<Written<Name>>,
    /// What tells users apart, in order of preference: `{ header: NAME }`, `{ cookie: NAME }`, `{ query: NAME }`,
    /// `client_ip` or `path`. The first that a request has is hashed; one that has none of them stays with stable.
    #[serde(default)]
    #[schemars(extend("x-default" = "`[client_ip]`"))]
    pub(crate) key: Vec<KeyForm>,
    /// Hashed with the key. Rollouts with the same salt and key send the same users to their canaries.
    #[serde(default)]
    #[schemars(extend("x-default" = "`link`, or else the rollout's name"))]
    pub(crate) salt: Option<Written<String>>,
    /// Who may ask for a track outright, by a header whose value is `stable` or `canary`.
    #[serde(default, rename = "override")]
    #[schemars(extend("x-default" = "nobody"))]
    pub(crate) overriding: Option<Override>,
}

/// What is different in a new version of a filter or a function. What is left out is as in the stable one.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
pub(crate) struct Canary {
    /// The component's file. A relative path starts at the folder of this file.
    #[schemars(extend("x-default" = "as stable"))]
    pub(crate) component: Option<Written<FilePath>>,
    /// Of a filter: all of its settings; they are not merged with stable's.
    #[schemars(extend("x-default" = "as stable"))]
    pub(crate) settings: Option<serde_json::Value>,
    /// Of a function: all of its environment; it is not merged with stable's.
    #[schemars(extend("x-default" = "as stable"))]
    pub(crate) vars: Option<Named<Written<String>>>,
    /// Of a function: all of what it reads by `wasi:config`; it is not merged with stable's.
    #[schemars(extend("x-default" = "as stable"))]
    pub(crate) config: Option<Named<Written<String>>>,
    /// All of its grants; they are not merged with stable's.
    #[schemars(extend("x-default" = "as stable"))]
    pub(crate) grants: Option<Grants>,
}

/// A word, or a map from a kind to a name.
pub(crate) type KeyForm = Either<KeyWord, KeyNamed>;

/// What is hashed and needs no name.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum KeyWord {
    /// The client's address.
    ClientIp,
    /// The path.
    Path,
}

/// What is hashed and has a name.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "KeyPart")]
pub(crate) enum KeyNamed {
    /// A header's first value.
    Header(Written<HeaderName>),
    /// A cookie's value.
    Cookie(Written<CookieName>),
    /// A query parameter's first value.
    Query(Written<String>),
}

/// Who may ask for a track outright.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Override {
    /// The header; its value is `stable` or `canary`.
    #[serde(default = "track_header")]
    pub(crate) header: Written<HeaderName>,
    /// Networks of the peers that it is believed of, at least one. Peers, not forwarded addresses.
    pub(crate) trusted: Vec<Written<IpNet>>,
}

fn track_header() -> Written<HeaderName> {
    Written(HeaderName("x-lockgate-track".into()))
}
