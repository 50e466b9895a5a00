//! What the operating system asks of the process.

use std::io;

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// A wish of the operating system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// SIGTERM or SIGINT: drain and end; a second one: end at once.
    Stop,
    /// SIGHUP: reload the configuration.
    Reload,
    /// SIGQUIT: hand over to the process that waits for it.
    HandOver,
    /// SIGUSR1: open the file of the access log anew, since somebody has moved it away.
    ReopenLog,
}

/// The signals that are listened to.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Stream,
    interrupt: Stream,
    hang_up: Stream,
    quit: Stream,
    user: Stream,
}

impl Signals {
    /// Replaces what the signals would do by themselves. Must be called within a runtime.
    ///
    /// # Errors
    /// The operating system refuses a handler.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            user: signal(SignalKind::user_defined1())?,
        })
    }

    /// Waits for the next signal.
    pub(super) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::Stop,
            _ = self.interrupt.recv() => Signal::Stop,
            _ = self.hang_up.recv() => Signal::Reload,
            _ = self.quit.recv() => Signal::HandOver,
            _ = self.user.recv() => Signal::ReopenLog,
        }
    }
}
