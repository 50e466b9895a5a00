//! Passes a request's whole body along the chain before its target is asked, where a filter wants it so, or where it is
//! compressed and has to be decompressed for filters that look at it.

use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING};
use http::{HeaderMap, HeaderValue};
use lockgate_host::BodyMode;
use pingora::proxy::Session;

use crate::proxy::Gateway;
use crate::proxy::body::{self, Bounds, Pace};
use crate::proxy::context::Context;
use crate::proxy::fault::Fault;
use crate::proxy::grpc;
use crate::proxy::lend;
use crate::proxy::policy::{self, decompress};
use crate::proxy::respond;

/// Reads the whole body where a filter wants it before the target is asked. Returns whether the request has been
/// answered.
///
/// # Errors
/// The client could not be written to.
pub async fn filter(gateway: &Gateway, session: &mut Session, context: &mut Context) -> pingora::Result<bool> {
    let limits = context.snapshot.limits;
    let Some((chain, links, _)) = context.filters() else { return Ok(false) };
    let mode = chain.request_body(links);
    let max = chain.request_body_max(links);
    let max = context.route().and_then(|route| route.policy.body_max).unwrap_or(u64::MAX).min(max);
    context.body.mode = mode;
    let decompressed = context.route().and_then(|route| route.policy.decompress).filter(|_| mode != BodyMode::None);
    let coded = match decompressed.map(|_| decompress::coding(&session.req_header().headers)).transpose() {
        Ok(coded) => coded.flatten(),
        Err(fault) => {
            let codings = HeaderValue::from_static(decompress::CODINGS);
            let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, codings)]);
            respond::refuse_with(session, context, fault, headers).await?;
            return Ok(true);
        }
    };
    if mode != BodyMode::Buffer && coded.is_none() {
        return Ok(false);
    }
    // What is longer before it is decompressed will not be shorter after.
    let max = max.min(decompressed.filter(|_| coded.is_some()).unwrap_or(u64::MAX));
    let pace = Pace::new(context.started, &limits);
    let bounds = Bounds { max, timeout: limits.read_timeout, pace };
    // Behind a middleware it has been read.
    let read = match context.body.whole.take() {
        Some(whole) => Ok(whole),
        None => tokio::select! {
            biased;
            read = body::read_whole(session.as_downstream_mut(), &bounds) => read,
            () = policy::until_over(context, false) => Err(Fault::RequestTimeout),
        },
    };
    let mut whole = match read {
        Ok(whole) => whole,
        Err(fault) => {
            respond::refuse(session, context, fault).await?;
            return Ok(true);
        }
    };
    context.body.received = whole.len() as u64;
    // There is none of a request that has no body.
    if let Some(coded) = coded.filter(|_| !whole.is_empty()) {
        whole = match decompress::decompress(coded, &whole, max).await {
            Ok(whole) => whole,
            Err(fault) => {
                respond::refuse(session, context, fault).await?;
                return Ok(true);
            }
        };
        session.req_header_mut().remove_header(&CONTENT_ENCODING);
    }
    let mut piece = Some(whole);
    if let Err(fault) = grpc::request_piece(context, &mut piece, true) {
        respond::refuse(session, context, fault).await?;
        return Ok(true);
    }
    whole = piece.unwrap_or_default();
    let Some((chain, links, exchange)) = context.filters() else { return Ok(false) };
    lend::request(session, exchange);
    let verdict = chain.on_request_body(links, exchange, &mut whole, true).await;
    lend::take_back(session, exchange);
    context.body.whole = Some(whole);
    match gateway.settle(session, context, verdict) {
        Some(response) => respond::answer(session, context, response).await.map(|()| true),
        None => Ok(false),
    }
}
