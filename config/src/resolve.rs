//! From what was written to what is meant: names are found, defaults that depend on other keys filled in, bounds that
//! depend on each other checked. Goes through the whole file whatever it finds, so that all problems are told at once.
//!
//! What was taken out of the tree before (see [`crate::decode`]) leaves a mark, and nothing that may only follow from it
//! is told: a name whose declaration had a problem counts as known.

mod filters;
mod functions;
mod grants;
mod key_value;
mod listeners;
mod plan;
mod policy;
mod rollouts;
mod routes;
mod seeing;
mod server;
mod upstreams;

use std::path::{Path, PathBuf};

use crate::decode::did_you_mean;
use crate::file::written::{FilePath, Reference, Written};
use crate::file::{Experiment, File};
use crate::model::{Config, Experimental};
use crate::problem::{Place, Problem};
use crate::text::check_name;
use crate::tree::{Node, Value};

/// Returns the meaning of a file. It is of use only if no problem was found, here or before.
pub(crate) fn resolve(file: File, tree: &Node, base_dir: &Path, problems: &mut Vec<Problem>) -> Config {
    let names = |section: &str| Names::of(tree, section);
    let mut resolver = Resolver {
        base_dir,
        upstreams: names("upstreams"),
        filters: names("filters"),
        functions: names("functions"),
        problems,
    };
    resolver.config(file, tree)
}

struct Resolver<'a> {
    /// Where relative paths start.
    base_dir: &'a Path,
    upstreams: Names,
    filters: Names,
    functions: Names,
    problems: &'a mut Vec<Problem>,
}

impl Resolver<'_> {
    fn config(&mut self, file: File, tree: &Node) -> Config {
        let experimental = Experimental { wasi_03: file.experimental.0.contains(&Experiment::Wasi03) };
        let server = self.server(file.server, tree.at("server"));
        let listeners = self.listeners(file.listeners, &server, tree);
        let admin = self.admin(file.admin, tree, &listeners);
        let tracing = self.tracing(file.tracing, tree.at("tracing"));
        for section in ["upstreams", "filters", "functions", "rollouts"] {
            self.check_names(tree.at(section));
        }
        let upstreams = self.upstreams(file.upstreams.0, tree.at("upstreams"));
        let filters = self.filters(file.filters.0, tree.at("filters"), &server);
        let functions = self.functions(file.functions.0, tree.at("functions"), &server);
        let routes = self.routes(file.routes, tree);
        let rollouts = self.rollouts(file.rollouts.0, tree.at("rollouts"), &filters, &functions);
        self.check_rollouts_of_routes(&routes, &rollouts, &filters, &functions);
        self.check_grpc_web(&routes, &rollouts, &upstreams, tree.at("routes"));
        Config { experimental, server, listeners, admin, tracing, upstreams, filters, functions, routes, rollouts }
    }

    fn problem(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    fn path(&self, path: &Written<FilePath>) -> PathBuf {
        self.base_dir.join(&path.0.0)
    }

    fn check_names(&mut self, section: &Node) {
        for entry in section.entries() {
            if let Err(error) = check_name(&entry.key) {
                let problem = Problem::new(format!("`{}` is no name", entry.key), entry.key_place.clone());
                self.problem(problem.label(format!("expected {}", error.expected)));
            }
        }
    }

    /// Finds what a name refers to.
    fn find(&mut self, section: Section, name: &Written<Reference>, node: &Node) -> Option<usize> {
        let (kind, names) = match section {
            Section::Upstreams => ("upstream", &self.upstreams),
            Section::Filters => ("filter", &self.filters),
            Section::Functions => ("function", &self.functions),
        };
        let found = names.names.iter().position(|declared| *declared == name.0.0);
        if found.is_some() || names.unsure || names.lost.contains(&name.0.0) {
            return found;
        }
        let written = node.written().unwrap_or_default();
        let hint = did_you_mean(&written, names.names.iter().map(String::as_str));
        let problem = Problem::new(format!("there is no {kind} `{written}`"), node.place.clone());
        let problem = match (hint, names.names.as_slice()) {
            (Some(hint), _) => problem.hint(hint),
            (None, []) => problem.hint(format!("declare it under `{kind}s`")),
            (None, names) => problem.label(format!("declared are {}", quoted(names))),
        };
        self.problem(problem);
        None
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Section {
    Upstreams,
    Filters,
    Functions,
}

/// Names that a section declares.
struct Names {
    /// In the order of the file.
    names: Vec<String>,
    /// Those whose declaration had a problem.
    lost: Vec<String>,
    /// Whether the whole section had one.
    unsure: bool,
}

impl Names {
    fn of(tree: &Node, section: &str) -> Self {
        let lost = match tree.get(section).map(|node| &node.value) {
            Some(Value::Map(map)) => map.pruned.clone(),
            _ => Vec::new(),
        };
        let entries = tree.get(section).map(Node::entries).unwrap_or_default();
        Self { names: entries.iter().map(|entry| entry.key.clone()).collect(), lost, unsure: tree.pruned(section) }
    }
}

/// Names that a message lists; a longer list helps nobody.
const LISTED_MAX: usize = 8;

fn quoted(names: &[String]) -> String {
    let mut shown: Vec<_> = names.iter().take(LISTED_MAX).map(|name| format!("`{name}`")).collect();
    if names.len() > LISTED_MAX {
        shown.push(format!("and {} more", names.len() - LISTED_MAX));
    }
    shown.join(", ")
}

/// Finds what is there twice. Returns for each of those its index, and that of the first.
fn repeated<T: PartialEq>(items: &[T]) -> Vec<(usize, usize)> {
    let first = |item: &T| items.iter().position(|other| other == item);
    items
        .iter()
        .enumerate()
        .filter_map(|(index, item)| first(item).filter(|first| *first < index).map(|first| (index, first)))
        .collect()
}

/// Says where something stands that is referred to.
fn line_of(place: &Place) -> String {
    if place.is_some() { format!(" in line {}", place.line) } else { String::new() }
}
