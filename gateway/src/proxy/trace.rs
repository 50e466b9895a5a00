//! The trace that a request belongs to: the W3C's trace context (`traceparent`, `tracestate`), and what its spans will be
//! made of. A *span* is a piece of work with a beginning, an end and a parent.
//!
//! Off, it is one look at a pointer. On, a request gets its id, and the header is written; only of the requests that are
//! sampled for a collector the calls and attempts are noted, and handed over when they are over.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderName, HeaderValue};
use lockgate_config::model::{self, ContinueFrom};
use lockgate_config::units::Share;
use lockgate_host::Phase;
use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator};
use pingora::http::RequestHeader;
use pingora::proxy::Session;

use crate::control::snapshot::Link;
use crate::proxy::context::{Attempt, Context};
use crate::proxy::fault::Fault;
use crate::seeing::spans::Spans;
use crate::track::{Track, Tracks};

/// <https://www.w3.org/TR/trace-context/#traceparent-header>
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// <https://www.w3.org/TR/trace-context/#tracestate-header>
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The flag by which a parent says that it may have recorded.
const SAMPLED: u8 = 1;

/// Calls of filters that one request's trace has. A body that is streamed through filters has one for each piece.
const CALLS_MAX: usize = 128;

/// Whose traces are continued, and what is recorded.
#[derive(Debug)]
pub struct Tracing {
    continue_from: ContinueFrom,
    sample: Share,
    /// Where spans go.
    pub spans: Option<Arc<Spans>>,
}

/// Where a request stands in its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The trace's id; never 0.
    pub trace: u128,
    /// The span that caused this; never 0.
    pub parent: u64,
    /// Whether the trace is recorded.
    pub sampled: bool,
}

/// The trace that a request belongs to.
#[derive(Debug)]
pub struct Trace {
    position: Position,
    /// Whether `position.parent` is somebody else's span; where it is not, it is the request's own.
    continued: bool,
    /// What is noted for the collector; none where nothing is sent.
    record: Option<Record>,
}

/// What a request's spans are made of.
#[derive(Debug)]
pub struct Record {
    /// The request's own span.
    pub span: u64,
    /// Attempts at the upstream that are over, in their order.
    pub attempts: Vec<Tried>,
    /// The span of the target's call that is under way, or will be: the function's, or an attempt at the upstream.
    pub target_span: u64,
    spans: Arc<Spans>,
}

/// Calls of a request's filters, in their order.
#[derive(Debug, Default)]
pub struct Calls {
    /// The first ones.
    pub list: Vec<Call>,
    /// Those that were too many.
    pub left_out: u32,
}

/// A call of a filter.
#[derive(Debug)]
pub struct Call {
    /// The filter.
    pub filter: Arc<str>,
    /// Its version's label.
    pub version: Arc<str>,
    /// The version's track.
    pub track: Track,
    /// What it was asked.
    pub phase: Phase,
    /// What it decided.
    pub outcome: &'static str,
    /// When it began.
    pub started: Instant,
    /// How long it took.
    pub spent: Duration,
}

/// An attempt at the upstream that is over.
#[derive(Debug)]
pub struct Tried {
    /// Its span, which the upstream was told.
    pub span: u64,
    /// The upstream.
    pub upstream: Arc<str>,
    /// The track.
    pub track: Track,
    /// The endpoint.
    pub address: Option<SocketAddr>,
    /// Counted from 1.
    pub number: u32,
    /// When it began.
    pub started: Instant,
    /// When it was over.
    pub ended: Instant,
    /// 0 where there was no response.
    pub status: u16,
}

/// A function's call that is over.
#[derive(Debug)]
pub struct Answered {
    /// The function.
    pub function: Arc<str>,
    /// Its version's label.
    pub version: Arc<str>,
    /// The version's track.
    pub track: Track,
    /// What became of it.
    pub outcome: Option<&'static str>,
    /// When it began.
    pub started: Instant,
    /// For how long it kept a thread.
    pub busy: Duration,
}

/// A request that is over, with all that its spans are made of.
#[derive(Debug)]
pub struct Finished {
    /// Where it stood.
    pub position: Position,
    /// Whether the parent is somebody else's span; where it is not, there is none.
    pub continued: bool,
    /// The request's own span, and its attempts.
    pub record: Record,
    /// Calls of its filters.
    pub calls: Box<Calls>,
    /// The function that answered.
    pub function: Option<Answered>,
    /// The request's id.
    pub id: Arc<str>,
    /// Its method.
    pub method: http::Method,
    /// Its path, without the query.
    pub path: String,
    /// Its host.
    pub host: Option<String>,
    /// Its scheme.
    pub scheme: &'static str,
    /// Its HTTP version: `1.1`.
    pub version: &'static str,
    /// Its route.
    pub route: Option<Arc<str>>,
    /// The status of the response; 0 where there was none.
    pub status: u16,
    /// What kept it from its target's answer.
    pub fault: Option<Fault>,
    /// The snapshot's generation.
    pub generation: u64,
    /// When it began.
    pub started: Instant,
    /// When it was over.
    pub ended: Instant,
    /// The same moment by the wall clock.
    pub ended_at: SystemTime,
}

impl Tracing {
    /// Prepares what the configuration says.
    pub fn new(tracing: &model::Tracing, spans: Option<Arc<Spans>>) -> Self {
        Self { continue_from: tracing.continue_from, sample: tracing.sample, spans }
    }
}

/// Finds or begins the request's trace, and has the request say so to all who see it from here on.
pub fn begin(session: &mut Session, context: &mut Context) {
    let Some(tracing) = &context.snapshot.tracing else { return };
    let believed = match tracing.continue_from {
        ContinueFrom::Any => true,
        ContinueFrom::Trusted => context.peer_trusted,
        ContinueFrom::None => false,
    };
    let request = session.req_header_mut();
    let position = if believed { position_of(request) } else { None };
    let continued = position.is_some();
    let ids = RandomIdGenerator::default();
    let new_span = || u64::from_be_bytes(ids.new_span_id().to_bytes());
    let mut position = position.unwrap_or_else(|| {
        let trace = u128::from_be_bytes(ids.new_trace_id().to_bytes());
        Position { trace, parent: 0, sampled: is_sampled(trace, tracing.sample) }
    });
    let record = tracing.spans.as_ref().filter(|_| position.sampled).map(|spans| Record {
        span: new_span(),
        attempts: Vec::new(),
        target_span: new_span(),
        spans: Arc::clone(spans),
    });
    if !continued {
        request.remove_header(&TRACESTATE);
        position.parent = record.as_ref().map_or_else(new_span, |record| record.span);
    }
    let trace = Trace { position, continued, record };
    // Where nothing is recorded here, a trace that was continued goes on at the span that it came with: a span of ours
    // would be one that nobody ever finds.
    if !continued || trace.record.is_some() {
        say(request, &position, trace.record.as_ref().map_or(position.parent, |record| record.span));
    }
    context.trace = Some(Box::new(trace));
}

/// Writes the header. What cannot fail is not reported.
fn say(request: &mut RequestHeader, position: &Position, span: u64) {
    if let Ok(value) = HeaderValue::from_bytes(&written(position, span)) {
        drop(request.insert_header(TRACEPARENT, value));
    }
}

/// Returns where a request says that it stands: one header of a version that can be read, with ids that are some.
fn position_of(request: &RequestHeader) -> Option<Position> {
    let mut values = request.headers.get_all(&TRACEPARENT).iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    parse(value.as_bytes())
}

/// Reads a `traceparent`.
fn parse(value: &[u8]) -> Option<Position> {
    let (known, rest) = value.split_at_checked(55)?;
    let version = hexadecimal(known.get(..2)?)?;
    let whole = match version {
        0 => rest.is_empty(),
        0xff => false,
        // What later versions add stands behind a dash.
        _ => rest.is_empty() || rest.first() == Some(&b'-'),
    };
    let dashes = [2, 35, 52].into_iter().all(|place| known.get(place) == Some(&b'-'));
    let trace = hexadecimal(known.get(3..35)?)?;
    let parent = u64::try_from(hexadecimal(known.get(36..52)?)?).ok()?;
    let flags = u8::try_from(hexadecimal(known.get(53..55)?)?).ok()?;
    let sound = whole && dashes && trace != 0 && parent != 0;
    sound.then_some(Position { trace, parent, sampled: flags & SAMPLED != 0 })
}

/// Reads digits, which are in lower case.
fn hexadecimal(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number: u128, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

/// Returns a `traceparent` of version 0.
fn written(position: &Position, span: u64) -> [u8; 55] {
    let digit = |number: u128, place: usize| b"0123456789abcdef"[(number >> (4 * place)) as usize & 15];
    std::array::from_fn(|place| match place {
        0 | 1 | 53 => b'0',
        2 | 35 | 52 => b'-',
        3..35 => digit(position.trace, 34 - place),
        36..52 => digit(u128::from(span), 51 - place),
        _ => b'0' + u8::from(position.sampled),
    })
}

/// Returns whether a trace that begins here is sampled. By its id, so that all who go by the same share agree.
fn is_sampled(trace: u128, share: Share) -> bool {
    let drawn = u128::from(trace as u64) * u128::from(Share::FULL.basis_points());
    (drawn >> 64) < u128::from(share.basis_points())
}

impl Trace {
    /// Returns the trace's id.
    pub const fn id(&self) -> u128 {
        self.position.trace
    }

    /// Returns whether the request's spans are sent, so that its calls are worth noting.
    pub const fn is_recorded(&self) -> bool {
        self.record.is_some()
    }

    /// Returns what is noted of the request, where something is.
    pub const fn record(&mut self) -> Option<&mut Record> {
        self.record.as_mut()
    }

    /// Returns the trace for what is behind a middleware, whose spans come [back](Self::take_back).
    pub fn passed_on(&self) -> Self {
        let record = self.record.as_ref().map(|record| Record {
            span: record.span,
            attempts: Vec::new(),
            target_span: record.target_span,
            spans: Arc::clone(&record.spans),
        });
        Self { position: self.position, continued: self.continued, record }
    }

    /// Takes over what was noted behind a middleware.
    pub fn take_back(&mut self, behind: Self) {
        if let (Some(record), Some(behind)) = (&mut self.record, behind.record) {
            record.attempts.extend(behind.attempts);
            record.target_span = behind.target_span;
        }
    }

    /// Tells the target which call of it this is.
    pub fn tell_target(&self, request: &mut RequestHeader) {
        if let Some(record) = &self.record {
            say(request, &self.position, record.target_span);
        }
    }
}

impl Calls {
    /// Adds those behind a middleware.
    pub fn extend(&mut self, behind: Self) {
        self.left_out += behind.left_out;
        for call in behind.list {
            if self.list.len() < CALLS_MAX {
                self.list.push(call);
            } else {
                self.left_out += 1;
            }
        }
    }

    /// Notes a call.
    pub fn note(
        &mut self,
        link: &Link,
        tracks: Tracks,
        phase: Phase,
        outcome: &'static str,
        started: Instant,
        spent: Duration,
    ) {
        if self.list.len() >= CALLS_MAX {
            self.left_out += 1;
            return;
        }
        let (version, track) = link.versions.on(tracks);
        let (filter, version) = (Arc::clone(&link.filter), Arc::clone(version.label()));
        self.list.push(Call { filter, version, track, phase, outcome, started, spent });
    }
}

impl Record {
    /// Notes that an attempt at the upstream begins, and how the last one ended.
    pub fn attempt(&mut self, last: Option<&Attempt>) {
        self.attempt_over(last);
        self.target_span = u64::from_be_bytes(RandomIdGenerator::default().new_span_id().to_bytes());
    }

    fn attempt_over(&mut self, attempt: Option<&Attempt>) {
        let Some(attempt) = attempt else { return };
        self.attempts.push(Tried {
            span: self.target_span,
            upstream: Arc::clone(attempt.upstream.name()),
            track: attempt.track,
            address: attempt.address,
            number: attempt.number,
            started: attempt.started,
            ended: Instant::now(),
            status: attempt.status,
        });
    }
}

/// Hands a request that is over to those who send its spans.
pub fn finish(session: &Session, context: &mut Context, status: u16) {
    let Some(trace) = &mut context.trace else { return };
    let (position, continued) = (trace.position, trace.continued);
    let Some(mut record) = trace.record.take() else { return };
    record.attempt_over(context.attempt.as_ref());
    let request = session.req_header();
    let spans = Arc::clone(&record.spans);
    spans.offer(Box::new(Finished {
        position,
        continued,
        function: context.answering.as_ref().map(|answering| Answered {
            function: Arc::clone(answering.version.function().name()),
            version: Arc::clone(answering.version.label()),
            track: answering.track,
            outcome: answering.outcome,
            started: answering.started,
            busy: answering.busy,
        }),
        id: Arc::clone(&context.id),
        method: request.method.clone(),
        path: request.uri.path().to_owned(),
        host: request.headers.get(http::header::HOST).and_then(|host| host.to_str().ok()).map(str::to_owned),
        scheme: context.scheme(),
        version: match request.version {
            http::Version::HTTP_09 => "0.9",
            http::Version::HTTP_10 => "1.0",
            http::Version::HTTP_2 => "2",
            _ => "1.1",
        },
        route: context.route().map(|route| Arc::clone(&route.name)),
        status,
        fault: context.fault,
        generation: context.snapshot.generation,
        started: context.started,
        ended: Instant::now(),
        ended_at: SystemTime::now(),
        calls: context.chain.take_calls().unwrap_or_default(),
        record,
    }));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_example_of_the_specification_is_read() {
        let position = parse(EXAMPLE.as_bytes()).unwrap();
        assert_eq!(position.trace, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!(position.parent, 0x00f0_67aa_0ba9_02b7);
        assert!(position.sampled);
        assert!(!parse(EXAMPLE.replace("-01", "-02").as_bytes()).unwrap().sampled);
    }

    #[test]
    fn later_versions_may_have_more_and_this_one_may_not() {
        assert!(parse(EXAMPLE.replacen("00", "cc", 1).as_bytes()).is_some());
        assert!(parse(format!("{}-what-the-future-holds", EXAMPLE.replacen("00", "cc", 1)).as_bytes()).is_some());
        assert!(parse(format!("{}.what", EXAMPLE.replacen("00", "cc", 1)).as_bytes()).is_none());
        assert!(parse(format!("{EXAMPLE}-what").as_bytes()).is_none());
        assert!(parse(EXAMPLE.replacen("00", "ff", 1).as_bytes()).is_none());
    }

    #[test]
    fn what_is_none_is_not_read() {
        for wrong in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
            "0x-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(trace in 1_u128.., parent in 1_u64.., sampled: bool) {
            let position = Position { trace, parent, sampled };
            prop_assert_eq!(parse(&written(&position, parent)), Some(position));
        }

        #[test]
        fn nothing_makes_it_panic(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }

    #[test]
    fn a_share_of_the_traces_is_sampled() {
        let ids = RandomIdGenerator::default();
        let traces: Vec<u128> = (0..10_000).map(|_| u128::from_be_bytes(ids.new_trace_id().to_bytes())).collect();
        let sampled = |share: &str| {
            let share = share.parse().unwrap();
            traces.iter().filter(|trace| is_sampled(**trace, share)).count()
        };
        assert_eq!(sampled("0%"), 0);
        assert_eq!(sampled("100%"), traces.len());
        assert!((850..1_150).contains(&sampled("10%")), "{}", sampled("10%"));
    }
}
