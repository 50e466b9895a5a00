//! Notices when the configuration or a component changes on disk. A *fingerprint* is what the file system says about the
//! files that were read; when it differs from what is there now, a reload is asked for, and the reload, which compares
//! contents, decides whether there is anything new.
//!
//! Events of the file system only make that comparison happen at once. They are taken from directories, not files: editors
//! and Kubernetes replace files by renames, and a watched file that is renamed over is gone. Where a path leads through
//! symbolic links, the directory of each link is watched as well (Kubernetes swaps one named `..data`). A slow poll covers
//! what events miss: network file systems, and more watches than the kernel allows.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

/// How long nothing must have happened before files are compared: whoever writes several of them gets one reload.
const QUIET: Duration = Duration::from_millis(100);

/// How long a stream of events can put the comparison off.
const QUIET_MAX: Duration = Duration::from_secs(1);

/// How often files are compared without an event.
const POLL: Duration = Duration::from_secs(5);

/// Symbolic links followed for one path; the kernel gives up at 40.
const LINKS_MAX: usize = 40;

/// What the file system says about files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint(BTreeMap<PathBuf, Option<Stat>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    device: u64,
    inode: u64,
    length: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    /// Of the inode, which a write that sets the time of modification back cannot hide.
    changed: (i64, i64),
}

impl Stat {
    fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

impl Fingerprint {
    /// Takes note of a file, which may be missing. To be called before the file is read, so that a change in between is
    /// noticed later.
    pub fn note(&mut self, path: &Path) {
        self.0.insert(path.to_owned(), Stat::of(path));
    }

    /// Returns the fingerprint of the same files now.
    fn now(&self) -> Self {
        Self(self.0.keys().map(|path| (path.clone(), Stat::of(path))).collect())
    }

    /// Returns the directories whose entries lead to the files.
    fn directories(&self) -> BTreeSet<PathBuf> {
        let mut directories = BTreeSet::new();
        for path in self.0.keys() {
            let mut links = LINKS_MAX;
            collect(path, &mut directories, &mut links);
        }
        directories
    }
}

/// Adds the directory of a path, and those of all links on the way to it.
fn collect(path: &Path, directories: &mut BTreeSet<PathBuf>, links: &mut usize) {
    let directory_of = |path: &Path| match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_owned(),
        None => path.to_owned(),
    };
    directories.insert(directory_of(path));
    for ancestor in path.ancestors() {
        let Ok(target) = std::fs::read_link(ancestor) else { continue };
        if *links == 0 {
            return;
        }
        *links -= 1;
        let directory = directory_of(ancestor);
        directories.insert(directory.clone());
        collect(&directory.join(target), directories, links);
    }
}

/// Asks for a reload, by `changed`, whenever files differ from the fingerprint in `seen`; an empty one watches nothing.
/// `changed` answers whether there will be a reload; after it, refused or not, its fingerprint is expected in `seen`. Ends
/// when the sender of `seen` is gone.
pub async fn watch(mut seen: watch::Receiver<Arc<Fingerprint>>, changed: impl Fn() -> bool) {
    let (wake, mut woken) = mpsc::channel(1);
    let mut directories = Directories::new(wake);
    let mut poll = interval(POLL);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // What a reload was last asked for: it may take a minute, and is not to be asked for again meanwhile.
    let mut asked = Fingerprint::default();
    seen.mark_changed();
    loop {
        tokio::select! {
            renewed = seen.changed() => {
                if renewed.is_err() {
                    return;
                }
                let wanted = seen.borrow_and_update().directories();
                directories.follow(wanted);
            }
            Some(()) = woken.recv() => settle(&mut woken).await,
            _ = poll.tick() => {}
        }
        let known = Arc::clone(&seen.borrow());
        let now = known.now();
        if now != *known && now != asked {
            // A link on the way may have changed, and with it the directories to watch.
            directories.follow(known.directories());
            if changed() {
                asked = now;
            }
        }
    }
}

/// Waits until nothing has happened for a while.
async fn settle(woken: &mut mpsc::Receiver<()>) {
    let latest = Instant::now() + QUIET_MAX;
    loop {
        let quiet = (Instant::now() + QUIET).min(latest);
        if timeout_at(quiet, woken.recv()).await.is_err() || Instant::now() >= latest {
            return;
        }
    }
}

/// The watched directories.
struct Directories {
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
}

impl Directories {
    fn new(wake: mpsc::Sender<()>) -> Self {
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading is what we do ourselves. An error means that events may have been lost: better look.
            if event.map_or(true, |event| !event.kind.is_access()) {
                // A full channel holds a wake-up already, and a closed one needs none.
                wake.try_send(()).ok();
            }
        });
        let watcher = watcher
            .inspect_err(|error| tracing::warn!(%error, "file events are not available; files are compared every 5 s"))
            .ok();
        Self { watcher, watched: BTreeSet::new() }
    }

    fn follow(&mut self, wanted: BTreeSet<PathBuf>) {
        let Some(watcher) = &mut self.watcher else { return };
        for gone in self.watched.difference(&wanted) {
            // An error means that the directory itself is gone.
            drop(watcher.unwatch(gone));
        }
        // Watched anew each time: a directory that was replaced by another of the same name has lost its watch.
        self.watched = wanted
            .into_iter()
            .filter(|directory| match watcher.watch(directory, RecursiveMode::NonRecursive) {
                Ok(()) => true,
                Err(error) => {
                    tracing::warn!(directory = %directory.display(), %error, "a directory cannot be watched; its files are compared every 5 s");
                    false
                }
            })
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use tempfile::TempDir;
    use tokio::sync::Notify;

    use super::*;

    /// A watcher over one file of a folder.
    struct Watched {
        dir: TempDir,
        file: PathBuf,
        seen: watch::Sender<Arc<Fingerprint>>,
        changed: Arc<Notify>,
    }

    impl Watched {
        fn start(file: &str, prepare: impl FnOnce(&Path)) -> Self {
            let dir = tempfile::tempdir().expect("a folder");
            prepare(dir.path());
            let file = dir.path().join(file);
            let mut fingerprint = Fingerprint::default();
            fingerprint.note(&file);
            let (seen, receiver) = watch::channel(Arc::new(fingerprint));
            let changed = Arc::new(Notify::new());
            let notify = Arc::clone(&changed);
            tokio::spawn(watch(receiver, move || {
                notify.notify_one();
                true
            }));
            Self { dir, file, seen, changed }
        }

        /// Waits for the reload that is asked for, and answers as one does.
        async fn reload(&self) {
            tokio::time::timeout(Duration::from_secs(30), self.changed.notified())
                .await
                .expect("the change is noticed");
            let mut fingerprint = Fingerprint::default();
            fingerprint.note(&self.file);
            self.seen.send_replace(Arc::new(fingerprint));
        }
    }

    fn write(dir: &Path, name: &str, text: &str) {
        fs::write(dir.join(name), text).expect("it can be written");
    }

    #[tokio::test]
    async fn a_file_written_in_place_is_noticed() {
        let watched = Watched::start("a.yaml", |dir| write(dir, "a.yaml", "one"));
        write(watched.dir.path(), "a.yaml", "two");
        watched.reload().await;
    }

    #[tokio::test]
    async fn a_file_renamed_over_is_noticed_again_and_again() {
        let watched = Watched::start("a.yaml", |dir| write(dir, "a.yaml", "one"));
        for text in ["two", "three", "four"] {
            write(watched.dir.path(), "a.yaml.new", text);
            fs::rename(watched.dir.path().join("a.yaml.new"), &watched.file).expect("it can be renamed");
            watched.reload().await;
        }
    }

    #[tokio::test]
    async fn a_file_that_appears_is_noticed() {
        let watched = Watched::start("a.wasm", |_| {});
        write(watched.dir.path(), "a.wasm", "one");
        watched.reload().await;
    }

    #[tokio::test]
    async fn the_symlink_swap_of_kubernetes_is_noticed_again_and_again() {
        let watched = Watched::start("a.yaml", |dir| {
            fs::create_dir(dir.join("..1")).expect("a folder");
            write(dir, "..1/a.yaml", "one");
            symlink("..1", dir.join("..data")).expect("a link");
            symlink("..data/a.yaml", dir.join("a.yaml")).expect("a link");
        });
        for generation in ["..2", "..3"] {
            let dir = watched.dir.path();
            fs::create_dir(dir.join(generation)).expect("a folder");
            write(dir, &format!("{generation}/a.yaml"), generation);
            symlink(generation, dir.join("..data_tmp")).expect("a link");
            fs::rename(dir.join("..data_tmp"), dir.join("..data")).expect("it can be renamed");
            watched.reload().await;
        }
    }

    #[test]
    fn the_directory_of_each_link_is_watched() {
        let dir = tempfile::tempdir().expect("a folder");
        let root = dir.path().canonicalize().expect("it is there");
        for name in ["config", "releases", "releases/1"] {
            fs::create_dir(root.join(name)).expect("a folder");
        }
        write(&root, "releases/1/a.wasm", "one");
        symlink("../releases/1", root.join("config/current")).expect("a link");
        let mut fingerprint = Fingerprint::default();
        fingerprint.note(&root.join("config/current/a.wasm"));
        let directories = fingerprint.directories();
        for name in ["config", "config/current", "config/../releases"] {
            assert!(directories.contains(&root.join(name)), "{name}: {directories:?}");
        }
    }

    #[test]
    fn links_in_a_circle_come_to_an_end() {
        let dir = tempfile::tempdir().expect("a folder");
        symlink("b", dir.path().join("a")).expect("a link");
        symlink("a", dir.path().join("b")).expect("a link");
        let mut fingerprint = Fingerprint::default();
        fingerprint.note(&dir.path().join("a"));
        assert!(fingerprint.directories().contains(dir.path()));
    }
}
