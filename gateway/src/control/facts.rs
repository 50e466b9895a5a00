//! What the file says, and what it names: the resolved configuration with the digests of every version in it. *Facts*
//! do not change; a reload replaces them whole.

use std::path::Path;
use std::sync::Arc;

use lockgate_config::model::{
    self, Config, Filter, FilterVersion, Function, FunctionVersion, ListenAddress, RolloutSubject,
};
use lockgate_config::problem::{Place, Problem, Source};
use lockgate_config::units::Secret;
use lockgate_host::{
    FilterSpec, FolderGrant, FunctionLimits, FunctionSpec, Grants, Isolation, Limits, OutboundGrant, UpstreamGrant,
    VersionId,
};
use serde_json::Value;

use crate::control::policies::Bodies;
use crate::control::quarantine::Held;
use crate::control::rollout::Versions;
use crate::control::time::Timestamp;
use crate::control::upstream::digest_of;
use crate::control::upstream::tls::Material;
use crate::tls::{Certificate, Terms};

/// What the file says.
#[derive(Debug)]
pub struct Facts {
    /// The configuration.
    pub config: Arc<Config>,
    /// The file's text, to show problems in.
    pub source: Source,
    /// The stable version of each filter, in the configuration's order.
    pub stable: Vec<VersionId>,
    /// The stable version of each function, in the configuration's order.
    pub functions: Vec<VersionId>,
    /// The canary of each rollout, in the configuration's order; none for one that moves an upstream.
    pub canaries: Vec<Option<VersionId>>,
    /// How TLS ends on each listener, in the configuration's order; none in the clear.
    pub terms: Vec<Option<Arc<Terms>>>,
    /// What was read for TLS to each upstream, in the configuration's order.
    pub upstream_tls: Vec<Option<Material>>,
    /// What was read of the files that stand in responses.
    pub bodies: Bodies,
    /// The configuration without its places, to tell whether a file means the same as another.
    meaning: Value,
}

impl Facts {
    /// Puts together what was found out; [`Self::bodies`] is added by whoever has read them.
    pub fn new(
        config: Config,
        source: Source,
        stable: Vec<VersionId>,
        functions: Vec<VersionId>,
        canaries: Vec<Option<VersionId>>,
        terms: Vec<Option<Arc<Terms>>>,
        upstream_tls: Vec<Option<Material>>,
    ) -> Self {
        let meaning = lockgate_config::dump(&config);
        let bodies = Bodies::default();
        Self { config: Arc::new(config), source, stable, functions, canaries, terms, upstream_tls, bodies, meaning }
    }

    /// Returns whether nothing but the file's layout differs.
    pub fn mean_the_same_as(&self, other: &Self) -> bool {
        let files = |facts: &Self| facts.terms.iter().flatten().map(|terms| terms.files()).collect::<Vec<_>>();
        // The dump hides secrets, the collector's headers among them. Those of settings are in the versions' digests.
        self.stable == other.stable
            && self.functions == other.functions
            && self.canaries == other.canaries
            && self.upstream_tls == other.upstream_tls
            && self.bodies == other.bodies
            && self.config.admin.token == other.config.admin.token
            && self.config.tracing == other.config.tracing
            && files(self) == files(other)
            && self.meaning == other.meaning
    }

    /// Returns how TLS ends on a listener, by its address as configured.
    pub fn terms_of(&self, address: &ListenAddress) -> Option<&Arc<Terms>> {
        let index = self.config.listeners.iter().position(|listener| listener.address == *address)?;
        self.terms.get(index)?.as_ref()
    }

    /// Returns all certificates, with the addresses of their listeners.
    pub fn certificates(&self) -> impl Iterator<Item = (&ListenAddress, &Certificate)> {
        let listeners = self.config.listeners.iter().zip(&self.terms);
        listeners.flat_map(|(listener, terms)| {
            let certificates = terms.iter().flat_map(|terms| &terms.certificates);
            certificates.map(|certificate| (&listener.address, certificate))
        })
    }

    /// Returns a problem for each certificate that is not valid at `now`. One that `serving` has as well is none: it
    /// would go on to serve if nothing happened, and what happens now is not its doing.
    pub fn untimely(&self, now: Timestamp, serving: Option<&Self>) -> Vec<Problem> {
        let serves = |certificate: &Certificate| {
            serving.is_some_and(|serving| serving.certificates().any(|(_, known)| known == certificate))
        };
        let now = i64::try_from(now.millis() / 1000).unwrap_or(i64::MAX);
        let date = |seconds: i64| Timestamp::from_millis(u64::try_from(seconds).unwrap_or_default() * 1000);
        let mut problems = Vec::new();
        for (listener, terms) in self.terms.iter().enumerate() {
            let certificates = terms.iter().flat_map(|terms| &terms.certificates).enumerate();
            for (index, certificate) in certificates.filter(|(_, certificate)| !serves(certificate)) {
                let file = &certificate.file;
                let (message, hint) = if certificate.not_after < now {
                    let date = date(certificate.not_after);
                    (format!("certificate `{file}` expired at {date}"), "put the renewed one in its place")
                } else if now < certificate.not_before {
                    let date = date(certificate.not_before);
                    (format!("certificate `{file}` is not valid before {date}"), "is this machine's clock right?")
                } else {
                    continue;
                };
                let path = format!("listeners[{listener}].tls.certificates[{index}].cert");
                problems.push(Problem::new(message, self.source.place_of(&path)).hint(hint));
            }
        }
        problems
    }

    /// Returns the index of a rollout.
    pub fn rollout(&self, name: &str) -> Option<usize> {
        self.config.rollouts.iter().position(|rollout| &*rollout.name == name)
    }

    /// Returns the index of a filter.
    pub fn filter(&self, name: &str) -> Option<usize> {
        self.config.filters.iter().position(|filter| &*filter.name == name)
    }

    /// Returns the index of a function.
    pub fn function(&self, name: &str) -> Option<usize> {
        self.config.functions.iter().position(|function| &*function.name == name)
    }

    /// Returns the index of the rollout that moves a filter, and its canary.
    pub fn rollout_of_filter(&self, filter: usize) -> Option<(usize, &FilterVersion, VersionId)> {
        self.config.rollouts.iter().enumerate().find_map(|(index, rollout)| match &rollout.subject {
            RolloutSubject::Filter { filter: moved, canary } if *moved == filter => {
                Some((index, canary, self.canaries[index]?))
            }
            _ => None,
        })
    }

    /// Returns the index of the rollout that moves a function, and its canary.
    pub fn rollout_of_function(&self, function: usize) -> Option<(usize, &FunctionVersion, VersionId)> {
        self.config.rollouts.iter().enumerate().find_map(|(index, rollout)| match &rollout.subject {
            RolloutSubject::Function { function: moved, canary } if *moved == function => {
                Some((index, canary, self.canaries[index]?))
            }
            _ => None,
        })
    }

    /// Returns the index of the rollout that moves an upstream, and that of its canary.
    pub fn rollout_of_upstream(&self, upstream: usize) -> Option<(usize, usize)> {
        self.config.rollouts.iter().enumerate().find_map(|(index, rollout)| match rollout.subject {
            RolloutSubject::Upstream { upstream: moved, canary } if moved == upstream => Some((index, canary)),
            _ => None,
        })
    }

    /// Returns a rollout and those that move together with it, in the configuration's order.
    pub fn linked(&self, rollout: usize) -> Vec<usize> {
        let rollouts = &self.config.rollouts;
        let link = &rollouts[rollout].link;
        let linked = |index: usize| index == rollout || (link.is_some() && rollouts[index].link == *link);
        (0..rollouts.len()).filter(|index| linked(*index)).collect()
    }

    /// Returns what a rollout moves, by digests.
    pub fn versions(&self, rollout: usize) -> Versions {
        let filter = |id: &VersionId| format!("{:#}/{:#}/{:#}", id.component, id.settings, id.grants);
        let upstream = |index: usize| {
            let upstream = &self.config.upstreams[index];
            format!("{}@{}", upstream.name, digest_of(upstream))
        };
        match self.config.rollouts[rollout].subject {
            RolloutSubject::Function { function: index, .. } => Versions {
                stable: filter(&self.functions[index]),
                canary: self.canaries[rollout].as_ref().map(filter).unwrap_or_default(),
            },
            RolloutSubject::Filter { filter: index, .. } => Versions {
                stable: filter(&self.stable[index]),
                canary: self.canaries[rollout].as_ref().map(filter).unwrap_or_default(),
            },
            RolloutSubject::Upstream { upstream: index, canary } => {
                Versions { stable: upstream(index), canary: upstream(canary) }
            }
        }
    }

    /// Returns a rollout's canary, as the quarantine knows it.
    pub fn canary(&self, rollout: usize) -> Option<Held> {
        let Config { filters, functions, upstreams, .. } = &*self.config;
        Some(match self.config.rollouts[rollout].subject {
            RolloutSubject::Filter { filter, .. } => {
                Held::Filter { filter: filters[filter].name.to_string(), version: self.canaries[rollout]? }
            }
            RolloutSubject::Function { function, .. } => {
                Held::Function { function: functions[function].name.to_string(), version: self.canaries[rollout]? }
            }
            RolloutSubject::Upstream { upstream, .. } => Held::Upstream {
                upstream: upstreams[upstream].name.to_string(),
                version: self.versions(rollout).canary,
            },
        })
    }

    /// Returns a path as the file would have it: relative to the file's folder where it is below it.
    pub fn shown<'a>(&self, path: &'a Path) -> &'a Path {
        shown(&self.source, path)
    }

    /// Returns a problem for each setting that differs from `current` but is read at start only.
    pub fn needing_restart(&self, current: &Self) -> Vec<Problem> {
        let (next, now) = (&self.config.server, &current.config.server);
        let mut problems = Vec::new();
        let mut check = |key: &str, now: String, next: String| {
            if now != next {
                let message = format!("`{key}` is read at start only: `{now}` is in force, the file says `{next}`");
                let hint = "to change it without a failed request, run `lockgate upgrade`; a restart does as well";
                problems.push(Problem::new(message, Place::none()).hint(hint));
            }
        };
        check("server.threads", now.threads.to_string(), next.threads.to_string());
        check("server.compile_threads", now.compile_threads.to_string(), next.compile_threads.to_string());
        check("server.state_dir", now.state_dir.display().to_string(), next.state_dir.display().to_string());
        check("server.cache_dir", now.cache_dir.display().to_string(), next.cache_dir.display().to_string());
        check("server.cache_size", now.cache_size.to_string(), next.cache_size.to_string());
        check("server.instances", now.instances.to_string(), next.instances.to_string());
        check("server.instance_memory", now.instance_memory.to_string(), next.instance_memory.to_string());
        let streams = |server: &model::Server| server.limits.http2_streams.to_string();
        check("server.limits.http2_streams", streams(now), streams(next));
        check("admin.address", admin(&current.config), admin(&self.config));
        if now.key_value != next.key_value {
            // The addresses may hold passwords.
            let message =
                "`server.key_value` is read at start only: the file names another store than the one in force";
            let hint = "to change it without a failed request, run `lockgate upgrade`; a restart does as well";
            problems.push(Problem::new(message, Place::none()).hint(hint));
        }
        problems
    }
}

/// Returns a path as a file would have it.
pub(super) fn shown<'a>(source: &Source, path: &'a Path) -> &'a Path {
    source.file.parent().and_then(|folder| path.strip_prefix(folder).ok()).unwrap_or(path)
}

fn admin(config: &Config) -> String {
    match &config.admin.address {
        model::ListenAddress::Tcp(address) => address.to_string(),
        model::ListenAddress::Unix(path) => format!("unix:{}", path.display()),
    }
}

/// Returns grants as the host takes them.
pub fn grants(grants: &model::Grants) -> Grants {
    let outbound = grants.outbound.iter();
    let folders = grants.folders.iter();
    Grants {
        outbound: outbound
            .map(|grant| OutboundGrant {
                tls: grant.tls,
                host: grant.host.clone(),
                port: grant.port,
                methods: grant.methods.clone(),
                addresses: grant.addresses.clone(),
            })
            .collect(),
        upstreams: grants
            .upstreams
            .iter()
            .map(|grant| UpstreamGrant { upstream: grant.name.to_string(), methods: grant.methods.clone() })
            .collect(),
        folders: folders
            .map(|folder| FolderGrant {
                // A version must not depend on where the gateway was started.
                path: std::path::absolute(&folder.path).unwrap_or_else(|_| folder.path.clone()),
                seen_as: folder.seen_as.clone(),
                write: folder.write,
            })
            .collect(),
        key_value: grants.key_value.clone(),
    }
}

/// Returns what the host is to load: a version under the filter's policy.
pub fn spec(filter: &Filter, settings: &str, grants: Grants, component: Arc<[u8]>) -> FilterSpec {
    let limits = filter.policy.limits;
    FilterSpec {
        name: Arc::clone(&filter.name),
        component,
        settings: settings.to_owned(),
        grants,
        isolation: isolation(filter.policy.isolation),
        limits: Limits {
            deadline: limits.deadline,
            configure_deadline: limits.configure_deadline,
            memory_bytes: limits.memory.bytes(),
            table_elements: limits.table_elements,
            copy_bytes: limits.copy.bytes(),
            instances: limits.instances,
            body_bytes: limits.body.bytes(),
            key_value_bytes: limits.key_value.bytes(),
            key_value_entries: limits.key_value_entries,
        },
    }
}

/// Returns what the host is to load: a version of a function under its policy.
pub fn function_spec(function: &Function, version: &FunctionVersion, component: Arc<[u8]>) -> FunctionSpec {
    let limits = function.policy.limits;
    FunctionSpec {
        name: Arc::clone(&function.name),
        component,
        vars: texts(&version.vars),
        config: texts(&version.config),
        grants: grants(&version.grants),
        isolation: isolation(function.policy.isolation),
        limits: FunctionLimits {
            deadline: limits.deadline,
            cpu: limits.cpu,
            memory_bytes: limits.memory.bytes(),
            table_elements: limits.table_elements,
            instances: limits.instances,
            key_value_bytes: limits.key_value.bytes(),
            key_value_entries: limits.key_value_entries,
        },
    }
}

/// Returns the id of a function's version but for its component, whose digest is that of nothing.
pub fn version_without_component(version: &FunctionVersion) -> VersionId {
    FunctionSpec::version_of(&[], &texts(&version.vars), &texts(&version.config), &grants(&version.grants))
}

fn texts(named: &[(String, Secret)]) -> Vec<(String, String)> {
    named.iter().map(|(name, value)| (name.clone(), value.reveal().to_owned())).collect()
}

fn isolation(isolation: model::Isolation) -> Isolation {
    match isolation {
        model::Isolation::Request => Isolation::Request,
        model::Isolation::Reused { requests, memory } => Isolation::Reused { requests, memory_bytes: memory.bytes() },
    }
}
