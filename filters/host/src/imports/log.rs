//! `lockgate:filter/log`.

use wasmtime::component::{ComponentType, Lift, LinkerInstance, WasmStr};
use wasmtime::{Result, StoreContextMut};

use crate::sink::Level;
use crate::state::State;

#[derive(Clone, Copy, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "made by lifting only")]
enum WireLevel {
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
}

pub(super) fn link(linker: &mut LinkerInstance<'_, State>) -> Result<()> {
    linker.func_wrap("write", |mut store: StoreContextMut<'_, State>, (level, message): (WireLevel, WasmStr)| {
        let level = match level {
            WireLevel::Debug => Level::Debug,
            WireLevel::Info => Level::Info,
            WireLevel::Warn => Level::Warn,
            WireLevel::Error => Level::Error,
        };
        let message = message.to_str(&store)?.into_owned();
        store.data_mut().log(level, &message);
        Ok(())
    })
}
