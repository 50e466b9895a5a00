//! A key-value store: one for each filter name, shared by its versions and by all requests, bounded by the operator
//! (`limits.key_value`, `limits.key_value_entries`). It is in the gateway's memory and lost at a restart; or, where the
//! operator grants a space for it (`grants.key_value`), it outlives the process and may be shared by several gateways.
//! Then a call may wait; where the store is not to be had, it ends the filter's.

use std::time::Duration;

use crate::bindings::imports::lockgate::filter::key_value as host;

/// The value under a key, unless its time is over.
pub fn get(key: &str) -> Option<Vec<u8>> {
    host::get(key)
}

/// Puts a value under a key, for `time_to_live` from now (none: for good). False, and nothing changed, where it does
/// not fit.
#[must_use = "the store may be full"]
pub fn set(key: &str, value: impl AsRef<[u8]>, time_to_live: Option<Duration>) -> bool {
    host::set(key, value.as_ref(), time_to_live.map(milliseconds))
}

/// Deletes what is under a key.
pub fn delete(key: &str) {
    host::delete(key);
}

/// Adds to a counter, atomically, and returns its new value; none where it does not fit. `time_to_live` counts from
/// the counter's first use (none: for good). Counters and values are separate.
pub fn increment(key: &str, by: i64, time_to_live: Option<Duration>) -> Option<i64> {
    host::increment(key, by, time_to_live.map(milliseconds))
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
