//! `lockgate:filter/key-value`.

use std::time::{Duration, Instant};

use wasmtime::component::{LinkerInstance, WasmList, WasmStr};
use wasmtime::{Result, StoreContextMut};

use super::check_key;
use crate::state::State;
use crate::store::Space;

/// Links the store in the process's memory, which nobody waits for.
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
            let quota = shared.limits.quota();
            Ok((effects.set(&shared.key_value, &key, value, ttl, Instant::now(), quota),))
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
            let quota = shared.limits.quota();
            Ok((effects.increment(&shared.key_value, &key, by, ttl, Instant::now(), quota),))
        },
    )
}

/// Links the store that filters share, which is waited for. Where it is not to be had the call fails: to say that a key is
/// not there would be another answer.
pub(super) fn link_shared(linker: &mut LinkerInstance<'_, State>) -> Result<()> {
    linker.func_wrap_async("get", |store: StoreContextMut<'_, State>, (key,): (WasmStr,)| {
        Box::new(async move {
            let (space, key) = begin(&store, &key)?;
            if let Some(value) = store.data().effects.overlaid(&key) {
                return Ok((value,));
            }
            let found = space.get(&key).await?;
            store.data().effects.note_value(&key, &found);
            Ok((found,))
        })
    })?;
    linker.func_wrap_async(
        "set",
        |store: StoreContextMut<'_, State>, (key, value, ttl_ms): (WasmStr, WasmList<u8>, Option<u64>)| {
            Box::new(async move {
                let (space, key) = begin(&store, &key)?;
                check_key(&key)?;
                let State { shared, effects, .. } = store.data();
                let quota = shared.limits.quota();
                let value = value.as_le_slice(&store).to_vec();
                if let Some(fits) = effects.keep_value(&key, &value, quota) {
                    return Ok((fits,));
                }
                if store.data().effects.has_yet_to_note(&key) {
                    let found = space.get(&key).await?;
                    store.data().effects.note_value(&key, &found);
                }
                let entries = vec![(key.into(), value)];
                Ok((space.set(entries, ttl_ms.map(Duration::from_millis), quota).await?,))
            })
        },
    )?;
    linker.func_wrap_async("delete", |store: StoreContextMut<'_, State>, (key,): (WasmStr,)| {
        Box::new(async move {
            let (space, key) = begin(&store, &key)?;
            if store.data().effects.keep_deletion(&key) {
                return Ok(());
            }
            if store.data().effects.has_yet_to_note(&key) {
                let found = space.get(&key).await?;
                store.data().effects.note_value(&key, &found);
            }
            Ok(space.delete(vec![key.into()]).await?)
        })
    })?;
    linker.func_wrap_async(
        "increment",
        |store: StoreContextMut<'_, State>, (key, by, ttl_ms): (WasmStr, i64, Option<u64>)| {
            Box::new(async move {
                let (space, key) = begin(&store, &key)?;
                check_key(&key)?;
                let quota = store.data().shared.limits.quota();
                if store.data().effects.is_private() {
                    if let Some(sum) = store.data().effects.add_to_kept(&key, by) {
                        return Ok((Some(sum),));
                    }
                    let sum = space.counter(&key).await?.unwrap_or(0).saturating_add(by);
                    return Ok((store.data().effects.keep_counter(&key, sum, quota).then_some(sum),));
                }
                let sum = space.increment(&key, by, ttl_ms.map(Duration::from_millis), quota).await?;
                if let Some(sum) = sum {
                    store.data().effects.note_counter(&key, sum.saturating_sub(by));
                }
                Ok((sum,))
            })
        },
    )
}

/// Returns the filter's space, and the key, copied: the guest's memory is not looked at across a wait.
fn begin(store: &StoreContextMut<'_, State>, key: &WasmStr) -> Result<(Space, String)> {
    let state = store.data();
    state.require_request("key-value")?;
    let space = state.shared.space.clone();
    let space = space.ok_or_else(|| wasmtime::Error::msg("the filter has no space in the key-value store"))?;
    Ok((space, key.to_str(store)?.into_owned()))
}
