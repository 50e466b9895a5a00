//! Accepts connections and sees them through. Each becomes a task of the data plane's runtime that ends with the
//! connection.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pingora::apps::{HttpServerApp as _, ReusedHttpStream, ServerApp as _};
use pingora::protocols::http::ServerSession;
use pingora::protocols::{IO, Stream};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use super::App;
use super::connection::{Connection, Protocol, tls_version};
use super::drain::{ConnectionGuard, Connections, Shutdown};
use super::transport::Transport;
use crate::control::snapshot::{Listening, SnapshotCell};
use crate::metrics::Metrics;
use crate::proxy::arrival::{Arrival, Secured};
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
        metrics: Arc<Metrics>,
        shutdown: &Shutdown,
        runtime: Handle,
    ) -> Self {
        let (shutdown, closing) = (shutdown.announced(), shutdown.closing());
        Self(Arc::new(Inner { app, cell, connections, metrics, shutdown, closing, runtime }))
    }

    /// Accepts connections until the returned sender is dropped. Their terms are those that the snapshot has for
    /// `address`, as configured, at the moment when they are accepted.
    ///
    /// # Errors
    /// The runtime cannot watch the socket.
    pub(super) fn start(
        &self,
        listener: std::net::TcpListener,
        address: SocketAddr,
    ) -> io::Result<oneshot::Sender<()>> {
        let (stop, stopped) = oneshot::channel();
        listener.set_nonblocking(true)?;
        let _in_runtime = self.0.runtime.enter();
        let listener = TcpListener::from_std(listener)?;
        // One loop, not one for each thread: a connection costs it two system calls, and every further loop would be
        // woken for each of them in vain.
        self.0.runtime.spawn(self.clone().accept(listener, address, stopped));
        Ok(stop)
    }

    async fn accept(self, listener: TcpListener, address: SocketAddr, mut stopped: oneshot::Receiver<()>) {
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

    async fn accepted(&self, accepted: io::Result<(TcpStream, SocketAddr)>, terms: &mut LastTerms) {
        match accepted {
            Ok((stream, peer)) => {
                let snapshot = self.0.cell.current();
                let header_timeout = snapshot.limits.read_timeout;
                let Some(listening) = terms.update(snapshot.listening(&terms.address)) else { return };
                drop(snapshot);
                let guard = self.0.connections.opened();
                let fresh = Fresh { stream, peer, header_timeout, listening, guard };
                self.0.runtime.spawn(self.clone().see_through(fresh));
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
    async fn see_through(self, fresh: Fresh) {
        let Fresh { stream, peer, header_timeout, listening, guard } = fresh;
        if let Err(error) = stream.set_nodelay(true) {
            // The client has gone, most likely; reading will tell.
            debug!(%error, "cannot set TCP_NODELAY");
        }
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
                    debug!(listener = %listening.address, %peer, kind = failure.kind(), "a handshake failed");
                    return;
                }
            },
        };
        let h2c = listening.h2c;
        let Ok(arrival) = (Arrival { listening, tls }).wrap() else { return };
        self.serve(Connection::new(transport, peer, header_timeout, arrival, guard), h2c).await;
    }

    async fn shake_hands(&self, stream: TcpStream, terms: &Terms) -> Result<TlsStream<TcpStream>, Failure> {
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

    async fn serve(self, mut connection: Connection, h2c: bool) {
        let Inner { app, cell, shutdown, .. } = &*self.0;
        let protocol = match connection.negotiated() {
            Some(negotiated) => Some(negotiated),
            None if h2c => self.sniff(&mut connection).await,
            None => Some(Protocol::Http1),
        };
        match protocol {
            None => {}
            Some(Protocol::H2) => {
                // Nothing is handed back: the connection is over when this returns.
                app.process_new(Box::new(connection), shutdown).await;
            }
            Some(Protocol::Http1) => {
                let mut session = ServerSession::new_http1(Box::new(connection));
                let idle_timeout = cell.current().limits.idle_timeout;
                let stays = !*shutdown.borrow();
                // Pingora's unit is the second, and none means that the connection closes after the response.
                session.set_keepalive(stays.then(|| idle_timeout.as_secs().max(1)));
                let mut reused = app.process_new_http(session, shutdown).await;
                while let Some(session) = reused.and_then(next_request) {
                    reused = app.process_new_http(session, shutdown).await;
                }
            }
        }
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
    stream: TcpStream,
    peer: SocketAddr,
    header_timeout: Duration,
    listening: Arc<Listening>,
    guard: ConnectionGuard,
}

/// The terms of a listener, as far as they were known last: it may be gone from the snapshot while the last connections
/// from the kernel's queue are accepted.
struct LastTerms {
    address: SocketAddr,
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
fn secured(stream: &TlsStream<TcpStream>) -> Secured {
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
