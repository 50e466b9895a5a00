//! How far loading is: a bar on a terminal, log lines elsewhere.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use lockgate_host::{Progress, Stage};
use tracing::info;

/// Returns what is to be told: a bar where somebody watches, and log lines elsewhere.
pub(super) fn progress() -> Arc<dyn Progress + Send + Sync> {
    if std::io::stderr().is_terminal() { Arc::new(Bar::new()) } else { Arc::new(Lines) }
}

/// Returns what is to be told by a command that ends with an answer: a bar where somebody watches, and elsewhere a log
/// line for what takes long, and for nothing else.
pub(super) fn progress_of_command() -> Arc<dyn Progress + Send + Sync> {
    if std::io::stderr().is_terminal() { Arc::new(Bar::new()) } else { Arc::new(Compiling) }
}

/// A line that turns while something is done, on standard error.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        Self(bar)
    }
}

impl Progress for Bar {
    fn stage(&self, filter: &str, stage: Stage) {
        match stage {
            Stage::Ready { millis } => {
                self.0.suspend(|| info!(filter, millis, "loaded"));
                self.0.finish_and_clear();
            }
            _ => {
                self.0.set_message(format!("{filter}: {}", words(stage)));
                self.0.enable_steady_tick(Duration::from_millis(100));
            }
        }
    }
}

/// A line for each step that takes time.
struct Lines;

impl Progress for Lines {
    fn stage(&self, filter: &str, stage: Stage) {
        match stage {
            Stage::Compiling { bytes } => info!(filter, bytes, "compiling"),
            Stage::Ready { millis } => info!(filter, millis, "loaded"),
            Stage::CacheHit | Stage::Configuring | Stage::Snapshotting | Stage::Probing => {}
        }
    }
}

/// A line for each component that is compiled.
struct Compiling;

impl Progress for Compiling {
    fn stage(&self, filter: &str, stage: Stage) {
        if let Stage::Compiling { bytes } = stage {
            info!(filter, bytes, "compiling");
        }
    }
}

fn words(stage: Stage) -> String {
    match stage {
        Stage::CacheHit => "found in the cache".to_owned(),
        Stage::Compiling { bytes } => format!("compiling {} KiB", bytes.div_ceil(1024)),
        Stage::Configuring => "configuring".to_owned(),
        Stage::Snapshotting => "taking a snapshot of the configured memory".to_owned(),
        Stage::Probing => "starting an instance".to_owned(),
        Stage::Ready { .. } => "ready".to_owned(),
    }
}
