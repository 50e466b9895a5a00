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
use tracing::{debug, warn};

use super::App;
use super::connection::{Connection, Protocol};
use super::drain::{Connections, Shutdown};
use super::listener::Settings;
use crate::control::snapshot::SnapshotCell;
use crate::metrics::Metrics;

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

    /// Accepts connections until the returned sender is dropped.
    ///
    /// # Errors
    /// The runtime cannot watch the socket.
    pub(super) fn start(
        &self,
        listener: std::net::TcpListener,
        settings: Arc<Settings>,
    ) -> io::Result<oneshot::Sender<()>> {
        let (stop, stopped) = oneshot::channel();
        listener.set_nonblocking(true)?;
        let _in_runtime = self.0.runtime.enter();
        let listener = TcpListener::from_std(listener)?;
        // One loop, not one for each thread: a connection costs it two system calls, and every further loop would be
        // woken for each of them in vain.
        self.0.runtime.spawn(self.clone().accept(listener, settings, stopped));
        Ok(stop)
    }

    async fn accept(self, listener: TcpListener, settings: Arc<Settings>, mut stopped: oneshot::Receiver<()>) {
        loop {
            tokio::select! {
                accepted = listener.accept() => self.accepted(accepted, &settings).await,
                _ = &mut stopped => break,
            }
        }
        // Clients whose connections wait in the kernel's queue would see them reset.
        loop {
            tokio::select! {
                biased;
                accepted = listener.accept() => self.accepted(accepted, &settings).await,
                () = std::future::ready(()) => break,
            }
        }
    }

    async fn accepted(&self, accepted: io::Result<(TcpStream, SocketAddr)>, settings: &Arc<Settings>) {
        match accepted {
            Ok((stream, peer)) => {
                let connection = self.connection(stream, peer);
                self.0.runtime.spawn(self.clone().serve(connection, settings.h2c()));
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

    fn connection(&self, stream: TcpStream, peer: SocketAddr) -> Connection {
        if let Err(error) = stream.set_nodelay(true) {
            // The client has gone, most likely; reading will tell.
            debug!(%error, "cannot set TCP_NODELAY");
        }
        let header_timeout = self.0.cell.current().limits.read_timeout;
        Connection::new(stream, peer, header_timeout, self.0.connections.opened())
    }

    async fn serve(self, mut connection: Connection, h2c: bool) {
        let Inner { app, cell, shutdown, .. } = &*self.0;
        let protocol = if h2c { self.sniff(&mut connection).await } else { Some(Protocol::Http1) };
        match protocol {
            None => {}
            Some(Protocol::H2c) => {
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
