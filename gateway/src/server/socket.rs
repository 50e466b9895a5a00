//! Listening sockets. A *socket* is bound here once and lives on: the accept loops, a reload and the successor of an
//! upgrade all use the same one, so that no client ever meets a closed port.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use lockgate_config::model::ListenAddress;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use serde::{Deserialize, Serialize};

/// Connections that the kernel keeps while the accept loop is busy; it takes `net.core.somaxconn` where that is less.
const BACKLOG: i32 = 4096;

/// What a socket is for, and the address that the configuration gives it: how a successor recognises it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Name {
    /// Requests come in here. The address as configured, port 0 included.
    Http(SocketAddr),
    /// Requests come in here, by a Unix socket.
    HttpUnix(PathBuf),
    /// The operator comes in here.
    Admin(SocketAddr),
    /// The operator comes in here, by a Unix socket.
    AdminUnix(PathBuf),
}

impl Name {
    /// Returns the name of a listener.
    pub(super) fn http(address: &ListenAddress) -> Self {
        match address {
            ListenAddress::Tcp(address) => Self::Http(*address),
            ListenAddress::Unix(path) => Self::HttpUnix(path.clone()),
        }
    }

    /// Returns the name of the admin API.
    pub(super) fn admin(address: &ListenAddress) -> Self {
        match address {
            ListenAddress::Tcp(address) => Self::Admin(*address),
            ListenAddress::Unix(path) => Self::AdminUnix(path.clone()),
        }
    }

    /// Returns the address of a listener; none for the admin API.
    pub(super) fn into_http(self) -> Option<ListenAddress> {
        match self {
            Self::Http(address) => Some(ListenAddress::Tcp(address)),
            Self::HttpUnix(path) => Some(ListenAddress::Unix(path)),
            Self::Admin(_) | Self::AdminUnix(_) => None,
        }
    }
}

/// A listening socket.
#[derive(Debug)]
pub(super) enum Socket {
    /// By address.
    Tcp(TcpListener),
    /// By path.
    Unix(UnixListener),
}

/// Binds an address and listens.
///
/// # Errors
/// Whatever the operating system says: the address is in use, or not ours, or the port is privileged.
pub(super) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    // Connections of an earlier process that linger in TIME_WAIT are no reason not to start.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}

/// Binds a path that only this user can connect to, and listens. A socket that a dead process left there is replaced;
/// one that somebody answers on is not.
///
/// # Errors
/// The path is in use, or its directory is not writable.
pub(super) fn bind_private(path: &Path) -> io::Result<UnixListener> {
    bind_path(path, 0o600)
}

/// Binds a path that this user and its group can connect to; otherwise as [`bind_private`].
///
/// # Errors
/// The path is in use, or its directory is not writable.
pub(super) fn bind_shared(path: &Path) -> io::Result<UnixListener> {
    bind_path(path, 0o660)
}

fn bind_path(path: &Path, mode: u32) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is in its place"));
        }
        Ok(_) if connect(path).is_ok() => return Err(io::ErrorKind::AddrInUse.into()),
        _ => {}
    }
    replace(path, mode)
}

/// Connects to a Unix socket.
///
/// # Errors
/// Nobody listens there.
pub(super) fn connect(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(&*Short::new(path)?)
}

/// A path of any length, in a form that an address of a Unix socket has room for: 107 bytes, which a directory for state
/// easily exceeds.
struct Short {
    path: PathBuf,
    /// Open for as long as the path is used.
    _folder: OwnedFd,
}

impl Short {
    fn new(path: &Path) -> io::Result<Self> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(folder, flags, Mode::empty())?;
        let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
        Ok(Self { path, _folder: folder })
    }
}

impl std::ops::Deref for Short {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

/// Does what [`bind_private`] does, for a path that is ours already, whoever answers on it: the successor's way.
///
/// # Errors
/// Its directory is not writable.
pub(super) fn replace_private(path: &Path) -> io::Result<UnixListener> {
    replace(path, 0o600)
}

fn replace(path: &Path, mode: u32) -> io::Result<UnixListener> {
    // Bound under another name first: nobody can connect before the mode is set, and the exchange is atomic.
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(name);
    let bound = (|| {
        let listener = UnixListener::bind(&*Short::new(&temporary)?)?;
        std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(mode))?;
        std::fs::rename(&temporary, path)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    })();
    if bound.is_err() {
        // It may not be there: the error that counts is the one returned.
        let _ = std::fs::remove_file(&temporary);
    }
    bound
}

impl Socket {
    /// Takes a socket that another process bound.
    pub(super) fn inherited(name: &Name, socket: OwnedFd) -> Self {
        match name {
            Name::Http(_) | Name::Admin(_) => Self::Tcp(TcpListener::from(socket)),
            Name::HttpUnix(_) | Name::AdminUnix(_) => Self::Unix(UnixListener::from(socket)),
        }
    }

    /// Returns a second handle on the same socket.
    ///
    /// # Errors
    /// There are too many open files.
    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Tcp(listener) => listener.try_clone().map(OwnedFd::from),
            Self::Unix(listener) => listener.try_clone().map(OwnedFd::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_socket_is_ours_alone_and_replaces_only_a_dead_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let first = bind_private(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(bind_private(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        let second = bind_private(&path).unwrap();
        connect(&path).unwrap();
        second.accept().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_path_may_be_longer_than_an_address_has_room_for() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a".repeat(120));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("a.sock");
        let listener = bind_private(&path).unwrap();
        listener.set_nonblocking(false).unwrap();
        connect(&path).unwrap();
        listener.accept().unwrap();
    }

    #[test]
    fn a_file_in_the_place_of_a_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.txt");
        std::fs::write(&path, "mine").unwrap();
        assert_eq!(bind_private(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    }

    #[test]
    fn a_taken_port_is_refused() {
        let first = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let error = bind(first.local_addr().unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
