//! `lockgate:filter/events`.

use wasmtime::component::{LinkerInstance, WasmStr};
use wasmtime::{Result, StoreContextMut};

use super::check_key;
use crate::state::State;

pub(super) fn link(linker: &mut LinkerInstance<'_, State>) -> Result<()> {
    linker.func_wrap("emit", |mut store: StoreContextMut<'_, State>, (name, data): (WasmStr, WasmStr)| {
        store.data().require_request("events")?;
        let name = name.to_str(&store)?.into_owned();
        check_key(&name)?;
        let data = data.to_str(&store)?.into_owned();
        store.data_mut().event(&name, &data);
        Ok(())
    })
}
