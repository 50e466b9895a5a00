//! What is to be loaded as a function.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::spec::{Grants, Isolation, VersionId};
use crate::store::Quota;

/// A function to load.
#[derive(Clone)]
pub struct FunctionSpec {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// The component, as its author built it; never precompiled code.
    pub component: Arc<[u8]>,
    /// Its environment: names and values.
    pub vars: Vec<(String, String)>,
    /// What it reads by `wasi:config`: names and values.
    pub config: Vec<(String, String)>,
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
        Self::version_of(&self.component, &self.vars, &self.config, &self.grants)
    }

    /// Returns the id of the version that a component, its environment, what it reads by `wasi:config` and its grants make,
    /// in whatever order the names were written.
    pub fn version_of(
        component: &[u8],
        vars: &[(String, String)],
        config: &[(String, String)],
        grants: &Grants,
    ) -> VersionId {
        // Lengths first: no two environments read the same.
        let text = |named: &[(String, String)]| {
            let mut named: Vec<_> = named.iter().collect();
            named.sort();
            let texts = named.iter().map(|(name, value)| format!("{}:{name}{}:{value}", name.len(), value.len()));
            texts.collect::<String>()
        };
        let mut settings = text(vars);
        if !config.is_empty() {
            settings.push('|');
            settings.push_str(&text(config));
        }
        VersionId::of(component, &settings, grants)
    }
}

impl fmt::Debug for FunctionSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values may be secrets: their number is all that a log gets to see.
        f.debug_struct("FunctionSpec")
            .field("name", &self.name)
            .field("component_bytes", &self.component.len())
            .field("vars", &self.vars.len())
            .field("config", &self.config.len())
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
    /// Size of each key-value space that it writes to. Default 16 MiB.
    pub key_value_bytes: u64,
    /// Entries of each key-value space that it writes to. Default 100,000.
    pub key_value_entries: u32,
}

impl FunctionLimits {
    pub(crate) fn quota(&self) -> Quota {
        Quota { bytes: self.key_value_bytes, entries: self.key_value_entries.into() }
    }
}

impl Default for FunctionLimits {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            cpu: Duration::from_secs(10),
            memory_bytes: 64 << 20,
            table_elements: 20_000,
            instances: 256,
            key_value_bytes: 16 << 20,
            key_value_entries: 100_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(vars: &[(&str, &str)]) -> VersionId {
        FunctionSpec::version_of(b"x", &owned(vars), &[], &Grants::default())
    }

    fn told(config: &[(&str, &str)]) -> VersionId {
        FunctionSpec::version_of(b"x", &[], &owned(config), &Grants::default())
    }

    fn owned(named: &[(&str, &str)]) -> Vec<(String, String)> {
        named.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn variables_make_a_version_and_their_order_does_not() {
        assert_eq!(version(&[("A", "1"), ("B", "2")]), version(&[("B", "2"), ("A", "1")]));
        assert_ne!(version(&[("A", "1")]), version(&[("A", "2")]));
        assert_ne!(version(&[("A", "1B")]), version(&[("A1", "B")]));
        assert_eq!(version(&[]).component, version(&[("A", "1")]).component);
        assert_eq!(told(&[("A", "1"), ("B", "2")]), told(&[("B", "2"), ("A", "1")]));
        assert_ne!(told(&[("A", "1")]), version(&[("A", "1")]));
        assert_eq!(told(&[]), version(&[]));
    }
}
