//! Compresses responses of upstreams, where the route says so and the client takes it. What is chosen here is which way;
//! the work is done by Pingora's encoder, piece by piece.

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_RANGE, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use lockgate_config::model::Coding;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::compression::{Algorithm, ResponseCompressionCtx};

/// Levels at which a core compresses some hundred megabytes a second; higher ones gain a few per cent.
const LEVEL: u32 = 3;

/// A response that is being compressed, or might be.
pub struct Compression(ResponseCompressionCtx);

impl std::fmt::Debug for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compression").field("enabled", &self.0.is_enabled()).finish()
    }
}

impl Compression {
    /// Begins with a response's header, which is changed to what will follow: coding, framing, `vary`, and a weak
    /// `etag`. None where nothing is to be done with the body.
    pub fn begin(
        codings: &[Coding],
        request: &RequestHeader,
        response: &mut ResponseHeader,
    ) -> pingora::Result<Option<Box<Self>>> {
        if codings.is_empty() || is_exempt(request, response) {
            return Ok(None);
        }
        let mut context = ResponseCompressionCtx::new(0, false, false);
        // Without a choice it says by `vary` that another client might have got something else, and leaves it at that.
        let chosen = choose(codings, &request.headers);
        let algorithm = algorithm(chosen.or(codings.first().copied()).unwrap_or(Coding::Gzip));
        context.adjust_algorithm_level(algorithm, LEVEL);
        if chosen.is_some() {
            let mut asked = RequestHeader::build_no_case("GET", b"/", Some(1))?;
            asked.insert_header(ACCEPT_ENCODING, algorithm.as_str())?;
            context.request_filter(&asked);
        }
        context.response_header_filter(response, false);
        Ok(context.is_enabled().then(|| Box::new(Self(context))))
    }

    /// Compresses a piece of the body.
    pub fn piece(&mut self, body: &mut Option<Bytes>, end: bool) {
        if let Some(compressed) = self.0.response_body_filter(body.as_ref(), end) {
            *body = Some(compressed);
        }
    }
}

/// Brotli is not among them: Pingora's encoder flushes at the end, and does not finish, which strict decoders refuse.
const fn algorithm(coding: Coding) -> Algorithm {
    match coding {
        Coding::Zstd => Algorithm::Zstd,
        Coding::Gzip => Algorithm::Gzip,
    }
}

const fn name(coding: Coding) -> &'static str {
    match coding {
        Coding::Zstd => "zstd",
        Coding::Gzip => "gzip",
    }
}

/// Returns whether a response must pass as it is: it has no body or a part of one, asks for it, or comes as events,
/// which would wait in the encoder.
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
        let all = [Coding::Zstd, Coding::Gzip];
        for (accepted, expected) in [
            ("gzip, deflate, br, zstd", Some(Coding::Zstd)),
            ("gzip;q=0.1, br", Some(Coding::Gzip)),
            ("GZIP;q=1.0", Some(Coding::Gzip)),
            ("*", Some(Coding::Zstd)),
            ("zstd;q=0, *", Some(Coding::Gzip)),
            ("zstd;q=0.0, br, gzip;q=0.000", None),
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
}
