//! Whether a request may leave: by its scheme, host and port, its method, and, where the host is written as one, its
//! address. The addresses of names are checked when they are resolved, in [`super::connections`].
//!
//! Grants add up: what one of them lets through, no other takes away.

use std::sync::Arc;

use http::Uri;
use http::uri::Scheme;
use ipnet::IpNet;
use wasmtime_wasi_http::WasiBody;

use super::connections::{Connections, Pools, Prohibited};
use super::upstreams::DOMAIN;
use crate::error::{CallError, CallErrorKind};
use crate::grants::{OutboundGrant, UpstreamGrant, bare};
use crate::spec::Grants;

/// Where a guest may go, and by which connections. The places that name a host most closely come first: what else covers
/// it has been added to them.
#[derive(Clone)]
pub(crate) struct Access {
    places: Arc<[Place]>,
    upstreams: Arc<[UpstreamGrant]>,
}

/// How a request may go.
pub(crate) enum Way {
    /// To whoever has the host.
    Connections(Arc<Connections>),
    /// To an upstream of the gateway's.
    Upstream(String),
}

/// A place that a grant names, with all that grants say of it.
struct Place {
    to: OutboundGrant,
    /// Of methods that a grant names.
    methods: Vec<(String, Arc<Connections>)>,
    /// Of all others; none where no grant is for all methods.
    others: Option<Arc<Connections>>,
}

impl Access {
    /// Returns what `grants` give; none where there is none.
    pub(crate) fn new(grants: &Grants, pools: &Pools) -> Option<Self> {
        let outbound = &grants.outbound;
        let mut places: Vec<_> = outbound.iter().map(|grant| Place::new(grant, outbound, pools)).collect();
        places.sort_by_key(|place| std::cmp::Reverse(place.to.closeness()));
        grants.may_send().then(|| Self { places: places.into(), upstreams: grants.upstreams.as_slice().into() })
    }

    fn place(&self, tls: bool, host: &str, port: u16) -> Option<&Place> {
        self.places.iter().find(|place| place.to.covers(tls, host, port))
    }
}

impl Place {
    fn new(to: &OutboundGrant, grants: &[OutboundGrant], pools: &Pools) -> Self {
        // Wildcards that cover the same host lie within each other, so whatever covers a host of this place, and is not
        // closer, covers the place.
        let covering: Vec<_> = grants.iter().filter(|grant| grant.contains(to)).collect();
        let connections = |method: Option<&str>| {
            let granting = covering.iter().filter(|grant| match method {
                Some(method) => grant.allows(method),
                None => grant.methods.is_empty(),
            });
            let mut granting = granting.peekable();
            granting.peek()?;
            let mut addresses: Vec<IpNet> = granting.flat_map(|grant| grant.allowed_addresses()).collect();
            addresses.sort_unstable();
            addresses.dedup();
            Some(pools.get(addresses))
        };
        let mut named: Vec<&String> = covering.iter().flat_map(|grant| &grant.methods).collect();
        named.sort_unstable();
        named.dedup();
        let methods = named.into_iter().filter_map(|method| Some((method.clone(), connections(Some(method))?)));
        Self { to: to.clone(), methods: methods.collect(), others: connections(None) }
    }

    fn connections(&self, method: &str) -> Option<&Arc<Connections>> {
        let named = self.methods.iter().find(|(named, _)| named == method).map(|(_, connections)| connections);
        named.or(self.others.as_ref())
    }
}

/// Checks a request, and returns the way that it may go.
///
/// # Errors
///
/// No grant covers it: of what kind the refusal is, and what is to be said about it.
pub(crate) fn check(access: Option<&Access>, request: &http::Request<WasiBody>) -> Result<Way, CallError> {
    let uri = request.uri();
    let tls = uri.scheme() == Some(&Scheme::HTTPS);
    let host = bare(uri.host().unwrap_or_default());
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let method = request.method().as_str();
    let upstream = host.len().checked_sub(DOMAIN.len()).and_then(|at| host.split_at_checked(at));
    if let Some((name, domain)) = upstream
        && domain.eq_ignore_ascii_case(DOMAIN)
        && !tls
        && port == 80
    {
        return check_upstream(access, name, method, uri);
    }
    let Some(place) = access.and_then(|access| access.place(tls, host, port)) else {
        let message = format!("an outbound request to `{}` was denied: no grant covers it", shown(uri));
        return Err(CallError::new(CallErrorKind::Denied, message));
    };
    let Some(connections) = place.connections(method) else {
        return Err(refused_method(uri, method, place.methods.iter().map(|(method, _)| method.as_str())));
    };
    connections.check(host).map_err(|prohibited| refused_address(&shown(uri), &prohibited))?;
    Ok(Way::Connections(Arc::clone(connections)))
}

fn check_upstream(access: Option<&Access>, name: &str, method: &str, uri: &Uri) -> Result<Way, CallError> {
    let granted = || {
        let grants = access.map_or(&[][..], |access| &access.upstreams);
        grants.iter().filter(|grant| grant.upstream.eq_ignore_ascii_case(name))
    };
    if granted().next().is_none() {
        let message = format!("an outbound request to the upstream `{name}` was denied: no grant covers it");
        return Err(CallError::new(CallErrorKind::Denied, message));
    }
    match granted().find(|grant| grant.allows(method)) {
        Some(grant) => Ok(Way::Upstream(grant.upstream.clone())),
        None => Err(refused_method(uri, method, granted().flat_map(|grant| &grant.methods).map(String::as_str))),
    }
}

fn refused_method<'a>(uri: &Uri, method: &str, granted: impl Iterator<Item = &'a str>) -> CallError {
    let (to, granted) = (shown(uri), granted.collect::<Vec<_>>().join(", "));
    let message =
        format!("an outbound request to `{to}` was denied: its method is {method}, and the grant is for {granted}");
    CallError::new(CallErrorKind::DeniedMethod, message)
}

/// Returns where a request goes, as a grant would have it.
pub(super) fn shown(uri: &Uri) -> String {
    let tls = uri.scheme() == Some(&Scheme::HTTPS);
    let (scheme, usual) = if tls { ("https", 443) } else { ("http", 80) };
    format!("{scheme}://{}:{}", uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(usual))
}

/// Returns the refusal of an address.
pub(super) fn refused_address(to: &str, prohibited: &Prohibited) -> CallError {
    let message = format!("an outbound request to `{to}` was denied: {prohibited}");
    CallError::new(CallErrorKind::DeniedAddress, message)
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Empty};

    use super::*;

    fn refusal(grants: &[OutboundGrant], method: &str, uri: &str) -> Result<(), (CallErrorKind, String)> {
        let upstreams = vec![UpstreamGrant { upstream: "Users".to_owned(), methods: vec!["GET".to_owned()] }];
        let grants = Grants { outbound: grants.to_vec(), upstreams, ..Grants::default() };
        let access = Access::new(&grants, &Pools::default());
        let body: WasiBody = Empty::new().map_err(|never| match never {}).boxed_unsync();
        let request = http::Request::builder().method(method).uri(uri).body(body).unwrap();
        check(access.as_ref(), &request).map(drop).map_err(|refused| (refused.kind, refused.message))
    }

    fn grant(host: &str, methods: &[&str], addresses: &[&str]) -> OutboundGrant {
        OutboundGrant {
            methods: methods.iter().map(|method| (*method).to_owned()).collect(),
            addresses: addresses.iter().map(|network| network.parse().unwrap()).collect(),
            ..OutboundGrant::new(false, host, 80)
        }
    }

    #[tokio::test]
    async fn every_refusal_has_a_kind_and_says_why() {
        let grants = [grant("*.example.com", &["GET", "HEAD"], &[]), grant("10.0.0.1", &[], &[])];
        for (method, uri, expected) in [
            ("GET", "http://a.example.com/", Ok(())),
            ("GET", "http://10.0.0.1/", Ok(())),
            (
                "GET",
                "http://example.com/",
                Err((CallErrorKind::Denied, "to `http://example.com:80` was denied: no grant covers it")),
            ),
            ("GET", "http://users.upstream/a", Ok(())),
            ("GET", "http://USERS.upstream:80/a", Ok(())),
            ("POST", "http://users.upstream/a", Err((CallErrorKind::DeniedMethod, "the grant is for GET"))),
            ("GET", "http://others.upstream/a", Err((CallErrorKind::Denied, "no grant covers it"))),
            ("GET", "https://users.upstream/a", Err((CallErrorKind::Denied, "no grant covers it"))),
            ("GET", "http://users.upstream:81/a", Err((CallErrorKind::Denied, "no grant covers it"))),
            ("GET", "http://upstream/a", Err((CallErrorKind::Denied, "no grant covers it"))),
            ("GET", "https://a.example.com/", Err((CallErrorKind::Denied, "no grant covers it"))),
            ("GET", "http://10.0.0.2/", Err((CallErrorKind::Denied, "no grant covers it"))),
            (
                "POST",
                "http://a.example.com/",
                Err((CallErrorKind::DeniedMethod, "its method is POST, and the grant is for GET, HEAD")),
            ),
        ] {
            match (refusal(&grants, method, uri), expected) {
                (Ok(()), Ok(())) => {}
                (Err((kind, message)), Err((expected, says))) => {
                    assert_eq!(kind, expected, "{method} {uri}");
                    assert!(message.ends_with(says), "{message}");
                }
                (came, expected) => panic!("{method} {uri}: {came:?}, not {expected:?}"),
            }
        }
    }

    #[tokio::test]
    async fn grants_add_up() {
        let wide = grant("*.example.com", &["GET"], &["10.0.0.0/8"]);
        let close = grant("a.example.com", &["GET", "POST"], &["127.0.0.1/32"]);
        let any = grant("b.example.com", &[], &[]);
        let pools = Pools::default();
        let grants = Grants { outbound: vec![wide, close, any], ..Grants::default() };
        let access = Access::new(&grants, &pools).unwrap();
        let by = |method: &str, host: &str| {
            let body: WasiBody = Empty::new().map_err(|never| match never {}).boxed_unsync();
            let uri = format!("http://{host}/");
            let request = http::Request::builder().method(method).uri(uri).body(body).unwrap();
            check(Some(&access), &request).map_err(|refused| refused.kind)
        };
        let reaching = |addresses: &[&str]| pools.get(addresses.iter().map(|text| text.parse().unwrap()).collect());
        for (method, host, expected) in [
            ("GET", "a.example.com", Ok(&["10.0.0.0/8", "127.0.0.1/32"][..])),
            ("POST", "a.example.com", Ok(&["127.0.0.1/32"])),
            ("PUT", "a.example.com", Err(CallErrorKind::DeniedMethod)),
            ("GET", "b.example.com", Ok(&["10.0.0.0/8"])),
            ("PUT", "b.example.com", Ok(&[])),
            ("GET", "c.example.com", Ok(&["10.0.0.0/8"])),
            ("POST", "c.example.com", Err(CallErrorKind::DeniedMethod)),
            ("GET", "example.com", Err(CallErrorKind::Denied)),
        ] {
            match (by(method, host), expected) {
                (Ok(Way::Connections(connections)), Ok(addresses)) => {
                    assert!(Arc::ptr_eq(&connections, &reaching(addresses)), "{method} {host}");
                }
                (came, expected) => assert_eq!(came.err(), expected.err(), "{method} {host}"),
            }
        }
    }
}
