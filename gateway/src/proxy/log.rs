//! The access log: a line for each request whose header was parsed, whatever became of it.
//!
//! What a line has, and which requests have one, is a [`Format`], made with the snapshot. A line is put together on the
//! request's thread and appended to a buffer under a short lock; one thread writes the buffer out. The buffer is bounded:
//! when the reader of standard output is stuck, lines are dropped and counted, and requests go on.

mod json;
mod redact;
mod sink;
mod text;

use std::cell::RefCell;
use std::time::Duration;

use http::HeaderName;
use lockgate_config::model::{self, LogOutput};
use lockgate_config::units::Share;
use pingora::proxy::Session;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::control::snapshot::{Link, Middleware, Route};
use crate::proxy::chain::Step;
use crate::proxy::context::Context;
use crate::proxy::fault::Source;
use crate::track::Track;
use redact::Redact;
pub use sink::{AccessLog, Out};
use text::Piece;

/// Sets the hash of an id apart from those that others make of it: who is logged says nothing about who is sampled for a
/// shadow.
const SEED: u64 = u64::from_le_bytes(*b"logsampl");

/// Which requests are logged, and how.
#[derive(Debug)]
pub struct Format {
    output: LogOutput,
    form: Form,
    sample: Share,
    redact: Redact,
}

#[derive(Debug)]
enum Form {
    Json { query: bool, headers: Box<[HeaderName]> },
    Text(Box<[Piece]>),
}

/// A request that is over: what lines are made of.
#[derive(Clone, Copy)]
struct Ended<'a> {
    session: &'a Session,
    context: &'a Context,
    /// 0 where the client was gone before there was one.
    status: u16,
    duration: Duration,
    /// Share of the requests that the line stands for.
    sample: Share,
    redact: &'a Redact,
}

impl Format {
    /// Prepares what the configuration says.
    pub fn new(log: &model::AccessLog) -> Self {
        let names = |names: &[String]| names.iter().filter_map(|name| HeaderName::try_from(name).ok()).collect();
        Self {
            output: log.output.clone(),
            form: match &log.format {
                model::LogFormat::Json { query, headers } => Form::Json { query: *query, headers: names(headers) },
                model::LogFormat::Text { pieces, .. } => Form::Text(pieces.iter().filter_map(Piece::new).collect()),
            },
            sample: log.sample,
            redact: Redact::new(&log.redact),
        }
    }

    /// Returns where lines go.
    pub const fn output(&self) -> &LogOutput {
        &self.output
    }

    /// Returns the share of requests that a request's line stands for; none where it has none.
    fn sample(&self, context: &Context, status: u16) -> Option<Share> {
        if self.sample == Share::FULL || failed(context, status) {
            return Some(Share::FULL);
        }
        is_drawn(&context.id, self.sample).then_some(self.sample)
    }
}

/// Returns whether a request of this id is among a share of all.
fn is_drawn(id: &str, share: Share) -> bool {
    let drawn = u128::from(xxh3_64_with_seed(id.as_bytes(), SEED)) * u128::from(Share::FULL.basis_points());
    (drawn >> 64) < u128::from(share.basis_points())
}

/// Returns whether a request is one that somebody will look for.
fn failed(context: &Context, status: u16) -> bool {
    status == 0
        || status >= 500
        || context.fault.is_some_and(|fault| fault.source() != Source::Downstream)
        || passed(context).any(|passed| passed.step.is_some_and(|step| step.outcome == Some("fail")))
}

impl AccessLog {
    /// Writes a request's line, if it has one.
    pub fn write(&self, format: &Format, session: &Session, context: &Context, status: u16, duration: Duration) {
        thread_local! {
            /// The line that is being put together. Each thread keeps its buffer: a line takes no allocation.
            static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        let Some(sample) = format.sample(context, status) else { return };
        let ended = Ended { session, context, status, duration, sample, redact: &format.redact };
        LINE.with_borrow_mut(|line| {
            line.clear();
            match &format.form {
                Form::Json { query, headers } => {
                    json::line(line, &ended, *query, headers, format.sample != Share::FULL);
                }
                Form::Text(pieces) => text::line(line, &ended, pieces),
            }
            line.push(b'\n');
            self.append(line);
        });
    }
}

impl<'a> Ended<'a> {
    /// Returns the first value of one of the request's headers.
    fn header(&self, name: &HeaderName) -> Option<&'a str> {
        self.session.req_header().headers.get(name)?.to_str().ok()
    }

    /// Returns the client's address, as much of it as is told.
    fn client(&self) -> std::net::IpAddr {
        self.redact.client(self.context.client)
    }

    /// Returns the HTTP version that the client speaks.
    fn protocol(&self) -> &'static str {
        match self.session.req_header().version {
            http::Version::HTTP_09 => "HTTP/0.9",
            http::Version::HTTP_10 => "HTTP/1.0",
            http::Version::HTTP_2 => "HTTP/2",
            _ => "HTTP/1.1",
        }
    }

    /// Returns the bytes of the response's body that were sent.
    fn bytes_sent(&self) -> u64 {
        self.session.as_downstream().body_bytes_sent() as u64
    }
}

/// What stands at a place of a chain.
enum Place<'a> {
    Filter(usize, &'a Link),
    Middleware(usize, &'a Middleware),
}

/// What became of a request in a filter or middleware.
struct Passed<'a> {
    name: &'a str,
    version: &'a str,
    track: Track,
    /// None where it was not called.
    step: Option<&'a Step>,
}

/// Returns what a chain is made of, in the order of the request.
fn in_order(route: &Route) -> impl Iterator<Item = Place<'_>> {
    (0..=route.chain.len()).flat_map(|before| {
        let middleware = route.middleware.iter().enumerate().filter(move |(_, link)| link.after == before);
        let middleware = middleware.map(|(index, link)| Place::Middleware(index, link));
        middleware.chain(route.chain.get(before).map(|link| Place::Filter(before, link)))
    })
}

/// Returns what became of a request in each filter and middleware of its chain, in the order of the request.
fn passed(context: &Context) -> impl Iterator<Item = Passed<'_>> {
    context.route().into_iter().flat_map(in_order).map(|place| match place {
        Place::Filter(index, link) => {
            let (version, track) = link.versions.on(context.tracks);
            Passed { name: &link.filter, version: version.label(), track, step: context.chain.steps().get(index) }
        }
        Place::Middleware(index, link) => {
            let (version, track) = link.versions.on(context.tracks);
            let step = context.middleware.iter().find(|(place, _)| *place == index).map(|(_, step)| step);
            Passed { name: link.versions.stable.function().name(), version: version.label(), track, step }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_ids_is_drawn_and_always_the_same() {
        let share = "10%".parse().unwrap();
        let drawn = (0..10_000).filter(|id| is_drawn(&format!("request-{id}"), share)).count();
        assert!((900..1_100).contains(&drawn), "{drawn}");
        assert!(!is_drawn("any", Share::ZERO));
        assert!(is_drawn("any", Share::FULL));
        let more = "20%".parse().unwrap();
        assert!((0..1_000).map(|id| format!("{id}")).all(|id| !is_drawn(&id, share) || is_drawn(&id, more)));
    }
}
