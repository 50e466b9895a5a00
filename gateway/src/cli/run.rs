//! `lockgate run`

use std::path::PathBuf;

use clap::Args;

use super::log::Format;
use super::progress::progress;
use super::{ConfigFile, Failure};
use crate::control::StartError;
use crate::server::{self, Invocation, RunError, When};

/// Serve, until a signal says otherwise.
///
/// Loads the configuration and every component that it names, then listens. SIGTERM and SIGINT drain and end, a second
/// one ends at once; SIGHUP reloads the configuration; SIGQUIT hands over to a successor that waits for it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate run /etc/lockgate/lockgate.yaml
  lockgate run --takeover=on-signal     load everything, then wait until the running gateway gets SIGQUIT")]
pub(super) struct Run {
    /// The configuration file, in place of `--config`.
    #[arg(value_name = "FILE")]
    path: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigFile,
    /// Take the sockets of the gateway that runs with the same state directory, once everything is loaded: `now`, or
    /// when that gateway gets SIGQUIT. `lockgate upgrade` is the easy way.
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "now", value_name = "WHEN")]
    takeover: Option<When>,
    /// Write the process id here while this process serves.
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
}

impl Run {
    pub(super) fn run(self, log_format: Format) -> Result<(), Failure> {
        let absolute = |path: PathBuf| {
            std::path::absolute(&path)
                .map_err(|error| Failure::input(format_args!("`{}` is no path: {error}", path.display())))
        };
        let options = server::Options {
            invocation: Invocation {
                config: absolute(self.path.unwrap_or(self.config.path))?,
                pid_file: self.pid_file.map(absolute).transpose()?,
                log_format: log_format.as_str().to_owned(),
                serve: None,
            },
            takeover: self.takeover,
            progress: progress(),
        };
        serve(&options)
    }
}

/// Runs a gateway in this process.
pub(super) fn serve(options: &server::Options) -> Result<(), Failure> {
    server::run(options).map_err(|error| match error {
        RunError::Config(_) | RunError::Start(StartError::Config(_)) => Failure::input(error),
        _ => Failure::failed(error),
    })
}
