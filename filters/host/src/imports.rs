//! The host's side of `lockgate:filter`: what filters import.
//!
//! Written against the linker directly rather than generated: a name or a value is then looked at where it lies in the
//! guest's memory, and copied only where it is kept.

mod context;
mod declare;
mod events;
mod key_value;
mod log;
mod metrics;
mod request;
mod response;
mod settings;

use wasmtime::component::Linker;
use wasmtime::{Result, bail};

use crate::headers::HeaderError;
use crate::state::State;

/// The result of a write to a header, as a guest sees it.
type Written = (Result<(), HeaderError>,);

/// Links all interfaces that the world `imports` has.
pub(crate) fn link(linker: &mut Linker<State>, shared_store: bool) -> Result<()> {
    declare::link(&mut linker.instance("lockgate:filter/declare@0.1.0")?)?;
    request::link(&mut linker.instance("lockgate:filter/request@0.1.0")?)?;
    response::link(&mut linker.instance("lockgate:filter/response@0.1.0")?)?;
    context::link(&mut linker.instance("lockgate:filter/context@0.1.0")?)?;
    settings::link(&mut linker.instance("lockgate:filter/settings@0.1.0")?)?;
    log::link(&mut linker.instance("lockgate:filter/log@0.1.0")?)?;
    metrics::link(&mut linker.instance("lockgate:filter/metrics@0.1.0")?)?;
    let mut key_value = linker.instance("lockgate:filter/key-value@0.1.0")?;
    if shared_store {
        key_value::link_shared(&mut key_value)?
    } else {
        key_value::link(&mut key_value)?
    }
    events::link(&mut linker.instance("lockgate:filter/events@0.1.0")?)?;
    Ok(())
}

fn values(headers: &http::HeaderMap, name: &str) -> Vec<Vec<u8>> {
    headers.get_all(name).iter().map(|value| value.as_bytes().to_vec()).collect()
}

fn all(headers: &http::HeaderMap) -> Vec<(String, Vec<u8>)> {
    headers.iter().map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())).collect()
}

/// Fails where a key is longer than any key needs to be.
fn check_key(key: &str) -> Result<()> {
    const KEY_BYTES_MAX: usize = 4 << 10;
    if key.len() > KEY_BYTES_MAX {
        bail!("a key of {} bytes; the limit is {KEY_BYTES_MAX}", key.len());
    }
    Ok(())
}
