//! `lockgate compile`

use clap::Args;

use super::output::{count, print};
use super::progress::progress_of_command;
use super::{ConfigFile, Failure};
use crate::control::reload::{Draft, host};

/// Compile every component that the configuration names, into the cache.
///
/// So that a gateway starts, or a reload ends, without waiting for the compiler: in an image's build, or before a rollout.
#[derive(Debug, Args)]
pub(super) struct Compile {
    #[command(flatten)]
    config: ConfigFile,
}

impl Compile {
    pub(super) fn run(self) -> Result<(), Failure> {
        let progress = progress_of_command();
        let draft =
            Draft::read_components(&self.config.path).map_err(|incomplete| incomplete.load_rest_alone(&*progress))?;
        let host = host(&draft.facts.config).map_err(Failure::failed)?;
        let loaded = draft.load_all(&host, &*progress)?;
        let stats = host.cache().stats();
        let versions = count(loaded.filters.len() + loaded.functions.len(), "version");
        print(&format!("{versions}: {} compiled, {} in the cache already", stats.misses, stats.hits))
    }
}
