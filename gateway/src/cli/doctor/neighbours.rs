//! Who is around: the addresses to listen on, and those to reach.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use http::{Method, Uri};
use lockgate_config::model::{Config, ListenAddress, Upstream};
use tokio::net::{TcpListener, TcpStream, UnixStream, lookup_host};
use tokio::task::JoinSet;

use super::Finding;
use crate::cli::client::Gateway;
use crate::cli::output::count;

/// How long a neighbour may take to let itself be found, and to take a connection.
const PATIENCE: Duration = Duration::from_secs(1);

/// Looks at all addresses.
pub(super) async fn look(config: &Config, gateway: &Gateway, findings: &mut Vec<Finding>) {
    let (admin, runs) = admin(config, gateway).await;
    findings.push(admin);
    if !runs {
        for listener in &config.listeners {
            findings.push(free(&format!("listener {}", listener.address), &listener.address).await);
        }
    }
    for upstream in &config.upstreams {
        findings.push(reach(upstream).await);
    }
    if let Some(otlp) = config.tracing.as_ref().and_then(|tracing| tracing.otlp.as_ref()) {
        findings.push(collector(&otlp.url).await);
    }
}

/// Looks whether a gateway runs, or the admin's address is free for one.
async fn admin(config: &Config, gateway: &Gateway) -> (Finding, bool) {
    let address = &config.admin.address;
    match gateway.ask(Method::GET, "/healthz").await {
        Ok(_) => (Finding::good("admin", format!("a gateway answers at `{address}`")), true),
        Err(_) => (free("admin", address).await, false),
    }
}

/// Looks whether one could listen at an address.
async fn free(subject: &str, address: &ListenAddress) -> Finding {
    match address {
        ListenAddress::Tcp(address) => match TcpListener::bind(address).await {
            Ok(_) => Finding::good(subject, format!("`{address}` is free")),
            Err(error) => {
                let advice = match error.kind() {
                    io::ErrorKind::AddrInUse => {
                        "somebody else listens there: `ss -ltnp` says who; or name another port"
                    }
                    io::ErrorKind::PermissionDenied => {
                        "ports below 1024 need `CAP_NET_BIND_SERVICE`: the unit in `deploy/systemd` has it"
                    }
                    _ => "name an address that this machine has",
                };
                Finding::bad(subject, format!("`{address}` cannot be listened on: {error}"), advice)
            }
        },
        ListenAddress::Unix(path) => free_socket(subject, path).await,
    }
}

async fn free_socket(subject: &str, path: &Path) -> Finding {
    let shown = path.display();
    if UnixStream::connect(path).await.is_ok() {
        let advice = "somebody else listens there: name another path";
        return Finding::bad(subject, format!("`{shown}` is taken"), advice);
    }
    match path.parent().filter(|folder| folder.is_dir()) {
        Some(_) => Finding::good(subject, format!("`{shown}` is free")),
        None => Finding::bad(subject, format!("the folder of `{shown}` is not there"), "make it"),
    }
}

/// Looks whether the endpoints of an upstream take connections.
async fn reach(upstream: &Upstream) -> Finding {
    let mut asked = JoinSet::new();
    for (endpoint, _) in &upstream.endpoints {
        let endpoint = endpoint.to_string();
        asked.spawn(async move { connect(&endpoint).await.map_err(|why| format!("{endpoint}: {why}")) });
    }
    let (mut reached, mut failed) = (0_usize, Vec::new());
    for outcome in asked.join_all().await {
        match outcome {
            Ok(()) => reached += 1,
            Err(why) => failed.push(why),
        }
    }
    failed.sort();
    let subject = format!("upstream {}", upstream.name);
    let all = count(upstream.endpoints.len(), "endpoint");
    let advice = "is it up, is its name right, and does a firewall stand between?";
    match (reached, failed.is_empty()) {
        (_, true) => Finding::good(subject, format!("{all} can be reached")),
        (0, false) => Finding::bad(subject, format!("none of {all} can be reached\n{}", failed.join("\n")), advice),
        (_, false) => {
            Finding::doubtful(subject, format!("{reached} of {all} can be reached\n{}", failed.join("\n")), advice)
        }
    }
}

async fn collector(url: &str) -> Finding {
    let authority = url.parse::<Uri>().ok().and_then(|uri| {
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        uri.host().map(|host| format!("{host}:{port}"))
    });
    match connect(authority.as_deref().unwrap_or(url)).await {
        Ok(()) => Finding::good("collector", format!("`{url}` can be reached")),
        Err(why) => {
            let advice = "spans are lost as long as it is so; requests are not held up";
            Finding::doubtful("collector", format!("`{url}` cannot be reached: {why}"), advice)
        }
    }
}

/// Resolves a host and connects to one of its addresses.
async fn connect(endpoint: &str) -> Result<(), String> {
    let found = tokio::time::timeout(PATIENCE, lookup_host(endpoint)).await;
    let addresses: Vec<SocketAddr> = found
        .map_err(|_| "its name was not resolved within a second".to_owned())?
        .map_err(|error| format!("its name cannot be resolved: {error}"))?
        .collect();
    match tokio::time::timeout(PATIENCE, TcpStream::connect(&*addresses)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("it takes no connection within a second".to_owned()),
    }
}
