//! The data plane: the life of a request, in the order in which it happens. Each phase is a short method that calls one
//! module. A request reads one snapshot, compiles nothing, opens nothing, and waits for no lock that the control plane
//! holds.

pub mod admit;
pub mod arrival;
pub mod body;
pub mod chain;
pub mod client;
pub mod compress;
pub mod context;
pub mod counts;
pub mod fault;
pub mod files;
pub mod forward;
pub mod function;
pub mod grpc;
pub mod inner;
pub mod lend;
pub mod log;
pub mod middleware;
pub mod path;
pub mod pending;
pub mod place;
pub mod policy;
pub mod reach;
pub mod respond;
pub mod rest;
pub mod route;
pub mod shadow;
pub mod sink;
pub mod split;
pub mod trace;
pub mod whole;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Method};
use lockgate_config::model::RequestLimits;
use lockgate_host::{BodyMode, Response};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::proxy::{FailToProxy, HttpProxy, ProxyHttp, Session, Subrequest};
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType};

use crate::control::snapshot::SnapshotCell;
use crate::control::upstream::connections;
use crate::metrics::Metrics;
use arrival::Arrival;
use body::Pace;
use chain::Verdict;
use compress::Compression;
use context::{Context, Ids};
use fault::Fault;
use grpc::Dialect;
use inner::Reach;
use log::AccessLog;

/// Requests of an HTTP/2 connection that were taken back, and of which something is left to do.
const H2_RESETS_MAX: usize = 20;

/// What answers every request.
#[derive(Debug)]
pub struct Gateway {
    cell: Arc<SnapshotCell>,
    metrics: Arc<Metrics>,
    access_log: AccessLog,
    ids: Ids,
    /// The proxy that this is the inside of; there once it is made.
    itself: Arc<OnceLock<inner::Proxy>>,
}

/// Returns the proxy that serves connections. `conf` sets the pool of upstream connections; of `limits`, those of HTTP/2
/// are read here.
pub fn proxy(
    cell: Arc<SnapshotCell>,
    metrics: Arc<Metrics>,
    access_log: AccessLog,
    conf: &Arc<ServerConf>,
    limits: &RequestLimits,
) -> Arc<HttpProxy<Gateway>> {
    let itself = Arc::new(OnceLock::new());
    let gateway = Gateway { cell, metrics, access_log, ids: Ids::new(), itself: Arc::clone(&itself) };
    let mut proxy = pingora::proxy::http_proxy(conf, gateway);
    let mut options = pingora::apps::HttpServerOptions::default();
    // Whether a listener takes it is decided before a connection is given to the proxy.
    options.h2c = true;
    options.h2_idle_timeout = Some(limits.idle_timeout);
    // Refused by us, so that it is logged and counted like everything else.
    options.allow_connect_method_proxying = true;
    proxy.server_options = Some(options);
    let mut h2 = default_h2_options();
    h2.max_concurrent_streams(limits.http2_streams);
    h2.max_header_list_size(u32::try_from(limits.header_bytes.0).unwrap_or(u32::MAX));
    // Requests that are taken back as soon as they are made cost us all the same. A connection with more of them than
    // this has a client that means harm, and is closed.
    h2.max_pending_accept_reset_streams(H2_RESETS_MAX);
    h2.max_concurrent_reset_streams(H2_RESETS_MAX);
    proxy.h2_options = Some(h2);
    let proxy = Arc::new(proxy);
    let reached: Arc<dyn Subrequest + Send + Sync> = Arc::<HttpProxy<Gateway>>::clone(&proxy);
    itself.get_or_init(|| Arc::downgrade(&reached));
    proxy
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = Context;

    fn new_ctx(&self) -> Context {
        Context::new(&self.cell, &self.ids)
    }

    fn init_downstream_modules(&self, _modules: &mut pingora::modules::http::HttpModules) {}

    /// Who asks, and for what: refuses what cannot be routed.
    async fn early_request_filter(&self, session: &mut Session, context: &mut Context) -> pingora::Result<()> {
        let adopted = inner::adopt(session, context);
        if adopted || rest::resume(session, context).map_err(|fault| self.fault(context, fault))? {
            return Ok(());
        }
        admit::identify(session, context);
        context.grpc = Dialect::of(session.req_header());
        trace::begin(session, context);
        admit::bound_header(session, &context.snapshot.limits).map_err(|fault| self.fault(context, fault))?;
        if session.req_header().method == Method::CONNECT {
            return Err(self.fault(context, Fault::ConnectRefused));
        }
        admit::normalise(session).map_err(|fault| self.fault(context, fault))
    }

    /// What is behind a middleware runs as a request of its own.
    fn allow_spawning_subrequest(&self, _session: &Session, context: &Context) -> bool {
        context.snapshot.middleware
    }

    /// Route, split, request filters; what is behind them, where it is not an upstream.
    async fn request_filter(&self, session: &mut Session, context: &mut Context) -> pingora::Result<bool> {
        if context.inner.is_some() {
            return Ok(false);
        }
        if context.parent.is_none() && self.refuse_at_once(session, context).await? {
            return Ok(true);
        }
        grpc::begin(session, context)?;
        let upstreams = Reach::of(context, &self.itself);
        if let Some((chain, links, exchange)) = context.filters() {
            chain.reach(upstreams);
            lend::request(session, exchange);
            let verdict = chain.on_request(links, exchange).await;
            lend::take_back(session, exchange);
            if let Some(response) = self.settle(session, context, verdict) {
                respond::answer(session, context, response).await?;
                return Ok(true);
            }
            if whole::filter(self, session, context).await? {
                return Ok(true);
            }
        }
        if middleware::answer(self, session, context).await? {
            return Ok(true);
        }
        match policy::answer(session, context) {
            Ok(None) => {}
            Ok(Some(response)) => {
                respond::answer(session, context, response).await?;
                return Ok(true);
            }
            Err(fault) => {
                respond::refuse(session, context, fault).await?;
                return Ok(true);
            }
        }
        if files::answer(session, context).await? {
            return Ok(true);
        }
        if let Err(fault) = policy::aim(session, context) {
            respond::refuse(session, context, fault).await?;
            return Ok(true);
        }
        self.answer_by_function(session, context).await
    }

    /// The endpoint, anew for each attempt. Tracks stay as they were decided.
    async fn upstream_peer(&self, session: &mut Session, context: &mut Context) -> pingora::Result<Box<HttpPeer>> {
        let mut peer = reach::next(session, context).await.map_err(|fault| self.fault(context, fault))?;
        if session.is_upgrade_req() {
            forward::allow_upgrade(&mut peer, context);
        }
        Ok(peer)
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        context: &mut Context,
        mut error: Box<Error>,
    ) -> Box<Error> {
        let again =
            if connections::is_full(&error) { pending::turn_back(context) } else { reach::not_connected(context) };
        error.set_retry(again);
        error
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        context: &mut Context,
        client_reused: bool,
    ) -> Box<Error> {
        if std::mem::take(&mut context.attempts.again) {
            error.set_retry(true);
            return error;
        }
        error.retry.decide_reuse(client_reused);
        let by_upstream = *error.esource() == ErrorSource::Upstream;
        // A connection from the pool that the upstream had closed meanwhile says nothing about the endpoint. One on which
        // no answer comes does, however often it was used before.
        let closed = error.retry() || (*error.etype() == ErrorType::WriteError && !reach::has_answered(context));
        let stale = by_upstream && client_reused && closed;
        if by_upstream && !stale {
            reach::failed(context);
        }
        let free = (stale || error.retry())
            && session.req_header().method.is_idempotent()
            && reach::is_repeatable(session, context);
        let status = fault_of(&error).code();
        error.set_retry(free || (by_upstream && reach::unanswered(session, status, context)));
        error
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        _reused: bool,
        peer: &HttpPeer,
        _fd: std::os::unix::io::RawFd,
        _digest: Option<&Digest>,
        context: &mut Context,
    ) -> pingora::Result<()> {
        if let Some(attempt) = &mut context.attempt {
            attempt.address = peer._address.as_inet().copied();
        }
        pending::end(context);
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        request: &mut RequestHeader,
        context: &mut Context,
    ) -> pingora::Result<()> {
        context.response_body = context.filters_response_body();
        forward::to_upstream(request, context)?;
        grpc::to_upstream(request, context)?;
        policy::begin_copy(request, context);
        Ok(())
    }

    /// A piece of the request's body, on its way.
    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        context: &mut Context,
    ) -> pingora::Result<()> {
        // Of an error that is nobody's, Pingora would tell the log, and wait for an upstream of HTTP/2 as if nothing were.
        self.filter_request_body(session, body, end, context).await.map_err(Error::into_down)?;
        policy::copy_piece(body.as_ref(), end, context);
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut Context,
    ) -> pingora::Result<()> {
        if let Some(attempt) = &mut context.attempt
            && attempt.header_after.is_none()
            && !response.status.is_informational()
        {
            let after = attempt.started.elapsed();
            attempt.header_after = Some(after);
            attempt.status = response.status.as_u16();
            attempt.upstream.series.record(response.status.as_u16(), after);
            if let (http::Version::HTTP_2, Some(endpoint)) = (response.version, &attempt.endpoint) {
                endpoint.member().connections().shares();
            }
            if reach::answered(session, response.status, context) {
                let status = ErrorType::HTTPStatus(response.status.as_u16());
                return Err(Error::explain(status, "worth another attempt").into_up());
            }
        }
        forward::strip_hop_by_hop(response);
        let upgraded = response.status == http::StatusCode::SWITCHING_PROTOCOLS;
        if upgraded && context.tunnel.is_none() && context.inner.is_none() {
            context.tunnel = context.arrival.as_ref().map(Arrival::open_tunnel);
            let idle = context.snapshot.limits.tunnel_idle_timeout;
            session.as_downstream_mut().set_read_timeout(Some(idle));
        }
        if context.response_body && !response.status.is_informational() {
            // Here, not with the response filters: Pingora decides on the framing in between.
            forward::open_length(response, session.req_header().method == Method::HEAD)?;
        }
        Ok(())
    }

    /// Response filters, in reverse, and what every client is told.
    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut Context,
    ) -> pingora::Result<()> {
        if response.status.is_informational() && response.status != http::StatusCode::SWITCHING_PROTOCOLS {
            return Ok(());
        }
        if context.inner.is_some() {
            return Ok(());
        }
        forward::ask_for_https(response, context)?;
        self.filter_response(session, response, context).await?;
        // A middleware sees what is behind it as it is.
        if context.parent.is_some() {
            return Ok(());
        }
        grpc::to_client(response, context)?;
        policy::finish(session.req_header(), response, context)?;
        let codings = context.route().map_or(&[][..], |route| &route.compress);
        context.compression = Compression::begin(codings, session.req_header(), response)?;
        Ok(())
    }

    /// A piece of the response's body. Synchronous, as Pingora asks; filters that may wait have no such phase.
    fn response_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        context: &mut Context,
    ) -> pingora::Result<Option<Duration>> {
        if session.was_upgraded() {
            return Ok(None);
        }
        if policy::is_over(context) {
            return Err(self.fault(context, Fault::RequestTimeout));
        }
        if context.response_body {
            let mut piece = body.take().unwrap_or_default();
            respond::filter_piece(session, context, &mut piece, end)?;
            *body = Some(piece);
        }
        grpc::response_piece(context, body);
        if let Some(compression) = &mut context.compression {
            compression.piece(body, end)?;
        }
        Ok(None)
    }

    /// With trailers the last piece of a body does not know that it is the last.
    async fn response_trailer_filter(
        &self,
        session: &mut Session,
        trailers: &mut HeaderMap,
        context: &mut Context,
    ) -> pingora::Result<Option<Bytes>> {
        let mut rest = None;
        if context.response_body {
            let mut piece = Bytes::new();
            respond::filter_piece(session, context, &mut piece, true)?;
            rest = Some(piece);
        }
        if let Some(compression) = &mut context.compression {
            compression.piece(&mut rest, true)?;
        }
        let rest = grpc::last_piece(context, rest, trailers);
        // What was held back goes out in the trailers' place: Pingora forwards one or the other.
        Ok(rest.filter(|rest| !rest.is_empty()))
    }

    /// The gateway's own answers go back along the chain as well.
    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, context: &mut Context) -> FailToProxy {
        reach::leave(context);
        let fault = match context.answer {
            Some(_) => None,
            None if context.tunnel.is_some() => Some(context.blame(fault_of_tunnel(error))),
            None => {
                let fault = match fault_of(error) {
                    Fault::UpstreamTimeout | Fault::BodyTimeout if policy::is_to_blame(context) => {
                        Fault::RequestTimeout
                    }
                    fault => fault,
                };
                Some(context.blame(fault))
            }
        };
        if let Some(Fault::ConnectFailed | Fault::UpstreamTimeout | Fault::UpstreamClosed) = fault {
            context.reason = reason_of(error);
        }
        if let (Some(inner), Some(fault)) = (&context.inner, fault) {
            // The guest is told by its own means, and of a response that has begun nothing follows.
            inner.fault.get_or_init(|| fault);
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        }
        let sent = session.response_written().map(|header| header.status.as_u16());
        let nobody = fault == Some(Fault::ClientGone);
        // What is cut off must look so. Once a target was to be asked Pingora closes the connection, and the client has to be told.
        let cut_off = sent.is_some() || nobody;
        let can_reuse_downstream = context.attempt.is_none() && context.attempts.began.is_none() && !cut_off;
        if !can_reuse_downstream {
            session.as_downstream_mut().set_keepalive(None);
        }
        let error_code = match sent {
            Some(status) => status,
            None if nobody => 0,
            None => {
                let response = context.answer.take();
                let response =
                    response.unwrap_or_else(|| respond::refusal(session, fault.unwrap_or(Fault::Internal), context));
                let status = response.status.as_u16();
                // An error means that the client is gone, which the log tells by what was sent.
                let _ = respond::answer(session, context, response).await;
                status
            }
        };
        if let Some(fault) = fault.filter(|fault| fault.source() != fault::Source::Downstream) {
            tracing::debug!(request_id = %context.id, source = fault.source().as_str(), kind = fault.kind(), %error, "request failed");
        }
        FailToProxy { error_code, can_reuse_downstream }
    }

    /// One line and one count for every request whose header was parsed.
    async fn logging(&self, session: &mut Session, _error: Option<&Error>, context: &mut Context) {
        reach::leave(context);
        let sent = session.response_written().map(|header| header.status);
        let status = sent.map_or(0, |sent| context.meant.unwrap_or(sent).as_u16());
        let duration = context.started.elapsed();
        // What a middleware asked for was counted where it happened.
        if let Some(attempt) = context.attempt.as_ref().filter(|attempt| attempt.header_after.is_none())
            && context.middleware.is_empty()
        {
            attempt.upstream.series.record(0, attempt.started.elapsed());
        }
        if context.inner.is_some() {
            return;
        }
        context.chain.leave();
        if let Some(captures) = context.chain.take_captures()
            && let Some(route) = context.route()
        {
            captures.hand_over(route.links(context.part));
        }
        if let Some(parent) = context.parent.take() {
            rest::tell(parent, context);
            return;
        }
        match context.route() {
            Some(route) => route.series.record(status, duration),
            None => context.snapshot.unrouted.record(status, duration),
        }
        counts::count(context, status, duration);
        if let Some(fault) = context.fault {
            self.metrics.fault(fault);
        }
        if let Some(format) = &context.snapshot.access_log {
            self.access_log.write(format, session, context, status, duration);
        }
        policy::send_copy(context);
        trace::finish(session, context, status);
    }

    /// Our own log says it better, and once.
    fn suppress_error_log(&self, _session: &Session, _context: &Context, _error: &Error) -> bool {
        true
    }
}

impl Gateway {
    /// Finds the request's route and tracks, and asks its policy. Returns whether the request has been answered: it is
    /// refused, or sent elsewhere.
    async fn refuse_at_once(&self, session: &mut Session, context: &mut Context) -> pingora::Result<bool> {
        admit::set_timeouts(session, &context.snapshot.limits);
        if let Some(redirect) = admit::redirected_to_https(session, context) {
            respond::answer(session, context, redirect).await?;
            return Ok(true);
        }
        let routed = admit::route_and_split(session, context);
        match routed.and_then(|()| policy::admit(session, context)) {
            Ok(None) => Ok(false),
            Ok(Some(response)) => {
                respond::answer(session, context, response).await?;
                Ok(true)
            }
            Err(refused) => {
                respond::refuse_with(session, context, refused.fault, refused.headers).await?;
                Ok(true)
            }
        }
    }

    /// Bounds a piece of the request's body, and passes it along the chain.
    async fn filter_request_body(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        context: &mut Context,
    ) -> pingora::Result<()> {
        if let Some(whole) = &context.body.whole {
            *body = Some(whole.clone());
            return Ok(());
        }
        if context.inner.is_some() {
            return Ok(());
        }
        context.body.received += body.as_ref().map_or(0, |piece| piece.len() as u64);
        if session.was_upgraded() {
            return Ok(());
        }
        let max = context.route().and_then(|route| route.policy.body_max);
        if max.is_some_and(|max| context.body.received > max) {
            return Err(self.fault(context, Fault::BodyTooLarge));
        }
        if policy::is_over(context) {
            return Err(self.fault(context, Fault::RequestTimeout));
        }
        let pace = Pace::new(context.started, &context.snapshot.limits);
        if !end && !pace.is_kept(context.body.received) && !admit::may_wait(session.req_header()) {
            return Err(self.fault(context, Fault::BodyTimeout));
        }
        grpc::request_piece(context, body, end).map_err(|fault| self.fault(context, fault))?;
        if context.body.mode == BodyMode::None {
            return Ok(());
        }
        context.body.filtered = true;
        let Some((chain, links, exchange)) = context.filters() else { return Ok(()) };
        // An empty piece that is not the last means "hold back": none would mean the end.
        let mut piece = body.take().unwrap_or_default();
        lend::request(session, exchange);
        exchange.request_sent = true;
        let verdict = chain.on_request_body(links, exchange, &mut piece, end).await;
        lend::take_back(session, exchange);
        *body = Some(piece);
        match self.settle(session, context, verdict) {
            None => Ok(()),
            Some(response) => {
                let status = response.status.as_u16();
                context.answer = Some(response);
                Error::e_explain(ErrorType::HTTPStatus(status), "a filter answered")
            }
        }
    }

    /// Response filters, in reverse.
    async fn filter_response(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut Context,
    ) -> pingora::Result<()> {
        let Some((chain, links, exchange)) = context.filters() else { return Ok(()) };
        lend::request(session, exchange);
        lend::response(response, exchange);
        exchange.request_sent = true;
        exchange.response_sent = false;
        let passed = chain.on_response(links, exchange).await;
        exchange.response_sent = true;
        lend::take_back_response(response, exchange);
        lend::take_back(session, exchange);
        passed.map_err(|fault| self.fault(context, fault))
    }

    /// Has the route's function answer, if it has one. Returns whether the request has been answered.
    async fn answer_by_function(&self, session: &mut Session, context: &mut Context) -> pingora::Result<bool> {
        match context.function() {
            Some(_) => function::answer(self, session, context).await.map(|()| true),
            None => Ok(false),
        }
    }

    /// Returns the answer that a chain's verdict asks for; none to go on.
    fn settle(&self, session: &Session, context: &mut Context, verdict: Verdict) -> Option<Response> {
        match verdict {
            Verdict::Continue => None,
            Verdict::Respond(response) => Some(response),
            Verdict::Fail(fault) => {
                context.blame(fault);
                Some(respond::refusal(session, fault, context))
            }
        }
    }

    /// Returns the error that makes Pingora call [`ProxyHttp::fail_to_proxy`], where the fault is answered.
    fn fault(&self, context: &mut Context, fault: Fault) -> Box<Error> {
        context.fail(fault)
    }
}

/// Returns what an error of Pingora's says beside its type: the operating system's words, or what Pingora was doing.
fn reason_of(error: &Error) -> Option<String> {
    match &error.cause {
        None => error.context.as_ref().map(|context| context.as_str().to_owned()),
        Some(cause) => match cause.downcast_ref::<Error>() {
            Some(inner) => reason_of(inner),
            None => Some(cause.to_string()),
        },
    }
}

/// Returns the fault that ends a tunnel.
fn fault_of_tunnel(error: &Error) -> Fault {
    let is_abort = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionAborted)
    };
    match error.etype() {
        ErrorType::ReadTimedout => Fault::TunnelIdle,
        _ if error.cause.as_ref().is_some_and(|cause| is_abort(&**cause)) => Fault::TunnelCut,
        _ => fault_of(error),
    }
}

/// Returns the fault that an error of Pingora's is.
fn fault_of(error: &Error) -> Fault {
    use ErrorType as E;
    match (error.esource(), error.etype()) {
        (ErrorSource::Upstream, E::ConnectTimedout | E::ReadTimedout | E::WriteTimedout | E::TLSHandshakeTimedout) => {
            Fault::UpstreamTimeout
        }
        (
            ErrorSource::Upstream,
            E::ConnectRefused
            | E::ConnectNoRoute
            | E::ConnectError
            | E::BindError
            | E::SocketError
            | E::ConnectProxyFailure,
        ) => Fault::ConnectFailed,
        (ErrorSource::Upstream, E::ReadError | E::WriteError | E::ConnectionClosed) => Fault::UpstreamClosed,
        (ErrorSource::Upstream, E::Custom(connections::FULL)) => Fault::UpstreamOverloaded,
        (ErrorSource::Upstream, _) => Fault::UpstreamInvalid,
        (ErrorSource::Downstream, E::ReadTimedout) => Fault::BodyTimeout,
        (ErrorSource::Downstream, E::ReadError | E::WriteError | E::ConnectionClosed | E::WriteTimedout) => {
            Fault::ClientGone
        }
        (ErrorSource::Downstream, _) => Fault::BadRequest,
        (ErrorSource::Internal | ErrorSource::Unset, _) => Fault::Internal,
    }
}
