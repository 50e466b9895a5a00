//! `lockgate doctor`: is this machine ready for what the configuration asks of it?

mod machine;
mod neighbours;
mod storage;

use clap::Args;
use lockgate_config::model::Config;
use lockgate_config::problem::Report;
use serde::Serialize;

use super::client::{Gateway, runtime};
use super::output::{count, print, print_json};
use super::{ConfigFile, Failure};
use crate::control::reload::Draft;
use crate::control::watch::Fingerprint;

/// Is this machine ready for what the configuration asks of it?
///
/// Looks at limits of the system, folders and their permissions, the clock and the dates of certificates, the cache, whether
/// upstreams can be reached, and whether addresses are free, and says what to do about what is not as it should be.
/// Changes nothing, but that the folders of cache and state are made where they are not there. Run it as the user that
/// the gateway runs as.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes:
  0  nothing is wrong, though something may deserve a look
  1  something is wrong")]
pub(super) struct Doctor {
    #[command(flatten)]
    config: ConfigFile,
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Finding {
    /// What was looked at: `open files`.
    subject: String,
    verdict: Verdict,
    /// What was seen.
    what: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    /// As it should be.
    Good,
    /// It works, and may not for long, or not for all.
    Doubtful,
    /// It does not work.
    Bad,
}

impl Finding {
    fn good(subject: impl Into<String>, what: impl Into<String>) -> Self {
        Self { subject: subject.into(), verdict: Verdict::Good, what: what.into(), advice: None }
    }

    fn doubtful(subject: impl Into<String>, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { verdict: Verdict::Doubtful, advice: Some(advice.into()), ..Self::good(subject, what) }
    }

    fn bad(subject: impl Into<String>, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { verdict: Verdict::Bad, advice: Some(advice.into()), ..Self::good(subject, what) }
    }
}

impl Doctor {
    pub(super) fn run(self) -> Result<(), Failure> {
        let runtime = runtime()?;
        let mut findings = Vec::new();
        let name = self.config.path.display().to_string();
        match lockgate_config::load(&self.config.path) {
            Err(report) => {
                let advice = "mend the file; nothing else can be looked at before";
                findings.push(Finding::bad("configuration", report.to_string().trim_end(), advice));
            }
            Ok(loaded) => {
                findings.push(Finding::good("configuration", format!("`{name}` can be read")));
                self.look(&loaded.config, &mut findings);
                let gateway = Gateway::of(self.config.clone());
                runtime.block_on(neighbours::look(&loaded.config, &gateway, &mut findings));
            }
        }
        if self.json {
            print_json(&findings)?;
        } else {
            print(&render(&findings))?;
        }
        match findings.iter().filter(|finding| finding.verdict == Verdict::Bad).count() {
            0 => Ok(()),
            bad => Err(Failure::failed(format_args!("{} of {} findings are bad", bad, findings.len()))),
        }
    }

    fn look(&self, config: &Config, findings: &mut Vec<Finding>) {
        machine::look(config, &self.config.path, findings);
        storage::look(config, findings);
        match Draft::read(&self.config.path, &mut Fingerprint::default(), None) {
            Ok(draft) => {
                let read = draft.versions().len() + draft.functions().len();
                let what = format!("{} can be read; `lockgate check` loads them", count(read, "component"));
                findings.push(Finding::good("components", what));
                machine::certificates(&draft.facts, findings);
            }
            Err(incomplete) => {
                let report = Report::from(incomplete);
                let advice = "mend what is named; `lockgate check` says the same and more";
                findings.push(Finding::bad("files", report.to_string().trim_end(), advice));
            }
        }
    }
}

fn render(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { subject, verdict, what, advice } in findings {
        let mark = match verdict {
            Verdict::Good => "ok  ",
            Verdict::Doubtful => "look",
            Verdict::Bad => "BAD ",
        };
        let mut lines = what.lines();
        text.push_str(&format!("{mark}  {subject}: {}\n", lines.next().unwrap_or_default()));
        for line in lines {
            text.push_str(&format!("      {line}\n"));
        }
        if let Some(advice) = advice {
            text.push_str(&format!("      -> {advice}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_say_what_to_do() {
        let findings = [
            Finding::good("clock", "it runs"),
            Finding::doubtful("open files", "1024 may be open", "raise it"),
            Finding::bad("admin", "two\nlines", "free it"),
        ];
        insta::assert_snapshot!(render(&findings), @r"
        ok    clock: it runs
        look  open files: 1024 may be open
              -> raise it
        BAD   admin: two
              lines
              -> free it
        ");
    }
}
