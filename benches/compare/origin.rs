//! The origin: whatever is asked, 1 KiB. It is nginx where there is one, since that leaves the load the most of their
//! core, and a small server in this process where there is none.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::process::Server;
use crate::tools::Tools;
use crate::{Result, contender, cpu, free_address};

/// Size of a response's body, in bytes.
const BODY_BYTES: usize = 1024;

/// Longest header of a request that the server in this process reads, in bytes.
const HEADER_BYTES_MAX: usize = 16 << 10;

/// A running origin; it ends with this, or with this program.
#[derive(Debug)]
pub(crate) struct Origin {
    address: SocketAddr,
    /// None: it is in this process.
    nginx: Option<Server>,
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
        Ok(Self { address, nginx: Some(server) })
    }

    async fn start_here() -> Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(|error| format!("no origin: {error}"))?;
        let address = listener.local_addr().map_err(|error| format!("no origin: {error}"))?;
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // An error is the proxy's end.
                tokio::spawn(answer(stream));
            }
        });
        Ok(Self { address, nginx: None })
    }

    /// Returns where it listens.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns what it is, for the table.
    pub(crate) const fn kind(&self) -> &'static str {
        if self.nginx.is_some() { "nginx" } else { "the origin of this program" }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_origin_of_this_program_answers_every_request_of_a_connection_with_1_kib() {
        let origin = Origin::start_here().await.expect("an origin");
        let mut stream = TcpStream::connect(origin.address()).await.expect("a connection");
        for _ in 0..2 {
            stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("a request");
            let mut response = Vec::new();
            while !response.ends_with(body().as_bytes()) {
                assert_ne!(stream.read_buf(&mut response).await.expect("a response"), 0, "the connection stays open");
            }
            assert!(response.starts_with(b"HTTP/1.1 200 OK\r\n"));
        }
    }
}
