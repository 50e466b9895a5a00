//! What the data plane reads. A *snapshot* is the immutable, fully built state of one generation: routes, chains,
//! versions, splits and metric handles, with nothing left to look up. It is replaced whole, by one pointer
//! ([`SnapshotCell`]), and every request reads exactly one, from its first phase to its log line.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use http::HeaderValue;
use ipnet::IpNet;
use lockgate_config::model::{Coding, FailureMode, Hsts, ListenAddress, Listener, RequestLimits};

use crate::control::function::FunctionVersion;
use crate::control::upstream::Upstream;
use crate::control::version::Version;
use crate::folder::Folder;
use crate::metrics::{FolderSeries, ListenerSeries, Metrics, RouteSeries, TrackSeries};
use crate::proxy::counts::Counts;
use crate::proxy::log::Format;
use crate::proxy::place::Place;
use crate::proxy::policy::Policy;
use crate::proxy::policy::fixed::{Fixed, Redirect};
use crate::proxy::policy::pages::Pages;
use crate::proxy::policy::places::Bound;
use crate::proxy::route::Router;
use crate::proxy::split::Split;
use crate::proxy::trace::Tracing;
use crate::shadow::Shadow;
use crate::tls::Terms;
use crate::track::{Track, Tracks};

/// The state of one generation.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts the swaps of this process, from 1.
    pub generation: u64,
    /// Finds a request's route: an index into [`Self::routes`].
    pub router: Router,
    /// In the order of the configuration.
    pub routes: Box<[Route]>,
    /// The rollouts that are under way.
    pub rollouts: Box<[Rollout]>,
    /// Whether any route has a middleware.
    pub middleware: bool,
    /// Limits of a request, before any filter's.
    pub limits: RequestLimits,
    /// Peers whose forwarding headers are believed.
    pub trusted_proxies: Arc<[IpNet]>,
    /// Where requests come in, in the order of the configuration.
    pub listeners: Box<[Arc<Listening>]>,
    /// Requests that may be under way in the whole gateway, where that is bounded.
    pub requests_bound: Option<Bound>,
    /// What errors look like for which a route has no page.
    pub pages: Pages,
    /// How requests are logged; none where they are not.
    pub access_log: Option<Format>,
    /// Whose traces are continued, and what is recorded; none where there are no traces.
    pub tracing: Option<Tracing>,
    /// Counts requests that no route took.
    pub unrouted: Arc<RouteSeries>,
    /// Requests that are reading this snapshot.
    pub requests: AtomicUsize,
}

/// The terms on which a listener takes connections and requests.
#[derive(Debug)]
pub struct Listening {
    /// As configured: the port may be 0.
    pub address: ListenAddress,
    /// Whether connections begin with a PROXY header.
    pub proxy_protocol: bool,
    /// Whether HTTP/2 by prior knowledge is understood.
    pub h2c: bool,
    /// How TLS ends here, if it does.
    pub tls: Option<Arc<Terms>>,
    /// The port of HTTPS that clients are sent to instead of being served.
    pub redirect_to_https: Option<u16>,
    /// The value of `strict-transport-security`.
    pub hsts: Option<HeaderValue>,
    /// Metric handles.
    pub series: Arc<ListenerSeries>,
}

impl Listening {
    /// Puts together what the configuration says and what was read of the files that it names.
    pub fn new(listener: &Listener, tls: Option<Arc<Terms>>, metrics: &Metrics) -> Self {
        Self {
            address: listener.address.clone(),
            proxy_protocol: listener.proxy_protocol,
            h2c: listener.h2c,
            tls,
            redirect_to_https: listener.redirect_to_https,
            hsts: listener.tls.as_ref().and_then(|tls| tls.hsts.as_ref()).and_then(hsts),
            series: metrics.listener(&listener.address.to_string()),
        }
    }
}

/// None only if a number were no header value.
fn hsts(hsts: &Hsts) -> Option<HeaderValue> {
    let mut value = format!("max-age={}", hsts.max_age.as_secs());
    if hsts.include_subdomains {
        value.push_str("; includeSubDomains");
    }
    if hsts.preload {
        value.push_str("; preload");
    }
    HeaderValue::try_from(value).ok()
}

/// A rollout that is under way.
#[derive(Debug)]
pub struct Rollout {
    /// As in the configuration.
    pub name: Arc<str>,
    /// Decides a request's track.
    pub split: Split,
    /// Requests by track, in the order of [`Track`].
    pub requests: Arc<TrackSeries>,
    /// What its guard watches; none where nobody judges it.
    pub counts: Option<Arc<Counts>>,
}

/// A route, with everything that its requests need.
#[derive(Debug)]
pub struct Route {
    /// As in the configuration.
    pub name: Arc<str>,
    /// What it makes of paths.
    pub place: Place,
    /// Filters in the order of the request.
    pub chain: Box<[Link]>,
    /// Middleware among them, likewise. They divide the chain into parts.
    pub middleware: Box<[Middleware]>,
    /// Protocols that a connection may change to, in lower case.
    pub upgrades: Box<[String]>,
    /// How responses are compressed, the best first.
    pub compress: Box<[Coding]>,
    /// Whether calls of gRPC-Web go to the upstream as gRPC.
    pub grpc_web: bool,
    /// The rollouts that requests on this route can meet, as indices into [`Snapshot::rollouts`]. The position here is
    /// the rollout's slot in [`Tracks`].
    pub rollouts: Box<[usize]>,
    /// For each of [`Self::rollouts`], the canaries among the route's upstreams that move with it and are checked for
    /// their health.
    pub gates: Box<[Box<[Arc<Upstream>]>]>,
    /// Whether any filter of the chain has a shadow.
    pub shadowed: bool,
    /// What it asks for that needs no filter.
    pub policy: Policy,
    /// What answers.
    pub target: Target,
    /// Upstreams that a guest of the route is granted, by name.
    pub reachable: Box<[(Arc<str>, Pair<Upstream>)]>,
    /// Metric handles.
    pub series: Arc<RouteSeries>,
}

impl Route {
    /// Returns whether a rollout's canary would reach nobody: none of the endpoints is well of an upstream that moves with
    /// it. Then stable serves.
    pub fn is_gated(&self, slot: u8) -> bool {
        self.gates.get(usize::from(slot)).is_some_and(|canaries| canaries.iter().any(|canary| canary.is_down()))
    }

    /// Returns the filters of a part of the chain: the first is in front of all middleware, the next behind the first, and
    /// so on.
    pub fn links(&self, part: usize) -> &[Link] {
        let end = |part: usize| self.middleware.get(part).map_or(self.chain.len(), |middleware| middleware.after);
        let begin = part.checked_sub(1).map_or(0, end);
        self.chain.get(begin..end(part)).unwrap_or_default()
    }
}

/// A middleware in a chain.
#[derive(Debug)]
pub struct Middleware {
    /// Filters of the chain that are in front of it.
    pub after: usize,
    /// What becomes of a request when it fails.
    pub on_failure: FailureMode,
    /// Its versions.
    pub versions: Pair<FunctionVersion>,
}

/// A filter in a chain.
#[derive(Debug)]
pub struct Link {
    /// The filter's name.
    pub filter: Arc<str>,
    /// What becomes of a request when the filter fails.
    pub on_failure: FailureMode,
    /// Its versions.
    pub versions: Pair<Version>,
    /// Its canary as a shadow of stable, where the rollout is at a stage at which it is one.
    pub shadow: Option<Arc<Shadow>>,
}

/// What answers a route.
#[derive(Debug)]
pub enum Target {
    /// One of the upstreams that the route declares.
    Upstream {
        /// The default first, then the alternatives.
        upstreams: Box<[Pair<Upstream>]>,
        /// Their names, in the same order.
        names: Arc<[Arc<str>]>,
    },
    /// A component that answers by itself, in its versions.
    Function(Pair<FunctionVersion>),
    /// The files of a folder.
    Static {
        /// The folder.
        folder: Arc<Folder>,
        /// Metric handles.
        series: Arc<FolderSeries>,
    },
    /// Another address.
    Redirect(Redirect),
    /// A response that is always the same.
    Respond(Fixed),
}

/// A stable version, and a canary while a rollout is under way.
#[derive(Debug)]
pub struct Pair<T> {
    /// What requests on the stable track get.
    pub stable: Arc<T>,
    /// What requests on the canary track get, with the rollout's slot in the route.
    pub canary: Option<(u8, Arc<T>)>,
}

impl<T> Pair<T> {
    /// Returns the slot of the rollout that moves it, while one is under way.
    pub fn slot(&self) -> Option<u8> {
        self.canary.as_ref().map(|(slot, _)| *slot)
    }

    /// Returns the version for a request's tracks, and which track that is.
    pub fn on(&self, tracks: Tracks) -> (&Arc<T>, Track) {
        match &self.canary {
            Some((slot, canary)) if tracks.is_canary(*slot) => (canary, Track::Canary),
            _ => (&self.stable, Track::Stable),
        }
    }
}

impl Snapshot {
    /// Returns the shadow of a rollout; none where its canary serves, or no route has its filter.
    pub fn shadow(&self, rollout: &str) -> Option<&Arc<Shadow>> {
        let shadows = self.routes.iter().flat_map(|route| &route.chain).filter_map(|link| link.shadow.as_ref());
        shadows.into_iter().find(|shadow| shadow.tally().rollout() == rollout)
    }

    /// Returns a listener's terms, by its address as configured.
    pub fn listening(&self, address: &ListenAddress) -> Option<&Arc<Listening>> {
        self.listeners.iter().find(|listening| listening.address == *address)
    }

    /// Returns the requests that are reading this snapshot.
    pub fn in_flight(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

/// Holds the current snapshot: the only shared state between control plane and data plane.
#[derive(Debug)]
pub struct SnapshotCell(ArcSwap<Snapshot>);

impl SnapshotCell {
    /// Returns a cell that holds a first snapshot.
    pub fn new(first: Arc<Snapshot>) -> Self {
        Self(ArcSwap::new(first))
    }

    /// Returns the current snapshot. Called once per request, when its header has been read.
    #[expect(clippy::disallowed_methods, reason = "the one place where a request may read the cell")]
    pub fn current(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }

    /// Puts a snapshot in the place of the current one, which is returned. One pointer is exchanged; requests under way
    /// go on with the snapshot that they began with.
    pub fn swap(&self, next: Arc<Snapshot>) -> Arc<Snapshot> {
        self.0.swap(next)
    }
}
