//! `wasi:clocks`: real time.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use wasmtime::component::Linker;
use wasmtime::{Result, StoreContextMut};
use wasmtime_wasi::p2::bindings::clocks::wall_clock::Datetime;

use super::interface;
use super::io::open_timer;
use crate::state::State;

type Store<'a> = StoreContextMut<'a, State>;

/// Returns the time since some instant before the first call, in ns.
pub(super) fn monotonic_ns() -> u64 {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(BEGAN.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

pub(super) fn link(linker: &mut Linker<State>) -> Result<()> {
    let mut monotonic = linker.instance(&interface("clocks/monotonic-clock"))?;
    monotonic.func_wrap("now", |_, (): ()| Ok((monotonic_ns(),)))?;
    monotonic.func_wrap("resolution", |_, (): ()| Ok((1_u64,)))?;
    monotonic
        .func_wrap("subscribe-instant", |mut store: Store<'_>, (due_ns,): (u64,)| open_timer(&mut store, due_ns))?;
    monotonic.func_wrap("subscribe-duration", |mut store: Store<'_>, (wait_ns,): (u64,)| {
        open_timer(&mut store, monotonic_ns().saturating_add(wait_ns))
    })?;

    let mut wall = linker.instance(&interface("clocks/wall-clock"))?;
    wall.func_wrap("now", |_, (): ()| {
        // A clock before 1970 is shown as 1970: the type has no earlier.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok((Datetime { seconds: now.as_secs(), nanoseconds: now.subsec_nanos() },))
    })?;
    wall.func_wrap("resolution", |_, (): ()| Ok((Datetime { seconds: 0, nanoseconds: 1 },)))
}
