//! What the control plane must not forget: where each rollout stands, the quarantine, and the versions that each filter
//! can fall back to. A *store* keeps it in the state directory:
//!
//! - `rollouts.json`, and a second copy, `rollouts.json.1`. Each is written to a temporary name, fsynced and renamed, one
//!   after the other, so that a crash at any moment leaves a whole one. Each carries a number that grows and a checksum
//!   of its content; the newest whole one counts. A corrupted one is set aside as `rollouts.json.corrupt-<time>`.
//!   Between the two, the audit log is written: until then, the first carries the entries that belong to it, so that a
//!   process that ends in between leaves no move without its trace.
//! - `components/<sha256>.wasm`: copies of the components of versions that may be needed when their file has long been
//!   replaced.
//! - `evidence.json`: what is known about the canaries that are judged.
//! - `lock`: held by the one process that decides.
//!
//! Settings may hold secrets: the directory's mode is 0700, the files' 0600.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockgate_config::units::Secret;
use lockgate_host::{Digest, Grants, VersionId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_128;

use crate::control::approvals::Approvals;
use crate::control::audit::AuditEntry;
use crate::control::quarantine::Quarantine;
use crate::control::rollout;
use crate::control::time::Timestamp;

/// The version of the file's format. A file of another one is set aside like a corrupted one.
const FORMAT: u64 = 1;

/// Good versions that are remembered for each filter, besides the one that serves. One is enough unless it turns out to be
/// bad as well.
const LAST_GOOD_MAX: usize = 3;

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// By the rollout's name.
    pub rollouts: BTreeMap<String, rollout::State>,
    /// What must not come back by itself.
    pub quarantine: Quarantine,
    /// By the filter's name; only those that fall back.
    pub filters: BTreeMap<String, History>,
    /// What people have let in.
    #[serde(default)]
    pub approvals: Approvals,
}

/// The stable versions that a filter had.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// The one that the file and the rollouts ask for now.
    pub serving: Option<Kept>,
    /// Those that served before and were not given up for being bad, the newest first.
    pub last_good: Vec<Kept>,
}

impl History {
    /// Takes note of the stable version. `good` says whether the one before is worth remembering.
    pub fn serve(&mut self, next: Kept, good: bool) {
        if self.serving.as_ref().is_some_and(|serving| serving.version == next.version) {
            return;
        }
        self.last_good.retain(|kept| kept.version != next.version);
        if let Some(before) = self.serving.replace(next)
            && good
        {
            self.last_good.retain(|kept| kept.version != before.version);
            self.last_good.insert(0, before);
            self.last_good.truncate(LAST_GOOD_MAX);
        }
    }
}

/// Everything needed to load a version again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// Which version.
    pub version: VersionId,
    /// Where its component was read from, for people; the copy is in the store.
    pub component: PathBuf,
    /// JSON, with variables expanded.
    #[serde(serialize_with = "reveal", deserialize_with = "hide")]
    pub settings: Secret,
    /// What it was granted.
    pub grants: Grants,
    /// Since when it served.
    pub since: Timestamp,
}

/// What was found at a start.
#[derive(Debug)]
pub struct Restored {
    /// What was kept; empty where nothing was, or where nothing could be read.
    pub saved: Saved,
    /// What is wrong, and what was done about it. Shown until the next start.
    pub trouble: Option<String>,
    /// How many files were corrupted.
    pub corrupted: u64,
    /// What the audit log may lack: the process ended before it was known to be written.
    pub entries: Vec<AuditEntry>,
}

/// Why a state directory cannot be used.
#[derive(Debug)]
pub enum StoreError {
    /// The operating system says no.
    Io {
        /// What was to be done.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Its answer.
        error: io::Error,
    },
    /// Another process decides.
    Locked(PathBuf),
}

impl std::fmt::Display for StoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io { doing, path, error } => write!(f, "cannot {doing} `{}`: {error}", path.display()),
            Self::Locked(path) => write!(
                f,
                "another gateway uses the state directory `{}`: stop it, replace it with `lockgate upgrade`, or set another `server.state_dir`",
                path.display()
            ),
        }
    }
}

impl std::error::Error for StoreError {}

/// The state directory.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    sequence: u64,
    lock: Option<File>,
}

/// What the judges know. One copy, without a checksum: what is lost of it is gathered again.
const EVIDENCE: &str = "evidence.json";

/// The names of the two copies.
const COPIES: [&str; 2] = ["rollouts.json", "rollouts.json.1"];

impl Store {
    /// Opens a state directory, which is created where it is missing. Nothing is read or locked yet.
    ///
    /// # Errors
    ///
    /// The directory cannot be created.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        for dir in [dir.to_owned(), dir.join("components")] {
            DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|error| StoreError::Io {
                doing: "create the state directory",
                path: dir,
                error,
            })?;
        }
        Ok(Self::at(dir))
    }

    /// Returns the store in a directory that may be missing: only to look at.
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), sequence: 0, lock: None }
    }

    /// Makes this process the one that decides. Doing so twice is no error.
    ///
    /// # Errors
    ///
    /// Another process does, or the lock's file cannot be created.
    pub fn lock(&mut self) -> Result<(), StoreError> {
        if self.lock.is_some() {
            return Ok(());
        }
        let path = self.dir.join("lock");
        let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let io = |error| StoreError::Io { doing: "lock", path: path.clone(), error };
        let file = opened.map_err(io)?;
        match file.try_lock() {
            Ok(()) => {
                self.lock = Some(file);
                Ok(())
            }
            Err(TryLockError::WouldBlock) => Err(StoreError::Locked(self.dir.clone())),
            Err(TryLockError::Error(error)) => Err(io(error)),
        }
    }

    /// Lets another process decide.
    pub fn unlock(&mut self) {
        self.lock = None;
    }

    /// Reads what was kept. A corrupted copy is set aside where this process decides, and otherwise left as it is.
    ///
    /// # Errors
    ///
    /// A file is there but cannot be read.
    pub fn restore(&mut self) -> Result<Restored, StoreError> {
        let mut whole: Vec<Content> = Vec::new();
        let mut troubles = Vec::new();
        for name in COPIES {
            let path = self.dir.join(name);
            let text = match fs::read(&path) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(StoreError::Io { doing: "read", path, error }),
            };
            match decode(&text) {
                Ok(copy) => whole.push(copy),
                Err(why) => troubles.push(self.set_aside(&path, &why)?),
            }
        }
        let newest = whole.into_iter().max_by_key(|content| content.sequence);
        let corrupted = troubles.len() as u64;
        let trouble = (!troubles.is_empty()).then(|| {
            let consequence = match newest {
                Some(_) => "the other copy was used, and nothing is lost",
                None => {
                    "there was no other copy: every rollout begins with the file's weight, and the quarantine is empty"
                }
            };
            format!("{}; {consequence}", troubles.join("; "))
        });
        let Content { sequence, state: saved, entries } = newest.unwrap_or_default();
        self.sequence = sequence;
        Ok(Restored { saved, trouble, corrupted, entries })
    }

    /// Writes the first copy, with the entries that the audit log is to get for it, and returns when it is on disk. What is
    /// kept counts from now on; [`Self::confirm`] is to follow when the log has been written.
    ///
    /// # Errors
    ///
    /// It could not be written; what was kept before still counts.
    pub fn save(&mut self, saved: &Saved, entries: &[AuditEntry]) -> Result<(), StoreError> {
        let [first, _] = COPIES;
        self.write(&self.dir.join(first), &encode(self.sequence + 1, saved, entries))?;
        self.sequence += 1;
        Ok(())
    }

    /// Writes the second copy, of what was saved last: nothing of it is missing in the audit log.
    pub fn confirm(&mut self, saved: &Saved) {
        let [_, second] = COPIES;
        match self.write(&self.dir.join(second), &encode(self.sequence + 1, saved, &[])) {
            Ok(()) => self.sequence += 1,
            Err(error) => tracing::warn!(%error, "the state has no second copy"),
        }
    }

    /// Writes what is known about the rollouts under way, and returns when it is on disk.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn save_evidence(&self, text: &[u8]) -> Result<(), StoreError> {
        self.write(&self.dir.join(EVIDENCE), text)
    }

    /// Returns what was known about the rollouts under way; nothing where it was not written, or cannot be read: evidence can
    /// be gathered again.
    pub fn evidence<T: DeserializeOwned + Default>(&self) -> T {
        let text = match fs::read(self.dir.join(EVIDENCE)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return T::default(),
            Err(error) => {
                tracing::warn!(%error, "the evidence of the rollouts cannot be read, and is gathered anew");
                return T::default();
            }
        };
        serde_json::from_slice(&text).unwrap_or_else(|error| {
            tracing::warn!(%error, "the evidence of the rollouts cannot be read, and is gathered anew");
            T::default()
        })
    }

    /// Keeps a copy of a component.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn keep_component(&self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.component_path(digest);
        // A copy that is not whole is written again: this is the moment when the bytes are at hand.
        if fs::read(&path).is_ok_and(|kept| kept == bytes) {
            return Ok(());
        }
        self.write(&path, bytes)
    }

    /// Returns the copy of a component.
    ///
    /// # Errors
    ///
    /// There is none, or it is not what it was.
    pub fn component(&self, digest: &Digest) -> Result<Arc<[u8]>, StoreError> {
        let path = self.component_path(digest);
        let io = |error| StoreError::Io { doing: "read", path: path.clone(), error };
        let bytes = fs::read(&path).map_err(io)?;
        if Digest::of(&bytes) != *digest {
            return Err(io(io::Error::new(io::ErrorKind::InvalidData, "its content is not what its name says")));
        }
        Ok(bytes.into())
    }

    /// Drops the copies of components that are not in `needed`. What cannot be dropped stays.
    pub fn prune_components(&self, needed: &BTreeSet<Digest>) {
        let names: BTreeSet<PathBuf> = needed.iter().map(|digest| self.component_path(digest)).collect();
        let Ok(entries) = fs::read_dir(self.dir.join("components")) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            if !names.contains(&path)
                && let Err(error) = fs::remove_file(&path)
            {
                tracing::warn!(path = %path.display(), %error, "a component's copy that nothing needs could not be dropped");
            }
        }
    }

    fn component_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("components").join(format!("{digest:#}.wasm"))
    }

    /// Moves a corrupted copy away, where this process decides, and says so.
    fn set_aside(&self, path: &Path, why: &str) -> Result<String, StoreError> {
        let shown = path.display();
        if self.lock.is_none() {
            return Ok(format!("`{shown}` is corrupted ({why})"));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let aside = path.with_file_name(format!("{name}.corrupt-{}", Timestamp::now().compact()));
        fs::rename(path, &aside).map_err(|error| StoreError::Io {
            doing: "set aside the corrupted",
            path: path.to_owned(),
            error,
        })?;
        Ok(format!("`{shown}` was corrupted ({why}) and is now `{}`", aside.display()))
    }

    /// Puts a file in its place whole, or not at all.
    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        // One process writes, one file at a time: one temporary name for each file is enough, and what a crash left
        // is overwritten.
        let temporary = path.with_added_extension("tmp");
        let put = || -> io::Result<()> {
            let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, path)?;
            // The rename is on disk when the directory is.
            File::open(path.parent().unwrap_or(&self.dir))?.sync_all()
        };
        put().map_err(|error| StoreError::Io { doing: "write", path: path.to_owned(), error })
    }
}

/// What a file holds.
#[derive(Debug, Default, PartialEq, Deserialize)]
struct Content {
    sequence: u64,
    state: Saved,
    #[serde(default)]
    entries: Vec<AuditEntry>,
}

/// Returns a file's text. The checksum covers the rest, without white space, so that it can be looked at with any tool.
fn encode(sequence: u64, saved: &Saved, entries: &[AuditEntry]) -> Vec<u8> {
    let mut content = json!({ "sequence": sequence, "state": saved });
    if !entries.is_empty() {
        content["entries"] = json!(entries);
    }
    let file = json!({ "format": FORMAT, "checksum": checksum(&content), "content": content });
    let mut text = format!("{file:#}").into_bytes();
    text.push(b'\n');
    text
}

fn decode(text: &[u8]) -> Result<Content, String> {
    let mut file: Value = serde_json::from_slice(text).map_err(|error| format!("it is not JSON: {error}"))?;
    match file.get("format").and_then(Value::as_u64) {
        Some(FORMAT) => {}
        Some(other) => return Err(format!("its format is {other}, and this version of lockgate reads {FORMAT}")),
        None => return Err("it does not name its format".to_owned()),
    }
    let content = file.get_mut("content").map(Value::take).unwrap_or_default();
    if file.get("checksum").and_then(Value::as_str) != Some(&checksum(&content)) {
        return Err("its checksum is wrong".to_owned());
    }
    serde_json::from_value(content).map_err(|error| format!("it is not a state: {error}"))
}

/// Guards against damage, not against people: who can write the directory can decide anyway.
fn checksum(content: &Value) -> String {
    format!("xxh3:{:032x}", xxh3_128(content.to_string().as_bytes()))
}

fn reveal<S: Serializer>(secret: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.reveal())
}

fn hide<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
    String::deserialize(deserializer).map(Secret::new)
}
