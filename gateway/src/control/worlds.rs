//! What functions are built for, held against what the configuration allows. Names alone are looked at, before anything
//! is compiled.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockgate_config::model::{Config, FunctionVersion, RolloutSubject, Target};
use lockgate_config::problem::{Problem, Source};
use lockgate_host::World;

use crate::control::facts::shown;

/// Returns what functions may not be what they are, or where they are, each at the place of its component. What is no
/// function at all is told when it is loaded.
pub(super) fn check(config: &Config, source: &Source, components: &BTreeMap<PathBuf, Arc<[u8]>>) -> Vec<Problem> {
    let stable = config.functions.iter().map(|function| &function.version).enumerate();
    let canaries = config.rollouts.iter().filter_map(|rollout| match &rollout.subject {
        RolloutSubject::Function { function, canary } => Some((*function, canary)),
        RolloutSubject::Filter { .. } | RolloutSubject::Upstream { .. } => None,
    });
    let mut worlds: BTreeMap<&Path, Option<World>> = BTreeMap::new();
    let mut problems = Vec::new();
    for (function, version) in stable.chain(canaries) {
        let Some(component) = components.get(&version.component) else { continue };
        let world = *worlds.entry(&version.component).or_insert_with(|| World::of(component));
        problems.extend(world.and_then(|world| problem_of(config, source, function, version, world)));
    }
    problems
}

fn problem_of(
    config: &Config,
    source: &Source,
    function: usize,
    version: &FunctionVersion,
    world: World,
) -> Option<Problem> {
    let component = shown(source, &version.component).display();
    let world_name = world.as_str();
    let is_link = || config.routes.iter().flat_map(|route| &route.middleware).any(|link| link.function == function);
    let is_target = || {
        config.routes.iter().any(|route| matches!(route.target, Target::Function { function: it } if it == function))
    };
    let (message, hint) = if world.is_03() && !config.experimental.wasi_03 {
        let message = format!("component `{component}` is built for `{world_name}`, which is experimental");
        (message, "add `experimental: [wasi-0.3]` to the configuration, or build it for `wasi:http/proxy@0.2`")
    } else if world == World::Middleware && is_target() {
        let message =
            format!("component `{component}` is built for `{world_name}`, and a target has nothing behind it");
        (message, "put the function into the `filters` of routes: `- function: NAME`")
    } else if world != World::Middleware && is_link() {
        let message = format!("component `{component}` is built for `{world_name}`, and a chain is for middleware");
        (message, "make the function the route's target: `function: NAME`")
    } else {
        return None;
    };
    Some(Problem::new(message, version.component_place.clone()).hint(hint))
}
