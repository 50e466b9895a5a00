//! The quarantine: versions of filters, functions and upstreams that must not come back by themselves, and why. One table,
//! with one writer, the control loop. It survives reloads and restarts; an entry leaves only by a person's word.
//!
//! What an entry does depends on where the version would serve. A canary's rollout is rolled back, and begins rolled back
//! whenever the file brings it anew. A stable version whose filter falls back is replaced by the last good one; where there
//! is none, it stays, and its failures are answered as `closed` answers them. Other stable versions are what the file says:
//! functions and upstreams never fall back.

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
        /// What decided, a sentence for each signal.
        findings: Vec<String>,
        /// What the other signals showed by then, which decided nothing.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        others: Vec<String>,
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
    /// Returns the kind in a word: `failures`, `guard`, `linked`, `person` or `unapproved`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Failures { .. } => "failures",
            Self::Guard { .. } => "guard",
            Self::Linked { .. } => "linked",
            Self::Person { .. } => "person",
            Self::Unapproved { .. } => "unapproved",
        }
    }

    /// Returns whether a person said so, who may also take it back.
    pub const fn is_a_persons_word(&self) -> bool {
        matches!(self, Self::Person { .. })
    }

    /// Returns what the signals showed that did not decide.
    pub fn others(&self) -> &[String] {
        match self {
            Self::Guard { others, .. } => others,
            Self::Linked { why, .. } => why.others(),
            Self::Failures { .. } | Self::Person { .. } | Self::Unapproved { .. } => &[],
        }
    }

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
            Self::Guard { findings, others: _ } => f.write_str(&findings.join("; ")),
            Self::Unapproved { gains, .. } => write!(f, "it may {gains}, and what serves may not"),
            Self::Linked { rollout, why } => write!(f, "with `{rollout}`: {why}"),
            Self::Person { by, reason: None } => f.write_str(by),
            Self::Person { by, reason: Some(reason) } => write!(f, "{by}: {reason}"),
        }
    }
}

/// A version, and what it is a version of: the same component may serve another filter well.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Held {
    /// Of a filter.
    Filter {
        /// Its name.
        filter: String,
        /// Which version of it.
        version: VersionId,
    },
    /// Of a function.
    Function {
        /// Its name.
        function: String,
        /// Which version of it.
        version: VersionId,
    },
    /// Another upstream in the place of an upstream.
    Upstream {
        /// The name of the one that would be replaced.
        upstream: String,
        /// The other one's name and the digest of its settings: `app-2@4be01f…`.
        version: String,
    },
}

impl Held {
    /// Returns a version of a filter.
    pub fn filter(name: &str, version: &VersionId) -> Self {
        Self::Filter { filter: name.to_owned(), version: *version }
    }

    /// Returns what it is a version of, in words: `filter auth`.
    pub fn subject(&self) -> String {
        match self {
            Self::Filter { filter, .. } => format!("filter {filter}"),
            Self::Function { function, .. } => format!("function {function}"),
            Self::Upstream { upstream, .. } => format!("upstream {upstream}"),
        }
    }

    /// Returns what stands for the version in commands: `9f2c1a.4be01f.e3b0c4`, or `app-2@4be01f` for an upstream.
    pub fn label(&self) -> String {
        match self {
            Self::Filter { version, .. } | Self::Function { version, .. } => version.to_string(),
            Self::Upstream { version, .. } => match version.rsplit_once('@') {
                Some((name, digest)) => format!("{name}@{}", digest.get(..6).unwrap_or(digest)),
                None => version.clone(),
            },
        }
    }
}

/// As the audit log has it: `filter auth 9f2c1a.4be01f.e3b0c4`.
impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.subject(), self.label())
    }
}

/// A version in quarantine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Which one.
    #[serde(flatten)]
    pub held: Held,
    /// Why.
    pub why: Why,
    /// Since when.
    pub since: Timestamp,
}

/// The table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Entry>", into = "Vec<Entry>")]
pub struct Quarantine(BTreeMap<Held, Entry>);

impl From<Vec<Entry>> for Quarantine {
    fn from(entries: Vec<Entry>) -> Self {
        Self(entries.into_iter().map(|entry| (entry.held.clone(), entry)).collect())
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
        match self.0.entry(entry.held.clone()) {
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
    pub fn get(&self, held: &Held) -> Option<&Entry> {
        self.0.get(held)
    }

    /// Returns the entry of a filter's version, where it has one.
    pub fn of_filter(&self, filter: &str, version: &VersionId) -> Option<&Entry> {
        self.get(&Held::filter(filter, version))
    }

    /// Returns the entry of a function's version, where it has one.
    pub fn of_function(&self, function: &str, version: &VersionId) -> Option<&Entry> {
        self.get(&Held::Function { function: function.to_owned(), version: *version })
    }

    /// Returns the entries: of filters, functions and upstreams, by name and version.
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

    fn version(component: &[u8]) -> VersionId {
        VersionId::of(component, "{}", &Grants::default())
    }

    fn entry(held: Held, failures: u32) -> Entry {
        let why = Why::Failures { failures, window_ms: 30_000 };
        Entry { held, why, since: Timestamp::from_millis(1) }
    }

    fn filter(component: &[u8], failures: u32) -> Entry {
        entry(Held::filter("auth", &version(component)), failures)
    }

    fn function(name: &str) -> Held {
        Held::Function { function: name.to_owned(), version: version(b"v2") }
    }

    fn upstream() -> Held {
        Held::Upstream { upstream: "app".to_owned(), version: "app-2@4be01f77b0e4".to_owned() }
    }

    #[test]
    fn the_first_reason_stays() {
        let mut table = Quarantine::default();
        assert!(table.add(filter(b"v2", 5)));
        assert!(!table.add(filter(b"v2", 9)));
        assert_eq!(table.of_filter("auth", &version(b"v2")), Some(&filter(b"v2", 5)));
    }

    #[test]
    fn a_version_may_serve_something_else() {
        let table = Quarantine::from(vec![filter(b"v2", 5)]);
        assert!(table.of_filter("headers", &version(b"v2")).is_none());
        assert!(table.of_function("auth", &version(b"v2")).is_none());
    }

    #[test]
    fn an_entry_leaves_when_it_is_released() {
        let mut table = Quarantine::from(vec![filter(b"v2", 5), filter(b"v3", 5)]);
        let label = version(b"v2").to_string();
        assert_eq!(table.release(|entry| entry.held.label() == label).len(), 1);
        assert_eq!(table.release(|entry| entry.held.label() == label).len(), 0);
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn a_version_has_a_label_to_release_it_by() {
        assert_eq!(upstream().to_string(), "upstream app app-2@4be01f");
        assert_eq!(function("hello").to_string(), format!("function hello {}", version(b"v2")));
    }

    #[test]
    fn the_table_is_read_back_as_it_was_written() {
        let entries = [Held::filter("auth", &version(b"v2")), function("hello"), upstream()];
        let table = Quarantine::from(entries.map(|held| entry(held, 5)).to_vec());
        let text = serde_json::to_string(&table).expect("a table is JSON");
        assert!(text.contains(r#"{"upstream":"app","version":"app-2@4be01f77b0e4","why""#), "{text}");
        assert_eq!(serde_json::from_str::<Quarantine>(&text).expect("it was just written"), table);
    }

    #[test]
    fn what_decided_is_told_and_the_rest_is_kept_beside_it() {
        let guard =
            Why::Guard { findings: vec!["failures: worse".to_owned()], others: vec!["denials: undecided".to_owned()] };
        let linked = Why::Linked { rollout: "auth-2".to_owned(), why: Box::new(guard) };
        assert_eq!(linked.to_string(), "with `auth-2`: failures: worse");
        assert_eq!(linked.others(), ["denials: undecided"]);
        let before = r#"{"kind":"guard","findings":["failures: worse"]}"#;
        assert!(serde_json::from_str::<Why>(before).expect("an entry of earlier").others().is_empty());
    }
}
