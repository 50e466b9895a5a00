//! Replaces the binary without a failed request. A *hand-over* gives the listening sockets of a running gateway, its
//! *predecessor*, to a new process, its *successor*, that has loaded everything and waits.
//!
//! The order, and what it guards against:
//!
//! 1. The successor loads, compiles and probes. If it cannot, nothing has happened.
//! 2. It asks for the sockets. The predecessor stops deciding: from here on it writes no state.
//! 3. It gets second handles on all sockets, binds what its own configuration has beyond them, reads the state that the
//!    predecessor wrote last, and accepts requests. So do both, for a moment; a connection is never refused.
//! 4. It says that it serves. Only now does the predecessor stop accepting, and drain. If anything fails before, the
//!    predecessor closes nothing and decides again.

mod predecessor;
mod successor;
mod wire;

use std::fmt;
use std::path::{Path, PathBuf};

pub use predecessor::Invocation;
pub(super) use predecessor::{Outcome, Predecessor};
pub(super) use successor::{Inheritance, Successor, give_up};
pub use successor::{Step, Upgrade};

/// The Unix socket, in the state directory, on which a gateway is asked to hand over.
const SOCKET: &str = "upgrade.sock";

/// When a new process takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum When {
    /// As soon as everything is loaded.
    Now,
    /// When the running gateway gets SIGQUIT.
    OnSignal,
}

/// A hand-over that did not happen. Displays as what went wrong, and what that means.
#[derive(Debug)]
pub struct HandOverError(String);

impl fmt::Display for HandOverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for HandOverError {}

impl From<tokio::task::JoinError> for HandOverError {
    fn from(error: tokio::task::JoinError) -> Self {
        Self(format!("the task that took over ended: {error}"))
    }
}

pub(super) fn socket_in(state_dir: &Path) -> PathBuf {
    state_dir.join(SOCKET)
}

/// Returns the process that already serves with this state directory, if one does: two would decide about the same
/// rollouts.
pub(super) fn incumbent(state_dir: &Path) -> Option<u32> {
    let stream = super::socket::connect(&socket_in(state_dir)).ok()?;
    let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
    u32::try_from(peer.pid.as_raw_nonzero().get()).ok()
}
