//! `lockgate rollout`

use std::time::Duration;

use clap::{Args, Subcommand};
use http::Method;
use lockgate_config::units::{Weight, format_duration};
use serde_json::{Value, json};

use super::Failure;
use super::client::{Gateway, segment};
use super::output::{Table, print, print_json};

mod shadow;

/// See the rollouts of the running gateway, and move them.
///
/// A weight, a promotion or a rollback takes effect at once, survives restarts, and overlays the configuration file until
/// the file names other versions. `export` prints what to commit.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate rollout list
  lockgate rollout set auth-1.5 5%
  lockgate rollout why auth-1.5
  lockgate rollout pause auth-1.5
  lockgate rollout promote auth-1.5
  lockgate rollout rollback auth-1.5 --why 'logins fail'
  lockgate rollout shadow auth-2.0
  lockgate rollout export")]
pub(super) struct Rollout {
    #[command(flatten)]
    gateway: Gateway,
    /// Print the answer as JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show all rollouts, and where state and file differ.
    List,
    /// Show one rollout.
    Show {
        /// The rollout.
        rollout: String,
    },
    /// Say why a rollout is where it is, what it waits for, and what the judge knows.
    Why {
        /// The rollout.
        rollout: String,
    },
    /// Set the canary's share.
    ///
    /// Raising it moves users only from stable to canary. A rollout that climbs by itself stays there until it is resumed,
    /// and goes on to the first step above.
    Set {
        /// The rollout.
        rollout: String,
        /// `5%`, `0.25%`
        weight: Weight,
    },
    /// Give the canary to everybody, as the new stable version.
    Promote {
        /// The rollout.
        rollout: String,
    },
    /// Give the stable version back to everybody.
    Rollback {
        /// The rollout.
        rollout: String,
        /// Why, for the audit log.
        #[arg(long, value_name = "TEXT")]
        why: Option<String>,
    },
    /// Stop a rollout's climb where it is; its guard still takes it back.
    Pause {
        /// The rollout.
        rollout: String,
        /// Why, for the audit log.
        #[arg(long, value_name = "TEXT")]
        why: Option<String>,
    },
    /// End a rollout for good: stable serves everybody until the file names other versions.
    Abandon {
        /// The rollout.
        rollout: String,
        /// Why, for the audit log.
        #[arg(long, value_name = "TEXT")]
        why: Option<String>,
    },
    /// Let a paused rollout go on, or take a rolled-back one up again, with the weight that it had.
    Resume {
        /// The rollout.
        rollout: String,
    },
    /// Show how often a shadow did as stable did, and where not.
    Shadow {
        /// The rollout.
        rollout: String,
    },
    /// Print the YAML that makes the file say what is in force.
    Export,
}

impl Rollout {
    pub(super) fn run(self) -> Result<(), Failure> {
        let (method, rollout, action, body) = match self.action {
            Action::List => return self.list(),
            Action::Shadow { ref rollout } => return self.shadow(rollout),
            Action::Export => return print(&self.gateway.text(Method::GET, "/api/v1/export", None)?),
            Action::Set { ref rollout, weight } => {
                (Method::PUT, rollout, "weight", Some(json!({ "weight": weight.to_string() })))
            }
            Action::Show { ref rollout } => return self.show(rollout),
            Action::Why { ref rollout } => return self.why(rollout),
            Action::Promote { ref rollout } => (Method::POST, rollout, "promote", None),
            Action::Rollback { ref rollout, ref why } => {
                (Method::POST, rollout, "rollback", why.as_ref().map(|why| json!({ "why": why })))
            }
            Action::Pause { ref rollout, ref why } => {
                (Method::POST, rollout, "pause", why.as_ref().map(|why| json!({ "why": why })))
            }
            Action::Abandon { ref rollout, ref why } => {
                (Method::POST, rollout, "abandon", why.as_ref().map(|why| json!({ "why": why })))
            }
            Action::Resume { ref rollout } => (Method::POST, rollout, "resume", None),
        };
        let path = format!("/api/v1/rollouts/{}/{action}", segment(rollout));
        let answer = self.gateway.call(method, &path, body.as_ref())?;
        if self.json { print_json(&answer) } else { print(&table(std::slice::from_ref(&answer))) }
    }

    fn shadow(&self, rollout: &str) -> Result<(), Failure> {
        let path = format!("/api/v1/rollouts/{}/shadow", segment(rollout));
        let answer = self.gateway.call(Method::GET, &path, None)?;
        if self.json { print_json(&answer) } else { print(&shadow::text(&answer)) }
    }

    fn show(&self, rollout: &str) -> Result<(), Failure> {
        let path = format!("/api/v1/rollouts/{}", segment(rollout));
        let answer = self.gateway.call(Method::GET, &path, None)?;
        if self.json { print_json(&answer) } else { print(&table(std::slice::from_ref(&answer))) }
    }

    fn why(&self, rollout: &str) -> Result<(), Failure> {
        let path = format!("/api/v1/rollouts/{}/why", segment(rollout));
        let answer = self.gateway.call(Method::GET, &path, None)?;
        if self.json {
            return print_json(&answer);
        }
        let sentences = answer["sentences"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let text: String = sentences.map(|sentence| format!("  - {sentence}\n")).collect();
        print(&format!("{rollout} ({})\n{}", answer["state"].as_str().unwrap_or_default(), text.trim_end()))
    }

    fn list(&self) -> Result<(), Failure> {
        let answer = self.gateway.call(Method::GET, "/api/v1/rollouts", None)?;
        if self.json {
            return print_json(&answer);
        }
        match answer.as_array().map(Vec::as_slice) {
            None | Some([]) => print("there are no rollouts"),
            Some(rollouts) => print(&table(rollouts)),
        }
    }
}

/// Returns rollouts as a table, with a line below for what needs words.
pub(super) fn table(rollouts: &[Value]) -> String {
    let mut table = Table::new(&[
        "ROLLOUT", "SUBJECT", "STATE", "WEIGHT", "IN FILE", "STEP", "VERDICT", "STABLE", "CANARY", "REQUESTS",
    ]);
    let mut notes = String::new();
    for rollout in rollouts {
        let text = |key: &str| rollout[key].as_str().unwrap_or_default().to_owned();
        let count = |track: &str| rollout["requests"][track].as_u64().unwrap_or(0);
        table.row([
            text("name"),
            text("subject"),
            text("state"),
            text("weight"),
            text("weight_in_file"),
            step(rollout),
            rollout["verdict"].as_str().unwrap_or("-").to_owned(),
            text("stable"),
            text("canary"),
            format!("{} / {}", count("stable"), count("canary")),
        ]);
        if let Some(why) = rollout["why"].as_str() {
            let what = match rollout["state"].as_str() {
                Some("paused") => "is paused",
                Some("abandoned") => "was abandoned",
                Some("waiting") => "waits for approval",
                _ => "was rolled back",
            };
            notes.push_str(&format!("{} {what}: {why}\n", text("name")));
        }
        let gains: Vec<_> = rollout["gains"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if !gains.is_empty() && rollout["state"].as_str() != Some("waiting") {
            notes.push_str(&format!("{}: its canary may {}, and stable may not\n", text("name"), gains.join(", ")));
        }
        if rollout["state"].as_str() == Some("promoted") {
            notes.push_str(&format!(
                "{} is promoted: its canary's version, {}, serves everybody\n",
                text("name"),
                text("serving")
            ));
        }
        if rollout["decider"].as_str() == Some("external") {
            notes.push_str(&format!("{} never moves by itself: its decider is elsewhere\n", text("name")));
        }
        if rollout["differs_from_file"].as_bool() == Some(true) {
            notes.push_str(&format!(
                "{} differs from the file: `lockgate rollout export` prints what to commit\n",
                text("name")
            ));
        }
    }
    format!("{}{notes}", table.render())
}

/// Returns where a rollout is on its way: `2 of 5, 3m left`.
pub(super) fn step(rollout: &Value) -> String {
    let Some(step) = rollout["step"].as_u64() else { return "-".to_owned() };
    let count = rollout["steps"].as_array().map_or(0, Vec::len);
    match rollout["hold_left_seconds"].as_f64() {
        Some(left) if left > 0.0 => {
            let left = format_duration(Duration::from_secs(left.ceil() as u64));
            format!("{step} of {count}, {left} left")
        }
        _ => format!("{step} of {count}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_is_a_line_and_what_is_special_a_note() {
        let rollout = json!({
            "name": "auth-1.5", "subject": "filter auth", "state": "rolled-back", "why": "5 calls failed within 30s",
            "weight": "0%", "weight_in_file": "5%", "differs_from_file": true,
            "stable": "9f2c1a.4be01f.e3b0c4", "canary": "9f2c1a.77b0e4.e3b0c4", "requests": { "stable": 12, "canary": 3 }
        });
        insta::assert_snapshot!(table(&[rollout]), @r"
        ROLLOUT   SUBJECT      STATE        WEIGHT  IN FILE  STEP  VERDICT  STABLE                CANARY                REQUESTS
        auth-1.5  filter auth  rolled-back  0%      5%       -     -        9f2c1a.4be01f.e3b0c4  9f2c1a.77b0e4.e3b0c4  12 / 3
        auth-1.5 was rolled back: 5 calls failed within 30s
        auth-1.5 differs from the file: `lockgate rollout export` prints what to commit
        ");
    }
}
