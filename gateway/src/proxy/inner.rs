//! Requests that guests send to upstreams: *inner requests*. One goes through Pingora as a client's does, so that there is
//! one way to an upstream, with one pool, one choice of endpoints, one health and one set of retries. It has no route, no
//! filters, no split and no log line: those are its parent's, as are its snapshot, its tracks and its id.
//!
//! It travels in memory, as HTTP/1.1, over a pipe at whose other end a subrequest of Pingora's reads it. Framing, streaming
//! both ways, backpressure and a caller that goes away are then what they are on a connection; Pingora's own channels for
//! subrequests leave them to whoever uses them, and take their header from a request that a client has sent.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context as Polling, Poll};

use bytes::Bytes;
use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, Version};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use lockgate_host::{UpstreamBody, UpstreamFailure, UpstreamSending, Upstreams};
use pingora::protocols::http::ServerSession;
use pingora::proxy::subrequest::{BodyMode, Ctx};
use pingora::proxy::{Session, Subrequest};
use tokio::task::AbortHandle;

use crate::control::snapshot::Snapshot;
use crate::control::upstream::Upstream;
use crate::proxy::arrival::Arrival;
use crate::proxy::context::{Context, Reading};
use crate::proxy::fault::Fault;
use crate::track::{Track, Tracks};

/// Bytes under way in each direction. More than the longest header, which is there before anybody reads.
const PIPE_BYTES: usize = 128 << 10;

/// The proxy, as inner requests reach it. It holds the gateway, which holds this.
pub type Proxy = Weak<dyn Subrequest + Send + Sync>;

/// What all inner requests of one request have from it.
#[derive(Debug)]
struct Parent {
    snapshot: Arc<Snapshot>,
    id: Arc<str>,
    client: IpAddr,
    peer: Option<SocketAddr>,
    arrival: Option<Arc<Arrival>>,
}

/// Reaches upstreams for the guests of one request.
pub struct Reach {
    proxy: Proxy,
    parent: Arc<Parent>,
    route: usize,
    tracks: Tracks,
}

impl std::fmt::Debug for Reach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reach").field("route", &self.route).finish_non_exhaustive()
    }
}

/// An inner request.
#[derive(Debug)]
pub struct Inner {
    parent: Arc<Parent>,
    /// Where it goes.
    pub upstream: Arc<Upstream>,
    /// On which track.
    pub track: Track,
    /// Why it got no answer.
    pub fault: OnceLock<Fault>,
}

impl Reach {
    /// Returns what the guests of a request reach; none where none of them is granted an upstream.
    pub fn of(context: &Context, proxy: &OnceLock<Proxy>) -> Option<Arc<dyn Upstreams>> {
        let route = context.route?;
        let known = context.route().is_some_and(|route| !route.reachable.is_empty());
        let proxy = proxy.get().filter(|_| known)?.clone();
        let parent = Parent {
            snapshot: context.snapshot.share(),
            id: Arc::clone(&context.id),
            client: context.client,
            peer: context.peer,
            arrival: context.arrival.clone(),
        };
        Some(Arc::new(Self { proxy, parent: Arc::new(parent), route, tracks: context.tracks }))
    }
}

impl Upstreams for Reach {
    fn send(&self, upstream: &str, request: Request<UpstreamBody>) -> UpstreamSending {
        let reachable = self.parent.snapshot.routes.get(self.route).map_or(&[][..], |route| &route.reachable);
        let found = reachable.iter().find(|(name, _)| name.eq_ignore_ascii_case(upstream));
        let (Some((_, versions)), Some(proxy)) = (found, self.proxy.upgrade()) else {
            return Box::pin(async { Err(UpstreamFailure::Unavailable) });
        };
        let (upstream, track) = versions.on(self.tracks);
        let (parent, upstream) = (Arc::clone(&self.parent), Arc::clone(upstream));
        let inner = Arc::new(Inner { parent, upstream, track, fault: OnceLock::new() });
        Box::pin(send(proxy, inner, request))
    }
}

async fn send(
    proxy: Arc<dyn Subrequest + Send + Sync>,
    inner: Arc<Inner>,
    mut request: Request<UpstreamBody>,
) -> Result<Response<UpstreamBody>, UpstreamFailure> {
    address(&mut request);
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(ours)).await.map_err(|_| UpstreamFailure::Unavailable)?;
    let mut connection = Box::pin(connection);
    let mut answer = pin!(sender.send_request(request));
    // The header is written before anybody reads: a proxy that is to stop takes what is there, and waits for nothing.
    let early = poll_fn(|polling| {
        let early = answer.as_mut().poll(polling);
        let ended = connection.as_mut().poll(polling).is_ready();
        Poll::Ready(early.is_ready() || ended)
    });
    if early.await {
        return Err(UpstreamFailure::Unavailable);
    }
    let context = Ctx::builder().user_ctx(Box::new(Arc::clone(&inner))).body_mode(BodyMode::ExpectBody).build();
    let session = Box::new(ServerSession::new_http1(Box::new(theirs)));
    // Each ends when the pipe does, which the first holds: whoever gives the request up drops that.
    let pipe = Pipe(tokio::spawn(connection).abort_handle());
    tokio::spawn(async move { proxy.process_subrequest(session, Box::new(context)).await });
    match answer.await {
        Ok(response) => Ok(response.map(|body| Held { body, _pipe: pipe }.map_err(Into::into).boxed_unsync())),
        Err(_) => Err(inner.fault.get().copied().map_or(UpstreamFailure::Closed, failure)),
    }
}

/// Gives a request the form that it has on a connection.
fn address(request: &mut Request<UpstreamBody>) {
    let uri = std::mem::take(request.uri_mut());
    if let Some(host) = uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok()) {
        request.headers_mut().insert(HOST, host);
    }
    *request.uri_mut() = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")).into();
    *request.version_mut() = Version::HTTP_11;
}

fn failure(fault: Fault) -> UpstreamFailure {
    match fault {
        Fault::ConnectFailed => UpstreamFailure::Refused,
        Fault::UpstreamTimeout => UpstreamFailure::TimedOut,
        Fault::UpstreamClosed => UpstreamFailure::Closed,
        Fault::UpstreamInvalid => UpstreamFailure::Invalid,
        _ => UpstreamFailure::Unavailable,
    }
}

/// Our end of the pipe; ends with this.
struct Pipe(AbortHandle);

impl Drop for Pipe {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A response's body, and the pipe that it comes through.
struct Held {
    body: Incoming,
    _pipe: Pipe,
}

impl Body for Held {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        polling: &mut Polling<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(polling)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

/// Makes the context that of an inner request, if it is one. Returns whether it is.
pub fn adopt(session: &Session, context: &mut Context) -> bool {
    let user = session.subrequest_ctx.as_ref().and_then(|subrequest| subrequest.user_ctx());
    let Some(inner) = user.and_then(|user| user.downcast_ref::<Arc<Inner>>()) else { return false };
    let parent = &inner.parent;
    context.snapshot = Reading::of(Arc::clone(&parent.snapshot));
    context.id = Arc::clone(&parent.id);
    context.client = parent.client;
    context.peer = parent.peer;
    context.arrival = parent.arrival.clone();
    // Whatever the guest says of those before it is its own word.
    context.peer_trusted = false;
    context.inner = Some(Arc::clone(inner));
    true
}
