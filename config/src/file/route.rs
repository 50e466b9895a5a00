//! `routes` and `rollouts`.

use std::borrow::Cow;
use std::fmt;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

use super::filter::Grants;
use super::forms::{Either, Named, OneOrMany};
use super::written::{CookieName, FilePath, Name, Reference, Written, quoting};
use crate::model::{HostPattern, PathPattern};
use crate::text::{HeaderName, Method};
use crate::units::Weight;

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
    /// Names of filters, in the order in which they see the request; they see the response in reverse.
    #[serde(default)]
    pub(crate) filters: Vec<Written<Reference>>,
    /// Name of the upstream that answers.
    pub(crate) upstream: Written<Reference>,
    /// Names of further upstreams, which a filter may choose instead.
    #[serde(default)]
    pub(crate) alternatives: Vec<Written<Reference>>,
}

/// Which requests a route takes.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Match {
    /// One host or several, without a port. `*.example.com` takes every host below `example.com`, not itself.
    #[schemars(extend("x-default" = "any"))]
    pub(crate) host: OneOrMany<Written<HostPattern>>,
    /// `/exact` takes just that. `/below/*` takes `/below` and everything below it. In `/users/{id}`, a parameter
    /// takes one whole segment.
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

/// The state of moving one filter or upstream from its stable to its canary version.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rollout {
    /// Name of the filter that moves. Either this or `upstream`.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) filter: Option<Written<Reference>>,
    /// Name of the upstream that moves. Either this or `filter`.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) upstream: Option<Written<Reference>>,
    /// Where it moves to: of an upstream, another one's name; of a filter, what is different in the new version.
    pub(crate) canary: Either<Written<Reference>, Canary>,
    /// The canary's share of the keys, in steps of 0.01%; stable takes the rest. Raising it moves nobody back. What is
    /// set at run time goes before what stands here.
    pub(crate) weight: Written<Weight>,
    /// What tells users apart, in order of preference: `{ header: NAME }`, `{ cookie: NAME }`, `{ query: NAME }`,
    /// `client_ip` or `path`. The first that a request has is hashed; one that has none of them stays with stable.
    #[serde(default)]
    #[schemars(extend("x-default" = "`[client_ip]`"))]
    pub(crate) key: Vec<KeyForm>,
    /// Hashed with the key. Rollouts with the same salt and key send the same users to their canaries.
    #[serde(default)]
    #[schemars(extend("x-default" = "the rollout's name"))]
    pub(crate) salt: Option<Written<String>>,
    /// Who may ask for a track outright, by a header whose value is `stable` or `canary`.
    #[serde(default, rename = "override")]
    #[schemars(extend("x-default" = "nobody"))]
    pub(crate) overriding: Option<Override>,
}

/// What is different in a filter's new version. What is left out is as in the stable one.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
pub(crate) struct Canary {
    /// The component's file. A relative path starts at the folder of this file.
    #[schemars(extend("x-default" = "as stable"))]
    pub(crate) component: Option<Written<FilePath>>,
    /// All of its settings; they are not merged with stable's.
    #[schemars(extend("x-default" = "as stable"))]
    pub(crate) settings: Option<serde_json::Value>,
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
