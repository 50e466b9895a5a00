//! Where the operator comes in: health, metrics, the API and a page to watch it on, over HTTP/1.1 on loopback, a Unix socket, or wherever else a
//! token is asked for.

mod api;
mod chart;
mod guard;
mod health;
mod page;
mod problem;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use lockgate_config::model::ListenAddress;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::control::Control;
use crate::server::Phase;

pub use api::openapi;

/// How long the headers of a request may take, and how long an idle connection stays open.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// Connections at a time. An operator, a few scrapers and probes need a handful; the rest is kept from eating the
/// descriptors that requests need.
const CONNECTIONS_MAX: usize = 256;

/// How long calls under way may go on when the API stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// What the API answers from.
#[derive(Clone, Debug)]
pub struct Context {
    /// The control plane.
    pub control: Control,
    /// Where the process is in its life.
    pub phase: Arc<Phase>,
    /// Places of those who follow the events.
    followers: Arc<Semaphore>,
}

impl Context {
    /// Returns what an API answers from.
    pub fn new(control: Control, phase: Arc<Phase>) -> Self {
        Self { control, phase, followers: api::events::places() }
    }
}

/// Becomes true when the API stops: what would go on for ever ends.
#[derive(Clone, Debug)]
pub(crate) struct Stopping(watch::Receiver<bool>);

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// By TCP.
    Address(IpAddr),
    /// By the Unix socket, with the user that the kernel vouches for.
    User(Option<u32>),
}

/// A listening socket.
#[derive(Debug)]
pub enum Listener {
    /// By address.
    Tcp(TcpListener),
    /// By path.
    Unix(UnixListener),
}

impl Listener {
    /// Serves a bound TCP socket through a handle of its own. Must be called within a runtime.
    ///
    /// # Errors
    /// There are too many open files.
    pub fn tcp(socket: &std::net::TcpListener) -> io::Result<Self> {
        let socket = socket.try_clone()?;
        socket.set_nonblocking(true)?;
        TcpListener::from_std(socket).map(Self::Tcp)
    }

    /// Serves a bound Unix socket through a handle of its own. Must be called within a runtime.
    ///
    /// # Errors
    /// There are too many open files.
    pub fn unix(socket: &std::os::unix::net::UnixListener) -> io::Result<Self> {
        let socket = socket.try_clone()?;
        socket.set_nonblocking(true)?;
        UnixListener::from_std(socket).map(Self::Unix)
    }

    /// Returns the address that it is bound to, as `--admin` takes it.
    pub fn address(&self, configured: &ListenAddress) -> String {
        match (self, configured) {
            (Self::Tcp(listener), _) => {
                listener.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string())
            }
            (Self::Unix(_), ListenAddress::Unix(path)) => format!("unix:{}", path.display()),
            (Self::Unix(_), ListenAddress::Tcp(address)) => address.to_string(),
        }
    }
}

/// A running admin API.
#[derive(Debug)]
pub struct Server {
    stop: watch::Sender<bool>,
}

impl Server {
    /// Answers calls until it is stopped. Must be called within a runtime.
    pub fn start(listener: Listener, context: Context) -> Self {
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(accept(listener, router(context), stopped));
        Self { stop }
    }

    /// Accepts no more connections. Calls under way end by themselves, within two seconds.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }
}

/// Returns the whole API, guarded.
pub(crate) fn router(context: Context) -> Router {
    guard::guarded(api::router().merge(page::router()), context)
}

async fn accept(listener: Listener, router: Router, mut stopped: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let full = connections.len() >= CONNECTIONS_MAX;
        tokio::select! {
            () = has_stopped(&mut stopped) => break,
            _ = connections.join_next(), if full => {}
            accepted = next(&listener), if !full => match accepted {
                Ok((Stream::Tcp(stream), peer)) => {
                    connections.spawn(serve(stream, peer, router.clone(), stopped.clone()));
                }
                Ok((Stream::Unix(stream), peer)) => {
                    connections.spawn(serve(stream, peer, router.clone(), stopped.clone()));
                }
                Err(error) => {
                    warn!(%error, "cannot accept a connection on the admin listener");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
    drop(listener);
    // The connections have seen the same signal; what takes longer is dropped with the set.
    let _ = tokio::time::timeout(STOP_TIMEOUT, async { while connections.join_next().await.is_some() {} }).await;
}

async fn has_stopped(stopped: &mut watch::Receiver<bool>) {
    // An error means that the server is gone, which is the same.
    drop(stopped.wait_for(|&stopped| stopped).await);
}

enum Stream {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

async fn next(listener: &Listener) -> io::Result<(Stream, Peer)> {
    match listener {
        Listener::Tcp(listener) => {
            let (stream, peer) = listener.accept().await?;
            Ok((Stream::Tcp(stream), Peer::Address(peer.ip())))
        }
        Listener::Unix(listener) => {
            let (stream, _) = listener.accept().await?;
            let user = stream.peer_cred().ok().map(|credentials| credentials.uid());
            Ok((Stream::Unix(stream), Peer::User(user)))
        }
    }
}

async fn serve<S>(stream: S, peer: Peer, router: Router, mut stopped: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let router = TowerToHyperService::new(router);
    let stopping = Stopping(stopped.clone());
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        request.extensions_mut().insert(stopping.clone());
        router.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = has_stopped(&mut stopped) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        debug!(%error, "an admin connection ended");
    }
}
