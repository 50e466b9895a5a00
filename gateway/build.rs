//! Finds out what `--version` tells beside the release: the commit, and Wasmtime's version.

use std::env;
use std::fs;
use std::path::Path;

fn main() {
    let manifest_dir = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let root = Path::new(&manifest_dir).join("..");

    // Images are built from sources without a `.git`: there the build is told.
    println!("cargo::rerun-if-env-changed=LOCKGATE_COMMIT");
    let commit = env::var("LOCKGATE_COMMIT").ok().or_else(|| {
        // In release builds only: each commit would recompile the crate during development.
        if env::var("PROFILE").as_deref() != Ok("release") {
            return None;
        }
        commit_of(&root.join(".git"))
    });
    println!("cargo::rustc-env=LOCKGATE_COMMIT={}", commit.as_deref().unwrap_or("unknown"));

    let lock = root.join("Cargo.lock");
    println!("cargo::rerun-if-changed={}", lock.display());
    let wasmtime = fs::read_to_string(lock).ok().and_then(|lock| version_in(&lock, "wasmtime"));
    println!("cargo::rustc-env=LOCKGATE_WASMTIME={}", wasmtime.as_deref().unwrap_or("unknown"));
}

/// Returns the commit that is checked out, without asking git, which need not be there.
fn commit_of(git: &Path) -> Option<String> {
    let head = git.join("HEAD");
    println!("cargo::rerun-if-changed={}", head.display());
    let head = fs::read_to_string(head).ok()?;
    let Some(name) = head.trim().strip_prefix("ref: ") else { return shortened(&head) };
    let reference = git.join(name);
    println!("cargo::rerun-if-changed={}", reference.display());
    if let Ok(commit) = fs::read_to_string(reference) {
        return shortened(&commit);
    }
    let packed = fs::read_to_string(git.join("packed-refs")).ok()?;
    packed.lines().find_map(|line| shortened(line.strip_suffix(name)?))
}

fn shortened(commit: &str) -> Option<String> {
    commit.trim().get(..12).map(str::to_owned)
}

fn version_in(lock: &str, package: &str) -> Option<String> {
    let name = format!("name = \"{package}\"");
    let mut lines = lock.lines().skip_while(|line| *line != name);
    lines.find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"').map(str::to_owned))
}
