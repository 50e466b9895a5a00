//! From a file to something that can serve: read, resolve, load. A *draft* is a file that was read, with the components
//! that it names; loading turns it into versions. Everything here blocks, and runs on threads that serve no request.
//!
//! All that is wrong is collected, shown at its place in the file, and nothing of it takes effect.

mod incomplete;
mod spelling;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lockgate_config::model::{
    AccessLog, Config, Filter, FilterVersion, FolderGrant, Function, FunctionVersion, KeyValueStore, LogOutput,
    RolloutSubject, Server, Target, Upstream,
};
use lockgate_config::problem::{Place, Problem, Report, Source};
use lockgate_host::{
    Digest, FilterSpec, FunctionSpec, Grants, Host, HostError, LoadError, Progress, StoreOptions, VersionId,
};
use parking_lot::Mutex;

use crate::control::Actor;
use crate::control::approvals::{gains_of_canaries, grown, waiting_stable};
use crate::control::export::Export;
use crate::control::facts::{Facts, function_spec, grants, shown, spec, version_without_component};
use crate::control::policies::Bodies;
use crate::control::reconcile::reconcile;
use crate::control::rollout::State;
use crate::control::state::{Store, StoreError};
use crate::control::time::Timestamp;
use crate::control::upstream::endpoints;
use crate::control::upstream::tls::Material;
use crate::control::watch::Fingerprint;
use crate::control::worlds;
use crate::tls::{self, Terms};
pub use incomplete::Incomplete;

/// Filters that are loaded at the same time. Compiling has threads of its own; what is left is reading, checking and
/// configuring, on the threads of the reload.
const LOADS_MAX: usize = 4;

/// A file that was read, with the components that it names.
#[derive(Debug)]
pub struct Draft {
    /// What it says.
    pub facts: Arc<Facts>,
    components: BTreeMap<PathBuf, Arc<[u8]>>,
}

/// A version that the file names.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The filter.
    pub filter: &'a Filter,
    /// The version, as the file has it.
    pub version: &'a FilterVersion,
    /// Which one that is.
    pub id: VersionId,
}

/// A version of a function that the file names.
#[derive(Clone, Copy, Debug)]
pub struct WantedFunction<'a> {
    /// The function.
    pub function: &'a Function,
    /// The version, as the file has it.
    pub version: &'a FunctionVersion,
    /// Which one that is.
    pub id: VersionId,
}

/// What was loaded, in the order in which it was wanted.
#[derive(Debug)]
pub struct Brought {
    /// Versions of filters.
    pub filters: Vec<Arc<lockgate_host::Filter>>,
    /// Versions of functions.
    pub functions: Vec<Arc<lockgate_host::Function>>,
}

/// Returns how a host is made for a configuration: the same for a gateway that serves and a command that only checks, so
/// that both find each other's artifacts.
pub fn host_options(server: &Server) -> lockgate_host::Options {
    lockgate_host::Options {
        cache_dir: server.cache_dir.clone(),
        cache_bytes_max: server.cache_size.bytes(),
        compile_threads: server.compile_threads,
        instances_max: server.instances,
        instance_memory_bytes_max: server.instance_memory.bytes(),
        key_file: server.cache_dir.with_added_extension("key"),
        store: match &server.key_value {
            KeyValueStore::Embedded => StoreOptions::Embedded { file: server.state_dir.join("key-value.db") },
            KeyValueStore::Redis(url) => StoreOptions::Redis { url: url.reveal().to_owned() },
        },
    }
}

/// Returns a host for a configuration.
///
/// # Errors
///
/// The engine cannot be started, or the cache's directory is not usable.
pub fn host(config: &Config) -> Result<Arc<Host>, HostError> {
    Host::new(host_options(&config.server))
}

impl Draft {
    /// Reads a file with the components and certificates that it names, and notes each in `seen` before it is read.
    /// What did not change of `serving` is taken over. Whether certificates are valid by now is left to
    /// [`Facts::untimely`].
    ///
    /// # Errors
    ///
    /// All that is wrong with the file, or with the files that it names.
    pub fn read(path: &Path, seen: &mut Fingerprint, serving: Option<&Facts>) -> Result<Self, Incomplete> {
        seen.note(path);
        let lockgate_config::Loaded { config, source } = lockgate_config::load(path)?;
        let (terms, problems) = read_terms(&config, &source, seen, serving);
        Self::of(config, source, seen, terms, problems, serving)
    }

    /// Does what [`Self::read`] does, but for certificates: whoever compiles components may have none.
    ///
    /// # Errors
    ///
    /// All that is wrong with the file, or with the components that it names.
    pub fn read_components(path: &Path) -> Result<Self, Incomplete> {
        let lockgate_config::Loaded { config, source } = lockgate_config::load(path)?;
        let none = config.listeners.iter().map(|_| None).collect();
        Self::of(config, source, &mut Fingerprint::default(), none, Vec::new(), None)
    }

    fn of(
        config: Config,
        source: Source,
        seen: &mut Fingerprint,
        terms: Vec<Option<Arc<Terms>>>,
        mut problems: Vec<Problem>,
        serving: Option<&Facts>,
    ) -> Result<Self, Incomplete> {
        let mut reader = Reader { source: &source, seen, components: BTreeMap::new(), problems: Vec::new() };
        let stable = config.filters.iter().map(|filter| reader.read(&filter.version)).collect::<Vec<_>>();
        let functions = config.functions.iter().map(|function| reader.read_function(&function.version));
        let functions = functions.collect::<Vec<_>>();
        let canaries = config.rollouts.iter().map(|rollout| match &rollout.subject {
            RolloutSubject::Filter { canary, .. } => reader.read(canary),
            RolloutSubject::Function { canary, .. } => reader.read_function(canary),
            RolloutSubject::Upstream { .. } => None,
        });
        let canaries = canaries.collect::<Vec<_>>();
        let upstream_tls = config.upstreams.iter().map(|upstream| reader.tls(upstream)).collect();
        for upstream in &config.upstreams {
            reader.check_endpoints(upstream, serving);
        }
        reader.check_access_log(&config.server);
        for route in &config.routes {
            if let Target::Static(files) = &route.target {
                reader.check_folder(&files.folder, &files.place);
            }
        }
        let bodies = reader.bodies(&config);
        let Reader { components, problems: unread, .. } = reader;
        problems.extend(unread);
        let components = components.into_iter().filter_map(|(path, read)| Some((path, read?.1))).collect();
        problems.extend(worlds::check(&config, &source, &components));
        // Of what cannot be read no version is known. Nobody asks for it: the draft is not handed out then.
        let known = |id: Option<VersionId>| id.unwrap_or_else(|| VersionId::of(&[], "", &Grants::default()));
        let stable = stable.into_iter().map(known).collect();
        let functions = functions.into_iter().map(known).collect();
        let mut facts = Facts::new(config, source, stable, functions, canaries, terms, upstream_tls);
        facts.bodies = bodies;
        let draft = Self { facts: Arc::new(facts), components };
        if problems.is_empty() { Ok(draft) } else { Err(Incomplete::new(draft, problems)) }
    }

    /// Returns every version of a filter that the file names: the stable ones, then the rollouts' canaries.
    pub fn versions(&self) -> Vec<Wanted<'_>> {
        let facts = &self.facts;
        let filters = &facts.config.filters;
        let stable = filters.iter().zip(&facts.stable);
        let stable = stable.map(|(filter, id)| Wanted { filter, version: &filter.version, id: *id });
        let canaries = facts.config.rollouts.iter().zip(&facts.canaries);
        let canaries = canaries.filter_map(|(rollout, id)| match (&rollout.subject, id) {
            (RolloutSubject::Filter { filter, canary }, Some(id)) => {
                Some(Wanted { filter: &filters[*filter], version: canary, id: *id })
            }
            _ => None,
        });
        stable.chain(canaries).collect()
    }

    /// Returns every version of a function that the file names: the stable ones, then the rollouts' canaries.
    pub fn functions(&self) -> Vec<WantedFunction<'_>> {
        let facts = &self.facts;
        let functions = &facts.config.functions;
        let stable = functions.iter().zip(&facts.functions);
        let stable = stable.map(|(function, id)| WantedFunction { function, version: &function.version, id: *id });
        let canaries = facts.config.rollouts.iter().zip(&facts.canaries);
        let canaries = canaries.filter_map(|(rollout, id)| match (&rollout.subject, id) {
            (RolloutSubject::Function { function, canary }, Some(id)) => {
                Some(WantedFunction { function: &functions[*function], version: canary, id: *id })
            }
            _ => None,
        });
        stable.chain(canaries).collect()
    }

    /// Returns the bytes of a component that the file names.
    pub fn component(&self, path: &Path) -> Option<&Arc<[u8]>> {
        self.components.get(path)
    }

    /// Returns what the state on disk overlays in the file, as the YAML that would bring the file up to it; none where the
    /// file says what is, or would be, in force. Changes nothing.
    ///
    /// # Errors
    ///
    /// The state cannot be read.
    pub fn overlaid(&self) -> Result<Option<String>, StoreError> {
        let facts = &self.facts;
        let restored = Store::at(&facts.config.server.state_dir).restore()?;
        let (saved, _) = reconcile(facts, &restored.saved, &Actor::gateway(), Timestamp::now());
        Ok(saved.rollouts.values().any(State::differs_from_file).then(|| Export { facts, saved: &saved }.to_string()))
    }

    /// Returns what the versions of the file may do that others may not, a line for each: canaries beside stable, and stable
    /// ones beside what served last where the state is known; the latter with a word about those that wait.
    pub fn gains(&self) -> Vec<String> {
        let facts = &self.facts;
        let restored = Store::at(&facts.config.server.state_dir).restore();
        let saved = restored.map(|restored| restored.saved).unwrap_or_default();
        let (next, _) = reconcile(facts, &saved, &Actor::gateway(), Timestamp::now());
        let waiting = waiting_stable(facts, &next, &saved);
        let waits = |subject: &str| waiting.iter().any(|waiting| subject.starts_with(&*waiting.subject));
        let stable = grown(facts, &next, &saved).into_iter().map(|(subject, gains)| {
            let waits = if waits(&subject) { "; it waits for `lockgate approve`" } else { "" };
            format!("{subject} may {gains}, and what served last may not{waits}")
        });
        stable.chain(gains_of_canaries(&facts.config)).collect()
    }

    /// Loads everything that the file names, for those who only want to know whether it loads.
    ///
    /// # Errors
    ///
    /// All that were refused, each at its place.
    pub fn load_all(&self, host: &Host, progress: &(dyn Progress + Sync)) -> Result<Brought, Report> {
        self.load(&self.versions(), &self.functions(), host, progress)
    }

    /// Loads versions, several at a time, and returns them in the same order.
    ///
    /// # Errors
    ///
    /// All that were refused, each at the place of its component or its settings.
    pub fn load(
        &self,
        wanted: &[Wanted<'_>],
        wanted_functions: &[WantedFunction<'_>],
        host: &Host,
        progress: &(dyn Progress + Sync),
    ) -> Result<Brought, Report> {
        let specs: Vec<FilterSpec> = wanted
            .iter()
            .map(|wanted| {
                let component = self.component(&wanted.version.component).cloned().unwrap_or_default();
                spec(wanted.filter, wanted.version.settings.reveal(), grants(&wanted.version.grants), component)
            })
            .collect();
        let mut problems = Vec::new();
        let mut filters = Vec::new();
        let loading = |spec: &FilterSpec| host.load(spec, progress);
        for (outcome, wanted) in load_each(&specs, loading).into_iter().zip(wanted) {
            match outcome {
                Ok(filter) => filters.push(filter),
                Err(error) => problems.push(problem(&self.facts.source, wanted, &error)),
            }
        }
        let specs: Vec<FunctionSpec> = wanted_functions
            .iter()
            .map(|wanted| {
                let component = self.component(&wanted.version.component).cloned().unwrap_or_default();
                function_spec(wanted.function, wanted.version, component)
            })
            .collect();
        let mut functions = Vec::new();
        let loading = |spec: &FunctionSpec| host.load_function(spec, progress);
        for (outcome, wanted) in load_each(&specs, loading).into_iter().zip(wanted_functions) {
            match outcome {
                Ok(function) => functions.push(function),
                Err(error) => problems.push(function_problem(&self.facts.source, wanted, &error)),
            }
        }
        if problems.is_empty() {
            Ok(Brought { filters, functions })
        } else {
            Err(Report::new(self.facts.source.clone(), problems))
        }
    }
}

/// Reads the terms of all listeners, and what is wrong with them.
fn read_terms(
    config: &Config,
    source: &Source,
    seen: &mut Fingerprint,
    serving: Option<&Facts>,
) -> (Vec<Option<Arc<Terms>>>, Vec<Problem>) {
    let mut read = |path: &Path| {
        seen.note(path);
        std::fs::read(path)
    };
    let mut reader = tls::Reader::new(source, &mut read);
    let terms = config
        .listeners
        .iter()
        .enumerate()
        .map(|(index, listener)| {
            let known = serving.and_then(|serving| serving.terms_of(&listener.address));
            listener.tls.as_ref().and_then(|tls| reader.terms(index, tls, known))
        })
        .collect();
    (terms, reader.finish())
}

/// A component's bytes, with their digest.
type Component = (Digest, Arc<[u8]>);

/// Reads components, each file once.
struct Reader<'a> {
    source: &'a Source,
    seen: &'a mut Fingerprint,
    /// None where it cannot be read.
    components: BTreeMap<PathBuf, Option<Component>>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    /// Tells a problem where the file of an upstream's endpoints cannot be used, unless it is in use: then its last good
    /// endpoints are, and another change must not fail by it.
    fn check_endpoints(&mut self, upstream: &Upstream, serving: Option<&Facts>) {
        let Some((path, place)) = &upstream.endpoints_file else { return };
        let in_use = |known: &Upstream| {
            known.name == upstream.name && known.endpoints_file.as_ref().is_some_and(|(known, _)| known == path)
        };
        if serving.is_some_and(|serving| serving.config.upstreams.iter().any(in_use)) {
            return;
        }
        let named = upstream.tls.as_ref().is_some_and(|tls| tls.server_name.is_none());
        if let Err(reason) = endpoints::read(path, named) {
            // So that the reload comes with the file.
            self.seen.note(path);
            let message = format!("cannot use `{}`: {reason}", shown(self.source, path).display());
            let hint = "it is a list of endpoints, as it could stand here: `[\"127.0.0.1:3000\"]`";
            self.problems.push(Problem::new(message, place.clone()).hint(hint));
        }
    }

    /// The file itself is opened when the configuration serves: a check leaves nothing behind.
    fn check_access_log(&mut self, server: &Server) {
        let Some(AccessLog { output, .. }) = &server.access_log else { return };
        let (LogOutput::File(file), Some(folder)) = (output, output.folder()) else { return };
        let message = if !folder.is_dir() {
            format!("`{}` is no folder", shown(self.source, folder).display())
        } else if file.is_dir() {
            format!("`{}` is a folder", shown(self.source, file).display())
        } else {
            return;
        };
        let problem = Problem::new(message, self.source.place_of("server.access_log.file"));
        self.problems.push(problem.hint("make the folder of the access log, and name a file in it"));
    }

    fn check_folder(&mut self, folder: &Path, place: &Place) {
        if folder.is_dir() {
            return;
        }
        // So that the reload comes with the folder.
        self.seen.note(folder);
        let shown = shown(self.source, folder).display();
        let problem = Problem::new(format!("`{shown}` is no folder"), place.clone());
        self.problems
            .push(problem.hint("make it, or name another; paths are relative to the configuration file's folder"));
    }

    fn read(&mut self, version: &FilterVersion) -> Option<VersionId> {
        let component = self.component(&version.component, &version.component_place)?;
        let without = VersionId::of(&[], version.settings.reveal(), &grants(&version.grants));
        Some(VersionId { component, ..without })
    }

    fn read_function(&mut self, version: &FunctionVersion) -> Option<VersionId> {
        for FolderGrant { path, place, .. } in &version.grants.folders {
            self.check_folder(path, place);
        }
        let component = self.component(&version.component, &version.component_place)?;
        Some(VersionId { component, ..version_without_component(version) })
    }

    fn component(&mut self, path: &Path, place: &Place) -> Option<Digest> {
        if !self.components.contains_key(path) {
            self.seen.note(path);
            let read = match std::fs::read(path) {
                Ok(bytes) => Some((Digest::of(&bytes), bytes.into())),
                Err(error) => {
                    let message = format!("cannot read component `{}`: {error}", shown(self.source, path).display());
                    let hint = "paths are relative to the configuration file's folder";
                    self.problems.push(Problem::new(message, place.clone()).hint(hint));
                    None
                }
            };
            self.components.insert(path.to_owned(), read);
        }
        self.components.get(path)?.as_ref().map(|(digest, _)| *digest)
    }

    /// Reads the files that stand in responses.
    fn bodies(&mut self, config: &Config) -> Bodies {
        let seen = &mut *self.seen;
        let read = |path: &Path| {
            seen.note(path);
            std::fs::read(path)
        };
        let (bodies, problems) = Bodies::read(config, |path| shown(self.source, path).display().to_string(), read);
        self.problems.extend(problems);
        bodies
    }

    /// Reads what TLS to an upstream needs.
    fn tls(&mut self, upstream: &Upstream) -> Option<Material> {
        let seen = &mut *self.seen;
        let mut read = |path: &Path| {
            seen.note(path);
            std::fs::read(path)
        };
        match Material::read(upstream.tls.as_ref()?, &mut read) {
            Ok(material) => Some(material),
            Err(problems) => {
                self.problems.extend(problems);
                None
            }
        }
    }
}

/// Does `load` for each of `specs`, several at a time.
fn load_each<S: Sync, T: Send>(specs: &[S], load: impl Fn(&S) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let outcomes: Vec<Mutex<Option<T>>> = specs.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..specs.len().min(LOADS_MAX) {
            scope.spawn(|| {
                while let Some(index) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < specs.len()) {
                    *outcomes[index].lock() = Some(load(&specs[index]));
                }
            });
        }
    });
    outcomes.into_iter().filter_map(Mutex::into_inner).collect()
}

/// Returns a refusal as a problem, where the operator wrote what was refused.
fn problem(source: &Source, wanted: &Wanted<'_>, error: &LoadError) -> Problem {
    let Wanted { filter, version, .. } = wanted;
    let spelt = |text: &str| spelling::as_written(text, version.settings.reveal(), &version.settings_written);
    let (message, place): (String, &Place) = match error {
        LoadError::Configure(complaint) => {
            let complaint = spelt(complaint);
            (format!("filter `{}` refuses its settings: {complaint}", filter.name), &version.settings_place)
        }
        LoadError::ConfigureFailed(_) => {
            (format!("filter `{}`: {}", filter.name, spelt(&error.to_string())), &version.settings_place)
        }
        LoadError::Limits(_) => (format!("filter `{}`: {error}", filter.name), &filter.place),
        _ => (format!("component `{}` {error}", shown(source, &version.component).display()), &version.component_place),
    };
    Problem::new(message, place.clone())
}

/// As [`problem`], for a function.
fn function_problem(source: &Source, wanted: &WantedFunction<'_>, error: &LoadError) -> Problem {
    let WantedFunction { function, version, .. } = wanted;
    let (message, place): (String, &Place) = match error {
        LoadError::Limits(_) => (format!("function `{}`: {error}", function.name), &function.place),
        LoadError::Folder { seen_as, problem } => {
            let folder = version.grants.folders.iter().find(|folder| folder.seen_as == *seen_as);
            let path = folder.map_or_else(|| Path::new(seen_as), |folder| shown(source, &folder.path));
            let place = folder.map_or(&function.place, |folder| &folder.place);
            (format!("function `{}`: the folder `{}` {problem}", function.name, path.display()), place)
        }
        _ => (format!("component `{}` {error}", shown(source, &version.component).display()), &version.component_place),
    };
    Problem::new(message, place.clone())
}
