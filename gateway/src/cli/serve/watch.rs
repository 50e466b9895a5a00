//! Notices when something in an application's folder changes. Events of the file system make it look at once; a slow poll
//! covers what they miss.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};

use super::app::{App, Setup};

/// How long nothing must have happened before the folder is looked at: a copy takes a moment.
const QUIET: Duration = Duration::from_millis(100);

/// How long a stream of events can put that off.
const QUIET_MAX: Duration = Duration::from_secs(1);

/// How often the folder is looked at without an event.
const POLL: Duration = Duration::from_secs(5);

/// Keeps an application up to date, on a thread of its own, for as long as the process lives.
pub(super) fn start(app: App, setup: &Setup) -> io::Result<()> {
    let (root, state) = (setup.root.clone(), setup.state.clone());
    std::thread::Builder::new().name("serve-watch".to_owned()).spawn(move || follow(app, &root, state)).map(drop)
}

fn follow(mut app: App, root: &Path, state: PathBuf) {
    let (wake, woken) = channel();
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // What we write ourselves is no news. An error means that events may have been lost: better look.
        let news = event
            .map_or(true, |event| !event.kind.is_access() && !event.paths.iter().all(|path| path.starts_with(&state)));
        if news {
            // The other end is there for as long as this one.
            wake.send(()).ok();
        }
    });
    let watched = watcher.and_then(|mut watcher: RecommendedWatcher| {
        watcher.watch(root, RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    if let Err(error) = &watched {
        tracing::warn!(folder = %root.display(), %error, "the folder cannot be watched; it is looked at every 5 s");
    }
    loop {
        match woken.recv_timeout(POLL) {
            Ok(()) => settle(&woken),
            Err(RecvTimeoutError::Timeout) => {}
            // There is no watcher.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(POLL),
        }
        if let Err(error) = app.update() {
            tracing::error!(%error, "the folder's changes cannot be served");
        }
    }
}

/// Waits until nothing has happened for a while.
fn settle(woken: &Receiver<()>) {
    let latest = Instant::now() + QUIET_MAX;
    while woken.recv_timeout(QUIET).is_ok() && Instant::now() < latest {}
}
