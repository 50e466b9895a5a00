//! `lockgate:filter/metrics`: only what was declared can be counted, so no request can make a series.

use wasmtime::component::LinkerInstance;
use wasmtime::{Result, StoreContextMut, bail};

use crate::declare::is_declared;
use crate::state::State;

pub(super) fn link(linker: &mut LinkerInstance<'_, State>) -> Result<()> {
    linker.func_wrap("add", |store: StoreContextMut<'_, State>, (id, label, by): (u32, u32, u64)| {
        let state = store.data();
        state.require_request("metrics")?;
        if !is_declared(&state.shared.metrics, id, label, false) {
            bail!("no counter {id} with a label value {label} was declared");
        }
        if let Some(sink) = state.effects.sink(&state.shared) {
            sink.add(id, label, by);
        }
        Ok(())
    })?;
    linker.func_wrap("observe", |store: StoreContextMut<'_, State>, (id, label, value): (u32, u32, f64)| {
        let state = store.data();
        state.require_request("metrics")?;
        if !is_declared(&state.shared.metrics, id, label, true) {
            bail!("no histogram {id} with a label value {label} was declared");
        }
        // One value that is no number would spoil the histogram's sum for good.
        if value.is_finite()
            && let Some(sink) = state.effects.sink(&state.shared)
        {
            sink.observe(id, label, value);
        }
        Ok(())
    })
}
