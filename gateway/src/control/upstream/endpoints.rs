//! Endpoints of an upstream that stand in a file of their own, which something else writes. The file is looked at each
//! second; one that cannot be used changes nothing: the last good one stays in use.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Weak;
use std::time::{Duration, Instant, SystemTime};

use lockgate_config::model::Endpoint;

use super::Upstream;
use super::resolve::Resolver;

/// How often the file is looked at. Its content is read only where it looks different.
const INTERVAL: Duration = Duration::from_secs(1);

/// The longest file that is read: far above what fits into a pool.
const BYTES_MAX: u64 = 4 << 20;

/// What a file looks like from outside: another one by the same name looks different, and so does another content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    modified: Option<SystemTime>,
    bytes: u64,
    inode: u64,
}

/// Reads a file of endpoints. `named` is whether each must have a name, which TLS asks for.
///
/// # Errors
///
/// Why it cannot be used, in words.
pub fn read(path: &Path, named: bool) -> Result<Vec<(Endpoint, u32)>, String> {
    let bytes = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if bytes > BYTES_MAX {
        return Err(format!("it is longer than {} MiB", BYTES_MAX >> 20));
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    lockgate_config::endpoints(&text, named)
}

impl Upstream {
    /// Looks at the file of endpoints, and takes over what is in it where it looks different than `known`. Returns how it
    /// looks, and whether the endpoints changed.
    pub(super) async fn look_at_file(&self, known: Option<Look>) -> (Option<Look>, bool) {
        let Some((path, _)) = self.config.endpoints_file.clone() else { return (None, false) };
        let named = self.config.tls.as_ref().is_some_and(|tls| tls.server_name.is_none());
        // A disk may take its time.
        let looked = tokio::task::spawn_blocking(move || {
            // Before it is read: what is written meanwhile looks different the next time.
            let look = std::fs::metadata(&path).ok().map(|found| Look {
                modified: found.modified().ok(),
                bytes: found.len(),
                inode: found.ino(),
            });
            let content = (look.is_none() || look != known).then(|| read(&path, named));
            (look, content)
        });
        match looked.await {
            Ok((look, None)) => (look, false),
            Ok((look, Some(Ok(endpoints)))) => {
                self.series.file_failing.set(0);
                let mut current = self.endpoints.lock();
                let changed = **current != *endpoints;
                *current = endpoints.into();
                (look, changed)
            }
            Ok((look, Some(Err(error)))) => {
                // Once for each trouble, not each second.
                if self.series.file_failing.get() == 0 || look.is_some() {
                    tracing::warn!(upstream = %self.name(), %error, "file of endpoints cannot be used; the last good ones stay in use");
                }
                self.series.file_failing.set(1);
                (look, false)
            }
            Err(_) => (known, false),
        }
    }
}

/// Follows the file of an upstream for as long as that lives, and resolves the names in it again when it is time: the
/// first time after `next`.
pub(super) async fn follow(
    upstream: Weak<Upstream>,
    resolver: Resolver,
    mut seen: Option<Look>,
    mut next: Option<Duration>,
) {
    let mut resolved = Instant::now();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let Some(upstream) = upstream.upgrade() else { return };
        let (look, changed) = upstream.look_at_file(seen).await;
        seen = look;
        if changed || next.is_some_and(|after| resolved.elapsed() >= after) {
            next = upstream.resolve(&resolver).await;
            resolved = Instant::now();
        }
        if changed {
            tracing::info!(upstream = %upstream.name(), endpoints = upstream.endpoints.lock().len(), "endpoints changed");
        }
    }
}
