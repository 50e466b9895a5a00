//! `lockgate:filter/context`: the request's bag.

use wasmtime::component::{LinkerInstance, WasmList, WasmStr};
use wasmtime::{Result, StoreContextMut};

use super::check_key;
use crate::state::State;

pub(super) fn link(linker: &mut LinkerInstance<'_, State>) -> Result<()> {
    linker.func_wrap("get", |store: StoreContextMut<'_, State>, (key,): (WasmStr,)| {
        store.data().require_request("context")?;
        let key = key.to_str(&store)?;
        Ok((store.data().exchange.context.get(&key).map(<[u8]>::to_vec),))
    })?;
    linker.func_wrap("set", |mut store: StoreContextMut<'_, State>, (key, value): (WasmStr, WasmList<u8>)| {
        store.data().require_request("context")?;
        // Taken out while the guest's memory is looked at, which the same store lends.
        let mut bag = std::mem::take(&mut store.data_mut().exchange.context);
        let set = key.to_str(&store).and_then(|key| {
            check_key(&key)?;
            Ok(bag.set(&key, value.as_le_slice(&store)))
        });
        store.data_mut().exchange.context = bag;
        Ok((set?,))
    })?;
    linker.func_wrap("remove", |mut store: StoreContextMut<'_, State>, (key,): (WasmStr,)| {
        store.data().require_request("context")?;
        let mut bag = std::mem::take(&mut store.data_mut().exchange.context);
        let removed = key.to_str(&store).map(|key| bag.remove(&key));
        store.data_mut().exchange.context = bag;
        removed
    })
}
