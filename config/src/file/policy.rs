//! What a route asks for that needs no filter.

use std::time::Duration;

use schemars::{JsonSchema, Schema, json_schema};
use serde::Deserialize;

use super::forms::{Either, Named, OneOrMany};
use super::route::KeyForm;
use super::server::{no, yes};
use super::written::{
    FilePath, HeaderValue, HostText, Name, Plain, Reference, Scalar, Status, Timeout, Whole, Written,
};
use crate::model::{Origin, StatusPattern, Template};
use crate::text::{self, HeaderName, Method, TextError};
use crate::units::{ByteSize, Share};

/// How often who may ask.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RateLimit {
    /// How metrics, the log and the headers of responses call it.
    #[serde(default)]
    #[schemars(extend("x-default" = "`limit-1` for the first, and so on"))]
    pub(crate) name: Option<Written<Name>>,
    /// Requests that a key may make within `per`; further ones are answered with 429.
    pub(crate) requests: Written<Whole<1, 1_000_000>>,
    /// The time that `requests` is about.
    #[serde(default = "second")]
    pub(crate) per: Written<Timeout>,
    /// Requests that may come at once, after a while without any. What was used comes back evenly.
    #[serde(default)]
    #[schemars(extend("x-default" = "as many as `requests`"))]
    pub(crate) burst: Option<Written<Whole<1, 1_000_000>>>,
    /// What tells users apart, in order of preference, as in rollouts; of an IPv6 `client_ip`, the network of 64 bits.
    /// Requests that have none of it count together, and with `[]` all do.
    #[serde(default)]
    #[schemars(extend("x-default" = "`[client_ip]`"))]
    pub(crate) key: Option<Vec<KeyForm>>,
    /// Keys that are remembered at the same time, 16 bytes each. With more, those are forgotten first that have used the
    /// least.
    #[serde(default = "keys")]
    pub(crate) keys: Written<Whole<1_024, 16_777_216>>,
    /// Whether responses say what is left, by the headers `ratelimit` and `ratelimit-policy`.
    #[serde(default = "yes")]
    pub(crate) headers: Written<bool>,
}

const fn second() -> Written<Timeout> {
    super::server::seconds(1)
}

const fn keys() -> Written<Whole<1_024, 16_777_216>> {
    Written(Whole(65_536))
}

/// Limits of a route's requests.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RouteLimits {
    /// Requests under way at the same time; further ones are answered with 503 at once. Tunnels count.
    #[schemars(extend("x-default" = "no limit"))]
    pub(crate) requests: Option<Written<Whole<1, 1_000_000>>>,
    /// Size of a request's body; a longer one is answered with 413. In the place of `server.limits.body`: it may be more.
    #[schemars(extend("x-default" = "as `server.limits.body`"))]
    pub(crate) body: Option<Written<ByteSize>>,
}

/// How long a route's requests may take. Tunnels have `server.limits.tunnel_idle_timeout` instead.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RouteTimeouts {
    /// From the request's header to the end of the response; then it is answered with 504, or its response is cut off.
    /// Looked at with each piece of a body; an upstream that falls silent is given up when it has been silent for what
    /// was left.
    #[schemars(extend("x-default" = "no limit"))]
    pub(crate) total: Option<Written<Timeout>>,
    /// From the request's header to that of the response, filters and all attempts included; then it is answered with
    /// 504. Nor may an upstream's response fall silent for what was left when the upstream was asked: not for events that
    /// come now and then.
    #[schemars(extend("x-default" = "no limit"))]
    pub(crate) response: Option<Written<Timeout>>,
}

/// Edits of headers. Not of those by which connections and messages are told apart, nor of those that the gateway writes
/// itself.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct HeaderRules {
    /// Of the request's, before its first filter: what is removed fools no filter, and what filters set stays.
    pub(crate) request: HeaderEdits,
    /// Of the response's, after its last filter, whoever answers.
    pub(crate) response: HeaderEdits,
}

/// What is removed, then what is set, then what is appended.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct HeaderEdits {
    /// Values that take the place of those that are there. In them, `{client_ip}`, `{host}`, `{method}`, `{path}`,
    /// `{query}`, `{request_id}`, `{rest}` (the path behind the route's prefix), `{route}` and `{scheme}` stand for what
    /// the client asked; `{{` and `}}` are braces. One that comes out empty is left out.
    pub(crate) set: Named<Written<HeaderText>>,
    /// Values that are put behind those that are there, with the same placeholders.
    pub(crate) append: Named<Written<HeaderText>>,
    /// Names of headers that are taken away.
    pub(crate) remove: Vec<Written<HeaderName>>,
}

/// What the target, an upstream or a function, is asked for. Filters see what the client asked for.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Rewrite {
    /// Stands in the place of the prefix that the route matches; `/` takes it away. Either this or `regex`.
    #[schemars(extend("x-default" = "none"))]
    pub(crate) prefix: Option<Written<PathPrefix>>,
    /// A regular expression, of whose first match in the path `to` takes the place: `^/users/([0-9]+)$`. A path that
    /// does not match stays.
    #[schemars(extend("x-default" = "none"))]
    pub(crate) regex: Option<Written<Pattern>>,
    /// What takes the match's place, with `$1` or `$name` for what a group has matched.
    #[schemars(extend("x-default" = "none"))]
    pub(crate) to: Option<Written<String>>,
    /// The host that the target is told, with a port or without. The client's goes along as `x-forwarded-host`.
    #[schemars(extend("x-default" = "the client's"))]
    pub(crate) host: Option<Written<HostText>>,
}

/// Which pages of other origins may ask: the CORS protocol of browsers. Their questions are answered before limits and
/// filters; what a target or a filter says of it is replaced.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cors {
    /// `https://app.example.com`, `https://*.example.com` for all hosts below, `null`, or `*` for any.
    pub(crate) origins: OneOrMany<Written<Origin>>,
    /// Methods that they may use.
    #[serde(default = "methods")]
    pub(crate) methods: Vec<Written<Method>>,
    /// Headers that they may send beyond those that need no permission; `*` for any.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) headers: OneOrMany<Written<HeaderName>>,
    /// Headers of responses that they may read beyond those that need no permission.
    #[serde(default)]
    pub(crate) expose: Vec<Written<HeaderName>>,
    /// Whether cookies and the like may come along. Not with `*` among the origins.
    #[serde(default = "no")]
    pub(crate) credentials: Written<bool>,
    /// How long a browser may remember the answer.
    #[serde(default = "ten_minutes")]
    pub(crate) max_age: Written<Duration>,
}

fn methods() -> Vec<Written<Method>> {
    ["GET", "HEAD", "POST"].map(|method| Written(Method(method.into()))).into()
}

const fn ten_minutes() -> Written<Duration> {
    Written(Duration::from_secs(600))
}

/// A share of the requests that goes to another upstream as well, when they are over. What that answers is thrown away.
/// Not requests that change to another protocol, nor those that broke off.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mirror {
    /// Name of the upstream.
    pub(crate) upstream: Written<Reference>,
    /// How many of the requests, chosen by their ids.
    #[serde(default = "all")]
    pub(crate) share: Written<Share>,
    /// Size of a request's body; one with a longer body is left out.
    #[serde(default = "body")]
    pub(crate) body: Written<ByteSize>,
    /// Mirrored requests under way at the same time; others are left out.
    #[serde(default = "mirrored")]
    pub(crate) requests: Written<Whole<1, 10_000>>,
}

impl Mirror {
    /// Returns what a name alone is short for.
    pub(crate) fn of(upstream: Written<Reference>) -> Self {
        Self { upstream, share: all(), body: body(), requests: mirrored() }
    }
}

const fn all() -> Written<Share> {
    Written(Share::FULL)
}

const fn body() -> Written<ByteSize> {
    Written(ByteSize::kib(64))
}

const fn mirrored() -> Written<Whole<1, 10_000>> {
    Written(Whole(64))
}

/// What an error of the gateway itself looks like; errors of targets are theirs. Of several pages for a status, the
/// route's go before the server's, those for just this status before those for its class, and among those the one is sent
/// that the client's `accept` likes best.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ErrorPage {
    /// Which errors: `503`, `4xx`, `5xx`, or a list of those.
    pub(crate) status: OneOrMany<Written<StatusPattern>>,
    /// The header `content-type`.
    #[serde(default = "html")]
    pub(crate) content_type: Written<HeaderValue>,
    /// A text, or `{ file: FILE }`, which is read with this file. In it, `{status}` and `{request_id}` are replaced.
    pub(crate) body: BodyForm,
}

fn html() -> Written<HeaderValue> {
    Written(HeaderValue("text/html; charset=utf-8".into()))
}

fn plain() -> Written<HeaderValue> {
    Written(HeaderValue("text/plain; charset=utf-8".into()))
}

/// A text, or a file.
pub(crate) type BodyForm = Either<Written<String>, BodyFile>;

/// The bytes of a file, at most 1 MiB.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BodyFile {
    /// A relative path starts at the folder of this file.
    pub(crate) file: Written<FilePath>,
}

/// Where requests are sent instead of being served, after the route's filters.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Redirect {
    /// A path, or a whole address, with the placeholders of `headers`: `https://example.com{path}`, `/new/{rest}`.
    pub(crate) to: Written<RedirectTo>,
    /// 301 and 308 are for ever, 302, 303 and 307 for now; 307 and 308 keep method and body.
    #[serde(default = "for_now")]
    pub(crate) status: Written<RedirectStatus>,
    /// Whether the request's query goes along. It never does where `to` has one.
    #[serde(default = "yes")]
    pub(crate) keep_query: Written<bool>,
}

impl Redirect {
    /// Returns what an address alone is short for.
    pub(crate) fn of(to: Written<RedirectTo>) -> Self {
        Self { to, status: for_now(), keep_query: yes() }
    }
}

const fn for_now() -> Written<RedirectStatus> {
    Written(RedirectStatus(307))
}

/// A response that is always the same, after the route's filters.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Respond {
    /// The status.
    pub(crate) status: Written<Status>,
    /// The header `content-type`, where there is a body.
    pub(crate) content_type: Written<HeaderValue>,
    /// Further headers.
    pub(crate) headers: Named<Written<HeaderValue>>,
    /// A text, or `{ file: FILE }`, which is read with this file.
    #[schemars(extend("x-default" = "none"))]
    pub(crate) body: Option<BodyForm>,
}

impl Default for Respond {
    fn default() -> Self {
        Self { status: Written(Status(200)), content_type: plain(), headers: Named::default(), body: None }
    }
}

impl Respond {
    /// Returns what a status alone is short for.
    pub(crate) fn of(status: Written<Status>) -> Self {
        Self { status, ..Self::default() }
    }
}

/// The value of a header, with placeholders.
#[derive(Clone, Debug)]
pub(crate) struct HeaderText(pub(crate) Template);

impl Scalar for HeaderText {
    const KIND: &'static str = "the value of a header, with placeholders";

    fn read(text: &str) -> Result<Self, TextError> {
        text::header_template(text).map(Self)
    }

    fn write(&self) -> String {
        self.0.to_string()
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "examples": ["{client_ip}", "{scheme}://{host}{path}"] })
    }
}

/// Where a redirect leads.
#[derive(Clone, Debug)]
pub(crate) struct RedirectTo(pub(crate) Template);

impl Scalar for RedirectTo {
    const KIND: &'static str = "a path or an address, with placeholders";

    fn read(text: &str) -> Result<Self, TextError> {
        text::redirect_template(text).map(Self)
    }

    fn write(&self) -> String {
        self.0.to_string()
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "examples": ["https://example.com{path}", "/new/{rest}"] })
    }
}

/// The status of a redirect.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RedirectStatus(pub(crate) u16);

impl Scalar for RedirectStatus {
    const KIND: &'static str = "the status of a redirect";
    const PLAIN: Plain = Plain::Number;

    fn read(text: &str) -> Result<Self, TextError> {
        match text.trim().parse() {
            Ok(status @ (301 | 302 | 303 | 307 | 308)) => Ok(Self(status)),
            _ => Err(TextError::new("301, 302, 303, 307 or 308")),
        }
    }

    fn write(&self) -> String {
        self.0.to_string()
    }

    fn schema() -> Schema {
        json_schema!({ "type": ["integer", "string"], "minimum": 301, "maximum": 308, "pattern": r"^30[12378]$|\$\{" })
    }
}

/// The beginning of a path.
#[derive(Clone, Debug)]
pub(crate) struct PathPrefix(pub(crate) String);

impl Scalar for PathPrefix {
    const KIND: &'static str = "the beginning of a path";

    fn read(text: &str) -> Result<Self, TextError> {
        text::path_prefix(text).map(Self)
    }

    fn write(&self) -> String {
        self.0.clone()
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "examples": ["/", "/v2"] })
    }
}

/// A regular expression.
#[derive(Clone, Debug)]
pub(crate) struct Pattern(pub(crate) regex::Regex);

impl Scalar for Pattern {
    const KIND: &'static str = "a regular expression";

    fn read(text: &str) -> Result<Self, TextError> {
        // Its own complaint has several lines; the last one says what is wrong.
        regex::RegexBuilder::new(text).size_limit(crate::model::REGEX_BYTES_MAX).build().map(Self).map_err(|error| {
            let text = error.to_string();
            let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            TextError::new("a regular expression, as the crate `regex` understands them").hint(reason)
        })
    }

    fn write(&self) -> String {
        self.0.as_str().to_owned()
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "examples": ["^/users/([0-9]+)$"] })
    }
}

impl Scalar for StatusPattern {
    const KIND: &'static str = "a status, or a class of them";
    const PLAIN: Plain = Plain::Number;

    fn read(text: &str) -> Result<Self, TextError> {
        text.parse()
    }

    fn write(&self) -> String {
        self.to_string()
    }

    fn schema() -> Schema {
        json_schema!({ "type": ["integer", "string"], "minimum": 400, "maximum": 599, "pattern": r"^[45]([0-9]{2}|xx)$|\$\{" })
    }
}

impl Scalar for Origin {
    const KIND: &'static str = "an origin";

    fn read(text: &str) -> Result<Self, TextError> {
        text.parse()
    }

    fn write(&self) -> String {
        self.to_string()
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "examples": ["https://app.example.com", "https://*.example.com", "*"] })
    }
}
