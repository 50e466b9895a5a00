//! What happens to a request before its first filter: who asks, for what, which route, which tracks.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HOST, LOCATION, UPGRADE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use lockgate_config::model::RequestLimits;
use lockgate_host::{Exchange, Response};
use pingora::http::RequestHeader;
use pingora::proxy::Session;

use crate::control::snapshot::Target;
use crate::proxy::arrival::Arrival;
use crate::proxy::body::declared_length;
use crate::proxy::chain::Chain;
use crate::proxy::context::Context;
use crate::proxy::fault::Fault;
use crate::proxy::forward::{self, X_FORWARDED_CLIENT_CERT};
use crate::proxy::lend;
use crate::proxy::path;
use crate::proxy::policy::cors;
use crate::proxy::route::Found;
use crate::proxy::shadow::Captures;
use crate::proxy::split::{Attributes, Why};
use crate::track::Track;

/// Why a request goes no further, and what the client should know beside it.
#[derive(Debug)]
pub struct Refused {
    /// The fault.
    pub fault: Fault,
    /// Further headers of the answer.
    pub headers: HeaderMap,
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Self {
        Self { fault, headers: HeaderMap::new() }
    }
}

/// Finds out who asks, and names the request.
pub fn identify(session: &mut Session, context: &mut Context) {
    context.arrival = Arrival::of(session);
    let headers = &session.req_header().headers;
    let trusted = &context.snapshot.trusted_proxies;
    let peer = context.arrival.as_ref().and_then(|arrival| arrival.peer);
    // A Unix socket is only there for a proxy in front of us, but it says nothing about who.
    let peer_address = peer.map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.ip().to_canonical());
    let peer_trusted = peer.is_none() || forward::is_trusted(peer_address, trusted);
    let client = if peer_trusted { forward::client_address(peer_address, headers, trusted) } else { peer_address };
    let passed_on = peer_trusted.then(|| forward::request_id(headers)).flatten();
    if let Some(id) = passed_on {
        context.id = id.into();
    }
    context.client = client;
    context.peer = peer;
    context.peer_trusted = peer_trusted;
    show_client_certificate(session, context);
    if let Some(arrival) = &context.arrival {
        arrival.count_request(context.snapshot.limits.requests_per_connection);
    }
}

/// Refuses a header that is longer than the gateway takes. Of HTTP/1, what is far longer has been cut off before.
///
/// # Errors
/// It is.
pub fn bound_header(session: &Session, limits: &RequestLimits) -> Result<(), Fault> {
    let request = session.req_header();
    // With the colon, the space and the end of the line.
    let bytes = |(name, value): (&HeaderName, &HeaderValue)| (name.as_str().len() + value.len() + 4) as u64;
    let total = request.raw_path().len() as u64 + request.headers.iter().map(bytes).sum::<u64>();
    match request.headers.len() > limits.headers as usize || total > limits.header_bytes.0 {
        true => Err(Fault::HeaderTooLarge),
        false => Ok(()),
    }
}

/// Returns whether a request's body may come as slowly as it likes: calls of gRPC go on in both directions.
pub fn may_wait(request: &RequestHeader) -> bool {
    request.headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Returns whether a request asks for nothing but protocols that its route has. Only HTTP/1.1 can ask.
pub fn asks_for_upgrade(session: &Session, allowed: &[String]) -> bool {
    let asked = || session.req_header().headers.get_all(UPGRADE).iter();
    let mut protocols = asked().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    session.is_upgrade_req()
        && protocols.all(|asked| allowed.iter().any(|name| asked.trim_ascii().eq_ignore_ascii_case(name.as_bytes())))
}

/// Says who the client is, by its certificate, where filters and upstreams look for it. A client cannot say so itself.
fn show_client_certificate(session: &mut Session, context: &Context) {
    let identity = context.arrival.as_ref().and_then(|arrival| arrival.tls.as_ref()?.client.as_ref());
    let request = session.req_header_mut();
    match identity {
        // An error means that the value is none, and it is one already.
        Some(identity) => drop(request.insert_header(X_FORWARDED_CLIENT_CERT, identity.header.clone())),
        None if context.peer_trusted => {}
        None => drop(request.remove_header(&X_FORWARDED_CLIENT_CERT)),
    }
}

/// Returns where a request is sent that came in the clear to a listener that serves nothing but by HTTPS.
pub fn redirected_to_https(session: &Session, context: &Context) -> Option<Response> {
    let port = context.arrival.as_ref()?.listening.redirect_to_https?;
    let request = session.req_header();
    let (host, target) = (host_of(request), request.uri.path_and_query().map_or("/", PathAndQuery::as_str));
    let location = match port {
        443 => format!("https://{host}{target}"),
        port => format!("https://{host}:{port}{target}"),
    };
    let mut headers = HeaderMap::with_capacity(1);
    headers.insert(LOCATION, HeaderValue::try_from(location).ok()?);
    // Unlike 301, it keeps method and body.
    Some(Response { status: StatusCode::PERMANENT_REDIRECT, headers, body: Bytes::new() })
}

/// Gives the request's target its normal form, which is what is routed, filtered and forwarded.
///
/// # Errors
/// A target or a host that is none, or that could be read in two ways.
pub fn normalise(session: &mut Session) -> Result<(), Fault> {
    let request = session.req_header_mut();
    let mut hosts = request.headers.get_all(HOST).iter();
    let (host, more) = (hosts.next(), hosts.next());
    if more.is_some() {
        return Err(Fault::BadHost);
    }
    let host = host.map(|host| host.to_str().map_err(|_| Fault::BadHost)).transpose()?;
    match host {
        Some(host) if is_authority(host) => {}
        Some(_) => return Err(Fault::BadHost),
        // HTTP/1.0 knows requests without.
        None if request.version == http::Version::HTTP_11 => return Err(Fault::BadHost),
        None => {}
    }
    let raw = request.raw_path();
    // HTTP/2 names the host beside the target, the absolute form within it; a `host` may say so a second time.
    let named = request.uri.authority().map(|authority| authority.as_str().as_bytes());
    let (named, target) = if raw.first() == Some(&b'/') {
        (named, raw)
    } else {
        let (authority, target) = split_absolute(raw).ok_or(Fault::BadTarget)?;
        (Some(authority), target)
    };
    let unsaid = match (host, named) {
        (Some(host), Some(named)) if !host.as_bytes().eq_ignore_ascii_case(named) => return Err(Fault::BadHost),
        (None, Some(named)) => {
            let named = std::str::from_utf8(named).ok().filter(|named| is_authority(named)).ok_or(Fault::BadHost)?;
            Some(HeaderValue::from_str(named).map_err(|_| Fault::BadHost)?)
        }
        _ => None,
    };
    let normal = path::normalise(target).map_err(|_| Fault::BadTarget)?;
    if request.raw_path() != normal.as_bytes() || request.uri.authority().is_some() {
        let target = PathAndQuery::try_from(normal.into_owned()).map_err(|_| Fault::BadTarget)?;
        request.set_uri(Uri::from(target));
    }
    // From here on the host is in one place, whatever the client speaks (RFC 9113, section 8.3.1).
    if let Some(host) = unsaid {
        request.insert_header(HOST, host).map_err(|_| Fault::BadHost)?;
    }
    lend::forget_capitals(request);
    Ok(())
}

/// Splits a target in absolute form (RFC 9112, section 3.2.2) into its authority, and path and query.
fn split_absolute(target: &[u8]) -> Option<(&[u8], &[u8])> {
    let scheme = [&b"http://"[..], b"https://"]
        .into_iter()
        .find(|scheme| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)))?;
    let rest = target.get(scheme.len()..)?;
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    let (authority, target) = rest.split_at(end);
    Some((authority, if target.is_empty() { b"/" } else { target }))
}

/// Returns whether a text is a host, with or without a port: RFC 3986, section 3.2.2, without user information.
fn is_authority(text: &str) -> bool {
    // Nearly all are a name or an IPv4 address; parsing would copy them.
    let (name, port) = text.split_once(':').unwrap_or((text, "0"));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    if !name.is_empty() && name.bytes().all(plain) && port.parse::<u16>().is_ok() {
        return true;
    }
    !text.is_empty() && !text.contains('@') && text.parse::<http::uri::Authority>().is_ok()
}

/// Sets how long the client may take.
pub fn set_timeouts(session: &mut Session, limits: &RequestLimits) {
    let downstream = session.as_downstream_mut();
    downstream.set_read_timeout(Some(limits.read_timeout));
    downstream.set_write_timeout(Some(limits.write_timeout));
    downstream.set_total_drain_timeout(Some(limits.read_timeout));
    // None: the client asked to close.
    if downstream.get_keepalive().is_some() {
        downstream.set_keepalive(Some(limits.idle_timeout.as_secs().max(1)));
    }
}

/// Finds the request's route, decides all its tracks, and puts together what its filters will see.
///
/// # Errors
/// No route, or a body that is longer than the gateway takes.
pub fn route_and_split(session: &Session, context: &mut Context) -> Result<(), Refused> {
    let request = session.req_header();
    let snapshot = &context.snapshot;
    let find =
        |method: &http::Method| snapshot.router.find(method, host_of(request), request.uri.path(), &request.headers);
    // A browser that asks for permission is answered by the route of what it wants to ask.
    let wanted = cors::asks_for(&request.method, &request.headers).and_then(|method| match find(&method) {
        Found::Route(index) if snapshot.routes.get(index)?.policy.cors.is_some() => Some(index),
        _ => None,
    });
    context.preflight = wanted.is_some();
    let found = wanted.map_or_else(|| find(&request.method), Found::Route);
    let index = match found {
        Found::Route(index) => index,
        Found::Nothing => return Err(Fault::NoRoute.into()),
        Found::MethodNotAllowed(methods) => {
            let allow = methods.iter().map(http::Method::as_str).collect::<Vec<_>>().join(", ");
            let mut refused = Refused::from(Fault::MethodNotAllowed);
            if let Ok(allow) = HeaderValue::try_from(allow) {
                refused.headers.insert(ALLOW, allow);
            }
            return Err(refused);
        }
    };
    let Some(route) = snapshot.routes.get(index) else { return Err(Fault::Internal.into()) };
    context.route = Some(index);
    context.upgrade = asks_for_upgrade(session, &route.upgrades);
    let attributes = Attributes {
        headers: &request.headers,
        client: context.client,
        peer: context.peer.map(|peer| peer.ip()),
        path: request.uri.path(),
        query: request.uri.query(),
    };
    // Every rollout that the request can meet is decided here, once, so that neither a filter nor a retry changes it.
    for (slot, rollout) in (0..).zip(&*route.rollouts) {
        if let Some(rollout) = snapshot.rollouts.get(*rollout) {
            let decision = rollout.split.decide(&attributes);
            if decision.track == Track::Canary && decision.why != Why::Override && route.is_gated(slot) {
                // Nothing is said about either track by it, so nothing is counted for the guard.
                rollout.requests.spare();
                context.tracks.set(slot, Track::Stable);
                continue;
            }
            rollout.requests.record(decision.track);
            context.tracks.set(slot, decision.track);
            if let (Some(counts), Some(key)) = (&rollout.counts, decision.hash)
                && counts.admit(key, context.started)
            {
                context.counted.insert(slot);
            }
        }
    }
    let too_long = match (route.policy.body_max, declared_length(request)) {
        (Some(max), Some(length)) => length > max,
        _ => false,
    };
    enter_chain(context);
    if too_long { Err(Fault::BodyTooLarge.into()) } else { Ok(()) }
}

/// Puts together what the filters of the request's part of the chain will see. What those in front of a middleware left, or
/// chose, is there.
pub fn enter_chain(context: &mut Context) {
    let Some(route) = context.route() else { return };
    let links = route.links(context.part);
    if links.is_empty() {
        return;
    }
    let captures = Captures::sample(route, links, context.tracks, &context.id, context.started);
    let mut chain = Chain::enter(links, context.tracks, captures);
    if context.trace.as_ref().is_some_and(|trace| trace.is_recorded()) {
        chain.note_calls();
    }
    let exchange = context.exchange.is_none().then(|| {
        let names = match &route.target {
            Target::Upstream { names, .. } => Arc::clone(names),
            // There is nothing to choose from.
            Target::Function(_) | Target::Static { .. } | Target::Redirect(_) | Target::Respond(_) => Arc::default(),
        };
        let (id, name) = (context.id.clone(), route.name.clone());
        Box::new(Exchange::new(lend::blank_request(), context.scheme(), context.client, id, name, names))
    });
    context.chain = chain;
    context.exchange = exchange.or_else(|| context.exchange.take());
}

/// Returns the request's host without a port.
fn host_of(request: &RequestHeader) -> &str {
    let authority = request.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    match authority.rfind(':') {
        // The last colon of a bracketed IPv6 address may be its own.
        Some(colon) if !authority[colon..].contains(']') => &authority[..colon],
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(value: &'static str) -> String {
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        request.insert_header(HOST, value).unwrap();
        host_of(&request).to_owned()
    }

    #[test]
    fn a_port_is_no_part_of_the_host() {
        assert_eq!(host("example.com"), "example.com");
        assert_eq!(host("example.com:8080"), "example.com");
        assert_eq!(host("[::1]"), "[::1]");
        assert_eq!(host("[::1]:8080"), "[::1]");
    }

    #[test]
    fn the_absolute_form_is_an_authority_and_a_target() {
        let split = |target: &'static str| split_absolute(target.as_bytes());
        assert_eq!(split("http://a:80/b?c"), Some((&b"a:80"[..], &b"/b?c"[..])));
        assert_eq!(split("HTTPS://a"), Some((&b"a"[..], &b"/"[..])));
        assert_eq!(split("ftp://a/"), None);
        assert_eq!(split("*"), None);
    }

    #[test]
    fn user_information_is_no_host() {
        for host in ["example.com", "example.com:80", "192.0.2.1:65535", "[::1]:80", "a_b", "xn--bcher-kva.example"] {
            assert!(is_authority(host), "{host}");
        }
        assert!(!is_authority("user@example.com"));
        assert!(!is_authority("a b"));
        assert!(!is_authority(""));
    }
}
