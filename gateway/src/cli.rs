//! The command line: parse, dispatch, and turn what came of it into an exit code. One file for each command.

mod approve;
mod cache;
mod check;
mod client;
mod compile;
mod completions;
mod demo;
mod doctor;
mod events;
mod explain;
mod inspect;
mod log;
mod output;
mod progress;
mod quarantine;
mod reload;
mod rollout;
mod run;
mod serve;
mod status;
mod top;
mod upgrade;

use std::fmt;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use lockgate_config::problem::Report;

use log::Format;

/// `--version`: what was built, from what, and what filters it runs.
const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (commit ",
    env!("LOCKGATE_COMMIT"),
    ", Wasmtime ",
    env!("LOCKGATE_WASMTIME"),
    ", filter contract lockgate:filter@0.1.0)"
);

/// An edge gateway: every plugin is a sandboxed WebAssembly component, and every change of a plugin is a canary.
#[derive(Debug, Parser)]
#[command(name = "lockgate", version = VERSION, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    /// How log lines are written to standard error: `auto` is `human` on a terminal and `json` elsewhere.
    #[arg(long, global = true, value_enum, default_value_t, env = "LOCKGATE_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Format,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  lockgate demo                         a gateway, an origin, two filters and a canary, to play with
  lockgate check lockgate.yaml          is this file right, and are the components that it names?
  lockgate run --config lockgate.yaml   serve
  lockgate serve app                    serve a folder of components and files, without a configuration
  lockgate rollout set auth-1.5 5%      send 5 % of the users to the canary of rollout `auth-1.5`
  lockgate explain auth-1.5 user-42     which version does this user get, and why?
  lockgate rollout promote auth-1.5     the canary is the new stable version

Environment:
  LOCKGATE_CONFIG       the configuration file, where --config is not given
  LOCKGATE_ADMIN        the admin address, where --admin is not given
  LOCKGATE_ADMIN_TOKEN  the admin token, where the configuration has none that can be read
  LOCKGATE_LOG          what is logged, `info` by default; `lockgate=debug,info` for more
  LOCKGATE_LOG_FORMAT   the value of --log-format

Exit codes:
  0  it worked
  1  it did not
  2  the command line or the configuration is wrong";

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Serve(serve::Serve),
    Check(check::Check),
    Compile(compile::Compile),
    Inspect(inspect::Inspect),
    Status(status::Status),
    Top(top::Top),
    Reload(reload::Reload),
    Rollout(rollout::Rollout),
    Explain(explain::Explain),
    Events(events::Events),
    Quarantine(quarantine::Quarantine),
    Approve(approve::Approve),
    Cache(cache::Cache),
    Upgrade(upgrade::Upgrade),
    Doctor(doctor::Doctor),
    Demo(demo::Demo),
    Completions(completions::Completions),
}

/// Names the configuration file.
#[derive(Clone, Debug, Args)]
struct ConfigFile {
    /// The configuration file.
    #[arg(
        short,
        long = "config",
        id = "config",
        global = true,
        value_name = "FILE",
        env = "LOCKGATE_CONFIG",
        default_value = "lockgate.yaml"
    )]
    path: PathBuf,
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
enum Failure {
    /// The command line or the configuration is wrong: exit code 2.
    Input(String),
    /// Exit code 1.
    Failed(String),
}

impl Failure {
    fn input(why: impl fmt::Display) -> Self {
        Self::Input(why.to_string())
    }

    fn failed(why: impl fmt::Display) -> Self {
        Self::Failed(why.to_string())
    }
}

impl From<Report> for Failure {
    fn from(report: Report) -> Self {
        Self::Input(report.to_string())
    }
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    // Wrong usage ends here, with code 2.
    let cli = Cli::parse();
    log::start(cli.log_format);
    let outcome = match cli.command {
        Command::Run(command) => command.run(cli.log_format),
        Command::Serve(command) => command.run(cli.log_format),
        Command::Check(command) => command.run(),
        Command::Compile(command) => command.run(),
        Command::Inspect(command) => command.run(),
        Command::Status(command) => command.run(),
        Command::Top(command) => command.run(),
        Command::Reload(command) => command.run(),
        Command::Rollout(command) => command.run(),
        Command::Explain(command) => command.run(),
        Command::Events(command) => command.run(),
        Command::Quarantine(command) => command.run(),
        Command::Approve(command) => command.run(),
        Command::Cache(command) => command.run(),
        Command::Upgrade(command) => command.run(),
        Command::Doctor(command) => command.run(),
        Command::Demo(command) => command.run(cli.log_format),
        Command::Completions(command) => command.run(),
    };
    let (code, why) = match outcome {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Input(why)) => (2, why),
        Err(Failure::Failed(why)) => (1, why),
    };
    let why = why.trim_end();
    // A report on a configuration says `error:` for each of its problems.
    let prefix = if why.starts_with("error") { "" } else { "error: " };
    // Nobody reads it: nothing more can be done.
    let _ = writeln!(std::io::stderr(), "{prefix}{why}");
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_says_what_it_does() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
        }
    }
}
