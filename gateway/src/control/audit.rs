//! The audit log: who changed what, when, from what to what, and on what evidence. One JSON object a line, appended and
//! fsynced before the change takes effect; nothing is ever rewritten. The file is opened for each entry, so that it can be
//! moved away for rotation at any time.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::control::quarantine::Why;
use crate::control::time::Timestamp;

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AuditEntry {
    /// When, as RFC 3339 in UTC.
    #[schema(value_type = String)]
    pub time: Timestamp,
    /// Who: `cli by uid 1000`, `api 127.0.0.1`, `signal`, `file`, `gateway`.
    pub actor: String,
    /// What was done: `reload`, `begin`, `set-weight`, `promote`, `roll-back`, `resume`, `end`, `quarantine`,
    /// `release`, `grant` (what a new version may do that the one before could not), `approve`.
    pub action: String,
    /// To what: `rollout auth-1.5`, `filter auth 9f2c1a77b0e4`, `configuration`.
    pub subject: String,
    /// The state before, in words; empty where there was none.
    pub before: String,
    /// The state after, in words; empty where there is none.
    pub after: String,
    /// On what evidence, where it was more than the actor's wish.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub why: Option<Why>,
}

/// The log's file.
#[derive(Clone, Debug)]
pub struct Audit {
    path: PathBuf,
}

/// Bytes that a reader looks back at most. An entry has a few hundred.
const TAIL_BYTES_MAX: u64 = 4 << 20;

impl Audit {
    /// Returns the log in a state directory.
    pub fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join("audit.jsonl") }
    }

    /// Appends entries, and returns when they are on disk.
    ///
    /// # Errors
    ///
    /// The file cannot be opened, written or synced.
    pub fn append(&self, entries: &[AuditEntry]) -> io::Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut file = OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(&self.path)?;
        let mut lines = Vec::new();
        if !ends_a_line(&mut file)? {
            // What a crash tore stays as it is, on a line of its own.
            lines.push(b'\n');
        }
        for entry in entries {
            serde_json::to_writer(&mut lines, entry)?;
            lines.push(b'\n');
        }
        file.write_all(&lines)?;
        file.sync_all()
    }

    /// Returns the last entries, the oldest of them first. Lines that are not entries (torn by a crash) are passed over,
    /// and so is a file that cannot be read.
    pub fn tail(&self, last: usize) -> Vec<AuditEntry> {
        let text = self.read_end().unwrap_or_default();
        let mut entries: Vec<AuditEntry> = String::from_utf8_lossy(&text)
            .lines()
            .rev()
            .filter_map(|line| serde_json::from_str(line).ok())
            .take(last)
            .collect();
        entries.reverse();
        entries
    }

    fn read_end(&self) -> io::Result<Vec<u8>> {
        let mut file = File::open(&self.path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES_MAX)))?;
        let mut text = Vec::new();
        file.take(TAIL_BYTES_MAX).read_to_end(&mut text)?;
        Ok(text)
    }
}

fn ends_a_line(file: &mut File) -> io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(after: &str) -> AuditEntry {
        AuditEntry {
            time: Timestamp::from_millis(1_795_227_004_120),
            actor: "cli by uid 1000".to_owned(),
            action: "set-weight".to_owned(),
            subject: "rollout auth-1.5".to_owned(),
            before: "ramping 5%".to_owned(),
            after: after.to_owned(),
            why: None,
        }
    }

    #[test]
    fn the_last_entries_come_back_in_order() {
        let dir = tempfile::tempdir().expect("a folder");
        let audit = Audit::new(dir.path());
        for after in ["ramping 10%", "ramping 20%", "promoted"] {
            audit.append(&[entry(after)]).expect("it can be written");
        }
        let after: Vec<_> = audit.tail(2).into_iter().map(|entry| entry.after).collect();
        assert_eq!(after, ["ramping 20%", "promoted"]);
        assert_eq!(audit.tail(10).len(), 3);
    }

    #[test]
    fn an_entry_is_one_line_that_people_can_read() {
        let dir = tempfile::tempdir().expect("a folder");
        Audit::new(dir.path()).append(&[entry("promoted")]).expect("it can be written");
        let text = std::fs::read_to_string(dir.path().join("audit.jsonl")).expect("it was just written");
        insta::assert_snapshot!(text, @r#"{"time":"2026-11-21T02:10:04.120Z","actor":"cli by uid 1000","action":"set-weight","subject":"rollout auth-1.5","before":"ramping 5%","after":"promoted"}"#);
    }

    #[test]
    fn a_line_torn_by_a_crash_costs_only_itself() {
        let dir = tempfile::tempdir().expect("a folder");
        let audit = Audit::new(dir.path());
        audit.append(&[entry("ramping 10%"), entry("ramping 20%")]).expect("it can be written");
        let whole = std::fs::read(dir.path().join("audit.jsonl")).expect("it was just written");
        for length in 0..whole.len() {
            std::fs::write(dir.path().join("audit.jsonl"), &whole[..length]).expect("it can be written");
            audit.append(&[entry("promoted")]).expect("it can be written");
            let entries = audit.tail(10);
            assert_eq!(entries.last().map(|entry| entry.after.as_str()), Some("promoted"), "torn at {length}");
            let kept = whole[..length].iter().filter(|byte| **byte == b'\n').count();
            assert!(entries.len() > kept, "torn at {length}");
        }
    }

    #[test]
    fn no_file_means_no_entries() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(Audit::new(dir.path()).tail(10), []);
    }
}
