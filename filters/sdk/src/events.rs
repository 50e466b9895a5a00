//! Events for the operator: a log line of its own kind, and a count.

use serde::Serialize;

use crate::bindings::imports::lockgate::filter::events as host;

/// Emits an event with data, at most 16 KiB as JSON, and at most 16 events a request.
///
/// # Errors
///
/// The data cannot be written as JSON.
pub fn emit(name: &str, data: &impl Serialize) -> Result<(), serde_json::Error> {
    host::emit(name, &serde_json::to_string(data)?);
    Ok(())
}
