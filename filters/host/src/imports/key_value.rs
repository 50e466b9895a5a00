//! `lockgate:filter/key-value`.

use std::time::{Duration, Instant};

use wasmtime::component::{LinkerInstance, WasmList, WasmStr};
use wasmtime::{Result, StoreContextMut};

use super::check_key;
use crate::state::State;

pub(super) fn link(linker: &mut LinkerInstance<'_, State>) -> Result<()> {
    // Not in `configure`: what it reads would be frozen into the artifact, and what it writes would depend on whether
    // the artifact was in the cache.
    linker.func_wrap("get", |store: StoreContextMut<'_, State>, (key,): (WasmStr,)| {
        let state = store.data();
        state.require_request("key-value")?;
        Ok((state.effects.get(&state.shared.key_value, &key.to_str(&store)?, Instant::now()),))
    })?;
    linker.func_wrap(
        "set",
        |store: StoreContextMut<'_, State>, (key, value, ttl_ms): (WasmStr, WasmList<u8>, Option<u64>)| {
            let State { shared, effects, .. } = store.data();
            store.data().require_request("key-value")?;
            let key = key.to_str(&store)?;
            check_key(&key)?;
            let ttl = ttl_ms.map(Duration::from_millis);
            let value = value.as_le_slice(&store);
            let bytes_max = shared.limits.key_value_bytes;
            Ok((effects.set(&shared.key_value, &key, value, ttl, Instant::now(), bytes_max),))
        },
    )?;
    linker.func_wrap("delete", |store: StoreContextMut<'_, State>, (key,): (WasmStr,)| {
        let state = store.data();
        state.require_request("key-value")?;
        state.effects.delete(&state.shared.key_value, &key.to_str(&store)?, Instant::now());
        Ok(())
    })?;
    linker.func_wrap(
        "increment",
        |store: StoreContextMut<'_, State>, (key, by, ttl_ms): (WasmStr, i64, Option<u64>)| {
            let State { shared, effects, .. } = store.data();
            store.data().require_request("key-value")?;
            let key = key.to_str(&store)?;
            check_key(&key)?;
            let ttl = ttl_ms.map(Duration::from_millis);
            let bytes_max = shared.limits.key_value_bytes;
            Ok((effects.increment(&shared.key_value, &key, by, ttl, Instant::now(), bytes_max),))
        },
    )
}
