//! Sends spans to an OpenTelemetry collector. Requests that are over wait in a bounded queue; one thread makes spans of
//! them and sends them by OTLP over HTTP. When the collector does not keep up, what is too much is dropped and counted.
//!
//! No global provider: what is sent where belongs to a snapshot, and goes with it.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use lockgate_config::model::Otlp;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{Protocol, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use parking_lot::{Condvar, Mutex};
use tokio::runtime::Runtime;
use tracing::{error, info, warn};

use super::collector::Client;
use crate::metrics::SpanSeries;
use crate::proxy::trace::{Answered, Call, Finished, Tried};

/// Requests that wait to be sent. At a thousand sampled requests a second, this is what a collector may be gone for
/// while it restarts.
const WAITING_MAX: usize = 4096;

/// How long requests are gathered before their spans are sent together, and how many.
const GATHER: Duration = Duration::from_secs(1);
const GATHERED_MAX: usize = 256;

/// Spans that are sent together.
const BATCH_MAX: usize = 512;

/// The collectors that spans are sent to. A reload that does not change a collector's settings changes nothing for it.
#[derive(Debug, Default)]
pub struct Collectors(Mutex<Vec<(Otlp, Weak<Spans>)>>);

impl Collectors {
    /// Returns the way to a collector; none where it cannot be made, which is logged.
    pub fn of(&self, otlp: &Otlp, series: &SpanSeries) -> Option<Arc<Spans>> {
        let mut known = self.0.lock();
        known.retain(|(_, spans)| spans.strong_count() > 0);
        if let Some(spans) = known.iter().find(|(known, _)| known == otlp).and_then(|(_, spans)| spans.upgrade()) {
            return Some(spans);
        }
        match Spans::start(otlp.clone(), series.clone()) {
            Ok(spans) => {
                let spans = Arc::new(spans);
                known.push((otlp.clone(), Arc::downgrade(&spans)));
                Some(spans)
            }
            Err(why) => {
                error!(collector = otlp.url, "no spans are sent: {why}");
                None
            }
        }
    }
}

/// The way to one collector. Ends when the last snapshot that uses it is gone, after what waits has been sent.
#[derive(Debug)]
pub struct Spans(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    more: Condvar,
    series: SpanSeries,
}

#[derive(Debug, Default)]
struct Waiting {
    #[expect(clippy::vec_box, reason = "what is moved while the lock is held is a pointer")]
    finished: Vec<Box<Finished>>,
    sending: bool,
    closed: bool,
}

impl Spans {
    /// Starts the thread that sends.
    fn start(otlp: Otlp, series: SpanSeries) -> Result<Self, String> {
        let client = Client::new(&otlp.url, otlp.timeout)?;
        let headers = otlp.headers.iter().map(|(name, value)| (name.clone(), value.reveal().to_owned())).collect();
        let mut exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(&otlp.url)
            .with_timeout(otlp.timeout)
            .with_headers(headers)
            .build()
            .map_err(|error| error.to_string())?;
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder_empty().with_service_name(otlp.service).with_attribute(version).build();
        exporter.set_resource(&resource);
        // Its own: the exporter may sleep between two attempts.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| format!("cannot start a runtime: {error}"))?;
        let shared = Arc::new(Shared { waiting: Mutex::default(), more: Condvar::new(), series });
        let sender = Sender { exporter, runtime, collector: otlp.url, failing: false };
        let queue = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("spans".into())
            .spawn(move || queue.work(sender))
            .map_err(|error| format!("cannot start a thread: {error}"))?;
        Ok(Self(shared))
    }

    /// Takes a request that is over, or drops it. Returns at once.
    pub fn offer(&self, finished: Box<Finished>) {
        let mut waiting = self.0.waiting.lock();
        if waiting.closed || waiting.finished.len() >= WAITING_MAX {
            drop(waiting);
            self.0.series.dropped.inc_by(count(&finished));
            return;
        }
        waiting.finished.push(finished);
        // The thread gathers by the clock: it is woken at the beginning and when there is enough.
        let wake = matches!(waiting.finished.len(), 1 | GATHERED_MAX);
        drop(waiting);
        if wake {
            self.0.more.notify_all();
        }
    }

    /// Takes no more, and waits until all has been sent, or for so long.
    pub fn close(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut waiting = self.0.waiting.lock();
        waiting.closed = true;
        self.0.more.notify_all();
        while waiting.sending || !waiting.finished.is_empty() {
            if self.0.more.wait_until(&mut waiting, deadline).timed_out() {
                return;
            }
        }
    }
}

impl Drop for Spans {
    fn drop(&mut self) {
        self.0.waiting.lock().closed = true;
        self.0.more.notify_all();
    }
}

/// Returns how many spans a request has.
fn count(finished: &Finished) -> u64 {
    let below = finished.calls.list.len() + finished.record.attempts.len() + usize::from(finished.function.is_some());
    1 + below as u64
}

impl Shared {
    /// Sends what is offered, until there is nobody left who could offer.
    fn work(&self, mut sender: Sender) {
        loop {
            let finished = {
                let mut waiting = self.waiting.lock();
                waiting.sending = false;
                self.more.notify_all();
                while waiting.finished.is_empty() && !waiting.closed {
                    self.more.wait(&mut waiting);
                }
                let until = Instant::now() + GATHER;
                while !waiting.closed && waiting.finished.len() < GATHERED_MAX {
                    if self.more.wait_until(&mut waiting, until).timed_out() {
                        break;
                    }
                }
                if waiting.finished.is_empty() {
                    return;
                }
                waiting.sending = true;
                std::mem::take(&mut waiting.finished)
            };
            let mut spans = finished.iter().flat_map(|finished| spans_of(finished)).peekable();
            while spans.peek().is_some() {
                let batch: Vec<SpanData> = spans.by_ref().take(BATCH_MAX).collect();
                let count = batch.len() as u64;
                let series = if sender.send(batch) { &self.series.sent } else { &self.series.failed };
                series.inc_by(count);
            }
        }
    }
}

/// Sends batches, one after the other.
struct Sender {
    exporter: opentelemetry_otlp::SpanExporter,
    runtime: Runtime,
    collector: String,
    /// Whether the last batch was refused: it is told once.
    failing: bool,
}

impl Sender {
    /// Returns whether the collector took the spans.
    fn send(&mut self, batch: Vec<SpanData>) -> bool {
        let sent = self.runtime.block_on(self.exporter.export(batch));
        match &sent {
            Err(error) if !self.failing => {
                warn!(%error, collector = self.collector, "the collector takes no spans: they are lost, and counted");
            }
            Ok(()) if self.failing => info!(collector = self.collector, "the collector takes spans again"),
            _ => {}
        }
        self.failing = sent.is_err();
        sent.is_ok()
    }
}

/// Returns the spans of a request, its own first.
fn spans_of(finished: &Finished) -> Vec<SpanData> {
    let clock = Clock { now: finished.ended, wall: finished.ended_at };
    let mut spans = vec![request_span(finished, clock)];
    spans.extend(finished.calls.list.iter().map(|call| call_span(finished, call, clock)));
    spans.extend(finished.function.iter().map(|function| function_span(finished, function, clock)));
    spans.extend(finished.record.attempts.iter().map(|tried| attempt_span(finished, tried, clock)));
    spans
}

/// Tells the wall clock's time of moments, which are measured by a clock that never jumps.
#[derive(Clone, Copy)]
struct Clock {
    now: Instant,
    wall: SystemTime,
}

impl Clock {
    fn at(self, moment: Instant) -> SystemTime {
        self.wall.checked_sub(self.now.saturating_duration_since(moment)).unwrap_or(self.wall)
    }
}

/// Returns a span of a request's trace.
fn span(finished: &Finished, id: u64, parent: Option<u64>, name: String, from: SystemTime, to: SystemTime) -> SpanData {
    let trace = TraceId::from_bytes(finished.position.trace.to_be_bytes());
    let span_id = |id: u64| SpanId::from_bytes(id.to_be_bytes());
    SpanData {
        span_context: SpanContext::new(trace, span_id(id), TraceFlags::SAMPLED, false, TraceState::default()),
        parent_span_id: parent.map_or(SpanId::INVALID, span_id),
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name: name.into(),
        start_time: from,
        end_time: to,
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: InstrumentationScope::builder("lockgate")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build(),
    }
}

/// Returns the id of a span that nobody else is told.
fn inner_id() -> u64 {
    use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator};
    u64::from_be_bytes(RandomIdGenerator::default().new_span_id().to_bytes())
}

/// The names are those of OpenTelemetry's conventions for HTTP; what these do not know begins with `lockgate.`.
fn request_span(finished: &Finished, clock: Clock) -> SpanData {
    let method = finished.method.as_str();
    // Routes without a name of their own are called by what they match, which may begin with the method.
    let name = match &finished.route {
        Some(route) if route.starts_with(&format!("{method} ")) => route.to_string(),
        Some(route) => format!("{method} {route}"),
        None => method.to_owned(),
    };
    let parent = finished.continued.then_some(finished.position.parent);
    let mut span = span(finished, finished.record.span, parent, name, clock.at(finished.started), finished.ended_at);
    span.span_kind = SpanKind::Server;
    span.parent_span_is_remote = finished.continued;
    span.attributes = vec![
        KeyValue::new("http.request.method", method.to_owned()),
        KeyValue::new("url.path", finished.path.clone()),
        KeyValue::new("url.scheme", finished.scheme),
        KeyValue::new("network.protocol.version", finished.version),
        KeyValue::new("lockgate.request_id", finished.id.to_string()),
        KeyValue::new("lockgate.generation", i64::try_from(finished.generation).unwrap_or(i64::MAX)),
    ];
    let attributes = &mut span.attributes;
    attributes.extend(finished.host.clone().map(|host| KeyValue::new("server.address", host)));
    attributes.extend(finished.route.as_ref().map(|route| KeyValue::new("http.route", route.to_string())));
    if finished.status > 0 {
        attributes.push(KeyValue::new("http.response.status_code", i64::from(finished.status)));
    }
    if finished.calls.left_out > 0 {
        attributes.push(KeyValue::new("lockgate.calls_left_out", i64::from(finished.calls.left_out)));
    }
    if let Some(fault) = finished.fault {
        attributes.push(KeyValue::new("error.type", fault.kind()));
        attributes.push(KeyValue::new("lockgate.error.source", fault.source().as_str()));
    }
    if finished.status == 0 || finished.status >= 500 {
        span.status = Status::error(finished.fault.map_or("", |fault| fault.text()));
    }
    span
}

fn call_span(finished: &Finished, call: &Call, clock: Clock) -> SpanData {
    let name = format!("filter {} {}", call.filter, call.phase.as_str());
    let (from, to) = (clock.at(call.started), clock.at(call.started + call.spent));
    let mut span = span(finished, inner_id(), Some(finished.record.span), name, from, to);
    span.attributes = vec![
        KeyValue::new("lockgate.filter", call.filter.to_string()),
        KeyValue::new("lockgate.version", call.version.to_string()),
        KeyValue::new("lockgate.track", call.track.as_str()),
        KeyValue::new("lockgate.phase", call.phase.as_str()),
        KeyValue::new("lockgate.outcome", call.outcome),
    ];
    if call.outcome == "fail" {
        span.status = Status::error("the filter failed");
    }
    span
}

fn function_span(finished: &Finished, function: &Answered, clock: Clock) -> SpanData {
    let name = format!("function {}", function.function);
    let from = clock.at(function.started);
    let mut span =
        span(finished, finished.record.target_span, Some(finished.record.span), name, from, finished.ended_at);
    span.attributes = vec![
        KeyValue::new("lockgate.function", function.function.to_string()),
        KeyValue::new("lockgate.version", function.version.to_string()),
        KeyValue::new("lockgate.track", function.track.as_str()),
        KeyValue::new("lockgate.busy_ms", function.busy.as_secs_f64() * 1e3),
    ];
    span.attributes.extend(function.outcome.map(|outcome| KeyValue::new("lockgate.outcome", outcome)));
    if function.outcome == Some("fail") {
        span.status = Status::error("the function failed");
    }
    span
}

fn attempt_span(finished: &Finished, tried: &Tried, clock: Clock) -> SpanData {
    let name = format!("upstream {}", tried.upstream);
    let (from, to) = (clock.at(tried.started), clock.at(tried.ended));
    let mut span = span(finished, tried.span, Some(finished.record.span), name, from, to);
    span.span_kind = SpanKind::Client;
    span.attributes = vec![
        KeyValue::new("http.request.method", finished.method.as_str().to_owned()),
        KeyValue::new("lockgate.upstream", tried.upstream.to_string()),
        KeyValue::new("lockgate.track", tried.track.as_str()),
    ];
    let attributes = &mut span.attributes;
    if let Some(address) = tried.address {
        attributes.push(KeyValue::new("network.peer.address", address.ip().to_string()));
        attributes.push(KeyValue::new("network.peer.port", i64::from(address.port())));
    }
    if tried.number > 1 {
        attributes.push(KeyValue::new("http.request.resend_count", i64::from(tried.number - 1)));
    }
    match tried.status {
        0 => span.status = Status::error("no response"),
        status => {
            attributes.push(KeyValue::new("http.response.status_code", i64::from(status)));
            if status >= 500 {
                span.status = Status::error("");
            }
        }
    }
    span
}
