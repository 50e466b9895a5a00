//! An upstream at run time: its addresses as they were last resolved, and whose turn it is. Names are resolved here, on
//! the control plane's threads; the data plane reads the outcome.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use lockgate_config::model::{self, Host, UpstreamProtocol};
use pingora::upstreams::peer::HttpPeer;

use crate::metrics::{Metrics, UpstreamSeries};

/// Requests that share one HTTP/2 connection to an upstream. Pingora's default is one.
const H2_STREAMS_MAX: usize = 128;

/// A named group of endpoints.
#[derive(Debug)]
pub struct Upstream {
    config: model::Upstream,
    digest: String,
    /// Beside the snapshot, not in it: an address that moves is no new generation.
    addresses: ArcSwap<Vec<SocketAddr>>,
    next: AtomicUsize,
    /// Metric handles.
    pub series: Arc<UpstreamSeries>,
}

impl Upstream {
    /// Returns an upstream whose names are not resolved yet: see [`Self::refresh`].
    pub fn new(config: &model::Upstream, metrics: &Metrics) -> Arc<Self> {
        let literal = config.endpoints.iter().filter_map(|endpoint| match &endpoint.host {
            Host::Address(address) => Some(SocketAddr::new(*address, endpoint.port)),
            Host::Name(_) => None,
        });
        Arc::new(Self {
            digest: digest_of(config),
            addresses: ArcSwap::from_pointee(literal.collect()),
            next: AtomicUsize::new(0),
            series: metrics.upstream(&config.name),
            config: config.clone(),
        })
    }

    /// Returns the name in the configuration.
    pub fn name(&self) -> &Arc<str> {
        &self.config.name
    }

    /// Returns the configuration.
    pub fn config(&self) -> &model::Upstream {
        &self.config
    }

    /// Returns a digest over name and settings: what makes it another version.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Returns the addresses as they were last resolved.
    #[expect(clippy::disallowed_methods, reason = "addresses are beside the snapshot")]
    pub fn addresses(&self) -> Arc<Vec<SocketAddr>> {
        self.addresses.load_full()
    }

    /// Resolves the names again. A name that does not resolve keeps the addresses of the last time.
    pub async fn refresh(&self) {
        if self.config.endpoints.iter().all(|endpoint| matches!(endpoint.host, Host::Address(_))) {
            return;
        }
        let mut addresses = Vec::new();
        for endpoint in &self.config.endpoints {
            match &endpoint.host {
                Host::Address(address) => addresses.push(SocketAddr::new(*address, endpoint.port)),
                Host::Name(name) => match tokio::net::lookup_host((name.as_str(), endpoint.port)).await {
                    Ok(found) => addresses.extend(found),
                    Err(error) => {
                        tracing::warn!(upstream = %self.name(), %name, %error, "name does not resolve; its last addresses stay in use");
                        return;
                    }
                },
            }
        }
        addresses.sort_unstable();
        addresses.dedup();
        if *self.addresses() != addresses {
            self.addresses.store(Arc::new(addresses));
        }
    }

    /// Returns the peer whose turn it is; none where no address is known. One read of a shared pointer and one atomic
    /// addition.
    #[expect(clippy::disallowed_methods, reason = "addresses are beside the snapshot")]
    pub fn next_peer(&self) -> Option<HttpPeer> {
        let addresses = self.addresses.load();
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let address = *addresses.get(turn.checked_rem(addresses.len())?)?;
        // No TLS, so no name to verify.
        let mut peer = HttpPeer::new(address, false, String::new());
        let timeouts = self.config.timeouts;
        peer.options.connection_timeout = Some(timeouts.connect);
        peer.options.total_connection_timeout = Some(timeouts.connect);
        peer.options.read_timeout = Some(timeouts.read);
        peer.options.write_timeout = Some(timeouts.write);
        peer.options.idle_timeout = Some(timeouts.idle);
        if self.config.protocol == UpstreamProtocol::H2c {
            peer.options.set_http_version(2, 2);
            peer.options.max_h2_streams = H2_STREAMS_MAX;
        }
        Some(peer)
    }
}

/// Returns a digest over an upstream's name and settings.
pub fn digest_of(config: &model::Upstream) -> String {
    let settings = format!(
        "{} {:?} {:?} {:?} {} {}",
        config.name, config.endpoints, config.timeouts, config.protocol, config.retries, config.keepalive_connections
    );
    format!("{:032x}", xxhash_rust::xxh3::xxh3_128(settings.as_bytes()))
}
