//! Log lines, to standard error. (The access log is the gateway's output, and goes to standard output.)

use std::io::IsTerminal as _;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// What is logged unless `LOCKGATE_LOG` says otherwise. Pingora reports every client that goes away as an error; the
/// access log has those, with more to them.
const DEFAULT_FILTER: &str = "info,pingora_core=off,pingora_proxy=off";

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// `human` on a terminal, `json` elsewhere.
    #[default]
    Auto,
    /// One JSON object a line.
    Json,
    /// Text.
    Human,
}

impl Format {
    /// Returns the value of `--log-format`.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Json => "json",
            Self::Human => "human",
        }
    }
}

/// Begins to write log lines.
pub(super) fn start(format: Format) {
    let filter = std::env::var("LOCKGATE_LOG")
        .ok()
        .and_then(|filter| EnvFilter::try_new(filter).ok())
        .unwrap_or_else(|| EnvFilter::new(DEFAULT_FILTER));
    let terminal = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        Format::Auto if !terminal => lines.json().flatten_event(true).with_current_span(false).init(),
        Format::Json => lines.json().flatten_event(true).with_current_span(false).init(),
        Format::Auto | Format::Human => lines.with_ansi(terminal).with_target(false).init(),
    }
}
