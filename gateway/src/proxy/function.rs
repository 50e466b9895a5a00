//! The target is a function: it answers here, before Pingora would look for an upstream. Its response passes the chain as
//! an upstream's does, and both bodies stream: a piece of the request is handed over when the guest waits for it, a piece of
//! the response is sent when the guest has written it, and nothing piles up in between. One task does all of it, so a client
//! that goes away takes the guest with it.
//!
//! A middleware is run by the same `Run`.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, EXPECT, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, Method, StatusCode, Version};
use hyper::body::Frame;
use lockgate_host::{Call, CallError, CallErrorKind, Caller, RequestBody, Settled, World};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::date::get_cached_date;
use pingora::proxy::{ProxyHttp as _, Session};
use pingora::{Error, ErrorType};

use crate::control::function::FunctionVersion;
use crate::metrics::FUNCTION_OUTCOMES;
use crate::proxy::Gateway;
use crate::proxy::client::{self, Ahead, Client, Event};
use crate::proxy::context::{Answering, Context};
use crate::proxy::fault::Fault;
use crate::proxy::forward;
use crate::proxy::inner::Reach;
use crate::proxy::policy;
use crate::proxy::rest::Direct;
use crate::track::Track;

/// Bytes of a response that are gathered, if they are there at once, before its header is sent: a short response then
/// has a length, and goes out in one piece.
const GATHERED_BYTES_MAX: usize = 64 << 10;

/// Answers a request by its route's function.
///
/// # Errors
/// The function failed, or the client did: Pingora has the fault answered, or the response cut off.
pub async fn answer(gateway: &Gateway, session: &mut Session, context: &mut Context) -> pingora::Result<()> {
    let Some((version, track)) = context.function().map(|(version, track)| (Arc::clone(version), track)) else {
        return Err(gateway.fault(context, Fault::Internal));
    };
    context.answering = Some(Answering {
        version: Arc::clone(&version),
        track,
        started: Instant::now(),
        header_after: None,
        busy: Duration::ZERO,
        outcome: None,
        status: 0,
    });
    if let Some((chain, links, _)) = context.filters() {
        context.response_body = chain.acts_on_response_body(links);
    }
    let (body, client) = bodies(session, context, None);
    let tls = context.scheme() == "https";
    let request = request(session, context, version.function().world(), body, forward::to_upstream)?;
    let upstreams = Reach::of(context, &gateway.itself);
    let id = Arc::clone(&context.id);
    let call = match version.function().call(track.as_str(), id, upstreams, tls, request, None) {
        Ok(call) => call,
        Err(error) => return Err(failed(gateway, context, &error, Duration::ZERO)),
    };
    let mut answerer = Answerer::Guest(Box::new(call));
    let mut run = Run::new(gateway, session, context, client);
    let answered = run.answer(&mut answerer).await;
    let (busy, header_after, status) = (answerer.busy(), run.header_after, run.status);
    if let Some(answering) = &mut context.answering {
        answering.header_after = header_after;
        answering.status = status;
    }
    match answered {
        Ok(()) => {
            finished(context, busy);
            settle(answerer, version, track, &context.id).await;
            Ok(())
        }
        Err(Ended::Function(error)) => Err(failed(gateway, context, &error, busy)),
        Err(Ended::Otherwise(error)) => {
            if let Some(answering) = &mut context.answering {
                answering.busy = busy;
            }
            Err(error)
        }
    }
}

/// What answers in an upstream's place.
pub(super) enum Answerer {
    /// A guest.
    Guest(Box<Call>),
    /// What is behind a guest that is passed by.
    Rest(Direct),
}

impl Answerer {
    /// Returns for how long it has kept a thread busy.
    pub(super) fn busy(&self) -> Duration {
        match self {
            Self::Guest(call) => call.busy(),
            Self::Rest(_) => Duration::ZERO,
        }
    }

    async fn response(&mut self) -> Result<http::response::Parts, CallError> {
        match self {
            Self::Guest(call) => call.response().await,
            Self::Rest(rest) => rest.response().await,
        }
    }

    async fn frame(&mut self) -> Option<Result<Frame<Bytes>, CallError>> {
        match self {
            Self::Guest(call) => call.frame().await,
            Self::Rest(rest) => poll_fn(|polling| rest.poll_frame(polling)).await,
        }
    }

    async fn frame_now(&mut self) -> Poll<Option<Result<Frame<Bytes>, CallError>>> {
        match self {
            Self::Guest(call) => call.frame_now().await,
            Self::Rest(rest) => poll_fn(|polling| Poll::Ready(rest.poll_frame(polling))).await,
        }
    }
}

/// Returns what the function is given of the request's body, and what is to be done for it. `ahead` is what was read of it
/// for somebody who wanted none of it.
pub(super) fn bodies(session: &mut Session, context: &Context, ahead: Option<Ahead>) -> (RequestBody, Client) {
    if let Some(whole) = &context.body.whole {
        return (RequestBody::whole(whole.clone()), Client::Watched);
    }
    let ahead = match ahead {
        Some(ahead) => ahead,
        None if session.as_downstream_mut().is_body_done() => {
            return (RequestBody::whole(Bytes::new()), Client::Watched);
        }
        None => {
            let expects = session.req_header().headers.get(EXPECT);
            let expects = expects.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
            Ahead::of(session.as_downstream_mut(), expects)
        }
    };
    let (body, upload) = RequestBody::pulled();
    (body, Client::Sends { upload: Some(upload), ahead })
}

/// Returns the request as the function sees it: past `edit`, without what belongs to the connection, and with the
/// parameters of its path.
pub(super) fn request(
    session: &Session,
    context: &Context,
    world: World,
    body: RequestBody,
    edit: fn(&mut RequestHeader, &Context) -> pingora::Result<()>,
) -> pingora::Result<http::Request<RequestBody>> {
    let mut header = session.req_header().clone();
    edit(&mut header, context)?;
    let mut parts: http::request::Parts = header.into();
    let named: Vec<HeaderName> = parts
        .headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect();
    for name in named {
        parts.headers.remove(name);
    }
    parts.headers.remove(EXPECT);
    if let Some(route) = context.route() {
        route.place.tell(parts.uri.path(), &mut parts.headers);
        if world == World::Command {
            // Unspecified: on a Unix socket, where nobody has said who it is.
            let client = Some(context.client).filter(|client| !client.is_unspecified());
            let script_bytes = route.place.bytes_of(parts.uri.path());
            // One allocation, which no other function has any use for.
            parts.extensions.insert(Caller { client, script_bytes });
        }
    }
    Ok(http::Request::from_parts(parts, body))
}

/// Why a request got no whole answer.
pub(super) enum Ended {
    /// The function is to blame.
    Function(CallError),
    /// The client is, or a filter; what that means has been noted.
    Otherwise(Box<Error>),
}

impl From<Box<Error>> for Ended {
    fn from(error: Box<Error>) -> Self {
        Self::Otherwise(error)
    }
}

impl From<CallError> for Ended {
    fn from(error: CallError) -> Self {
        Self::Function(error)
    }
}

/// A request, its function, and its client.
pub(super) struct Run<'a> {
    gateway: &'a Gateway,
    session: &'a mut Session,
    context: &'a mut Context,
    client: Client,
    started: Instant,
    /// Time to the header of the response.
    header_after: Option<Duration>,
    /// Of the response, once it is known; 0 before.
    status: u16,
    /// A piece of the request's body has been handed over.
    fed: bool,
    /// Bytes that the client still waits for, where it was told how many there are.
    left: Option<u64>,
}

impl<'a> Run<'a> {
    /// Begins an answer to a request, whose client does what [`bodies`] says.
    pub(super) fn new(
        gateway: &'a Gateway,
        session: &'a mut Session,
        context: &'a mut Context,
        client: Client,
    ) -> Self {
        Self {
            gateway,
            session,
            context,
            client,
            started: Instant::now(),
            header_after: None,
            status: 0,
            fed: false,
            left: None,
        }
    }

    /// Returns whether anything has been handed over of the request's body, or sent of the response.
    pub(super) fn has_begun(&self) -> bool {
        self.fed || self.header_after.is_some()
    }

    /// Returns what was read of the request's body and not handed over; none if the client sends none.
    pub(super) fn into_ahead(self) -> Option<Ahead> {
        match self.client {
            Client::Sends { ahead, .. } => Some(ahead),
            Client::Watched | Client::Unwatched => None,
        }
    }

    /// Answers, to the end of the response.
    pub(super) async fn answer(&mut self, call: &mut Answerer) -> Result<(), Ended> {
        let parts = loop {
            tokio::select! {
                biased;
                parts = call.response() => break parts?,
                event = client::next(&self.client, self.session) => self.attend(event).await?,
                () = policy::until_over(self.context, false) => return Err(self.over()),
            }
        };
        self.header_after = Some(self.started.elapsed());
        self.status = parts.status.as_u16();
        let head = self.session.req_header().method == Method::HEAD;
        let bodiless = head || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let mut early = Early { ended: bodiless, ..Early::default() };
        if !bodiless {
            early.gather(call).await?;
        }
        self.send_header(parts, &mut early, bodiless).await?;
        if early.ended {
            return Ok(());
        }
        loop {
            let frame = tokio::select! {
                biased;
                frame = call.frame() => frame.transpose()?,
                event = client::next(&self.client, self.session) => {
                    self.attend(event).await?;
                    continue;
                }
                () = policy::until_over(self.context, true) => return Err(self.over()),
            };
            let Some(frame) = frame else {
                self.send_end(None).await?;
                return Ok(());
            };
            match frame.into_data() {
                Ok(bytes) => {
                    let bytes = self.filter(bytes, false)?;
                    self.promise(bytes.len());
                    self.session.write_response_body(Some(bytes), false).await?;
                }
                Err(frame) => {
                    self.send_end(frame.into_trailers().ok()).await?;
                    return Ok(());
                }
            }
        }
    }

    /// Ends a request that has had all of the route's time.
    fn over(&mut self) -> Ended {
        self.gateway.fault(self.context, Fault::RequestTimeout).into()
    }

    async fn send_header(
        &mut self,
        parts: http::response::Parts,
        early: &mut Early,
        bodiless: bool,
    ) -> Result<(), Ended> {
        let mut header = ResponseHeader::from(parts);
        forward::strip_hop_by_hop(&mut header);
        if !header.headers.contains_key(DATE) {
            header.insert_header(DATE, get_cached_date())?;
        }
        let http1 = self.session.req_header().version == Version::HTTP_11;
        if self.context.response_body {
            forward::open_length(&mut header, bodiless)?;
            if !http1 {
                header.remove_header(&TRANSFER_ENCODING);
            }
        } else if !bodiless && !header.headers.contains_key(CONTENT_LENGTH) {
            if early.ended && early.trailers.is_none() {
                header.insert_header(CONTENT_LENGTH, early.bytes)?;
            } else if http1 {
                header.insert_header(TRANSFER_ENCODING, "chunked")?;
            }
        }
        if early.ended && !self.session.as_downstream_mut().is_body_done() {
            // What the client still sends of a body that nobody wants would be taken for its next request.
            self.session.as_downstream_mut().set_keepalive(None);
        }
        self.gateway.response_filter(self.session, &mut header, self.context).await?;
        let ends =
            bodiless || (early.ended && early.bytes == 0 && early.trailers.is_none() && !self.context.response_body);
        let length = header.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        self.left = length.filter(|_| !bodiless);
        let mut tasks = vec![HttpTask::Header(Box::new(header), ends)];
        for bytes in std::mem::take(&mut early.pieces) {
            let bytes = self.filter(bytes, false)?;
            self.promise(bytes.len());
            tasks.push(HttpTask::Body(Some(bytes), false));
        }
        if early.ended && !ends {
            self.push_end(&mut tasks, early.trailers.take())?;
        }
        self.session.write_response_tasks(tasks).await?;
        Ok(())
    }

    /// Takes note of what is about to be sent. A client that has all that it waits for may speak again, before the guest is
    /// at its end: from then on it is not listened to.
    fn promise(&mut self, bytes: usize) {
        let Some(left) = &mut self.left else { return };
        *left = left.saturating_sub(bytes as u64);
        if *left == 0 {
            match &mut self.client {
                Client::Sends { ahead, .. } => ahead.satisfy(),
                client => *client = Client::Unwatched,
            }
        }
    }

    /// Listens to a client that has sent all, unless it has all as well.
    fn watch(&mut self) {
        self.client = if self.left == Some(0) { Client::Unwatched } else { Client::Watched };
    }

    async fn send_end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Ended> {
        let mut tasks = Vec::with_capacity(2);
        self.push_end(&mut tasks, trailers)?;
        self.session.write_response_tasks(tasks).await?;
        Ok(())
    }

    /// Ends the response. HTTP/1.1 gets no trailers: Pingora does not speak them. A middleware does, whatever the client
    /// speaks.
    fn push_end(&mut self, tasks: &mut Vec<HttpTask>, trailers: Option<HeaderMap>) -> Result<(), Ended> {
        let last = self.filter(Bytes::new(), true)?;
        let downstream = self.session.as_downstream();
        match trailers.filter(|_| downstream.is_http2() || downstream.is_subrequest()) {
            Some(trailers) => {
                if !last.is_empty() {
                    tasks.push(HttpTask::Body(Some(last), false));
                }
                tasks.push(HttpTask::Trailer(Some(Box::new(trailers))));
            }
            None => tasks.push(HttpTask::Body(Some(last), true)),
        }
        Ok(())
    }

    /// Passes a piece of the response's body along the chain.
    fn filter(&mut self, bytes: Bytes, end: bool) -> Result<Bytes, Ended> {
        let mut piece = Some(bytes);
        self.gateway.response_body_filter(self.session, &mut piece, end, self.context)?;
        Ok(piece.unwrap_or_default())
    }

    /// Does what an event at the client's side asks for.
    async fn attend(&mut self, event: Event) -> Result<(), Ended> {
        match event {
            Event::Wanted => self.hand_over().await,
            Event::Unwanted => {
                if let Client::Sends { upload, .. } = &mut self.client {
                    *upload = None;
                }
                Ok(())
            }
            Event::Came(piece) => self.take(piece).await,
            Event::Gone => Err(self.gateway.fault(self.context, Fault::ClientGone).into()),
            Event::Spoke => {
                match &mut self.client {
                    Client::Sends { ahead, .. } => ahead.close_ears(),
                    client => *client = Client::Unwatched,
                }
                // A byte of it has been read: the connection is of no use after this.
                self.session.as_downstream_mut().set_keepalive(None);
                Ok(())
            }
        }
    }

    /// Takes what came of the request's body, and hands it over if the guest waits for it.
    async fn take(&mut self, piece: pingora::Result<Option<Bytes>>) -> Result<(), Ended> {
        let Client::Sends { upload, ahead } = &mut self.client else { return Ok(()) };
        match piece {
            Ok(piece) => {
                if ahead.take(piece, self.session.as_downstream_mut().is_body_done()) {
                    return self.hand_over().await;
                }
            }
            Err(error) => match upload {
                Some(upload) => {
                    upload.fail();
                    return Err(error.into_down().into());
                }
                None if matches!(error.etype(), ErrorType::ReadError | ErrorType::ConnectionClosed) => {
                    return Err(self.gateway.fault(self.context, Fault::ClientGone).into());
                }
                // Nobody wants it: that it is late, or malformed, is nobody's concern.
                None => ahead.close_ears(),
            },
        }
        Ok(())
    }

    /// Hands over the next piece of the request's body that filters let through, if it is there.
    async fn hand_over(&mut self) -> Result<(), Ended> {
        let Client::Sends { upload: Some(upload), ahead } = &mut self.client else { return Ok(()) };
        let session = &mut *self.session;
        self.fed = true;
        ahead.tell_to_send(session.as_downstream_mut()).await?;
        while let Some((mut piece, last)) = ahead.hand_out() {
            self.gateway.request_body_filter(session, &mut piece, last, self.context).await?;
            // Where there is none it is held back by a filter, or the end.
            let piece = piece.unwrap_or_default();
            if last {
                upload.push_last(piece);
                self.watch();
                return Ok(());
            }
            if !piece.is_empty() {
                upload.push(piece);
                return Ok(());
            }
        }
        Ok(())
    }
}

/// What there is of a response's body when its header is sent.
#[derive(Default)]
struct Early {
    pieces: Vec<Bytes>,
    bytes: usize,
    trailers: Option<HeaderMap>,
    ended: bool,
}

impl Early {
    /// Takes what is there without waiting.
    async fn gather(&mut self, call: &mut Answerer) -> Result<(), CallError> {
        while self.bytes < GATHERED_BYTES_MAX && !self.ended {
            match call.frame_now().await {
                Poll::Pending => return Ok(()),
                Poll::Ready(None) => self.ended = true,
                Poll::Ready(Some(frame)) => match frame?.into_data() {
                    Ok(bytes) => {
                        self.bytes += bytes.len();
                        self.pieces.push(bytes);
                    }
                    Err(frame) => {
                        self.trailers = frame.into_trailers().ok();
                        self.ended = true;
                    }
                },
            }
        }
        Ok(())
    }
}

fn finished(context: &mut Context, busy: Duration) {
    let Some(answering) = &mut context.answering else { return };
    answering.busy = busy;
    answering.outcome = Some(FUNCTION_OUTCOMES[0]);
    if let Some(series) = answering.version.series(answering.track) {
        series.call(true, answering.started.elapsed(), busy);
    }
}

/// Accounts for a function's failure, and returns the error by which it is answered.
fn failed(gateway: &Gateway, context: &mut Context, error: &CallError, busy: Duration) -> Box<Error> {
    if let Some(answering) = &mut context.answering {
        answering.busy = busy;
        answering.outcome = Some(FUNCTION_OUTCOMES[1]);
        if let Some(series) = answering.version.series(answering.track) {
            series.call(false, answering.started.elapsed(), busy);
        }
        answering.version.failed(answering.track, &context.id, error);
    }
    let exhausted = error.kind == CallErrorKind::Exhausted;
    gateway.fault(context, if exhausted { Fault::FunctionExhausted } else { Fault::FunctionFailed })
}

/// Lets a guest that goes on after its response do so, beside the connection. The client has its answer: what fails
/// now is counted and logged, and nobody's fault.
pub(super) async fn settle(answerer: Answerer, version: Arc<FunctionVersion>, track: Track, request_id: &Arc<str>) {
    let Answerer::Guest(call) = answerer else { return };
    match call.settle().await {
        Settled::Ended(Ok(())) => {}
        Settled::Ended(Err(error)) => version.failed(track, request_id, &error),
        Settled::Running(tail) => {
            let request_id = Arc::clone(request_id);
            tokio::spawn(async move {
                if let Err(error) = tail.run().await {
                    version.failed(track, &request_id, &error);
                }
            });
        }
    }
}
