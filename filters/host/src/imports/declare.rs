//! `lockgate:filter/declare`: what a filter says about itself in `configure`.

use wasmtime::component::{ComponentType, Lift, LinkerInstance};
use wasmtime::{Result, StoreContextMut, format_err};

use crate::declare::{LabelDeclaration, MetricDeclaration, MetricKind};
use crate::filter::BodyMode;
use crate::state::State;

#[derive(Clone, Copy, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "made by lifting only")]
enum WireMode {
    #[component(name = "stream")]
    Stream,
    #[component(name = "buffer")]
    Buffer,
}

impl From<WireMode> for BodyMode {
    fn from(mode: WireMode) -> Self {
        match mode {
            WireMode::Stream => Self::Stream,
            WireMode::Buffer => Self::Buffer,
        }
    }
}

#[derive(ComponentType, Lift)]
#[component(record)]
struct WireLabel {
    name: String,
    values: Vec<String>,
}

impl From<WireLabel> for LabelDeclaration {
    fn from(WireLabel { name, values }: WireLabel) -> Self {
        Self { name, values }
    }
}

pub(super) fn link(linker: &mut LinkerInstance<'_, State>) -> Result<()> {
    linker.func_wrap("request-body", |mut store: StoreContextMut<'_, State>, (mode,): (WireMode,)| {
        store.data_mut().declarations()?.request_body = Some(mode.into());
        Ok(())
    })?;
    linker.func_wrap("response-body", |mut store: StoreContextMut<'_, State>, (mode,): (WireMode,)| {
        store.data_mut().declarations()?.response_body = Some(mode.into());
        Ok(())
    })?;
    linker.func_wrap(
        "counter",
        |store: StoreContextMut<'_, State>, (name, help, label): (String, String, Option<WireLabel>)| {
            declare(store, MetricDeclaration { name, help, label: label.map(Into::into), kind: MetricKind::Counter })
        },
    )?;
    linker.func_wrap(
        "histogram",
        |store: StoreContextMut<'_, State>,
         (name, help, label, buckets): (String, String, Option<WireLabel>, Vec<f64>)| {
            let kind = MetricKind::Histogram { buckets };
            declare(store, MetricDeclaration { name, help, label: label.map(Into::into), kind })
        },
    )
}

fn declare(mut store: StoreContextMut<'_, State>, metric: MetricDeclaration) -> Result<(u32,)> {
    let id = store.data_mut().declarations()?.metric(metric).map_err(|problem| format_err!("{problem}"))?;
    Ok((id,))
}
