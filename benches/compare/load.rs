//! The load: `wrk`, with one thread.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::Result;

/// What `wrk` saw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Load {
    pub(crate) requests: f64,
    pub(crate) requests_per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// Requests that were answered with an error, or not at all.
    pub(crate) failed: u64,
}

/// Loads a server for a while.
pub(crate) async fn run(wrk: &Path, server: SocketAddr, connections: u32, length: Duration) -> Result<Load> {
    let output = Command::new(wrk)
        .args(["--latency", "-t1", "-H", "user-agent: wrk"])
        .arg(format!("-c{connections}"))
        .arg(format!("-d{}s", length.as_secs()))
        .arg(format!("http://{server}/"))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| format!("cannot run wrk: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse(&text).ok_or_else(|| format!("wrk said something unexpected:\n{text}"))
}

fn parse(text: &str) -> Option<Load> {
    let after = |label: &str| text.lines().find_map(|line| line.trim().strip_prefix(label)).map(str::trim);
    let requests = text.lines().find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok())?;
    let answered_with_errors = match after("Non-2xx or 3xx responses:") {
        Some(count) => count.parse().ok()?,
        None => 0,
    };
    // `connect 0, read 1, write 0, timeout 2`
    let unanswered = match after("Socket errors:") {
        Some(counts) => counts.split(", ").filter_map(|count| count.rsplit(' ').next()?.parse::<u64>().ok()).sum(),
        None => 0,
    };
    Some(Load {
        requests,
        requests_per_second: after("Requests/sec:")?.parse().ok()?,
        p50_ms: millis(after("50%")?)?,
        p99_ms: millis(after("99%")?)?,
        failed: answered_with_errors + unanswered,
    })
}

/// `850.00us`, `1.23ms`, `2.10s`, `1.00m`
fn millis(text: &str) -> Option<f64> {
    let unit = text.find(|character: char| character.is_ascii_alphabetic())?;
    let number: f64 = text[..unit].parse().ok()?;
    let factor = match &text[unit..] {
        "us" => 1e-3,
        "ms" => 1.0,
        "s" => 1e3,
        "m" => 6e4,
        _ => return None,
    };
    Some(number * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_wrk_are_understood() {
        let text = "\
Running 1s test @ http://127.0.0.1:8080/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.55ms  402.51us  12.99ms   91.86%
    Req/Sec    41.53k     2.09k   43.29k    90.91%
  Latency Distribution
     50%  850.00us
     75%    1.60ms
     90%    1.84ms
     99%    2.76ms
  45451 requests in 1.10s, 52.27MB read
  Socket errors: connect 0, read 1, write 0, timeout 2
  Non-2xx or 3xx responses: 4
Requests/sec:  41318.90
Transfer/sec:     47.52MB
";
        let load = Load { requests: 45451.0, requests_per_second: 41318.9, p50_ms: 0.85, p99_ms: 2.76, failed: 7 };
        assert_eq!(parse(text), Some(load));
        assert_eq!(parse("unable to connect"), None);
    }
}
