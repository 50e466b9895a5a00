//! Simulates canaries, good and bad, and lets the judge watch them after every request, beside the fixed checks that
//! Flagger and Argo Rollouts use and Wald's test, all on the same requests. `benches/README.md` says how to read it.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what it is for")]

mod checks;
mod report;
mod scenario;
mod world;

use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use clap::builder::PossibleValuesParser;

use crate::report::Result;
use crate::scenario::{Scenario, Workshop};
use crate::world::mix;

/// Simulates canaries, and lets the judge of rollouts, fixed checks and Wald's test watch them.
#[derive(Debug, Parser)]
struct Arguments {
    /// At most so many histories of each scenario.
    #[arg(long, value_name = "N", default_value_t = u64::MAX, hide_default_value = true)]
    runs: u64,
    /// At most so many requests in each history.
    #[arg(long, value_name = "N", default_value_t = u64::MAX, hide_default_value = true)]
    requests: u64,
    /// What all random numbers come from.
    #[arg(long, value_name = "N", default_value_t = 20_261_121)]
    seed: u64,
    /// These scenarios only.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', value_parser = PossibleValuesParser::new(scenario::names()))]
    only: Vec<String>,
    /// Histories at the same time; as many as there are processors, unless it is said.
    #[arg(long, value_name = "N")]
    threads: Option<NonZero<usize>>,
    /// Write the tables and the plot to this folder, beside printing the tables.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// Plays all runs of a scenario. Each has a seed of its own, so that neither the number of threads nor the other
/// scenarios matter.
fn play(scenario: Scenario, seed: u64, threads: usize) -> Result {
    let next = AtomicU64::new(0);
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut workshop = Workshop::new();
                loop {
                    let run = next.fetch_add(1, Ordering::Relaxed);
                    if run >= scenario.runs {
                        break;
                    }
                    let outcome = scenario::run(&scenario, mix(seed) ^ mix(run), &mut workshop);
                    outcomes.lock().expect("no thread panics").push((run, outcome));
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().expect("no thread panics");
    outcomes.sort_by_key(|(run, _)| *run);
    Result { scenario, outcomes: outcomes.into_iter().map(|(_, outcome)| outcome).collect() }
}

fn simulate(arguments: &Arguments) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let threads =
        arguments.threads.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from);
    let mut results = Vec::new();
    for scenario in scenario::all() {
        if !arguments.only.is_empty() && !arguments.only.iter().any(|name| name == scenario.name) {
            continue;
        }
        let runs = scenario.runs.min(arguments.runs);
        let requests = scenario.requests.min(arguments.requests);
        let began = Instant::now();
        let result = play(Scenario { runs, requests, ..scenario }, arguments.seed, threads);
        eprintln!("{}: {runs} runs in {:.1} s", scenario.name, began.elapsed().as_secs_f64());
        results.push(result);
    }
    let table = report::table(&results, arguments.seed);
    println!("{table}");
    if let Some(folder) = &arguments.out {
        std::fs::write(folder.join("results.md"), &table)?;
        report::plot(&results, &folder.join("results.svg"))?;
    }
    Ok(())
}

fn main() -> ExitCode {
    match simulate(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
