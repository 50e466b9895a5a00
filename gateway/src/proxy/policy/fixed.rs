//! Answers that need nobody: another address, or a response that is always the same. Made with the snapshot, but for what
//! a redirect takes over of the request.

use bytes::Bytes;
use http::header::LOCATION;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use lockgate_config::model::{self, TemplatePiece};
use lockgate_host::Response;

use super::template::{Asked, fill};

/// Where requests are sent.
#[derive(Debug)]
pub struct Redirect {
    status: StatusCode,
    to: Box<[TemplatePiece]>,
    query: bool,
}

impl Redirect {
    /// Returns the redirect that a configuration asks for.
    pub fn new(redirect: &model::Redirect) -> Self {
        let pieces = &redirect.to.0;
        let asks = pieces.iter().any(|piece| matches!(piece, TemplatePiece::Text(text) if text.contains('?')));
        Self {
            status: StatusCode::from_u16(redirect.status).unwrap_or(StatusCode::TEMPORARY_REDIRECT),
            to: pieces.clone().into(),
            query: redirect.keep_query && !asks,
        }
    }

    /// Returns the response; none where the address is no value.
    pub fn response(&self, asked: &Asked<'_>) -> Option<Response> {
        let mut location = Vec::with_capacity(128);
        fill(&self.to, asked, &mut location);
        if let Some(query) = asked.request.uri.query().filter(|_| self.query) {
            location.push(b'?');
            location.extend_from_slice(query.as_bytes());
        }
        let headers = HeaderMap::from_iter([(LOCATION, HeaderValue::from_bytes(&location).ok()?)]);
        Some(Response { status: self.status, headers, body: Bytes::new() })
    }
}

/// A response that is always the same.
#[derive(Debug)]
pub struct Fixed {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Fixed {
    /// Returns the response that a configuration asks for. `body` is read.
    pub fn new(response: &model::FixedResponse, body: Bytes) -> Self {
        let headers = response
            .headers
            .iter()
            .filter_map(|(name, value)| Some((HeaderName::try_from(name).ok()?, HeaderValue::from_str(value).ok()?)));
        Self {
            status: StatusCode::from_u16(response.status).unwrap_or(StatusCode::OK),
            headers: headers.collect(),
            body,
        }
    }

    /// Returns the response. The body is shared.
    pub fn response(&self) -> Response {
        Response { status: self.status, headers: self.headers.clone(), body: self.body.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::template::tests::{asked, request};
    use super::*;

    fn location(to: &str, keep_query: bool, target: &str) -> String {
        let redirect = Redirect::new(&model::Redirect { status: 308, to: to.parse().unwrap(), keep_query });
        let request = request(target);
        let response = redirect.response(&asked(&request)).unwrap();
        assert_eq!(response.status, StatusCode::PERMANENT_REDIRECT);
        response.headers[LOCATION].to_str().unwrap().to_owned()
    }

    #[test]
    fn a_query_goes_along_unless_the_address_has_one() {
        assert_eq!(location("/new/{rest}", true, "/users/7?a=b"), "/new/7?a=b");
        assert_eq!(location("/new/{rest}", false, "/users/7?a=b"), "/new/7");
        assert_eq!(location("/new?was={path}", true, "/users/7?a=b"), "/new?was=/users/7");
        assert_eq!(location("https://example.org{path}", true, "/users/7"), "https://example.org/users/7");
    }
}
