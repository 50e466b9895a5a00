//! Writes down where file and state differ, as the YAML to commit: once it is in the file, the state has nothing to overlay
//! any more. What it prints is for a person to merge; each part says in a comment what to do with it.

use std::fmt::{self, Write as _};

use lockgate_config::model::{FilterVersion, FunctionVersion, Grants, RolloutSubject};
use serde_json::Value;

use crate::control::choose::state;
use crate::control::facts::Facts;
use crate::control::rollout::{Phase, State};
use crate::control::state::Saved;

/// Displays the YAML to commit.
#[derive(Debug)]
pub(super) struct Export<'a> {
    /// What the file says.
    pub facts: &'a Facts,
    /// What is in force.
    pub saved: &'a Saved,
}

impl fmt::Display for Export<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { facts, saved } = self;
        let (mut filters, mut upstreams, mut rollouts) = (String::new(), String::new(), String::new());
        let mut functions = String::new();
        for (index, rollout) in facts.config.rollouts.iter().enumerate() {
            let Some(state) = state(facts, saved, index).filter(|state| state.differs_from_file()) else { continue };
            let name = &rollout.name;
            match (&state.phase, &rollout.subject) {
                (Phase::Promoted, RolloutSubject::Filter { filter, canary }) => {
                    let filter = &facts.config.filters[*filter];
                    writeln!(
                        filters,
                        "  # `{name}` is promoted. Remove it from `rollouts`, and give the filter its canary's version."
                    )?;
                    writeln!(filters, "  {}:", key(&filter.name))?;
                    version(&mut filters, facts, &filter.version, canary)?;
                }
                (Phase::Promoted, RolloutSubject::Function { function, canary }) => {
                    let function = &facts.config.functions[*function];
                    writeln!(
                        functions,
                        "  # `{name}` is promoted. Remove it from `rollouts`, and give the function its canary's version."
                    )?;
                    writeln!(functions, "  {}:", key(&function.name))?;
                    function_version(&mut functions, facts, &function.version, canary)?;
                }
                (Phase::Promoted, RolloutSubject::Upstream { upstream, canary }) => {
                    let upstream = &facts.config.upstreams[*upstream].name;
                    writeln!(
                        upstreams,
                        "  # `{name}` is promoted. Remove it from `rollouts`, and give the upstream its canary's settings."
                    )?;
                    // JSON is YAML.
                    let settings = lockgate_config::upstream(&facts.config.upstreams[*canary]);
                    writeln!(upstreams, "  {}: {settings}", key(upstream))?;
                }
                (Phase::RolledBack { why } | Phase::Abandoned { why }, _) => {
                    let (why, word) = (one_line(&why.to_string()), state.word().replace('-', " "));
                    if state.moves_by_itself() {
                        writeln!(rollouts, "  # `{name}` is {word} ({why}). Remove it, or give it another canary.")?;
                    } else {
                        writeln!(
                            rollouts,
                            "  # `{name}` is {word} ({why}). Remove it, give it another canary, or leave it idle."
                        )?;
                        weight(&mut rollouts, name, state)?;
                    }
                }
                (Phase::Ramping, _) if state.moves_by_itself() => {
                    let state = one_line(&state.to_string());
                    writeln!(rollouts, "  # `{name}` is {state}. No key of the file says that: resume it, or end it.")?;
                }
                (Phase::Ramping, _) => weight(&mut rollouts, name, state)?,
            }
        }
        let sections =
            [("upstreams", upstreams), ("filters", filters), ("functions", functions), ("rollouts", rollouts)];
        if sections.iter().all(|(_, content)| content.is_empty()) {
            return f.write_str("# the file says what is in force\n");
        }
        sections
            .iter()
            .filter(|(_, content)| !content.is_empty())
            .try_for_each(|(section, content)| write!(f, "{section}:\n{content}"))
    }
}

fn weight(text: &mut String, rollout: &str, state: &State) -> fmt::Result {
    writeln!(text, "  {}:", key(rollout))?;
    writeln!(text, "    weight: {}", state.weight_in_effect())
}

/// Writes what of a canary differs from the filter's own version.
fn version(text: &mut String, facts: &Facts, stable: &FilterVersion, canary: &FilterVersion) -> fmt::Result {
    if canary.component != stable.component {
        let path = facts.shown(&canary.component).display().to_string();
        writeln!(text, "    component: {}", quoted(&path))?;
    }
    if canary.settings_written != stable.settings_written {
        // JSON is YAML.
        writeln!(text, "    settings: {}", canary.settings_written)?;
    }
    if canary.grants != stable.grants {
        grants(text, &canary.grants)?;
    }
    Ok(())
}

/// Writes what of a canary differs from the function's own version.
fn function_version(
    text: &mut String,
    facts: &Facts,
    stable: &FunctionVersion,
    canary: &FunctionVersion,
) -> fmt::Result {
    if canary.component != stable.component {
        let path = facts.shown(&canary.component).display().to_string();
        writeln!(text, "    component: {}", quoted(&path))?;
    }
    if canary.vars_written != stable.vars_written {
        writeln!(text, "    vars: {}", canary.vars_written)?;
    }
    if canary.config_written != stable.config_written {
        writeln!(text, "    config: {}", canary.config_written)?;
    }
    if canary.grants != stable.grants {
        grants(text, &canary.grants)?;
    }
    Ok(())
}

fn grants(text: &mut String, grants: &Grants) -> fmt::Result {
    // JSON is YAML, too.
    writeln!(text, "    grants: {}", lockgate_config::grants(grants))
}

/// Returns a name as a YAML key: as it is where nothing in it means anything to YAML.
fn key(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    let word = matches!(
        name.to_ascii_lowercase().as_str(),
        "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"
    );
    if name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(plain) && !word {
        name.to_owned()
    } else {
        quoted(name)
    }
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
