//! `lockgate approve`

use clap::Args;
use http::Method;
use lockgate_config::problem::Report;
use serde_json::{Value, json};

use super::client::{Gateway, segment};
use super::output::{Table, print, print_json};
use super::{ConfigFile, Failure};
use crate::control::Actor;
use crate::control::approvals::approve_offline;
use crate::control::reload::Draft;
use crate::control::watch::Fingerprint;

/// See the versions that may do more than what serves and wait for it, and let one in.
///
/// Where `require_approval: grants` holds, a version with a grant that the serving one does not have waits: a canary's
/// rollout does not begin, and a file with a new stable version is not taken. An approval is for that very version.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate approve --list
  lockgate approve auth
  lockgate approve auth --version 9f2c1a.4be01f.77b0e4   that version, or none
  lockgate approve auth --offline                        before a start that was refused for it")]
pub(super) struct Approve {
    #[command(flatten)]
    gateway: Gateway,
    /// The filter or function.
    #[arg(required_unless_present = "list", conflicts_with = "list")]
    name: Option<String>,
    /// Show what waits.
    #[arg(long)]
    list: bool,
    /// Let in nothing but the version with this label.
    #[arg(long, value_name = "LABEL", conflicts_with = "list")]
    version: Option<String>,
    /// Write to the state directory, while no gateway runs.
    #[arg(long, conflicts_with = "list")]
    offline: bool,
    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
}

impl Approve {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Some(name) = &self.name else {
            let waiting = self.gateway.call(Method::GET, "/api/v1/approvals", None)?;
            return if self.json { print_json(&waiting) } else { print(&list(&waiting)) };
        };
        let approved = if self.offline {
            offline(self.gateway.config(), name, self.version.as_deref())?
        } else {
            let body = self.version.as_ref().map(|version| json!({ "version": version }));
            self.gateway.call(Method::POST, &format!("/api/v1/approvals/{}", segment(name)), body.as_ref())?
        };
        if self.json {
            return print_json(&approved);
        }
        let lines = entries(&approved).map(|entry| {
            let [kind, name, version, gains] = cells(entry);
            format!("{kind} {name} {version} may {gains} from now on\n")
        });
        print(&lines.collect::<String>())
    }
}

/// Approves what keeps a gateway from starting.
fn offline(config: &ConfigFile, name: &str, version: Option<&str>) -> Result<Value, Failure> {
    let draft = Draft::read(&config.path, &mut Fingerprint::default(), None).map_err(Report::from)?;
    let by = Actor::new(format!("cli by uid {}", rustix::process::getuid().as_raw()));
    let approved = approve_offline(&draft.facts, name, version, &by).map_err(Failure::failed)?;
    serde_json::to_value(approved).map_err(Failure::failed)
}

fn entries(approvals: &Value) -> impl Iterator<Item = &Value> {
    approvals.as_array().into_iter().flatten()
}

fn cells(entry: &Value) -> [String; 4] {
    let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let gains: Vec<_> = entry["gains"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    [text("kind"), text("name"), text("version"), gains.join(", ")]
}

/// Returns what waits, as a table.
pub(super) fn list(approvals: &Value) -> String {
    let mut table = Table::new(&["WAITS", "NAME", "VERSION", "WITH", "WOULD BE NEW: IT MAY"]);
    for entry in entries(approvals) {
        let [kind, name, version, gains] = cells(entry);
        let with = entry["rollout"].as_str().map_or_else(|| "the file".to_owned(), |name| format!("rollout {name}"));
        table.row([kind, name, version, with, gains]);
    }
    if table.is_empty() { "nothing waits for approval".to_owned() } else { table.render() }
}
