//! Which standard world a function is built for, read from the names of what it imports and exports.

use std::sync::Arc;

use wasmtime::component::InstancePre;
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi_http::handler::ProxyPre;

use super::state::State;
use super::{key_value, told};
use crate::error::LoadError;
use crate::link::{self, is_of_series, is_wasi, is_wasi_03};
use crate::shape::Shape;

/// What a function of 0.2 exports.
const HANDLER_02: &str = "wasi:http/incoming-handler";
/// What a function of 0.3 exports. A middleware imports it as well.
const HANDLER_03: &str = "wasi:http/handler";
/// What a program exports.
const RUN: &str = "wasi:cli/run";

/// The world that a function is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum World {
    /// `wasi:http/proxy` 0.2: answers requests.
    Proxy,
    /// `wasi:http/service` 0.3: answers requests.
    Service,
    /// `wasi:http/middleware` 0.3: answers requests, and may have them handled by what is behind it.
    Middleware,
    /// `wasi:cli/command` 0.2: a program, which gets requests in the manner of CGI.
    Command,
}

impl World {
    /// Returns the world that a component is built for; none where it is no function, and nothing is said of whether it
    /// can be loaded. Reads the names alone.
    pub fn of(component: &[u8]) -> Option<Self> {
        Self::of_shape(&Shape::of(component).ok()?)
    }

    /// Returns its name: `wasi:http/service@0.3`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Proxy => "wasi:http/proxy@0.2",
            Self::Service => "wasi:http/service@0.3",
            Self::Middleware => "wasi:http/middleware@0.3",
            Self::Command => "wasi:cli/command@0.2",
        }
    }

    /// Returns whether it is of WASI 0.3.
    pub fn is_03(self) -> bool {
        matches!(self, Self::Service | Self::Middleware)
    }

    fn of_shape(shape: &Shape) -> Option<Self> {
        let names = |names: &[String], interface: &str, series: &str| {
            names.iter().any(|name| name.strip_prefix(interface).is_some_and(|_| is_of_series(name, series)))
        };
        if names(&shape.exports, HANDLER_02, link::WASI_SERIES) {
            Some(Self::Proxy)
        } else if names(&shape.exports, HANDLER_03, link::WASI_03_SERIES) {
            let imports = names(&shape.imports, HANDLER_03, link::WASI_03_SERIES);
            Some(if imports { Self::Middleware } else { Self::Service })
        } else if names(&shape.exports, RUN, link::WASI_SERIES) {
            // What is both is a handler: it knows more of HTTP.
            Some(Self::Command)
        } else {
            None
        }
    }

    fn has(self, import: &str) -> bool {
        match self {
            Self::Proxy | Self::Command => is_wasi(import),
            // A standard library may still be of 0.2 when what is built on it is of 0.3.
            Self::Service | Self::Middleware => is_wasi(import) || is_wasi_03(import),
        }
    }
}

/// A linked component, ready to be instantiated.
pub(super) enum Pre {
    Handler(Arc<ProxyPre<State>>),
    Command(CommandPre<State>),
}

impl Pre {
    pub(super) fn instance_pre(&self) -> &InstancePre<State> {
        match self {
            Self::Handler(pre) => match &**pre {
                ProxyPre::P2(pre) => pre.instance_pre(),
                ProxyPre::P3(pre) => pre.instance_pre(),
            },
            Self::Command(pre) => pre.instance_pre(),
        }
    }
}

/// Returns whether an import is of the interfaces that are of no world, and that the host brings itself.
fn is_ours(import: &str) -> bool {
    key_value::is_known(import) || told::is_known(import)
}

/// Looks at a component's bytes.
///
/// # Errors
///
/// What no function can be.
pub(super) fn examine(component: &[u8]) -> Result<(Shape, World), LoadError> {
    let shape = Shape::of(component)?;
    let Some(world) = World::of_shape(&shape) else {
        let exports = |interface: &str| shape.exports.iter().any(|name| name.split('@').next() == Some(interface));
        let hint = if exports(HANDLER_03) {
            "; it is for a draft of `wasi:http` 0.3: build it for 0.3.0, or for 0.2"
        } else if exports(RUN) {
            "; it is a command of WASI 0.3: build it for 0.2"
        } else if shape.exports.iter().any(|name| name.starts_with("lockgate:filter/")) {
            "; it is a filter: name it under `filters`"
        } else {
            "; build it for the world `wasi:http/proxy` or `wasi:cli/command`"
        };
        return Err(LoadError::NoHandler { exports: shape.exports, hint });
    };
    let unknown: Vec<_> =
        shape.imports.iter().filter(|import| !world.has(import) && !is_ours(import)).cloned().collect();
    if !unknown.is_empty() {
        let there_is = match world.is_03() {
            true => "WASI 0.2 and 0.3, `wasi:keyvalue@0.2.0-draft2`, `wasi:config` and `wasi:logging`",
            false => "WASI 0.2, `wasi:keyvalue@0.2.0-draft2`, `wasi:config` and `wasi:logging`",
        };
        return Err(LoadError::UnknownFunctionImports { imports: unknown, there_is });
    }
    Ok((shape, world))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(imports: &[&str], exports: &[&str]) -> Option<World> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let shape = Shape { core_modules: 1, core_instances: 1, imports: owned(imports), exports: owned(exports) };
        World::of_shape(&shape)
    }

    #[test]
    fn what_is_exported_makes_a_function_and_what_is_imported_a_middleware() {
        assert_eq!(of(&[], &["wasi:http/incoming-handler@0.2.0"]), Some(World::Proxy));
        assert_eq!(of(&[], &["wasi:cli/run@0.2.6"]), Some(World::Command));
        assert_eq!(of(&[], &["wasi:cli/run@0.2.6", "wasi:http/incoming-handler@0.2.6"]), Some(World::Proxy));
        assert_eq!(of(&["wasi:http/types@0.3.1"], &["wasi:http/handler@0.3.1"]), Some(World::Service));
        assert_eq!(of(&["wasi:http/handler@0.3.0"], &["wasi:http/handler@0.3.0"]), Some(World::Middleware));
        for none in ["wasi:http/handler@0.3.0-rc-2025-09-16", "wasi:http/handler@0.4.0", "wasi:http/handler"] {
            assert_eq!(of(&[], &[none]), None, "{none}");
        }
    }
}
