//! `lockgate explain`

use std::net::IpAddr;

use clap::Args;
use http::Method;

use super::Failure;
use super::client::{Gateway, segment};
use super::output::{print, print_json};

/// Say which track a user gets from a rollout, and why.
///
/// Give the value of the key itself (`user-42`), or what a request would have; the running gateway decides with the same
/// code as for requests.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate explain auth-1.5 user-42
  lockgate explain auth-1.5 --header x-user-id:42 --client 192.0.2.7")]
pub(super) struct Explain {
    /// The rollout.
    rollout: String,
    /// The value of a key, whichever it comes from.
    #[arg(conflicts_with_all = ["header", "client", "peer", "path", "query"], required_unless_present_any = ["header", "client", "peer", "path", "query"])]
    key: Option<String>,
    /// A header of the request; may be given several times.
    #[arg(long, value_name = "NAME:VALUE")]
    header: Vec<String>,
    /// The client's address.
    #[arg(long, value_name = "ADDRESS")]
    client: Option<IpAddr>,
    /// The address at the other end of the connection, which an override must come from.
    #[arg(long, value_name = "ADDRESS")]
    peer: Option<IpAddr>,
    /// The path, without the query.
    #[arg(long)]
    path: Option<String>,
    /// The query, without the `?`.
    #[arg(long)]
    query: Option<String>,
    #[command(flatten)]
    gateway: Gateway,
    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
}

impl Explain {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self { rollout, key, header, client, peer, path, query, gateway, json } = self;
        let parameters = [
            ("key", key.clone()),
            ("client", client.map(|client| client.to_string())),
            ("peer", peer.map(|peer| peer.to_string())),
            ("path", path),
            ("query", query),
        ];
        let parameters = parameters
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .chain(header.into_iter().map(|header| ("header", header)))
            .map(|(name, value)| format!("{name}={}", segment(&value)));
        let path =
            format!("/api/v1/rollouts/{}/explain?{}", segment(&rollout), parameters.collect::<Vec<_>>().join("&"));
        let answer = gateway.call(Method::GET, &path, None)?;
        if json {
            return print_json(&answer);
        }
        let text = |key: &str| answer[key].as_str().unwrap_or("-").to_owned();
        let number = |key: &str| answer[key].as_u64().map_or("-".to_owned(), |number| number.to_string());
        print(&format!(
            "rollout:    {} ({})\nkey:        {}\nbucket:     {}\nthreshold:  {}\ntrack:      {}\nwhy:        {}",
            text("rollout"),
            text("state"),
            key.unwrap_or_else(|| text("key")),
            number("bucket"),
            number("threshold"),
            text("track"),
            text("why")
        ))
    }
}
