//! What a function is told and what it says: `wasi:config` and `wasi:logging`.
//!
//! Both are drafts whose versions differ in their names alone, so that they are linked under whatever name a component
//! has for them.

use wasmtime::component::{ComponentType, Lift, Linker, Lower, WasmStr};
use wasmtime::{Result, StoreContextMut};

use super::state::State;
use crate::shape::Shape;
use crate::sink::Level;

/// `runtime` is what `store` was called before.
const CONFIG: [&str; 2] = ["wasi:config/store@0.2.0-", "wasi:config/runtime@0.2.0-"];
const LOGGING: &str = "wasi:logging/logging";

fn is_config(name: &str) -> bool {
    CONFIG.iter().any(|series| name.starts_with(series))
}

fn is_logging(name: &str) -> bool {
    let version = name.strip_prefix(LOGGING);
    version.is_some_and(|version| version.is_empty() || version.starts_with("@0.1.0"))
}

/// Returns whether an import is linked here.
pub(super) fn is_known(name: &str) -> bool {
    is_config(name) || is_logging(name)
}

#[derive(ComponentType, Lower)]
#[component(variant)]
#[expect(dead_code, reason = "the interface has them, and nothing here can fail")]
enum ConfigError {
    #[component(name = "upstream")]
    Upstream(String),
    #[component(name = "io")]
    Io(String),
}

#[derive(Clone, Copy, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "made by lifting only")]
enum Severity {
    #[component(name = "trace")]
    Trace,
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
    #[component(name = "critical")]
    Critical,
}

/// Links what of it a component imports.
pub(super) fn link(linker: &mut Linker<State>, shape: &Shape) -> Result<()> {
    for name in shape.imports.iter().filter(|name| is_config(name)) {
        let mut config = linker.instance(name)?;
        config.func_wrap("get", |store: StoreContextMut<'_, State>, (key,): (WasmStr,)| {
            let key = key.to_str(&store)?;
            let told = store.data().turn.shared.config.iter().find(|(name, _)| *name == *key);
            Ok((Ok::<_, ConfigError>(told.map(|(_, value)| value.clone())),))
        })?;
        config.func_wrap("get-all", |store: StoreContextMut<'_, State>, (): ()| {
            Ok((Ok::<_, ConfigError>(store.data().turn.shared.config.clone()),))
        })?;
    }
    for name in shape.imports.iter().filter(|name| is_logging(name)) {
        linker.instance(name)?.func_wrap(
            "log",
            |store: StoreContextMut<'_, State>, (severity, context, message): (Severity, WasmStr, WasmStr)| {
                let level = match severity {
                    Severity::Trace | Severity::Debug => Level::Debug,
                    Severity::Info => Level::Info,
                    Severity::Warn => Level::Warn,
                    Severity::Error | Severity::Critical => Level::Error,
                };
                let (context, message) = (context.to_str(&store)?, message.to_str(&store)?);
                let turn = &store.data().turn;
                if context.is_empty() {
                    turn.log(level, &message);
                } else {
                    turn.log(level, &format!("{context}: {message}"));
                }
                Ok(())
            },
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts_are_known_by_their_names() {
        for known in [
            "wasi:config/store@0.2.0-rc.1",
            "wasi:config/store@0.2.0-draft-2024-09-27",
            "wasi:config/runtime@0.2.0-draft",
            "wasi:logging/logging",
            "wasi:logging/logging@0.1.0-draft",
        ] {
            assert!(is_known(known), "{known}");
        }
        for other in
            ["wasi:config/store@0.3.0", "wasi:config/store", "wasi:logging/loggings", "wasi:logging/logging@1.0.0"]
        {
            assert!(!is_known(other), "{other}");
        }
    }
}
