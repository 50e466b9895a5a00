//! Connections to other servers. Those to hosts that may have addresses which are not public are kept apart, set by set:
//! one that was opened under a wide grant must not serve a request under a narrow one.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::{Client, Error, ResponseFuture};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use ipnet::IpNet;
use parking_lot::Mutex;
use tower_service::Service;
use wasmtime_wasi_http::WasiBody;

use super::address;

/// Time to connect, TLS included: filters sit in the path of requests, and their deadlines are shorter still.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time that an unused connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Unused connections that are kept to one host.
const IDLE_PER_HOST_MAX: usize = 32;

/// The connections of all guests of a host.
#[derive(Default)]
pub(crate) struct Pools(Mutex<HashMap<Vec<IpNet>, Weak<Connections>>>);

impl Pools {
    /// Returns the connections to public addresses and those of `allowed`. They are shared, and gone with the last grant
    /// that uses them.
    pub(crate) fn get(&self, allowed: Vec<IpNet>) -> Arc<Connections> {
        let mut pools = self.0.lock();
        if let Some(connections) = pools.get(&allowed).and_then(Weak::upgrade) {
            return connections;
        }
        pools.retain(|_, connections| connections.strong_count() > 0);
        let connections = Arc::new(Connections::new(allowed.clone().into()));
        pools.insert(allowed, Arc::downgrade(&connections));
        connections
    }
}

/// Connections to public addresses, and to those of a set.
pub(crate) struct Connections {
    allowed: Arc<[IpNet]>,
    client: Client<HttpsConnector<HttpConnector<Resolver>>, WasiBody>,
}

impl Connections {
    fn new(allowed: Arc<[IpNet]>) -> Self {
        let mut tcp = HttpConnector::new_with_resolver(Resolver { allowed: Arc::clone(&allowed) });
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_nodelay(true);
        let tls =
            HttpsConnectorBuilder::new().with_webpki_roots().https_or_http().enable_all_versions().wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .build(tls);
        Self { allowed, client }
    }

    /// Checks a host that is written as an address: no resolver is asked for that. Names are checked when they are
    /// resolved, for each connection.
    ///
    /// # Errors
    ///
    /// It is not public, and not listed.
    pub(super) fn check(&self, host: &str) -> Result<(), Prohibited> {
        let Ok(address) = host.parse::<IpAddr>() else {
            return Ok(());
        };
        address::check(&self.allowed, address).map_err(|what| Prohibited { host: host.to_owned(), address, what })
    }

    /// Sends a request. The caller has checked it.
    pub(super) fn request(&self, request: http::Request<WasiBody>) -> ResponseFuture {
        self.client.request(request)
    }
}

/// An address that a guest must not reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prohibited {
    host: String,
    address: IpAddr,
    what: &'static str,
}

impl Prohibited {
    /// Returns it, where it is why a request could not be sent.
    pub(super) fn of(error: &Error) -> Option<&Self> {
        find(error)
    }
}

impl fmt::Display for Prohibited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, address, what } = self;
        if *host != address.to_string() {
            write!(f, "`{host}` is at ")?;
        }
        write!(f, "{address}, {what} address, which the grant does not list under `addresses`")
    }
}

impl StdError for Prohibited {}

/// A name that leads nowhere.
#[derive(Debug)]
pub(super) struct Unresolved(io::Error);

impl Unresolved {
    /// Returns whether this is why a request could not be sent.
    pub(super) fn is_why(error: &Error) -> bool {
        find::<Self>(error).is_some()
    }
}

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the name could not be resolved: {}", self.0)
    }
}

impl StdError for Unresolved {}

fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// Resolves names, and hands out only addresses that may be reached. Connections go to just these: nobody asks again, so
/// an answer that changes meanwhile changes nothing.
#[derive(Clone)]
struct Resolver {
    allowed: Arc<[IpNet]>,
}

type Resolved = Result<std::vec::IntoIter<SocketAddr>, Box<dyn StdError + Send + Sync>>;

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = Box<dyn StdError + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Resolved> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let allowed = Arc::clone(&self.allowed);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await.map_err(Unresolved)?;
            Ok(reachable(&allowed, name.as_str(), found)?.into_iter())
        })
    }
}

/// Returns those of a name's addresses that may be reached.
///
/// # Errors
///
/// None of them may; the first of them, and why.
fn reachable(
    allowed: &[IpNet],
    host: &str,
    found: impl Iterator<Item = SocketAddr>,
) -> Result<Vec<SocketAddr>, Prohibited> {
    let mut prohibited = None;
    let mut reachable = Vec::new();
    for socket in found {
        match address::check(allowed, socket.ip()) {
            Ok(()) => reachable.push(socket),
            Err(what) => {
                prohibited.get_or_insert(Prohibited { host: host.to_owned(), address: socket.ip(), what });
            }
        }
    }
    match prohibited {
        Some(prohibited) if reachable.is_empty() => Err(prohibited),
        Some(_) | None => Ok(reachable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(addresses: &[&str]) -> std::vec::IntoIter<SocketAddr> {
        addresses.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 0)).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn of_an_answer_only_what_may_be_reached_is_connected_to() {
        let reached = |allowed: &[&str], found: &[&str]| {
            let allowed: Vec<IpNet> = allowed.iter().map(|text| text.parse().unwrap()).collect();
            reachable(&allowed, "a.example", answer(found))
                .map(|sockets| sockets.iter().map(|socket| socket.ip().to_string()).collect::<Vec<_>>())
                .map_err(|error| error.to_string())
        };
        assert_eq!(reached(&[], &["1.1.1.1", "10.0.0.1"]), Ok(vec!["1.1.1.1".to_owned()]));
        assert_eq!(
            reached(&[], &["::1", "127.0.0.1"]),
            Err("`a.example` is at ::1, a loopback address, which the grant does not list under `addresses`".to_owned())
        );
        assert_eq!(reached(&["127.0.0.0/8"], &["::1", "127.0.0.1"]), Ok(vec!["127.0.0.1".to_owned()]));
        assert_eq!(reached(&[], &[]), Ok(vec![]), "the connector says that there is none");
    }

    #[test]
    fn connections_are_shared_by_those_who_may_reach_the_same() {
        let pools = Pools::default();
        let local = || vec!["127.0.0.0/8".parse().unwrap()];
        let (public, other, narrow) = (pools.get(Vec::new()), pools.get(local()), pools.get(Vec::new()));
        assert!(Arc::ptr_eq(&public, &narrow));
        assert!(!Arc::ptr_eq(&public, &other));
        drop((public, narrow, other));
        let _private = pools.get(vec!["10.0.0.0/8".parse().unwrap()]);
        assert_eq!(pools.0.lock().len(), 1, "what nobody uses is forgotten");
    }
}
