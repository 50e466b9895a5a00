//! What stable did on one request, call by call, so that another version can be asked the same. Bounded: a request with
//! longer bodies or more calls than that is not compared.

use bytes::Bytes;
use http::HeaderMap;
use lockgate_host::{
    BodyOutcome, CallError, CallErrorKind, Exchange, Notes, Outcome, Phase, Response, ResponseBodyOutcome,
    ResponseOutcome,
};

use crate::metrics::FAILED_BY_ITSELF;

/// Calls of one request that are kept.
const CALLS_MAX: usize = 64;
/// Bytes of headers, bags and notes of one request. Each call holds the exchange twice, a few kilobytes most of the time.
const EXCHANGES_BYTES_MAX: usize = 256 << 10;
/// What a header or a value in a bag takes besides its text.
const ENTRY_BYTES: usize = 64;

/// Why a request was sampled, and not compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// Too many others waited.
    QueueFull,
    /// The shadow's share of processor time was used up.
    CpuBudget,
    /// Its bodies, its calls, or what stable found in its key-value store were more than is kept.
    TooLarge,
    /// No instance was to be had, for stable or for the canary.
    Exhausted,
    /// The canary wanted to send a request of its own, and was not let.
    Outbound,
    /// The shadow ended meanwhile.
    Ended,
}

impl Skip {
    /// All reasons, in the order of their numbers (`skip as usize`).
    pub const ALL: [Self; 6] =
        [Self::QueueFull, Self::CpuBudget, Self::TooLarge, Self::Exhausted, Self::Outbound, Self::Ended];

    /// Returns the name for metrics and API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue-full",
            Self::CpuBudget => "cpu-budget",
            Self::TooLarge => "too-large",
            Self::Exhausted => "exhausted",
            Self::Outbound => "outbound",
            Self::Ended => "ended",
        }
    }
}

/// One call of a version.
#[derive(Debug)]
pub struct Call {
    /// Which phase.
    pub phase: Phase,
    /// The exchange that it was given.
    pub before: Box<Exchange>,
    /// The piece of a body that it was given, and whether that was the last.
    pub piece: Option<(Bytes, bool)>,
    /// What it found in its key-value store.
    pub notes: Notes,
    /// What it decided.
    pub decided: Decided,
    /// The exchange that it left.
    pub after: Box<Exchange>,
}

/// What a version decided in one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decided {
    /// Go on.
    Continue,
    /// Go on, with this in the piece's place.
    Replace(Bytes),
    /// Answer with this.
    Respond(Response),
    /// It failed.
    Fail {
        /// The kind, as in metrics.
        kind: &'static str,
        /// What happened.
        message: String,
    },
}

impl Call {
    /// Returns the bytes of bodies that it holds.
    fn body_bytes(&self) -> usize {
        self.piece.as_ref().map_or(0, |(piece, _)| piece.len()) + self.decided.bytes()
    }

    /// Returns what it holds besides, roughly.
    fn exchange_bytes(&self) -> usize {
        let exchange = |exchange: &Exchange| {
            let of = |headers: &HeaderMap| -> usize {
                headers.iter().map(|(name, value)| ENTRY_BYTES + name.as_str().len() + value.len()).sum()
            };
            let response = exchange.response.as_ref().map_or(0, |response| of(&response.headers));
            size_of::<Exchange>() + of(&exchange.request.headers) + response + exchange.context.bytes()
        };
        exchange(&self.before) + exchange(&self.after) + self.notes.bytes()
    }
}

impl Decided {
    /// Returns whether there was no instance to ask.
    pub fn is_exhausted(&self) -> bool {
        matches!(self, Self::Fail { kind, .. } if *kind == CallErrorKind::Exhausted.as_str())
    }

    fn failed(error: &CallError) -> Self {
        Self::Fail { kind: error.kind.as_str(), message: error.message.clone() }
    }

    fn failed_by_itself(reason: &str) -> Self {
        Self::Fail { kind: FAILED_BY_ITSELF, message: reason.to_owned() }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Replace(piece) => piece.len(),
            Self::Respond(response) => response.body.len(),
            Self::Continue | Self::Fail { .. } => 0,
        }
    }
}

impl From<&Result<Outcome, CallError>> for Decided {
    fn from(outcome: &Result<Outcome, CallError>) -> Self {
        match outcome {
            Ok(Outcome::Continue) => Self::Continue,
            Ok(Outcome::Respond(response)) => Self::Respond(response.clone()),
            Ok(Outcome::Fail(reason)) => Self::failed_by_itself(reason),
            Err(error) => Self::failed(error),
        }
    }
}

impl From<&Result<BodyOutcome, CallError>> for Decided {
    fn from(outcome: &Result<BodyOutcome, CallError>) -> Self {
        match outcome {
            Ok(BodyOutcome::Continue) => Self::Continue,
            Ok(BodyOutcome::Replace(piece)) => Self::Replace(piece.clone()),
            Ok(BodyOutcome::Respond(response)) => Self::Respond(response.clone()),
            Ok(BodyOutcome::Fail(reason)) => Self::failed_by_itself(reason),
            Err(error) => Self::failed(error),
        }
    }
}

impl From<&Result<ResponseOutcome, CallError>> for Decided {
    fn from(outcome: &Result<ResponseOutcome, CallError>) -> Self {
        match outcome {
            Ok(ResponseOutcome::Continue) => Self::Continue,
            Ok(ResponseOutcome::Fail(reason)) => Self::failed_by_itself(reason),
            Err(error) => Self::failed(error),
        }
    }
}

impl From<&Result<ResponseBodyOutcome, CallError>> for Decided {
    fn from(outcome: &Result<ResponseBodyOutcome, CallError>) -> Self {
        match outcome {
            Ok(ResponseBodyOutcome::Continue) => Self::Continue,
            Ok(ResponseBodyOutcome::Replace(piece)) => Self::Replace(piece.clone()),
            Ok(ResponseBodyOutcome::Fail(reason)) => Self::failed_by_itself(reason),
            Err(error) => Self::failed(error),
        }
    }
}

/// All calls of stable on one request.
#[derive(Debug)]
pub struct Capture {
    calls: Vec<Call>,
    body_bytes_left: u64,
    exchange_bytes_left: usize,
    bytes: usize,
    skipped: Option<Skip>,
}

impl Capture {
    /// Returns an empty one, which will hold so many bytes of bodies.
    pub fn new(bytes_max: u64) -> Self {
        Self {
            calls: Vec::new(),
            body_bytes_left: bytes_max,
            exchange_bytes_left: EXCHANGES_BYTES_MAX,
            bytes: 0,
            skipped: None,
        }
    }

    /// Returns whether further calls are of any use.
    pub fn goes_on(&self) -> bool {
        self.skipped.is_none()
    }

    /// Returns why the request is not to be compared.
    pub fn skipped(&self) -> Option<Skip> {
        self.skipped
    }

    /// Returns whether stable was never called: the request ended before it.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Returns the exchange that the first call was given.
    pub fn first(&self) -> Option<&Exchange> {
        self.calls.first().map(|call| &*call.before)
    }

    /// Returns the calls, in their order.
    pub fn into_calls(self) -> Vec<Call> {
        self.calls
    }

    /// Adds a call. What does not fit gives all the room back.
    pub fn add(&mut self, call: Call) {
        let (body_bytes, exchange_bytes) = (call.body_bytes(), call.exchange_bytes());
        let fits = self.calls.len() < CALLS_MAX
            && body_bytes as u64 <= self.body_bytes_left
            && exchange_bytes <= self.exchange_bytes_left
            && call.notes.is_complete();
        if call.decided.is_exhausted() {
            self.give_up(Skip::Exhausted);
        } else if !fits {
            self.give_up(Skip::TooLarge);
        } else if self.goes_on() {
            self.body_bytes_left -= body_bytes as u64;
            self.exchange_bytes_left -= exchange_bytes;
            self.bytes += body_bytes + exchange_bytes;
            self.calls.push(call);
        }
    }

    /// Returns what it holds, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn give_up(&mut self, skip: Skip) {
        self.skipped.get_or_insert(skip);
        self.calls = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn call(header: &str, piece: usize) -> Call {
        let (parts, ()) = http::Request::get("/").header("x-a", header).body(()).unwrap().into_parts();
        let upstreams: [Arc<str>; 1] = ["main".into()];
        let client = "192.0.2.7".parse().unwrap();
        let before = Box::new(Exchange::new(parts, "http", client, "id".into(), "route".into(), Arc::new(upstreams)));
        let after = before.clone();
        let piece = Some((Bytes::from(vec![0; piece]), true));
        Call { phase: Phase::OnRequestBody, before, piece, notes: Notes::default(), decided: Decided::Continue, after }
    }

    #[test]
    fn what_is_kept_of_a_request_is_bounded_whatever_it_is() {
        let long = "a".repeat(60 << 10);
        for (header, piece, calls) in [("", 0, CALLS_MAX), ("", 400, 2), (&*long, 0, 2)] {
            let mut capture = Capture::new(1_000);
            for _ in 0..calls {
                capture.add(call(header, piece));
            }
            assert!(capture.goes_on() && capture.bytes() > 0, "{calls} calls with {piece}");
            capture.add(call(header, piece));
            assert_eq!(capture.skipped(), Some(Skip::TooLarge));
            assert!(capture.is_empty(), "the room is given back");
        }
    }

    #[test]
    fn a_version_that_was_not_there_says_nothing() {
        let mut capture = Capture::new(1_000);
        let kind = CallErrorKind::Exhausted.as_str();
        capture.add(Call { decided: Decided::Fail { kind, message: String::new() }, ..call("", 0) });
        assert_eq!(capture.skipped(), Some(Skip::Exhausted));
    }
}
