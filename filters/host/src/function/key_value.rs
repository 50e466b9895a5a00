//! `wasi:keyvalue`, on the store that outlives the process. What is called a bucket there is one of its spaces.
//!
//! There are two drafts, and toolchains of both: 0.2.0-draft2, and 0.2.0-draft before it, whose cursors and sums have
//! other types and which has no handles to compare and swap. One implementation serves both.

mod asked;

use wasmtime::component::{ComponentType, Linker, LinkerInstance, Lower, Resource, ResourceType};
use wasmtime::{Result, StoreContextMut};

use self::asked::Asked;
use super::state::State;
use crate::error::CallErrorKind;
use crate::shape::Shape;
use crate::sink::Level;
use crate::store::{Space, StoreError};

const PACKAGE: &str = "wasi:keyvalue/";
const INTERFACES: [&str; 3] = ["store", "atomics", "batch"];
const DRAFTS: [&str; 2] = ["0.2.0-draft2", "0.2.0-draft"];

/// Bytes of values that an instance's handles to compare and swap hold.
const COMPARED_BYTES_MAX: usize = 4 << 20;

/// Returns whether an import is linked here.
pub(super) fn is_known(name: &str) -> bool {
    let named = name.strip_prefix(PACKAGE).and_then(|rest| rest.split_once('@'));
    named.is_some_and(|(interface, draft)| INTERFACES.contains(&interface) && DRAFTS.contains(&draft))
}

/// Returns whether the component would keep keys and values.
pub(super) fn is_wanted(shape: &Shape) -> bool {
    shape.imports.iter().any(|name| is_known(name))
}

#[derive(Debug, ComponentType, Lower)]
#[component(variant)]
enum Error {
    #[component(name = "no-such-store")]
    NoSuchStore,
    #[component(name = "access-denied")]
    AccessDenied,
    #[component(name = "other")]
    Other(String),
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::Other(error.to_string())
    }
}

#[derive(ComponentType, Lower)]
#[component(record)]
struct KeyResponse {
    keys: Vec<String>,
    cursor: Option<String>,
}

#[derive(ComponentType, Lower)]
#[component(record)]
struct EarlyKeyResponse {
    keys: Vec<String>,
    cursor: Option<u64>,
}

#[derive(ComponentType, Lower)]
#[component(variant)]
enum CasError {
    #[component(name = "store-error")]
    Store(Error),
    #[component(name = "cas-failed")]
    Failed(Resource<Cas>),
}

/// An open bucket.
struct Bucket(Space);

/// A value to compare with and swap.
struct Cas {
    space: Space,
    key: String,
    /// What was found last.
    found: Option<Vec<u8>>,
}

/// What an operation answers a guest.
type Answer<T> = std::result::Result<T, Error>;

/// Links both drafts.
pub(super) fn link(linker: &mut Linker<State>) -> Result<()> {
    for draft in DRAFTS {
        let mut store = linker.instance(&format!("{PACKAGE}store@{draft}"))?;
        link_store(&mut store)?;
        if draft == DRAFTS[0] {
            link_listing(&mut store)?
        } else {
            link_early_listing(&mut store)?
        }
        let mut batch = linker.instance(&format!("{PACKAGE}batch@{draft}"))?;
        link_batch(&mut batch)?;
        if draft == DRAFTS[0] {
            link_get_many(&mut batch)?
        } else {
            link_early_get_many(&mut batch)?
        }
        let mut atomics = linker.instance(&format!("{PACKAGE}atomics@{draft}"))?;
        if draft == DRAFTS[0] { link_atomics(&mut atomics)? } else { link_early_atomics(&mut atomics)? }
    }
    Ok(())
}

fn link_store(linker: &mut LinkerInstance<'_, State>) -> Result<()> {
    linker.resource("bucket", ResourceType::host::<Bucket>(), |mut store, index| {
        store.data_mut().table.delete(Resource::<Bucket>::new_own(index))?;
        Ok(())
    })?;
    linker.func_wrap("open", |mut store: StoreContextMut<'_, State>, (name,): (String,)| {
        Ok((match granted(store.data(), &name) {
            Ok(space) => Ok(store.data_mut().table.push(Bucket(space))?),
            Err(error) => Err(error),
        },))
    })?;
    linker.func_wrap_async(
        "[method]bucket.get",
        |store: StoreContextMut<'_, State>, (bucket, key): (Resource<Bucket>, String)| {
            Box::new(async move { Ok((Asked::bucket(&store, &bucket)?.get(key).await,)) })
        },
    )?;
    linker.func_wrap_async(
        "[method]bucket.set",
        |store: StoreContextMut<'_, State>, (bucket, key, value): (Resource<Bucket>, String, Vec<u8>)| {
            Box::new(async move { Ok((Asked::bucket(&store, &bucket)?.set_many(vec![(key, value)]).await,)) })
        },
    )?;
    linker.func_wrap_async(
        "[method]bucket.delete",
        |store: StoreContextMut<'_, State>, (bucket, key): (Resource<Bucket>, String)| {
            Box::new(async move { Ok((Asked::bucket(&store, &bucket)?.delete_many(vec![key]).await,)) })
        },
    )?;
    linker.func_wrap_async(
        "[method]bucket.exists",
        |store: StoreContextMut<'_, State>, (bucket, key): (Resource<Bucket>, String)| {
            Box::new(async move {
                let found = Asked::bucket(&store, &bucket)?.get(key).await;
                Ok((found.map(|value| value.is_some()),))
            })
        },
    )
}

fn link_listing(linker: &mut LinkerInstance<'_, State>) -> Result<()> {
    linker.func_wrap_async(
        "[method]bucket.list-keys",
        |store: StoreContextMut<'_, State>, (bucket, cursor): (Resource<Bucket>, Option<String>)| {
            Box::new(async move {
                let listed = Asked::bucket(&store, &bucket)?.list(cursor).await;
                Ok((listed.map(|(keys, cursor)| KeyResponse { keys, cursor }),))
            })
        },
    )
}

fn link_early_listing(linker: &mut LinkerInstance<'_, State>) -> Result<()> {
    linker.func_wrap_async(
        "[method]bucket.list-keys",
        |store: StoreContextMut<'_, State>, (bucket, cursor): (Resource<Bucket>, Option<u64>)| {
            Box::new(async move {
                // All keys are told at once, so that nothing comes after them.
                let listed = match cursor {
                    None => Asked::bucket(&store, &bucket)?.list_all().await,
                    Some(_) => Ok(Vec::new()),
                };
                Ok((listed.map(|keys| EarlyKeyResponse { keys, cursor: None }),))
            })
        },
    )
}

fn link_batch(linker: &mut LinkerInstance<'_, State>) -> Result<()> {
    linker.func_wrap_async(
        "set-many",
        |store: StoreContextMut<'_, State>, (bucket, entries): (Resource<Bucket>, Vec<(String, Vec<u8>)>)| {
            Box::new(async move { Ok((Asked::bucket(&store, &bucket)?.set_many(entries).await,)) })
        },
    )?;
    linker.func_wrap_async(
        "delete-many",
        |store: StoreContextMut<'_, State>, (bucket, keys): (Resource<Bucket>, Vec<String>)| {
            Box::new(async move { Ok((Asked::bucket(&store, &bucket)?.delete_many(keys).await,)) })
        },
    )
}

fn link_get_many(linker: &mut LinkerInstance<'_, State>) -> Result<()> {
    linker.func_wrap_async(
        "get-many",
        |store: StoreContextMut<'_, State>, (bucket, keys): (Resource<Bucket>, Vec<String>)| {
            Box::new(async move { Ok((Asked::bucket(&store, &bucket)?.get_many(keys).await,)) })
        },
    )
}

fn link_early_get_many(linker: &mut LinkerInstance<'_, State>) -> Result<()> {
    linker.func_wrap_async(
        "get-many",
        |store: StoreContextMut<'_, State>, (bucket, keys): (Resource<Bucket>, Vec<String>)| {
            Box::new(async move {
                let found = Asked::bucket(&store, &bucket)?.get_many(keys).await;
                let found: Answer<Vec<_>> =
                    found.map(|found| found.into_iter().map(|(key, value)| value.map(|value| (key, value))).collect());
                Ok((found,))
            })
        },
    )
}

fn link_atomics(linker: &mut LinkerInstance<'_, State>) -> Result<()> {
    linker.func_wrap_async(
        "increment",
        |store: StoreContextMut<'_, State>, (bucket, key, by): (Resource<Bucket>, String, i64)| {
            Box::new(async move { Ok((Asked::bucket(&store, &bucket)?.increment(key, by).await,)) })
        },
    )?;
    linker.resource("cas", ResourceType::host::<Cas>(), |mut store, index| {
        drop_cas(store.data_mut(), Resource::new_own(index)).map(drop)
    })?;
    linker.func_wrap_async(
        "[static]cas.new",
        |mut store: StoreContextMut<'_, State>, (bucket, key): (Resource<Bucket>, String)| {
            Box::new(async move {
                let asked = Asked::bucket(&store, &bucket)?;
                let found = asked.get(key.clone()).await;
                Ok((match found {
                    Ok(found) => make_cas(store.data_mut(), Cas { space: asked.space, key, found })?,
                    Err(error) => Err(error),
                },))
            })
        },
    )?;
    linker.func_wrap_async(
        "[method]cas.current",
        |mut store: StoreContextMut<'_, State>, (cas,): (Resource<Cas>,)| {
            Box::new(async move {
                let (asked, key) = of_cas(store.data(), &cas)?;
                Ok((match asked.get(key).await {
                    // What is told is what a swap is then compared with.
                    Ok(found) => hold(store.data_mut(), &cas, found.clone())?.map(|()| found),
                    Err(error) => Err(error),
                },))
            })
        },
    )?;
    linker.func_wrap_async("swap", |mut store: StoreContextMut<'_, State>, (cas, value): (Resource<Cas>, Vec<u8>)| {
        Box::new(async move {
            let (asked, key) = of_cas(store.data(), &cas)?;
            let Cas { found, .. } = drop_cas(store.data_mut(), cas)?;
            let swapped = asked.swap(&key, found, value).await;
            let again = match swapped {
                Ok(true) => return Ok((Ok(()),)),
                // Another one to try again with.
                Ok(false) => asked.get(key.clone()).await,
                Err(error) => Err(error),
            };
            Ok((Err(match again {
                Ok(found) => match make_cas(store.data_mut(), Cas { space: asked.space, key, found })? {
                    Ok(cas) => CasError::Failed(cas),
                    Err(error) => CasError::Store(error),
                },
                Err(error) => CasError::Store(error),
            }),))
        })
    })
}

fn link_early_atomics(linker: &mut LinkerInstance<'_, State>) -> Result<()> {
    linker.func_wrap_async(
        "increment",
        |store: StoreContextMut<'_, State>, (bucket, key, by): (Resource<Bucket>, String, u64)| {
            Box::new(async move {
                let asked = Asked::bucket(&store, &bucket)?;
                let sum = match i64::try_from(by) {
                    Ok(by) => asked.increment(key, by).await,
                    Err(_) => Err(Error::Other(format!("{by} is more than a number can be here"))),
                };
                let not_negative = |_| Error::Other("the sum is negative".to_owned());
                Ok((sum.and_then(|sum| u64::try_from(sum).map_err(not_negative)),))
            })
        },
    )
}

/// Returns the space that a guest opens by a name.
fn granted(state: &State, name: &str) -> Answer<Space> {
    // Those who know one bucket only name none.
    let name = if name.is_empty() { "default" } else { name };
    if let Some((_, space)) = state.turn.shared.spaces.iter().find(|(granted, _)| granted == name) {
        return Ok(space.clone());
    }
    let could_be = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    if !could_be {
        return Err(Error::NoSuchStore);
    }
    let problem = format!("it was denied the key-value bucket `{name}`: its `grants.key_value` does not name it");
    state.turn.log(Level::Warn, &problem);
    state.turn.refuse(CallErrorKind::Denied, problem);
    Err(Error::AccessDenied)
}

/// Returns what a handle to compare and swap is about.
fn of_cas(state: &State, cas: &Resource<Cas>) -> Result<(Asked, String)> {
    let cas = state.table.get(cas)?;
    Ok((Asked::of(state, &cas.space), cas.key.clone()))
}

fn make_cas(state: &mut State, mut cas: Cas) -> Result<Answer<Resource<Cas>>> {
    let found = cas.found.take();
    let handle = state.table.push(cas)?;
    Ok(match hold(state, &handle, found)? {
        Ok(()) => Ok(handle),
        Err(error) => {
            drop_cas(state, handle)?;
            Err(error)
        }
    })
}

/// Has a handle hold another value.
fn hold(state: &mut State, handle: &Resource<Cas>, found: Option<Vec<u8>>) -> Result<Answer<()>> {
    let length = |value: &Option<Vec<u8>>| value.as_ref().map_or(0, Vec::len);
    let cas = state.table.get_mut(handle)?;
    let bytes = state.compared_bytes - length(&cas.found) + length(&found);
    if bytes > COMPARED_BYTES_MAX {
        let problem = format!("values to compare with are {bytes} bytes together; the limit is {COMPARED_BYTES_MAX}");
        return Ok(Err(Error::Other(problem)));
    }
    state.compared_bytes = bytes;
    cas.found = found;
    Ok(Ok(()))
}

fn drop_cas(state: &mut State, handle: Resource<Cas>) -> Result<Cas> {
    let cas = state.table.delete(handle)?;
    state.compared_bytes -= cas.found.as_ref().map_or(0, Vec::len);
    Ok(cas)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_drafts_are_known_and_nothing_beside_them() {
        for known in [
            "wasi:keyvalue/store@0.2.0-draft2",
            "wasi:keyvalue/batch@0.2.0-draft2",
            "wasi:keyvalue/atomics@0.2.0-draft",
        ] {
            assert!(is_known(known), "{known}");
        }
        for other in ["wasi:keyvalue/store", "wasi:keyvalue/store@0.2.0", "wasi:keyvalue/watcher@0.2.0-draft2"] {
            assert!(!is_known(other), "{other}");
        }
    }
}
