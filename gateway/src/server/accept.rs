//! Accepts connections and sees them through. Each becomes a task of the data plane's runtime that ends with the
//! connection.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use lockgate_config::model::{ListenAddress, RequestLimits};
use pingora::apps::{HttpServerApp as _, ReusedHttpStream, ServerApp as _};
use pingora::protocols::http::ServerSession;
use pingora::protocols::{IO, Stream};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use super::App;
use super::connection::{Connection, Protocol, tls_version};
use super::drain::{ConnectionGuard, Connections, Shutdown};
use super::proxy_protocol;
use super::socket::Socket;
use super::transport::{Raw, Transport};
use crate::control::snapshot::{Listening, SnapshotCell};
use crate::metrics::Metrics;
use crate::proxy::arrival::{Arrival, Cut, Secured, Tunnels};
use crate::proxy::forward;
use crate::tls::{Failure, Identity, Terms};

/// The wait after an accept that failed for want of resources: others need time to give some back.
const BACK_OFF: Duration = Duration::from_millis(100);

/// What accepting needs; cheap to clone, once per connection.
#[derive(Clone)]
pub(super) struct Acceptor(Arc<Inner>);

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Pingora's proxy cannot be shown.
        f.debug_struct("Acceptor").field("connections", &self.0.connections).finish_non_exhaustive()
    }
}

struct Inner {
    app: Arc<App>,
    cell: Arc<SnapshotCell>,
    connections: Arc<Connections>,
    tunnels: Arc<Tunnels>,
    metrics: Arc<Metrics>,
    /// Turns true when a response is to be its connection's last.
    shutdown: watch::Receiver<bool>,
    /// Turns true when connections without a request are to close.
    closing: watch::Receiver<bool>,
    runtime: Handle,
}

impl Acceptor {
    /// Returns an acceptor whose connections are served on `runtime`.
    pub(super) fn new(
        app: Arc<App>,
        cell: Arc<SnapshotCell>,
        connections: Arc<Connections>,
        tunnels: Arc<Tunnels>,
        metrics: Arc<Metrics>,
        shutdown: &Shutdown,
        runtime: Handle,
    ) -> Self {
        let (shutdown, closing) = (shutdown.announced(), shutdown.closing());
        Self(Arc::new(Inner { app, cell, connections, tunnels, metrics, shutdown, closing, runtime }))
    }

    /// Accepts connections until the returned sender is dropped. Their terms are those that the snapshot has for
    /// `address`, as configured, at the moment when they are accepted.
    ///
    /// # Errors
    /// The runtime cannot watch the socket.
    pub(super) fn start(&self, socket: &Socket, address: ListenAddress) -> io::Result<oneshot::Sender<()>> {
        let (stop, stopped) = oneshot::channel();
        let _in_runtime = self.0.runtime.enter();
        let listener = Listener::new(socket)?;
        // One loop, not one for each thread: a connection costs it two system calls, and every further loop would be
        // woken for each of them in vain.
        self.0.runtime.spawn(self.clone().accept(listener, address, stopped));
        Ok(stop)
    }

    async fn accept(self, listener: Listener, address: ListenAddress, mut stopped: oneshot::Receiver<()>) {
        let mut terms = LastTerms { address, known: None };
        loop {
            tokio::select! {
                accepted = listener.accept() => self.accepted(accepted, &mut terms).await,
                _ = &mut stopped => break,
            }
        }
        // Clients whose connections wait in the kernel's queue would see them reset.
        loop {
            tokio::select! {
                biased;
                accepted = listener.accept() => self.accepted(accepted, &mut terms).await,
                () = std::future::ready(()) => break,
            }
        }
    }

    async fn accepted(&self, accepted: io::Result<(Raw, Option<SocketAddr>)>, terms: &mut LastTerms) {
        match accepted {
            Ok((stream, peer)) => {
                let snapshot = self.0.cell.current();
                let Some(listening) = terms.update(snapshot.listening(&terms.address)) else { return };
                if self.0.connections.open() >= snapshot.limits.connections as usize {
                    listening.series.cut(Cut::Connections);
                    return;
                }
                let guard = self.0.connections.opened();
                let fresh = Fresh { stream, peer, listening, guard, limits: snapshot.limits };
                // The only use of who is trusted is at the beginning: the request's snapshot has the rest.
                let trusted = Arc::clone(&snapshot.trusted_proxies);
                drop(snapshot);
                self.0.runtime.spawn(self.clone().see_through(fresh, trusted));
            }
            // The client was faster to give up than we to accept.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                self.0.metrics.accept_errors.inc();
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }

    /// A connection, from its first byte to its last.
    async fn see_through(self, mut fresh: Fresh, trusted: Arc<[IpNet]>) {
        if let Err(error) = fresh.stream.set_nodelay() {
            // The client has gone, most likely; reading will tell.
            debug!(%error, "cannot set TCP_NODELAY");
        }
        if let Err(cut) = fresh.identify(&trusted).await {
            fresh.listening.series.cut(cut);
            debug!(listener = %fresh.listening.address, peer = ?fresh.peer, reason = cut.reason(), "a connection was cut");
            return;
        }
        let Fresh { stream, peer, listening, guard, limits } = fresh;
        let (transport, tls) = match &listening.tls {
            None => (Transport::Plain(stream), None),
            Some(terms) => match self.shake_hands(stream, terms).await {
                Ok(stream) => {
                    listening.series.handshake(None);
                    let secured = secured(&stream);
                    (Transport::Tls(Box::new(stream)), Some(secured))
                }
                Err(failure) => {
                    listening.series.handshake(Some(failure));
                    debug!(listener = %listening.address, ?peer, kind = failure.kind(), "a handshake failed");
                    return;
                }
            },
        };
        let arrival = Arc::new(Arrival::new(listening, peer, tls, Arc::clone(&self.0.tunnels)));
        let Ok(connection) = Connection::new(transport, &limits, arrival, guard) else { return };
        self.serve(connection, limits.requests_per_connection).await;
    }

    async fn shake_hands(&self, stream: Raw, terms: &Terms) -> Result<TlsStream<Raw>, Failure> {
        let mut closing = self.0.closing.clone();
        let handshake = TlsAcceptor::from(Arc::clone(&terms.server)).accept(stream);
        tokio::select! {
            biased;
            made = tokio::time::timeout(terms.handshake_timeout, handshake) => match made {
                Ok(made) => made.map_err(|error| Failure::from(&error)),
                Err(_) => Err(Failure::Timeout),
            },
            _ = closing.wait_for(|&closing| closing) => Err(Failure::Closed),
        }
    }

    async fn serve(self, mut connection: Connection, requests_max: u32) {
        let Inner { app, cell, shutdown, .. } = &*self.0;
        let protocol = match connection.negotiated() {
            Some(negotiated) => Some(negotiated),
            None if connection.arrival().listening.h2c => self.sniff(&mut connection).await,
            None => Some(Protocol::Http1),
        };
        match protocol {
            None => {}
            Some(Protocol::H2) => self.serve_http2(connection).await,
            Some(Protocol::Http1) => {
                let mut session = ServerSession::new_http1(Box::new(connection));
                let idle_timeout = cell.current().limits.idle_timeout;
                let stays = !*shutdown.borrow();
                // Pingora's unit is the second, and none means that the connection closes after the response.
                session.set_keepalive(stays.then(|| idle_timeout.as_secs().max(1)));
                session.set_keepalive_reuses_remaining(Some(requests_max.saturating_sub(1)));
                let mut reused = app.process_new_http(session, shutdown).await;
                while let Some(session) = reused.and_then(next_request) {
                    reused = app.process_new_http(session, shutdown).await;
                }
            }
        }
    }

    /// Serves a connection until it is over. Pingora says goodbye when the process ends; that the connection has had all
    /// its requests is told it in the same way.
    async fn serve_http2(&self, connection: Connection) {
        let Inner { app, shutdown, .. } = &*self.0;
        let arrival = Arc::clone(connection.arrival());
        let mut announced = shutdown.clone();
        let (over, is_over) = watch::channel(false);
        // Nothing is handed back: the connection is over when this returns.
        let mut served = pin!(app.process_new(Box::new(connection), &is_over));
        tokio::select! {
            biased;
            _ = &mut served => return,
            // An error means that the process is about to end.
            _ = announced.wait_for(|&announced| announced) => {}
            () = arrival.used_up() => {}
        }
        over.send_replace(true);
        served.await;
    }

    /// Tells HTTP/2 from HTTP/1. `None`: the client said nothing in time, or left, or the gateway is about to.
    async fn sniff(&self, connection: &mut Connection) -> Option<Protocol> {
        let Inner { cell, closing, .. } = &*self.0;
        let mut closing = closing.clone();
        let deadline = tokio::time::timeout(cell.current().limits.read_timeout, connection.sniff());
        tokio::select! {
            biased;
            sniffed = deadline => sniffed.ok()?.ok()?,
            _ = closing.wait_for(|&closing| closing) => None,
        }
    }
}

/// A connection that was just accepted.
struct Fresh {
    stream: Raw,
    /// None on a Unix socket.
    peer: Option<SocketAddr>,
    listening: Arc<Listening>,
    guard: ConnectionGuard,
    limits: RequestLimits,
}

impl Fresh {
    /// Finds out who is at the other end, and counts the connection as theirs.
    async fn identify(&mut self, trusted: &[IpNet]) -> Result<(), Cut> {
        let is_trusted = |peer: SocketAddr| forward::is_trusted(peer.ip().to_canonical(), trusted);
        if self.listening.proxy_protocol {
            if self.peer.is_some_and(|peer| !is_trusted(peer)) {
                return Err(Cut::UntrustedProxy);
            }
            let header = tokio::time::timeout(self.limits.read_timeout, proxy_protocol::read(&self.stream)).await;
            match header {
                Ok(Ok(Some(client))) => self.peer = Some(client),
                Ok(Ok(None)) => {}
                Ok(Err(_)) | Err(_) => return Err(Cut::ProxyHeader),
            }
        }
        match self.peer.filter(|peer| !is_trusted(*peer)) {
            Some(client) => self.guard.count_from(client.ip(), self.limits.connections_per_address),
            None => Ok(()),
        }
    }
}

/// A listening socket that is accepted from.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn new(socket: &Socket) -> io::Result<Self> {
        match socket {
            Socket::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                TcpListener::from_std(socket.try_clone()?).map(Self::Tcp)
            }
            Socket::Unix(socket) => {
                socket.set_nonblocking(true)?;
                UnixListener::from_std(socket.try_clone()?).map(Self::Unix)
            }
        }
    }

    async fn accept(&self) -> io::Result<(Raw, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(stream, peer)| (Raw::Tcp(stream), Some(peer))),
            Self::Unix(listener) => listener.accept().await.map(|(stream, _)| (Raw::Unix(stream), None)),
        }
    }
}

/// The terms of a listener, as far as they were known last: it may be gone from the snapshot while the last connections
/// from the kernel's queue are accepted.
struct LastTerms {
    address: ListenAddress,
    known: Option<Arc<Listening>>,
}

impl LastTerms {
    fn update(&mut self, now: Option<&Arc<Listening>>) -> Option<Arc<Listening>> {
        if let Some(now) = now {
            self.known = Some(Arc::clone(now));
        }
        self.known.clone()
    }
}

/// Reads what the handshake says.
fn secured(stream: &TlsStream<Raw>) -> Secured {
    let connection = stream.get_ref().1;
    Secured {
        version: tls_version(connection),
        server_name: connection.server_name().map(Into::into),
        client: connection.peer_certificates().and_then(|chain| Identity::of(chain.first()?)),
    }
}

/// Makes the next session of a connection that is kept alive.
fn next_request(reused: ReusedHttpStream) -> Option<ServerSession> {
    let (stream, settings) = reused.consume();
    // It is the one that `serve` made: nothing in between replaces it.
    let mut connection = <dyn IO>::into_any(stream).downcast::<Connection>().ok()?;
    connection.await_header();
    let stream: Stream = connection;
    let mut session = ServerSession::new_http1(stream);
    if let Some(settings) = settings {
        settings.apply_to_session(&mut session);
    }
    Some(session)
}
