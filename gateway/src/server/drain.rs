//! Ends the process without ending a request. A *drain* lets what is in flight finish, and is over as soon as nothing is,
//! or when its deadline has passed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::App;
use crate::metrics::Metrics;
use crate::proxy::arrival::{Cut, Tunnels};

/// How long an idle connection is left to its client after a stop: a request that is on its way at this moment is still
/// answered.
const LINGER_ON_STOP: Duration = Duration::from_millis(250);

/// The same after a hand-over. Here nobody waits for the end of this process, and a client that reuses a connection of
/// its pool within this time does not find it closed under its feet.
const LINGER_ON_HAND_OVER: Duration = Duration::from_secs(5);

/// How long tunnels that are ended have to tell their upstreams and leave their log lines.
const CUT_MAX: Duration = Duration::from_secs(1);

/// Counts the open connections, in all and from each address.
#[derive(Debug)]
pub struct Connections {
    open: AtomicUsize,
    /// Held for a look-up, once when a connection is made and once when it is gone.
    by_address: Mutex<HashMap<IpAddr, u32>>,
    changed: watch::Sender<()>,
    metrics: Arc<Metrics>,
}

/// An open connection; closed on drop.
#[derive(Debug)]
pub(super) struct ConnectionGuard {
    connections: Arc<Connections>,
    /// Where it is counted as well.
    address: Option<IpAddr>,
}

impl ConnectionGuard {
    /// Counts the connection as one from an address, unless `max` are open from there.
    pub(super) fn count_from(&mut self, address: IpAddr, max: u32) -> Result<(), Cut> {
        let address = counted_as(address);
        let mut by_address = self.connections.by_address.lock();
        let open = by_address.entry(address).or_default();
        if *open >= max {
            return Err(Cut::ConnectionsPerAddress);
        }
        *open += 1;
        self.address = Some(address);
        Ok(())
    }
}

/// Returns what an address is counted as: an IPv6 address as its network, since every client has a whole one.
fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            [a, b, c, d, 0, 0, 0, 0].into()
        }
    }
}

impl Connections {
    /// Returns a count of none.
    pub(super) fn new(metrics: &Arc<Metrics>) -> Self {
        Self {
            open: AtomicUsize::new(0),
            by_address: Mutex::default(),
            changed: watch::Sender::new(()),
            metrics: metrics.clone(),
        }
    }

    /// Counts a connection, until the guard is dropped.
    pub(super) fn opened(self: &Arc<Self>) -> ConnectionGuard {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.metrics.connections_accepted.inc();
        self.metrics.connections.inc();
        ConnectionGuard { connections: self.clone(), address: None }
    }

    /// Returns how many are open.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Waits until none is open.
    pub(super) async fn none(&self) {
        let mut changed = self.changed.subscribe();
        while self.open() > 0 {
            // The sender lives as long as `self`.
            let _ = changed.changed().await;
        }
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let Self { connections, address } = self;
        if let Some(address) = address {
            let mut by_address = connections.by_address.lock();
            if let Entry::Occupied(mut open) = by_address.entry(*address) {
                *open.get_mut() -= 1;
                if *open.get() == 0 {
                    open.remove();
                }
            }
        }
        connections.metrics.connections.dec();
        // Only the last one wakes: a drain waits for none, and an ordinary close costs no more than the count.
        if connections.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            connections.changed.send_replace(());
        }
    }
}

/// Where the process is in its life. Read by `/readyz`.
#[derive(Debug, Default)]
pub struct Phase {
    draining: AtomicBool,
}

impl Phase {
    /// Returns whether new requests are welcome.
    pub fn is_serving(&self) -> bool {
        !self.draining.load(Ordering::Acquire)
    }

    /// From here on load balancers are told to send requests elsewhere.
    pub(super) fn begin_drain(&self) {
        self.draining.store(true, Ordering::Release);
    }
}

/// Why the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Somebody asked for it.
    Stop,
    /// Another process has the sockets.
    HandedOver,
}

/// The two steps in which connections learn of the end.
#[derive(Debug)]
pub(super) struct Shutdown {
    /// Requests are answered still, each as its connection's last.
    announced: watch::Sender<bool>,
    /// Connections without a request are closed.
    closing: watch::Sender<bool>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { announced: watch::Sender::new(false), closing: watch::Sender::new(false) }
    }
}

impl Shutdown {
    /// Returns what turns true with the first step.
    pub(super) fn announced(&self) -> watch::Receiver<bool> {
        self.announced.subscribe()
    }

    /// Returns what turns true with the second step.
    pub(super) fn closing(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }
}

/// How long a drain waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    /// For requests.
    pub(super) requests: Duration,
    /// For connections that became tunnels.
    pub(super) tunnels: Duration,
}

/// Waits until no connection is open, for at most the longer of two deadlines. No connection is accepted any more when
/// this is called. Returns how many were left.
pub(super) async fn drain(
    ending: Ending,
    app: &Arc<App>,
    connections: &Connections,
    tunnels: &Tunnels,
    shutdown: &Shutdown,
    deadlines: Deadlines,
) -> usize {
    use pingora::apps::HttpServerApp as _;

    let began = Instant::now();
    // HTTP/2 clients get a GOAWAY, and each HTTP/1 response says that it is the connection's last.
    shutdown.announced.send_replace(true);
    info!(connections = connections.open(), deadline_ms = millis(deadlines.requests), "draining");
    let linger = match ending {
        Ending::Stop => LINGER_ON_STOP,
        Ending::HandedOver => LINGER_ON_HAND_OVER,
    };
    let (end, tunnels_end) = (began + deadlines.requests, began + deadlines.tunnels);
    let requests = async {
        // A timeout shows in what is left.
        let lingered = tokio::time::timeout_at(end.min(began + linger), connections.none()).await;
        if lingered.is_err() {
            // Closes the connections that wait for a request; those with one under way go on.
            shutdown.closing.send_replace(true);
            app.http_cleanup().await;
            let _ = tokio::time::timeout_at(end, connections.none()).await;
        }
        // Requests have had their time. Tunnels may go on, and nothing else is waited for.
        let _ = tokio::time::timeout_at(tunnels_end + CUT_MAX, tunnels.none()).await;
    };
    let cut_tunnels = async {
        tokio::time::sleep_until(tunnels_end).await;
        let cut = tunnels.end();
        if cut > 0 {
            warn!(tunnels = cut, "the drain's deadline for tunnels passed, ending them");
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = connections.none() => {}
        () = requests => {}
        () = cut_tunnels => {}
    }
    let left = connections.open();
    let took_ms = millis(began.elapsed());
    if left == 0 {
        info!(took_ms, "drained");
    } else {
        warn!(connections = left, took_ms, "the drain's deadline passed, closing what is left");
    }
    left
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_connections_and_no_more() {
        let connections = Arc::new(Connections::new(&Metrics::new().unwrap()));
        let open = |address: &str| {
            let mut guard = connections.opened();
            guard.count_from(address.parse().unwrap(), 2).map(|()| guard)
        };
        let first = open("192.0.2.1").unwrap();
        let second = open("::ffff:192.0.2.1").unwrap();
        assert_eq!(open("192.0.2.1").unwrap_err(), Cut::ConnectionsPerAddress);
        assert!(open("192.0.2.2").is_ok());
        drop(first);
        assert!(open("192.0.2.1").is_ok());
        // All of a network of 64 bits is one client's.
        let networks = [open("2001:db8::1").unwrap(), open("2001:db8:0:0:ffff::2").unwrap()];
        assert!(open("2001:db8::3").is_err());
        drop(networks);
        drop(second);
        assert!(connections.by_address.lock().is_empty());
    }

    #[tokio::test]
    async fn waiting_for_no_connection_ends_with_the_last_guard() {
        let connections = Arc::new(Connections::new(&Metrics::new().unwrap()));
        connections.none().await;
        let first = connections.opened();
        let second = connections.opened();
        let none = tokio::spawn({
            let connections = connections.clone();
            async move { connections.none().await }
        });
        drop(first);
        tokio::task::yield_now().await;
        assert!(!none.is_finished());
        drop(second);
        none.await.unwrap();
        assert_eq!(connections.open(), 0);
    }
}
