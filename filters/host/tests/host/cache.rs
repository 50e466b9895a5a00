//! The cache gives back what was put in, or nothing.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lockgate_guests::Guest;
use lockgate_host::{Filter, Host, HostError, Reject, Silent};
use tempfile::TempDir;

use crate::{get, header, options, pass, setup};

/// A folder with a cache in it; each host that is made from it is another process, in effect.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn host(&self) -> Arc<Host> {
        Host::new(options(self.path())).expect("a host")
    }

    fn artifacts(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.path().join("cache")).expect("a cache");
        let mut files: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
        files.sort();
        files
    }
}

fn tag(host: &Host, value: &str) -> Arc<Filter> {
    setup(Guest::Tag).settings(&format!(r#"{{"value": "{value}"}}"#)).load_by(host)
}

async fn tagged(filter: &Arc<Filter>) -> String {
    let mut exchange = get("/");
    pass(filter, &mut exchange).await;
    header(&exchange.request.headers, "x-tag-request").to_owned()
}

fn rejects(host: &Host) -> Vec<(Reject, u64)> {
    host.cache().stats().rejects.into_iter().filter(|(_, count)| *count > 0).collect()
}

#[tokio::test]
async fn what_one_process_compiled_the_next_one_loads() {
    let place = Place::new();
    let host = place.host();
    tag(&host, "v1");
    let stats = host.cache().stats();
    assert_eq!((stats.hits, stats.misses), (0, 1));
    assert!(stats.compile_seconds > 0.0);
    let host = place.host();
    let filter = tag(&host, "v1");
    let stats = host.cache().stats();
    assert_eq!((stats.hits, stats.misses, stats.compile_seconds), (1, 0, 0.0));
    assert_eq!(tagged(&filter).await, "v1");
    assert_eq!(place.artifacts().len(), 1, "no temporary file is left");
}

/// Invariant 7.
#[tokio::test]
async fn a_damaged_artifact_is_compiled_anew_and_never_run() {
    let place = Place::new();
    tag(&place.host(), "v1");
    let file = place.artifacts().remove(0);
    let whole = fs::read(&file).expect("an artifact");
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x20;
        bytes
    };
    for (bytes, reason) in [
        (flipped(0), Reject::Truncated),
        (flipped(20), Reject::Tampered),
        (flipped(60), Reject::Tampered),
        (flipped(100), Reject::Tampered),
        (flipped(whole.len() / 2), Reject::Tampered),
        (flipped(whole.len() - 1), Reject::Tampered),
        (whole[..whole.len() / 2].to_vec(), Reject::Tampered),
        (whole[..50].to_vec(), Reject::Truncated),
        (Vec::new(), Reject::Truncated),
    ] {
        fs::write(&file, bytes).expect("a write");
        let host = place.host();
        let filter = tag(&host, "v1");
        assert_eq!(rejects(&host), [(reason, 1)]);
        assert_eq!(tagged(&filter).await, "v1");
        assert_eq!(fs::read(&file).expect("an artifact").len(), whole.len(), "it was replaced by a good one");
    }
}

/// Invariant 7.
#[tokio::test]
async fn a_swapped_pair_is_noticed() {
    let place = Place::new();
    let host = place.host();
    tag(&host, "v1");
    tag(&host, "v2");
    let [one, other] = place.artifacts().try_into().expect("two artifacts");
    let aside = place.path().join("aside");
    fs::rename(&one, &aside).expect("a rename");
    fs::rename(&other, &one).expect("a rename");
    fs::rename(&aside, &other).expect("a rename");
    let host = place.host();
    let (one, other) = (tag(&host, "v1"), tag(&host, "v2"));
    assert_eq!(rejects(&host), [(Reject::Misplaced, 2)]);
    assert_eq!((tagged(&one).await, tagged(&other).await), ("v1".to_owned(), "v2".to_owned()));
}

/// Invariant 7.
#[tokio::test]
async fn an_artifact_of_another_machine_is_not_run() {
    let (here, there) = (Place::new(), Place::new());
    tag(&there.host(), "v1");
    let host = here.host();
    let brought = there.artifacts().remove(0);
    fs::copy(&brought, here.path().join("cache").join(brought.file_name().expect("a name"))).expect("a copy");
    let filter = tag(&host, "v1");
    assert_eq!(rejects(&host), [(Reject::Tampered, 1)]);
    assert_eq!(tagged(&filter).await, "v1");
}

#[tokio::test]
async fn a_link_in_the_cache_is_not_followed() {
    let place = Place::new();
    tag(&place.host(), "v1");
    let file = place.artifacts().remove(0);
    let elsewhere = place.path().join("elsewhere");
    fs::rename(&file, &elsewhere).expect("a rename");
    symlink(&elsewhere, &file).expect("a link");
    let host = place.host();
    tag(&host, "v1");
    assert_eq!(rejects(&host), [(Reject::Unreadable, 1)]);
    assert!(!fs::symlink_metadata(&file).expect("an artifact").is_symlink(), "it was replaced by a good one");
}

#[test]
fn of_many_that_want_one_artifact_one_compiles_it() {
    let place = Place::new();
    let host = place.host();
    let spec = setup(Guest::Tag).settings(r#"{"value": "wanted by many"}"#).0;
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| host.load(&spec, &Silent).expect("loads"));
        }
    });
    let stats = host.cache().stats();
    assert_eq!((stats.misses, stats.hits), (1, 5));
}

#[test]
fn the_longest_unused_goes_first() {
    let place = Place::new();
    let host = place.host();
    for (age, value) in [(3, "v1"), (2, "v2"), (1, "v3")] {
        let before = place.artifacts();
        tag(&host, value);
        let new = place.artifacts().into_iter().find(|file| !before.contains(file)).expect("a new artifact");
        let file = fs::File::options().write(true).open(new).expect("an artifact");
        file.set_modified(SystemTime::now() - Duration::from_secs(age * 3_600)).expect("a time");
    }
    let entries = host.cache().entries().expect("entries");
    let [oldest, middle, newest] = &entries[..] else { panic!("three entries: {entries:?}") };
    tag(&host, "v1");
    let removed = host.cache().prune(oldest.bytes + newest.bytes + 1_000).expect("pruned");
    assert_eq!(removed.iter().map(|entry| &entry.key).collect::<Vec<_>>(), [&middle.key], "v1 was just used");
    assert_eq!(host.cache().prune(0).expect("pruned").len(), 2);
    assert_eq!(host.cache().entries().expect("entries"), []);
}

#[tokio::test]
async fn the_cache_stays_within_its_size() {
    let place = Place::new();
    let mut options = options(place.path());
    options.cache_bytes_max = 1;
    let host = Host::new(options).expect("a host");
    let (one, other) = (tag(&host, "v1"), tag(&host, "v2"));
    assert_eq!(place.artifacts().len(), 1, "the one that was just made");
    assert_eq!((tagged(&one).await, tagged(&other).await), ("v1".to_owned(), "v2".to_owned()));
}

#[tokio::test]
async fn a_cache_that_cannot_be_written_is_no_reason_not_to_serve() {
    let place = Place::new();
    let host = place.host();
    fs::remove_dir_all(place.path().join("cache")).expect("removed");
    assert_eq!(tagged(&tag(&host, "v1")).await, "v1");
}

#[test]
fn a_folder_or_key_that_others_can_reach_is_refused() {
    let refusal = |place: &Place| match Host::new(options(place.path())) {
        Err(HostError::Cache { problem, .. }) => problem,
        other => panic!("is refused: {other:?}"),
    };
    let place = Place::new();
    drop(place.host());
    fs::set_permissions(place.path().join("key"), fs::Permissions::from_mode(0o644)).expect("a mode");
    assert_eq!(refusal(&place), "others can read it (mode 644); `chmod 600` it");
    fs::set_permissions(place.path().join("key"), fs::Permissions::from_mode(0o600)).expect("a mode");
    fs::write(place.path().join("key"), "short").expect("a write");
    assert!(refusal(&place).contains("no key of 32 bytes"));
    let place = Place::new();
    drop(place.host());
    assert_eq!(fs::metadata(place.path().join("cache")).expect("a folder").permissions().mode() & 0o777, 0o700);
    fs::set_permissions(place.path().join("cache"), fs::Permissions::from_mode(0o770)).expect("a mode");
    assert_eq!(refusal(&place), "others can write to it (mode 770); `chmod 700` it");
}
