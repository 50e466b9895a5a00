//! Answers a request without its target: early answers of filters, and the gateway's own faults. Both go back along the
//! chain like any other response. Pingora runs no response phase for what is written before a target was asked, so that
//! path is ours, and the same code.
//!
//! An answer that is whole goes by [`answer`]. One whose body comes piece by piece goes by [`begin`] and [`piece`]; whoever
//! gives the pieces waits until one has been taken, so that no more of a body is held than the client is behind.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, DATE, RETRY_AFTER, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use lockgate_host::Response;
use pingora::Error;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::date::get_cached_date;
use pingora::proxy::Session;

use crate::proxy::context::Context;
use crate::proxy::fault::Fault;
use crate::proxy::forward::{self, X_REQUEST_ID};
use crate::proxy::grpc;
use crate::proxy::lend;
use crate::proxy::policy;

/// Returns the answer to a fault. It names the request, so that the reason can be found in the log; never the reason.
/// There may be a page for it.
pub fn refusal(session: &Session, fault: Fault, context: &Context) -> Response {
    let status = fault.status();
    let (content_type, body) = match policy::page(status, session.req_header(), context) {
        Some(page) => (page.content_type(), page.body(status, &context.id)),
        None => {
            let body = Bytes::from(format!("{}\nrequest id: {}\n", fault.text(), context.id));
            (HeaderValue::from_static("text/plain; charset=utf-8"), body)
        }
    };
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(CONTENT_TYPE, content_type);
    if matches!(fault, Fault::UpstreamOverloaded | Fault::PendingTimeout) {
        headers.insert(RETRY_AFTER, HeaderValue::from(policy::RETRY_AFTER_SECONDS));
    }
    if let Ok(id) = HeaderValue::from_str(&context.id) {
        headers.insert(X_REQUEST_ID, id);
    }
    Response { status, headers, body }
}

/// Answers a request with a fault, the response phases of the filters that it passed included.
///
/// # Errors
/// The client could not be written to.
pub async fn refuse(session: &mut Session, context: &mut Context, fault: Fault) -> pingora::Result<()> {
    refuse_with(session, context, fault, HeaderMap::new()).await
}

/// As [`refuse`], with further headers.
///
/// # Errors
/// The client could not be written to.
pub async fn refuse_with(
    session: &mut Session,
    context: &mut Context,
    fault: Fault,
    headers: HeaderMap,
) -> pingora::Result<()> {
    context.blame(fault);
    let mut response = refusal(session, fault, context);
    response.headers.extend(headers);
    answer(session, context, response).await
}

/// Answers a request, the response phases of the filters that it passed included.
///
/// # Errors
/// The client could not be written to.
pub async fn answer(session: &mut Session, context: &mut Context, response: Response) -> pingora::Result<()> {
    let response = pass_back(session, context, response).await;
    let Response { status, headers, body } = grpc::told(response, context);
    let mut header = ResponseHeader::build_no_case(status, Some(headers.len() + 2))?;
    for (name, value) in &headers {
        header.append_header(name, value)?;
    }
    if !header.headers.contains_key(DATE) {
        header.insert_header(DATE, get_cached_date())?;
    }
    forward::ask_for_https(&mut header, context)?;
    policy::finish(session.req_header(), &mut header, context)?;
    let bodiless = status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    if !bodiless {
        header.insert_header(CONTENT_LENGTH, body.len())?;
    }
    let send = !bodiless && !body.is_empty() && session.req_header().method != Method::HEAD;
    if !session.as_downstream_mut().is_body_done() {
        // What the client still sends of a body that nobody wants would be taken for its next request.
        session.as_downstream_mut().set_keepalive(None);
    }
    // By its own way Pingora tells the end of a response without a body when it takes leave of the request, which it does not
    // do of one that failed; and of a call of gRPC it is too late.
    if !send && let ServerSession::H2(downstream) = session.as_downstream_mut() {
        return downstream.write_response_header(Box::new(header), true).map_err(Error::into_down);
    }
    session.write_response_header(Box::new(header), !send).await.map_err(Error::into_down)?;
    if send {
        session.write_response_body(Some(body), true).await.map_err(Error::into_down)?;
    }
    Ok(())
}

/// Begins an answer whose body follows by [`piece`]: sends its header, past the filters that the request passed.
/// [`Context::response_body`] is to have been set before the target was asked. Without a `content-length` the body's end is
/// told by chunks, or by closing the connection. Returns whether a body is to follow: none where the request or the status
/// has none, or where a filter that failed closed has been answered for instead.
///
/// # Errors
/// The client could not be written to.
pub async fn begin(
    session: &mut Session,
    context: &mut Context,
    status: StatusCode,
    headers: HeaderMap,
) -> pingora::Result<bool> {
    let mut response = Response { status, headers, body: Bytes::new() };
    if let Err(fault) = pass_header_back(session, context, &mut response).await {
        context.blame(fault);
        let refusal = refusal(session, fault, context);
        return answer(session, context, refusal).await.map(|()| false);
    }
    let Response { status, headers, .. } = response;
    let mut header = ResponseHeader::build_no_case(status, Some(headers.len() + 2))?;
    for (name, value) in &headers {
        header.append_header(name, value)?;
    }
    forward::ask_for_https(&mut header, context)?;
    policy::finish(session.req_header(), &mut header, context)?;
    let head = session.req_header().method == Method::HEAD;
    let bodiless = head || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    if bodiless && !head {
        header.remove_header(&CONTENT_LENGTH);
    }
    if context.response_body {
        forward::open_length(&mut header, head)?;
    } else if !bodiless && !header.headers.contains_key(CONTENT_LENGTH) {
        header.insert_header(TRANSFER_ENCODING, "chunked")?;
    }
    if session.req_header().version < Version::HTTP_11 && header.headers.contains_key(TRANSFER_ENCODING) {
        header.remove_header(&TRANSFER_ENCODING);
        session.as_downstream_mut().set_keepalive(None);
    }
    if !session.as_downstream_mut().is_body_done() {
        session.as_downstream_mut().set_keepalive(None);
    }
    session.write_response_header(Box::new(header), bodiless).await.map_err(Error::into_down)?;
    Ok(!bodiless)
}

/// Sends a piece of a body, past the filters that act on it; with `end`, the last one, which may be empty.
///
/// # Errors
/// A filter failed: the response is cut off. Or the client could not be written to.
pub async fn piece(session: &mut Session, context: &mut Context, mut piece: Bytes, end: bool) -> pingora::Result<()> {
    if context.response_body {
        filter_piece(session, context, &mut piece, end)?;
    }
    // Writes nothing where there is nothing: an empty chunk would be the last.
    session.write_response_body(Some(piece), end).await.map_err(Error::into_down)
}

/// Passes a piece of a response's body back along the chain.
///
/// # Errors
/// A filter failed: the response is cut off.
pub fn filter_piece(session: &mut Session, context: &mut Context, piece: &mut Bytes, end: bool) -> pingora::Result<()> {
    let Some((chain, links, exchange)) = context.filters() else { return Ok(()) };
    lend::request(session, exchange);
    let passed = chain.on_response_body(links, exchange, piece, end);
    lend::take_back(session, exchange);
    passed.map_err(|fault| context.fail(fault))
}

/// Passes a response back along the chain. A filter that fails closed on the way replaces it by the answer to its fault,
/// which the filters after that one see.
async fn pass_back(session: &mut Session, context: &mut Context, mut response: Response) -> Response {
    if context.filters().is_none() {
        return response;
    }
    loop {
        let fault = match pass_back_once(session, context, &mut response).await {
            Ok(()) => return response,
            Err(fault) => fault,
        };
        context.blame(fault);
        response = refusal(session, fault, context);
    }
}

async fn pass_back_once(session: &mut Session, context: &mut Context, response: &mut Response) -> Result<(), Fault> {
    pass_header_back(session, context, response).await?;
    let Some((chain, links, exchange)) = context.filters() else { return Ok(()) };
    if !chain.acts_on_response_body(links) {
        return Ok(());
    }
    lend::request(session, exchange);
    exchange.response = Some(lend::response_parts(response.status, std::mem::take(&mut response.headers)));
    let passed = chain.on_response_body(links, exchange, &mut response.body, true);
    if let Some(parts) = exchange.response.take() {
        response.headers = parts.headers;
    }
    lend::take_back(session, exchange);
    passed
}

async fn pass_header_back(session: &mut Session, context: &mut Context, response: &mut Response) -> Result<(), Fault> {
    let Some((chain, links, exchange)) = context.filters() else { return Ok(()) };
    lend::request(session, exchange);
    exchange.request_sent = true;
    exchange.response_sent = false;
    exchange.response = Some(lend::response_parts(response.status, std::mem::take(&mut response.headers)));
    let passed = chain.on_response(links, exchange).await;
    exchange.response_sent = true;
    if let Some(parts) = exchange.response.take() {
        response.status = parts.status;
        response.headers = parts.headers;
    }
    lend::take_back(session, exchange);
    passed
}
