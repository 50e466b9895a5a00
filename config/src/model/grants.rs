//! What filters and functions may touch, item by item.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Filter, Function, Grants, Rollout, RolloutSubject, Route, Target};
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

/// An upstream that a filter or function may send HTTP requests to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamGrant {
    /// Its name.
    pub name: Arc<str>,
    /// Index into [`Config::upstreams`](crate::model::Config::upstreams).
    pub upstream: usize,
    /// In upper case. Default: any.
    pub methods: Vec<String>,
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

impl Grants {
    /// Returns whether outbound HTTP is granted at all.
    #[must_use]
    pub fn may_send(&self) -> bool {
        !(self.outbound.is_empty() && self.upstreams.is_empty())
    }

    /// Returns whether a call may have to wait.
    #[must_use]
    pub fn wait(&self) -> bool {
        self.may_send() || !self.key_value.is_empty()
    }
}

/// Returns the upstreams that the guests of a route are granted, each once, in order.
#[must_use]
pub fn reached_upstreams(
    route: &Route,
    rollouts: &[Rollout],
    filters: &[Filter],
    functions: &[Function],
) -> BTreeSet<usize> {
    let target = match route.target {
        Target::Function { function } => Some(function),
        _ => None,
    };
    let asked: BTreeSet<usize> = route.middleware.iter().map(|link| link.function).chain(target).collect();
    let stable = route.filters.iter().filter_map(|index| Some(&filters.get(*index)?.version.grants));
    let stable = stable.chain(asked.iter().filter_map(|index| Some(&functions.get(*index)?.version.grants)));
    let canaries = rollouts.iter().filter_map(|rollout| match &rollout.subject {
        RolloutSubject::Filter { filter, canary } if route.filters.contains(filter) => Some(&canary.grants),
        RolloutSubject::Function { function: moved, canary } if asked.contains(moved) => Some(&canary.grants),
        _ => None,
    });
    stable.chain(canaries).flat_map(|grants| &grants.upstreams).map(|grant| grant.upstream).collect()
}
