//! Compares whole servers under load. A *contender* is a proxy in one configuration; in each round every contender is
//! started, warmed up, loaded and stopped, one after the other, so that a machine that changes its mind about its speed
//! does so for all of them. The proxy has one core for itself; load and origin share another.

mod contender;
mod cpu;
mod load;
mod machine;
mod origin;
mod process;
mod report;
mod tools;

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::contender::Contender;
use crate::origin::Origin;
use crate::process::Server;
use crate::report::{Report, Sample};
use crate::tools::Tools;

/// What went wrong, for the person who started the comparison.
type Result<T> = std::result::Result<T, String>;

/// Compare Lockgate with other proxies: requests per second, CPU time per request, latency.
///
/// Builds Lockgate, a bare Pingora proxy and the filters, then loads them and whatever of nginx and Envoy is installed, on
/// loopback only. Prints a table in Markdown.
#[derive(Debug, Parser)]
#[command(name = "compare", max_term_width = 100)]
struct Options {
    /// Measurements of each contender. The table has their medians.
    #[arg(long, default_value_t = 5, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Length of each measurement.
    #[arg(long, default_value_t = 5, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Connections that the load is spread over.
    #[arg(long, default_value_t = 64, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// Contenders to measure, by how their names begin; all of them by default.
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    only: Vec<String>,
    /// Show the contenders and end.
    #[arg(long)]
    list: bool,
    /// The core of the proxy.
    #[arg(long, default_value_t = 0, value_name = "CPU")]
    proxy_cpu: usize,
    /// The core of load and origin.
    #[arg(long, default_value_t = 1, value_name = "CPU")]
    load_cpu: usize,
    /// The cargo profile that Lockgate and the bare Pingora proxy are built with.
    #[arg(long, default_value = "release", value_name = "PROFILE")]
    profile: String,
    /// Measure what was built before.
    #[arg(long)]
    no_build: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = Options::parse();
    // Whichever ends first: with the other, every process that it started is dropped, and so killed.
    let outcome = tokio::select! {
        outcome = compare(&options) => outcome,
        outcome = interrupted() => outcome,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            tell(format_args!("error: {why}"));
            ExitCode::FAILURE
        }
    }
}

async fn interrupted() -> Result<()> {
    let listen = |kind| signal(kind).map_err(|error| format!("cannot listen to signals: {error}"));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Err("interrupted".to_owned())
}

async fn compare(options: &Options) -> Result<()> {
    let wanted = |contender: &Contender| {
        let name = contender.to_string();
        options.only.is_empty() || options.only.iter().any(|only| name.starts_with(only))
    };
    let mut contenders: Vec<Contender> = Contender::all().into_iter().filter(wanted).collect();
    if contenders.is_empty() {
        return Err("no contender has a name that begins so; `--list` shows them".to_owned());
    }
    if options.list {
        return contenders.iter().try_for_each(|contender| say(contender));
    }

    let tools = Tools::find(&options.profile, !options.no_build, &contenders).await?;
    contenders.retain(|contender| match tools.missing(*contender) {
        None => true,
        Some(why) => {
            tell(format_args!("skipping {contender}: {why}"));
            false
        }
    });
    let facts = machine::facts(&tools).await;

    let scratch = tempfile::tempdir().map_err(|error| format!("cannot make a folder for configurations: {error}"))?;
    // Everything that is not a proxy stays on the load's core: this thread, and what it starts from here.
    cpu::pin(options.load_cpu)?;
    let origin = Origin::start(&tools, scratch.path()).await?;
    let mut report = Report::new(&contenders);
    for round in 0..options.rounds {
        for step in 0..contenders.len() {
            // Each round begins with another one: what follows whom should not matter.
            let index = (step + round as usize) % contenders.len();
            let contender = contenders[index];
            let sample = measure(options, &tools, contender, scratch.path(), origin.address()).await?;
            tell(format_args!("round {}/{} {contender}: {sample}", round + 1, options.rounds));
            report.add(index, sample);
        }
    }
    let seconds = options.seconds;
    say(&format_args!(
        "{} rounds of {seconds} s, {} connections, responses of 1 KiB from {}\n\n{facts}\n{report}",
        options.rounds,
        options.connections,
        origin.kind(),
    ))
}

/// Starts a contender, loads it, and stops it.
async fn measure(
    options: &Options,
    tools: &Tools,
    contender: Contender,
    scratch: &Path,
    origin: SocketAddr,
) -> Result<Sample> {
    let listen = free_address()?;
    let dir = scratch.join(contender.to_string());
    std::fs::create_dir_all(&dir).map_err(|error| format!("cannot make `{}`: {error}", dir.display()))?;
    let command = contender.command(tools, &dir, listen, origin)?;
    let mut server = Server::start(&contender.to_string(), command, options.proxy_cpu, options.load_cpu, &dir)?;
    server.ready(listen, contender.filters() > 0).await?;

    let load = |length| load::run(&tools.wrk, listen, options.connections, length);
    load(Duration::from_secs(1)).await?;
    let before = server.cpu_time()?;
    let load = load(Duration::from_secs(options.seconds)).await?;
    let spent = server.cpu_time()?.saturating_sub(before);
    let resident_mib = server.resident_mib()?;
    server.stop().await?;
    Ok(Sample {
        requests_per_second: load.requests_per_second,
        cpu_us_per_request: spent.as_secs_f64() * 1e6 / load.requests.max(1.0),
        p50_ms: load.p50_ms,
        p99_ms: load.p99_ms,
        resident_mib,
        failed: load.failed,
    })
}

/// Returns an address that nobody listens at.
fn free_address() -> Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map_err(|error| format!("cannot find a free port: {error}"))
}

/// Writes a result.
fn say(what: &dyn std::fmt::Display) -> Result<()> {
    writeln!(io::stdout(), "{what}").map_err(|error| format!("cannot write the result: {error}"))
}

/// Writes a line for the person who waits. Nobody may be there.
fn tell(what: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{what}");
}
