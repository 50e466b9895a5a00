//! What a component is, for people: [`Host::inspect`](crate::Host::inspect).

use serde::Serialize;

use crate::budget::Need;
use crate::error::LoadError;
use crate::filter::{Lane, Phases};
use crate::host::Host;
use crate::link::{self, CONTRACT};
use crate::load;
use crate::snapshot::Configuring;
use crate::spec::Digest;

/// What a component is, and what it would need. Nothing of it has run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// The contract that it fits.
    pub contract: &'static str,
    /// Digest of its bytes.
    pub digest: Digest,
    /// Size of the component.
    pub component_bytes: u64,
    /// Size of the machine code that it compiles to.
    pub code_bytes: u64,
    /// Interfaces that it exports.
    pub exports: Vec<String>,
    /// Interfaces that it imports.
    pub imports: Vec<String>,
    /// Phases that it takes part in.
    pub phases: Phases,
    /// It has a `configure`.
    pub configures: bool,
    /// It would send HTTP requests, if it were granted any.
    pub wants_outbound: bool,
    /// It would keep keys and values: in memory, or in a space that it is granted, for which it waits.
    pub wants_key_value: bool,
    /// The lane that it runs on without grants.
    pub lane: Lane,
    /// The lane that it runs on with an outbound grant.
    pub lane_with_outbound: Lane,
    /// Core modules in it.
    pub core_modules: u32,
    /// Slots that one instance takes.
    pub need: Need,
    /// Bytes of the largest memory that it starts with.
    pub memory_bytes_initial: u64,
    /// Why `configure` cannot be snapshotted, as far as its code tells. Whether it holds on to handles shows only when
    /// it runs.
    pub snapshot_hindrance: Option<String>,
}

pub(crate) fn inspect(host: &Host, bytes: &[u8]) -> Result<Inspection, LoadError> {
    let shape = load::examine(bytes)?;
    let compile_error = |error: wasmtime::Error| LoadError::Compile(format!("{error:#}"));
    let engine = &host.engines.prepare;
    let (component, snapshot_hindrance) = host
        .compiler
        .install(|| {
            let hindrance = Configuring::new(bytes).why_not().map(str::to_owned);
            wasmtime::component::Component::from_binary(engine, bytes).map(|component| (component, hindrance))
        })
        .map_err(compile_error)?;
    let exports = load::exports(&component);
    let mismatch = |error: wasmtime::Error| LoadError::Mismatch(format!("{error:#}"));
    let linker = link::linker(engine, &component, Lane::Inline, false).map_err(mismatch)?;
    linker.instantiate_pre(&component).map_err(mismatch)?;
    let resources = component.resources_required();
    let lane_with_outbound = load::lane(&shape, true, false);
    Ok(Inspection {
        contract: CONTRACT,
        digest: Digest::of(bytes),
        component_bytes: bytes.len() as u64,
        code_bytes: component.text().len() as u64,
        phases: exports.phases(),
        configures: exports.configure.is_some(),
        wants_outbound: link::wants_outbound(&shape),
        wants_key_value: link::wants_key_value(&shape),
        lane: load::lane(&shape, false, false),
        lane_with_outbound,
        core_modules: shape.core_modules,
        need: Need {
            component_instances: 1,
            core_instances: shape.core_instances,
            memories: resources.as_ref().map_or(0, |resources| resources.num_memories),
            tables: resources.as_ref().map_or(0, |resources| resources.num_tables),
            stacks: u32::from(lane_with_outbound == Lane::Fibre),
        },
        memory_bytes_initial: resources.and_then(|resources| resources.max_initial_memory_size).unwrap_or(0)
            * (64 << 10),
        snapshot_hindrance: snapshot_hindrance.filter(|_| exports.configure.is_some()),
        exports: shape.exports,
        imports: shape.imports,
    })
}
