//! `lockgate:filter/response`: a live view of the exchange's response.

use http::StatusCode;
use wasmtime::component::{LinkerInstance, WasmList, WasmStr};
use wasmtime::{Result, StoreContextMut};

use super::{Written, all, values};
use crate::headers::{self, HeaderError};
use crate::state::State;

pub(super) fn link(linker: &mut LinkerInstance<'_, State>) -> Result<()> {
    linker.func_wrap("status", |mut store: Store<'_>, (): ()| Ok((store.data_mut().response()?.0.status.as_u16(),)))?;
    linker.func_wrap("set-status", |mut store: Store<'_>, (status,): (u16,)| {
        let (response, sent) = store.data_mut().response()?;
        let wanted = StatusCode::from_u16(status).ok().filter(|status| (200..600).contains(&status.as_u16()));
        match wanted {
            // The framing was settled with the status: one that has a body cannot become one that has none.
            Some(wanted) if !sent && !is_bodiless(wanted) && !is_bodiless(response.status) => {
                response.status = wanted;
                Ok((true,))
            }
            _ => Ok((false,)),
        }
    })?;
    linker.func_wrap("header", |mut store: Store<'_>, (name,): (WasmStr,)| {
        store.data_mut().response()?;
        let name = name.to_str(&store)?;
        let response = store.data().exchange.response.as_ref();
        Ok((response.and_then(|response| response.headers.get(&*name)).map(|value| value.as_bytes().to_vec()),))
    })?;
    linker.func_wrap("header-values", |mut store: Store<'_>, (name,): (WasmStr,)| {
        store.data_mut().response()?;
        let name = name.to_str(&store)?;
        let response = store.data().exchange.response.as_ref();
        Ok((response.map(|response| values(&response.headers, &name)).unwrap_or_default(),))
    })?;
    linker.func_wrap("headers", |mut store: Store<'_>, (): ()| Ok((all(&store.data_mut().response()?.0.headers),)))?;
    linker.func_wrap("set-header", |store: Store<'_>, (name, value): (WasmStr, WasmList<u8>)| {
        write(store, &name, Some(&value), headers::set)
    })?;
    linker.func_wrap("append-header", |store: Store<'_>, (name, value): (WasmStr, WasmList<u8>)| {
        write(store, &name, Some(&value), headers::append)
    })?;
    linker.func_wrap("remove-header", |store: Store<'_>, (name,): (WasmStr,)| {
        write(store, &name, None, |headers, name, _| headers::remove(headers, name))
    })
}

type Store<'a> = StoreContextMut<'a, State>;

fn write(
    mut store: Store<'_>,
    name: &WasmStr,
    value: Option<&WasmList<u8>>,
    apply: fn(&mut http::HeaderMap, &str, &[u8]) -> Result<(), HeaderError>,
) -> Result<Written> {
    let (response, sent) = store.data_mut().response()?;
    if sent {
        return Ok((Err(HeaderError::AlreadySent),));
    }
    let mut headers = std::mem::take(&mut response.headers);
    let written = name.to_str(&store).map(|name| {
        let value = value.map_or(&[][..], |value| value.as_le_slice(&store));
        apply(&mut headers, &name, value)
    });
    store.data_mut().response()?.0.headers = headers;
    Ok((written?,))
}

fn is_bodiless(status: StatusCode) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}
