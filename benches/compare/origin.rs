//! The origin: whatever is asked, 1 KiB. It is nginx where there is one, since that leaves the load the most of their
//! core, and a small server in this process where there is none.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use crate::process::Server;
use crate::tools::Tools;
use crate::{Result, contender, cpu, free_address};

/// Size of a response's body, in bytes.
const BODY_BYTES: usize = 1024;

/// Longest header of a request that the server in this process reads, in bytes.
const HEADER_BYTES_MAX: usize = 16 << 10;

/// A running origin; it ends with this.
#[derive(Debug)]
pub(crate) struct Origin {
    address: SocketAddr,
    runs: Runs,
}

#[derive(Debug)]
enum Runs {
    Nginx {
        /// Kept for what its end does.
        _server: Server,
    },
    Here(AbortHandle),
}

impl Origin {
    /// Starts an origin on the core of this thread.
    pub(crate) async fn start(tools: &Tools, scratch: &Path) -> Result<Self> {
        if tools.nginx.is_none() {
            return Self::start_here().await;
        }
        let address = free_address()?;
        let dir = scratch.join("origin");
        std::fs::create_dir_all(&dir).map_err(|error| format!("cannot make `{}`: {error}", dir.display()))?;
        let http = format!(
            "    default_type text/plain;
    server {{
        listen {address};
        location / {{ return 200 \"{}\"; }}
    }}
",
            body()
        );
        let command = contender::nginx(tools, &dir, &http)?;
        let cpu = cpu::current();
        let mut server = Server::start("origin", command, cpu, cpu, &dir)?;
        server.ready(address, false).await?;
        Ok(Self { address, runs: Runs::Nginx { _server: server } })
    }

    async fn start_here() -> Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(|error| format!("no origin: {error}"))?;
        let address = listener.local_addr().map_err(|error| format!("no origin: {error}"))?;
        let accept = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // An error is the proxy's end.
                tokio::spawn(answer(stream));
            }
        });
        Ok(Self { address, runs: Runs::Here(accept.abort_handle()) })
    }

    /// Returns where it listens.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns what it is, for the table.
    pub(crate) const fn kind(&self) -> &'static str {
        match self.runs {
            Runs::Nginx { .. } => "nginx",
            Runs::Here(_) => "the origin of this program",
        }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        if let Runs::Here(accept) = &self.runs {
            accept.abort();
        }
    }
}

fn body() -> String {
    "x".repeat(BODY_BYTES)
}

/// Answers every request of a connection. They have no body, and none is sent before the last was answered: so do the
/// proxies here.
async fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let response =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {BODY_BYTES}\r\n\r\n{}", body());
    let mut request = Vec::with_capacity(HEADER_BYTES_MAX);
    loop {
        if stream.read_buf(&mut request).await? == 0 || request.len() > HEADER_BYTES_MAX {
            return Ok(());
        }
        if request.ends_with(b"\r\n\r\n") {
            request.clear();
            stream.write_all(response.as_bytes()).await?;
        }
    }
}
