//! `lockgate cache`

use std::sync::Arc;
use std::time::SystemTime;

use clap::{Args, Subcommand};
use lockgate_config::units::ByteSize;
use lockgate_host::{CacheEntry, Host};
use serde_json::json;

use super::output::{Table, count, print, print_json, size};
use super::{ConfigFile, Failure};
use crate::control::reload::host;

/// See what is compiled, and drop it.
///
/// Works on the cache's directory itself, whether a gateway runs or not. A filter that is loaded goes on running; it is
/// compiled again when it is loaded again.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate cache list
  lockgate cache prune --to 512MiB
  lockgate cache prune                  drop all")]
pub(super) struct Cache {
    #[command(flatten)]
    config: ConfigFile,
    /// Print the answer as JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show the artifacts, the longest unused first.
    List,
    /// Drop artifacts, the longest unused first.
    Prune {
        /// Until the rest is no larger than this.
        #[arg(long, value_name = "SIZE", default_value = "0")]
        to: ByteSize,
    },
}

impl Cache {
    pub(super) fn run(self) -> Result<(), Failure> {
        let host = self.host()?;
        let failed = |error| Failure::failed(format_args!("the cache's directory cannot be read: {error}"));
        let (entries, what) = match self.action {
            Action::List => (host.cache().entries().map_err(failed)?, "in the cache"),
            Action::Prune { to } => (host.cache().prune(to.bytes()).map_err(failed)?, "dropped"),
        };
        if self.json {
            return print_json(&json!(entries));
        }
        let bytes: u64 = entries.iter().map(|entry| entry.bytes).sum();
        let sum = format!("{} {what}, {}", count(entries.len(), "artifact"), size(bytes));
        if entries.is_empty() { print(&sum) } else { print(&format!("{}{sum}", table(&entries))) }
    }

    fn host(&self) -> Result<Arc<Host>, Failure> {
        let config = lockgate_config::load(&self.config.path)?.config;
        host(&config).map_err(Failure::failed)
    }
}

fn table(entries: &[CacheEntry]) -> String {
    let mut table = Table::new(&["ARTIFACT", "SIZE", "UNUSED FOR"]);
    for entry in entries {
        // A clock that was set back makes it new.
        let idle = SystemTime::now().duration_since(entry.used).unwrap_or_default();
        table.row([entry.key.clone(), size(entry.bytes), age(idle.as_secs())]);
    }
    table.render()
}

fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}
