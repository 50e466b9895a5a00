//! YAML text → meaning. This crate knows no network, no Wasmtime and no Pingora.
//!
//! A configuration is read in three steps, each of which collects all the problems it finds: the text becomes a *tree*
//! of nodes that know their places, with variables expanded; the tree becomes the *file*, what was written, key by key;
//! the file is *resolved* into the [`model`], what is meant.

#![warn(missing_docs)]

mod decode;
mod dump;
mod endpoints;
mod file;
pub mod model;
pub mod problem;
mod reference;
mod resolve;
mod schema;
pub mod text;
mod tree;
pub mod units;
mod warnings;

pub use self::dump::{dump, grants, upstream};
pub use self::endpoints::endpoints;
pub use self::reference::reference;
pub use self::schema::schema;
pub use self::warnings::Warnings;

use std::fs;
use std::path::Path;

use self::model::{Admin, Config};
use self::problem::{Place, Problem, Report, Source};

/// A configuration, and the text that it was read from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What is meant.
    pub config: Config,
    /// To render later problems: a component that refuses its settings, say.
    pub source: Source,
}

/// Reads a file, with variables from the environment of the process. Relative paths start at the file's folder. Called
/// at start, and on each reload.
///
/// # Errors
///
/// A file that cannot be read, or all the problems that are in it.
pub fn load(path: &Path) -> Result<Loaded, Report> {
    let source = read(path)?;
    let config = parse(source.clone(), base_dir(path), &variable)?;
    Ok(Loaded { config, source })
}

/// Reads where the gateway of a file is reached, whatever else is wrong with the file: who takes a bad version back must
/// not have to mend the file first.
///
/// # Errors
///
/// The file cannot be read, is not YAML, or what is wrong is `admin` itself.
pub fn load_admin(path: &Path) -> Result<Admin, Report> {
    let source = read(path)?;
    let (config, mut problems) = understand(&source, base_dir(path), &variable);
    if let Some(config) = config {
        problems.retain(|problem| problem.place.path.split(['.', '[']).next() == Some("admin"));
        if problems.is_empty() {
            return Ok(config.admin);
        }
    }
    Err(Report::new(source, problems))
}

fn read(path: &Path) -> Result<Source, Report> {
    let text = fs::read(path).map_err(|error| error.to_string()).and_then(|bytes| {
        String::from_utf8(bytes)
            .map_err(|error| format!("it is not UTF-8 behind its first {} bytes", error.utf8_error().valid_up_to()))
    });
    match text {
        Ok(text) => {
            let mut source = Source { file: path.to_owned(), text: text.into() };
            strip_mark(&mut source);
            Ok(source)
        }
        Err(reason) => {
            let source = Source { file: path.to_owned(), text: "".into() };
            let message = format!("cannot read `{}`: {reason}", path.display());
            Err(Report::new(source, vec![Problem::new(message, Place::none())]))
        }
    }
}

fn base_dir(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Returns what a text means, as far as it can be told, and what is wrong with it.
fn understand(
    source: &Source,
    base_dir: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> (Option<Config>, Vec<Problem>) {
    let mut problems = Vec::new();
    let config = tree::read(&source.text, env, &mut problems).and_then(|mut tree| {
        let file = decode::decode(&mut tree, &mut problems)?;
        Some(resolve::resolve(file, &tree, base_dir, &mut problems))
    });
    (config, problems)
}

/// Reads a text. Relative paths start at `base_dir`; `env` looks variables up.
///
/// # Errors
///
/// All the problems that are in it.
pub fn parse(mut source: Source, base_dir: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, Report> {
    strip_mark(&mut source);
    let (config, problems) = understand(&source, base_dir, env);
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(Report::new(source, problems)),
    }
}

impl Source {
    /// Returns the place of a key or an item, by a path such as `server.threads` or `listeners[0].address`; where there
    /// is none, a place without a line, with that path. Reads the text anew: for problems that are found later, in what
    /// the model keeps no place of.
    #[must_use]
    pub fn place_of(&self, path: &str) -> Place {
        self.find(path, |entry| &entry.key_place)
    }

    /// As [`Self::place_of`], of what stands behind a key rather than of the key.
    #[must_use]
    pub fn value_place_of(&self, path: &str) -> Place {
        self.find(path, |entry| &entry.value.place)
    }

    fn find(&self, path: &str, of: fn(&tree::Entry) -> &Place) -> Place {
        fn find(node: &tree::Node, path: &str, of: fn(&tree::Entry) -> &Place) -> Option<Place> {
            if *node.place.path == *path {
                return Some(node.place.clone());
            }
            node.items().iter().find_map(|item| find(item, path, of)).or_else(|| {
                node.entries().iter().find_map(|entry| match *entry.key_place.path == *path {
                    true => Some(of(entry).clone()),
                    false => find(&entry.value, path, of),
                })
            })
        }
        // What the variables expand to makes no difference to places.
        tree::read(&self.text, &|_| Some(String::new()), &mut Vec::new())
            .and_then(|root| find(&root, path, of))
            .unwrap_or_else(|| Place { path: path.into(), ..Place::none() })
    }
}

/// Takes the mark away by which some editors tell UTF-8. It is no character of the text, and would shift each place in
/// the first line.
fn strip_mark(source: &mut Source) {
    if let Some(text) = source.text.strip_prefix('\u{feff}') {
        source.text = text.into();
    }
}
