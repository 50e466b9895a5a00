//! Compares what two versions did on the same call. Pure. A *difference* has a kind out of a closed set, and says what
//! differs without giving away what requests carry: names in full, values as their length and a digest under a key that
//! only this process has, and of names that are known to hold secrets not even that.

use std::collections::BTreeSet;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, header};
use lockgate_host::{Bag, CallErrorKind, Digest, Exchange, Phase, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::metrics::FAILED_BY_ITSELF;
use crate::shadow::capture::Decided;

/// What differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// One continued and the other answered, or only stable failed, or both failed in different ways.
    Outcome,
    /// The status of the response.
    Status,
    /// The request's headers.
    RequestHeaders,
    /// The response's headers.
    ResponseHeaders,
    /// The request's body.
    RequestBody,
    /// The response's body.
    ResponseBody,
    /// Path, query or upstream.
    Target,
    /// What is left for the filters after it.
    Context,
    /// Only the canary said that it failed.
    Fail,
    /// Only the canary trapped.
    Trap,
    /// Only the canary ran past its deadline.
    Deadline,
    /// Only the canary wanted too much memory.
    Memory,
    /// Only the canary wanted too large a table.
    Table,
    /// Only the canary held too many handles.
    Handles,
    /// Only the canary's stack was full.
    Stack,
    /// Only the canary copied too much.
    Copy,
    /// Only the canary answered with what cannot be sent.
    InvalidResponse,
    /// Only the canary failed after an outbound request that no grant covers.
    Denied,
    /// Only the canary failed after an outbound request with a method that is not granted.
    DeniedMethod,
    /// Only the canary failed after an outbound request to an address that is not granted.
    DeniedAddress,
    /// Only the canary found no key-value store.
    Store,
}

impl Kind {
    /// All kinds, in the order of their numbers (`kind as usize`).
    pub const ALL: [Self; 21] = [
        Self::Outcome,
        Self::Status,
        Self::RequestHeaders,
        Self::ResponseHeaders,
        Self::RequestBody,
        Self::ResponseBody,
        Self::Target,
        Self::Context,
        Self::Fail,
        Self::Trap,
        Self::Deadline,
        Self::Memory,
        Self::Table,
        Self::Handles,
        Self::Stack,
        Self::Copy,
        Self::InvalidResponse,
        Self::Denied,
        Self::DeniedMethod,
        Self::DeniedAddress,
        Self::Store,
    ];

    /// Returns the name for metrics and API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Outcome => "outcome",
            Self::Status => "status",
            Self::RequestHeaders => "request-headers",
            Self::ResponseHeaders => "response-headers",
            Self::RequestBody => "request-body",
            Self::ResponseBody => "response-body",
            Self::Target => "target",
            Self::Context => "context",
            Self::Fail => "fail",
            Self::Trap => "trap",
            Self::Deadline => "deadline",
            Self::Memory => "memory",
            Self::Table => "table",
            Self::Handles => "handles",
            Self::Stack => "stack",
            Self::Copy => "copy",
            Self::InvalidResponse => "invalid-response",
            Self::Denied => "denied",
            Self::DeniedMethod => "denied-method",
            Self::DeniedAddress => "denied-address",
            Self::Store => "store",
        }
    }

    /// Returns the kind of a failure that only the canary had.
    fn of_failure(kind: &str) -> Self {
        match kind {
            FAILED_BY_ITSELF => Self::Fail,
            _ => Self::ALL.into_iter().find(|known| known.as_str() == kind).unwrap_or(Self::Trap),
        }
    }
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Difference {
    /// What differs.
    pub kind: Kind,
    /// In which phase, as `on-request`.
    pub phase: &'static str,
    /// Which header or key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What stable did; none where it left out what the canary did.
    pub stable: Option<String>,
    /// What the canary did; none where it left out what stable did.
    pub canary: Option<String>,
}

/// Headers whose values are shown in no form: a digest of what can be guessed gives it away to who holds the key.
const SECRET: [HeaderName; 5] = [
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    header::COOKIE,
    header::SET_COOKIE,
    HeaderName::from_static("x-api-key"),
];

/// Parts of names that tell of secrets.
const SECRET_WORDS: [&str; 6] = ["token", "secret", "password", "session", "api-key", "apikey"];

/// Shows values without giving them away.
#[derive(Clone)]
pub struct Redactor {
    key: [u8; 16],
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Redactor")
    }
}

impl Redactor {
    /// Returns one with a key of its own. Digests under different keys say nothing about each other.
    pub fn new() -> Self {
        let mut key = [0; 16];
        // A kernel without random bytes is none that anybody has: digests are then those of a known key.
        let _ = rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty());
        Self { key }
    }

    fn value(&self, name: &str, value: &[u8]) -> String {
        let secret = SECRET.iter().any(|known| known == name) || SECRET_WORDS.iter().any(|word| name.contains(word));
        if secret {
            return "redacted".to_owned();
        }
        self.digest(value)
    }

    fn digest(&self, value: &[u8]) -> String {
        let digest = Digest::of(&[&self.key[..], value].concat());
        format!("{} bytes, digest {digest}", value.len())
    }
}

impl Default for Redactor {
    fn default() -> Self {
        Self::new()
    }
}

/// What a version did in one call.
#[derive(Clone, Copy, Debug)]
pub struct Did<'a> {
    /// What it decided.
    pub decided: &'a Decided,
    /// The exchange that it left.
    pub after: &'a Exchange,
}

/// Finds the differences between what two versions did.
#[derive(Debug)]
pub struct Comparison<'a> {
    redactor: &'a Redactor,
    phase: &'static str,
    found: Vec<Difference>,
}

impl<'a> Comparison<'a> {
    /// Returns one about a phase.
    pub fn new(redactor: &'a Redactor, phase: Phase) -> Self {
        Self { redactor, phase: phase.as_str(), found: Vec::new() }
    }

    /// Returns the differences of one call, bodies left aside: those are compared when they are whole.
    pub fn call(mut self, stable: Did<'_>, canary: Did<'_>) -> Vec<Difference> {
        self.outcome(stable.decided, canary.decided);
        if self.found.is_empty() {
            self.exchange(stable.after, canary.after);
        }
        self.found
    }

    /// Returns the difference of two whole bodies, if there is one.
    pub fn body(mut self, kind: Kind, stable: &[u8], canary: &[u8]) -> Vec<Difference> {
        if stable != canary {
            let [stable, canary] = [stable, canary].map(|body| Some(self.redactor.digest(body)));
            self.add(kind, None, stable, canary);
        }
        self.found
    }

    fn add(&mut self, kind: Kind, name: Option<&str>, stable: Option<String>, canary: Option<String>) {
        self.found.push(Difference { kind, phase: self.phase, name: name.map(str::to_owned), stable, canary });
    }

    fn outcome(&mut self, stable: &Decided, canary: &Decided) {
        match (stable, canary) {
            (Decided::Continue | Decided::Replace(_), Decided::Continue | Decided::Replace(_)) => {}
            (Decided::Respond(stable), Decided::Respond(canary)) => self.response(stable, canary),
            (Decided::Fail { kind: stable, .. }, Decided::Fail { kind: canary, .. }) if stable == canary => {}
            (Decided::Continue | Decided::Replace(_) | Decided::Respond(_), Decided::Fail { kind, .. }) => {
                self.add(Kind::of_failure(kind), None, Some(word(stable)), Some(word(canary)));
            }
            _ => self.add(Kind::Outcome, None, Some(word(stable)), Some(word(canary))),
        }
    }

    fn response(&mut self, stable: &Response, canary: &Response) {
        if stable.status != canary.status {
            let [stable, canary] = [stable, canary].map(|response| Some(response.status.as_str().to_owned()));
            self.add(Kind::Status, None, stable, canary);
        }
        self.headers(Kind::ResponseHeaders, &stable.headers, &canary.headers);
        if stable.body != canary.body {
            let [stable, canary] = [&stable.body, &canary.body].map(|body: &Bytes| Some(self.redactor.digest(body)));
            self.add(Kind::ResponseBody, None, stable, canary);
        }
    }

    fn exchange(&mut self, stable: &Exchange, canary: &Exchange) {
        let (asked, would_ask) = (&stable.request, &canary.request);
        if asked.uri != would_ask.uri {
            // A query may hold secrets; that it differs is all that is said of it.
            let path = |exchange: &Exchange| Some(exchange.request.uri.path().to_owned());
            let name = if asked.uri.path() == would_ask.uri.path() { "query" } else { "path" };
            self.add(Kind::Target, Some(name), path(stable), path(canary));
        }
        if stable.upstream != canary.upstream {
            let upstream = |exchange: &Exchange| exchange.upstreams.get(exchange.upstream).map(ToString::to_string);
            self.add(Kind::Target, Some("upstream"), upstream(stable), upstream(canary));
        }
        self.headers(Kind::RequestHeaders, &asked.headers, &would_ask.headers);
        if let (Some(stable), Some(canary)) = (&stable.response, &canary.response) {
            if stable.status != canary.status {
                let [stable, canary] = [stable, canary].map(|response| Some(response.status.as_str().to_owned()));
                self.add(Kind::Status, None, stable, canary);
            }
            self.headers(Kind::ResponseHeaders, &stable.headers, &canary.headers);
        }
        self.context(&stable.context, &canary.context);
    }

    fn headers(&mut self, kind: Kind, stable: &HeaderMap, canary: &HeaderMap) {
        if stable == canary {
            return;
        }
        let names: BTreeSet<&str> = stable.keys().chain(canary.keys()).map(HeaderName::as_str).collect();
        for name in names {
            let shown = |headers: &HeaderMap| {
                let values: Vec<&[u8]> = headers.get_all(name).iter().map(http::HeaderValue::as_bytes).collect();
                (!values.is_empty()).then(|| self.redactor.value(name, &values.join(&b", "[..])))
            };
            if !stable.get_all(name).iter().eq(canary.get_all(name)) {
                let (stable, canary) = (shown(stable), shown(canary));
                self.add(kind, Some(name), stable, canary);
            }
        }
    }

    fn context(&mut self, stable: &Bag, canary: &Bag) {
        if stable == canary {
            return;
        }
        let keys: BTreeSet<&str> = stable.keys().chain(canary.keys()).collect();
        for key in keys.into_iter().filter(|key| stable.get(key) != canary.get(key)) {
            let [stable, canary] =
                [stable, canary].map(|bag| bag.get(key).map(|value| self.redactor.value(key, value)));
            self.add(Kind::Context, Some(key), stable, canary);
        }
    }
}

/// Returns a decision in a word or two.
fn word(decided: &Decided) -> String {
    match decided {
        Decided::Continue | Decided::Replace(_) => "continue".to_owned(),
        Decided::Respond(response) => format!("respond {}", response.status.as_str()),
        Decided::Fail { kind, .. } if *kind == FAILED_BY_ITSELF => "fail".to_owned(),
        Decided::Fail { kind, .. } => format!("fail ({kind})"),
    }
}

/// Every failure of a call has a kind of its own but `exhausted`, which cannot be compared; the filter's own has one too.
const _: () = assert!(Kind::ALL.len() == 8 + CallErrorKind::OF_FILTERS.len());

#[cfg(test)]
mod tests {
    use http::{HeaderValue, StatusCode};
    use proptest::prelude::*;

    use super::*;

    fn exchange(headers: &[(&str, &str)]) -> Box<Exchange> {
        let mut request = http::Request::get("/a?b=c");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let client = "192.0.2.7".parse().unwrap();
        let upstreams: [std::sync::Arc<str>; 2] = ["main".into(), "other".into()];
        Box::new(Exchange::new(parts, "http", client, "id".into(), "route".into(), upstreams.into()))
    }

    fn fail(kind: &'static str) -> Decided {
        Decided::Fail { kind, message: "why".to_owned() }
    }

    fn respond(status: u16, body: &'static str) -> Decided {
        let status = StatusCode::from_u16(status).unwrap();
        Decided::Respond(Response { status, headers: HeaderMap::new(), body: Bytes::from_static(body.as_bytes()) })
    }

    fn differences(stable: (&Decided, &Exchange), canary: (&Decided, &Exchange)) -> Vec<Difference> {
        let did = |(decided, after)| Did { decided, after };
        Comparison::new(&Redactor::new(), Phase::OnRequest).call(did(stable), did(canary))
    }

    fn kinds(stable: &Decided, canary: &Decided) -> Vec<&'static str> {
        let exchange = exchange(&[]);
        differences((stable, &exchange), (canary, &exchange)).iter().map(|found| found.kind.as_str()).collect()
    }

    #[test]
    fn outcomes_are_sorted_by_who_did_what() {
        let go = || Decided::Continue;
        for (stable, canary, expected) in [
            (go(), go(), &[][..]),
            (go(), Decided::Replace(Bytes::new()), &[]),
            (respond(403, "no"), respond(403, "no"), &[]),
            (respond(403, "no"), respond(401, "No"), &["status", "response-body"]),
            (go(), respond(403, ""), &["outcome"]),
            (respond(403, ""), go(), &["outcome"]),
            (go(), fail("trap"), &["trap"]),
            (go(), fail("deadline"), &["deadline"]),
            (respond(403, ""), fail("outcome"), &["fail"]),
            (fail("trap"), fail("trap"), &[]),
            (fail("trap"), fail("memory"), &["outcome"]),
            (fail("trap"), go(), &["outcome"]),
        ] {
            assert_eq!(kinds(&stable, &canary), expected, "{stable:?} {canary:?}");
        }
    }

    #[test]
    fn every_kind_of_failure_has_one_of_its_own() {
        for kind in CallErrorKind::OF_FILTERS.iter().filter(|kind| **kind != CallErrorKind::Exhausted) {
            assert_eq!(Kind::of_failure(kind.as_str()).as_str(), kind.as_str());
        }
        for (number, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number);
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }

    #[test]
    fn headers_are_told_by_name_and_never_by_value() {
        let stable = exchange(&[("x-a", "1"), ("x-b", "plain"), ("cookie", "sid=secret")]);
        let canary = exchange(&[("x-b", "other"), ("cookie", "sid=hidden"), ("x-c", "3"), ("x-c", "4")]);
        let found = differences((&Decided::Continue, &stable), (&Decided::Continue, &canary));
        let names: Vec<_> = found.iter().map(|found| found.name.as_deref().unwrap_or_default()).collect();
        assert_eq!(names, ["cookie", "x-a", "x-b", "x-c"]);
        assert_eq!(found[0].stable.as_deref(), Some("redacted"));
        assert_eq!((found[1].stable.is_some(), found[1].canary.is_some()), (true, false));
        assert!(found[2].stable.as_deref().is_some_and(|shown| shown.starts_with("5 bytes, digest ")));
        let text = serde_json::to_string(&found).unwrap();
        for value in ["plain", "other", "secret", "hidden"] {
            assert!(!text.contains(value), "{text}");
        }
    }

    #[test]
    fn target_and_context_are_told() {
        let stable = exchange(&[]);
        let mut canary = stable.clone();
        canary.request.uri = "/a?b=d".parse().unwrap();
        canary.upstream = 1;
        canary.context.set("user", b"42");
        let found = differences((&Decided::Continue, &stable), (&Decided::Continue, &canary));
        let told: Vec<_> = found.iter().map(|found| (found.kind, found.name.as_deref().unwrap_or_default())).collect();
        assert_eq!(told, [(Kind::Target, "query"), (Kind::Target, "upstream"), (Kind::Context, "user")]);
        assert!(!serde_json::to_string(&found).unwrap().contains("b=d"));
    }

    proptest! {
        #[test]
        fn a_difference_is_found_exactly_where_headers_differ(
            stable in proptest::collection::vec(("x-[a-c]", "[a-b]{0,2}"), 0..5),
            canary in proptest::collection::vec(("x-[a-c]", "[a-b]{0,2}"), 0..5),
        ) {
            let headers = |pairs: &[(String, String)]| {
                let mut exchange = exchange(&[]);
                for (name, value) in pairs {
                    let name = HeaderName::try_from(name.as_str()).unwrap();
                    exchange.request.headers.append(name, HeaderValue::from_str(value).unwrap());
                }
                exchange
            };
            let (stable, canary) = (headers(&stable), headers(&canary));
            let found = differences((&Decided::Continue, &stable), (&Decided::Continue, &canary));
            prop_assert_eq!(found.is_empty(), stable.request.headers == canary.request.headers);
            let back = differences((&Decided::Continue, &canary), (&Decided::Continue, &stable));
            prop_assert_eq!(found.len(), back.len());
        }
    }
}
