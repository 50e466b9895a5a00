//! Sends a share of a route's requests to another upstream as well. What that answers is thrown away. The *copy* is made
//! as the request goes to its own upstream, pieces of bodies are shared, and it is sent when the request is over: no
//! request waits for it, and none fails by it. What would take too much room, or find too many under way, is dropped and
//! counted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING};
use http::uri::{Authority, PathAndQuery};
use lockgate_config::units::Share;
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::protocols::ALPN;
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::HttpPeer;
use tokio::sync::Semaphore;
use xxhash_rust::xxh3::xxh3_64;

use crate::control::upstream::member::InFlight;
use crate::control::upstream::room::{Admitted, Crowded};
use crate::control::upstream::{Upstream, connections};
use crate::metrics::{MirrorOutcome, MirrorSeries};
use crate::proxy::split::Attributes;

/// Time for all of a copy: its answer is of no use to anybody.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How long an unused connection stays open to an upstream that has not many of them.
const IDLE_LIMITED: Duration = Duration::from_millis(1);

/// Where a share of a route's requests goes as well.
pub struct Mirror {
    upstream: Arc<Upstream>,
    share: Share,
    body_bytes_max: u64,
    under_way: Arc<Semaphore>,
    connector: Arc<Connector>,
    series: MirrorSeries,
}

impl std::fmt::Debug for Mirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mirror")
            .field("upstream", self.upstream.name())
            .field("share", &self.share)
            .finish_non_exhaustive()
    }
}

/// What is sent as well of one request.
#[derive(Debug)]
pub struct Copy {
    header: RequestHeader,
    client: std::net::IpAddr,
    body: Vec<Bytes>,
    bytes: u64,
    ended: bool,
    too_long: bool,
}

impl Copy {
    /// Begins the copy of a request, as it goes to its upstream.
    pub fn new(header: &RequestHeader, client: std::net::IpAddr) -> Self {
        Self { header: header.clone(), client, body: Vec::new(), bytes: 0, ended: false, too_long: false }
    }

    /// Adds a piece of the body, as it goes to the upstream.
    pub fn push(&mut self, piece: Option<&Bytes>, end: bool, mirror: &Mirror) {
        self.ended |= end;
        let Some(piece) = piece.filter(|piece| !piece.is_empty() && !self.too_long) else { return };
        self.bytes += piece.len() as u64;
        self.too_long = self.bytes > mirror.body_bytes_max;
        if self.too_long {
            self.body = Vec::new();
        } else {
            self.body.push(piece.clone());
        }
    }
}

impl Mirror {
    /// Returns a mirror that sends requests to an upstream, over the connections of `connector`.
    pub fn new(
        mirror: &lockgate_config::model::Mirror,
        upstream: Arc<Upstream>,
        connector: Arc<Connector>,
        series: MirrorSeries,
    ) -> Self {
        Self {
            upstream,
            share: mirror.share,
            body_bytes_max: mirror.body.bytes(),
            under_way: Arc::new(Semaphore::new(mirror.requests_max as usize)),
            connector,
            series,
        }
    }

    /// Returns whether a request is among the share: by the hash of its id, and so whatever its track is.
    pub fn samples(&self, id: &str) -> bool {
        // The high bits of a product, as the split does it; another hash than its own.
        let drawn = (u128::from(xxh3_64(id.as_bytes()).rotate_left(17)) * 10_000) >> 64;
        drawn < u128::from(self.share.basis_points())
    }

    /// Sends a copy, on a task of its own. Called when the request is over; waits for nothing.
    pub fn send(self: &Arc<Self>, copy: Copy) {
        if copy.too_long {
            self.series.count(MirrorOutcome::TooLong);
            return;
        }
        if !copy.ended {
            // The request broke off: what came of it may mean something else.
            self.series.count(MirrorOutcome::Incomplete);
            return;
        }
        let Ok(permit) = Arc::clone(&self.under_way).try_acquire_owned() else {
            self.series.count(MirrorOutcome::Busy);
            return;
        };
        let started = Instant::now();
        let (endpoint, admitted) = match self.enter(&copy, started) {
            Ok(entered) => entered,
            Err(crowded) => {
                let busy = matches!(crowded, Crowded::Full(_));
                self.series.count(if busy { MirrorOutcome::Busy } else { MirrorOutcome::Failed });
                return;
            }
        };
        let mirror = Arc::clone(self);
        tokio::spawn(async move {
            let asked = tokio::time::timeout(TIMEOUT, mirror.ask(copy, endpoint)).await;
            let (status, outcome) = match asked.unwrap_or(Err(MirrorOutcome::Failed)) {
                Ok(status) => (status, MirrorOutcome::Answered),
                Err(outcome) => (0, outcome),
            };
            if outcome != MirrorOutcome::Busy {
                mirror.upstream.series.record(status, started.elapsed());
            }
            mirror.series.count(outcome);
            drop((permit, admitted));
        });
    }

    /// Lets a copy in where there is room at once: it never waits, nor overtakes a request that does.
    fn enter(&self, copy: &Copy, now: Instant) -> Result<(InFlight, Option<Admitted>), Crowded> {
        if self.upstream.room().pending() > 0 {
            return Err(Crowded::Full(self.upstream.scarce()));
        }
        let uri = &copy.header.uri;
        let attributes = Attributes {
            headers: &copy.header.headers,
            client: copy.client,
            peer: None,
            path: uri.path(),
            query: uri.query(),
        };
        let mut admitted = None;
        let endpoint = self.upstream.enter(&attributes, &[], &mut admitted, now)?;
        Ok((endpoint, admitted))
    }

    /// Sends a copy to an endpoint, and reads the answer to its end. Returns its status, or what became of it else.
    async fn ask(&self, mut copy: Copy, endpoint: InFlight) -> Result<u16, MirrorOutcome> {
        let peer = self.upstream.peer(endpoint.member());
        frame(&mut copy, &peer).ok_or(MirrorOutcome::Failed)?;
        let answered = self.exchange(copy, &peer).await;
        if answered.as_ref().is_err_and(|error| connections::is_full(error)) {
            endpoint.turn_back();
            return Err(MirrorOutcome::Busy);
        }
        self.upstream.judge(endpoint.member(), answered.as_ref().is_ok_and(|status| *status < 502), Instant::now());
        answered
            .inspect_err(|error| tracing::debug!(upstream = %self.upstream.name(), %error, "a mirrored request failed"))
            .map_err(|_| MirrorOutcome::Failed)
    }

    async fn exchange(&self, copy: Copy, peer: &HttpPeer) -> pingora::Result<u16> {
        let (mut session, _) = self.connector.get_http_session(peer).await?;
        session.set_read_timeout(peer.options.read_timeout);
        session.set_write_timeout(peer.options.write_timeout);
        let status: pingora::Result<u16> = async {
            session.write_request_header(Box::new(copy.header)).await?;
            for piece in copy.body {
                session.write_request_body(piece, false).await?;
            }
            session.finish_request_body().await?;
            session.read_response_header().await?;
            let status = session.response_header().map_or(0, |header| header.status.as_u16());
            while session.read_response_body().await?.is_some() {}
            Ok(status)
        }
        .await;
        let idle_timeout = match self.upstream.config().limits.connections_per_endpoint {
            // Other requests cannot use it: they have a pool of their own.
            Some(_) => Some(IDLE_LIMITED),
            None => peer.options.idle_timeout,
        };
        if status.is_err() {
            session.shutdown().await;
        }
        // Of HTTP/2 that was one stream, and the connection is to be closed when it is idle.
        if status.is_ok() || matches!(session, HttpSession::H2(_)) {
            self.connector.release_http_session(session, peer, idle_timeout).await;
        }
        status
    }
}

/// Frames a copy: its body is known whole. None where the host is none, which has been ruled out before.
fn frame(copy: &mut Copy, peer: &HttpPeer) -> Option<()> {
    let header = &mut copy.header;
    header.remove_header(&EXPECT);
    header.remove_header(&TRANSFER_ENCODING);
    if copy.bytes > 0 || header.headers.contains_key(CONTENT_LENGTH) {
        header.insert_header(CONTENT_LENGTH, copy.bytes).ok()?;
    }
    if peer.options.alpn == ALPN::H1 {
        header.set_version(http::Version::HTTP_11);
        return Some(());
    }
    // HTTP/2 names scheme and host in the target.
    let host = Authority::try_from(header.headers.get(HOST)?.as_bytes()).ok()?;
    let target = header.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let scheme = if peer.is_tls() { "https" } else { "http" };
    let uri = http::Uri::builder().scheme(scheme).authority(host).path_and_query(target).build().ok()?;
    header.set_uri(uri);
    Some(())
}
