//! Lends a request's header to its filters, and takes it back. What filters see is the `http` crate's; what Pingora
//! holds is its own type around the same. A header is moved from one into the other, a few hundred bytes each way;
//! nothing is copied or allocated.

use http::{HeaderMap, StatusCode};
use lockgate_host::Exchange;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;

/// Moves the session's request header into what filters see.
pub fn request(session: &mut Session, exchange: &mut Exchange) {
    let blank = RequestHeader::from(blank_request());
    exchange.request = std::mem::replace(session.req_header_mut(), blank).into();
}

/// Forgets how the names of the session's request header were capitalised. Whoever is behind us sees the usual form of
/// each name, whether or not the header was lent, and what is forgotten need not be copied and kept up to date.
pub fn forget_capitals(header: &mut RequestHeader) {
    let blank = RequestHeader::from(blank_request());
    let parts = http::request::Parts::from(std::mem::replace(header, blank));
    *header = parts.into();
}

/// Moves it back.
pub fn take_back(session: &mut Session, exchange: &mut Exchange) {
    *session.req_header_mut() = std::mem::replace(&mut exchange.request, blank_request()).into();
}

/// Moves a response's header into what filters see.
pub fn response(header: &mut ResponseHeader, exchange: &mut Exchange) {
    let blank = ResponseHeader::from(response_parts(StatusCode::OK, HeaderMap::new()));
    exchange.response = Some(std::mem::replace(header, blank).into());
}

/// Moves it back.
pub fn take_back_response(header: &mut ResponseHeader, exchange: &mut Exchange) {
    if let Some(parts) = exchange.response.take() {
        *header = parts.into();
    }
}

/// Returns the parts of a response.
pub fn response_parts(status: StatusCode, headers: HeaderMap) -> http::response::Parts {
    let mut parts = http::Response::new(()).into_parts().0;
    parts.status = status;
    parts.headers = headers;
    parts
}

/// Returns the parts of a request that stands in for one that is lent.
pub fn blank_request() -> http::request::Parts {
    http::Request::new(()).into_parts().0
}
