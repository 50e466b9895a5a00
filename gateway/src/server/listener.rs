//! The listeners of the data plane. They follow the configuration: a reload binds new ones before its snapshot is
//! swapped in, so that one that cannot be bound refuses the reload, and closes removed ones after.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use lockgate_config::model::{ListenAddress, Listener};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::accept::Acceptor;
use super::socket::{self, Name, Socket};

/// All listeners of the data plane.
#[derive(Debug, Default)]
pub(super) struct Listeners(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Connections are accepted.
    open: Vec<Open>,
    /// Bound, or inherited, and not in use yet.
    ready: Vec<Ready>,
}

#[derive(Debug)]
struct Ready {
    /// As configured: the port may be 0.
    address: ListenAddress,
    socket: Socket,
}

#[derive(Debug)]
struct Open {
    address: ListenAddress,
    /// A handle of our own, for a successor.
    socket: Socket,
    /// The accept loop ends when this is dropped.
    _stop: oneshot::Sender<()>,
}

/// A listener that cannot be bound.
#[derive(Debug)]
pub(super) struct BindError {
    address: ListenAddress,
    error: io::Error,
}

impl std::fmt::Display for BindError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { address, error } = self;
        match error.kind() {
            io::ErrorKind::PermissionDenied if matches!(address, ListenAddress::Unix(_)) => {
                write!(f, "cannot listen on `{address}`: its folder is not writable ({error})")
            }
            io::ErrorKind::AddrInUse => write!(f, "cannot listen on `{address}`: another process does"),
            io::ErrorKind::PermissionDenied => write!(
                f,
                "cannot listen on `{address}`: ports below 1024 need the capability CAP_NET_BIND_SERVICE ({error})"
            ),
            io::ErrorKind::AddrNotAvailable => {
                write!(f, "cannot listen on `{address}`: no interface of this machine has this address")
            }
            _ => write!(f, "cannot listen on `{address}`: {error}"),
        }
    }
}

impl std::error::Error for BindError {}

/// Binds an address for the admin API, with an error for a person.
///
/// # Errors
/// It cannot be bound.
pub(super) fn bind_admin(address: &ListenAddress) -> Result<Socket, BindError> {
    bind(address, socket::bind_private)
}

fn bind(address: &ListenAddress, bind_path: fn(&Path) -> io::Result<UnixListener>) -> Result<Socket, BindError> {
    let bound = match address {
        ListenAddress::Tcp(address) => socket::bind(*address).map(Socket::Tcp),
        ListenAddress::Unix(path) => bind_path(path).map(Socket::Unix),
    };
    bound.map_err(|error| BindError { address: address.clone(), error })
}

impl Listeners {
    /// Takes sockets that a predecessor bound. Those that the configuration does not name are closed by
    /// [`Self::apply`].
    pub(super) fn inherit(&self, sockets: impl IntoIterator<Item = (ListenAddress, Socket)>) {
        let ready = sockets.into_iter().map(|(address, socket)| Ready { address, socket });
        self.0.lock().ready.extend(ready);
    }

    /// Binds what is wanted and not there yet, without accepting connections.
    ///
    /// # Errors
    /// The first that cannot be bound; the others that were bound for this call are closed again.
    pub(super) fn prepare(&self, wanted: &[Listener]) -> Result<(), BindError> {
        let mut state = self.0.lock();
        let had = state.ready.len();
        for address in wanted.iter().map(|listener| &listener.address) {
            let is_there = state.open.iter().any(|open| open.address == *address)
                || state.ready.iter().any(|ready| ready.address == *address);
            if is_there {
                continue;
            }
            match bind(address, socket::bind_shared) {
                Ok(socket) => state.ready.push(Ready { address: address.clone(), socket }),
                Err(error) => {
                    state.ready.truncate(had);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Accepts connections on exactly what is wanted. Called after [`Self::prepare`] of the same listeners.
    ///
    /// # Errors
    /// There are too many open files.
    pub(super) fn apply(&self, wanted: &[Listener], acceptor: &Acceptor) -> io::Result<()> {
        let mut state = self.0.lock();
        state.open.retain(|open| {
            let stays = wanted.iter().any(|listener| listener.address == open.address);
            if !stays {
                forget(&open.address);
                info!(address = %open.address, "stopped listening");
            }
            stays
        });
        let ready = std::mem::take(&mut state.ready);
        for Ready { address, socket } in ready {
            let Some(listener) = wanted.iter().find(|listener| listener.address == address) else { continue };
            let stop = acceptor.start(&socket, address.clone())?;
            let bound = match &socket {
                Socket::Tcp(socket) => socket.local_addr()?.to_string(),
                Socket::Unix(_) => address.to_string(),
            };
            info!(kind = "http", address = bound, tls = listener.tls.is_some(), "listening");
            state.open.push(Open { address, socket, _stop: stop });
        }
        Ok(())
    }

    /// Returns second handles on all open sockets, for a successor.
    ///
    /// # Errors
    /// There are too many open files.
    pub(super) fn duplicate(&self) -> io::Result<Vec<(Name, OwnedFd)>> {
        let state = self.0.lock();
        let duplicate = |open: &Open| Ok((Name::http(&open.address), open.socket.duplicate()?));
        state.open.iter().map(duplicate).collect()
    }

    /// Removes the names of Unix sockets; who has inherited them keeps them.
    pub(super) fn forget_paths(wanted: &[Listener]) {
        for listener in wanted {
            forget(&listener.address);
        }
    }

    /// Accepts no more connections. What waits in the kernel's queue is accepted first.
    pub(super) fn close(&self) {
        *self.0.lock() = State::default();
    }
}

fn forget(address: &ListenAddress) {
    if let ListenAddress::Unix(path) = address
        && let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        warn!(%error, path = %path.display(), "cannot remove a socket");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_that_cannot_be_bound_leaves_none_of_its_reload() {
        let taken = socket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listeners = Listeners::default();
        let wanted = ["127.0.0.1:0".parse().unwrap(), taken.local_addr().unwrap()];
        let error = listeners.prepare(&wanted.map(ListenAddress::Tcp).map(Listener::new)).unwrap_err();
        assert!(error.to_string().ends_with("another process does"), "{error}");
        assert!(listeners.0.lock().ready.is_empty());
    }

    #[test]
    fn an_inherited_socket_is_not_bound_again() {
        let inherited = socket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = ListenAddress::Tcp(inherited.local_addr().unwrap());
        let listeners = Listeners::default();
        listeners.inherit([(address.clone(), Socket::Tcp(inherited))]);
        listeners.prepare(&[Listener::new(address)]).unwrap();
        assert_eq!(listeners.0.lock().ready.len(), 1);
    }
}
