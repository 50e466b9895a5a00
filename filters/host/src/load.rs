//! Loading: from a component's bytes to a [`Filter`] that has been proven to start.
//!
//! look at its shape → find its artifact, or configure, snapshot, compile and keep it → link → start one instance.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Instant;

use wasmtime::component::{Component, ComponentExportIndex};

use crate::artifact::Manifest;
use crate::budget::Need;
use crate::cache::Cache;
use crate::declare::Declarations;
use crate::engine::TABLE_ELEMENTS_MAX;
use crate::error::LoadError;
use crate::filter::{Exports, Filter, Lane};
use crate::host::Host;
use crate::link;
use crate::outbound::Access;
use crate::shape::Shape;
use crate::sink::{Progress, Stage};
use crate::snapshot::{Configured, Configuring};
use crate::spec::{FilterSpec, VersionId};
use crate::state::Shared;

const PAGE_BYTES: u64 = 64 << 10;

/// Looks at a component's bytes.
///
/// # Errors
///
/// What no filter can be.
pub(crate) fn examine(component: &[u8]) -> Result<Shape, LoadError> {
    let shape = Shape::of(component)?;
    link::check_names(&shape)?;
    let called = ["configuration", "on-request", "on-request-body", "on-response", "on-response-body"];
    let is_called = |export: &String| {
        let name = export.strip_prefix("lockgate:filter/").and_then(|name| name.split('@').next());
        name.is_some_and(|name| called.contains(&name))
    };
    if !shape.exports.iter().any(is_called) {
        return Err(LoadError::NoExports { exports: shape.exports });
    }
    Ok(shape)
}

/// Returns on which lane the component would run.
pub(crate) fn lane(shape: &Shape, outbound: bool, key_value: bool) -> Lane {
    let waits = outbound && link::wants_outbound(shape) || key_value && link::wants_key_value(shape);
    if waits { Lane::Fibre } else { Lane::Inline }
}

pub(crate) fn load(host: &Host, spec: &FilterSpec, progress: &dyn Progress) -> Result<Arc<Filter>, LoadError> {
    let began = Instant::now();
    let shape = examine(&spec.component)?;
    check_ceilings(host, spec.limits.memory_bytes, spec.limits.table_elements)?;
    let keeps = link::wants_key_value(&shape);
    let granted = spec.grants.key_value.first().filter(|_| keeps);
    let space = granted.map(|name| host.spaces.granted("filter", &spec.name, name));
    let lane = lane(&shape, spec.grants.may_send(), space.is_some());
    let version = VersionId::of(&spec.component, &spec.settings, &spec.grants);
    let key = Cache::key(&host.engines.serve, &version.component, &version.settings);
    let (component, manifest) = host.cache.alone(key, || match host.cache.load(&host.engines.serve, key) {
        Some(found) => {
            progress.stage(&spec.name, Stage::CacheHit);
            Ok(found)
        }
        None => {
            let began = Instant::now();
            let (manifest, code) = make(host, spec, progress)?;
            let component = host.cache.keep(&host.engines.serve, key, &manifest, &code, began.elapsed());
            Ok((component.map_err(|error| compile_error(&error))?, manifest))
        }
    })?;

    let exports = exports(&component);
    if lane == Lane::Fibre && exports.on_response_body.is_some() {
        return Err(LoadError::ResponseBodyWaits);
    }
    let need = need(host, spec.limits.memory_bytes, &shape, &component, lane == Lane::Fibre)?;
    let mismatch = |error: wasmtime::Error| LoadError::Mismatch(format!("{error:#}"));
    let linker = link::linker(&host.engines.serve, &component, lane, space.is_some()).map_err(mismatch)?;
    let pre = linker.instantiate_pre(&component).map_err(mismatch)?;
    let access = (lane == Lane::Fibre).then(|| Access::new(&spec.grants, &host.pools)).flatten();
    let Manifest { declarations, not_snapshotted } = manifest;
    let filter = Arc::new(Filter {
        version,
        shared: Arc::new(Shared::new(
            spec.name.clone(),
            spec.settings.as_str().into(),
            spec.limits,
            declarations.metrics.clone(),
            if keeps && space.is_none() { host.key_value(&spec.name) } else { Arc::default() },
            space,
            access,
        )),
        pre,
        exports,
        declarations,
        not_snapshotted,
        lane,
        isolation: spec.isolation,
        need,
        budget: host.budget.clone(),
        taken: AtomicU32::new(0),
        idle: Default::default(),
    });
    progress.stage(&spec.name, Stage::Probing);
    probe(&filter)?;
    let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    progress.stage(&spec.name, Stage::Ready { millis });
    Ok(filter)
}

/// Checks limits against what any instance can have.
pub(crate) fn check_ceilings(host: &Host, memory_bytes: u64, table_elements: u32) -> Result<(), LoadError> {
    let (wanted, most) = (memory_bytes, host.instance_memory_bytes_max);
    if wanted > most {
        return Err(LoadError::Limits(format!(
            "may have {wanted} bytes of memory; the most that an instance can have is {most}"
        )));
    }
    let wanted = table_elements;
    if wanted > TABLE_ELEMENTS_MAX {
        return Err(LoadError::Limits(format!(
            "may have tables of {wanted} elements; the most is {TABLE_ELEMENTS_MAX}"
        )));
    }
    Ok(())
}

/// Configures, snapshots and compiles.
fn make(host: &Host, spec: &FilterSpec, progress: &dyn Progress) -> Result<(Manifest, Vec<u8>), LoadError> {
    let bytes = &*spec.component;
    progress.stage(&spec.name, Stage::Compiling { bytes: bytes.len() as u64 });
    let configured =
        if examine(bytes)?.exports.iter().any(|export| export.starts_with("lockgate:filter/configuration@")) {
            // Only the compiler runs on the slow threads: `configure` has a deadline.
            let (configuring, component) = host
                .compiler
                .install(|| {
                    let configuring = Configuring::new(bytes);
                    let component = configuring.compile(&host.engines.prepare);
                    component.map(|component| (configuring, component))
                })
                .map_err(|error| compile_error(&error))?;
            progress.stage(&spec.name, Stage::Configuring);
            let shared = Shared::new(
                spec.name.clone(),
                spec.settings.as_str().into(),
                spec.limits,
                Vec::new(),
                Arc::default(),
                None,
                None,
            );
            let run = configuring.configure(&component, Arc::new(shared))?;
            progress.stage(&spec.name, Stage::Snapshotting);
            host.compiler.install(|| configuring.snapshot(run))
        } else {
            Configured { component: None, declarations: Declarations::default(), not_snapshotted: None }
        };
    let Configured { component, declarations, not_snapshotted } = configured;
    if let Some(reason) = &not_snapshotted {
        tracing::warn!(
            filter = &*spec.name,
            reason,
            "the filter is configured anew in each instance, which takes time; `isolation: reused` makes that rare"
        );
    }
    let bytes = component.as_deref().unwrap_or(bytes);
    let code = host
        .compiler
        .install(|| host.engines.serve.precompile_component(bytes))
        .map_err(|error| compile_error(&error))?;
    Ok((Manifest { declarations, not_snapshotted }, code))
}

pub(crate) fn compile_error(error: &wasmtime::Error) -> LoadError {
    LoadError::Compile(format!("{error:#}"))
}

pub(crate) fn exports(component: &Component) -> Exports {
    let function = |interface: &str, name: &str| -> Option<ComponentExportIndex> {
        let interface = component.get_export_index(None, &link::contract(interface)[..])?;
        component.get_export_index(Some(&interface), name)
    };
    Exports {
        configure: function("configuration", "configure"),
        on_request: function("on-request", "on-request"),
        on_request_body: function("on-request-body", "on-request-body"),
        on_response: function("on-response", "on-response"),
        on_response_body: function("on-response-body", "on-response-body"),
    }
}

/// Returns the slots that one instance takes.
pub(crate) fn need(
    host: &Host,
    memory_bytes: u64,
    shape: &Shape,
    component: &Component,
    waits: bool,
) -> Result<Need, LoadError> {
    let Some(resources) = component.resources_required() else {
        return Err(LoadError::Mismatch("it imports modules or components, which no host provides".to_owned()));
    };
    let first = resources.max_initial_memory_size.unwrap_or(0).saturating_mul(PAGE_BYTES);
    if first > memory_bytes {
        return Err(LoadError::Limits(format!("needs {first} bytes of memory to start; its limit is {memory_bytes}")));
    }
    let need = Need {
        component_instances: 1,
        core_instances: shape.core_instances,
        memories: resources.num_memories,
        tables: resources.num_tables,
        stacks: u32::from(waits),
    };
    match host.budget.can_never_hold(need) {
        Some((kind, need, total)) => {
            Err(LoadError::Limits(format!("needs {need} {kind} for one instance; the gateway's pool has {total}")))
        }
        None => Ok(need),
    }
}

/// Starts one instance, before any traffic depends on it.
fn probe(filter: &Arc<Filter>) -> Result<(), LoadError> {
    let mut instance = filter.acquire("").map_err(LoadError::Start)?;
    match filter.lane {
        // Nothing waits on this lane: a poll is the whole call.
        Lane::Inline => crate::snapshot::finish(async { Ok(instance.probe().await) })
            .map_err(|error| LoadError::Mismatch(error.to_string()))?
            .map_err(LoadError::Start),
        Lane::Fibre => on_a_runtime(async { instance.probe().await.map_err(LoadError::Start) }),
    }
}

/// Runs what waits, on a thread of its own: this one may be driving a runtime, and none may be driven inside another.
pub(crate) fn on_a_runtime(waiting: impl Future<Output = Result<(), LoadError>> + Send) -> Result<(), LoadError> {
    std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| LoadError::Mismatch(error.to_string()))?;
            runtime.block_on(waiting)
        });
        running.join().unwrap_or_else(|_| Err(LoadError::Mismatch("starting it panicked".to_owned())))
    })
}
