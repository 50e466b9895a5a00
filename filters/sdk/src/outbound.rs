//! HTTP requests of a filter's own, to where the operator grants it (`grants.outbound`). An upstream of the gateway's is
//! asked by its name: `http://NAME.upstream/path`. Redirects are not followed.
//!
//! A filter that uses this runs on the gateway's second lane, since it may wait: it cannot have `on_response_body`. Its
//! deadline goes on while it waits.

use std::fmt;

use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    ErrorCode, Fields, IncomingBody, IncomingResponse, Method, OutgoingBody, OutgoingRequest, RequestOptions, Scheme,
};
use wasip2::io::streams::StreamError;

/// The longest body that is read; a longer one is an error, not a filter out of memory.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;

/// What one write to a stream takes at most, by the definition of `wasi:io`.
const WRITE_BYTES_MAX: usize = 4096;

/// A request to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    method: String,
    url: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    time_ms_max: Option<u64>,
}

impl Fetch {
    /// A request of this method to this URL (`http://host:port/path?query`, or `https`).
    pub fn new(method: &str, url: &str) -> Self {
        Self {
            method: method.to_owned(),
            url: url.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
            time_ms_max: None,
        }
    }

    /// A `GET`.
    pub fn get(url: &str) -> Self {
        Self::new("GET", url)
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    /// With this body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// With a limit on the time to connect, to the first byte, and between two bytes, each, in milliseconds. Default:
    /// the gateway's.
    #[must_use]
    pub fn time_ms_max(mut self, time_ms: u64) -> Self {
        self.time_ms_max = Some(time_ms);
        self
    }

    /// Sends the request and waits for the whole response.
    ///
    /// # Errors
    ///
    /// The URL is none, the operator did not grant its host, or the exchange failed.
    pub fn send(self) -> Result<Fetched, FetchError> {
        let url = Url::parse(&self.url)?;
        let headers = Fields::from_list(&self.headers)
            .map_err(|error| FetchError::new(&self.url, format!("a header is refused: {error}")))?;
        let request = OutgoingRequest::new(headers);
        let written = [
            request.set_method(&method(&self.method)),
            request.set_scheme(Some(&url.scheme)),
            request.set_authority(Some(url.authority)),
            request.set_path_with_query(Some(&url.path_and_query)),
        ];
        if written.iter().any(Result::is_err) {
            return Err(FetchError::new(&self.url, "its method, host or path is refused"));
        }
        self.exchange(request).map_err(|reason| FetchError::new(&self.url, reason))
    }

    fn exchange(&self, request: OutgoingRequest) -> Result<Fetched, String> {
        let body = request.body().map_err(|()| "its body was taken before")?;
        let response = outgoing_handler::handle(request, self.options()?).map_err(describe)?;
        // The body follows the request: until that is on its way nobody reads what is written. Where nobody does, because
        // the request is refused or answered before its end, the response says more than a body that broke off.
        let sent = write(&body, &self.body);
        if sent.is_ok() {
            OutgoingBody::finish(body, None).map_err(describe)?;
        } else {
            drop(body);
        }

        let response = loop {
            match response.get() {
                Some(Ok(response)) => break response.map_err(describe)?,
                Some(Err(())) => return Err("the response was taken before".to_owned()),
                None => response.subscribe().block(),
            }
        };
        Ok(Fetched { status: response.status(), headers: response.headers().entries(), body: read(&response)? })
    }

    fn options(&self) -> Result<Option<RequestOptions>, String> {
        let Some(time_ms) = self.time_ms_max else {
            return Ok(None);
        };
        let time_ns = time_ms.saturating_mul(1_000_000);
        let options = RequestOptions::new();
        options
            .set_connect_timeout(Some(time_ns))
            .and_then(|()| options.set_first_byte_timeout(Some(time_ns)))
            .and_then(|()| options.set_between_bytes_timeout(Some(time_ns)))
            .map_err(|()| "the gateway has no such time limits")?;
        Ok(Some(options))
    }
}

/// A response that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Its status, whichever it is.
    pub status: u16,
    /// Its headers, in order.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Its whole body, at most [`BODY_BYTES_MAX`].
    pub body: Vec<u8>,
}

/// A request that got no response, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchError {
    url: String,
    reason: String,
}

impl FetchError {
    fn new(url: &str, reason: impl Into<String>) -> Self {
        Self { url: url.to_owned(), reason: reason.into() }
    }
}

impl fmt::Display for FetchError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "`{}` could not be fetched: {}", self.url, self.reason)
    }
}

impl std::error::Error for FetchError {}

/// The parts of a URL that a request is made of.
#[derive(Debug)]
struct Url<'a> {
    scheme: Scheme,
    authority: &'a str,
    path_and_query: String,
}

impl<'a> Url<'a> {
    fn parse(url: &'a str) -> Result<Self, FetchError> {
        let (scheme, rest) = match url.split_once("://") {
            Some(("http", rest)) => (Scheme::Http, rest),
            Some(("https", rest)) => (Scheme::Https, rest),
            _ => {
                return Err(FetchError::new(url, "it begins with neither `http://` nor `https://`"));
            }
        };
        let without_fragment = rest.split('#').next().unwrap_or_default();
        let end = without_fragment.find(['/', '?']).unwrap_or(without_fragment.len());
        let (authority, target) = without_fragment.split_at(end);
        if authority.is_empty() {
            return Err(FetchError::new(url, "it has no host"));
        }
        let path_and_query = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        Ok(Self { scheme, authority, path_and_query })
    }
}

fn method(name: &str) -> Method {
    match name {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "DELETE" => Method::Delete,
        "CONNECT" => Method::Connect,
        "OPTIONS" => Method::Options,
        "TRACE" => Method::Trace,
        "PATCH" => Method::Patch,
        other => Method::Other(other.to_owned()),
    }
}

fn write(body: &OutgoingBody, bytes: &[u8]) -> Result<(), String> {
    let stream = body.write().map_err(|()| "its body was taken before")?;
    for piece in bytes.chunks(WRITE_BYTES_MAX) {
        stream.blocking_write_and_flush(piece).map_err(|error| format!("its body could not be sent: {error}"))?;
    }
    Ok(())
}

fn read(response: &IncomingResponse) -> Result<Vec<u8>, String> {
    // The stream is a child of the body and has to be dropped first.
    let body: IncomingBody = response.consume().map_err(|()| "the response's body was taken before")?;
    let stream = body.stream().map_err(|()| "the response's body was taken before")?;
    let mut bytes = Vec::new();
    loop {
        match stream.blocking_read(64 * 1024) {
            Ok(piece) => bytes.extend_from_slice(&piece),
            Err(StreamError::Closed) => return Ok(bytes),
            Err(error) => return Err(format!("the response's body broke off: {error}")),
        }
        if bytes.len() > BODY_BYTES_MAX {
            return Err(format!("the response's body is longer than {BODY_BYTES_MAX} bytes"));
        }
    }
}

fn describe(error: ErrorCode) -> String {
    match error {
        ErrorCode::HttpRequestDenied => "the gateway does not grant it: see `grants.outbound`".to_owned(),
        ErrorCode::HttpRequestMethodInvalid => {
            "the gateway does not grant its method: see `grants.outbound`".to_owned()
        }
        ErrorCode::DestinationIpProhibited => {
            "the gateway does not grant the address that it leads to: see `addresses` in `grants.outbound`".to_owned()
        }
        ErrorCode::InternalError(Some(reason)) => reason,
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_scheme_host_and_path() {
        let url = Url::parse("https://example.com:8443/a?b=c#d").expect("a URL");
        assert!(matches!(url.scheme, Scheme::Https));
        assert_eq!((url.authority, url.path_and_query.as_str()), ("example.com:8443", "/a?b=c"));
        let bare = Url::parse("http://example.com?b=c").expect("a URL");
        assert_eq!((bare.authority, bare.path_and_query.as_str()), ("example.com", "/?b=c"));
    }

    #[test]
    fn other_urls_are_refused_with_a_reason() {
        let error = |url| Url::parse(url).expect_err("not one to fetch").to_string();
        assert_eq!(
            error("ftp://example.com"),
            "`ftp://example.com` could not be fetched: it begins with neither `http://` nor `https://`"
        );
        assert_eq!(error("http:///path"), "`http:///path` could not be fetched: it has no host");
    }
}
