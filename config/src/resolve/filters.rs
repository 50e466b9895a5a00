//! `filters`.

use std::time::Duration;

use super::Resolver;
use super::grants::{Of, require_approval};
use super::server::MEMORY_MIN;
use crate::file;
use crate::file::forms::Either;
use crate::model::{FailureMode, Filter, FilterLimits, FilterPolicy, FilterVersion, Grants, Isolation, Server};
use crate::problem::Problem;
use crate::tree::Node;
use crate::units::{ByteSize, Secret, format_duration};

/// The default deadline of a filter that only computes: a thousand times what a common one takes.
const DEADLINE: Duration = Duration::from_millis(10);
/// The default deadline of one that may wait for another server, or for a store.
const DEADLINE_WAITING: Duration = Duration::from_secs(5);
/// A call that cannot wait holds its thread, and with it other requests, to the end.
pub(super) const DEADLINE_MAX: Duration = Duration::from_secs(1);
/// A call that waits holds an instance, but no thread.
const DEADLINE_WAITING_MAX: Duration = Duration::from_secs(60);
/// The default for an instance's memory.
const MEMORY: ByteSize = ByteSize::mib(16);
/// The default for instances alive at the same time.
const INSTANCES: u32 = 256;

impl Resolver<'_> {
    pub(super) fn filters(
        &mut self,
        filters: Vec<(String, file::Filter)>,
        section: &Node,
        server: &Server,
    ) -> Vec<Filter> {
        filters
            .into_iter()
            .map(|(name, filter)| {
                let node = section.at(&name);
                let place = section.key_place(&name);
                let grants = self.grants(&filter.grants, node.at("grants"), Of::Filter);
                let settings_node = node.get("settings");
                let version = FilterVersion {
                    component: self.path(&filter.component),
                    component_place: node.at("component").place.clone(),
                    settings: settings(filter.settings.as_ref()),
                    settings_written: settings_node
                        .filter(|_| filter.settings.is_some())
                        .map_or_else(empty, |node| node.to_json(false)),
                    settings_place: settings_node.map_or_else(|| place.clone(), |_| node.key_place("settings")),
                    grants,
                };
                let limits = self.limits(&filter.limits, node.at("limits"), &version.grants, server);
                let policy = FilterPolicy {
                    isolation: self.isolation(&filter.isolation, node.at("isolation"), limits.memory),
                    on_failure: failure_mode(&filter.on_failure),
                    limits,
                };
                let require_approval = require_approval(filter.require_approval, server);
                Filter { name: name.into(), version, policy, require_approval, place }
            })
            .collect()
    }

    fn limits(&mut self, limits: &file::FilterLimits, node: &Node, grants: &Grants, server: &Server) -> FilterLimits {
        let (default, max) =
            if grants.wait() { (DEADLINE_WAITING, DEADLINE_WAITING_MAX) } else { (DEADLINE, DEADLINE_MAX) };
        let deadline = limits.deadline.as_ref().map_or(default, |deadline| deadline.0.0);
        if deadline > max {
            let problem = Problem::new("the deadline is too long", node.at("deadline").place.clone())
                .label(format!("at most `{}`", format_duration(max)));
            self.problem(if grants.wait() {
                problem
            } else {
                problem.hint("without a grant to wait for, `outbound` or `key_value`, a call holds a thread to its end")
            });
        }
        let memory = self.memory(limits.memory.as_ref().map(|memory| memory.0), MEMORY, "filter", node, server);
        let instances = limits.instances.as_ref().map(|instances| instances.0.0);
        let instances = self.instances(instances, "filter", node, server);
        if limits.body.0 > limits.copy.0 {
            let place = node.at("body").place.clone();
            let problem = Problem::new("no call could be handed so long a body", place);
            let label = format!("`limits.copy` is `{}`", limits.copy.0);
            self.problem(problem.label(label).hint("lower this one, or raise that one"));
        }
        FilterLimits {
            deadline,
            configure_deadline: limits.configure_deadline.0.0,
            memory,
            table_elements: limits.table_elements.0.0,
            copy: limits.copy.0,
            instances,
            body: limits.body.0,
            key_value: limits.key_value.0,
            key_value_entries: limits.key_value_entries.0.0,
        }
    }

    /// Returns the memory of an instance, of a filter or a function.
    pub(super) fn memory(
        &mut self,
        written: Option<ByteSize>,
        default: ByteSize,
        kind: &str,
        node: &Node,
        server: &Server,
    ) -> ByteSize {
        let memory = written.unwrap_or(default.min(server.instance_memory));
        if memory > server.instance_memory {
            let place = node.at("memory").place.clone();
            let problem = Problem::new(format!("the {kind}'s memory is more than any instance may have"), place);
            let label = format!("`server.instance_memory` is `{}`", server.instance_memory);
            self.problem(problem.label(label).hint("lower this one, or raise that one"));
        } else if memory < MEMORY_MIN && written.is_some() {
            let place = node.at("memory").place.clone();
            let problem = Problem::new("no instance runs in so little memory", place);
            self.problem(problem.label(format!("at least `{MEMORY_MIN}`, a page")));
        }
        memory
    }

    /// Returns how many instances may live at the same time.
    pub(super) fn instances(&mut self, written: Option<u32>, kind: &str, node: &Node, server: &Server) -> u32 {
        if written.is_some_and(|instances| instances > server.instances) {
            let place = node.at("instances").place.clone();
            let problem = Problem::new(format!("the {kind} may have more instances than the process"), place);
            let label = format!("`server.instances` is `{}`", server.instances);
            self.problem(problem.label(label).hint("lower this one, or raise that one"));
        }
        written.unwrap_or(INSTANCES.min(server.instances))
    }

    pub(super) fn isolation(&mut self, form: &file::IsolationForm, node: &Node, limit: ByteSize) -> Isolation {
        let reused = match form {
            Either::Short(file::IsolationWord::Request) => return Isolation::Request,
            Either::Short(file::IsolationWord::Reused) => &file::Reused::default(),
            Either::Long(map) => &map.reused,
        };
        let memory = reused.memory.as_ref().map_or(ByteSize(limit.0 / 2), |memory| memory.0);
        if memory > limit {
            let place = node.at("reused").at("memory").place.clone();
            let problem = Problem::new("no instance gets to have this much memory", place);
            self.problem(problem.label(format!("`limits.memory` is `{limit}`")));
        }
        Isolation::Reused { requests: reused.requests.0.0, memory }
    }
}

/// Returns settings as JSON text. None are an empty object: a filter whose settings all have defaults takes it.
pub(super) fn settings(settings: Option<&serde_json::Value>) -> Secret {
    Secret::new(settings.map_or_else(|| empty().to_string(), ToString::to_string))
}

fn empty() -> serde_json::Value {
    serde_json::Value::Object(serde_json::Map::new())
}

fn failure_mode(form: &file::FailureForm) -> FailureMode {
    let fall_back = match form {
        Either::Short(file::FailureWord::Closed) => return FailureMode::Closed,
        Either::Short(file::FailureWord::Open) => return FailureMode::Open,
        Either::Short(file::FailureWord::FallBack) => &file::FallBack::default(),
        Either::Long(map) => &map.fall_back,
    };
    FailureMode::FallBack { failures: fall_back.failures.0.0, window: fall_back.window.0.0 }
}
