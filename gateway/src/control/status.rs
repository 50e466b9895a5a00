//! What the operator sees: the state of everything, taken from what the control loop published last and from live
//! counters. Reading it waits for nothing and changes nothing.

mod view;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use lockgate_config::model::{self, FailureMode, HostPattern, PathPattern, RolloutSubject, Segment};
use lockgate_host::{Host, Lane};
use parking_lot::Mutex;

use crate::control::approvals::{Waiting, gains_of_canary, waiting_canaries};
use crate::control::choose::{self, Loaded, barred, state};
use crate::control::drain::DrainingView;
use crate::control::explain;
use crate::control::function::FunctionVersion;
use crate::control::judging::Looked;
use crate::control::quarantine::Entry;
use crate::control::rollout::State;
use crate::control::snapshot::Snapshot;
use crate::control::state::Saved;
use crate::control::time::Timestamp;
use crate::control::version::{Version, label_of};
use crate::control::why;
use crate::metrics::{FunctionSeries, VersionSeries};
use crate::track::Track;

pub use view::{
    ApprovalView, CacheView, CallsView, EndpointView, FilterView, FunctionVersionView, FunctionView, LastReload,
    QuarantineView, RequestsView, RolloutView, RouteView, Status, UpstreamView, VersionView,
};

/// What the control loop publishes after every change.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) loaded: Arc<Loaded>,
    pub(super) saved: Saved,
    pub(super) generation: u64,
    pub(super) deciding: bool,
    pub(super) trouble: Option<String>,
    pub(super) last_reload: LastReload,
    pub(super) unapproved: Vec<Waiting>,
    pub(super) draining: Arc<Mutex<Vec<DrainingView>>>,
}

impl Published {
    pub(super) fn status(
        &self,
        started: Instant,
        current: &Snapshot,
        host: &Host,
        looked: &BTreeMap<String, Looked>,
    ) -> Status {
        let config = &self.loaded.facts.config;
        let cache = host.cache().stats();
        Status {
            generation: self.generation,
            uptime_seconds: started.elapsed().as_secs(),
            deciding: self.deciding,
            state_trouble: self.trouble.clone(),
            last_reload: self.last_reload.clone(),
            routes: config.routes.iter().map(|route| self.route(route)).collect(),
            filters: (0..config.filters.len()).map(|index| self.filter(index)).collect(),
            functions: (0..config.functions.len()).map(|index| self.function(index)).collect(),
            upstreams: (0..config.upstreams.len()).map(|index| self.upstream(index)).collect(),
            rollouts: (0..config.rollouts.len())
                .filter_map(|index| self.rollout(index, current, Some(looked)))
                .collect(),
            quarantine: self.saved.quarantine.entries().map(quarantine).collect(),
            approvals: {
                let canaries = waiting_canaries(&self.loaded.facts, &self.saved);
                self.unapproved.iter().chain(&canaries).map(ApprovalView::of).collect()
            },
            draining: self.draining.lock().clone(),
            cache: CacheView {
                hits: cache.hits,
                misses: cache.misses,
                rejects: cache.rejects.into_iter().map(|(reason, count)| (reason.as_str().to_owned(), count)).collect(),
                compile_seconds: cache.compile_seconds,
            },
        }
    }

    pub(super) fn rollout(
        &self,
        index: usize,
        current: &Snapshot,
        looked: Option<&BTreeMap<String, Looked>>,
    ) -> Option<RolloutView> {
        let facts = &self.loaded.facts;
        let rollout = &facts.config.rollouts[index];
        let state = state(facts, &self.saved, index)?;
        let (subject, stable, canary) = match rollout.subject {
            RolloutSubject::Filter { filter, .. } => (
                format!("filter {}", facts.config.filters[filter].name),
                label_of(&facts.stable[filter]).to_string(),
                facts.canaries[index].as_ref().map(|id| label_of(id).to_string()).unwrap_or_default(),
            ),
            RolloutSubject::Function { function, .. } => (
                format!("function {}", facts.config.functions[function].name),
                label_of(&facts.functions[function]).to_string(),
                facts.canaries[index].as_ref().map(|id| label_of(id).to_string()).unwrap_or_default(),
            ),
            RolloutSubject::Upstream { upstream, canary } => (
                format!("upstream {}", facts.config.upstreams[upstream].name),
                facts.config.upstreams[upstream].name.to_string(),
                facts.config.upstreams[canary].name.to_string(),
            ),
        };
        let counted = current.rollouts.iter().find(|known| known.name == rollout.name);
        let requests = counted.map(|known| RequestsView {
            stable: known.requests.count(Track::Stable),
            canary: known.requests.count(Track::Canary),
        });
        let looked = looked.and_then(|looked| looked.get(&*rollout.name));
        let serving = match (state.is_under_way(), state.is_promoted()) {
            (true, _) => None,
            (false, true) => Some(canary.clone()),
            (false, false) => Some(stable.clone()),
        };
        Some(RolloutView {
            serving,
            step: why::step(state),
            steps: why::steps(state),
            hold_left_seconds: state.hold_left(Timestamp::now()).map(|left| left.as_secs_f64()),
            verdict: looked.filter(|looked| looked.since == state.since).map(|looked| looked.conclusion.as_str()),
            decider: match rollout.decider {
                model::Decider::Local => "local",
                model::Decider::External => "external",
            },
            link: rollout.link.as_ref().map(ToString::to_string),
            name: rollout.name.to_string(),
            subject,
            gains: gains_of_canary(&facts.config, rollout).iter().map(ToString::to_string).collect(),
            state: state.word(),
            why: state.why().map(ToString::to_string),
            since: state.since,
            weight: state.weight_in_effect().to_string(),
            weight_in_file: state.weight_in_file.to_string(),
            differs_from_file: state.differs_from_file(),
            stable,
            canary,
            key: rollout.key.iter().map(explain::name).collect(),
            salt: rollout.salt.to_string(),
            requests: requests.unwrap_or_default(),
        })
    }

    fn filter(&self, index: usize) -> FilterView {
        let facts = &self.loaded.facts;
        let filter = &facts.config.filters[index];
        let serving = choose::stable(&self.loaded, &self.saved, index);
        let trouble = barred(facts, &self.saved, index).map(|entry| {
            let bad = entry.held.label();
            if **serving.label() == *bad {
                format!("version {bad} is in quarantine ({}), and there is no last good version: failures are answered as `closed` answers them", entry.why)
            } else {
                format!("version {bad} is in quarantine ({}); the last good version {} serves", entry.why, serving.label())
            }
        });
        let history = self.saved.filters.get(&*filter.name);
        let last_good = history.map(|history| history.last_good.as_slice()).unwrap_or_default();
        FilterView {
            name: filter.name.to_string(),
            on_failure: match filter.policy.on_failure {
                FailureMode::Closed => "closed",
                FailureMode::Open => "open",
                FailureMode::FallBack { .. } => "fall-back",
            },
            isolation: isolation(filter.policy.isolation),
            serving: serving.label().to_string(),
            trouble,
            versions: self.loaded.versions(index).into_iter().map(|version| self.version(index, version)).collect(),
            last_good: last_good.iter().map(|kept| label_of(&kept.version).to_string()).collect(),
        }
    }

    fn function(&self, index: usize) -> FunctionView {
        let facts = &self.loaded.facts;
        let function = &facts.config.functions[index];
        let rollout = facts.rollout_of_function(index);
        let state = rollout.and_then(|(rollout, ..)| state(facts, &self.saved, rollout));
        let canary = rollout.map(|(_, version, id)| (id, version));
        // What the promoted canary serves, it serves as the stable version.
        let serving = match canary {
            Some((canary, _)) if state.is_some_and(State::is_promoted) => canary,
            _ => facts.functions[index],
        };
        let view = |version: &Arc<FunctionVersion>| {
            let id = version.id();
            let is_canary = canary.is_some_and(|(canary, _)| canary == *id);
            let live = version.function().live();
            let path = match canary {
                Some((_, canary)) if is_canary => &canary.component,
                _ => &function.version.component,
            };
            FunctionVersionView {
                label: version.label().to_string(),
                component_digest: format!("{:#}", id.component),
                vars_digest: format!("{:#}", id.settings),
                grants_digest: format!("{:#}", id.grants),
                component: facts.shown(path).display().to_string(),
                role: if *id == serving {
                    "stable"
                } else if is_canary && state.is_some_and(State::is_under_way) {
                    "canary"
                } else {
                    "none"
                },
                instances: live.instances,
                memory_bytes: live.memory_bytes,
                calls: CallsView::of(|track| version.series(track).map(FunctionSeries::summary)),
                quarantined: self.saved.quarantine.of_function(&function.name, id).map(|entry| entry.why.to_string()),
            }
        };
        FunctionView {
            name: function.name.to_string(),
            isolation: isolation(function.policy.isolation),
            serving: label_of(&serving).to_string(),
            versions: self.loaded.function_versions(index).into_iter().map(view).collect(),
        }
    }

    fn version(&self, filter: usize, version: &Version) -> VersionView {
        let facts = &self.loaded.facts;
        let name = &facts.config.filters[filter].name;
        let (id, running) = (version.id(), version.filter());
        let rollout = facts.rollout_of_filter(filter);
        let is_canary = rollout.is_some_and(|(rollout, _, canary)| {
            canary == *id && state(facts, &self.saved, rollout).is_some_and(State::is_under_way)
        });
        let role = if choose::stable(&self.loaded, &self.saved, filter).id() == id {
            "stable"
        } else if is_canary {
            "canary"
        } else {
            "none"
        };
        let phases = running.phases();
        let phases = [
            (phases.on_request, "on-request"),
            (phases.on_request_body, "on-request-body"),
            (phases.on_response, "on-response"),
            (phases.on_response_body, "on-response-body"),
        ];
        let live = running.live();
        VersionView {
            label: version.label().to_string(),
            component_digest: format!("{:#}", id.component),
            settings_digest: format!("{:#}", id.settings),
            grants_digest: format!("{:#}", id.grants),
            component: self.component(filter, version),
            role,
            phases: phases.into_iter().filter_map(|(has, name)| has.then_some(name)).collect(),
            lane: match running.lane() {
                Lane::Inline => "inline",
                Lane::Fibre => "fibre",
            },
            snapshotted: running.snapshotted().is_ok(),
            not_snapshotted_because: running.snapshotted().err().map(ToOwned::to_owned),
            instances: live.instances,
            memory_bytes: live.memory_bytes,
            calls: CallsView::of(|track| version.series(track).map(VersionSeries::summary)),
            quarantined: self.saved.quarantine.of_filter(name, id).map(|entry| entry.why.to_string()),
        }
    }

    /// Returns the path from which a version's component was read.
    fn component(&self, filter: usize, version: &Version) -> String {
        let facts = &self.loaded.facts;
        let stable = (facts.stable[filter], &facts.config.filters[filter].version.component);
        let canary = facts.rollout_of_filter(filter).map(|(_, canary, id)| (id, &canary.component));
        let history = self.saved.filters.get(&*facts.config.filters[filter].name);
        let last_good = history.into_iter().flat_map(|history| &history.last_good);
        let known = std::iter::once(stable).chain(canary).chain(last_good.map(|kept| (kept.version, &kept.component)));
        let mut found = known.filter(|(id, _)| id == version.id());
        found.next().map(|(_, path)| facts.shown(path).display().to_string()).unwrap_or_default()
    }

    fn upstream(&self, index: usize) -> UpstreamView {
        let facts = &self.loaded.facts;
        let upstream = &self.loaded.upstreams[index];
        let (pool, now_ms) = (upstream.pool(), upstream.millis(Instant::now()));
        let promoted = facts
            .rollout_of_upstream(index)
            .filter(|(rollout, _)| state(facts, &self.saved, *rollout).is_some_and(State::is_promoted));
        let serving = promoted.map_or(index, |(_, canary)| canary);
        UpstreamView {
            name: upstream.name().to_string(),
            serving: facts.config.upstreams[serving].name.to_string(),
            protocol: match upstream.config().protocol {
                model::UpstreamProtocol::Http1 => "http1",
                model::UpstreamProtocol::H2c => "h2c",
                model::UpstreamProtocol::H2 => "h2",
                model::UpstreamProtocol::Auto => "auto",
            },
            pending: upstream.room().pending(),
            endpoints: pool
                .members()
                .iter()
                .map(|member| EndpointView {
                    address: member.address.to_string(),
                    weight: member.weight,
                    state: match (member.is_healthy(), member.is_ejected(now_ms)) {
                        (false, _) => "unhealthy",
                        (true, true) => "ejected",
                        (true, false) => "usable",
                    },
                    requests: member.in_flight(),
                    connections: member.connections().open(),
                })
                .collect(),
        }
    }

    fn route(&self, route: &model::Route) -> RouteView {
        let config = &self.loaded.facts.config;
        let name = |index: &usize| config.upstreams[*index].name.to_string();
        let matcher = &route.matcher;
        let mut view = RouteView {
            name: route.name.to_string(),
            hosts: matcher.hosts.iter().map(host).collect(),
            path: path(&matcher.path),
            methods: matcher.methods.clone(),
            headers: matcher
                .headers
                .iter()
                .map(|header| match &header.value {
                    Some(value) => format!("{}: {value}", header.name),
                    None => header.name.clone(),
                })
                .collect(),
            filters: chain(route, config),
            upstream: None,
            function: None,
            alternatives: Vec::new(),
            folder: None,
            redirect: None,
            respond: None,
        };
        match &route.target {
            model::Target::Upstream { upstream, alternatives } => {
                view.upstream = Some(name(upstream));
                view.alternatives = alternatives.iter().map(name).collect();
            }
            model::Target::Function { function } => {
                view.function = Some(config.functions[*function].name.to_string());
            }
            model::Target::Static(files) => {
                view.folder = Some(self.loaded.facts.shown(&files.folder).display().to_string());
            }
            model::Target::Redirect(redirect) => view.redirect = Some(redirect.to.to_string()),
            model::Target::Respond(response) => view.respond = Some(response.status),
        }
        view
    }
}

/// Returns the names of a chain, in the order of the request.
fn chain(route: &model::Route, config: &model::Config) -> Vec<String> {
    let mut names: Vec<String> = route.filters.iter().map(|index| config.filters[*index].name.to_string()).collect();
    for link in route.middleware.iter().rev() {
        names.insert(link.after, config.functions[link.function].name.to_string());
    }
    names
}

fn quarantine(entry: &Entry) -> QuarantineView {
    QuarantineView {
        subject: entry.held.subject(),
        version: entry.held.label(),
        why: entry.why.to_string(),
        since: entry.since,
    }
}

fn isolation(isolation: model::Isolation) -> &'static str {
    match isolation {
        model::Isolation::Request => "request",
        model::Isolation::Reused { .. } => "reused",
    }
}

fn host(pattern: &HostPattern) -> String {
    match pattern {
        HostPattern::Exact(host) => host.clone(),
        HostPattern::Wildcard(rest) => format!("*{rest}"),
    }
}

fn path(pattern: &PathPattern) -> String {
    match pattern {
        PathPattern::Exact(path) => path.clone(),
        PathPattern::Prefix(path) => format!("{path}*"),
        PathPattern::Template(segments) => segments
            .iter()
            .map(|segment| match segment {
                Segment::Literal(text) => format!("/{text}"),
                Segment::Parameter(name) => format!("/{{{name}}}"),
            })
            .collect(),
    }
}
