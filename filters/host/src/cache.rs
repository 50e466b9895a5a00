//! The cache of artifacts: a folder of files, each named by its key. The only module that hands bytes to
//! [`Component::deserialize`], which runs them as machine code, and so the only one with `unsafe`.
//!
//! # Why that is sound
//!
//! `deserialize` asks for bytes that `Engine::precompile_component` made, unchanged. It gets a [`Code`], and there are
//! two ways to make one. Either it was compiled in this process a moment ago and never left it. Or it was read from the
//! cache: then [`artifact::open`] has checked a keyed hash over every byte of the file, with a key of 32 random bytes
//! that only the gateway's user can read. Who can forge that hash can read the gateway's memory, and needs no forgery.
//!
//! *Nothing changes between check and use*: the file is opened once, without following links, and read into memory of
//! ours; the bytes that are checked are the bytes that are used. Mapping the file instead would save a copy, and let a
//! later write to the file change running code.
//!
//! *The right artifact is used*: its key is inside the sealed bytes and must be the one that was asked for, so a file
//! that was renamed, or swapped with another, is refused. The key covers component, settings, contract, format and
//! engine (`Engine::precompile_compatibility_hash`), so that an artifact of another engine has another name; and
//! should one arrive under ours, Wasmtime compares versions and flags once more.
//!
//! Files are written under a temporary name, flushed to disk and renamed, never written again; so a crash leaves either
//! no artifact or a whole one. Anything that does not pass is counted, reported, and compiled anew.

use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::Serialize;
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::artifact::{self, Code, FORMAT, Key, Manifest};
use crate::error::HostError;
use crate::link::CONTRACT;
use crate::spec::Digest;

/// What an artifact's file name ends in.
const SUFFIX: &str = ".artifact";
/// No artifact is larger: a guard against reading something else into memory.
const ARTIFACT_BYTES_MAX: u64 = 2 << 30;

/// Why an artifact in the cache was not used. A closed set: its names are metric labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reject {
    /// Cut off, or no artifact at all.
    Truncated,
    /// Its seal is broken: a flipped byte, or another machine's key.
    Tampered,
    /// It is another artifact: renamed or swapped.
    Misplaced,
    /// Another engine made it.
    Engine,
    /// The file could not be read.
    Unreadable,
}

impl Reject {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Truncated, Self::Tampered, Self::Misplaced, Self::Engine, Self::Unreadable];

    /// Returns the name for logs and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::Tampered => "tampered",
            Self::Misplaced => "misplaced",
            Self::Engine => "engine",
            Self::Unreadable => "unreadable",
        }
    }
}

/// Counts since the host was made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CacheStats {
    /// Loads that found their artifact.
    pub hits: u64,
    /// Loads that did not.
    pub misses: u64,
    /// Artifacts that were not used, by reason, in the order of [`Reject::ALL`].
    pub rejects: Vec<(Reject, u64)>,
    /// Time spent on compiling, configuring and snapshotting.
    pub compile_seconds: f64,
}

/// An artifact in the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CacheEntry {
    /// Its key, in hexadecimal.
    pub key: String,
    /// Size of the file.
    pub bytes: u64,
    /// When it was last made or loaded.
    pub used: SystemTime,
}

/// The cache of artifacts on disk.
pub struct Cache {
    dir: PathBuf,
    bytes_max: u64,
    mac_key: [u8; 32],
    hits: AtomicU64,
    misses: AtomicU64,
    rejects: [AtomicU64; Reject::ALL.len()],
    compile_micros: AtomicU64,
    temporary: AtomicU64,
    making: Mutex<HashMap<Key, Arc<Mutex<()>>>>,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key stays out of logs.
        f.debug_struct("Cache").field("dir", &self.dir).field("bytes_max", &self.bytes_max).finish_non_exhaustive()
    }
}

impl Cache {
    /// Opens the cache in `dir`, and makes folder and key where there are none.
    pub(crate) fn new(dir: &Path, key_file: &Path, bytes_max: u64) -> Result<Self, HostError> {
        let refuse = |path: &Path, problem: String| HostError::Cache { path: path.to_owned(), problem };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| refuse(dir, error.to_string()))?;
        let metadata = dir.symlink_metadata().map_err(|error| refuse(dir, error.to_string()))?;
        if !metadata.is_dir() {
            return Err(refuse(dir, "it is not a folder".to_owned()));
        }
        check_owner(&metadata, 0o022, "chmod 700").map_err(|problem| refuse(dir, problem))?;
        let mac_key = mac_key(key_file).map_err(|problem| refuse(key_file, problem))?;
        Ok(Self {
            dir: dir.to_owned(),
            bytes_max,
            mac_key,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            rejects: Default::default(),
            compile_micros: AtomicU64::new(0),
            temporary: AtomicU64::new(0),
            making: Mutex::default(),
        })
    }

    /// Returns what is in the cache, longest unused first.
    ///
    /// # Errors
    ///
    /// The folder cannot be read.
    pub fn entries(&self) -> std::io::Result<Vec<CacheEntry>> {
        let mut entries = Vec::new();
        for file in std::fs::read_dir(&self.dir)? {
            let file = file?;
            let name = file.file_name();
            let Some(key) = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)) else {
                continue;
            };
            // Another process may prune at the same time.
            let Ok(metadata) = file.metadata() else {
                continue;
            };
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            entries.push(CacheEntry { key: key.to_owned(), bytes: metadata.len(), used });
        }
        entries.sort_by(|a, b| (a.used, &a.key).cmp(&(b.used, &b.key)));
        Ok(entries)
    }

    /// Removes the longest unused artifacts until the rest has at most `bytes`, and returns what was removed. Loaded
    /// filters are not affected.
    ///
    /// # Errors
    ///
    /// The folder cannot be read.
    pub fn prune(&self, bytes: u64) -> std::io::Result<Vec<CacheEntry>> {
        self.prune_except(bytes, None)
    }

    /// Returns the counts so far.
    pub fn stats(&self) -> CacheStats {
        let rejects = Reject::ALL.into_iter().zip(&self.rejects);
        CacheStats {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            rejects: rejects.map(|(reason, count)| (reason, count.load(Ordering::Relaxed))).collect(),
            compile_seconds: Duration::from_micros(self.compile_micros.load(Ordering::Relaxed)).as_secs_f64(),
        }
    }

    /// Returns the key of the artifact that these make on `engine`.
    pub(crate) fn key(engine: &Engine, component: &Digest, settings: &Digest) -> Key {
        struct Blake3(blake3::Hasher);
        impl Hasher for Blake3 {
            fn write(&mut self, bytes: &[u8]) {
                self.0.update(bytes);
            }
            fn finish(&self) -> u64 {
                0
            }
        }
        let mut hasher = Blake3(blake3::Hasher::new());
        hasher.write(component.as_bytes());
        hasher.write(settings.as_bytes());
        hasher.write(CONTRACT.as_bytes());
        hasher.write(&FORMAT.to_le_bytes());
        engine.precompile_compatibility_hash().hash(&mut hasher);
        Key(*hasher.0.finalize().as_bytes())
    }

    /// Runs `make` while nobody else does for the same key, so that of many that want one artifact the first makes it
    /// and the others find it.
    pub(crate) fn alone<R>(&self, key: Key, make: impl FnOnce() -> R) -> R {
        let gate = self.making.lock().entry(key).or_default().clone();
        let made = {
            let _alone = gate.lock();
            make()
        };
        let mut making = self.making.lock();
        drop(gate);
        if making.get(&key).is_some_and(|gate| Arc::strong_count(gate) == 1) {
            making.remove(&key);
        }
        made
    }

    /// Returns the artifact of `key`, ready to run, if it is there and passes.
    pub(crate) fn load(&self, engine: &Engine, key: Key) -> Option<(Component, Manifest)> {
        let loaded = match self.read(key) {
            Ok(Some(bytes)) => artifact::open(&self.mac_key, key, &bytes).and_then(|(manifest, code)| {
                let component = run(engine, &code).map_err(|error| {
                    tracing::debug!(error = format!("{error:#}"), "an artifact is another engine's");
                    Reject::Engine
                })?;
                Ok((component, manifest))
            }),
            Ok(None) => {
                self.misses.fetch_add(1, Ordering::Relaxed);
                return None;
            }
            Err(error) => {
                tracing::debug!(%error, "an artifact cannot be read");
                Err(Reject::Unreadable)
            }
        };
        match loaded {
            Ok(loaded) => {
                self.hits.fetch_add(1, Ordering::Relaxed);
                Some(loaded)
            }
            Err(reason) => {
                self.misses.fetch_add(1, Ordering::Relaxed);
                self.rejects[reason as usize].fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    file = %self.file(key).display(),
                    reason = reason.as_str(),
                    "an artifact in the cache is not what was written there; the component is compiled anew"
                );
                None
            }
        }
    }

    /// Returns what was compiled a moment ago, ready to run, and keeps it. That it cannot be kept is no reason not to run it.
    pub(crate) fn keep(
        &self,
        engine: &Engine,
        key: Key,
        manifest: &Manifest,
        code: &[u8],
        took: Duration,
    ) -> wasmtime::Result<Component> {
        self.compile_micros.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
        let code = Code::just_compiled(code);
        let component = run(engine, &code)?;
        let kept = artifact::seal(&self.mac_key, key, manifest, &code)
            .and_then(|bytes| self.write(key, &bytes).map_err(|error| error.to_string()));
        if let Err(problem) = kept {
            tracing::warn!(file = %self.file(key).display(), problem, "an artifact could not be written to the cache");
        } else if let Err(error) = self.prune_except(self.bytes_max, Some(key)) {
            tracing::warn!(dir = %self.dir.display(), %error, "the cache could not be pruned");
        }
        Ok(component)
    }

    fn file(&self, key: Key) -> PathBuf {
        self.dir.join(format!("{key}{SUFFIX}"))
    }

    fn read(&self, key: Key) -> std::io::Result<Option<Vec<u8>>> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags((rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32)
            .open(self.file(key));
        let mut file = match file {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() > ARTIFACT_BYTES_MAX {
            return Err(std::io::Error::other("it is not an artifact's file"));
        }
        let mut bytes = Vec::with_capacity(metadata.len() as usize);
        Read::by_ref(&mut file).take(ARTIFACT_BYTES_MAX).read_to_end(&mut bytes)?;
        // The time of the last use decides what is pruned; without it the artifact is still good.
        if let Err(error) = file.set_modified(SystemTime::now()) {
            tracing::debug!(%error, "an artifact's time of use could not be set");
        }
        Ok(Some(bytes))
    }

    fn write(&self, key: Key, bytes: &[u8]) -> std::io::Result<()> {
        let number = self.temporary.fetch_add(1, Ordering::Relaxed);
        let temporary = self.dir.join(format!(".{key}.{}.{number}", std::process::id()));
        let written = (|| {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&temporary, self.file(key))?;
            File::open(&self.dir)?.sync_all()
        })();
        if written.is_err() {
            // It may not exist, and is ignored wherever it does.
            let _ = std::fs::remove_file(&temporary);
        }
        written
    }

    fn prune_except(&self, bytes: u64, kept: Option<Key>) -> std::io::Result<Vec<CacheEntry>> {
        let kept = kept.map(|key| key.to_string());
        let entries = self.entries()?;
        let mut held: u64 = entries.iter().map(|entry| entry.bytes).sum();
        let mut removed = Vec::new();
        for entry in entries {
            if held <= bytes {
                break;
            }
            if kept.as_ref() == Some(&entry.key) {
                continue;
            }
            match std::fs::remove_file(self.dir.join(format!("{}{SUFFIX}", entry.key))) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => held -= entry.bytes,
            }
            removed.push(entry);
        }
        Ok(removed)
    }
}

#[expect(
    unsafe_code,
    clippy::disallowed_methods,
    reason = "running precompiled code is what the cache is for; the module's documentation has the argument"
)]
fn run(engine: &Engine, code: &Code<'_>) -> wasmtime::Result<Component> {
    // SAFETY: a `Code` is made only of what `precompile_component` returned in this process, or of bytes that
    // `artifact::open` has checked against a keyed hash; see the module's documentation.
    unsafe { Component::deserialize(engine, code.as_bytes()) }
}

/// Returns the key that seals artifacts, and makes it the first time.
fn mac_key(path: &Path) -> Result<[u8; 32], String> {
    if let Some(key) = read_mac_key(path)? {
        return Ok(key);
    }
    let mut key = [0; 32];
    getrandom(&mut key, GetRandomFlags::empty()).map_err(|error| error.to_string())?;
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(|error| error.to_string())?;
    }
    // Written aside and linked into place: of two processes that start at the same time one wins, and both use its key.
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(&key)?;
        file.sync_all()?;
        match std::fs::hard_link(&temporary, path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        }
    })();
    let removed = std::fs::remove_file(&temporary);
    written.and(removed).map_err(|error: std::io::Error| error.to_string())?;
    read_mac_key(path)?.ok_or_else(|| "it vanished while it was being made".to_owned())
}

fn read_mac_key(path: &Path) -> Result<Option<[u8; 32]>, String> {
    let file = OpenOptions::new().read(true).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32).open(path);
    let file = match file {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.map_err(|error| error.to_string())?,
    };
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    check_owner(&metadata, 0o077, "chmod 600")?;
    let mut key = Vec::new();
    file.take(33).read_to_end(&mut key).map_err(|error| error.to_string())?;
    let key = key.try_into().map_err(|_| "it is no key of 32 bytes; remove it, and a new one is made".to_owned())?;
    Ok(Some(key))
}

/// Checks that nobody but this process's user has the rights in `mode`.
fn check_owner(metadata: &std::fs::Metadata, mode: u32, cure: &str) -> Result<(), String> {
    let user = rustix::process::geteuid().as_raw();
    if metadata.uid() != user {
        return Err(format!("it belongs to user {}, not to user {user}, as which the gateway runs", metadata.uid()));
    }
    if metadata.mode() & mode != 0 {
        let kind = if mode & 0o044 != 0 { "read" } else { "write to" };
        return Err(format!("others can {kind} it (mode {:o}); `{cure}` it", metadata.mode() & 0o777));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use lockgate_guests::Guest;
    use wasmtime::Config;

    use super::*;

    /// A cache in a folder of its own.
    fn cache() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(&dir.path().join("cache"), &dir.path().join("key"), 1 << 30).unwrap();
        (dir, cache)
    }

    fn engine(epochs: bool) -> Engine {
        Engine::new(Config::new().epoch_interruption(epochs)).unwrap()
    }

    fn rejects(cache: &Cache) -> Vec<(Reject, u64)> {
        cache.stats().rejects.into_iter().filter(|(_, count)| *count > 0).collect()
    }

    /// Invariant 7. The seal is right and so is the name: what is left to notice it is Wasmtime.
    #[test]
    fn what_another_engine_compiled_is_not_run() {
        let (_dir, cache) = cache();
        let (ours, other) = (engine(true), engine(false));
        let key = Cache::key(&ours, &Digest::of(b"component"), &Digest::of(b"settings"));
        let component = std::fs::read(Guest::Bare.path()).unwrap();
        let compiled = |engine: &Engine| engine.precompile_component(&component).unwrap();
        let manifest = Manifest::default();

        let seal = |code: &[u8]| artifact::seal(&cache.mac_key, key, &manifest, &Code::just_compiled(code)).unwrap();
        cache.write(key, &seal(&compiled(&other))).unwrap();
        assert!(cache.load(&ours, key).is_none());
        assert_eq!(rejects(&cache), [(Reject::Engine, 1)]);

        // A whole artifact whose code is none.
        cache.write(key, &seal(b"not machine code")).unwrap();
        assert!(cache.load(&ours, key).is_none());
        assert_eq!(rejects(&cache), [(Reject::Engine, 2)]);

        cache.write(key, &seal(&compiled(&ours))).unwrap();
        assert!(cache.load(&ours, key).is_some(), "the same way with the right engine");
        assert_eq!(rejects(&cache), [(Reject::Engine, 2)]);
    }

    /// Invariant 7.
    #[test]
    fn whatever_the_code_depends_on_is_in_its_name() {
        let (component, settings) = (Digest::of(b"component"), Digest::of(b"settings"));
        let engines = [engine(true), engine(false)];
        let key = Cache::key(&engines[0], &component, &settings);
        assert_eq!(key, Cache::key(&engine(true), &component, &settings), "on every start");
        let other = Digest::of(b"other");
        for (what, differs) in [
            ("the engine", Cache::key(&engines[1], &component, &settings)),
            ("the component", Cache::key(&engines[0], &other, &settings)),
            ("the settings", Cache::key(&engines[0], &component, &other)),
            ("which is which", Cache::key(&engines[0], &settings, &component)),
        ] {
            assert_ne!(key, differs, "{what}");
        }
    }
}
