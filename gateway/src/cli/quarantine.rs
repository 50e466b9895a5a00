//! `lockgate quarantine`

use clap::{Args, Subcommand};
use http::Method;

use super::Failure;
use super::client::{Gateway, segment};
use super::output::{Table, print, print_json};

/// See the versions that must not come back by themselves, and let one go.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate quarantine list
  lockgate quarantine release 9f2c1a.4be01f.e3b0c4
  lockgate quarantine release app-2@4be01f")]
pub(super) struct Quarantine {
    #[command(flatten)]
    gateway: Gateway,
    /// Print the answer as JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show all versions in quarantine, and why they are there.
    List,
    /// Let a version serve again.
    Release {
        /// Its label, as `9f2c1a.4be01f.e3b0c4`, or `app-2@4be01f` for an upstream.
        version: String,
    },
}

impl Quarantine {
    pub(super) fn run(self) -> Result<(), Failure> {
        match &self.action {
            Action::List => self.list(),
            Action::Release { version } => {
                let path = format!("/api/v1/quarantine/{}", segment(version));
                self.gateway.text(Method::DELETE, &path, None)?;
                print(&format!("version {version} may serve again"))
            }
        }
    }

    fn list(&self) -> Result<(), Failure> {
        let answer = self.gateway.call(Method::GET, "/api/v1/quarantine", None)?;
        if self.json {
            return print_json(&answer);
        }
        let mut table = Table::new(&["SUBJECT", "VERSION", "SINCE", "WHY"]);
        for entry in answer.as_array().into_iter().flatten() {
            table.row(
                ["subject", "version", "since", "why"].map(|key| entry[key].as_str().unwrap_or_default().to_owned()),
            );
        }
        if table.is_empty() { print("nothing is in quarantine") } else { print(&table.render()) }
    }
}
