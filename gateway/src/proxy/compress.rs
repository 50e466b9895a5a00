//! Compresses responses, where the route says so and the client takes it. What is chosen here is whether and which way;
//! the work is done by an encoder, piece by piece.

mod encoder;

use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, VARY,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use lockgate_config::model::Coding;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::{ErrorType, OrErr};

use crate::proxy::forward;
use encoder::Encoder;

/// Bodies that are shorter grow by what a coding puts around them.
const LENGTH_MIN: u64 = 20;

/// A response that is being compressed.
#[derive(Debug)]
pub struct Compression(Encoder);

impl Compression {
    /// Begins with a response's header, which is changed to what will follow: coding, framing, `vary`, and a weak
    /// `etag`. None where nothing is to be done with the body.
    ///
    /// # Errors
    /// A header with more fields than fit.
    pub fn begin(
        codings: &[Coding],
        request: &RequestHeader,
        response: &mut ResponseHeader,
    ) -> pingora::Result<Option<Box<Self>>> {
        let length = response.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let too_short = length.is_some_and(|length| length < LENGTH_MIN);
        if codings.is_empty() || too_short || is_exempt(request, response) || !may_shrink(&response.headers) {
            return Ok(None);
        }
        // Another client might have got something else, whatever this one gets.
        vary(response)?;
        if response.headers.contains_key(CONTENT_ENCODING) {
            return Ok(None);
        }
        let Some(coding) = choose(codings, &request.headers) else { return Ok(None) };
        response.insert_header(CONTENT_ENCODING, HeaderValue::from_static(name(coding)))?;
        forward::open_length(response, false)?;
        Ok(Some(Box::new(Self(Encoder::new(coding, length)))))
    }

    /// Compresses a piece of the body.
    ///
    /// # Errors
    /// The response is cut off: its header has promised what cannot be kept.
    pub fn piece(&mut self, body: &mut Option<Bytes>, end: bool) -> pingora::Result<()> {
        let piece = body.take().unwrap_or_default();
        let compressed = self.0.piece(&piece, end).or_err(ErrorType::InternalError, "compressing a body")?;
        *body = Some(compressed);
        Ok(())
    }
}

const fn name(coding: Coding) -> &'static str {
    match coding {
        Coding::Zstd => "zstd",
        Coding::Brotli => "br",
        Coding::Gzip => "gzip",
    }
}

/// Says that the response depends on what the client takes.
fn vary(response: &mut ResponseHeader) -> pingora::Result<()> {
    let mut lines = response.headers.get_all(VARY).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let says_so = lines.any(|name| {
        let name = name.trim_ascii();
        name == b"*" || name.eq_ignore_ascii_case(ACCEPT_ENCODING.as_str().as_bytes())
    });
    if says_so { Ok(()) } else { response.append_header(VARY, HeaderValue::from(ACCEPT_ENCODING)).map(drop) }
}

/// Returns whether a body is of a kind that grows smaller. Pictures, films and archives are compressed by themselves, and
/// so are messages of gRPC, whose framing no coding may hide.
fn may_shrink(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()) else { return false };
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let (class, form) = kind.split_once('/').unwrap_or_default();
    match class {
        "text" => true,
        "application" => !form.starts_with("grpc") && !["zip", "zst", "pdf"].iter().any(|word| form.contains(word)),
        "font" => !form.starts_with("woff"),
        "image" => matches!(form, "svg+xml" | "x-icon" | "vnd.microsoft.icon" | "bmp"),
        _ => false,
    }
}

/// Returns whether a response must pass as it is: it has no body or a part of one, asks for it, or comes as events, which
/// go on for hours, each with an encoder's memory.
fn is_exempt(request: &RequestHeader, response: &ResponseHeader) -> bool {
    let says = |name, word: &[u8]| {
        let mut values =
            response.headers.get_all(name).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
        values.any(|value| value.trim_ascii().to_ascii_lowercase().starts_with(word))
    };
    request.method == Method::HEAD
        || !response.status.is_success() && !response.status.is_client_error() && !response.status.is_server_error()
        || matches!(response.status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::PARTIAL_CONTENT)
        || response.headers.contains_key(CONTENT_RANGE)
        || says(CACHE_CONTROL, b"no-transform")
        || says(CONTENT_TYPE, b"text/event-stream")
}

/// Returns the first coding that the client takes, by RFC 9110, section 12.5.3: with a weight above nothing, by name or
/// by `*`.
fn choose(codings: &[Coding], headers: &HeaderMap<HeaderValue>) -> Option<Coding> {
    let takes = |coding: &Coding| {
        let mut by_star = false;
        for line in headers.get_all(ACCEPT_ENCODING) {
            for item in line.as_bytes().split(|byte| *byte == b',') {
                let mut parts = item.split(|byte| *byte == b';');
                let asked = parts.next().unwrap_or_default().trim_ascii();
                let weighs = parts.all(|parameter| {
                    let parameter = parameter.trim_ascii();
                    let weight = parameter.strip_prefix(b"q=").or_else(|| parameter.strip_prefix(b"Q="));
                    weight.is_none_or(|weight| weight.iter().any(|digit| matches!(digit, b'1'..=b'9')))
                });
                if asked.eq_ignore_ascii_case(name(*coding).as_bytes()) {
                    return weighs;
                }
                by_star |= asked == b"*" && weighs;
            }
        }
        by_star
    };
    codings.iter().copied().find(takes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_routes_order_decides_among_what_the_client_takes() {
        let all = [Coding::Zstd, Coding::Brotli, Coding::Gzip];
        for (accepted, expected) in [
            ("gzip, deflate, br, zstd", Some(Coding::Zstd)),
            ("gzip;q=0.1, br", Some(Coding::Brotli)),
            ("gzip;q=0.1, br;q=0", Some(Coding::Gzip)),
            ("GZIP;q=1.0", Some(Coding::Gzip)),
            ("*", Some(Coding::Zstd)),
            ("zstd;q=0, *", Some(Coding::Brotli)),
            ("zstd;q=0.0, deflate, br;q=0, gzip;q=0.000", None),
            ("identity", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(accepted))]);
            assert_eq!(choose(&all, &headers), expected, "{accepted}");
        }
        assert_eq!(choose(&all, &HeaderMap::new()), None);
    }

    #[test]
    fn parts_events_and_what_must_not_change_pass_as_they_are() {
        let request = RequestHeader::build("GET", b"/", None).unwrap();
        let exempt = |status: u16, name: &'static str, value: &'static str| {
            let mut response = ResponseHeader::build(status, None).unwrap();
            response.insert_header(name, value).unwrap();
            is_exempt(&request, &response)
        };
        assert!(exempt(206, "content-range", "bytes 0-1/2"));
        assert!(exempt(200, "cache-control", "public, No-Transform"));
        assert!(exempt(200, "content-type", "text/event-stream; charset=utf-8"));
        assert!(exempt(304, "etag", "\"a\""));
        assert!(!exempt(200, "content-type", "text/html"));
        assert!(!exempt(404, "content-type", "text/html"));
    }

    #[test]
    fn only_what_grows_smaller_is_compressed() {
        for (kind, expected) in [
            ("text/html; charset=utf-8", true),
            ("application/json", true),
            ("Application/Wasm", true),
            ("image/svg+xml", true),
            ("font/ttf", true),
            ("font/woff2", false),
            ("image/png", false),
            ("application/zip", false),
            ("application/gzip", false),
            ("application/pdf", false),
            ("application/grpc-web+proto", false),
            ("video/mp4", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
            assert_eq!(may_shrink(&headers), expected, "{kind}");
        }
        assert!(!may_shrink(&HeaderMap::new()));
    }

    #[test]
    fn a_header_tells_what_will_follow() {
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        request.insert_header(ACCEPT_ENCODING, "br").unwrap();
        let begin = |fields: &[(&'static str, &'static str)]| {
            let mut response = ResponseHeader::build(200, None).unwrap();
            for (name, value) in fields {
                response.append_header(*name, *value).unwrap();
            }
            let begun = Compression::begin(&[Coding::Brotli], &request, &mut response).unwrap().is_some();
            (begun, response.headers.clone())
        };
        let text = |headers: &HeaderMap, name| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        let page = ("content-type", "text/html");
        let (begun, headers) =
            begin(&[page, ("content-length", "4000"), ("etag", "\"a\""), ("accept-ranges", "bytes")]);
        assert!(begun);
        for (name, expected) in [
            ("content-encoding", Some("br")),
            ("vary", Some("accept-encoding")),
            ("etag", Some("W/\"a\"")),
            ("transfer-encoding", Some("chunked")),
            ("content-length", None),
            ("accept-ranges", None),
        ] {
            assert_eq!(text(&headers, name).as_deref(), expected, "{name}");
        }
        let (begun, headers) = begin(&[page, ("content-encoding", "gzip"), ("vary", "cookie, Accept-Encoding")]);
        assert!(!begun);
        assert_eq!(text(&headers, "content-encoding").as_deref(), Some("gzip"));
        assert_eq!(headers.get_all("vary").iter().count(), 1);
        assert!(!begin(&[page, ("content-length", "19")]).0);
    }
}
