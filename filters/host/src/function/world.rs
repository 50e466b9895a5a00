//! The worlds that a function may be built for, told apart by what the component exports.

use wasmtime::Result;
use wasmtime::component::InstancePre;
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi_http::p2::bindings::ProxyPre;

use super::state::State;
use crate::error::LoadError;
use crate::link::{self, is_of_series};
use crate::shape::Shape;

/// What a handler exports.
const HANDLER: &str = "wasi:http/incoming-handler";
/// What a program exports.
const RUN: &str = "wasi:cli/run";

/// How a function is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum World {
    /// With a request, as `wasi:http` 0.2 has it.
    Handler,
    /// As a program, in the manner of CGI.
    Command,
}

impl World {
    /// Returns the world of a component; one that fits both is a handler.
    ///
    /// # Errors
    ///
    /// It fits neither.
    pub(super) fn of(shape: &Shape) -> Result<Self, LoadError> {
        let exports = |interface: &str| shape.exports.iter().any(|name| name.split('@').next() == Some(interface));
        let exports_ours = |interface: &str| {
            let mut of_interface = shape.exports.iter().filter(|name| name.starts_with(interface));
            of_interface.any(|name| is_of_series(name, link::WASI_SERIES))
        };
        if exports_ours(HANDLER) {
            return Ok(Self::Handler);
        }
        if exports_ours(RUN) {
            return Ok(Self::Command);
        }
        let hint = if exports("wasi:http/handler") {
            "; it is for `wasi:http` 0.3: build it for 0.2"
        } else if exports(RUN) {
            "; it is a command of WASI 0.3: build it for 0.2"
        } else if shape.exports.iter().any(|name| name.starts_with("lockgate:filter/")) {
            "; it is a filter: name it under `filters`"
        } else {
            "; build it for the world `wasi:http/proxy` or `wasi:cli/command`"
        };
        Err(LoadError::NoHandler { exports: shape.exports.clone(), hint })
    }

    /// Returns the world by its name in WIT.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Handler => "wasi:http/proxy@0.2",
            Self::Command => "wasi:cli/command@0.2",
        }
    }
}

/// A linked component, ready to be instantiated.
pub(super) enum Pre {
    Handler(ProxyPre<State>),
    Command(CommandPre<State>),
}

impl Pre {
    pub(super) fn new(world: World, pre: InstancePre<State>) -> Result<Self> {
        Ok(match world {
            World::Handler => Self::Handler(ProxyPre::new(pre)?),
            World::Command => Self::Command(CommandPre::new(pre)?),
        })
    }

    pub(super) const fn world(&self) -> World {
        match self {
            Self::Handler(_) => World::Handler,
            Self::Command(_) => World::Command,
        }
    }

    pub(super) fn instance_pre(&self) -> &InstancePre<State> {
        match self {
            Self::Handler(pre) => pre.instance_pre(),
            Self::Command(pre) => pre.instance_pre(),
        }
    }
}
