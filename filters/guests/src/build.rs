//! Runs cargo in the guests' workspace.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::{env, fmt, fs, io, process};

/// Guests are built for this target; `rustup target add` fetches it.
const TARGET: &str = "wasm32-wasip2";

/// The magic number and the version of a core module, and nothing in it.
const CORE_MODULE: &[u8] = b"\0asm\x01\0\0\0";

/// The guests could not be built, and why.
#[derive(Debug, Clone)]
pub struct BuildError {
    reason: String,
}

impl BuildError {
    fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into() }
    }

    fn io(doing: &str, path: &Path, error: &io::Error) -> Self {
        Self::new(format!("could not {doing} `{}`: {error}", path.display()))
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.reason)
    }
}

impl std::error::Error for BuildError {}

/// The folder with the built guests.
pub(crate) fn once() -> Result<&'static Path, BuildError> {
    static BUILT: OnceLock<Result<PathBuf, BuildError>> = OnceLock::new();
    BUILT.get_or_init(run).as_ref().map(PathBuf::as_path).map_err(Clone::clone)
}

/// One cargo, which takes a fraction of a second where all is fresh. Several processes may do this at once: cargo locks
/// the target folder.
fn run() -> Result<PathBuf, BuildError> {
    let filters = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    // Beside the gateway's own, since that one may be locked by the very cargo that runs this test.
    let target = filters.join("../target/guests");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "--quiet", "--release", "--workspace", "--locked", "--target", TARGET])
        .arg("--manifest-path")
        .arg(filters.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target);
    for variable in inherited_settings() {
        cargo.env_remove(variable);
    }
    let output = cargo.output().map_err(|error| BuildError::io("run", Path::new(cargo.get_program()), &error))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        let hint =
            if complaint.contains("can't find crate for `core`") || complaint.contains("target may not be installed") {
                format!("\nhint: `rustup target add {TARGET}`")
            } else {
                String::new()
            };
        return Err(BuildError::new(format!("the guests do not build:\n{complaint}{hint}")));
    }

    let built = target.join(TARGET).join("release");
    write_whole(&built.join("core_module.wasm"), CORE_MODULE)?;
    Ok(built)
}

/// What the cargo that runs us set for the gateway's build: flags and wrappers (coverage, clippy) that are not meant for
/// another target, and would have the guests rebuilt by turns.
fn inherited_settings() -> impl Iterator<Item = String> {
    env::vars_os().filter_map(|(name, _)| name.into_string().ok()).filter(|name| {
        matches!(
            name.as_str(),
            "CARGO_BUILD_TARGET"
                | "CARGO_ENCODED_RUSTFLAGS"
                | "CARGO_TARGET_DIR"
                | "RUSTC_WORKSPACE_WRAPPER"
                | "RUSTC_WRAPPER"
                | "RUSTFLAGS"
        ) || name.starts_with("CARGO_PROFILE_")
    })
}

/// Another process may be reading it.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), BuildError> {
    if fs::read(path).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    let temporary = path.with_extension(format!("{}.tmp", process::id()));
    fs::write(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(|error| BuildError::io("write", path, &error))
}
