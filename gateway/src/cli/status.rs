//! `lockgate status`

use clap::Args;
use http::Method;
use serde_json::Value;

use super::client::Gateway;
use super::output::{Table, print, print_json, size};
use super::{Failure, approve, rollout};

/// Show what the running gateway does: filters and functions with their versions, rollouts, quarantine, the last reload.
#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    gateway: Gateway,
    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) fn run(self) -> Result<(), Failure> {
        let status = self.gateway.call(Method::GET, "/api/v1/status", None)?;
        if self.json { print_json(&status) } else { print(&render(&status)) }
    }
}

fn render(status: &Value) -> String {
    let list = |key: &str| status[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let reload = &status["last_reload"];
    let reloaded = match reload["cause"].as_str() {
        Some("start") => "not reloaded since its start".to_owned(),
        _ => {
            let (outcome, actor, time) = (text(reload, "outcome"), text(reload, "actor"), text(reload, "time"));
            format!("last reload {outcome} by {actor} at {time}")
        }
    };
    let mut parts =
        vec![format!("generation {}, up {} s, {reloaded}\n", status["generation"], status["uptime_seconds"])];
    parts.extend(reload["problems"].as_str().map(|problems| format!("{}\n", problems.trim_end())));
    parts.extend(status["state_trouble"].as_str().map(|trouble| format!("{trouble}\n")));

    let mut filters = Table::new(&["FILTER", "VERSION", "ROLE", "COMPONENT", "LANE", "INSTANCES", "MEMORY"]);
    for filter in list("filters") {
        for version in filter["versions"].as_array().into_iter().flatten() {
            filters.row([
                text(filter, "name"),
                text(version, "label"),
                text(version, "role"),
                text(version, "component"),
                text(version, "lane"),
                version["instances"].to_string(),
                size(version["memory_bytes"].as_u64().unwrap_or(0)),
            ]);
        }
    }
    if !filters.is_empty() {
        parts.push(filters.render());
    }
    let mut functions = Table::new(&["FUNCTION", "VERSION", "ROLE", "COMPONENT", "INSTANCES", "MEMORY"]);
    for function in list("functions") {
        for version in function["versions"].as_array().into_iter().flatten() {
            functions.row([
                text(function, "name"),
                text(version, "label"),
                text(version, "role"),
                text(version, "component"),
                version["instances"].to_string(),
                size(version["memory_bytes"].as_u64().unwrap_or(0)),
            ]);
        }
    }
    if !functions.is_empty() {
        parts.push(functions.render());
    }
    let trouble = list("filters").iter().filter_map(|filter| Some((text(filter, "name"), filter["trouble"].as_str()?)));
    parts.extend(trouble.map(|(name, trouble)| format!("{name}: {trouble}\n")));
    if !list("rollouts").is_empty() {
        parts.push(rollout::table(list("rollouts")));
    }
    if !list("approvals").is_empty() {
        parts.push(approve::list(&status["approvals"]));
    }
    if !list("draining").is_empty() {
        parts.push(format!("{} old snapshots drain\n", list("draining").len()));
    }
    parts.join("\n")
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}
