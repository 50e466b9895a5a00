//! Folders: that of the state, the cache with its key, and that of the access log.

use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use lockgate_config::model::Config;

use super::Finding;
use crate::cli::output::{count, size};
use crate::control::reload::host;

/// Looks at all folders that the gateway writes to.
pub(super) fn look(config: &Config, findings: &mut Vec<Finding>) {
    findings.push(folder("state", &config.server.state_dir, true));
    findings.push(cache(config));
    if let Some(path) = config.server.access_log.as_ref().and_then(|log| log.output.folder()) {
        findings.push(folder("access log", path, false));
    }
}

/// Looks at a folder. The gateway makes one that is private; others must be there.
fn folder(subject: &str, path: &Path, private: bool) -> Finding {
    let shown = path.display();
    let metadata = match path.metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound && private => {
            // The first one above it that there is decides whether it can be made.
            return match path.ancestors().skip(1).find(|above| above.exists()).map(|above| (above, probe(above))) {
                Some((_, Ok(()))) => Finding::good(subject, format!("`{shown}` is not there yet, and can be made")),
                Some((above, Err(error))) => {
                    let what =
                        format!("`{shown}` is not there, and `{}` cannot be written to: {error}", above.display());
                    Finding::bad(
                        subject,
                        what,
                        format!("`install -d -m 700 -o USER {shown}`, USER being the gateway's"),
                    )
                }
                None => Finding::bad(subject, format!("`{shown}` is nowhere"), "name another folder"),
            };
        }
        Err(error) => return Finding::bad(subject, format!("`{shown}`: {error}"), "make it, or name another"),
    };
    if !metadata.is_dir() {
        return Finding::bad(subject, format!("`{shown}` is no folder"), "name another");
    }
    let (owner, user) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if let Err(error) = probe(path) {
        let what = format!("`{shown}` of user {owner} cannot be written to by user {user}: {error}");
        return Finding::bad(
            subject,
            what,
            format!("run this as the gateway's user; if it is, `chown {user} {shown}`"),
        );
    }
    if private && metadata.mode() & 0o077 != 0 {
        let what =
            format!("`{shown}` has mode {:o}: others see settings, which may hold secrets", metadata.mode() & 0o777);
        return Finding::doubtful(subject, what, format!("`chmod 700 {shown}`"));
    }
    Finding::good(subject, format!("`{shown}` can be written to"))
}

/// Writes a file, and takes it away again.
fn probe(folder: &Path) -> io::Result<()> {
    let path = folder.join(format!(".lockgate-doctor-{}", std::process::id()));
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(&path)?;
    let written = file.write_all(b"probe");
    std::fs::remove_file(&path).and(written)
}

/// Opens the cache as the gateway would, with its key and with the pool of instances.
fn cache(config: &Config) -> Finding {
    let shown = config.server.cache_dir.display();
    match host(config) {
        Ok(host) => match host.cache().entries() {
            Ok(entries) => {
                let bytes: u64 = entries.iter().map(|entry| entry.bytes).sum();
                let artifacts = count(entries.len(), "artifact");
                Finding::good("cache", format!("`{shown}` has {artifacts}, {}, and its key", size(bytes)))
            }
            Err(error) => Finding::bad("cache", format!("`{shown}` cannot be read: {error}"), "name another folder"),
        },
        Err(error) => {
            let advice = "the folder and the key beside it belong to the gateway's user alone; run this as that user";
            Finding::bad("cache", error.to_string(), advice)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::Verdict;
    use super::*;

    #[test]
    fn folders_are_there_or_can_be_made_and_are_private_where_they_must_be() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        assert_eq!(folder("state", &state.join("deeper"), true).verdict, Verdict::Good);
        assert_eq!(folder("access log", &state, false).verdict, Verdict::Bad);
        std::fs::create_dir(&state).unwrap();
        let mode = |mode| std::fs::set_permissions(&state, std::fs::Permissions::from_mode(mode)).unwrap();
        mode(0o755);
        assert_eq!(folder("state", &state, true).verdict, Verdict::Doubtful);
        assert_eq!(folder("access log", &state, false).verdict, Verdict::Good);
        mode(0o700);
        assert_eq!(folder("state", &state, true).verdict, Verdict::Good);
        assert_eq!(std::fs::read_dir(&state).unwrap().count(), 0, "the probe is gone");
        std::fs::write(state.join("file"), "").unwrap();
        assert_eq!(folder("state", &state.join("file"), true).verdict, Verdict::Bad);
    }
}
