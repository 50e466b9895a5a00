//! `lockgate events`

use clap::Args;
use serde_json::Value;

use super::Failure;
use super::client::Gateway;
use super::output::print;

/// Follow what happens in the running gateway: moves of rollouts, verdicts, reloads, quarantine, drains.
///
/// Prints a line for each event, from now on, until it is interrupted or the gateway ends.
#[derive(Debug, Args)]
pub(super) struct Events {
    #[command(flatten)]
    gateway: Gateway,
    /// Print each event as a line of JSON.
    #[arg(long)]
    json: bool,
}

impl Events {
    pub(super) fn run(self) -> Result<(), Failure> {
        self.gateway.follow("/api/v1/events", |line| match line.strip_prefix("data:").map(str::trim_start) {
            Some(event) if self.json => print(event),
            Some(event) => print(&sentence(event)?),
            // Names, ids and comments; and the lines between events.
            None => Ok(()),
        })?;
        Err(Failure::failed(
            "the gateway has ended, or another process took over from it\nhint: run the command again to follow on",
        ))
    }
}

fn sentence(event: &str) -> Result<String, Failure> {
    let event: Value = serde_json::from_str(event)
        .map_err(|error| Failure::failed(format_args!("an event of the gateway is not JSON: {error}")))?;
    let text = |key: &str| event[key].as_str().unwrap_or_default().trim_end().to_owned();
    Ok(format!("{} {}", text("time"), text("text")))
}
