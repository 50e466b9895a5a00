//! Connects a component's imports: to the contract's host functions, to WASI, or to a stub that says no.
//!
//! A linker is made for each component when it is loaded, for its stubs are: what the component names and nobody
//! defines.

use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Linker, ResourceType};
use wasmtime::{Engine, Result, bail};

use crate::error::LoadError;
use crate::filter::Lane;
use crate::shape::Shape;
use crate::state::State;
use crate::{imports, outbound, wasi};

/// The contract that filters are built for.
pub const CONTRACT: &str = "lockgate:filter@0.1.0";

const CONTRACT_PACKAGE: &str = "lockgate:filter/";
/// What `0.1.0` is compatible with.
const CONTRACT_SERIES: &str = "0.1.";
pub(crate) const WASI_SERIES: &str = "0.2.";
pub(crate) const WASI_03_SERIES: &str = "0.3.";
/// The version of WASI 0.3 that is linked.
pub(crate) const WASI_03_VERSION: &str = "0.3.0";
const WASI_PACKAGES: [&str; 7] = ["cli", "clocks", "filesystem", "http", "io", "random", "sockets"];
/// What sends HTTP requests, of either version.
const OUTBOUND: [&str; 2] = ["wasi:http/outgoing-handler", "wasi:http/client"];
const KEY_VALUE: &str = "lockgate:filter/key-value";

/// Returns the full name of one of the contract's interfaces.
pub(crate) fn contract(interface: &str) -> String {
    format!("{CONTRACT_PACKAGE}{interface}@0.1.0")
}

/// Returns whether the component would send HTTP requests.
pub(crate) fn wants_outbound(shape: &Shape) -> bool {
    shape.imports.iter().filter_map(|import| import.split('@').next()).any(|name| OUTBOUND.contains(&name))
}

/// Returns whether the component would keep keys and values.
pub(crate) fn wants_key_value(shape: &Shape) -> bool {
    shape.imports.iter().any(|import| import.split('@').next() == Some(KEY_VALUE))
}

/// Checks the names of what a component imports and exports.
///
/// # Errors
///
/// Another contract, or imports that no filter can have.
pub(crate) fn check_names(shape: &Shape) -> Result<(), LoadError> {
    for name in shape.imports.iter().chain(&shape.exports) {
        if name.starts_with(CONTRACT_PACKAGE) && !is_of_series(name, CONTRACT_SERIES) {
            return Err(LoadError::Contract { found: name.clone() });
        }
    }
    let unknown: Vec<_> =
        shape.imports.iter().filter(|name| !name.starts_with(CONTRACT_PACKAGE) && !is_wasi(name)).cloned().collect();
    if unknown.is_empty() { Ok(()) } else { Err(LoadError::UnknownImports(unknown)) }
}

pub(crate) fn is_of_series(name: &str, series: &str) -> bool {
    let version = name.rsplit_once('@').and_then(|(_, version)| version.strip_prefix(series));
    version.is_some_and(|patch| !patch.is_empty() && patch.bytes().all(|byte| byte.is_ascii_digit()))
}

pub(crate) fn is_wasi(name: &str) -> bool {
    is_wasi_of(name, WASI_SERIES)
}

/// As [`is_wasi`], of 0.3.
pub(crate) fn is_wasi_03(name: &str) -> bool {
    is_wasi_of(name, WASI_03_SERIES)
}

fn is_wasi_of(name: &str, series: &str) -> bool {
    let package = name.strip_prefix("wasi:").and_then(|rest| rest.split('/').next());
    package.is_some_and(|package| WASI_PACKAGES.contains(&package)) && is_of_series(name, series)
}

/// Returns a linker with everything that `component` imports. With `shared_store`, which asks for the fibre lane, keys and
/// values go to the store that filters share.
pub(crate) fn linker(engine: &Engine, component: &Component, lane: Lane, shared_store: bool) -> Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    // Stubs for all that the component names come first, and what there is is laid over them. The other way round one
    // would have to know what there is.
    link_stubs(&mut linker, engine, component)?;
    linker.allow_shadowing(true);
    match lane {
        Lane::Inline => {
            wasi::link(&mut linker)?;
            outbound::link_denied(&mut linker)?;
        }
        Lane::Fibre => {
            wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
            outbound::link_granted(&mut linker)?;
        }
    }
    imports::link(&mut linker, shared_store)?;
    Ok(linker)
}

/// Defines every WASI function that `component` imports as one that traps.
pub(crate) fn link_stubs<T: 'static>(linker: &mut Linker<T>, engine: &Engine, component: &Component) -> Result<()> {
    linker.allow_shadowing(true);
    let component = component.component_type();
    // A resource that an interface uses from another one is listed in both. It is the other's: a second type for it would
    // contradict the first.
    let mut owned = Vec::new();
    for (name, import) in component.imports(engine) {
        // Under the one version that everything of its series is linked under: a component may mix several.
        let version = match name {
            name if is_wasi(name) => wasi::VERSION,
            name if is_wasi_03(name) => WASI_03_VERSION,
            _ => continue,
        };
        let ComponentItem::ComponentInstance(interface) = import.ty else { continue };
        let unversioned = name.split('@').next().unwrap_or(name);
        let mut instance = linker.instance(&format!("{unversioned}@{version}"))?;
        for (export, item) in interface.exports(engine) {
            match item.ty {
                ComponentItem::ComponentFunc(function) => {
                    let called = format!("`{unversioned}#{export}` was called: it has not been granted what it is for");
                    if function.async_() {
                        instance.func_new_concurrent(export, move |_, _, _, _| {
                            let called = called.clone();
                            Box::pin(async move { bail!(called) })
                        })?;
                    } else {
                        instance.func_new(export, move |_, _, _, _| bail!("{called}"))?;
                    }
                }
                ComponentItem::Resource(resource) if !owned.contains(&resource) => {
                    instance.resource(export, ResourceType::host::<()>(), |_, _| Ok(()))?;
                    owned.push(resource);
                }
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(imports: &[&str], exports: &[&str]) -> Shape {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Shape { core_modules: 1, core_instances: 1, imports: owned(imports), exports: owned(exports) }
    }

    #[test]
    fn names_decide_what_can_be_linked() {
        for import in [
            "wasi:cli/stdout@0.2.0",
            "wasi:http/types@0.2.99",
            "lockgate:filter/log@0.1.0",
            "lockgate:filter/log@0.1.7",
        ] {
            assert_eq!(check_names(&shape(&[import], &[])), Ok(()), "{import}");
        }
        for import in [
            "wasi:cli/stdout@0.3.0",
            "wasi:cli/stdout@0.2.0-rc.1",
            "wasi:cli/stdout",
            "wasi:keyvalue/store@0.2.0",
            "env",
            "acme:db/query@1.0.0",
        ] {
            let expected = LoadError::UnknownImports(vec![import.to_owned()]);
            assert_eq!(check_names(&shape(&[import], &[])), Err(expected), "{import}");
        }
        for name in
            ["lockgate:filter/on-request@0.2.0", "lockgate:filter/on-request@1.0.0", "lockgate:filter/on-request"]
        {
            let expected = LoadError::Contract { found: name.to_owned() };
            assert_eq!(check_names(&shape(&[], &[name])), Err(expected), "{name}");
        }
    }
}
