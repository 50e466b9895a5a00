//! What of routes' policies outlives a snapshot: the requests that keys have used up, and those that are under way. A
//! reload that leaves a limit as it is leaves both as they are; a limit that changed begins anew. Also the bytes of the
//! files that policies name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use lockgate_config::model::{self, Body, Config, ErrorPage, Server, Target};
use lockgate_config::problem::{Place, Problem};
use parking_lot::Mutex;
use pingora::connectors::http::Connector;

use crate::control::build::Chosen;
use crate::control::facts::Facts;
use crate::metrics::Metrics;
use crate::proxy::policy::mirror::Mirror;
use crate::proxy::policy::pages::Pages;
use crate::proxy::policy::places::{Bound, Places};
use crate::proxy::policy::rate::Rate;
use crate::proxy::policy::{Kept, Policy};

/// Bytes of a file that stands in responses: it is held in memory, and more than a page is a route's `static`.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What outlives a snapshot, by the names of routes and limits. Lives as long as a snapshot uses it.
#[derive(Debug, Default)]
pub struct Policies {
    gateway: Arc<Places>,
    rates: Mutex<Rates>,
    places: Mutex<BTreeMap<Arc<str>, Weak<Places>>>,
    mirrored: Connections,
}

/// By the names of route and limit.
type Rates = BTreeMap<(Arc<str>, String), Weak<Rate>>;

/// Connections that mirrored requests go over.
struct Connections(Arc<Connector>);

impl Default for Connections {
    fn default() -> Self {
        Self(Arc::new(Connector::new(None)))
    }
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connections")
    }
}

impl Policies {
    /// Returns the bound on requests under way in the whole gateway. Asked once for each snapshot, so here what nothing
    /// uses is forgotten.
    pub fn gateway(&self, server: &Server) -> Option<Bound> {
        self.rates.lock().retain(|_, rate| rate.strong_count() > 0);
        self.places.lock().retain(|_, places| places.strong_count() > 0);
        server.limits.requests.map(|max| Bound { max, places: Arc::clone(&self.gateway) })
    }

    /// Returns the policy of a route.
    pub fn of(&self, route: &model::Route, facts: &Facts, chosen: &Chosen, metrics: &Metrics) -> Policy {
        let server = &facts.config.server;
        let rates = route.policy.rate_limits.iter().filter_map(|limit| self.rate(&route.name, limit, metrics));
        let mirror = route.policy.mirror.as_ref().and_then(|mirror| {
            let upstream = Arc::clone(&chosen.upstreams.get(mirror.upstream)?.stable);
            let connector = Arc::clone(&self.mirrored.0);
            Some(Arc::new(Mirror::new(mirror, upstream, connector, metrics.mirror(&route.name))))
        });
        let kept = Kept {
            mirror,
            rates: rates.collect(),
            places: route.policy.requests_max.map(|max| Bound { max, places: self.places(&route.name) }),
            pages: facts.bodies.pages(&route.policy.error_pages),
            series: metrics.policy(&route.name, &Policy::answers(route, server.limits.requests.is_some())),
        };
        Policy::new(route, server.limits.body.map(|body| body.bytes()), kept)
    }

    fn rate(&self, route: &Arc<str>, limit: &model::RateLimit, metrics: &Metrics) -> Option<Arc<Rate>> {
        let mut rates = self.rates.lock();
        let key = (Arc::clone(route), limit.name.clone());
        let known = rates.get(&key).and_then(Weak::upgrade);
        if let Some(known) = known.filter(|known| known.limit() == limit) {
            return Some(known);
        }
        let rate = Arc::new(Rate::new(limit, metrics.rate(route, &limit.name))?);
        rates.insert(key, Arc::downgrade(&rate));
        Some(rate)
    }

    fn places(&self, route: &Arc<str>) -> Arc<Places> {
        let mut known = self.places.lock();
        let places = known.get(route).and_then(Weak::upgrade).unwrap_or_default();
        known.insert(Arc::clone(route), Arc::downgrade(&places));
        places
    }
}

/// The bytes of files that stand in responses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bodies(BTreeMap<PathBuf, Bytes>);

impl Bodies {
    /// Reads every file that a configuration names for a response, by `read`. Tells a problem for each that cannot be.
    pub fn read(
        config: &Config,
        shown: impl Fn(&Path) -> String,
        mut read: impl FnMut(&Path) -> std::io::Result<Vec<u8>>,
    ) -> (Self, Vec<Problem>) {
        let pages = config.routes.iter().flat_map(|route| &route.policy.error_pages);
        let pages = config.server.error_pages.iter().chain(pages).map(|page| &page.body);
        let fixed = config.routes.iter().filter_map(|route| match &route.target {
            Target::Respond(response) => response.body.as_ref(),
            _ => None,
        });
        let (mut bodies, mut problems) = (Self::default(), Vec::new());
        for body in pages.chain(fixed) {
            let Body::File { path, place } = body else { continue };
            if bodies.0.contains_key(path) {
                continue;
            }
            match bounded(read(path)) {
                Ok(bytes) => drop(bodies.0.insert(path.clone(), bytes)),
                Err(reason) => problems.push(unreadable(&shown(path), &reason, place)),
            }
        }
        (bodies, problems)
    }

    /// Returns the bytes of a body. A file that was not read has none.
    pub fn of(&self, body: &Body) -> Bytes {
        match body {
            Body::Text(text) => Bytes::from(text.clone()),
            Body::File { path, .. } => self.0.get(path).cloned().unwrap_or_default(),
        }
    }

    /// Returns error pages.
    pub fn pages(&self, pages: &[ErrorPage]) -> Pages {
        Pages::new(pages, |body| self.of(body))
    }
}

fn bounded(read: std::io::Result<Vec<u8>>) -> Result<Bytes, String> {
    match read {
        Ok(bytes) if bytes.len() as u64 > FILE_BYTES_MAX => Err("it is longer than 1 MiB".to_owned()),
        Ok(bytes) => Ok(bytes.into()),
        Err(error) => Err(error.to_string()),
    }
}

fn unreadable(path: &str, reason: &str, place: &Place) -> Problem {
    let problem = Problem::new(format!("cannot read `{path}`: {reason}"), place.clone());
    problem.hint("paths are relative to the configuration file's folder; larger files are for a route with `static`")
}
