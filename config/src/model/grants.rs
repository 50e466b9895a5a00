//! What filters and functions may touch, item by item.

use std::path::PathBuf;

use ipnet::IpNet;

use crate::problem::Place;

/// One place where outbound HTTP may go: `https://api.example.com`, `http://127.0.0.1:8081`, `https://*.example.com`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundGrant {
    /// `http` or `https`.
    pub tls: bool,
    /// A host in lower case, or one beginning with `*.`, which stands for one or more labels.
    pub host: String,
    /// Default: 80 or 443.
    pub port: u16,
    /// In upper case. Default: any.
    pub methods: Vec<String>,
    /// What the host may resolve to beside public addresses. A host that is an address is that one. Default: nothing.
    pub addresses: Vec<IpNet>,
}

/// A folder that a function sees.
#[derive(Clone, Debug)]
pub struct FolderGrant {
    /// Relative paths are resolved against the configuration file's folder.
    pub path: PathBuf,
    /// Where the function finds it: an absolute path.
    pub seen_as: String,
    /// Default: false.
    pub write: bool,
    /// Where the path is written.
    pub place: Place,
}

/// The place makes no difference.
impl PartialEq for FolderGrant {
    fn eq(&self, other: &Self) -> bool {
        let Self { path, seen_as, write, place: _ } = self;
        *path == other.path && *seen_as == other.seen_as && *write == other.write
    }
}

impl Eq for FolderGrant {}
