//! Finds the addresses of an upstream's names, and when they have to be looked up again. One resolver serves the whole
//! process: it holds a cache, and asks the name servers of the system; `/etc/hosts` counts.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;

/// A name server's word is believed at least this long: some say nothing but zero.
const TTL_MIN: Duration = Duration::from_secs(1);

/// And at most this long, so that a mistake there does not last for days here.
const TTL_MAX: Duration = Duration::from_secs(300);

/// How soon a name that could not be resolved is tried again.
pub const RETRY: Duration = Duration::from_secs(5);

/// How long the addresses of the system's own resolver hold, which says nothing of it.
const TTL_UNKNOWN: Duration = Duration::from_secs(30);

/// Resolves names.
#[derive(Clone, Debug)]
pub struct Resolver(Option<TokioResolver>);

impl Resolver {
    /// Returns a resolver that asks whom the system asks. Where that cannot be found out (a container without
    /// `/etc/resolv.conf`), the system itself is asked, which does not say how long its answers hold.
    pub fn new() -> Self {
        let built = TokioResolver::builder_tokio().and_then(|builder| builder.build());
        Self(built.inspect_err(|error| tracing::info!(%error, "the system's name servers cannot be found out")).ok())
    }

    /// Returns a name's addresses, and how long they hold.
    ///
    /// # Errors
    ///
    /// Why there are none, in words.
    pub async fn lookup(&self, name: &str) -> Result<(Vec<IpAddr>, Duration), String> {
        let (addresses, ttl) = match &self.0 {
            Some(resolver) => {
                let found = resolver.lookup_ip(name).await.map_err(|error| error.to_string())?;
                let ttl = found.valid_until().saturating_duration_since(Instant::now());
                (found.iter().collect::<Vec<IpAddr>>(), ttl.clamp(TTL_MIN, TTL_MAX))
            }
            None => {
                let found = tokio::net::lookup_host((name, 0)).await.map_err(|error| error.to_string())?;
                (found.map(|address| address.ip()).collect(), TTL_UNKNOWN)
            }
        };
        if addresses.is_empty() { Err("it has no address".to_owned()) } else { Ok((addresses, ttl)) }
    }
}

impl Default for Resolver {
    fn default() -> Self {
        Self::new()
    }
}
