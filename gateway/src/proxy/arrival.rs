//! How requests arrive: what all requests of a connection have in common. Known when the connection is made, and carried
//! to each of its requests by Pingora, in the place that it keeps for proxies in front.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use pingora::http::ResponseHeader;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::proxy::Session;
use prometheus::{IntCounter, IntGauge};
use tokio::sync::{Notify, watch};

use crate::control::snapshot::Listening;
use crate::tls::Identity;

/// How requests arrive.
#[derive(Debug)]
pub struct Arrival {
    /// The listener's terms, as they were when the connection was accepted.
    pub listening: Arc<Listening>,
    /// Who is at the other end: who a PROXY header names, or the socket's peer; none on a Unix socket.
    pub peer: Option<SocketAddr>,
    /// What TLS says; none in the clear.
    pub tls: Option<Secured>,
    tunnels: Arc<Tunnels>,
    is_tunnel: AtomicBool,
    requests: AtomicU32,
    used_up: Notify,
}

/// What TLS says about a connection.
#[derive(Debug)]
pub struct Secured {
    /// `1.2` or `1.3`.
    pub version: &'static str,
    /// The host that the client asked for in the handshake.
    pub server_name: Option<Box<str>>,
    /// Who the client is, if it has shown a certificate.
    pub client: Option<Identity>,
}

impl Arrival {
    /// Returns what is known of a connection that was made.
    pub fn new(
        listening: Arc<Listening>,
        peer: Option<SocketAddr>,
        tls: Option<Secured>,
        tunnels: Arc<Tunnels>,
    ) -> Self {
        Self {
            listening,
            peer,
            tls,
            tunnels,
            is_tunnel: AtomicBool::new(false),
            requests: AtomicU32::new(0),
            used_up: Notify::new(),
        }
    }

    /// Wraps it up as Pingora carries it: once a connection.
    ///
    /// # Errors
    /// Pingora could not make an empty header.
    pub fn wrap(self: &Arc<Self>) -> pingora::Result<Arc<ProxyDigest>> {
        let unused = Box::new(ResponseHeader::build(200, Some(0))?);
        Ok(Arc::new(ProxyDigest::new(unused, Some(Box::new(Arc::clone(self))))))
    }

    /// Returns how a request arrived; none for one that no listener of ours accepted. One pointer is cloned.
    pub fn of(session: &Session) -> Option<Arc<Self>> {
        let digest = session.as_downstream().digest()?.proxy_digest.as_ref()?;
        digest.user_data.as_ref()?.downcast_ref::<Arc<Self>>().cloned()
    }

    /// Returns the scheme of its requests' addresses.
    pub const fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Counts a request. With the `max`th, the connection is used up.
    pub fn count_request(&self, max: u32) {
        if self.requests.fetch_add(1, Ordering::Relaxed) + 1 == max {
            self.used_up.notify_one();
        }
    }

    /// Waits until the connection has had all its requests.
    pub async fn used_up(&self) {
        self.used_up.notified().await;
    }

    /// The connection becomes a tunnel, until what is returned is dropped.
    pub fn open_tunnel(self: &Arc<Self>) -> Tunnel {
        self.is_tunnel.store(true, Ordering::Release);
        self.tunnels.open.fetch_add(1, Ordering::AcqRel);
        self.tunnels.gauge.inc();
        self.tunnels.opened.inc();
        Tunnel(Arc::clone(self))
    }

    /// Returns whether the connection is a tunnel.
    pub fn is_tunnel(&self) -> bool {
        self.is_tunnel.load(Ordering::Acquire)
    }

    /// Returns what turns true when tunnels are to end.
    pub fn tunnels_over(&self) -> watch::Receiver<bool> {
        self.tunnels.over.subscribe()
    }
}

/// A connection after an upgrade: bytes pass, both ways, and nobody here looks at them.
#[derive(Debug)]
pub struct Tunnel(Arc<Arrival>);

impl Drop for Tunnel {
    fn drop(&mut self) {
        let tunnels = &self.0.tunnels;
        tunnels.gauge.dec();
        if tunnels.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            tunnels.changed.send_replace(());
        }
    }
}

/// All tunnels of the process. A drain gives them a deadline of their own.
#[derive(Debug)]
pub struct Tunnels {
    open: AtomicUsize,
    changed: watch::Sender<()>,
    over: watch::Sender<bool>,
    gauge: IntGauge,
    opened: IntCounter,
    cut: IntCounter,
}

impl Tunnels {
    /// Returns a count of none. `gauge` shows the open ones, `opened` counts all, and `cut` those that were ended.
    pub fn new(gauge: IntGauge, opened: IntCounter, cut: IntCounter) -> Self {
        let (changed, over) = (watch::Sender::new(()), watch::Sender::new(false));
        Self { open: AtomicUsize::new(0), changed, over, gauge, opened, cut }
    }

    /// Waits until none is open.
    pub async fn none(&self) {
        let mut changed = self.changed.subscribe();
        while self.open.load(Ordering::Acquire) > 0 {
            // The sender lives as long as `self`.
            let _ = changed.changed().await;
        }
    }

    /// Ends all of them, and returns how many there were.
    pub fn end(&self) -> usize {
        let open = self.open.load(Ordering::Acquire);
        self.cut.inc_by(open as u64);
        self.over.send_replace(true);
        open
    }
}

macro_rules! cuts {
    ($($(#[$doc:meta])* $name:ident $reason:literal;)*) => {
        /// Why a connection was closed before it had a request, or in the middle of a header: no request was counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Cut {
            $($(#[$doc])* $name,)*
        }

        impl Cut {
            /// All of them, in the order of their discriminants.
            pub const ALL: [Self; [$($reason),*].len()] = [$(Self::$name),*];

            /// Returns the word for metrics.
            pub const fn reason(self) -> &'static str {
                match self { $(Self::$name => $reason,)* }
            }
        }
    };
}

cuts! {
    /// As many connections are open as may be.
    Connections "connections";
    /// As many are open from this address as may be.
    ConnectionsPerAddress "connections_per_address";
    /// A header of the PROXY protocol is asked for, and did not come.
    ProxyHeader "proxy_header";
    /// The same, from somebody who may not send one.
    UntrustedProxy "untrusted_proxy";
    /// A request's header took too long.
    HeaderTimeout "header_timeout";
    /// A request's header is too long.
    HeaderBytes "header_bytes";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_stands_at_its_discriminant() {
        for (index, cut) in Cut::ALL.into_iter().enumerate() {
            assert_eq!(cut as usize, index);
        }
    }
}
