//! `lockgate:filter/request`: a live view of the exchange's request.

use http::uri::PathAndQuery;
use http::{Uri, header};
use wasmtime::component::{LinkerInstance, WasmList, WasmStr};
use wasmtime::{Result, StoreContextMut};

use super::{Written, all, values};
use crate::exchange::Exchange;
use crate::headers::{self, HeaderError};
use crate::state::State;

/// Path and query together, in bytes: what common servers take in a request line.
const TARGET_BYTES_MAX: usize = 8 << 10;

pub(super) fn link(linker: &mut LinkerInstance<'_, State>) -> Result<()> {
    linker.func_wrap("method", |mut store: Store<'_>, (): ()| {
        Ok((store.data_mut().request()?.request.method.as_str().to_owned(),))
    })?;
    linker.func_wrap("scheme", |mut store: Store<'_>, (): ()| Ok((store.data_mut().request()?.scheme.to_owned(),)))?;
    linker.func_wrap("authority", |mut store: Store<'_>, (): ()| Ok((authority(store.data_mut().request()?),)))?;
    linker.func_wrap("path", |mut store: Store<'_>, (): ()| {
        Ok((store.data_mut().request()?.request.uri.path().to_owned(),))
    })?;
    linker.func_wrap("query", |mut store: Store<'_>, (): ()| {
        Ok((store.data_mut().request()?.request.uri.query().map(str::to_owned),))
    })?;
    linker.func_wrap("set-path-and-query", |mut store: Store<'_>, (target,): (WasmStr,)| {
        let target = parse_target(&target.to_str(&store)?);
        let exchange = store.data_mut().request()?;
        match target {
            Some(target) if !exchange.request_sent => {
                exchange.request.uri = Uri::from(target);
                Ok((true,))
            }
            _ => Ok((false,)),
        }
    })?;
    linker.func_wrap("header", |mut store: Store<'_>, (name,): (WasmStr,)| {
        store.data_mut().request()?;
        let name = name.to_str(&store)?;
        let value = store.data().exchange.request.headers.get(&*name).map(|value| value.as_bytes().to_vec());
        Ok((value,))
    })?;
    linker.func_wrap("header-values", |mut store: Store<'_>, (name,): (WasmStr,)| {
        store.data_mut().request()?;
        let name = name.to_str(&store)?;
        Ok((values(&store.data().exchange.request.headers, &name),))
    })?;
    linker.func_wrap("headers", |mut store: Store<'_>, (): ()| {
        Ok((all(&store.data_mut().request()?.request.headers),))
    })?;
    linker.func_wrap("set-header", |store: Store<'_>, (name, value): (WasmStr, WasmList<u8>)| {
        write(store, &name, Some(&value), headers::set)
    })?;
    linker.func_wrap("append-header", |store: Store<'_>, (name, value): (WasmStr, WasmList<u8>)| {
        write(store, &name, Some(&value), headers::append)
    })?;
    linker.func_wrap("remove-header", |store: Store<'_>, (name,): (WasmStr,)| {
        write(store, &name, None, |headers, name, _| headers::remove(headers, name))
    })?;
    linker.func_wrap("client-address", |mut store: Store<'_>, (): ()| {
        Ok((store.data_mut().request()?.client.to_string(),))
    })?;
    linker.func_wrap("id", |mut store: Store<'_>, (): ()| Ok((String::from(&*store.data_mut().request()?.id),)))?;
    linker
        .func_wrap("route", |mut store: Store<'_>, (): ()| Ok((String::from(&*store.data_mut().request()?.route),)))?;
    linker.func_wrap("set-upstream", |mut store: Store<'_>, (name,): (WasmStr,)| {
        store.data_mut().request()?;
        let name = name.to_str(&store)?;
        let found = store.data().exchange.upstreams.iter().position(|upstream| **upstream == *name);
        let exchange = &mut store.data_mut().exchange;
        match found {
            Some(upstream) if !exchange.request_sent => {
                exchange.upstream = upstream;
                Ok((true,))
            }
            _ => Ok((false,)),
        }
    })
}

type Store<'a> = StoreContextMut<'a, State>;

fn write(
    mut store: Store<'_>,
    name: &WasmStr,
    value: Option<&WasmList<u8>>,
    apply: fn(&mut http::HeaderMap, &str, &[u8]) -> Result<(), HeaderError>,
) -> Result<Written> {
    if store.data_mut().request()?.request_sent {
        return Ok((Err(HeaderError::AlreadySent),));
    }
    // Taken out while the guest's memory is looked at, which the same store lends.
    let mut headers = std::mem::take(&mut store.data_mut().exchange.request.headers);
    let written = name.to_str(&store).map(|name| {
        let value = value.map_or(&[][..], |value| value.as_le_slice(&store));
        apply(&mut headers, &name, value)
    });
    store.data_mut().exchange.request.headers = headers;
    Ok((written?,))
}

fn authority(exchange: &Exchange) -> String {
    let host = exchange.request.headers.get(header::HOST);
    match host.map(|host| String::from_utf8_lossy(host.as_bytes())) {
        Some(host) => host.into_owned(),
        None => exchange.request.uri.authority().map(ToString::to_string).unwrap_or_default(),
    }
}

/// Returns a target in origin form, without a fragment, in visible ASCII.
fn parse_target(target: &str) -> Option<PathAndQuery> {
    let valid = target.starts_with('/')
        && target.len() <= TARGET_BYTES_MAX
        && target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if valid { PathAndQuery::try_from(target).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_targets_in_origin_form_are_taken() {
        for target in ["/", "/a/b?c=d", "/a?b?c", "/%20", "/a;b"] {
            assert_eq!(parse_target(target).expect(target).as_str(), target);
        }
        for target in ["", "a", "*", "http://evil/", "/a b", "/a\r\nx: y", "/a#b", "/caf\u{e9}", &"/a".repeat(5_000)] {
            assert_eq!(parse_target(target), None, "{target:.40}");
        }
    }
}
