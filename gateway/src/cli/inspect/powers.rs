//! What the versions of a filter or function may touch, and what its canary may and stable may not.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use lockgate_config::problem::Report;

use crate::cli::Failure;
use crate::control::facts::Facts;
use crate::control::gains::{Gain, Powers, gains};
use crate::control::reload::Draft;
use crate::control::version::label_of;

/// A filter or function of a configuration, as the file has it.
#[derive(Debug, Serialize)]
pub(super) struct Subject {
    /// `filter` or `function`.
    kind: &'static str,
    name: String,
    /// Stable, then the canary.
    versions: Vec<Version>,
}

/// One of its versions.
#[derive(Debug, Serialize)]
struct Version {
    track: &'static str,
    label: String,
    component: PathBuf,
    /// What it may touch, in words that go on after "may".
    may: Vec<String>,
    /// The rollout whose canary it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    rollout: Option<String>,
    /// Of a canary: what it may do and stable may not.
    #[serde(skip_serializing_if = "Option::is_none")]
    gains: Option<Vec<String>>,
}

/// Returns what goes by a name in a configuration: a filter, a function, or one of each.
///
/// # Errors
///
/// The configuration is wrong, or nothing in it goes by that name.
pub(super) fn read(config: &Path, name: &str) -> Result<Vec<Subject>, Failure> {
    let draft = Draft::read_components(config).map_err(Report::from)?;
    let facts = &*draft.facts;
    let subjects: Vec<_> = [of_filter(facts, name), of_function(facts, name)].into_iter().flatten().collect();
    if !subjects.is_empty() {
        return Ok(subjects);
    }
    let filters = facts.config.filters.iter().map(|filter| &filter.name);
    let known = filters.chain(facts.config.functions.iter().map(|function| &function.name));
    let known = known.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let there_is = if known.is_empty() { "it has none".to_owned() } else { format!("it has {known}") };
    let config = config.display();
    Err(Failure::input(format_args!("`{name}` is no file, and no filter or function of `{config}`: {there_is}")))
}

fn of_filter(facts: &Facts, name: &str) -> Option<Subject> {
    let index = facts.filter(name)?;
    let stable = &facts.config.filters[index].version;
    let powers = Powers::of_filter(stable);
    let first = version(facts, label_of(&facts.stable[index]).to_string(), &stable.component, &powers);
    let canary = facts.rollout_of_filter(index).map(|(rollout, canary, id)| {
        let new = Powers::of_filter(canary);
        canary_of(facts, rollout, version(facts, label_of(&id).to_string(), &canary.component, &new), &powers, &new)
    });
    let versions = [first].into_iter().chain(canary).collect();
    Some(Subject { kind: "filter", name: name.to_owned(), versions })
}

fn of_function(facts: &Facts, name: &str) -> Option<Subject> {
    let index = facts.function(name)?;
    let stable = &facts.config.functions[index].version;
    let powers = Powers::of_function(stable);
    let first = version(facts, label_of(&facts.functions[index]).to_string(), &stable.component, &powers);
    let canary = facts.rollout_of_function(index).map(|(rollout, canary, id)| {
        let new = Powers::of_function(canary);
        canary_of(facts, rollout, version(facts, label_of(&id).to_string(), &canary.component, &new), &powers, &new)
    });
    let versions = [first].into_iter().chain(canary).collect();
    Some(Subject { kind: "function", name: name.to_owned(), versions })
}

fn version(facts: &Facts, label: String, component: &Path, powers: &Powers) -> Version {
    let may = words(&gains(&Powers::default(), powers));
    let component = facts.shown(component).to_owned();
    Version { track: "stable", label, component, may, rollout: None, gains: None }
}

fn canary_of(facts: &Facts, rollout: usize, version: Version, stable: &Powers, canary: &Powers) -> Version {
    Version {
        track: "canary",
        rollout: Some(facts.config.rollouts[rollout].name.to_string()),
        gains: Some(words(&gains(stable, canary))),
        ..version
    }
}

fn words(gains: &[Gain]) -> Vec<String> {
    gains.iter().map(ToString::to_string).collect()
}

/// Returns subjects as text for people.
pub(super) fn render(subjects: &[Subject]) -> String {
    let mut text = String::new();
    for Subject { kind, name, versions } in subjects {
        for version in versions {
            let Version { track, label, component, may, rollout, gains } = version;
            let of = rollout.as_ref().map(|rollout| format!(" of rollout {rollout}")).unwrap_or_default();
            // Writing to a string cannot fail, here and below.
            let _ = writeln!(text, "{kind} {name}, {track}{of}: {label}, {}", component.display());
            list(&mut text, "may", "may touch nothing", may);
            if let Some(gains) = gains {
                list(&mut text, "may, and stable may not,", "may do nothing that stable may not", gains);
            }
        }
    }
    text
}

fn list(text: &mut String, verb: &str, none: &str, items: &[String]) {
    if items.is_empty() {
        let _ = writeln!(text, "  {none}");
    }
    for item in items {
        let _ = writeln!(text, "  {verb} {item}");
    }
}
