//! Calls the admin API of a running gateway, over TCP or its Unix socket.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use lockgate_config::model::AdminAddress;
use lockgate_config::units::Secret;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::{ConfigFile, Failure};

/// How long a connection may take. The gateway is on this machine, most of the time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the gateway is, and how to be let in.
#[derive(Clone, Debug, Args)]
pub(super) struct Gateway {
    #[command(flatten)]
    config: ConfigFile,
    /// The admin address of the gateway: `127.0.0.1:9901` or `unix:/run/lockgate/admin.sock`. Default: the configuration
    /// file's.
    #[arg(long, global = true, value_name = "ADDRESS", env = "LOCKGATE_ADMIN")]
    admin: Option<String>,
    /// The admin token. Default: the configuration file's.
    // From the environment only: an argument is seen by everybody on the machine.
    #[arg(skip = std::env::var("LOCKGATE_ADMIN_TOKEN").ok())]
    token: Option<String>,
}

/// What the API says when it refuses.
#[derive(Debug, Deserialize)]
struct Problem {
    error: String,
    kind: String,
    hint: Option<String>,
}

/// A way to a gateway.
#[derive(Debug)]
pub(super) struct Client {
    address: AdminAddress,
    token: Option<Secret>,
}

impl Gateway {
    /// Finds out where the gateway is.
    pub(super) fn client(&self) -> Result<Client, Failure> {
        let token = self.token.clone().map(Secret::new);
        if let Some(address) = &self.admin {
            return Ok(Client { address: parse(address)?, token });
        }
        let admin = lockgate_config::load_admin(&self.config.path)?;
        Ok(Client { address: reachable(admin.address), token: token.or(admin.token) })
    }

    /// Calls the API and waits for its answer.
    pub(super) fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let text = self.text(method, path, body)?;
        serde_json::from_str(&text)
            .map_err(|error| Failure::failed(format_args!("the gateway's answer to `{path}` is not JSON: {error}")))
    }

    /// The same, for what does not answer in JSON.
    pub(super) fn text(&self, method: Method, path: &str, body: Option<&Value>) -> Result<String, Failure> {
        let client = self.client()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::failed(format_args!("cannot start a runtime: {error}")))?;
        runtime.block_on(client.call(method, path, body))
    }
}

impl Client {
    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<String, Failure> {
        let connect = async {
            match &self.address {
                AdminAddress::Tcp(address) => self.exchange(TcpStream::connect(address), method, path, body).await,
                AdminAddress::Unix(socket) => self.exchange(UnixStream::connect(socket), method, path, body).await,
            }
        };
        let (status, text) = connect.await?;
        if status.is_success() {
            return Ok(text);
        }
        Err(match serde_json::from_str::<Problem>(&text) {
            Ok(Problem { error, kind, hint }) => {
                let hint = hint.map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
                let why = format!("{}{hint}", error.trim_end());
                // What is wrong with a configuration is wrong here as it is in `check`.
                if matches!(kind.as_str(), "config" | "load" | "restart") {
                    Failure::Input(why)
                } else {
                    Failure::Failed(why)
                }
            }
            Err(_) => Failure::failed(format_args!("the gateway answered {status}: {text}")),
        })
    }

    async fn exchange<S>(
        &self,
        connect: impl Future<Output = std::io::Result<S>>,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(http::StatusCode, String), Failure>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let address = self.display();
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                return Err(Failure::failed(format_args!(
                    "no gateway answers at `{address}`: {error}\nhint: start one with `lockgate run`, or say where it is \
                     with --config or --admin"
                )));
            }
            Err(_) => return Err(Failure::failed(format_args!("`{address}` does not answer"))),
        };
        let lost = |error: hyper::Error| Failure::failed(format_args!("the connection to `{address}` failed: {error}"));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        let connection = tokio::spawn(connection);
        let answer = sender.send_request(self.request(method, path, body)?).await.map_err(lost)?;
        let status = answer.status();
        let bytes = answer.into_body().collect().await.map_err(lost)?.to_bytes();
        connection.abort();
        Ok((status, String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Request<Full<Bytes>>, Failure> {
        let host = match &self.address {
            AdminAddress::Tcp(address) => address.to_string(),
            AdminAddress::Unix(_) => "localhost".to_owned(),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, host)
            .header(header::USER_AGENT, concat!("lockgate/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.reveal()));
        }
        let body = match body {
            None => Bytes::new(),
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Bytes::from(body.to_string())
            }
        };
        request.body(Full::new(body)).map_err(|error| Failure::input(format_args!("cannot ask for `{path}`: {error}")))
    }

    fn display(&self) -> String {
        match &self.address {
            AdminAddress::Tcp(address) => address.to_string(),
            AdminAddress::Unix(path) => format!("unix:{}", path.display()),
        }
    }
}

fn parse(address: &str) -> Result<AdminAddress, Failure> {
    if let Some(path) = address.strip_prefix("unix:") {
        return Ok(AdminAddress::Unix(PathBuf::from(path)));
    }
    let plain = address.strip_prefix("http://").unwrap_or(address).trim_end_matches('/');
    let plain = plain.replacen("localhost:", "127.0.0.1:", 1);
    plain.parse().map(AdminAddress::Tcp).map_err(|_| {
        Failure::input(format_args!(
            "`{address}` is no admin address; write it like `127.0.0.1:9901` or `unix:/run/lockgate/admin.sock`"
        ))
    })
}

/// A gateway that listens on all addresses is called on loopback.
fn reachable(address: AdminAddress) -> AdminAddress {
    match address {
        AdminAddress::Tcp(address) if address.ip().is_unspecified() => {
            let loopback: IpAddr =
                if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            AdminAddress::Tcp(SocketAddr::new(loopback, address.port()))
        }
        other => other,
    }
}

/// Returns a text as it stands in a path of the API: names may hold anything.
pub(super) fn segment(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_as_people_write_them() {
        let check = |text: &str| parse(text).ok();
        let tcp = Some(AdminAddress::Tcp("127.0.0.1:9901".parse().unwrap()));
        assert_eq!(check("127.0.0.1:9901"), tcp);
        assert_eq!(check("http://127.0.0.1:9901/"), tcp);
        assert_eq!(check("localhost:9901"), tcp);
        assert_eq!(check("unix:/run/a.sock"), Some(AdminAddress::Unix("/run/a.sock".into())));
        assert_eq!(check("9901"), None);
    }

    #[test]
    fn names_are_escaped_in_paths() {
        assert_eq!(segment("auth-1.5"), "auth-1.5");
        assert_eq!(segment("a/b ü"), "a%2Fb%20%C3%BC");
    }
}
