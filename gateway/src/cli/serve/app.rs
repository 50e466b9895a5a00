//! An *application* is a folder whose files are routes. It is looked at again whenever something in it changes: what is new
//! is loaded for a trial, what passes is copied, and a configuration that names the copies is written, which the gateway
//! reloads as it does any other. So a file that is broken, or half written, changes nothing: its last good version stays.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockgate_config::problem::{Place, Problem, Report, Source};
use lockgate_host::{Digest, Host};
use serde::{Deserialize, Serialize};

use super::listing::Listing;
use super::settings::rebased;
use super::tree::{COMPONENT, PUBLIC, Plan, Planned, SETTINGS};
use crate::cli::progress::progress_of_command;
use crate::control::reload::{Draft, host_options};
use crate::control::watch::Fingerprint;

/// What the trial's host may have alive: one instance, however many slots that takes.
const TRIAL_INSTANCES: u32 = 8;

/// The folder that is served where there is nothing to serve. It stays empty.
const NOTHING: &str = "nothing";

/// What allows WASI 0.3, in the words of whoever has a configuration, and of whoever has none.
const BY_CONFIGURATION: &str = "add `experimental: [wasi-0.3]` to the configuration";
const BY_COMMAND_LINE: &str = "serve with `--experimental wasi-0.3`";

/// How far a component's settings are indented in the configuration.
const INDENT: &str = "    ";

/// What an application is served with.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    /// Its folder, absolute.
    pub(super) root: PathBuf,
    /// Where the configuration, the copies and the state are, absolute.
    pub(super) state: PathBuf,
    /// What stands before all paths: nothing, or `/api`.
    pub(super) prefix: String,
    /// Where it listens, as the configuration has it.
    pub(super) listen: String,
    /// Where the operator comes in, as the configuration has it.
    pub(super) admin: String,
    /// What is experimental and asked for, as the configuration has it.
    pub(super) experimental: Vec<String>,
}

impl Setup {
    /// Returns the path of the configuration.
    pub(super) fn config(&self) -> PathBuf {
        self.state.join("lockgate.yaml")
    }

    fn components(&self) -> PathBuf {
        self.state.join("components")
    }

    fn good(&self) -> PathBuf {
        self.state.join("good.json")
    }
}

/// An application that is served.
#[derive(Debug)]
pub(super) struct App {
    setup: Setup,
    /// What serves, by the component's path in the folder.
    good: BTreeMap<String, Good>,
    /// What each component and its settings looked like when they were tried last.
    tried: BTreeMap<String, Fingerprint>,
    /// What was wrong when they were.
    wrong: BTreeMap<String, String>,
    /// What has been complained about.
    told: BTreeSet<String>,
    /// What the configuration says.
    written: String,
    plan: Plan,
}

/// A version that passed its trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Good {
    component: Digest,
    /// As they were written.
    settings: String,
}

impl App {
    /// Returns an application, with what was good when it was served last.
    pub(super) fn open(setup: Setup) -> io::Result<Self> {
        fs::create_dir_all(setup.components().join(NOTHING))?;
        // The folder may be under version control, and this is nothing to commit.
        write(&setup.state.join(".gitignore"), b"*\n")?;
        // Without it, or where it is damaged, nothing but the folder counts.
        let good = fs::read(setup.good()).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Ok(Self {
            setup,
            good,
            tried: BTreeMap::new(),
            wrong: BTreeMap::new(),
            told: BTreeSet::new(),
            written: String::new(),
            plan: Plan::default(),
        })
    }

    /// Returns the routes with what answers them, in the order of the paths.
    pub(super) fn routes(&self) -> Vec<(String, String)> {
        let components = self.plan.components.iter().filter(|planned| self.good.contains_key(&planned.file));
        let mut routes: Vec<(String, String)> = components
            .flat_map(|planned| planned.patterns.iter().map(|pattern| (pattern.clone(), planned.file.clone())))
            .collect();
        routes.extend(self.plan.public.iter().map(|pattern| (pattern.clone(), format!("{PUBLIC}/"))));
        routes.sort();
        routes
    }

    /// Brings what is served up to what is in the folder.
    ///
    /// # Errors
    ///
    /// The configuration or a copy cannot be written: what served before goes on.
    pub(super) fn update(&mut self) -> io::Result<()> {
        let listing = Listing::of(&self.setup.root);
        self.plan = Plan::new(&self.setup.prefix, listing.components.iter().map(String::as_str), listing.has_public);
        let mut host = None;
        for planned in self.plan.components.clone() {
            let mut seen = Fingerprint::default();
            seen.note(&self.setup.root.join(&planned.file));
            seen.note(&settings_of(&self.setup.root, &planned.file));
            if self.tried.get(&planned.file) == Some(&seen) {
                continue;
            }
            self.wrong.remove(&planned.file);
            match self.try_out(&planned, &mut host)? {
                Ok(good) => self.accept(&planned, good),
                Err(why) => {
                    // Another gateway may have found it good.
                    if let Some(good) = self.good.get(&planned.file)
                        && self.written.is_empty()
                        && self.load(&planned, good, &mut host)?.is_err()
                    {
                        self.good.remove(&planned.file);
                    }
                    let stays = match self.good.contains_key(&planned.file) {
                        true => "its last good version stays",
                        false => "it is not served",
                    };
                    self.wrong.insert(planned.file.clone(), format!("{stays}: {why}"));
                }
            }
            self.tried.insert(planned.file.clone(), seen);
        }
        let planned: BTreeSet<&String> = self.plan.components.iter().map(|planned| &planned.file).collect();
        self.tried.retain(|file, _| planned.contains(file));
        self.wrong.retain(|file, _| planned.contains(file));
        self.good.retain(|file, _| {
            let stays = planned.contains(file);
            if !stays {
                tracing::info!(file, "gone");
            }
            stays
        });
        self.complain(listing.complaints);
        self.write()
    }

    fn accept(&mut self, planned: &Planned, good: Good) {
        let Planned { file, patterns, .. } = planned;
        let before = self.good.get(file);
        if before == Some(&good) {
            return;
        }
        let what = if before.is_some() { "changed" } else { "new" };
        tracing::info!(file, paths = patterns.join(" "), component = %good.component, "{what}");
        self.good.insert(file.clone(), good);
    }

    /// Says what is wrong, once for as long as it is.
    fn complain(&mut self, of_files: Vec<String>) {
        let wrong = self.wrong.iter().map(|(file, why)| format!("`{file}`: {why}"));
        let now: BTreeSet<String> = wrong.chain(self.plan.complaints.iter().cloned()).chain(of_files).collect();
        for complaint in now.difference(&self.told) {
            tracing::warn!("{complaint}");
        }
        self.told = now;
    }

    /// Loads a component as the gateway would. The inner error says why it is not served.
    fn try_out(&self, planned: &Planned, host: &mut Option<Arc<Host>>) -> io::Result<Result<Good, String>> {
        let root = &self.setup.root;
        let component = match fs::read(root.join(&planned.file)) {
            Ok(component) => component,
            Err(error) => return Ok(Err(format!("it cannot be read: {error}"))),
        };
        let file = settings_of(root, &planned.file);
        let settings = match fs::read_to_string(&file) {
            Ok(settings) => settings,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Ok(Err(format!("its settings cannot be read: {error}"))),
        };
        let good = Good { component: Digest::of(&component), settings };
        // The very bytes that are tried, whatever becomes of the file meanwhile.
        let copy = self.setup.components().join(format!("{:#}{COMPONENT}", good.component));
        if !copy.is_file() {
            write(&copy, &component)?;
        }
        if self.good.get(&planned.file) == Some(&good) && !self.written.is_empty() {
            return Ok(Ok(good));
        }
        Ok(match self.load(planned, &good, host)? {
            Ok(()) => Ok(good),
            Err(report) => Err(self.explain(report, planned, &good)),
        })
    }

    fn load(&self, planned: &Planned, good: &Good, host: &mut Option<Arc<Host>>) -> io::Result<Result<(), Report>> {
        let trial = self.setup.state.join("trial.yaml");
        write(&trial, self.render([(planned, good)], None).as_bytes())?;
        Ok(load(&trial, host))
    }
    /// Returns what is wrong with a component, in words about the files of the folder.
    fn explain(&self, report: Report, planned: &Planned, good: &Good) -> String {
        let copy = format!("`components/{:#}{COMPONENT}`", good.component);
        let above = self.render([(planned, good)], None).lines().take_while(|line| !is_marker(line)).count() + 1;
        let settings = good.settings.lines().count();
        let (mut of_settings, mut words) = (Vec::new(), Vec::new());
        for mut problem in report.problems {
            let line = (problem.place.line as usize).saturating_sub(above);
            if (1..=settings).contains(&line) {
                problem.place.line = u32::try_from(line).unwrap_or(u32::MAX);
                problem.place.column = problem.place.column.saturating_sub(INDENT.len() as u32).max(1);
                let path = problem.place.path.strip_prefix("functions.").unwrap_or(&problem.place.path);
                problem.place.path = path.strip_prefix(&*planned.name).unwrap_or(path).trim_start_matches('.').into();
                of_settings.push(problem);
            } else {
                let said = problem.message.replace(&format!("component {copy} "), "it ").replace(&copy, "it");
                // The configuration is ours, and written anew.
                let hint = problem.hint.map(|hint| hint.replace(BY_CONFIGURATION, BY_COMMAND_LINE));
                words.push(hint.map_or(said.clone(), |hint| format!("{said} ({hint})")));
            }
        }
        if !of_settings.is_empty() {
            let file = settings_of(&self.setup.root, &planned.file);
            let source = Source { file, text: good.settings.as_str().into() };
            words.push(Report::new(source, of_settings).to_string());
        }
        words.join("; ")
    }

    /// Writes the configuration, if it is another one.
    fn write(&mut self) -> io::Result<()> {
        let components = self.plan.components.iter();
        let serving = components.filter_map(|planned| Some((planned, self.good.get(&planned.file)?)));
        let text = self.render(serving, self.plan.public.as_deref());
        if text == self.written {
            return Ok(());
        }
        let good = serde_json::to_vec_pretty(&self.good).map_err(io::Error::other)?;
        write(&self.setup.good(), &good)?;
        write(&self.setup.config(), text.as_bytes())?;
        let before = std::mem::replace(&mut self.written, text);
        self.forget(&before);
        Ok(())
    }

    /// Removes copies that neither this configuration nor the one before names: that one may still be being read.
    fn forget(&self, before: &str) {
        let Ok(entries) = fs::read_dir(self.setup.components()) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let named = |text: &str| name.to_str().is_some_and(|name| text.contains(name));
            if !named(before) && !named(&self.written) {
                // What stays is tried again at the next change.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Returns the configuration for components and the folder of files.
    fn render<'a>(
        &self,
        components: impl IntoIterator<Item = (&'a Planned, &'a Good)>,
        public: Option<&str>,
    ) -> String {
        let (mut functions, mut routes) = (String::new(), String::new());
        for (planned, good) in components {
            let name = quoted(&planned.name);
            // Writing to a string cannot fail, here and below.
            let _ = writeln!(functions, "  {name}:");
            let _ = writeln!(functions, "{INDENT}component: \"components/{:#}{COMPONENT}\"", good.component);
            let _ = writeln!(functions, "{INDENT}{MARKER}{}", quoted(&planned.file));
            let file = self.setup.root.join(&planned.file);
            let settings = rebased(&good.settings, file.parent().unwrap_or(&self.setup.root));
            for (index, line) in settings.lines().enumerate() {
                // Where a document begins with its mark, it is no document of its own any more.
                let line = if index == 0 && line.trim_end() == "---" { "" } else { line };
                let indent = if line.is_empty() { "" } else { INDENT };
                let _ = writeln!(functions, "{indent}{line}");
            }
            for pattern in &planned.patterns {
                let _ = writeln!(routes, "  - {{ match: {{ path: {} }}, function: {name} }}", quoted(pattern));
            }
        }
        if let Some(pattern) = public {
            let folder = quoted(&self.setup.root.join(PUBLIC).to_string_lossy());
            let _ = writeln!(routes, "  - {{ match: {{ path: {} }}, static: {folder} }}", quoted(pattern));
        }
        if routes.is_empty() {
            // Nothing to serve is served as nothing: a configuration has a route.
            let _ = writeln!(routes, "  - {{ name: nothing, static: {} }}", quoted(&format!("components/{NOTHING}")));
        }
        let functions = if functions.is_empty() { String::new() } else { format!("functions:\n{functions}") };
        format!(
            "# Written by `lockgate serve`, and written anew at each change of the folder.\n\
             experimental: [{}]\nlisteners: [{}]\nadmin: {{ address: {} }}\n{functions}routes:\n{routes}",
            self.setup.experimental.join(", "),
            quoted(&self.setup.listen),
            quoted(&self.setup.admin),
        )
    }
}

/// Loads everything that a configuration names.
fn load(config: &Path, host: &mut Option<Arc<Host>>) -> Result<(), Report> {
    let draft = Draft::read_components(config)?;
    let host = match host {
        Some(host) => host,
        None => {
            let mut options = host_options(&draft.facts.config.server);
            options.instances_max = TRIAL_INSTANCES;
            let made = Host::new(options).map_err(|error| {
                let problem = Problem::new(error.to_string(), Place::none());
                Report::new(draft.facts.source.clone(), vec![problem])
            })?;
            host.insert(made)
        }
    };
    draft.load_all(host, &*progress_of_command()).map(drop)
}

/// What the line above a component's settings begins with.
const MARKER: &str = "# ";

fn is_marker(line: &str) -> bool {
    line.strip_prefix(INDENT).is_some_and(|line| line.starts_with(MARKER))
}

/// Returns the path of the settings of a component.
fn settings_of(root: &Path, file: &str) -> PathBuf {
    root.join(format!("{}{SETTINGS}", file.strip_suffix(COMPONENT).unwrap_or(file)))
}

/// JSON is YAML. A `$` that is no variable's is written twice.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text.replace('$', "$$")).to_string()
}

/// Puts a file in its place whole: somebody may be reading it.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_added_extension("new");
    fs::write(&temporary, bytes)?;
    fs::rename(&temporary, path)
}
