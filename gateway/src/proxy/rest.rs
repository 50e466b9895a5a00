//! What is behind a middleware, for one request: a subrequest that goes on where the middleware stands. Its parent gives it
//! what was decided, the middleware gives it the request, and when it is over it tells its parent what became of it.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as Polling, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, StatusCode, Uri, Version};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Body, Frame};
use lockgate_host::{BodyMode, CallError, CallErrorKind, Exchange, Handling, Next, NextBody, NextError};
use parking_lot::Mutex;
use pingora::http::RequestHeader;
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::subrequest::server::SubrequestHandle;
use pingora::proxy::subrequest::{BodyMode as Pipe, Ctx};
use pingora::proxy::{PreparedSubrequest, Session};
use pingora::{Error, ErrorType};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::proxy::admit;
use crate::proxy::arrival::Arrival;
use crate::proxy::chain::Step;
use crate::proxy::context::{Answering, Attempt, Context, Reading, SentFile};
use crate::proxy::fault::Fault;
use crate::proxy::trace::{Calls, Trace};
use crate::track::Tracks;

/// How long the end of a request waits to be told what became of it behind its middleware. It is over by then, or breaks
/// off, for nobody reads it any more.
const REPORT_WAIT: Duration = Duration::from_secs(1);

/// A subrequest that nobody has asked for yet.
pub struct Rest {
    subrequest: PreparedSubrequest,
    pipes: SubrequestHandle,
    shared: Arc<Shared>,
    /// The longest body, where the filters behind want it whole.
    whole: Option<u64>,
}

/// What it comes to know and its parent wants to.
pub struct Behind {
    shared: Arc<Shared>,
    report: Option<oneshot::Receiver<Report>>,
}

impl std::fmt::Debug for Rest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rest").field("whole", &self.whole).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Behind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Behind").field("asked", &self.asked()).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Shared {
    asked: AtomicBool,
    broke_off: AtomicBool,
    /// Put in before the subrequest runs and taken out when it begins: nobody ever waits for the lock.
    given: Mutex<Option<Given>>,
}

/// The request that a middleware gives.
struct Given {
    header: RequestHeader,
    whole: Whole,
}

/// The body, where the filters behind want it whole.
enum Whole {
    /// They do not.
    No,
    Yes(Bytes),
    TooLong,
}

/// What a parent gives.
struct Baton {
    snapshot: Reading,
    started: Instant,
    id: Arc<str>,
    client: IpAddr,
    peer: Option<SocketAddr>,
    peer_trusted: bool,
    arrival: Option<Arc<Arrival>>,
    route: Option<usize>,
    tracks: Tracks,
    part: usize,
    exchange: Option<Box<Exchange>>,
    trace: Option<Box<Trace>>,
    shared: Arc<Shared>,
    report: oneshot::Sender<Report>,
}

/// What became of a subrequest.
#[derive(Debug)]
struct Report {
    steps: Vec<Step>,
    middleware: Vec<(usize, Step)>,
    attempt: Option<Attempt>,
    answering: Option<Answering>,
    file: Option<SentFile>,
    fault: Option<Fault>,
    reason: Option<String>,
    trace: Option<Box<Trace>>,
    calls: Option<Box<Calls>>,
}

/// Who is told.
#[derive(Debug)]
pub struct Parent(oneshot::Sender<Report>);

impl Rest {
    /// Prepares what is behind the middleware that stands next in a request's chain; none only if Pingora cannot.
    pub fn prepare(session: &mut Session, context: &Context) -> Option<(Self, Behind)> {
        let shared = Arc::new(Shared::default());
        let (report, reported) = oneshot::channel();
        let part = context.part + 1;
        let baton = Baton {
            snapshot: context.snapshot.again(),
            started: context.started,
            id: Arc::clone(&context.id),
            client: context.client,
            peer: context.peer,
            peer_trusted: context.peer_trusted,
            arrival: context.arrival.clone(),
            route: context.route,
            tracks: context.tracks,
            part,
            exchange: context.exchange.clone(),
            trace: context.trace.as_ref().map(|trace| Box::new(trace.passed_on())),
            shared: Arc::clone(&shared),
            report,
        };
        let whole = wanted_whole(context, part);
        let pass_on = Ctx::builder().body_mode(Pipe::ExpectBody).user_ctx(Box::new(Some(baton))).build();
        // Pingora has it begin with a copy of this request's header, written out and parsed again, which fails where that is
        // of HTTP/2. Any header will do, since it gets the middleware's.
        let mut stand_in = RequestHeader::build("GET", b"/", Some(1)).ok()?;
        stand_in.insert_header(HOST, "stand-in").ok()?;
        let header = std::mem::replace(session.req_header_mut(), stand_in);
        let spawner = session.subrequest_spawner.as_ref();
        let created = spawner.map(|spawner| spawner.create_subrequest(session.as_downstream(), pass_on));
        *session.req_header_mut() = header;
        let (subrequest, pipes) = created?;
        let behind = Behind { shared: Arc::clone(&shared), report: Some(reported) };
        Some((Self { subrequest, pipes, shared, whole }, behind))
    }

    async fn run(self, request: http::Request<NextBody>) -> Result<http::Response<NextBody>, NextError> {
        let Self { subrequest, pipes: SubrequestHandle { tx, mut rx, .. }, shared, whole } = self;
        shared.asked.store(true, Ordering::Relaxed);
        let (mut parts, mut body) = request.into_parts();
        let head = parts.method == Method::HEAD;
        let mut first = None;
        let whole = match whole {
            Some(max) => {
                // Without a body, Pingora asks for one at every attempt: then it gets this.
                parts.headers.remove(CONTENT_LENGTH);
                collect(&mut body, max).await?
            }
            None => {
                let now = std::future::poll_fn(|polling| Poll::Ready(Pin::new(&mut body).poll_frame(polling))).await;
                match now {
                    Poll::Ready(None) if !is_zero(parts.headers.get(CONTENT_LENGTH)) => {
                        parts.headers.remove(CONTENT_LENGTH);
                    }
                    Poll::Ready(None) => {}
                    Poll::Ready(Some(frame)) => {
                        first = Some(frame?);
                        frame_body(&mut parts.headers);
                    }
                    Poll::Pending => frame_body(&mut parts.headers),
                }
                Whole::No
            }
        };
        let target = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        parts.uri = Uri::from(target);
        parts.version = Version::HTTP_11;
        *shared.given.lock() = Some(Given { header: parts.into(), whole });
        tokio::spawn(subrequest.run());
        let sending = Sending(tokio::spawn(send(first, body, tx)).abort_handle());
        loop {
            let header = match rx.recv().await {
                Some(HttpTask::Header(header, _)) if header.status.is_informational() => continue,
                Some(HttpTask::Header(header, _)) => header,
                _ => {
                    shared.broke_off.store(true, Ordering::Relaxed);
                    return Err(NextError("there was no answer".to_owned()));
                }
            };
            let mut parts: http::response::Parts = (*header).into();
            for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
                parts.headers.remove(name);
            }
            let bodiless = head || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
            let body = if bodiless {
                // Nobody reads what ends it, and it is to end well.
                tokio::spawn(async move {
                    while rx.recv().await.is_some() {}
                    drop(sending);
                });
                Empty::new().map_err(|never| match never {}).boxed_unsync()
            } else {
                let left = parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
                Incoming { rx, left, ended: false, shared, _sending: sending }.boxed_unsync()
            };
            return Ok(http::Response::from_parts(parts, body));
        }
    }
}

impl Next for Rest {
    fn handle(self: Box<Self>, request: http::Request<NextBody>) -> Handling {
        Box::pin((*self).run(request))
    }
}

/// Returns the longest body that the filters of a part want whole; none where they do not.
fn wanted_whole(context: &Context, part: usize) -> Option<u64> {
    let route = context.route()?;
    let filters = route.links(part).iter().map(|link| link.versions.on(context.tracks).0.filter());
    let wanted = filters.filter(|filter| filter.request_body() == BodyMode::Buffer);
    let longest = wanted.map(|filter| filter.limits().body_bytes).min()?;
    Some(context.snapshot.limits.body.map_or(longest, |max| max.0.min(longest)))
}

fn is_zero(length: Option<&HeaderValue>) -> bool {
    length.is_some_and(|value| value.as_bytes() == b"0")
}

/// Says that there is a body, where no length says so.
fn frame_body(headers: &mut http::HeaderMap) {
    if !headers.contains_key(CONTENT_LENGTH) {
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

async fn collect(body: &mut NextBody, max: u64) -> Result<Whole, NextError> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(piece) = frame?.into_data() {
            if (whole.len() + piece.len()) as u64 > max {
                return Ok(Whole::TooLong);
            }
            whole.extend_from_slice(&piece);
        }
    }
    Ok(Whole::Yes(whole.freeze()))
}

/// Sends a request's body. Trailers stay: Pingora does not forward them.
async fn send(first: Option<Frame<Bytes>>, mut body: NextBody, tx: mpsc::Sender<HttpTask>) {
    let mut next = match first {
        Some(frame) => Some(Ok(frame)),
        None => body.frame().await,
    };
    while let Some(frame) = next {
        let task = match frame {
            Ok(frame) => match frame.into_data() {
                Ok(piece) if !piece.is_empty() => HttpTask::Body(Some(piece), false),
                _ => {
                    next = body.frame().await;
                    continue;
                }
            },
            // The end of the pipe alone would be the end of the body.
            Err(NextError(why)) => HttpTask::Failed(Error::explain(ErrorType::ReadError, why)),
        };
        if tx.send(task).await.is_err() {
            return;
        }
        next = body.frame().await;
    }
    // Who does not read the end has gone already.
    let _ = tx.send(HttpTask::Body(None, true)).await;
    // The pipe is the client: while it is open, somebody waits for the response.
    tx.closed().await;
}

/// Ends a request's body with the response that nobody waits for any more.
struct Sending(AbortHandle);

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A response's body, on its way to a middleware.
struct Incoming {
    rx: mpsc::Receiver<HttpTask>,
    /// What is still to come, where that is known.
    left: Option<u64>,
    ended: bool,
    shared: Arc<Shared>,
    _sending: Sending,
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = NextError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        polling: &mut Polling<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, NextError>>> {
        while !self.ended {
            match ready!(self.rx.poll_recv(polling)) {
                Some(HttpTask::Body(piece, end)) => {
                    self.ended = end;
                    if let Some(piece) = piece.filter(|piece| !piece.is_empty()) {
                        self.left = self.left.map(|left| left.saturating_sub(piece.len() as u64));
                        return Poll::Ready(Some(Ok(Frame::data(piece))));
                    }
                }
                Some(HttpTask::Trailer(Some(trailers))) => {
                    self.ended = true;
                    return Poll::Ready(Some(Ok(Frame::trailers(*trailers))));
                }
                Some(HttpTask::Trailer(None) | HttpTask::Done) => self.ended = true,
                Some(HttpTask::Header(..)) => {}
                None if self.left == Some(0) => self.ended = true,
                None | Some(HttpTask::Failed(_) | HttpTask::UpgradedBody(..)) => {
                    self.ended = true;
                    self.shared.broke_off.store(true, Ordering::Relaxed);
                    return Poll::Ready(Some(Err(NextError("the response broke off".to_owned()))));
                }
            }
        }
        Poll::Ready(None)
    }
}

/// What is behind a middleware, asked by the gateway itself.
pub struct Direct {
    handling: Option<Handling>,
    body: Option<NextBody>,
}

impl std::fmt::Debug for Direct {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Direct").field("answered", &self.handling.is_none()).finish_non_exhaustive()
    }
}

impl Direct {
    /// Asks for a request to be handled.
    pub fn new<B>(rest: Rest, request: http::Request<B>) -> Self
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Debug,
    {
        let request = request.map(|body| body.map_err(|error| NextError(format!("{error:?}"))).boxed_unsync());
        Self { handling: Some(Box::new(rest).handle(request)), body: None }
    }

    /// Returns the header of the response, once. May be dropped and asked anew.
    ///
    /// # Errors
    ///
    /// There is none.
    pub async fn response(&mut self) -> Result<http::response::Parts, CallError> {
        let Some(handling) = &mut self.handling else { return Err(broken("the response was taken already")) };
        let handled = handling.as_mut().await;
        self.handling = None;
        let (parts, body) = handled.map_err(|NextError(why)| broken(&why))?.into_parts();
        self.body = Some(body);
        Ok(parts)
    }

    /// Returns the next piece of the response's body, if there is one now.
    pub fn poll_frame(&mut self, polling: &mut Polling<'_>) -> Poll<Option<Result<Frame<Bytes>, CallError>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        Pin::new(body).poll_frame(polling).map_err(|NextError(why)| broken(&why))
    }
}

fn broken(why: &str) -> CallError {
    CallError { kind: CallErrorKind::NoResponse, message: why.to_owned() }
}

impl Behind {
    /// Returns whether the request has been passed on.
    pub fn asked(&self) -> bool {
        self.shared.asked.load(Ordering::Relaxed)
    }

    /// Returns whether the response behind broke off: then a middleware that hands it on does so as well.
    pub fn broke_off(&self) -> bool {
        self.shared.broke_off.load(Ordering::Relaxed)
    }

    /// Takes over what became of the request behind, once that is over.
    pub async fn report(&mut self, context: &mut Context) {
        let Some(reported) = self.report.take().filter(|_| self.asked()) else { return };
        let Ok(Ok(report)) = tokio::time::timeout(REPORT_WAIT, reported).await else { return };
        let Report { steps, middleware, attempt, answering, file, fault, reason, trace, calls } = report;
        context.chain.extend(steps);
        context.chain.extend_calls(calls);
        if let (Some(trace), Some(behind)) = (&mut context.trace, trace) {
            trace.take_back(*behind);
        }
        context.middleware.extend(middleware);
        context.attempt = attempt;
        context.answering = answering;
        context.file = file;
        // Who went away there is the middleware, and may do so.
        if let Some(fault) = fault.filter(|fault| *fault != Fault::ClientGone) {
            context.blame(fault);
            context.reason = context.reason.take().or(reason);
        }
    }
}

/// Goes on with a request where a middleware stands, if the session is a subrequest. Returns whether it is.
///
/// # Errors
/// The request that the middleware gave is none.
pub fn resume(session: &mut Session, context: &mut Context) -> Result<bool, Fault> {
    let given = session.subrequest_ctx.as_mut().and_then(|passed_on| passed_on.user_ctx_mut());
    let baton = given.and_then(|given| given.downcast_mut::<Option<Baton>>()).and_then(Option::take);
    let Some(baton) = baton else { return Ok(false) };
    let Baton { snapshot, started, id, client, peer, peer_trusted, arrival, route, tracks, part, .. } = baton;
    context.parent = Some(Parent(baton.report));
    context.snapshot = snapshot;
    context.started = started;
    context.id = id;
    context.client = client;
    context.peer = peer;
    context.peer_trusted = peer_trusted;
    context.arrival = arrival;
    context.route = route;
    context.tracks = tracks;
    context.part = part;
    context.exchange = baton.exchange;
    context.trace = baton.trace;
    let given = baton.shared.given.lock().take().ok_or(Fault::Internal)?;
    *session.req_header_mut() = given.header;
    admit::normalise(session)?;
    admit::enter_chain(context);
    match given.whole {
        Whole::No => {}
        Whole::Yes(whole) => context.body.whole = Some(whole),
        Whole::TooLong => return Err(Fault::BodyTooLarge),
    }
    Ok(true)
}

/// Tells a subrequest's parent what became of it. Called when it is over.
pub fn tell(parent: Parent, context: &mut Context) {
    let mut attempt = context.attempt.take();
    if let Some(attempt) = &mut attempt {
        // The endpoint is free again.
        attempt.endpoint = None;
    }
    let report = Report {
        steps: context.chain.take_steps(),
        middleware: std::mem::take(&mut context.middleware),
        attempt,
        answering: context.answering.take(),
        file: context.file.take(),
        fault: context.fault,
        reason: context.reason.take(),
        trace: context.trace.take(),
        calls: context.chain.take_calls(),
    };
    // A parent that did not wait is none to be told.
    let _ = parent.0.send(report);
}
