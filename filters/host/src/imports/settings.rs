//! `lockgate:filter/settings`: the settings as text.

use wasmtime::component::LinkerInstance;
use wasmtime::{Result, StoreContextMut};

use crate::state::State;

pub(super) fn link(linker: &mut LinkerInstance<'_, State>) -> Result<()> {
    linker.func_wrap("text", |store: StoreContextMut<'_, State>, (): ()| Ok((store.data().shared.settings.clone(),)))
}
