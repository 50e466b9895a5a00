//! Puts a snapshot together from a configuration and what was chosen for it. Everything slow or fallible has happened
//! before: the filters are loaded, the rollouts' states are known. Nothing here fails.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use lockgate_config::model;
use lockgate_config::units::Weight;

use crate::control::facts::Facts;
use crate::control::function::FunctionVersion;
use crate::control::policies::Policies;
use crate::control::rollout::Versions;
use crate::control::snapshot::{Link, Listening, Middleware, Pair, Rollout, Route, Snapshot, Target};
use crate::control::upstream::Upstream;
use crate::control::version::Version;
use crate::folder::Folder;
use crate::metrics::Metrics;
use crate::proxy::counts::Counts;
use crate::proxy::log::Format;
use crate::proxy::place::Place;
use crate::proxy::policy::fixed::{Fixed, Redirect};
use crate::proxy::route::Router;
use crate::proxy::split::Split;
use crate::proxy::trace::Tracing;
use crate::seeing::spans::Collectors;
use crate::shadow::{self, Shadows};
use crate::track::{Track, Tracks};

/// What was chosen for a configuration.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// One for each of the configuration's filters, in its order.
    pub filters: Vec<Chose<Version>>,
    /// One for each of the configuration's functions, in its order.
    pub functions: Vec<Chose<FunctionVersion>>,
    /// One for each of the configuration's upstreams, in its order.
    pub upstreams: Vec<Chose<Upstream>>,
    /// The canary's share for each of the configuration's rollouts, in its order; used while it is under way.
    pub weights: Vec<Weight>,
    /// What each of the configuration's rollouts is about, in its order; none where it has no state.
    pub versions: Vec<Option<Versions>>,
    /// What is counted for the guard of each of the configuration's rollouts, in its order; none where nothing is.
    pub counts: Vec<Option<Arc<Counts>>>,
    /// How the canary of each of the configuration's rollouts runs as a shadow, in its order; none where it is none.
    pub shadows: Vec<Option<shadow::Options>>,
}

/// The versions that serve.
#[derive(Debug)]
pub struct Chose<T> {
    /// For the stable track.
    pub stable: Arc<T>,
    /// For the canary track, while the rollout (an index into the configuration's) is under way.
    pub canary: Option<(usize, Arc<T>)>,
}

impl<T> Clone for Chose<T> {
    fn clone(&self) -> Self {
        Self { stable: Arc::clone(&self.stable), canary: self.canary.clone() }
    }
}

/// Name under which requests without a route are counted. No route can have it: the configuration refuses parentheses.
const UNROUTED: &str = "(none)";

/// Returns a snapshot.
pub fn build(
    generation: u64,
    facts: &Facts,
    chosen: &Chosen,
    metrics: &Metrics,
    shadows: &Shadows,
    policies: &Policies,
    collectors: &Collectors,
) -> Snapshot {
    let config = &*facts.config;
    let rollouts = config
        .rollouts
        .iter()
        .zip(&chosen.weights)
        .zip(&chosen.counts)
        .zip(&chosen.versions)
        .map(|(((rollout, weight), counts), versions)| Rollout {
            name: Arc::clone(&rollout.name),
            split: Split::new(&rollout.salt, &rollout.key, *weight, rollout.overriding.as_ref()),
            requests: metrics.rollout(&rollout.name, versions.as_ref()),
            counts: counts.clone(),
        })
        .collect();
    for chose in &chosen.filters {
        chose.stable.resolve(Track::Stable, metrics);
        if let Some((_, canary)) = &chose.canary {
            canary.resolve(Track::Canary, metrics);
        }
    }
    for chose in &chosen.functions {
        chose.stable.resolve(Track::Stable, metrics);
        if let Some((_, canary)) = &chose.canary {
            canary.resolve(Track::Canary, metrics);
        }
    }
    Snapshot {
        generation,
        router: Router::new(config.routes.iter().map(|route| &route.matcher)),
        routes: config
            .routes
            .iter()
            .map(|route| build_route(facts, chosen, metrics, shadows, policies, route))
            .collect(),
        rollouts,
        middleware: config.routes.iter().any(|route| !route.middleware.is_empty()),
        limits: config.server.limits,
        trusted_proxies: Arc::clone(&config.server.trusted_proxies),
        listeners: config
            .listeners
            .iter()
            .zip(&facts.terms)
            .map(|(listener, terms)| Arc::new(Listening::new(listener, terms.clone(), metrics)))
            .collect(),
        requests_bound: policies.gateway(&config.server),
        pages: facts.bodies.pages(&config.server.error_pages),
        access_log: config.server.access_log.as_ref().map(Format::new),
        tracing: config.tracing.as_ref().map(|tracing| {
            let spans = tracing.otlp.as_ref().and_then(|otlp| collectors.of(otlp, &metrics.spans));
            Tracing::new(tracing, spans)
        }),
        unrouted: metrics.route(UNROUTED),
        requests: AtomicUsize::new(0),
    }
}

fn build_route(
    facts: &Facts,
    chosen: &Chosen,
    metrics: &Metrics,
    shadows: &Shadows,
    policies: &Policies,
    route: &model::Route,
) -> Route {
    let config = &*facts.config;
    let mut slots = Slots::default();
    let chain: Box<[Link]> = route
        .filters
        .iter()
        .filter_map(|&index| {
            let (filter, chose) = (config.filters.get(index)?, chosen.filters.get(index)?);
            let shadow = chose.canary.as_ref().and_then(|(rollout, canary)| {
                let options = (*chosen.shadows.get(*rollout)?)?;
                Some(shadows.of(&config.rollouts.get(*rollout)?.name, &chose.stable, canary, options, metrics))
            });
            Some(Link {
                filter: Arc::clone(&filter.name),
                on_failure: filter.policy.on_failure,
                versions: slots.pair(chose),
                shadow,
            })
        })
        .collect();
    let middleware = route.middleware.iter().map(|link| Middleware {
        after: link.after,
        on_failure: link.on_failure,
        versions: slots.pair(&chosen.functions[link.function]),
    });
    let middleware = middleware.collect();
    let target = match &route.target {
        model::Target::Upstream { upstream, alternatives } => {
            let all = || std::iter::once(upstream).chain(alternatives);
            Target::Upstream {
                upstreams: all()
                    .filter_map(|&index| chosen.upstreams.get(index))
                    .map(|chose| slots.pair(chose))
                    .collect(),
                names: all().filter_map(|&index| Some(Arc::clone(&config.upstreams.get(index)?.name))).collect(),
            }
        }
        model::Target::Function { function } => Target::Function(slots.pair(&chosen.functions[*function])),
        model::Target::Static(folder) => Target::Static {
            folder: Arc::new(Folder::new(folder, &route.matcher.path)),
            series: metrics.folder(&route.name),
        },
        model::Target::Redirect(redirect) => Target::Redirect(Redirect::new(redirect)),
        model::Target::Respond(response) => {
            let body = response.body.as_ref().map(|body| facts.bodies.of(body));
            Target::Respond(Fixed::new(response, body.unwrap_or_default()))
        }
    };
    let reachable = model::reached_upstreams(route, &config.rollouts, &config.filters, &config.functions);
    let reachable = reachable.into_iter().filter_map(|index| {
        Some((Arc::clone(&config.upstreams.get(index)?.name), slots.pair(chosen.upstreams.get(index)?)))
    });
    let reachable = reachable.collect();
    Route {
        name: Arc::clone(&route.name),
        reachable,
        place: Place::new(&route.matcher.path),
        shadowed: chain.iter().any(|link| link.shadow.is_some()),
        chain,
        middleware,
        upgrades: route.upgrades.clone().into(),
        compress: route.compress.clone().into(),
        grpc_web: route.grpc_web,
        gates: gates(config, &slots.0, &target),
        rollouts: slots.0.into_boxed_slice(),
        policy: policies.of(route, facts, chosen, metrics),
        target,
        series: metrics.route(&route.name),
    }
}

/// Returns for each of a route's rollouts the canaries of upstreams that move with it, as far as their health is known.
fn gates(config: &model::Config, rollouts: &[usize], target: &Target) -> Box<[Box<[Arc<Upstream>]>]> {
    let Target::Upstream { upstreams, .. } = target else { return Box::default() };
    let link = |rollout: usize| config.rollouts.get(rollout).and_then(|rollout| rollout.link.as_ref());
    let gates = rollouts.iter().map(|&of| {
        let moves_along = |other: usize| other == of || (link(of).is_some() && link(of) == link(other));
        let canaries = upstreams.iter().filter_map(|pair| pair.canary.as_ref());
        let canaries = canaries.filter(|(slot, canary)| {
            canary.config().health.is_some()
                && rollouts.get(usize::from(*slot)).is_some_and(|rollout| moves_along(*rollout))
        });
        canaries.map(|(_, canary)| Arc::clone(canary)).collect()
    });
    gates.collect()
}

/// The rollouts of one route, each with its slot.
#[derive(Default)]
struct Slots(Vec<usize>);

impl Slots {
    fn pair<T>(&mut self, chose: &Chose<T>) -> Pair<T> {
        Pair {
            stable: Arc::clone(&chose.stable),
            canary: chose
                .canary
                .as_ref()
                .and_then(|(rollout, canary)| Some((self.slot(*rollout)?, Arc::clone(canary)))),
        }
    }

    /// None past the last slot, which the configuration rules out.
    fn slot(&mut self, rollout: usize) -> Option<u8> {
        let slot = self.0.iter().position(|known| *known == rollout).unwrap_or_else(|| {
            self.0.push(rollout);
            self.0.len() - 1
        });
        u8::try_from(slot).ok().filter(|slot| usize::from(*slot) < Tracks::SLOTS)
    }
}
