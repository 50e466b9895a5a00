//! What a request carries from its first phase to its log line: above all its snapshot, which is read once, here, and
//! never again.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, StatusCode, Uri};
use lockgate_host::{BodyMode, Exchange, Response};
use pingora::{Error, ErrorType};

use crate::control::function::FunctionVersion;
use crate::control::snapshot::{Link, Pair, Route, Snapshot, SnapshotCell, Target};
use crate::control::upstream::Upstream;
use crate::control::upstream::member::InFlight;
use crate::control::upstream::room::Admitted;
use crate::metrics::PolicyAnswer;
use crate::proxy::arrival::{Arrival, Tunnel};
use crate::proxy::chain::{Chain, Step};
use crate::proxy::compress::Compression;
use crate::proxy::fault::Fault;
use crate::proxy::grpc::{Dialect, Translation};
use crate::proxy::inner::Inner;
use crate::proxy::policy::mirror::Copy;
use crate::proxy::policy::places::Place;
use crate::proxy::rest::Parent;
use crate::proxy::trace::Trace;
use crate::track::{Slots, Track, Tracks};

/// A request.
#[derive(Debug)]
pub struct Context {
    /// The snapshot that decides everything about this request.
    pub snapshot: Reading,
    /// When its header had been read.
    pub started: Instant,
    /// Its id: the client's, where a trusted proxy passed one on, or ours.
    pub id: Arc<str>,
    /// The client's address, behind trusted proxies.
    pub client: IpAddr,
    /// The address at the other end of the connection; none on a Unix socket.
    pub peer: Option<SocketAddr>,
    /// Whether the peer's forwarding headers are believed.
    pub peer_trusted: bool,
    /// The trace that it belongs to; none where there are no traces.
    pub trace: Option<Box<Trace>>,
    /// How it arrived; none until it is known.
    pub arrival: Option<Arc<Arrival>>,
    /// An index into the snapshot's routes, once it is known.
    pub route: Option<usize>,
    /// The tracks in the route's rollouts, decided once.
    pub tracks: Tracks,
    /// The rollouts whose guard counts it.
    pub counted: Slots,
    /// The part of the route's chain that it is in: so many middleware it has passed.
    pub part: usize,
    /// Where it is in that part.
    pub chain: Chain,
    /// What became of it in the middleware that it met, by their places among the route's.
    pub middleware: Vec<(usize, Step)>,
    /// Whom to tell what became of it, where a middleware asked for it.
    pub parent: Option<Parent>,
    /// What filters see; none on a route without filters. Boxed, since it moves into a filter's store and back.
    pub exchange: Option<Box<Exchange>>,
    /// The request's body.
    pub body: RequestBody,
    /// The last attempt at the upstream.
    pub attempt: Option<Attempt>,
    /// What it is for a guest, where it is an inner request.
    pub inner: Option<Arc<Inner>>,
    /// The function that answers.
    pub answering: Option<Answering>,
    /// What holds for all attempts.
    pub attempts: Attempts,
    /// The file that answered.
    pub file: Option<SentFile>,
    /// What kept the request from its target's answer. The first fault stays: what follows is its consequence.
    pub fault: Option<Fault>,
    /// What the operating system or Pingora say of the fault, or which limit it was, for the log.
    pub reason: Option<String>,
    /// What a filter answered while the request was on its way already.
    pub answer: Option<Response>,
    /// Whether filters act on the response's body.
    pub response_body: bool,
    /// Whether the request asks for another protocol, and the route has it.
    pub upgrade: bool,
    /// The tunnel that its connection has become.
    pub tunnel: Option<Tunnel>,
    /// How the client speaks gRPC; none where it does not.
    pub grpc: Option<Dialect>,
    /// Its translation, where it is a call of gRPC-Web that its upstream gets as gRPC.
    pub translation: Option<Box<Translation>>,
    /// What HTTP would have said of a fault that was told as gRPC does.
    pub meant: Option<StatusCode>,
    /// The response's compression.
    pub compression: Option<Box<Compression>>,
    /// Whether it asks for a page whether that may ask: then it is routed as what the page wants to ask.
    pub preflight: bool,
    /// Where the page is from that asks, on a route that tells pages whether they may read.
    pub origin: Option<HeaderValue>,
    /// What is left of the route's rate limits, as the client is told.
    pub rate_standing: Option<HeaderValue>,
    /// Its places in the gateway and on the route, where those are counted.
    pub places: [Option<Place>; 2],
    /// When all of the route's time for it is over.
    pub deadline: Option<Instant>,
    /// What the target is asked for, where that differs from what the client asked for.
    pub rewritten: Option<Uri>,
    /// What the route's mirror is to be sent of it.
    pub copy: Option<Box<Copy>>,
    /// What of the route's policy answered it.
    pub answered_by: Option<PolicyAnswer>,
}

/// The request's body.
#[derive(Debug)]
pub struct RequestBody {
    /// How the filters want it.
    pub mode: BodyMode,
    /// The whole of it, once it has been read ahead of the target.
    pub whole: Option<Bytes>,
    /// Bytes that the client has sent so far.
    pub received: u64,
    /// Whether a filter has been given a part of it: then the request cannot be sent again.
    pub filtered: bool,
}

impl Default for RequestBody {
    fn default() -> Self {
        Self { mode: BodyMode::None, whole: None, received: 0, filtered: false }
    }
}

/// A function at work.
#[derive(Debug)]
pub struct Answering {
    /// The function, in the version of the request's track.
    pub version: Arc<FunctionVersion>,
    /// Which track that is.
    pub track: Track,
    /// When it began.
    pub started: Instant,
    /// Time to the header of the response.
    pub header_after: Option<Duration>,
    /// Time for which it kept a thread busy.
    pub busy: Duration,
    /// `respond` or `fail`; none while it is not known.
    pub outcome: Option<&'static str>,
    /// The status that it answered with; 0 before it did.
    pub status: u16,
}

/// All attempts at the target.
#[derive(Debug, Default)]
pub struct Attempts {
    /// When the first began; none as long as no upstream was asked for.
    pub began: Option<Instant>,
    /// Attempts before the current one.
    pub made: u32,
    /// Its place at its upstream.
    pub admitted: Option<Admitted>,
    /// Attempts after the first that were taken out of the budget. One that only replaces a stale connection is none.
    pub further: u32,
    /// Its place in the upstream's queue, once it has waited there.
    pub ticket: Option<u64>,
    /// Until when it waits there.
    pub pending_until: Option<Instant>,
    /// How often it was let in and found no connection.
    pub turned_back: u32,
    /// Addresses that failed.
    pub tried: Vec<SocketAddr>,
    /// A status was answered that is worth another attempt.
    pub again: bool,
    /// The endpoint is in trouble: to wait a little is kinder.
    pub pause: bool,
}

/// An attempt at the target.
#[derive(Debug)]
pub struct Attempt {
    /// The upstream, in the version of the request's track.
    pub upstream: Arc<Upstream>,
    /// Which track that is.
    pub track: Track,
    /// The endpoint.
    pub address: Option<SocketAddr>,
    /// Counts the request there.
    pub endpoint: Option<InFlight>,
    /// Counted from 1.
    pub number: u32,
    /// When it began.
    pub started: Instant,
    /// Status of the response; 0 before there is one.
    pub status: u16,
    /// Time to the header of the response.
    pub header_after: Option<Duration>,
}

/// A file that answered.
#[derive(Debug)]
pub struct SentFile {
    /// Its path in the folder.
    pub name: String,
    /// How it was compressed.
    pub encoding: Option<&'static str>,
}

/// A snapshot that is being read. Counts the requests that read it, so that a drain knows when it is over.
#[derive(Debug)]
pub struct Reading(Arc<Snapshot>);

impl Reading {
    fn begin(cell: &SnapshotCell) -> Self {
        Self::of(cell.current())
    }

    /// Begins to read the snapshot of another request.
    pub fn of(snapshot: Arc<Snapshot>) -> Self {
        snapshot.requests.fetch_add(1, Ordering::Relaxed);
        Self(snapshot)
    }

    /// Returns the snapshot, for what does not outlive the request.
    pub fn share(&self) -> Arc<Snapshot> {
        Arc::clone(&self.0)
    }

    /// Returns the same, for a part of the request that runs by itself.
    pub fn again(&self) -> Self {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(&self.0))
    }
}

impl std::ops::Deref for Reading {
    type Target = Snapshot;

    fn deref(&self) -> &Snapshot {
        &self.0
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Release);
    }
}

impl Context {
    /// Begins a request, with an id of ours. One pointer is cloned and one counter raised.
    pub fn new(cell: &SnapshotCell, ids: &Ids) -> Self {
        Self {
            snapshot: Reading::begin(cell),
            started: Instant::now(),
            id: ids.next(),
            client: IpAddr::from([0, 0, 0, 0]),
            peer: None,
            peer_trusted: false,
            trace: None,
            arrival: None,
            route: None,
            tracks: Tracks::default(),
            counted: Slots::default(),
            part: 0,
            chain: Chain::default(),
            middleware: Vec::new(),
            parent: None,
            exchange: None,
            body: RequestBody::default(),
            attempt: None,
            inner: None,
            answering: None,
            attempts: Attempts::default(),
            file: None,
            fault: None,
            reason: None,
            answer: None,
            response_body: false,
            upgrade: false,
            tunnel: None,
            grpc: None,
            translation: None,
            meant: None,
            compression: None,
            preflight: false,
            origin: None,
            rate_standing: None,
            places: [None, None],
            deadline: None,
            rewritten: None,
            copy: None,
            answered_by: None,
        }
    }

    /// Returns the route, once it is known.
    pub fn route(&self) -> Option<&Route> {
        self.snapshot.routes.get(self.route?)
    }

    /// Returns the chain with its links and what filters see; none on a route without filters.
    pub fn filters(&mut self) -> Option<(&mut Chain, &[Link], &mut Box<Exchange>)> {
        let route = self.snapshot.routes.get(self.route?)?;
        Some((&mut self.chain, route.links(self.part), self.exchange.as_mut()?))
    }

    /// Returns the upstream that the request goes to: that of an inner request, the route's, or the one that a filter chose, on its track.
    pub fn upstream(&self) -> Option<(&Arc<Upstream>, Track)> {
        if let Some(inner) = &self.inner {
            return Some((&inner.upstream, inner.track));
        }
        let Target::Upstream { upstreams, .. } = &self.route()?.target else { return None };
        let chosen = self.exchange.as_ref().map_or(0, |exchange| exchange.upstream);
        upstreams.get(chosen).map(|pair: &Pair<Upstream>| pair.on(self.tracks))
    }

    /// Returns the function that answers, on the request's track; none where an upstream does.
    pub fn function(&self) -> Option<(&Arc<FunctionVersion>, Track)> {
        match &self.route()?.target {
            Target::Function(versions) => Some(versions.on(self.tracks)),
            Target::Upstream { .. } | Target::Static { .. } | Target::Redirect(_) | Target::Respond(_) => None,
        }
    }

    /// Returns the scheme of the request's address.
    pub fn scheme(&self) -> &'static str {
        self.arrival.as_ref().map_or("http", |arrival| arrival.scheme())
    }

    /// Returns whether a filter that the response has yet to pass acts on its body.
    pub fn filters_response_body(&mut self) -> bool {
        self.filters().is_some_and(|(chain, links, _)| chain.acts_on_response_body(links))
    }

    /// Returns the error that makes Pingora end the request with a fault.
    pub fn fail(&mut self, fault: Fault) -> Box<Error> {
        let fault = self.blame(fault);
        Error::explain(ErrorType::HTTPStatus(fault.code()), fault.kind())
    }

    /// Notes why the request will not get its target's answer, unless that is known already.
    pub fn blame(&mut self, fault: Fault) -> Fault {
        *self.fault.get_or_insert(fault)
    }
}

/// Makes ids: 64 bits of this process, and a count. Unique, and not secret.
#[derive(Debug)]
pub struct Ids {
    /// In hexadecimal.
    process: [u8; 16],
    count: AtomicU64,
}

impl Ids {
    /// Returns a source of ids that no other process has.
    pub fn new() -> Self {
        let mut seed = [0_u8; 8];
        let drawn = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty());
        let process = match drawn {
            Ok(8) => u64::from_le_bytes(seed),
            // A kernel without random bytes: the clock and the process tell us apart from most others.
            _ => {
                let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
                since.as_nanos() as u64 ^ u64::from(std::process::id()).rotate_left(32)
            }
        };
        Self { process: hexadecimal(process), count: AtomicU64::new(0) }
    }

    /// Returns the next id: 32 hex digits. One allocation.
    pub fn next(&self) -> Arc<str> {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let mut digits = [0; 32];
        digits[..16].copy_from_slice(&self.process);
        digits[16..].copy_from_slice(&hexadecimal(count));
        std::str::from_utf8(&digits).unwrap_or_default().into()
    }
}

/// Returns all the digits of a number. The formatting machinery would take longer than all else that an id takes.
fn hexadecimal(number: u64) -> [u8; 16] {
    std::array::from_fn(|place| b"0123456789abcdef"[(number >> (60 - 4 * place)) as usize & 15])
}

impl Default for Ids {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_thirty_two_hex_digits_and_differ() {
        let ids = Ids::new();
        let (first, second) = (ids.next(), ids.next());
        assert_ne!(first, second);
        assert!(first.len() == 32 && first.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_ne!(Ids::new().next()[..16], first[..16]);
        assert!(first.ends_with("0000000000000000") && second.ends_with("0000000000000001"));
        assert_eq!(hexadecimal(0x0123_4567_89ab_cdef), *b"0123456789abcdef");
    }
}
