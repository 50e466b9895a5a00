//! `functions`.

use super::Resolver;
use super::grants::{Of, require_approval};
use crate::file;
use crate::file::forms::Named;
use crate::file::written::Written;
use crate::model::{Function, FunctionLimits, FunctionPolicy, FunctionVersion, Server};
use crate::problem::Problem;
use crate::tree::Node;
use crate::units::{ByteSize, Secret};

/// The default for an instance's memory: guests with an engine inside take tens of MiB before they do anything.
const MEMORY: ByteSize = ByteSize::mib(64);

impl Resolver<'_> {
    pub(super) fn functions(
        &mut self,
        functions: Vec<(String, file::Function)>,
        section: &Node,
        server: &Server,
    ) -> Vec<Function> {
        functions
            .into_iter()
            .map(|(name, function)| {
                let node = section.at(&name);
                let place = section.key_place(&name);
                let vars = node.at("vars");
                let version = FunctionVersion {
                    component: self.path(&function.component),
                    component_place: node.at("component").place.clone(),
                    vars: self.vars(&function.vars, vars),
                    vars_written: written(node, "vars"),
                    config: texts(&function.config),
                    config_written: written(node, "config"),
                    grants: self.grants(&function.grants, node.at("grants"), Of::Function),
                };
                let limits = self.function_limits(&function.limits, node.at("limits"), server);
                let isolation = self.isolation(&function.isolation, node.at("isolation"), limits.memory);
                let require_approval = require_approval(function.require_approval, server);
                let policy = FunctionPolicy { isolation, limits };
                Function { name: name.into(), version, policy, require_approval, place }
            })
            .collect()
    }

    /// Checks the names of an environment's variables.
    pub(super) fn vars(&mut self, vars: &Named<Written<String>>, node: &Node) -> Vec<(String, Secret)> {
        for (name, value) in &vars.0 {
            let wrong = if name.is_empty() || name.contains(['=', '\0']) {
                format!("`{}` is no name of a variable", name.escape_debug())
            } else if value.0.contains('\0') {
                format!("the value of `{name}` has a NUL in it")
            } else {
                continue;
            };
            let problem = Problem::new(wrong, node.key_place(name));
            self.problem(problem.hint("names have no `=`, and neither names nor values have a NUL"));
        }
        texts(vars)
    }

    fn function_limits(&mut self, limits: &file::FunctionLimits, node: &Node, server: &Server) -> FunctionLimits {
        let memory = self.memory(limits.memory.as_ref().map(|memory| memory.0), MEMORY, "function", node, server);
        let instances = limits.instances.as_ref().map(|instances| instances.0.0);
        FunctionLimits {
            deadline: limits.deadline.0.0,
            cpu: limits.cpu.0.0,
            memory,
            table_elements: limits.table_elements.0.0,
            instances: self.instances(instances, "function", node, server),
            key_value: limits.key_value.0,
            key_value_entries: limits.key_value_entries.0.0,
        }
    }
}

/// Returns names with their texts.
pub(super) fn texts(named: &Named<Written<String>>) -> Vec<(String, Secret)> {
    named.0.iter().map(|(name, value)| (name.clone(), Secret::new(value.0.clone()))).collect()
}

/// Returns the names and texts of a function or a canary as they were written, for dumps.
pub(super) fn written(node: &Node, key: &str) -> serde_json::Value {
    match node.get(key).map(|named| named.to_json(false)) {
        None | Some(serde_json::Value::Null) => serde_json::Value::Object(serde_json::Map::new()),
        Some(written) => written,
    }
}
