//! `rollouts`.

use super::filters::{DEADLINE_MAX, settings};
use super::functions::{texts, written};
use super::grants::Of;
use super::plan::Moves;
use super::{Resolver, Section, line_of, repeated};
use crate::file;
use crate::file::forms::Either;
use crate::file::written::{Reference, Written};
use crate::file::{KeyNamed, KeyWord};
use crate::model::{Filter, FilterVersion, Function, FunctionVersion, KeyPart, Override, Rollout, RolloutSubject};
use crate::problem::{Place, Problem};
use crate::text::HeaderName;
use crate::tree::Node;
use crate::units::format_duration;

/// Headers that say something else, and that clients or proxies set: no track is asked for by them.
const NO_OVERRIDES: [&str; 4] = ["authorization", "cookie", "host", "x-forwarded-for"];

impl Resolver<'_> {
    pub(super) fn rollouts(
        &mut self,
        rollouts: Vec<(String, file::Rollout)>,
        section: &Node,
        filters: &[Filter],
        functions: &[Function],
    ) -> Vec<Rollout> {
        let rollouts: Vec<Rollout> = rollouts
            .into_iter()
            .filter_map(|(name, rollout)| {
                let node = section.at(&name);
                let place = section.key_place(&name);
                let subject = self.subject(&rollout, node, &place, filters, functions);
                let key = self.key(&rollout.key, node.at("key"));
                let moves = self.moves(&rollout, node, &place);
                let overriding = rollout.overriding.map(|it| self.overriding(it, node.at("override")));
                let link = rollout.link.map(|link| link.0.0);
                let salt = rollout.salt.map(|salt| salt.0).or_else(|| link.clone()).unwrap_or_else(|| name.clone());
                let Moves { plan, guard, on_bad, decider, shadow } = moves?;
                Some(Rollout {
                    subject: subject?,
                    plan,
                    guard,
                    on_bad,
                    decider,
                    shadow,
                    link: link.map(Into::into),
                    key,
                    salt: salt.into(),
                    overriding,
                    name: name.into(),
                    place,
                })
            })
            .collect();
        self.check_subjects(&rollouts, filters, functions);
        self.check_links(&rollouts, section);
        rollouts
    }

    fn subject(
        &mut self,
        rollout: &file::Rollout,
        node: &Node,
        place: &Place,
        filters: &[Filter],
        functions: &[Function],
    ) -> Option<RolloutSubject> {
        if let Some(function) = &rollout.function {
            return self.function_subject(rollout, function, node, functions);
        }
        match (&rollout.filter, &rollout.upstream, &rollout.canary) {
            (Some(filter), None, Either::Long(canary)) => {
                let filter = self.find(Section::Filters, filter, node.at("filter"))?;
                let canary = self.canary(canary, node.at("canary"), filters.get(filter)?);
                Some(RolloutSubject::Filter { filter, canary })
            }
            (None, Some(upstream), Either::Short(canary)) => {
                let (at, canary_at) = (node.at("upstream"), node.at("canary"));
                let subject = self.find(Section::Upstreams, upstream, at);
                let canary = self.find(Section::Upstreams, canary, canary_at)?;
                if subject == Some(canary) {
                    let problem = Problem::new("canary and stable are the same upstream", canary_at.place.clone());
                    self.problem(problem.hint("name another one; a rollout moves from one to the other"));
                }
                Some(RolloutSubject::Upstream { upstream: subject?, canary })
            }
            (Some(_), None, Either::Short(_)) => {
                let problem = Problem::new("a filter's canary is a map", node.at("canary").place.clone());
                let hint =
                    "say what is different: `canary: { component: FILE }`, with `settings` and `grants` as needed";
                self.problem(problem.hint(hint));
                None
            }
            (None, Some(_), Either::Long(_)) => {
                let problem = Problem::new("an upstream's canary is a name", node.key_place("canary"));
                self.problem(problem.hint("declare the new one under `upstreams`, and name it here"));
                None
            }
            (Some(_), Some(_), _) => {
                let problem = Problem::new("a rollout moves a filter or an upstream", node.key_place("upstream"));
                self.problem(
                    problem
                        .label("`filter` is there too")
                        .hint("make two rollouts of it; with the same `salt` they move the same users"),
                );
                None
            }
            (None, None, _) => {
                if !node.damaged {
                    let problem = Problem::new("it is not said what is rolled out", place.clone());
                    self.problem(problem.hint("add `filter: NAME`, `function: NAME` or `upstream: NAME`"));
                }
                None
            }
        }
    }

    fn function_subject(
        &mut self,
        rollout: &file::Rollout,
        function: &Written<Reference>,
        node: &Node,
        functions: &[Function],
    ) -> Option<RolloutSubject> {
        let other = [("filter", rollout.filter.is_some()), ("upstream", rollout.upstream.is_some())];
        if let Some((other, _)) = other.iter().find(|(_, there)| *there) {
            let problem =
                Problem::new(format!("a rollout moves a function or {}", article(other)), node.key_place(other));
            self.problem(
                problem
                    .label("`function` is there too")
                    .hint("make two rollouts of it; with the same `salt` they move the same users"),
            );
            return None;
        }
        let Either::Long(canary) = &rollout.canary else {
            let problem = Problem::new("a function's canary is a map", node.at("canary").place.clone());
            let hint = "say what is different: `canary: { component: FILE }`, with `vars` and `grants` as needed";
            self.problem(problem.hint(hint));
            return None;
        };
        let function = self.find(Section::Functions, function, node.at("function"))?;
        let canary = self.function_canary(canary, node.at("canary"), functions.get(function)?);
        Some(RolloutSubject::Function { function, canary })
    }

    fn function_canary(&mut self, canary: &file::Canary, node: &Node, function: &Function) -> FunctionVersion {
        let stable = &function.version;
        let mut version = stable.clone();
        if let Some(component) = &canary.component {
            version.component = self.path(component);
            version.component_place = node.at("component").place.clone();
        }
        if canary.settings.is_some() {
            let problem = Problem::new("a function has no settings", node.key_place("settings"));
            self.problem(problem.hint("what it is told, it is told by its environment: `vars`"));
        }
        if let Some(vars) = &canary.vars {
            version.vars = self.vars(vars, node.at("vars"));
            version.vars_written = written(node, "vars");
        }
        if let Some(config) = &canary.config {
            version.config = texts(config);
            version.config_written = written(node, "config");
        }
        if let Some(grants) = &canary.grants {
            version.grants = self.grants(grants, node.at("grants"), Of::Function);
        }
        let same = version.component == stable.component
            && version.vars == stable.vars
            && version.config == stable.config
            && version.grants == stable.grants;
        if same && canary.settings.is_none() && !node.damaged {
            let problem = Problem::new("the canary is the same as stable in everything", node.place.clone());
            self.problem(problem.hint("give it another `component`, or other `vars`, `config` or `grants`"));
        }
        version
    }

    fn canary(&mut self, canary: &file::Canary, node: &Node, filter: &Filter) -> FilterVersion {
        let stable = &filter.version;
        let mut version = stable.clone();
        if let Some(component) = &canary.component {
            version.component = self.path(component);
            version.component_place = node.at("component").place.clone();
        }
        if let Some(value) = &canary.settings {
            version.settings = settings(Some(value));
            version.settings_written = node.at("settings").to_json(false);
            version.settings_place = node.key_place("settings");
        }
        if let Some(grants) = &canary.grants {
            version.grants = self.grants(grants, node.at("grants"), Of::Filter);
        }
        if canary.config.is_some() {
            let problem = Problem::new("a filter has no `config`", node.key_place("config"));
            self.problem(problem.hint("what it is told, it is told by its `settings`"));
        }
        if canary.vars.is_some() {
            let problem = Problem::new("a filter has no environment", node.key_place("vars"));
            self.problem(problem.hint("what it is told, it is told by its `settings`"));
        }
        let same = version.component == stable.component
            && version.settings == stable.settings
            && version.grants == stable.grants;
        if same && canary.vars.is_none() && canary.config.is_none() && !node.damaged {
            let problem = Problem::new("the canary is the same as stable in everything", node.place.clone());
            self.problem(problem.hint("give it another `component`, or other `settings` or `grants`"));
        }
        let deadline = filter.policy.limits.deadline;
        if !version.grants.wait() && deadline > DEADLINE_MAX && !node.damaged {
            let message =
                format!("the filter's deadline of `{}` is too long for this canary", format_duration(deadline));
            let problem = Problem::new(message, node.at("grants").place.clone())
                .label(format!("at most `{}` without a grant to wait for", format_duration(DEADLINE_MAX)));
            self.problem(problem.hint(format!("set `filters.{}.limits.deadline`", filter.name)));
        }
        version
    }

    /// Returns what is hashed; the client's address where nothing is said.
    pub(super) fn key(&mut self, forms: &[file::KeyForm], node: &Node) -> Vec<KeyPart> {
        let mut key = Vec::with_capacity(forms.len());
        for (index, form) in forms.iter().enumerate() {
            let item = node.item(index);
            key.push(match form {
                Either::Short(KeyWord::ClientIp) => KeyPart::ClientIp,
                Either::Short(KeyWord::Path) => KeyPart::Path,
                Either::Long(KeyNamed::Header(Written(name))) => {
                    self.check_key_header(name, item);
                    KeyPart::Header(name.0.clone())
                }
                Either::Long(KeyNamed::Cookie(name)) => KeyPart::Cookie(name.0.0.clone()),
                Either::Long(KeyNamed::Query(name)) => KeyPart::Query(name.0.clone()),
            });
        }
        for (index, _) in repeated(&key) {
            let problem = Problem::new("the key has this part twice", node.item(index).place.clone());
            self.problem(problem.hint("the second is never reached: remove it"));
        }
        if key.is_empty() {
            key.push(KeyPart::ClientIp);
        }
        key
    }

    fn check_key_header(&mut self, name: &HeaderName, item: &Node) {
        let hint = if name.is_hop_by_hop() {
            "it belongs to the connection, and says nothing about the user"
        } else if name.is_ours() {
            "headers that begin with `x-lockgate-` are the gateway's own"
        } else {
            return;
        };
        let at = item.at("header");
        let written = at.written().unwrap_or_default();
        let problem = Problem::new(format!("the header `{written}` cannot be part of a key"), at.place.clone());
        self.problem(problem.hint(hint));
    }

    fn overriding(&mut self, written: file::Override, node: &Node) -> Override {
        let name = written.header.0;
        let ours = name.is_ours() && !name.0.starts_with("x-lockgate-track");
        if name.is_hop_by_hop() || ours || NO_OVERRIDES.contains(&name.0.as_str()) {
            let at = node.at("header");
            let message = format!("the header `{}` has another meaning", at.written().unwrap_or_default());
            let hint = "leave it out for `x-lockgate-track`, or choose a name of your own";
            self.problem(Problem::new(message, at.place.clone()).hint(hint));
        }
        if written.trusted.is_empty() && !node.damaged {
            let place = node.key_place("trusted");
            let problem = Problem::new("nobody is trusted with the override", place);
            self.problem(problem.hint("name networks, such as `127.0.0.0/8`; leave `override` out for nobody"));
        }
        Override { header: name.0, trusted: written.trusted.iter().map(|network| network.0).collect() }
    }

    /// Checks that no two rollouts move the same thing, and that none moves another's canary: which of the two a
    /// request meets would depend on their order.
    fn check_subjects(&mut self, rollouts: &[Rollout], filters: &[Filter], functions: &[Function]) {
        let subjects: Vec<_> = rollouts
            .iter()
            .map(|rollout| match &rollout.subject {
                RolloutSubject::Filter { filter, .. } => (Section::Filters, *filter),
                RolloutSubject::Function { function, .. } => (Section::Functions, *function),
                RolloutSubject::Upstream { upstream, .. } => (Section::Upstreams, *upstream),
            })
            .collect();
        for (index, first) in repeated(&subjects) {
            let what = match subjects[index] {
                (Section::Filters, filter) => filters.get(filter).map(|filter| format!("filter `{}`", filter.name)),
                (Section::Functions, function) => {
                    functions.get(function).map(|function| format!("function `{}`", function.name))
                }
                (Section::Upstreams, upstream) => {
                    self.upstreams.names.get(upstream).map(|name| format!("upstream `{name}`"))
                }
            };
            let what = what.unwrap_or_default();
            let first = &rollouts[first];
            let problem = Problem::new(format!("two rollouts move the {what}"), rollouts[index].place.clone());
            let label = format!("the first is `{}`{}", first.name, line_of(&first.place));
            self.problem(problem.label(label).hint("finish one before the other begins"));
        }
        for rollout in rollouts {
            let RolloutSubject::Upstream { canary, .. } = &rollout.subject else {
                continue;
            };
            let Some(other) = subjects.iter().position(|subject| *subject == (Section::Upstreams, *canary)) else {
                continue;
            };
            let other = &rollouts[other];
            if other.name == rollout.name {
                continue;
            }
            let message = format!("the canary of `{}` is being rolled out itself", rollout.name);
            let label = format!("by `{}`{}", other.name, line_of(&other.place));
            let problem = Problem::new(message, rollout.place.clone()).label(label);
            self.problem(problem.hint("finish one before the other begins"));
        }
    }
}

fn article(kind: &str) -> String {
    format!("{} {kind}", if kind == "upstream" { "an" } else { "a" })
}
