//! What is to be loaded as a function.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::spec::{Grants, Isolation, VersionId};

/// A function to load.
#[derive(Clone)]
pub struct FunctionSpec {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// The component, as its author built it; never precompiled code.
    pub component: Arc<[u8]>,
    /// Its environment: names and values.
    pub vars: Vec<(String, String)>,
    /// What it may do besides answering.
    pub grants: Grants,
    /// How long an instance lives.
    pub isolation: Isolation,
    /// What it may use up.
    pub limits: FunctionLimits,
}

impl FunctionSpec {
    /// Returns the id of the version that these would make. Hashes the component.
    pub fn version(&self) -> VersionId {
        Self::version_of(&self.component, &self.vars, &self.grants)
    }

    /// Returns the id of the version that a component, its environment and its grants make, in whatever order the
    /// variables were written.
    pub fn version_of(component: &[u8], vars: &[(String, String)], grants: &Grants) -> VersionId {
        let mut vars: Vec<_> = vars.iter().collect();
        vars.sort();
        // Lengths first: no two environments read the same.
        let settings: String =
            vars.iter().map(|(name, value)| format!("{}:{name}{}:{value}", name.len(), value.len())).collect();
        VersionId::of(component, &settings, grants)
    }
}

impl fmt::Debug for FunctionSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values of variables may be secrets: their number is all that a log gets to see.
        f.debug_struct("FunctionSpec")
            .field("name", &self.name)
            .field("component_bytes", &self.component.len())
            .field("vars", &self.vars.len())
            .field("grants", &self.grants)
            .field("isolation", &self.isolation)
            .field("limits", &self.limits)
            .finish()
    }
}

/// What a function may use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FunctionLimits {
    /// Time to the header of the response, an instance's start included. What comes after it may take its time: an
    /// event stream has no end. Resolution 1 ms. Default 30 s.
    pub deadline: Duration,
    /// Time that one request may keep a thread busy, all in all. Resolution 1 ms. Default 10 s.
    pub cpu: Duration,
    /// Memory of one instance, all its linear memories together. Default 64 MiB.
    pub memory_bytes: u64,
    /// Elements of each table. Default 20,000.
    pub table_elements: u32,
    /// Instances that may live at the same time. Default 256.
    pub instances: u32,
}

impl Default for FunctionLimits {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            cpu: Duration::from_secs(10),
            memory_bytes: 64 << 20,
            table_elements: 20_000,
            instances: 256,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(vars: &[(&str, &str)]) -> VersionId {
        let vars: Vec<_> = vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        FunctionSpec::version_of(b"x", &vars, &Grants::default())
    }

    #[test]
    fn variables_make_a_version_and_their_order_does_not() {
        assert_eq!(version(&[("A", "1"), ("B", "2")]), version(&[("B", "2"), ("A", "1")]));
        assert_ne!(version(&[("A", "1")]), version(&[("A", "2")]));
        assert_ne!(version(&[("A", "1B")]), version(&[("A1", "B")]));
        assert_eq!(version(&[]).component, version(&[("A", "1")]).component);
    }
}
