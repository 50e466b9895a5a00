//! What is to be loaded. A [`FilterSpec`] is a filter as the configuration wants it; its [`VersionId`] says which
//! version that is, and can be computed without loading anything.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use crate::grants::{FolderGrant, OutboundGrant, UpstreamGrant};
use crate::store::Quota;

/// The SHA-256 of something. Displayed by its first 12 hexadecimal digits; the alternate form (`{:#}`) has all 64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Returns the digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Returns the digest itself.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = if f.alternate() { &self.0[..] } else { &self.0[..6] };
        shown.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:#}")
    }
}

/// A text that is not 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a digest is 64 hexadecimal digits")]
pub struct DigestError;

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let text = text.as_bytes();
        if text.len() != 64 {
            return Err(DigestError);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16).ok_or(DigestError);
            *byte = u8::try_from(digit(0)? * 16 + digit(1)?).map_err(|_| DigestError)?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{self:#}"))
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Names one version of a filter: what it is made of. Two specs with the same id behave the same.
///
/// Limits and isolation are not part of it: changing a limit makes no new version, and so no new rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VersionId {
    /// Of the component's bytes.
    pub component: Digest,
    /// Of the settings' JSON text.
    pub settings: Digest,
    /// Of the grants, in whatever order they were written.
    pub grants: Digest,
}

impl VersionId {
    /// Returns the id of the version that these would make. Hashes the component: about 2 ms for each MiB.
    pub fn of(component: &[u8], settings: &str, grants: &Grants) -> Self {
        Self { component: Digest::of(component), settings: Digest::of(settings.as_bytes()), grants: grants.digest() }
    }
}

impl fmt::Display for VersionId {
    /// Writes the first 6 digits of each digest, `9f2c1a.4be01f.e3b0c4`: one sees which of the three changed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |digest: &Digest, f: &mut fmt::Formatter<'_>| {
            digest.0[..3].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
        };
        short(&self.component, f)?;
        f.write_str(".")?;
        short(&self.settings, f)?;
        f.write_str(".")?;
        short(&self.grants, f)
    }
}

/// A filter to load.
#[derive(Clone)]
pub struct FilterSpec {
    /// Its name in the configuration. Key-value stores belong to names.
    pub name: Arc<str>,
    /// The component, as its author built it; never precompiled code.
    pub component: Arc<[u8]>,
    /// The settings as JSON; `null` where there are none.
    pub settings: String,
    /// What it may do besides looking at requests.
    pub grants: Grants,
    /// How long an instance lives.
    pub isolation: Isolation,
    /// What it may use up.
    pub limits: Limits,
}

impl fmt::Debug for FilterSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Settings may hold secrets: their length is all that a log gets to see.
        f.debug_struct("FilterSpec")
            .field("name", &self.name)
            .field("component_bytes", &self.component.len())
            .field("settings_bytes", &self.settings.len())
            .field("grants", &self.grants)
            .field("isolation", &self.isolation)
            .field("limits", &self.limits)
            .finish()
    }
}

/// What a filter is granted. Nothing by default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Grants {
    /// Where it may send HTTP requests. Any entry puts the filter on the fibre lane.
    pub outbound: Vec<OutboundGrant>,
    /// Upstreams of the gateway's to which it may send HTTP requests. Any entry puts the filter on the fibre lane.
    #[serde(default)]
    pub upstreams: Vec<UpstreamGrant>,
    /// Folders that it sees. Functions only.
    #[serde(default)]
    pub folders: Vec<FolderGrant>,
    /// Spaces of the key-value store that outlives the process; `default` is its own. A filter has the first, which puts
    /// it on the fibre lane; without one its keys and values are in the memory of the process.
    #[serde(default)]
    pub key_value: Vec<String>,
}

impl Grants {
    /// Returns whether it may send HTTP requests at all.
    pub fn may_send(&self) -> bool {
        !(self.outbound.is_empty() && self.upstreams.is_empty())
    }

    fn digest(&self) -> Digest {
        let mut hash = Sha256::new();
        hash_sorted(&mut hash, &self.outbound, OutboundGrant::digested);
        hash_sorted(&mut hash, &self.upstreams, UpstreamGrant::digested);
        hash_sorted(&mut hash, &self.folders, FolderGrant::digested);
        hash_sorted(&mut hash, &self.key_value, |space| format!("key-value {space}\n"));
        Digest(hash.finalize().into())
    }
}

/// Hashes the lines of grants, in whatever order and however often they were written.
fn hash_sorted<T: Ord>(hash: &mut Sha256, grants: &[T], line: impl Fn(&T) -> String) {
    let grants: BTreeSet<_> = grants.iter().collect();
    for grant in grants {
        hash.update(line(grant));
    }
}

/// How long an instance lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Isolation {
    /// A fresh instance for each request.
    #[default]
    Request,
    /// An instance serves many requests, one after the other, and is discarded after a failure or past a mark.
    Reused {
        /// Requests after which it is discarded.
        requests: u32,
        /// Bytes of memory past which it is discarded.
        memory_bytes: u64,
    },
}

/// What a filter may use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Wall-clock time of each call, and of starting an instance before its first. Resolution 1 ms. Default 10 ms.
    pub deadline: Duration,
    /// Wall-clock time of `configure`. Default 10 s.
    pub configure_deadline: Duration,
    /// Memory of one instance, all its linear memories together. Default 64 MiB.
    pub memory_bytes: u64,
    /// Elements of each table. Default 20,000.
    pub table_elements: u32,
    /// Bytes that one call may copy from the filter to the host: a response, a body in another's place. Default 4 MiB.
    pub copy_bytes: u64,
    /// Instances that may live at the same time. Default 256.
    pub instances: u32,
    /// Size of a body that is handed over as a whole. The host only passes it on: who reads the body holds it.
    /// Default 1 MiB.
    pub body_bytes: u64,
    /// Size of the key-value store of the filter's name. Default 1 MiB.
    pub key_value_bytes: u64,
    /// Entries of the key-value store of the filter's name. Default 100,000.
    pub key_value_entries: u32,
}

impl Limits {
    pub(crate) fn quota(&self) -> Quota {
        Quota { bytes: self.key_value_bytes, entries: self.key_value_entries.into() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            deadline: Duration::from_millis(10),
            configure_deadline: Duration::from_secs(10),
            memory_bytes: 64 << 20,
            table_elements: 20_000,
            copy_bytes: 4 << 20,
            instances: 256,
            body_bytes: 1 << 20,
            key_value_bytes: 1 << 20,
            key_value_entries: 100_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(host: &str) -> OutboundGrant {
        OutboundGrant::new(true, host, 443)
    }

    #[test]
    fn the_order_of_grants_makes_no_version() {
        let one = Grants { outbound: vec![grant("a"), grant("b"), grant("a")], ..Grants::default() };
        let other = Grants { outbound: vec![grant("b"), grant("a")], ..Grants::default() };
        assert_eq!(VersionId::of(b"x", "null", &one), VersionId::of(b"x", "null", &other));
        assert_ne!(VersionId::of(b"x", "null", &one), VersionId::of(b"x", "null", &Grants::default()));
        let keeping = |spaces: &[&str]| {
            let key_value = spaces.iter().map(|space| (*space).to_owned()).collect();
            VersionId::of(b"x", "null", &Grants { key_value, ..Grants::default() })
        };
        assert_eq!(keeping(&["default", "visits"]), keeping(&["visits", "default", "visits"]));
        assert_ne!(keeping(&["default"]), keeping(&[]));
    }

    #[test]
    fn whatever_a_grant_says_makes_a_version() {
        let plain = grant("example.com");
        let folder = FolderGrant { path: "/srv/data".into(), seen_as: "/data".to_owned(), write: false };
        let written = FolderGrant { write: true, ..folder.clone() };
        let upstream = UpstreamGrant { upstream: "users".to_owned(), methods: Vec::new() };
        let read_only = UpstreamGrant { methods: vec!["GET".to_owned()], ..upstream.clone() };
        let methods = OutboundGrant { methods: vec!["GET".to_owned()], ..plain.clone() };
        let addresses = OutboundGrant { addresses: vec!["10.0.0.0/8".parse().unwrap()], ..plain.clone() };
        let sets = [
            Grants::default(),
            Grants { outbound: vec![plain], ..Grants::default() },
            Grants { outbound: vec![methods], ..Grants::default() },
            Grants { outbound: vec![addresses], ..Grants::default() },
            Grants { upstreams: vec![upstream], ..Grants::default() },
            Grants { upstreams: vec![read_only], ..Grants::default() },
            Grants { folders: vec![folder], ..Grants::default() },
            Grants { folders: vec![written], ..Grants::default() },
        ];
        let versions: BTreeSet<_> = sets.iter().map(|grants| VersionId::of(b"x", "null", grants)).collect();
        assert_eq!(versions.len(), sets.len());
    }

    /// Changing this gives every version a new name, and so ends every rollout.
    #[test]
    fn a_version_keeps_its_name() {
        let grants = Grants { outbound: vec![grant("example.com")], ..Grants::default() };
        let version = VersionId::of(b"component", "null", &grants);
        assert_eq!(version.to_string(), "6985ca.74234e.8f8310");
        let json = serde_json::to_string(&version).unwrap();
        assert_eq!(serde_json::from_str::<VersionId>(&json).unwrap(), version);
    }
}
