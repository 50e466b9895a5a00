//! What a table is worth nothing without: the machine, and what was built from what.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

use crate::tools::Tools;

/// Returns a list in Markdown.
pub(crate) async fn facts(tools: &Tools) -> String {
    let first_line = |path: &str| fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or("?").to_owned();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models = || cpuinfo.lines().filter_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let commit = said("git", &["describe", "--always", "--dirty", "--abbrev=12"]).await;
    let mut facts = String::new();
    // Writing to a string does not fail.
    let mut fact = |name: &str, value: &str| {
        let _ = writeln!(facts, "- {name}: {value}");
    };
    fact("CPU", &format!("{} × {}", models().count(), models().next().map_or("?", |(_, model)| model.trim())));
    fact("kernel", &first_line("/proc/sys/kernel/osrelease"));
    fact("load average before", &first_line("/proc/loadavg"));
    fact("commit", &commit);
    if tools.lockgate.is_file() {
        fact("Lockgate", &said(&tools.lockgate, &["--version"]).await);
    }
    if let Some(nginx) = &tools.nginx {
        fact("nginx", &said(nginx, &["-v"]).await);
    }
    if let Some(envoy) = &tools.envoy {
        fact("Envoy", &said(envoy, &["--version"]).await);
    }
    facts
}

/// Returns the first line with text that a program writes.
async fn said(program: impl AsRef<Path>, arguments: &[&str]) -> String {
    let output = Command::new(program.as_ref())
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let Ok(output) = output else {
        return "?".to_owned();
    };
    // nginx tells its version on stderr.
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    let text = String::from_utf8_lossy(&text);
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("?").to_owned()
}
