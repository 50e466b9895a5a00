//! Where lines of the access log go: standard output, or the end of a file. Used by the log's own thread only.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use lockgate_config::model::LogOutput;
use tracing::{error, info};

use crate::control::snapshot::SnapshotCell;
use crate::proxy::log::Out;

/// Mode of a file that is made: its owner writes, and its group may read.
const MODE: u32 = 0o640;

/// Writes where the current snapshot says.
#[derive(Debug)]
pub struct Output {
    cell: Arc<SnapshotCell>,
    /// What `to` is.
    at: LogOutput,
    to: Sink,
    /// Whether the last attempt failed: it is told once.
    failing: bool,
}

#[derive(Debug)]
enum Sink {
    Stdout(io::Stdout),
    File(File),
}

impl Output {
    /// Opens what the current snapshot says; standard output where it says that nothing is logged.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(cell: Arc<SnapshotCell>) -> io::Result<Self> {
        let at = cell.current().access_log.as_ref().map_or(LogOutput::Stdout, |format| format.output().clone());
        let to = Sink::open(&at)?;
        Ok(Self { cell, at, to, failing: false })
    }

    /// Goes where the snapshot says by now.
    fn follow(&mut self) {
        let snapshot = self.cell.current();
        let Some(wanted) = snapshot.access_log.as_ref().map(|format| format.output()) else { return };
        if *wanted != self.at {
            self.at = wanted.clone();
            self.go();
        }
    }

    /// Opens what is wanted. What was open before stays where that fails.
    fn go(&mut self) {
        match Sink::open(&self.at) {
            Ok(to) => self.to = to,
            Err(error) => error!(%error, "cannot open the access log: lines go where they went"),
        }
    }
}

impl Out for Output {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        self.follow();
        let written = match &mut self.to {
            Sink::Stdout(out) => out.write_all(lines).and_then(|()| out.flush()),
            Sink::File(file) => file.write_all(lines),
        };
        match &written {
            Err(error) if !self.failing => {
                error!(%error, file = %shown(&self.at), "cannot write to the access log: lines are dropped");
            }
            Ok(()) if self.failing => info!("the access log can be written again"),
            _ => {}
        }
        self.failing = written.is_err();
        written
    }

    fn reopen(&mut self) {
        self.follow();
        if let LogOutput::File(path) = &self.at {
            info!(file = %path.display(), "opening the access log anew");
            self.go();
        }
    }
}

impl Sink {
    fn open(output: &LogOutput) -> io::Result<Self> {
        match output {
            LogOutput::Stdout => Ok(Self::Stdout(io::stdout())),
            LogOutput::File(path) => match open_file(path) {
                Ok(file) => Ok(Self::File(file)),
                Err(error) => Err(io::Error::new(error.kind(), format!("`{}`: {error}", path.display()))),
            },
        }
    }
}

/// Opens a file for lines at its end, and makes it where it is not there. Several processes may write to it: an upgrade
/// has two.
fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(MODE).open(path)
}

fn shown(output: &LogOutput) -> String {
    match output {
        LogOutput::Stdout => "standard output".to_owned(),
        LogOutput::File(path) => path.display().to_string(),
    }
}
