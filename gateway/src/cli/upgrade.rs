//! `lockgate upgrade`

use std::path::PathBuf;

use clap::Args;

use super::output::print;
use super::{ConfigFile, Failure};
use crate::server::{self, Step};

/// Replace the running gateway by a new binary, without a failed request.
///
/// The running gateway starts the binary, which loads, compiles and probes everything, takes the listening sockets and
/// serves; then the old process drains. If anything fails before, the old process goes on as if nothing had happened.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate upgrade                                   the binary at the path of this one
  lockgate upgrade --binary /opt/lockgate-0.2/lockgate")]
pub(super) struct Upgrade {
    #[command(flatten)]
    config: ConfigFile,
    /// The new binary. Default: this one.
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
}

impl Upgrade {
    pub(super) fn run(self) -> Result<(), Failure> {
        // Read here as well: what is wrong with the file is shown to who upgrades, not in the gateway's log only.
        let config = lockgate_config::load(&self.config.path)?.config;
        let absolute = |path: PathBuf| {
            std::path::absolute(&path)
                .map_err(|error| Failure::input(format_args!("`{}` is no path: {error}", path.display())))
        };
        let binary = match self.binary {
            Some(binary) => absolute(binary)?,
            None => std::env::current_exe()
                .map_err(|error| Failure::failed(format_args!("cannot find the path of this binary: {error}")))?,
        };
        let config_file = absolute(self.config.path)?;
        let mut upgrade =
            server::Upgrade::ask(&config.server.state_dir, binary, Some(config_file)).map_err(Failure::failed)?;
        loop {
            match upgrade.step().map_err(|error| {
                Failure::failed(format_args!(
                    "the upgrade failed, and the gateway that ran goes on serving: {error}\nhint: its log, and the new \
                     process's, are on its standard error"
                ))
            })? {
                Step::Started { pid } => print(&format!("process {pid} is loading"))?,
                Step::Done { pid } => return print(&format!("process {pid} serves; the old one drains and ends")),
            }
        }
    }
}
