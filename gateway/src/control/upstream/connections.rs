//! Connections to an endpoint: how many are open, and how many may be. They are counted where they are opened: Pingora
//! looks for one that it can reuse, and asks the [`Gate`] for a new one only where there is none. So a connection counts
//! once, however many requests it carries, and idle ones count until they are closed.
//!
//! For each endpoint, not for the upstream: it is a server that has so many workers or sockets. A sum over all of them would
//! also let idle connections to one endpoint keep requests from another, and nobody can close what lies idle in Pingora's
//! pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use async_trait::async_trait;
use lockgate_config::model::UpstreamProtocol;
use pingora::connectors::l4::Connect;
use pingora::protocols::l4::ext;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::upstreams::peer::{Tracer, Tracing};
use pingora::{Error, ErrorType};

use super::room::Room;

/// The type of the error that says that as many connections as may be are open.
pub const FULL: &str = "as many connections as may be are open";

/// Counts the connections to an endpoint.
#[derive(Debug)]
pub struct Connections {
    room: Arc<Room>,
    /// HTTP/1.1: a request has a connection for itself.
    one_each: bool,
    /// Whether requests were seen to share a connection.
    shared: AtomicBool,
    /// Those that are being opened included.
    open: AtomicU32,
    /// How often there may have become room: a connection was closed, or can be used by somebody else.
    changes: AtomicU64,
    /// One more than what [`Self::changes`] was when there was no room; 0 for never. So each change ends it, without
    /// anybody having to take it back.
    full_at: AtomicU64,
}

impl Connections {
    /// Returns that there are none yet.
    pub fn new(room: Arc<Room>, protocol: UpstreamProtocol) -> Arc<Self> {
        Arc::new(Self {
            room,
            one_each: protocol == UpstreamProtocol::Http1,
            shared: AtomicBool::new(matches!(protocol, UpstreamProtocol::H2 | UpstreamProtocol::H2c)),
            open: AtomicU32::new(0),
            changes: AtomicU64::new(0),
            full_at: AtomicU64::new(0),
        })
    }

    /// Returns how many are open.
    pub fn open(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }

    /// Returns whether a further request would find neither a connection to reuse nor room for another one, as far as is
    /// known while so many requests are under way.
    pub fn is_full(&self, in_flight: u32) -> bool {
        self.max().is_some_and(|max| {
            (self.one_each && in_flight >= max)
                || self.full_at.load(Ordering::SeqCst) == self.changes.load(Ordering::SeqCst) + 1
        })
    }

    /// Returns the moment that a request begins to look for a connection, for [`Self::found_full`].
    pub fn moment(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// Notes that a request that began to look at a moment has found no room.
    pub fn found_full(&self, moment: u64) {
        self.full_at.fetch_max(moment + 1, Ordering::SeqCst);
    }

    /// Notes that there may be room. Nothing is done where there is no limit.
    pub fn changed(&self) {
        if self.max().is_some() {
            self.changes.fetch_add(1, Ordering::SeqCst);
            self.room.wake();
        }
    }

    /// Notes that a request has its connection. If others can use it beside that, one that waits is told, which will tell
    /// the next.
    pub fn connected(&self) {
        if self.max().is_some() && self.shared.load(Ordering::Relaxed) {
            self.changed();
        }
    }

    /// Notes that a response came by HTTP/2, which the endpoint has preferred.
    pub fn shares(&self) {
        if self.max().is_some() && !self.shared.swap(true, Ordering::Relaxed) {
            self.changed();
        }
    }

    fn max(&self) -> Option<u32> {
        self.room.limits().connections_per_endpoint
    }

    fn open_one(self: &Arc<Self>) -> Option<Open> {
        let max = self.max().unwrap_or(u32::MAX);
        let more = |open: u32| (open < max).then(|| open + 1);
        self.open.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).ok()?;
        self.room.series.connections.inc();
        Some(Open(Arc::clone(self)))
    }
}

/// A connection that is open, or being opened, until it is dropped. It lies in Pingora's stream, behind the socket, which
/// is closed by the time that this is dropped.
#[derive(Debug)]
struct Open(Arc<Connections>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
        self.0.room.series.connections.dec();
        self.0.changed();
    }
}

/// What Pingora keeps with a stream, and may clone: the connection is closed when the last clone is dropped.
#[derive(Clone, Debug)]
struct Kept(#[expect(dead_code, reason = "it counts by being there")] Arc<Open>);

impl Tracing for Kept {
    fn on_connected(&self) {}

    fn on_disconnected(&self) {}

    fn boxed_clone(&self) -> Box<dyn Tracing> {
        Box::new(self.clone())
    }
}

/// Opens connections to an endpoint, as many as may be.
#[derive(Debug)]
pub struct Gate(pub Arc<Connections>);

#[async_trait]
impl Connect for Gate {
    async fn connect(&self, address: &SocketAddr) -> pingora::Result<Stream> {
        let open = self.0.open_one().ok_or_else(|| Error::new(ErrorType::Custom(FULL)))?;
        let address = address.as_inet().ok_or_else(|| Error::new(ErrorType::ConnectNoRoute))?;
        let mut stream = Stream::from(ext::connect(address, None).await?);
        stream.tracer = Some(Tracer(Box::new(Kept(Arc::new(open)))));
        Ok(stream)
    }
}

/// Returns whether an error of Pingora's says that there was no room for a connection.
pub fn is_full(error: &Error) -> bool {
    matches!(error.etype(), ErrorType::Custom(FULL))
}

#[cfg(test)]
impl Connections {
    /// Returns those of an endpoint that speaks HTTP/1.1.
    pub(super) fn of_a_test(max: Option<u32>) -> Arc<Self> {
        tests::connections(max, UpstreamProtocol::Http1)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lockgate_config::model::UpstreamLimits;

    use super::*;
    use crate::metrics::Metrics;

    pub(super) fn connections(max: Option<u32>, protocol: UpstreamProtocol) -> Arc<Connections> {
        let limits = UpstreamLimits {
            requests: None,
            connections_per_endpoint: max,
            pending: 9,
            pending_timeout: Duration::from_secs(1),
        };
        let metrics = Metrics::new().expect("every family has a name of its own");
        let room = Room::new(limits, metrics.upstream("app").limits.clone());
        Connections::new(Arc::new(room), protocol)
    }

    #[test]
    fn a_connection_counts_until_its_last_clone_is_gone() {
        let connections = connections(Some(1), UpstreamProtocol::Http1);
        let open = Kept(Arc::new(connections.open_one().unwrap()));
        let clone = open.boxed_clone();
        assert!(connections.open_one().is_none());
        drop(open);
        assert_eq!((connections.open(), connections.room.series.connections.get()), (1, 1));
        drop(clone);
        assert_eq!((connections.open(), connections.room.series.connections.get()), (0, 0));
        assert!(connections.open_one().is_some());
    }

    #[test]
    fn with_http_1_it_is_known_beforehand_that_there_is_no_room() {
        let connections = connections(Some(2), UpstreamProtocol::Http1);
        assert!(!connections.is_full(1) && connections.is_full(2));
    }

    #[test]
    fn what_was_full_is_so_until_something_changes() {
        let connections = connections(Some(1), UpstreamProtocol::H2c);
        let moment = connections.moment();
        connections.found_full(moment);
        assert!(connections.is_full(0));
        connections.connected();
        assert!(!connections.is_full(100), "others can share the connection");
        connections.found_full(moment);
        assert!(!connections.is_full(0), "what was found before the change says nothing");
    }

    #[test]
    fn without_a_limit_nothing_is_ever_full() {
        let connections = connections(None, UpstreamProtocol::Auto);
        connections.found_full(connections.moment());
        assert!(!connections.is_full(u32::MAX));
        let open: Vec<_> = (0..100).map(|_| connections.open_one().unwrap()).collect();
        assert_eq!(connections.open(), 100);
        drop(open);
    }
}
