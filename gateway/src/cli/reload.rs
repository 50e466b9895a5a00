//! `lockgate reload`

use clap::Args;
use http::Method;

use super::Failure;
use super::client::Gateway;
use super::output::{count, print, print_json};

/// Make the running gateway read its configuration file and its components again.
///
/// It succeeds whole or changes nothing. Waits until the new configuration serves: components that changed are compiled
/// first, while the old ones go on.
#[derive(Debug, Args)]
pub(super) struct Reload {
    #[command(flatten)]
    gateway: Gateway,
    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
}

impl Reload {
    pub(super) fn run(self) -> Result<(), Failure> {
        let answer = self.gateway.call(Method::POST, "/api/v1/reload", None)?;
        if self.json {
            return print_json(&answer);
        }
        let warnings = answer["warnings"].as_array().into_iter().flatten().filter_map(|warning| warning.as_str());
        let warnings: String = warnings.map(|warning| format!("\nwarning: {warning}")).collect();
        let number = |key: &str| answer[key].as_u64().unwrap_or(0);
        match answer["outcome"].as_str() {
            Some("unchanged") => print("unchanged: the file and its components are what serves already"),
            _ => print(&format!(
                "reloaded: generation {}, {} loaded, {} kept{warnings}",
                number("generation"),
                count(number("loaded"), "filter version"),
                number("reused")
            )),
        }
    }
}
