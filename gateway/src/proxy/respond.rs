//! Answers a request without its target: early answers of filters, and the gateway's own faults. Both go back along the
//! chain like any other response. Pingora runs no response phase for what is written before a target was asked, so that
//! path is ours, and the same code.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, DATE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use lockgate_host::Response;
use pingora::http::ResponseHeader;
use pingora::protocols::http::date::get_cached_date;
use pingora::proxy::Session;

use crate::proxy::context::Context;
use crate::proxy::fault::Fault;
use crate::proxy::forward::{self, X_REQUEST_ID};
use crate::proxy::lend;

/// Returns the answer to a fault. It names the request, so that the reason can be found in the log; never the reason.
pub fn refusal(fault: Fault, context: &Context) -> Response {
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if let Ok(id) = HeaderValue::from_str(&context.id) {
        headers.insert(X_REQUEST_ID, id);
    }
    Response {
        status: fault.status(),
        headers,
        body: Bytes::from(format!("{}\nrequest id: {}\n", fault.text(), context.id)),
    }
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
    let mut response = refusal(fault, context);
    response.headers.extend(headers);
    answer(session, context, response).await
}

/// Answers a request, the response phases of the filters that it passed included.
///
/// # Errors
/// The client could not be written to.
pub async fn answer(session: &mut Session, context: &mut Context, response: Response) -> pingora::Result<()> {
    let Response { status, headers, body } = pass_back(session, context, response).await;
    let mut header = ResponseHeader::build_no_case(status, Some(headers.len() + 2))?;
    for (name, value) in &headers {
        header.append_header(name, value)?;
    }
    if !header.headers.contains_key(DATE) {
        header.insert_header(DATE, get_cached_date())?;
    }
    forward::ask_for_https(&mut header, context)?;
    let bodiless = status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    if !bodiless {
        header.insert_header(CONTENT_LENGTH, body.len())?;
    }
    let send = !bodiless && !body.is_empty() && session.req_header().method != Method::HEAD;
    if !session.as_downstream_mut().is_body_done() {
        // What the client still sends of a body that nobody wants would be taken for its next request.
        session.as_downstream_mut().set_keepalive(None);
    }
    session.write_response_header(Box::new(header), !send).await?;
    if send {
        session.write_response_body(Some(body), true).await?;
    }
    Ok(())
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
        response = refusal(fault, context);
    }
}

async fn pass_back_once(session: &mut Session, context: &mut Context, response: &mut Response) -> Result<(), Fault> {
    let Some((chain, links, exchange)) = context.filters() else { return Ok(()) };
    lend::request(session, exchange);
    exchange.request_sent = true;
    exchange.response_sent = false;
    exchange.response = Some(lend::response_parts(response.status, std::mem::take(&mut response.headers)));
    let mut passed = chain.on_response(links, exchange).await;
    if let Some(parts) = exchange.response.as_mut() {
        response.status = parts.status;
    }
    if passed.is_ok() && chain.acts_on_response_body(links) {
        exchange.response_sent = true;
        passed = chain.on_response_body(links, exchange, &mut response.body, true);
    }
    if let Some(parts) = exchange.response.take() {
        response.headers = parts.headers;
    }
    lend::take_back(session, exchange);
    passed
}
