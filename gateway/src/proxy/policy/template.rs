//! Texts with placeholders, filled in for a request. A text without any is a value that was made with the snapshot.

use std::io::Write as _;
use std::net::IpAddr;

use http::HeaderValue;
use http::header::HOST;
use lockgate_config::model::{self, Placeholder, TemplatePiece};
use pingora::http::RequestHeader;

use crate::proxy::context::Context;

/// What placeholders stand for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// As it was routed.
    pub request: &'a RequestHeader,
    /// The client's address.
    pub client: IpAddr,
    /// The request's id.
    pub id: &'a str,
    /// The route's name.
    pub route: &'a str,
    /// Bytes of the route's prefix, its last `/` included; 1 where it has none.
    pub prefix: usize,
    /// `http` or `https`.
    pub scheme: &'static str,
}

impl<'a> Asked<'a> {
    /// Returns what a request is about.
    pub fn of(request: &'a RequestHeader, context: &'a Context) -> Self {
        let route = context.route();
        Self {
            request,
            client: context.client,
            id: &context.id,
            route: route.map_or("", |route| &route.name),
            prefix: route.map_or(1, |route| route.policy.prefix),
            scheme: context.scheme(),
        }
    }

    /// Returns what follows the route's prefix.
    pub fn rest(&self) -> &'a str {
        self.request.uri.path().get(self.prefix..).unwrap_or_default()
    }
}

/// A text, filled in for each request that needs it.
#[derive(Debug)]
pub enum Text {
    /// The same for all.
    Fixed(HeaderValue),
    /// With placeholders.
    Filled(Box<[TemplatePiece]>),
}

impl Text {
    /// Returns what a template asks for. One that is no value, which the configuration refuses, is filled in as often as
    /// it is asked for, and then left out.
    pub fn new(template: &model::Template) -> Self {
        if let [TemplatePiece::Text(text)] = template.0.as_slice()
            && let Ok(value) = HeaderValue::from_str(text)
        {
            return Self::Fixed(value);
        }
        Self::Filled(template.0.clone().into())
    }

    /// Returns the value for a request; none where it is empty. Placeholders cost an allocation.
    pub fn value(&self, asked: &Asked<'_>) -> Option<HeaderValue> {
        match self {
            Self::Fixed(value) => Some(value.clone()),
            Self::Filled(pieces) => {
                let mut text = Vec::with_capacity(64);
                fill(pieces, asked, &mut text);
                // What a request is about is made of what values may hold, but for spaces at the ends.
                let text = text.trim_ascii();
                if text.is_empty() { None } else { HeaderValue::from_bytes(text).ok() }
            }
        }
    }
}

/// Writes pieces one after the other.
pub fn fill(pieces: &[TemplatePiece], asked: &Asked<'_>, out: &mut Vec<u8>) {
    for piece in pieces {
        let placeholder = match piece {
            TemplatePiece::Text(text) => {
                out.extend_from_slice(text.as_bytes());
                continue;
            }
            TemplatePiece::Placeholder(placeholder) => placeholder,
        };
        let uri = &asked.request.uri;
        match placeholder {
            // Writing to a vector does not fail.
            Placeholder::ClientIp => drop(write!(out, "{}", asked.client)),
            Placeholder::Host => {
                out.extend_from_slice(asked.request.headers.get(HOST).map_or(&b""[..], HeaderValue::as_bytes));
            }
            Placeholder::Method => out.extend_from_slice(asked.request.method.as_str().as_bytes()),
            Placeholder::Path => out.extend_from_slice(uri.path().as_bytes()),
            Placeholder::Query => out.extend_from_slice(uri.query().unwrap_or_default().as_bytes()),
            Placeholder::RequestId => out.extend_from_slice(asked.id.as_bytes()),
            Placeholder::Rest => out.extend_from_slice(asked.rest().as_bytes()),
            Placeholder::Route => out.extend_from_slice(asked.route.as_bytes()),
            Placeholder::Scheme => out.extend_from_slice(asked.scheme.as_bytes()),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::proxy::policy) fn request(target: &str) -> RequestHeader {
        let mut request = RequestHeader::build("GET", target.as_bytes(), None).unwrap();
        request.insert_header(HOST, "example.com:8080").unwrap();
        request
    }

    pub(in crate::proxy::policy) fn asked(request: &RequestHeader) -> Asked<'_> {
        let client = IpAddr::from([192, 0, 2, 7]);
        Asked { request, client, id: "id-1", route: "users", prefix: "/users/".len(), scheme: "https" }
    }

    fn filled(template: &str, target: &str) -> Option<String> {
        let text = Text::new(&template.parse().unwrap());
        let request = request(target);
        text.value(&asked(&request)).map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn placeholders_stand_for_what_the_request_is_about() {
        let check = |template, expect: &str| {
            assert_eq!(filled(template, "/users/7/posts?a=b").as_deref(), Some(expect));
        };
        check("plain", "plain");
        check("{client_ip} {method} {request_id} {route}", "192.0.2.7 GET id-1 users");
        check("{scheme}://{host}{path}?{query}", "https://example.com:8080/users/7/posts?a=b");
        check("/new/{rest}", "/new/7/posts");
        check("{{{route}}}", "{users}");
    }

    #[test]
    fn what_comes_out_empty_is_no_value() {
        assert_eq!(filled("{query}", "/users"), None);
        assert_eq!(filled("{rest}", "/users"), None);
        assert_eq!(filled("q={query}", "/users").as_deref(), Some("q="));
    }
}
