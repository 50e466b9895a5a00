//! `lockgate check`

use std::path::PathBuf;

use clap::Args;
use lockgate_config::Warnings;
use lockgate_config::model::Config;
use lockgate_config::problem::Report;

use super::output::{count, print, print_json};
use super::progress::progress_of_command;
use super::{ConfigFile, Failure};
use crate::control::approvals::gains_of_canaries;
use crate::control::reload::{Draft, host};
use crate::control::time::Timestamp;
use crate::control::watch::Fingerprint;

/// Is this configuration right, and are the components and certificates that it names?
///
/// Reads the file and tells all that is wrong with it, then loads every component as the gateway would (contract, grants,
/// limits, settings), without serving. What is compiled stays in the cache, so that the gateway starts faster. Where the
/// state of the rollouts overlays the file, it says so, and what to commit.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate check lockgate.yaml
  lockgate check lockgate.yaml --dump      with all defaults filled in; secrets are hidden

Exit codes:
  0  it is right
  1  something else went wrong: the cache cannot be written, say
  2  it is not right")]
pub(super) struct Check {
    /// The configuration file, in place of `--config`.
    #[arg(value_name = "FILE")]
    path: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigFile,
    /// Print the configuration with all defaults filled in, as JSON.
    #[arg(long)]
    dump: bool,
    /// Check the file only, not the components.
    #[arg(long)]
    no_components: bool,
}

impl Check {
    pub(super) fn run(self) -> Result<(), Failure> {
        let path = self.path.unwrap_or(self.config.path);
        let name = path.display();
        let loaded = lockgate_config::load(&path)?;
        let Config { routes, filters, functions, rollouts, .. } = &loaded.config;
        let warnings = Warnings::of(&loaded.config, &loaded.source);
        let mut checked = format!("{}, {}", count(routes.len(), "route"), count(filters.len(), "filter"));
        if !functions.is_empty() {
            checked = format!("{checked}, {}", count(functions.len(), "function"));
        }
        let (mut overlaid, mut gains) = (String::new(), gains_of_canaries(&loaded.config));
        if !self.no_components {
            let progress = progress_of_command();
            let draft = Draft::read(&path, &mut Fingerprint::default(), None)
                .map_err(|incomplete| incomplete.load_rest_alone(&*progress))?;
            let untimely = draft.facts.untimely(Timestamp::now(), None);
            if !untimely.is_empty() {
                return Err(Report::new(draft.facts.source.clone(), untimely).into());
            }
            let versions = draft.versions().len() + draft.functions().len();
            let host = host(&draft.facts.config).map_err(Failure::failed)?;
            draft.load_all(&host, &*progress)?;
            gains = draft.gains();
            checked = format!("{checked} in {}", count(versions, "version"));
            overlaid = match draft.overlaid() {
                Ok(Some(yaml)) => {
                    format!("\nthe state of the rollouts overlays it; to commit what is in force:\n\n{yaml}")
                }
                Ok(None) => String::new(),
                // Whoever checks need not be who runs the gateway.
                Err(error) => format!("\nwhether the state of the rollouts overlays it is not known: {error}"),
            };
        }
        if self.dump {
            return print_json(&lockgate_config::dump(&loaded.config));
        }
        let gains: String = gains.iter().map(|gain| format!("\n{gain}")).collect();
        print(&format!("{warnings}`{name}` is right: {checked}, {}{gains}{overlaid}", count(rollouts.len(), "rollout")))
    }
}
