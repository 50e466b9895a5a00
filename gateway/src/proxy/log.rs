//! The access log: one JSON object for each request whose header was parsed, whatever became of it.
//!
//! A line is put together on the request's thread and appended to a buffer under a short lock; one thread writes the
//! buffer out. The buffer is bounded: when the reader of stdout is stuck, lines are dropped and counted, and requests go
//! on.

mod json;

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use pingora::proxy::Session;
use prometheus::IntCounter;

use crate::control::snapshot::{Link, Middleware, Route};
use crate::control::time::Timestamp;
use crate::proxy::context::Context;
use json::Object;

/// Bytes of lines that wait to be written: seconds of a busy gateway.
const WAITING_BYTES_MAX: usize = 8 << 20;

/// How long lines are gathered before they are written together.
const GATHER: Duration = Duration::from_millis(5);

/// Where access log lines go.
#[derive(Clone, Debug)]
pub struct AccessLog(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    more: Condvar,
    dropped: IntCounter,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<u8>,
    writing: bool,
    closed: bool,
}

impl AccessLog {
    /// Starts the thread that writes lines out.
    ///
    /// # Errors
    /// No thread could be made.
    pub fn start(mut out: impl std::io::Write + Send + 'static, dropped: IntCounter) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { waiting: Mutex::default(), more: Condvar::new(), dropped });
        let log = Self(Arc::clone(&shared));
        std::thread::Builder::new().name("access-log".into()).spawn(move || {
            let mut lines = Vec::new();
            loop {
                let closed = {
                    let mut waiting = shared.waiting.lock();
                    waiting.writing = false;
                    shared.more.notify_all();
                    while waiting.lines.is_empty() && !waiting.closed {
                        shared.more.wait(&mut waiting);
                    }
                    waiting.closed
                };
                if !closed {
                    std::thread::sleep(GATHER);
                }
                {
                    let mut waiting = shared.waiting.lock();
                    std::mem::swap(&mut waiting.lines, &mut lines);
                    waiting.writing = true;
                    if lines.is_empty() && waiting.closed {
                        waiting.writing = false;
                        shared.more.notify_all();
                        return;
                    }
                }
                // Nobody is left to tell when stdout is gone.
                let _ = out.write_all(&lines).and_then(|()| out.flush());
                lines.clear();
            }
        })?;
        Ok(log)
    }

    /// Appends a line.
    fn append(&self, line: &[u8]) {
        let mut waiting = self.0.waiting.lock();
        if waiting.lines.len() + line.len() > WAITING_BYTES_MAX || waiting.closed {
            drop(waiting);
            self.0.dropped.inc();
            return;
        }
        let first = waiting.lines.is_empty();
        waiting.lines.extend_from_slice(line);
        drop(waiting);
        if first {
            self.0.more.notify_all();
        }
    }

    /// Writes out what waits, and takes no more. Returns when all has been written.
    pub fn close(&self) {
        let mut waiting = self.0.waiting.lock();
        waiting.closed = true;
        self.0.more.notify_all();
        while waiting.writing || !waiting.lines.is_empty() {
            self.0.more.wait(&mut waiting);
        }
    }

    /// Writes a request's line.
    pub fn write(&self, session: &Session, context: &Context, status: u16, duration: Duration) {
        thread_local! {
            /// The line that is being put together. Each thread keeps its buffer: a line takes no allocation.
            static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        LINE.with_borrow_mut(|line| {
            line.clear();
            put_together(line, session, context, status, duration);
            line.push(b'\n');
            self.append(line);
        });
    }
}

/// Puts a line together. What a line says of a request:
///
/// - `path` comes without the query, which may hold secrets.
/// - `tls.client` is who has shown a certificate.
/// - `status` is 0 where the client was gone before there was one.
/// - `filters` are the route's, middleware among them, with version and track, in the order of the chain; one without
///   `outcome` was not called. `us` of a middleware is for how long it kept a thread.
/// - `function.busy_ms` is for how long it kept a thread; without `outcome` the client was gone before there was one.
/// - `policy` is what of the route's policy answered, in the place of the target or as it.
/// - `error.reason` is what the operating system or Pingora says, where they say something, or which limit was reached.
fn put_together(line: &mut Vec<u8>, session: &Session, context: &Context, status: u16, duration: Duration) {
    let request = session.req_header();
    let header = |name| request.headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
    let mut object = Object::begin(line);
    object.time("time", Timestamp::now());
    object.text("id", &context.id);
    object.address("client", context.client);
    object.text("method", request.method.as_str());
    object.optional_text("host", header(http::header::HOST));
    object.text("path", request.uri.path());
    object.text("protocol", protocol(request.version));
    if let Some(tls) = context.arrival.as_ref().and_then(|arrival| arrival.tls.as_ref()) {
        object.object("tls", |object| {
            object.text("version", tls.version);
            if let Some(name) = &tls.server_name {
                object.text("server_name", name);
            }
            if let Some(client) = &tls.client {
                object.object("client", |object| {
                    object.text("subject", &client.subject);
                    object.texts("names", client.names.iter().map(|name| &**name));
                });
            }
        });
    }
    if let Some(agent) = header(http::header::USER_AGENT) {
        object.text("user_agent", agent);
    }
    object.number("status", status.into());
    object.number("bytes_received", context.body.received);
    object.number("bytes_sent", session.as_downstream().body_bytes_sent() as u64);
    object.millis("duration_ms", duration);
    object.optional_text("route", context.route().map(|route| &*route.name));
    if let Some(attempt) = &context.attempt {
        object.object("upstream", |object| {
            object.text("name", attempt.upstream.name());
            object.text("track", attempt.track.as_str());
            object.endpoint("address", attempt.address);
            object.number("attempts", attempt.number.into());
            if let Some(after) = attempt.header_after {
                object.millis("header_ms", after);
            }
        });
    }
    if let Some(answering) = &context.answering {
        object.object("function", |object| {
            object.text("name", answering.version.function().name());
            object.text("version", answering.version.label());
            object.text("track", answering.track.as_str());
            object.optional_text("outcome", answering.outcome);
            if let Some(after) = answering.header_after {
                object.millis("header_ms", after);
            }
            object.millis("busy_ms", answering.busy);
        });
    }
    if let Some(file) = &context.file {
        object.object("static", |object| {
            object.text("file", &file.name);
            if let Some(encoding) = file.encoding {
                object.text("encoding", encoding);
            }
        });
    }
    if let Some(policy) = context.answered_by {
        object.text("policy", policy.as_str());
    }
    object.objects("filters", context.route().into_iter().flat_map(in_order), |object, (name, place)| {
        object.text("name", name);
        let (label, track, step) = match place {
            Place::Filter(index, link) => {
                let (version, track) = link.versions.on(context.tracks);
                (version.label(), track, context.chain.steps().get(index))
            }
            Place::Middleware(index, middleware) => {
                let (version, track) = middleware.versions.on(context.tracks);
                let step = context.middleware.iter().find(|(place, _)| *place == index);
                (version.label(), track, step.map(|(_, step)| step))
            }
        };
        object.text("version", label);
        object.text("track", track.as_str());
        object.optional_text("outcome", step.and_then(|step| step.outcome));
        object.micros("us", step.map_or(Duration::ZERO, |step| step.spent));
    });
    if let Some(fault) = context.fault {
        object.object("error", |object| {
            object.text("source", fault.source().as_str());
            object.text("kind", fault.kind());
            if let Some(reason) = &context.reason {
                object.text("reason", reason);
            }
        });
    }
    object.number("generation", context.snapshot.generation);
    object.end();
}

/// What stands at a place of a chain.
enum Place<'a> {
    Filter(usize, &'a Link),
    Middleware(usize, &'a Middleware),
}

/// Returns what a chain is made of, in the order of the request, with the names in the configuration.
fn in_order(route: &Route) -> impl Iterator<Item = (&str, Place<'_>)> {
    (0..=route.chain.len()).flat_map(|before| {
        let middleware = route.middleware.iter().enumerate().filter(move |(_, link)| link.after == before);
        let middleware =
            middleware.map(|(index, link)| (&**link.versions.stable.function().name(), Place::Middleware(index, link)));
        let filter = route.chain.get(before).map(|link| (&*link.filter, Place::Filter(before, link)));
        middleware.chain(filter)
    })
}

const fn protocol(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_09 => "HTTP/0.9",
        http::Version::HTTP_10 => "HTTP/1.0",
        http::Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn everything_appended_before_the_close_is_written_and_nothing_after() {
        let (written, dropped) = (Written::default(), IntCounter::new("dropped", "dropped").unwrap());
        let log = AccessLog::start(written.clone(), dropped.clone()).unwrap();
        log.append(b"one\n");
        log.append(b"two\n");
        log.close();
        log.append(b"three\n");
        assert_eq!(*written.0.lock(), b"one\ntwo\n");
        assert_eq!(dropped.get(), 1);
    }
}
