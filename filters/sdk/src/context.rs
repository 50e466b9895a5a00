//! Values that live as long as the request, shared by all filters of its chain and all its phases.
//!
//! Keys are shared, too: begin yours with the name of what agrees on them (`auth.user`).

use crate::bindings::imports::lockgate::filter::context as host;

/// The value under a key.
pub fn get(key: &str) -> Option<Vec<u8>> {
    host::get(key)
}

/// Puts a value under a key. False, and nothing changed, where keys and values would together be larger than 64 KiB.
#[must_use = "the gateway may have refused"]
pub fn set(key: &str, value: impl AsRef<[u8]>) -> bool {
    host::set(key, value.as_ref())
}

/// Removes what is under a key.
pub fn remove(key: &str) {
    host::remove(key);
}
