//! `wasi:io`, and the standard streams. Everything is ready at all times, but for timers.
//!
//! A guest that waits for a timer sleeps on the proxy's thread, and no longer than to the end of its deadline: that
//! takes no more from others than the loop that it could run instead, and a library's short sleep does no harm.

use std::time::{Duration, Instant};

use wasmtime::component::{ComponentType, Lift, Linker, LinkerInstance, Lower, Resource, ResourceType, WasmList};
use wasmtime::{Result, StoreContextMut, Trap, bail};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, DynPollable, IoError};

use super::clocks::monotonic_ns;
use super::interface;
use crate::sink::Level;
use crate::state::State;

// Numbers far above those of the resource table, which belongs to `wasi:http` on this lane.
const STDIN: u32 = u32::MAX;
const STDOUT: u32 = u32::MAX - 1;
const STDERR: u32 = u32::MAX - 2;
const ALWAYS_READY: u32 = u32::MAX - 3;
const FIRST_TIMER: u32 = 1 << 31;

/// Bytes that one write may have; a guest asks before it writes.
const WRITE_BYTES_MAX: u64 = 64 << 10;

#[derive(ComponentType, Lift, Lower)]
#[component(variant)]
enum StreamError {
    #[component(name = "last-operation-failed")]
    // Part of the type; nothing here fails but by being closed.
    LastOperationFailed(Resource<IoError>),
    #[component(name = "closed")]
    Closed,
}

type Store<'a> = StoreContextMut<'a, State>;
type Streamed<T> = Result<(Result<T, StreamError>,)>;

pub(super) fn link(linker: &mut Linker<State>) -> Result<()> {
    let mut error = linker.instance(&interface("io/error"))?;
    error.resource("error", ResourceType::host::<IoError>(), |_, _| Ok(()))?;
    link_poll(&mut linker.instance(&interface("io/poll"))?)?;
    let mut streams = linker.instance(&interface("io/streams"))?;
    link_input(&mut streams)?;
    link_output(&mut streams)?;
    let mut stdin = linker.instance(&interface("cli/stdin"))?;
    stdin.func_wrap("get-stdin", |mut store: Store<'_>, (): ()| Ok((open::<DynInputStream>(&mut store, STDIN),)))?;
    let mut stdout = linker.instance(&interface("cli/stdout"))?;
    stdout
        .func_wrap("get-stdout", |mut store: Store<'_>, (): ()| Ok((open::<DynOutputStream>(&mut store, STDOUT),)))?;
    let mut stderr = linker.instance(&interface("cli/stderr"))?;
    stderr.func_wrap("get-stderr", |mut store: Store<'_>, (): ()| Ok((open::<DynOutputStream>(&mut store, STDERR),)))
}

/// Hands out a handle to something that always exists.
fn open<T: 'static>(store: &mut Store<'_>, number: u32) -> Resource<T> {
    store.data_mut().stdio.opened();
    Resource::new_own(number)
}

/// Returns a pollable that becomes ready at an instant of the monotonic clock.
pub(super) fn open_timer(store: &mut Store<'_>, due_ns: u64) -> Result<(Resource<DynPollable>,)> {
    match store.data_mut().stdio.add_timer(due_ns) {
        Some(number) => Ok((Resource::new_own(FIRST_TIMER + number),)),
        None => bail!("the filter holds too many timers"),
    }
}

fn link_poll(linker: &mut LinkerInstance<'_, State>) -> Result<()> {
    linker.resource("pollable", ResourceType::host::<DynPollable>(), |mut store, number| {
        let stdio = &mut store.data_mut().stdio;
        match number {
            ALWAYS_READY => stdio.closed(),
            _ => stdio.remove_timer(number - FIRST_TIMER.min(number)),
        }
        Ok(())
    })?;
    linker.func_wrap("[method]pollable.ready", |store: Store<'_>, (pollable,): (Resource<DynPollable>,)| {
        Ok((is_ready(store.data(), &pollable),))
    })?;
    linker.func_wrap("[method]pollable.block", |store: Store<'_>, (pollable,): (Resource<DynPollable>,)| {
        wait(store.data(), &[pollable])
    })?;
    linker.func_wrap("poll", |store: Store<'_>, (pollables,): (Vec<Resource<DynPollable>>,)| {
        if pollables.is_empty() {
            bail!("`wasi:io/poll#poll` was called with nothing to wait for");
        }
        wait(store.data(), &pollables)?;
        let ready = (0..).zip(&pollables).filter(|(_, pollable)| is_ready(store.data(), pollable));
        Ok((ready.map(|(at, _)| at).collect::<Vec<u32>>(),))
    })
}

/// Returns when a pollable is ready, on the monotonic clock; none where there is no such pollable.
fn due_ns(state: &State, pollable: &Resource<DynPollable>) -> Option<u64> {
    match pollable.rep() {
        ALWAYS_READY => Some(0),
        number => number.checked_sub(FIRST_TIMER).and_then(|number| state.stdio.timer(number)),
    }
}

fn is_ready(state: &State, pollable: &Resource<DynPollable>) -> bool {
    due_ns(state, pollable).is_some_and(|due_ns| due_ns <= monotonic_ns())
}

/// Sleeps until one of the pollables is ready, or the call's deadline has passed.
fn wait(state: &State, pollables: &[Resource<DynPollable>]) -> Result<()> {
    let due = pollables.iter().filter_map(|pollable| due_ns(state, pollable)).min();
    let Some(due_ns) = due else {
        bail!("the filter waits for what can never be ready");
    };
    let wait = Duration::from_nanos(due_ns.saturating_sub(monotonic_ns()));
    let left = state.deadline.saturating_duration_since(Instant::now());
    std::thread::sleep(wait.min(left));
    if wait > left {
        return Err(Trap::Interrupt.into());
    }
    Ok(())
}

/// Standard input is empty.
fn link_input(linker: &mut LinkerInstance<'_, State>) -> Result<()> {
    linker.resource("input-stream", ResourceType::host::<DynInputStream>(), |mut store, _| {
        store.data_mut().stdio.closed();
        Ok(())
    })?;
    for name in ["[method]input-stream.read", "[method]input-stream.blocking-read"] {
        linker.func_wrap(name, |_: Store<'_>, (_, _): (Resource<DynInputStream>, u64)| -> Streamed<Vec<u8>> {
            Ok((Err(StreamError::Closed),))
        })?;
    }
    for name in ["[method]input-stream.skip", "[method]input-stream.blocking-skip"] {
        linker.func_wrap(name, |_: Store<'_>, (_, _): (Resource<DynInputStream>, u64)| -> Streamed<u64> {
            Ok((Err(StreamError::Closed),))
        })?;
    }
    linker.func_wrap("[method]input-stream.subscribe", |mut store: Store<'_>, (_,): (Resource<DynInputStream>,)| {
        Ok((open::<DynPollable>(&mut store, ALWAYS_READY),))
    })
}

/// Standard output and error are logged. Any other output stream is the body of a request that will be denied.
fn link_output(linker: &mut LinkerInstance<'_, State>) -> Result<()> {
    linker.resource("output-stream", ResourceType::host::<DynOutputStream>(), |mut store, number| {
        match number {
            STDOUT | STDERR => store.data_mut().stdio.closed(),
            _ => {
                store.data_mut().table.delete(Resource::<DynOutputStream>::new_own(number))?;
            }
        }
        Ok(())
    })?;
    linker.func_wrap("[method]output-stream.check-write", |_: Store<'_>, (stream,): (Output,)| -> Streamed<u64> {
        Ok((level(&stream).map(|_| WRITE_BYTES_MAX),))
    })?;
    for name in ["[method]output-stream.write", "[method]output-stream.blocking-write-and-flush"] {
        linker.func_wrap(name, |mut store: Store<'_>, (stream, bytes): (Output, WasmList<u8>)| -> Streamed<()> {
            let level = match level(&stream) {
                Ok(level) => level,
                Err(closed) => return Ok((Err(closed),)),
            };
            if bytes.len() as u64 > WRITE_BYTES_MAX {
                bail!("{} bytes were written where {WRITE_BYTES_MAX} were permitted", bytes.len());
            }
            let bytes = bytes.as_le_slice(&store).to_vec();
            store.data_mut().print(level, &bytes);
            Ok((Ok(()),))
        })?;
    }
    for name in ["[method]output-stream.flush", "[method]output-stream.blocking-flush"] {
        linker.func_wrap(name, |_: Store<'_>, (stream,): (Output,)| -> Streamed<()> {
            Ok((level(&stream).map(|_| ()),))
        })?;
    }
    for name in ["[method]output-stream.write-zeroes", "[method]output-stream.blocking-write-zeroes-and-flush"] {
        linker.func_wrap(name, |_: Store<'_>, (stream, _): (Output, u64)| -> Streamed<()> {
            Ok((level(&stream).map(|_| ()),))
        })?;
    }
    for name in ["[method]output-stream.splice", "[method]output-stream.blocking-splice"] {
        linker.func_wrap(
            name,
            |_: Store<'_>, (_, _, _): (Output, Resource<DynInputStream>, u64)| -> Streamed<u64> {
                Ok((Err(StreamError::Closed),))
            },
        )?;
    }
    linker.func_wrap("[method]output-stream.subscribe", |mut store: Store<'_>, (_,): (Output,)| {
        Ok((open::<DynPollable>(&mut store, ALWAYS_READY),))
    })
}

type Output = Resource<DynOutputStream>;

fn level(stream: &Output) -> Result<Level, StreamError> {
    match stream.rep() {
        STDOUT => Ok(Level::Info),
        STDERR => Ok(Level::Warn),
        _ => Err(StreamError::Closed),
    }
}
