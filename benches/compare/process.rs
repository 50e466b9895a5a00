//! A server that is measured, as a process. It is killed when it is dropped, whatever the reason.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Child;
use tokio::time::{sleep, timeout};

use crate::{Result, cpu};

/// How long a server may take to answer its first request: Lockgate and Envoy compile filters before.
const READY: Duration = Duration::from_secs(60);

/// Between two attempts to reach a server that has just been started.
const RETRY: Duration = Duration::from_millis(20);

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    name: String,
    process: Child,
    pid: u32,
    log: PathBuf,
}

impl Server {
    /// Starts a server on one core, from a thread on another. What it says goes to a file in `dir`.
    pub(crate) fn start(name: &str, command: Command, cpu: usize, back_to: usize, dir: &Path) -> Result<Self> {
        let log = dir.join("stderr");
        let file = File::create(&log).map_err(|error| format!("cannot write `{}`: {error}", log.display()))?;
        let mut command = tokio::process::Command::from(command);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).kill_on_drop(true);
        // A process has the cores of the thread that starts it.
        cpu::pin(cpu)?;
        let process = command.spawn();
        cpu::pin(back_to)?;
        let process = process.map_err(|error| format!("cannot start {name}: {error}"))?;
        let pid = process.id().ok_or_else(|| format!("{name} ended at once"))?;
        Ok(Self { name: name.to_owned(), process, pid, log })
    }

    /// Waits until it answers, and checks that the filter has acted where one is expected.
    pub(crate) async fn ready(&mut self, address: SocketAddr, filtered: bool) -> Result<()> {
        let answered = async {
            loop {
                if let Ok(response) = get(address).await
                    && response.starts_with("HTTP/1.1 200")
                {
                    return response;
                }
                sleep(RETRY).await;
            }
        };
        let response = tokio::select! {
            answered = timeout(READY, answered) => answered.map_err(|_| "has not answered in time".to_owned()),
            ended = self.process.wait() => Err(match ended {
                Ok(status) => format!("ended: {status}"),
                Err(error) => format!("is lost: {error}"),
            }),
        };
        match response {
            Ok(response) if filtered && !response.to_ascii_lowercase().contains("\r\nx-read-set: 1\r\n") => {
                Err(format!("{}: the filter has not acted on this response:\n{response}", self.name))
            }
            Ok(_) => Ok(()),
            Err(why) => {
                let said = std::fs::read_to_string(&self.log).unwrap_or_default();
                Err(format!("{} {why}; it said:\n{said}", self.name))
            }
        }
    }

    /// Ends it, and waits until it has left its core.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.process.kill().await.map_err(|error| format!("cannot stop {}: {error}", self.name))
    }

    /// Returns the time that it has spent on its core.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        cpu::time_of(self.pid)
    }

    /// Returns its resident memory, in MiB.
    pub(crate) fn resident_mib(&self) -> Result<f64> {
        cpu::resident_mib(self.pid)
    }
}

/// Returns the response to one request, on a connection of its own.
async fn get(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET / HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes()).await?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await?;
    Ok(String::from_utf8_lossy(&response).into_owned())
}
