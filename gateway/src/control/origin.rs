//! Where a change comes from: what caused it, and who asked for it.

use std::fmt;

/// What caused a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The start, or the moment when this process took over.
    Start,
    /// The configuration or a component changed on disk.
    FileChanged,
    /// SIGHUP.
    Signal,
    /// The admin API, and so the command line.
    Api,
}

impl Cause {
    /// Returns the cause in a word, as in status and log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::FileChanged => "file",
            Self::Signal => "signal",
            Self::Api => "api",
        }
    }
}

/// Who asks for something, as the audit log has it: `cli by uid 1000`, `api 127.0.0.1`, `signal`, `file`, `gateway`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor(String);

impl Actor {
    /// Returns somebody by a description.
    pub fn new(description: impl Into<String>) -> Self {
        Self(description.into())
    }

    /// Returns whoever sent a signal.
    pub fn signal() -> Self {
        Self::new("signal")
    }

    /// Returns whoever changed a file.
    pub fn file() -> Self {
        Self::new("file")
    }

    /// Returns the gateway itself.
    pub fn gateway() -> Self {
        Self::new("gateway")
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
