//! `lockgate inspect`

mod powers;

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use lockgate_host::{FunctionInspection, Host, Inspection, Lane, LoadError, Need, Options, StoreOptions};

use super::output::{print, print_json, size};
use super::{ConfigFile, Failure};

/// Say what a component is and what it would need, or what the versions of a filter or function may touch. Runs nothing.
///
/// Of a file, that is what the component imports, exports and takes. Of a name, what the configuration grants stable and
/// canary, and what the canary may do that stable may not.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate inspect filters/auth.wasm
  lockgate inspect filters/auth.wasm --json
  lockgate inspect auth --config lockgate.yaml      what its versions may touch")]
pub(super) struct Inspect {
    /// The component's file; or the name of a filter or function of the configuration, where there is no such file.
    #[arg(value_name = "FILE|NAME")]
    path: PathBuf,
    #[command(flatten)]
    config: ConfigFile,
    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub(super) fn run(self) -> Result<(), Failure> {
        if let Some(name) = self.name() {
            let subjects = powers::read(&self.config.path, name)?;
            return if self.json { print_json(&subjects) } else { print(&powers::render(&subjects)) };
        }
        let name = self.path.display();
        let bytes =
            std::fs::read(&self.path).map_err(|error| Failure::input(format_args!("cannot read `{name}`: {error}")))?;
        let scratch = Scratch::new()?;
        let host = Host::new(scratch.options()).map_err(Failure::failed)?;
        match host.inspect(&bytes) {
            Ok(found) if self.json => print_json(&found),
            Ok(found) => print(&render(&self.path, &found)),
            // What is no filter may be a function; where it is neither, what keeps it from being a filter is told.
            Err(error) => match host.inspect_function(&bytes) {
                Ok(found) if self.json => print_json(&found),
                Ok(found) => print(&render_function(&self.path, &found)),
                Err(LoadError::NoHandler { .. }) => Err(Failure::input(format_args!("`{name}` {error}"))),
                Err(error) => Err(Failure::input(format_args!("`{name}` {error}"))),
            },
        }
    }

    /// Returns what is a name, and no file's.
    fn name(&self) -> Option<&str> {
        let name = self.path.to_str().filter(|_| !self.path.exists())?;
        (!name.contains('/') && self.path.extension().is_none_or(|extension| extension != "wasm")).then_some(name)
    }
}

fn render_function(path: &Path, inspection: &FunctionInspection) -> String {
    let asked = |wanted| if wanted { "asked for; needs a grant" } else { "never asked for" };
    lines([
        ("component", format!("{}, {}", path.display(), size(inspection.component_bytes))),
        ("sha256", format!("{:#}", inspection.digest)),
        ("world", format!("{}: a function", inspection.world)),
        ("outbound HTTP", asked(inspection.wants_outbound).to_owned()),
        ("key-value", asked(inspection.wants_key_value).to_owned()),
        ("machine code", size(inspection.code_bytes)),
        ("initial memory", size(inspection.memory_bytes_initial)),
        ("an instance is", instance(inspection.need)),
        ("exports", inspection.exports.join(", ")),
        ("imports", inspection.imports.join(", ")),
    ])
}

fn instance(need: Need) -> String {
    format!("{} core instances, {} memories, {} tables", need.core_instances, need.memories, need.tables)
}

fn lines<const N: usize>(lines: [(&str, String); N]) -> String {
    lines.into_iter().map(|(name, value)| format!("{name:<15} {value}\n")).collect()
}

/// A folder for a host that keeps nothing.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("lockgate-inspect-{}", std::process::id()));
        // Not recursive: a folder that somebody else has put there is refused.
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| Failure::failed(format_args!("cannot make `{}`: {error}", path.display())))?;
        Ok(Self(path))
    }

    fn options(&self) -> Options {
        Options {
            cache_dir: self.0.join("cache"),
            cache_bytes_max: 0,
            key_file: self.0.join("key"),
            compile_threads: 1,
            instances_max: 1,
            instance_memory_bytes_max: 4 << 30,
            // Nothing that is only looked at keeps anything.
            store: StoreOptions::Embedded { file: self.0.join("key-value.db") },
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays is a few files in a folder for temporary ones.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn render(path: &Path, inspection: &Inspection) -> String {
    let phases = [
        (inspection.phases.on_request, "on-request"),
        (inspection.phases.on_request_body, "on-request-body"),
        (inspection.phases.on_response, "on-response"),
        (inspection.phases.on_response_body, "on-response-body"),
    ];
    let phases: Vec<&str> = phases.into_iter().filter_map(|(has, name)| has.then_some(name)).collect();
    let configure = match (inspection.configures, &inspection.snapshot_hindrance) {
        (false, _) => "none".to_owned(),
        (true, None) => "once, at load; its memory is snapshotted".to_owned(),
        (true, Some(why)) => format!("in each new instance: {why}"),
    };
    let lane = |lane| match lane {
        Lane::Inline => "inline",
        Lane::Fibre => "fibre",
    };
    let outbound = match inspection.wants_outbound {
        false => "never asked for".to_owned(),
        true => {
            format!("asked for; needs a grant, and runs on the {} lane with it", lane(inspection.lane_with_outbound))
        }
    };
    let key_value = match inspection.wants_key_value {
        false => "never asked for",
        true => "asked for; in memory, or with a grant in a space that it waits for",
    };
    lines([
        ("component", format!("{}, {}", path.display(), size(inspection.component_bytes))),
        ("sha256", format!("{:#}", inspection.digest)),
        ("contract", inspection.contract.to_owned()),
        ("phases", phases.join(", ")),
        ("configure", configure),
        ("lane", lane(inspection.lane).to_owned()),
        ("outbound HTTP", outbound),
        ("key-value", key_value.to_owned()),
        ("machine code", size(inspection.code_bytes)),
        ("initial memory", size(inspection.memory_bytes_initial)),
        ("an instance is", instance(inspection.need)),
        ("exports", inspection.exports.join(", ")),
        ("imports", inspection.imports.join(", ")),
    ])
}
