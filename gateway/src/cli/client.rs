//! Calls the admin API of a running gateway, over TCP or its Unix socket.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use lockgate_config::model::ListenAddress;
use lockgate_config::units::Secret;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

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
    address: ListenAddress,
    token: Option<Secret>,
}

/// An answer whose body is on its way.
struct Answer {
    response: http::Response<Incoming>,
    connection: JoinHandle<Result<(), hyper::Error>>,
}

impl Gateway {
    /// Returns which configuration file is meant.
    pub(super) fn config(&self) -> &ConfigFile {
        &self.config
    }

    /// Returns the gateway of a configuration file.
    pub(super) fn of(config: ConfigFile) -> Self {
        Self { config, admin: None, token: None }
    }

    /// Calls the API from within a runtime, and returns the text of its answer.
    pub(super) async fn ask(&self, method: Method, path: &str) -> Result<String, Failure> {
        self.client()?.call(method, path, None).await
    }

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
        runtime()?.block_on(self.client()?.call(method, path, body))
    }

    /// Hands over the lines of an answer as they come, until it ends.
    pub(super) fn follow(&self, path: &str, each: impl FnMut(&str) -> Result<(), Failure>) -> Result<(), Failure> {
        runtime()?.block_on(self.client()?.follow(path, each))
    }
}

/// Returns a runtime for one command.
pub(super) fn runtime() -> Result<Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format_args!("cannot start a runtime: {error}")))
}

impl Client {
    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<String, Failure> {
        let (status, text) = self.answer(self.send(method, path, body).await?).await?;
        if status.is_success() { Ok(text) } else { Err(Self::refused(status, &text)) }
    }

    async fn follow(&self, path: &str, mut each: impl FnMut(&str) -> Result<(), Failure>) -> Result<(), Failure> {
        let mut answer = self.send(Method::GET, path, None).await?;
        if !answer.response.status().is_success() {
            let (status, text) = self.answer(answer).await?;
            return Err(Self::refused(status, &text));
        }
        let mut text = Vec::new();
        while let Some(frame) = answer.response.body_mut().frame().await {
            text.extend_from_slice(&frame.map_err(|error| self.lost(error))?.into_data().unwrap_or_default());
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                each(String::from_utf8_lossy(&line).trim_end())?;
            }
        }
        Ok(())
    }

    fn refused(status: http::StatusCode, text: &str) -> Failure {
        match serde_json::from_str::<Problem>(text) {
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
        }
    }

    async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer, Failure> {
        match &self.address {
            ListenAddress::Tcp(address) => self.exchange(TcpStream::connect(address), method, path, body).await,
            ListenAddress::Unix(socket) => self.exchange(UnixStream::connect(socket), method, path, body).await,
        }
    }

    /// Reads an answer to its end.
    async fn answer(&self, answer: Answer) -> Result<(http::StatusCode, String), Failure> {
        let status = answer.response.status();
        let bytes = answer.response.into_body().collect().await.map_err(|error| self.lost(error))?.to_bytes();
        answer.connection.abort();
        Ok((status, String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn lost(&self, error: hyper::Error) -> Failure {
        Failure::failed(format_args!("the connection to `{}` failed: {error}", self.display()))
    }

    async fn exchange<S>(
        &self,
        connect: impl Future<Output = std::io::Result<S>>,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, Failure>
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
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.lost(error))?;
        let connection = tokio::spawn(connection);
        let request = self.request(method, path, body)?;
        let response = sender.send_request(request).await.map_err(|error| self.lost(error))?;
        Ok(Answer { response, connection })
    }

    fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Request<Full<Bytes>>, Failure> {
        let host = match &self.address {
            ListenAddress::Tcp(address) => address.to_string(),
            ListenAddress::Unix(_) => "localhost".to_owned(),
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
            ListenAddress::Tcp(address) => address.to_string(),
            ListenAddress::Unix(path) => format!("unix:{}", path.display()),
        }
    }
}

fn parse(address: &str) -> Result<ListenAddress, Failure> {
    if let Some(path) = address.strip_prefix("unix:") {
        return Ok(ListenAddress::Unix(PathBuf::from(path)));
    }
    let plain = address.strip_prefix("http://").unwrap_or(address).trim_end_matches('/');
    let plain = plain.replacen("localhost:", "127.0.0.1:", 1);
    plain.parse().map(ListenAddress::Tcp).map_err(|_| {
        Failure::input(format_args!(
            "`{address}` is no admin address; write it like `127.0.0.1:9901` or `unix:/run/lockgate/admin.sock`"
        ))
    })
}

/// A gateway that listens on all addresses is called on loopback.
fn reachable(address: ListenAddress) -> ListenAddress {
    match address {
        ListenAddress::Tcp(address) if address.ip().is_unspecified() => {
            let loopback: IpAddr =
                if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            ListenAddress::Tcp(SocketAddr::new(loopback, address.port()))
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
        let tcp = Some(ListenAddress::Tcp("127.0.0.1:9901".parse().unwrap()));
        assert_eq!(check("127.0.0.1:9901"), tcp);
        assert_eq!(check("http://127.0.0.1:9901/"), tcp);
        assert_eq!(check("localhost:9901"), tcp);
        assert_eq!(check("unix:/run/a.sock"), Some(ListenAddress::Unix("/run/a.sock".into())));
        assert_eq!(check("9901"), None);
    }

    #[test]
    fn names_are_escaped_in_paths() {
        assert_eq!(segment("auth-1.5"), "auth-1.5");
        assert_eq!(segment("a/b ü"), "a%2Fb%20%C3%BC");
    }
}
