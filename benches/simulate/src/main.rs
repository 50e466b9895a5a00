//! Simulates canaries, good and bad, and lets the judge watch them after every request, beside the fixed checks that
//! Flagger and Argo Rollouts use and Wald's test, all on the same requests. `benches/README.md` says how to read it.
//!
//! `simulate [--runs N] [--requests N] [--seed N] [--only NAME,…] [--threads N] [--out FOLDER]`: `--runs` and `--requests`
//! are upper bounds for all scenarios; the tables are printed, and written with the plot to the folder if one is given.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what it is for")]

mod checks;
mod report;
mod scenario;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::report::Result;
use crate::scenario::{Scenario, Workshop};
use crate::world::mix;

struct Arguments {
    runs: u64,
    requests: u64,
    seed: u64,
    only: Option<Vec<String>>,
    threads: usize,
    out: Option<PathBuf>,
}

fn arguments() -> std::result::Result<Arguments, String> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut arguments =
        Arguments { runs: u64::MAX, requests: u64::MAX, seed: 20_261_121, only: None, threads, out: None };
    let mut words = std::env::args().skip(1);
    while let Some(name) = words.next() {
        let value = words.next().ok_or_else(|| format!("`{name}` needs a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("`{name}` takes a number, not `{value}`"));
        match name.as_str() {
            "--runs" => arguments.runs = number()?,
            "--requests" => arguments.requests = number()?,
            "--seed" => arguments.seed = number()?,
            "--only" => arguments.only = Some(value.split(',').map(str::to_owned).collect()),
            "--threads" => arguments.threads = usize::try_from(number()?.clamp(1, 1_024)).unwrap_or(1),
            "--out" => arguments.out = Some(PathBuf::from(value)),
            _ => return Err(format!("unknown option `{name}`")),
        }
    }
    Ok(arguments)
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

fn simulate() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let arguments = arguments()?;
    let mut results = Vec::new();
    for scenario in scenario::all() {
        if arguments.only.as_ref().is_some_and(|only| !only.iter().any(|name| name == scenario.name)) {
            continue;
        }
        let runs = scenario.runs.min(arguments.runs);
        let requests = scenario.requests.min(arguments.requests);
        let began = Instant::now();
        let result = play(Scenario { runs, requests, ..scenario }, arguments.seed, arguments.threads);
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
    match simulate() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
