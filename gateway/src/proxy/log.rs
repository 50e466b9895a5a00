//! The access log: one JSON object for each request whose header was parsed, whatever became of it.
//!
//! A line is put together on the request's thread and appended to a buffer under a short lock; one thread writes the
//! buffer out. The buffer is bounded: when the reader of stdout is stuck, lines are dropped and counted, and requests go
//! on.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use pingora::proxy::Session;
use prometheus::IntCounter;
use serde::Serialize;

use crate::control::time::Timestamp;
use crate::proxy::context::Context;
use crate::track::Track;

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
        let request = session.req_header();
        let route = context.route();
        let line = Line {
            time: Timestamp::now(),
            id: &context.id,
            client: context.client,
            method: request.method.as_str(),
            host: request.headers.get(http::header::HOST).and_then(|host| host.to_str().ok()),
            path: request.uri.path(),
            protocol: protocol(request.version),
            tls: context.arrival.as_ref().and_then(|arrival| arrival.tls.as_ref()).map(|tls| Tls {
                version: tls.version,
                server_name: tls.server_name.as_deref(),
                client: tls.client.as_ref().map(|client| Client { subject: &client.subject, names: &client.names }),
            }),
            user_agent: request.headers.get(http::header::USER_AGENT).and_then(|agent| agent.to_str().ok()),
            status,
            bytes_received: context.body.received,
            bytes_sent: session.as_downstream().body_bytes_sent(),
            duration_ms: millis(duration),
            route: route.map(|route| &*route.name),
            upstream: context.attempt.as_ref().map(|attempt| Target {
                name: attempt.upstream.name(),
                track: attempt.track,
                address: attempt.address,
                attempts: attempt.number,
                header_ms: attempt.header_after.map(millis),
            }),
            filters: Filters(context),
            error: context.fault.map(|fault| Fault { source: fault.source().as_str(), kind: fault.kind() }),
            generation: context.snapshot.generation,
        };
        let mut text = Vec::with_capacity(512);
        // Every field can be written as JSON.
        if serde_json::to_writer(&mut text, &line).is_ok() {
            text.push(b'\n');
            self.append(&text);
        }
    }
}

/// What a line says.
#[derive(Serialize)]
struct Line<'a> {
    time: Timestamp,
    id: &'a str,
    client: std::net::IpAddr,
    method: &'a str,
    host: Option<&'a str>,
    /// Without the query, which may hold secrets.
    path: &'a str,
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<Tls<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<&'a str>,
    /// 0: the client was gone before there was one.
    status: u16,
    bytes_received: u64,
    bytes_sent: usize,
    duration_ms: f64,
    route: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<Target<'a>>,
    filters: Filters<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Fault>,
    generation: u64,
}

#[derive(Serialize)]
struct Tls<'a> {
    version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<Client<'a>>,
}

/// Who has shown a certificate.
#[derive(Serialize)]
struct Client<'a> {
    subject: &'a str,
    names: &'a [String],
}

#[derive(Serialize)]
struct Target<'a> {
    name: &'a str,
    track: Track,
    address: Option<std::net::SocketAddr>,
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    header_ms: Option<f64>,
}

#[derive(Serialize)]
struct Fault {
    source: &'static str,
    kind: &'static str,
}

#[derive(Serialize)]
struct Filter<'a> {
    name: &'a str,
    version: &'a str,
    track: Track,
    /// None: it was not called.
    outcome: Option<&'static str>,
    us: f64,
}

/// The filters of the route, with version and track, in the order of the chain.
struct Filters<'a>(&'a Context);

impl Serialize for Filters<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let chain = self.0.route().map_or(&[][..], |route| &route.chain);
        serializer.collect_seq(chain.iter().zip(self.0.chain.steps()).map(|(link, step)| {
            let (version, track) = link.versions.on(self.0.tracks);
            Filter {
                name: &link.filter,
                version: version.label(),
                track,
                outcome: step.outcome,
                us: (step.spent.as_secs_f64() * 1e7).round() / 10.0,
            }
        }))
    }
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
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
