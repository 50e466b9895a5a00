//! `lockgate cache`

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use clap::{Args, Subcommand};
use lockgate_config::units::ByteSize;
use lockgate_host::{CacheEntry, Host};
use serde::Serialize;
use serde_json::json;

use super::output::{Table, count, print, print_json, size};
use super::{ConfigFile, Failure};
use crate::control::reload::{Draft, Wanted, host};
use crate::control::watch::Fingerprint;

/// See what is compiled, and drop it.
///
/// Works on the cache's directory itself, whether a gateway runs or not. A filter that is loaded goes on running; it is
/// compiled again when it is loaded again. An artifact is shown with the filters that the configuration has it for; one
/// without is of an older version, or of another configuration's.
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
        let mut users = self.users(&host);
        let entries: Vec<Shown> = entries
            .into_iter()
            .map(|entry| Shown { filters: users.remove(&entry.key).unwrap_or_default(), entry })
            .collect();
        if self.json {
            return print_json(&json!(entries));
        }
        let bytes: u64 = entries.iter().map(|shown| shown.entry.bytes).sum();
        let sum = format!("{} {what}, {}", count(entries.len(), "artifact"), size(bytes));
        if entries.is_empty() { print(&sum) } else { print(&format!("{}{sum}", table(&entries))) }
    }

    /// Returns the filters that the configuration has each artifact for, with their versions, by the artifacts' keys. None
    /// where the configuration is wrong: the cache can be seen all the same.
    fn users(&self, host: &Host) -> HashMap<String, Vec<String>> {
        let mut users = HashMap::<_, Vec<String>>::new();
        if let Ok(draft) = Draft::read(&self.config.path, &mut Fingerprint::default(), None) {
            for Wanted { filter, id, .. } in draft.versions() {
                users.entry(host.artifact_key(&id)).or_default().push(format!("{} {id}", filter.name));
            }
        }
        users
    }

    fn host(&self) -> Result<Arc<Host>, Failure> {
        let config = lockgate_config::load(&self.config.path)?.config;
        host(&config).map_err(Failure::failed)
    }
}

/// An artifact, with the filters that the configuration has it for.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    entry: CacheEntry,
    /// Name and version.
    filters: Vec<String>,
}

fn table(entries: &[Shown]) -> String {
    let mut table = Table::new(&["ARTIFACT", "FILTER", "SIZE", "UNUSED FOR"]);
    for Shown { entry, filters } in entries {
        // A clock that was set back makes it new.
        let idle = SystemTime::now().duration_since(entry.used).unwrap_or_default();
        let filters = if filters.is_empty() { "-".to_owned() } else { filters.join(", ") };
        table.row([entry.key.clone(), filters, size(entry.bytes), age(idle.as_secs())]);
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
