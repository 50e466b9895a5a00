//! What a route asks for that needs no filter: limits, edits of headers, redirects, rewriting, cross-origin requests and
//! error pages.

use std::path::PathBuf;
use std::time::Duration;

use crate::model::KeyPart;
use crate::problem::Place;
use crate::units::{ByteSize, Share};

/// What a route asks for that needs no filter. Nothing, by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoutePolicy {
    /// How often who may ask. Names are unique within the route.
    pub rate_limits: Vec<RateLimit>,
    /// Requests under way at the same time. Default: no limit.
    pub requests_max: Option<u32>,
    /// Bytes of a request's body, in the place of the server's limit. Default: the server's.
    pub body: Option<ByteSize>,
    /// Bytes that a compressed body may become before filters that look at it. Default: bodies stay as they are.
    pub decompress: Option<ByteSize>,
    /// How long requests may take.
    pub timeouts: RouteTimeouts,
    /// Edits of the request's header, before its first filter.
    pub request_headers: HeaderEdits,
    /// Edits of the response's header, after its last filter.
    pub response_headers: HeaderEdits,
    /// What the target is asked for, where that differs from what the client asked for.
    pub rewrite: Rewrite,
    /// Which pages of other origins may ask.
    pub cors: Option<Cors>,
    /// Where a share of the requests goes as well.
    pub mirror: Option<Mirror>,
    /// What the gateway's own errors look like, before the server's pages.
    pub error_pages: Vec<ErrorPage>,
}

/// How often who may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Unique within the route. Default: `limit-1` for the first, and so on.
    pub name: String,
    /// Requests that a key may make within [`Self::per`].
    pub requests: u32,
    /// Default: 1 s.
    pub per: Duration,
    /// Requests that may come at once. Default: [`Self::requests`].
    pub burst: u32,
    /// Who is told apart; empty for nobody: all requests count together. Default: the client's address.
    pub key: Vec<KeyPart>,
    /// Keys that are remembered at the same time. Default: 65,536.
    pub keys_max: u32,
    /// Whether responses say what is left. Default: true.
    pub headers: bool,
}

/// How long requests of a route may take. No limits, by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteTimeouts {
    /// From the request's header to the end of the response.
    pub total: Option<Duration>,
    /// From the request's header to that of the response.
    pub response: Option<Duration>,
}

/// Edits of a header: what is removed, then what is set, then what is appended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    /// Names in lower case, with the value that takes the place of all that are there.
    pub set: Vec<(String, Template)>,
    /// Names in lower case, with a value that is put behind those that are there.
    pub append: Vec<(String, Template)>,
    /// Names in lower case.
    pub remove: Vec<String>,
}

/// What the target is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// The path. Default: as the client asked.
    pub path: Option<PathRewrite>,
    /// The host, with a port or without. Default: as the client asked.
    pub host: Option<String>,
}

/// Bytes that a compiled regular expression may take: many times what any path asks for.
pub const REGEX_BYTES_MAX: usize = 1 << 20;

/// What becomes of a path; the query stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRewrite {
    /// The route's prefix is replaced by this one, which begins with `/`; `/` takes the prefix away.
    Prefix(String),
    /// The first match is replaced, where there is one.
    Regex {
        /// A regular expression that compiles.
        pattern: String,
        /// With `$1`, `$name` and `${name}` for groups that there are.
        to: String,
    },
}

/// Which pages of other origins may ask (the CORS protocol of the Fetch standard).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cors {
    /// At least one.
    pub origins: Vec<Origin>,
    /// Default: GET, HEAD, POST.
    pub methods: Vec<String>,
    /// Headers of requests; `*` alone for any. Default: none beyond those that need no permission.
    pub headers: Vec<String>,
    /// Headers of responses that pages may read. Default: none beyond those that need no permission.
    pub expose: Vec<String>,
    /// Whether cookies and the like may come along. Default: false.
    pub credentials: bool,
    /// How long a browser remembers the answer. Default: 10 min.
    pub max_age: Duration,
}

/// Where a page comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `*`
    Any,
    /// As a browser writes it, in lower case: `https://app.example.com`, or `null`.
    Exact(String),
    /// `https://*.example.com:8443`: one or more labels between the two.
    Wildcard {
        /// `https://`
        scheme: String,
        /// `.example.com:8443`
        suffix: String,
    },
}

/// Where a share of the requests goes as well; what is answered there is thrown away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Index into [`Config::upstreams`](crate::model::Config::upstreams).
    pub upstream: usize,
    /// Default: all of them.
    pub share: Share,
    /// Bytes of a body; requests with a longer one are left out. Default: 64 KiB.
    pub body: ByteSize,
    /// Mirrored requests under way at the same time; others are left out. Default: 64.
    pub requests_max: u32,
}

/// What an error of the gateway looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorPage {
    /// Which errors; at least one.
    pub statuses: Vec<StatusPattern>,
    /// Default: `text/html; charset=utf-8`.
    pub content_type: String,
    /// `{status}` and `{request_id}` in it are replaced.
    pub body: Body,
}

/// One status, or a class of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StatusPattern {
    /// 400 to 599.
    Exact(u16),
    /// 4 or 5.
    Class(u8),
}

/// What stands in a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// This text.
    Text(String),
    /// The bytes of a file, read when the configuration is.
    File {
        /// Relative paths are resolved against the configuration file's folder.
        path: PathBuf,
        /// Where the file is named.
        place: Place,
    },
}

/// Where requests are sent instead of being served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308. Default: 307.
    pub status: u16,
    /// Begins with `/`, `http://` or `https://`.
    pub to: Template,
    /// Whether the request's query goes along; never where [`Self::to`] has one. Default: true.
    pub keep_query: bool,
}

/// A response that is always the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FixedResponse {
    /// 200 to 599.
    pub status: u16,
    /// Names in lower case. A `content-type` is among them where there is a body.
    pub headers: Vec<(String, String)>,
    /// Default: none.
    pub body: Option<Body>,
}

/// A text with places for what a request is about. `{{` and `}}` stand for braces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(pub Vec<TemplatePiece>);

/// A piece of a [`Template`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplatePiece {
    /// As it stands.
    Text(String),
    /// What the request is about.
    Placeholder(Placeholder),
}

macro_rules! placeholders {
    ($($(#[$doc:meta])* $name:ident $word:literal;)*) => {
        /// What a request is about, for a [`Template`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Placeholder {
            $($(#[$doc])* $name,)*
        }

        impl Placeholder {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Returns the word between the braces.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }
        }
    };
}

placeholders! {
    /// The client's address, behind trusted proxies.
    ClientIp "client_ip";
    /// The host that was asked for, with its port if it came with one.
    Host "host";
    /// The request's method.
    Method "method";
    /// The path, without the query.
    Path "path";
    /// The query, without the `?`; empty where there is none.
    Query "query";
    /// The request's id.
    RequestId "request_id";
    /// What follows the route's prefix; of another route, the path without its first `/`.
    Rest "rest";
    /// The route's name.
    Route "route";
    /// `http` or `https`.
    Scheme "scheme";
}
