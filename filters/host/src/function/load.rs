//! Loading: from a component's bytes to a [`Function`] that has been proven to start. As for filters, without
//! `configure`: what a function is told, it is told by its environment.

use std::sync::atomic::AtomicU32;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use serde::Serialize;
use wasmtime::component::{Component, Linker};
use wasmtime::{Engine, Result};
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi_http::handler::ProxyPre;
use wasmtime_wasi_http::{p2, p3};

use super::spec::FunctionSpec;
use super::turn::Shared;
use super::world::{Pre, World, examine};
use super::{Function, folders, key_value, next, run, told};
use crate::artifact::Manifest;
use crate::budget::Need;
use crate::cache::Cache;
use crate::error::LoadError;
use crate::host::Host;
use crate::link;
use crate::load::{check_ceilings, compile_error, on_a_runtime};
use crate::memory::Alive;
use crate::outbound::Access;
use crate::shape::Shape;
use crate::sink::{Progress, Stage};
use crate::spec::{Digest, Isolation};

/// What stands for the settings in an artifact's key: functions have none, and an environment is no part of the code.
const NO_SETTINGS: &[u8] = b"wasi:http/proxy@0.2";

/// Returns the engine that serves a world.
fn engine(host: &Host, world: World) -> Result<Engine, LoadError> {
    if world.is_03() {
        host.engines.overlapping().map_err(|error| LoadError::Compile(error.to_string()))
    } else {
        Ok(host.engines.serve.clone())
    }
}

pub(crate) fn load(host: &Host, spec: &FunctionSpec, progress: &dyn Progress) -> Result<Arc<Function>, LoadError> {
    let began = Instant::now();
    let (shape, world) = examine(&spec.component)?;
    if let (World::Command, Isolation::Reused { .. }) = (world, spec.isolation) {
        return Err(LoadError::ReusedCommand);
    }
    check_ceilings(host, spec.limits.memory_bytes, spec.limits.table_elements)?;
    let folders = folders::open(&spec.grants.folders)?;
    let version = spec.version();
    let engine = engine(host, world)?;
    let key = Cache::key(&engine, &version.component, &Digest::of(NO_SETTINGS));
    let (component, _) = host.cache.alone(key, || match host.cache.load(&engine, key) {
        Some(found) => {
            progress.stage(&spec.name, Stage::CacheHit);
            Ok(found)
        }
        None => {
            let began = Instant::now();
            progress.stage(&spec.name, Stage::Compiling { bytes: spec.component.len() as u64 });
            let code = host.compiler.install(|| engine.precompile_component(&spec.component));
            let code = code.map_err(|error| compile_error(&error))?;
            let manifest = Manifest::default();
            let component = host.cache.keep(&engine, key, &manifest, &code, began.elapsed());
            Ok((component.map_err(|error| compile_error(&error))?, manifest))
        }
    })?;
    let need = crate::load::need(host, spec.limits.memory_bytes, &shape, &component, true)?;
    let pre = pre(&engine, &component, world, &shape).map_err(|error| LoadError::Mismatch(format!("{error:#}")))?;
    let access = Access::new(&spec.grants, &host.pools);
    let granted = spec.grants.key_value.iter().filter(|_| key_value::is_wanted(&shape));
    let spaces = granted.map(|name| (name.clone(), host.spaces.granted("function", &spec.name, name))).collect();
    let function = Arc::new(Function {
        version,
        world,
        shared: Arc::new(Shared {
            name: Arc::clone(&spec.name),
            vars: spec.vars.clone(),
            config: spec.config.clone(),
            spaces,
            limits: spec.limits,
            folders,
            access,
            sink: OnceLock::new(),
            alive: Alive::default(),
        }),
        engine,
        pre,
        isolation: spec.isolation,
        need,
        budget: Arc::clone(&host.budget),
        taken: AtomicU32::new(0),
        made: AtomicU32::new(0),
        idle: Default::default(),
    });
    progress.stage(&spec.name, Stage::Probing);
    on_a_runtime(probe(&function))?;
    let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    progress.stage(&spec.name, Stage::Ready { millis });
    Ok(function)
}

/// Starts one instance, before any traffic depends on it.
async fn probe(function: &Arc<Function>) -> Result<(), LoadError> {
    let (_, reservation) = function.acquire().map_err(LoadError::Start)?;
    let store = run::store(function);
    store.data().turn.begin("", "".into(), None);
    let started = run::probe(function, store).await;
    function.give_back(None, reservation);
    started.map_err(LoadError::Start)
}

fn pre(engine: &Engine, component: &Component, world: World, shape: &Shape) -> Result<Pre> {
    let mut linker = Linker::new(engine);
    // What a later version has and ours does not, traps when it is called.
    link::link_stubs(&mut linker, engine, component)?;
    linker.allow_shadowing(true);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    p2::add_only_http_to_linker_async(&mut linker)?;
    key_value::link(&mut linker)?;
    told::link(&mut linker, shape)?;
    if world.is_03() {
        wasmtime_wasi::p3::add_to_linker(&mut linker)?;
        p3::add_to_linker(&mut linker)?;
        next::link(&mut linker)?;
    }
    let pre = linker.instantiate_pre(component)?;
    Ok(match world {
        World::Proxy => Pre::Handler(Arc::new(ProxyPre::P2(p2::bindings::ProxyPre::new(pre)?))),
        World::Service | World::Middleware => Pre::Handler(Arc::new(ProxyPre::P3(p3::bindings::ServicePre::new(pre)?))),
        World::Command => Pre::Command(CommandPre::new(pre)?),
    })
}

/// What a component that answers requests is, and what it would need. Nothing of it has run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FunctionInspection {
    /// The world that it fits.
    pub world: &'static str,
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
    /// It would send HTTP requests, if it were granted any.
    pub wants_outbound: bool,
    /// It would keep keys and values, if it were granted a space for them.
    pub wants_key_value: bool,
    /// Core modules in it.
    pub core_modules: u32,
    /// Slots that one instance takes.
    pub need: Need,
    /// Bytes of the largest memory that it starts with.
    pub memory_bytes_initial: u64,
}

pub(crate) fn inspect(host: &Host, bytes: &[u8]) -> Result<FunctionInspection, LoadError> {
    let (shape, world) = examine(bytes)?;
    let engine = if world.is_03() { engine(host, world)? } else { host.engines.prepare.clone() };
    let component = host.compiler.install(|| Component::from_binary(&engine, bytes));
    let component = component.map_err(|error| compile_error(&error))?;
    pre(&engine, &component, world, &shape).map_err(|error| LoadError::Mismatch(format!("{error:#}")))?;
    let resources = component.resources_required();
    Ok(FunctionInspection {
        world: world.as_str(),
        digest: Digest::of(bytes),
        component_bytes: bytes.len() as u64,
        code_bytes: component.text().len() as u64,
        wants_outbound: link::wants_outbound(&shape),
        wants_key_value: key_value::is_wanted(&shape),
        core_modules: shape.core_modules,
        need: Need {
            component_instances: 1,
            core_instances: shape.core_instances,
            memories: resources.as_ref().map_or(0, |resources| resources.num_memories),
            tables: resources.as_ref().map_or(0, |resources| resources.num_tables),
            stacks: 1,
        },
        memory_bytes_initial: resources.and_then(|resources| resources.max_initial_memory_size).unwrap_or(0)
            * (64 << 10),
        exports: shape.exports,
        imports: shape.imports,
    })
}
