//! TLS on listeners. The *terms* of a listener are its certificates, versions and demands, read from files and checked by
//! the control plane, and ready for handshakes. They change with the snapshot; a connection keeps those that it began
//! with.

mod client;
mod failure;
mod files;
mod names;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use lockgate_config::model;
use lockgate_host::Digest;
use rustls::ServerConfig;

pub use client::Identity;
pub use failure::Failure;
pub use files::Reader;

/// What TLS on a listener is made with.
pub struct Terms {
    /// For handshakes.
    pub server: Arc<ServerConfig>,
    /// Time for one.
    pub handshake_timeout: Duration,
    /// In the order of the configuration.
    pub certificates: Box<[Certificate]>,
    settings: model::Tls,
    files: Digest,
}

/// What is known of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Its file, as the configuration has it.
    pub file: String,
    /// Of the certificate itself.
    pub fingerprint: Digest,
    /// From when on it is valid, in seconds since 1970.
    pub not_before: i64,
    /// Until when it is valid, in seconds since 1970.
    pub not_after: i64,
}

impl Terms {
    /// Returns the digest of all files that the terms were made from.
    pub const fn files(&self) -> Digest {
        self.files
    }

    fn were_made_from(&self, settings: &model::Tls, files: Digest) -> bool {
        self.files == files && self.settings == *settings
    }
}

/// Shows no key, whatever the libraries below show.
impl fmt::Debug for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terms").field("certificates", &self.certificates).finish_non_exhaustive()
    }
}
