//! The side of the process that takes over, and of `lockgate upgrade`, which asks for it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::wire::{Message, Wire};
use super::{HandOverError, When, socket_in};
use crate::server::socket::{self, Name, Socket};
use lockgate_config::model::ListenAddress;

/// How long the predecessor may take to stop deciding and to send its sockets.
const SOCKETS_TIMEOUT: Duration = Duration::from_secs(30);

/// A successor that has the sockets, and is to serve.
#[derive(Debug)]
pub(in crate::server) struct Successor(Wire);

/// What a predecessor leaves.
#[derive(Debug, Default)]
pub(in crate::server) struct Inheritance {
    /// Sockets of the data plane, by their configured address.
    pub(in crate::server) http: Vec<(ListenAddress, Socket)>,
    /// The admin API's.
    pub(in crate::server) admin: Option<(Name, Socket)>,
}

impl Successor {
    /// Asks the gateway that runs with this state directory for its sockets, and waits for them. Blocks, until SIGQUIT
    /// with [`When::OnSignal`].
    ///
    /// # Errors
    /// No gateway runs, or it refuses.
    pub(in crate::server) fn take_over(state_dir: &Path, when: When) -> Result<(Self, Inheritance), HandOverError> {
        let mut wire = connect(state_dir)?;
        let take_over = Message::TakeOver {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            on_signal: when == When::OnSignal,
        };
        let mut inheritance = Inheritance::default();
        wire.say(&take_over).map_err(lost)?;
        if when == When::Now {
            wire.patience(SOCKETS_TIMEOUT).map_err(lost)?;
        }
        loop {
            match wire.hear().map_err(lost)? {
                Message::Sockets { names, more } => {
                    for name in names {
                        let socket = wire.socket().ok_or_else(|| HandOverError("a socket did not arrive".into()))?;
                        inheritance.add(name, socket);
                    }
                    if !more {
                        return Ok((Self(wire), inheritance));
                    }
                }
                Message::Refused { why } => return Err(HandOverError(why)),
                other => return Err(HandOverError(format!("the running gateway said {other:?} instead of `sockets`"))),
            }
        }
    }

    /// Says that requests are answered. From then on this process is the gateway.
    ///
    /// # Errors
    /// The predecessor does not let go, or is gone: this process must end.
    pub(in crate::server) fn serving(mut self) -> Result<(), HandOverError> {
        self.0.say(&Message::Serving).map_err(lost)?;
        self.0.patience(SOCKETS_TIMEOUT).map_err(lost)?;
        match self.0.hear().map_err(lost)? {
            Message::Yours => Ok(()),
            Message::Refused { why } => Err(HandOverError(why)),
            other => Err(HandOverError(format!("the running gateway said {other:?} instead of `yours`"))),
        }
    }

    /// Says that this process cannot serve after all.
    pub(in crate::server) fn give_up(mut self, why: &str) {
        // The predecessor also sees that the connection ends.
        let _ = self.0.say(&Message::GaveUp { pid: std::process::id(), why: why.to_owned() });
    }
}

impl Inheritance {
    fn add(&mut self, name: Name, socket: OwnedFd) {
        let socket = Socket::inherited(&name, socket);
        match name.clone().into_http() {
            Some(address) => self.http.push((address, socket)),
            None => self.admin = Some((name, socket)),
        }
    }
}

/// Tells the gateway that started this process why it ends, so that `lockgate upgrade` can show it.
pub(in crate::server) fn give_up(state_dir: &Path, why: &str) {
    if let Ok(mut wire) = connect(state_dir) {
        // It also sees that the process ends.
        let _ = wire.say(&Message::GaveUp { pid: std::process::id(), why: why.to_owned() });
    }
}

/// What happens during an upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The new process is started, and loads.
    Started {
        /// Its id.
        pid: u32,
    },
    /// It serves.
    Done {
        /// Its id.
        pid: u32,
    },
}

/// An upgrade, as the command line follows it.
#[derive(Debug)]
pub struct Upgrade(Wire);

impl Upgrade {
    /// Asks the gateway that runs with this state directory to start a binary and to hand over to it.
    ///
    /// # Errors
    /// No gateway runs.
    pub fn ask(state_dir: &Path, binary: PathBuf, config: Option<PathBuf>) -> Result<Self, HandOverError> {
        let mut wire = connect(state_dir)?;
        wire.say(&Message::Upgrade { binary, config }).map_err(lost)?;
        Ok(Self(wire))
    }

    /// Waits for the next step. Blocks for as long as loading takes.
    ///
    /// # Errors
    /// The upgrade failed; the gateway that ran goes on.
    pub fn step(&mut self) -> Result<Step, HandOverError> {
        match self.0.hear().map_err(lost)? {
            Message::Started { pid } => Ok(Step::Started { pid }),
            Message::Done { pid } => Ok(Step::Done { pid }),
            Message::Refused { why } => Err(HandOverError(why)),
            other => {
                Err(HandOverError(format!("the running gateway said {other:?}, which this release does not know")))
            }
        }
    }
}

fn connect(state_dir: &Path) -> Result<Wire, HandOverError> {
    let path = socket_in(state_dir);
    let stream = socket::connect(&path).map_err(|error| {
        let socket = path.display();
        HandOverError(match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                format!("no gateway answers at `{socket}`; start one with `lockgate run`")
            }
            io::ErrorKind::PermissionDenied => {
                format!("`{socket}` is another user's: run this as the user of the gateway")
            }
            _ => format!("cannot reach the gateway at `{socket}`: {error}"),
        })
    })?;
    Wire::new(stream, None).map_err(lost)
}

fn lost(error: io::Error) -> HandOverError {
    HandOverError(match error.kind() {
        io::ErrorKind::UnexpectedEof => "the running gateway closed the connection".into(),
        io::ErrorKind::WouldBlock => "the running gateway does not answer".into(),
        _ => format!("the connection to the running gateway failed: {error}"),
    })
}
