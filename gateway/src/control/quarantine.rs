//! The quarantine: versions of filters that must not come back by themselves, and why. One table, with one writer, the
//! control loop. It survives reloads and restarts; an entry leaves only by a person's word.
//!
//! What an entry does depends on where the version would serve. A canary's rollout is rolled back. A stable version whose
//! filter falls back is replaced by the last good one; where there is none, it stays, and its failures are answered as
//! `closed` answers them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use lockgate_config::units::format_duration;
use lockgate_host::VersionId;
use serde::{Deserialize, Serialize};

use crate::control::time::Timestamp;

/// Why a version was quarantined, or a rollout rolled back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Why {
    /// Its calls failed.
    Failures {
        /// So many calls …
        failures: u32,
        /// … within this time.
        window_ms: u64,
    },
    /// The judge found it so.
    Guard {
        /// What it found, a sentence for each signal that counted.
        findings: Vec<String>,
    },
    /// It may do more than the version that serves, and nobody has let it in.
    Unapproved {
        /// Of the filter or function.
        name: String,
        /// What it may do that the other may not.
        gains: String,
    },
    /// Another rollout, which it moves with, came to it.
    Linked {
        /// Which.
        rollout: String,
        /// Why.
        why: Box<Self>,
    },
    /// Somebody decided so.
    Person {
        /// Who.
        by: String,
        /// What they said to it.
        reason: Option<String>,
    },
}

impl Why {
    /// Returns the name under which a version waits for a person to let it in, where that is why.
    pub fn unapproved(&self) -> Option<&str> {
        match self {
            Self::Unapproved { name, .. } => Some(name),
            Self::Linked { why, .. } => why.unapproved(),
            Self::Failures { .. } | Self::Guard { .. } | Self::Person { .. } => None,
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failures { failures, window_ms } => {
                write!(f, "{failures} calls failed within {}", format_duration(Duration::from_millis(*window_ms)))
            }
            Self::Guard { findings } => f.write_str(&findings.join("; ")),
            Self::Unapproved { gains, .. } => write!(f, "it may {gains}, and what serves may not"),
            Self::Linked { rollout, why } => write!(f, "with `{rollout}`: {why}"),
            Self::Person { by, reason: None } => f.write_str(by),
            Self::Person { by, reason: Some(reason) } => write!(f, "{by}: {reason}"),
        }
    }
}

/// A version in quarantine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The filter's name. The same component may serve another filter well.
    pub filter: String,
    /// Which version of it.
    pub version: VersionId,
    /// Why.
    pub why: Why,
    /// Since when.
    pub since: Timestamp,
}

/// The table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Entry>", into = "Vec<Entry>")]
pub struct Quarantine(BTreeMap<(String, VersionId), Entry>);

impl From<Vec<Entry>> for Quarantine {
    fn from(entries: Vec<Entry>) -> Self {
        Self(entries.into_iter().map(|entry| ((entry.filter.clone(), entry.version), entry)).collect())
    }
}

impl From<Quarantine> for Vec<Entry> {
    fn from(table: Quarantine) -> Self {
        table.0.into_values().collect()
    }
}

impl Quarantine {
    /// Puts a version in. Returns false where it was in already: the first reason stays.
    pub fn add(&mut self, entry: Entry) -> bool {
        let key = (entry.filter.clone(), entry.version);
        match self.0.entry(key) {
            std::collections::btree_map::Entry::Occupied(_) => false,
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(entry);
                true
            }
        }
    }

    /// Takes out the versions that `which` names, and returns them.
    pub fn release(&mut self, which: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        self.0.extract_if(.., |_, entry| which(entry)).map(|(_, entry)| entry).collect()
    }

    /// Returns a version's entry, where it has one.
    pub fn get(&self, filter: &str, version: &VersionId) -> Option<&Entry> {
        self.0.get(&(filter.to_owned(), *version))
    }

    /// Returns the entries, by filter and version.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.0.values()
    }

    /// Returns how many entries there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether nothing is in quarantine.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use lockgate_host::Grants;

    use super::*;

    fn entry(filter: &str, component: &[u8], failures: u32) -> Entry {
        Entry {
            filter: filter.to_owned(),
            version: VersionId::of(component, "{}", &Grants::default()),
            why: Why::Failures { failures, window_ms: 30_000 },
            since: Timestamp::from_millis(1),
        }
    }

    #[test]
    fn the_first_reason_stays() {
        let mut table = Quarantine::default();
        assert!(table.add(entry("auth", b"v2", 5)));
        assert!(!table.add(entry("auth", b"v2", 9)));
        let version = entry("auth", b"v2", 0).version;
        assert_eq!(table.get("auth", &version).map(|entry| &entry.why), Some(&entry("auth", b"v2", 5).why));
    }

    #[test]
    fn a_version_may_serve_another_filter() {
        let table = Quarantine::from(vec![entry("auth", b"v2", 5)]);
        assert!(table.get("headers", &entry("auth", b"v2", 5).version).is_none());
    }

    #[test]
    fn an_entry_leaves_when_it_is_released() {
        let mut table = Quarantine::from(vec![entry("auth", b"v2", 5), entry("auth", b"v3", 5)]);
        let version = entry("auth", b"v2", 5).version;
        assert_eq!(table.release(|entry| entry.version == version).len(), 1);
        assert_eq!(table.release(|entry| entry.version == version).len(), 0);
        assert_eq!(table.len(), 1);
    }
}
