//! What changes in a header when it is passed on: hop-by-hop fields go, forwarding fields come. Free of decisions: each
//! function is a list of edits.

use std::io::Write as _;
use std::net::IpAddr;

use http::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CONNECTION, CONTENT_LENGTH, ETAG, EXPECT, FORWARDED, IF_RANGE, RANGE,
    STRICT_TRANSPORT_SECURITY, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};
use ipnet::IpNet;
use pingora::ErrorType::InternalError;
use pingora::OrErr;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::upstreams::peer::{H1UpgradePolicy, HttpPeer};

use crate::proxy::context::Context;
use crate::proxy::policy;

/// RFC 7239 is the standard; these are what everybody reads.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Whoever has shown a certificate, to us or to a trusted proxy.
pub const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// Names the request in our log, and in those of everybody behind us.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const CONTENT_MD5: HeaderName = HeaderName::from_static("content-md5");
const DIGEST: HeaderName = HeaderName::from_static("digest");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");
const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");

/// Prefix of names that are between the gateway and its operators.
pub const OWN_PREFIX: &str = "x-lockgate-";

/// Returns the client's address: the last one that a trusted peer forwards and no trusted proxy has. Read from
/// `x-forwarded-for`, or where there is none, from `forwarded`.
pub fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let mut client = peer.to_canonical();
    let name = if headers.contains_key(X_FORWARDED_FOR) { X_FORWARDED_FOR } else { FORWARDED };
    let mut lines: Vec<&HeaderValue> = headers.get_all(&name).iter().collect();
    while let Some(line) = lines.pop() {
        for hop in line.as_bytes().rsplit(|byte| *byte == b',') {
            let hop = if name == FORWARDED { forwarded_for(hop) } else { address_in(hop.trim_ascii()) };
            let Some(hop) = hop else { return client };
            client = hop;
            if !is_trusted(client, trusted) {
                return client;
            }
        }
    }
    client
}

fn address_in(text: &[u8]) -> Option<IpAddr> {
    std::str::from_utf8(text).ok()?.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

/// Returns the address in an element of `forwarded` (RFC 7239, section 6); none where it hides, as it may.
fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    let value = element.split(|byte| *byte == b';').find_map(|pair| {
        let (name, value) = pair.trim_ascii().split_at_checked(4)?;
        name.eq_ignore_ascii_case(b"for=").then_some(value)
    })?;
    let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    match value.strip_prefix(b"[") {
        // A port may follow.
        Some(rest) => address_in(rest.split(|byte| *byte == b']').next()?),
        None => address_in(value.split(|byte| *byte == b':').next()?),
    }
}

/// Returns whether an address is a trusted proxy's.
pub fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|net| net.contains(&address))
}

/// Returns an id that a trusted proxy passed on, if it is one that can stand in a log line.
pub fn request_id(headers: &HeaderMap) -> Option<&str> {
    let id = headers.get(X_REQUEST_ID)?.to_str().ok()?;
    (!id.is_empty() && id.len() <= 128 && id.bytes().all(|byte| byte.is_ascii_graphic())).then_some(id)
}

/// Edits a request on its way to an upstream. Pingora has removed what RFC 9110 calls hop-by-hop.
///
/// # Errors
/// A value that is none; the ones here are.
pub fn to_upstream(request: &mut RequestHeader, context: &Context) -> pingora::Result<()> {
    remove_own(request);
    forward_address(request, context)?;
    if !(context.peer_trusted && request.headers.contains_key(X_FORWARDED_PROTO)) {
        request.insert_header(X_FORWARDED_PROTO, HeaderValue::from_static(context.scheme()))?;
    }
    if !(context.peer_trusted && request.headers.contains_key(X_FORWARDED_HOST))
        && let Some(host) = request.headers.get(http::header::HOST).cloned()
    {
        request.insert_header(X_FORWARDED_HOST, host)?;
    }
    name(request, context)?;
    frame(request, context)
}

/// Edits a request on its way to a middleware. Who the client is, an upstream is told behind it, once.
///
/// # Errors
/// A value that is none; the ones here are.
pub fn to_middleware(request: &mut RequestHeader, context: &Context) -> pingora::Result<()> {
    remove_own(request);
    name(request, context)?;
    frame(request, context)
}

fn remove_own(request: &mut RequestHeader) {
    while let Some(own) = request.headers.keys().find(|name| name.as_str().starts_with(OWN_PREFIX)).cloned() {
        request.remove_header(&own);
    }
}

fn name(request: &mut RequestHeader, context: &Context) -> pingora::Result<()> {
    request.insert_header(X_REQUEST_ID, HeaderValue::from_str(&context.id).or_err(InternalError, "a request id")?)?;
    if let Some(trace) = &context.trace {
        trace.tell_target(request);
    }
    Ok(())
}

/// Edits what filters make of a request's and a response's body.
fn frame(request: &mut RequestHeader, context: &Context) -> pingora::Result<()> {
    if let Some(whole) = &context.body.whole {
        request.remove_header(&TRANSFER_ENCODING);
        // Answered by us before the body was read.
        request.remove_header(&EXPECT);
        request.insert_header(CONTENT_LENGTH, whole.len())?;
    } else if context.body.mode != lockgate_host::BodyMode::None {
        // A filter may change the length; without one, Pingora frames by chunks.
        request.remove_header(&CONTENT_LENGTH);
    }
    if context.response_body {
        // Filters act on what the resource is, not on a part or a compressed form of it.
        request.insert_header(ACCEPT_ENCODING, "identity")?;
        request.remove_header(&RANGE);
        request.remove_header(&IF_RANGE);
    }
    policy::redirect_to_target(request, context)
}

/// Says whose request it is, behind what trusted proxies say of those before.
fn forward_address(request: &mut RequestHeader, context: &Context) -> pingora::Result<()> {
    if !context.peer_trusted {
        request.remove_header(&FORWARDED);
        request.remove_header(&X_FORWARDED_FOR);
    }
    // None on a Unix socket: who is there has said what there is to say.
    let Some(peer) = context.peer else { return Ok(()) };
    let address = peer.ip().to_canonical();
    if request.headers.contains_key(FORWARDED) {
        let node = match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("\"[{address}]\""),
        };
        request.append_header(FORWARDED, format!("for={node};proto={}", context.scheme()))?;
    }
    request.append_header(X_FORWARDED_FOR, value_of(address)?).map(drop)
}

/// Returns an address as a value, without a text in between.
fn value_of(address: IpAddr) -> pingora::Result<HeaderValue> {
    // As long as the longest address of version 6.
    let mut text = [0_u8; 46];
    let room = text.len();
    let mut rest = &mut text[..];
    write!(rest, "{address}").or_err(InternalError, "an address that is too long")?;
    let length = room - rest.len();
    HeaderValue::from_bytes(&text[..length]).or_err(InternalError, "an address that is no value")
}

/// Removes what belongs to the connection to the upstream: RFC 9110, section 7.6.1. Pingora does so for requests only.
pub fn strip_hop_by_hop(response: &mut ResponseHeader) {
    let upgrade = response.status == StatusCode::SWITCHING_PROTOCOLS;
    if response.headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = response
            .headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
            .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
            .filter(|name| !FRAMING.contains(name))
            .collect();
        for name in &named {
            if !(upgrade && name == UPGRADE) {
                response.remove_header(name);
            }
        }
        if !upgrade {
            response.remove_header(&CONNECTION);
        }
    }
    // Most responses have none of them, and to look at each name once is faster than to look for each of these.
    if response.headers.keys().any(is_of_connection) {
        for name in [KEEP_ALIVE, PROXY_CONNECTION, TE, TRAILER] {
            response.remove_header(&name);
        }
        if !upgrade {
            response.remove_header(&UPGRADE);
        }
    }
    // The version, too, is the connection's: what goes to the client is ours.
    if response.version < Version::HTTP_11 {
        response.set_version(Version::HTTP_11);
    }
}

/// Says whether a request's upgrade is passed on to an endpoint. Where it is not, what asks for it goes no further.
pub fn allow_upgrade(peer: &mut HttpPeer, context: &Context) {
    let options = &mut peer.options;
    options.http_upstream_request_policy.h1_upgrade = match context.upgrade {
        true => H1UpgradePolicy::Preserve,
        false => H1UpgradePolicy::Deny,
    };
    if context.upgrade {
        // It is the tunnel's as well, and nothing can change it later.
        options.read_timeout = options.read_timeout.max(Some(context.snapshot.limits.tunnel_idle_timeout));
    }
}

/// Tells browsers to come by HTTPS only, where the listener's operator wants that.
///
/// # Errors
/// A value that is none; the one here is.
pub fn ask_for_https(response: &mut ResponseHeader, context: &Context) -> pingora::Result<()> {
    match context.arrival.as_ref().and_then(|arrival| arrival.listening.hsts.as_ref()) {
        Some(value) => response.insert_header(STRICT_TRANSPORT_SECURITY, value.clone()),
        None => Ok(()),
    }
}

fn is_of_connection(name: &HeaderName) -> bool {
    // Names that `http` knows are compared by number.
    matches!(*name, TE | TRAILER | UPGRADE) || *name == KEEP_ALIVE || *name == PROXY_CONNECTION
}

/// Named in `connection` or not, Pingora needs these to read the body.
const FRAMING: [HeaderName; 2] = [TRANSFER_ENCODING, CONTENT_LENGTH];

/// Edits the header of a response whose body filters may change: its length is open, and what described the old bytes
/// describes nothing.
///
/// # Errors
/// A value that is none; the ones here are.
pub fn open_length(response: &mut ResponseHeader, head: bool) -> pingora::Result<()> {
    for name in [CONTENT_LENGTH, ACCEPT_RANGES, CONTENT_MD5, DIGEST, CONTENT_DIGEST, REPR_DIGEST] {
        response.remove_header(&name);
    }
    let strong = response.headers.get(ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/"));
    if let Some(tag) = strong {
        let weak = [b"W/", tag.as_bytes()].concat();
        response.insert_header(ETAG, weak)?;
    }
    let bodiless = head || matches!(response.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if response.version == Version::HTTP_11 && !bodiless {
        response.insert_header(TRANSFER_ENCODING, "chunked")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trusted() -> Vec<IpNet> {
        vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()]
    }

    fn client(peer: &str, forwarded: &[&'static str]) -> String {
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append(X_FORWARDED_FOR, HeaderValue::from_static(line));
        }
        client_address(peer.parse().unwrap(), &headers, &trusted()).to_string()
    }

    #[test]
    fn the_standard_header_is_read_where_the_usual_one_is_missing() {
        let client = |forwarded: &'static str| {
            let headers = HeaderMap::from_iter([(FORWARDED, HeaderValue::from_static(forwarded))]);
            client_address("10.0.0.1".parse().unwrap(), &headers, &trusted()).to_string()
        };
        assert_eq!(client("for=198.51.100.1, For=192.0.2.1;proto=https"), "192.0.2.1");
        assert_eq!(client("proto=http;for=\"[2001:470::9]:4711\", for=\"10.0.0.7:80\""), "2001:470::9");
        assert_eq!(client("for=192.0.2.1, for=_hidden"), "10.0.0.1");
        assert_eq!(client("for=192.0.2.1, for=unknown, for=10.0.0.9"), "10.0.0.9");
    }

    #[test]
    fn behind_a_trusted_proxy_the_last_stranger_counts() {
        assert_eq!(client("10.0.0.1", &["198.51.100.1, 192.0.2.1"]), "192.0.2.1");
        assert_eq!(client("10.0.0.1", &["198.51.100.1", "192.0.2.1, 10.9.9.9"]), "192.0.2.1");
    }

    #[test]
    fn trusted_hops_are_walked_back_to_the_first_stranger() {
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(client("::ffff:10.0.0.1", &["192.0.2.1"]), "192.0.2.1");
        assert_eq!(client("10.0.0.1", &["10.0.0.3, 10.0.0.2"]), "10.0.0.3");
        assert_eq!(client("10.0.0.1", &["192.0.2.1, garbage"]), "10.0.0.1");
        assert_eq!(client("2001:db8::1", &["2001:db8::2, 2001:470::9"]), "2001:470::9");
    }

    #[test]
    fn hop_by_hop_fields_of_a_response_go_and_the_rest_stays() {
        let mut response = ResponseHeader::build(200, None).unwrap();
        for (name, value) in [
            ("connection", "keep-alive, x-hop"),
            ("keep-alive", "timeout=5"),
            ("x-hop", "1"),
            ("x-stays", "1"),
            ("content-length", "3"),
            ("upgrade", "h2c"),
        ] {
            response.append_header(name, value).unwrap();
        }
        strip_hop_by_hop(&mut response);
        let mut names: Vec<_> = response.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-length", "x-stays"]);
    }

    #[test]
    fn an_id_that_cannot_stand_in_a_log_line_is_not_taken_over() {
        let id = |value: &'static str| {
            let headers: HeaderMap = [(X_REQUEST_ID, HeaderValue::from_static(value))].into_iter().collect();
            request_id(&headers).map(str::to_owned)
        };
        assert_eq!(id("abc-1").as_deref(), Some("abc-1"));
        assert_eq!(id("a b"), None);
        assert_eq!(id(""), None);
    }
}
