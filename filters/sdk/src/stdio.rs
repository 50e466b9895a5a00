//! What a filter prints: lines of the gateway's log, `info` for standard output and `warn` for standard error, where a
//! panic's message arrives.
//!
//! Rust's standard library prints by the C library's `write`, and looks for `RUST_BACKTRACE` by its `getenv`. The C
//! library's own ask the host for streams, terminals and an environment: nineteen imports for the sake of a message that
//! most filters never write, and every instance pays for each of them when it starts. The ones here take their place
//! when a component is linked. They open nothing, so that a filter may print in `configure` too.

use std::cell::RefCell;

use crate::bindings::imports::lockgate::filter::log::{Level, write as log};

/// What was printed since the last line break, on standard output and on standard error.
struct Unfinished {
    output: Vec<u8>,
    error: Vec<u8>,
}

thread_local! {
    static UNFINISHED: RefCell<Unfinished> = const { RefCell::new(Unfinished { output: Vec::new(), error: Vec::new() }) };
}

/// Ends a phase: what was printed without a line break at its end is a line, too.
pub(crate) fn end_lines() {
    UNFINISHED.with_borrow_mut(|Unfinished { output, error }| {
        for (level, rest) in [(Level::Info, output), (Level::Warn, error)] {
            if !rest.is_empty() {
                line(level, rest);
                rest.clear();
            }
        }
    });
}

#[cfg_attr(not(target_family = "wasm"), expect(dead_code, reason = "called by the symbols of a component only"))]
fn print(level: Level, printed: &[u8]) {
    UNFINISHED.with_borrow_mut(|Unfinished { output, error }| {
        let rest = if level == Level::Warn { error } else { output };
        for piece in printed.split_inclusive(|&byte| byte == b'\n') {
            match piece.strip_suffix(b"\n") {
                Some(whole) if rest.is_empty() => line(level, whole),
                // A message about memory that has run out must not ask for more.
                _ if rest.try_reserve(piece.len()).is_err() => {
                    line(level, rest);
                    line(level, piece);
                    rest.clear();
                }
                Some(end) => {
                    rest.extend_from_slice(end);
                    line(level, rest);
                    rest.clear();
                }
                None => rest.extend_from_slice(piece),
            }
        }
    });
}

fn line(level: Level, bytes: &[u8]) {
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    match std::str::from_utf8(bytes) {
        Ok(text) => log(level, text),
        Err(_) => log(level, &String::from_utf8_lossy(bytes)),
    }
}

#[cfg(target_family = "wasm")]
mod symbols {
    #![expect(unsafe_code, reason = "symbols of the C library, with the signatures that it declares them with")]

    use std::ffi::{c_char, c_int, c_void};
    use std::ptr;
    use std::slice;

    use super::{Level, print};

    /// `write(2)`. Only what the standard library opens by itself can be written to: there are no files and no sockets.
    #[unsafe(no_mangle)]
    extern "C" fn write(descriptor: c_int, bytes: *const c_void, length: usize) -> isize {
        let level = match descriptor {
            1 => Level::Info,
            2 => Level::Warn,
            _ => return -1,
        };
        if length > 0 {
            // SAFETY: whoever calls `write` promises that so many bytes can be read there.
            print(level, unsafe { slice::from_raw_parts(bytes.cast::<u8>(), length) });
        }
        isize::try_from(length).unwrap_or(isize::MAX)
    }

    /// `getenv(3)`: a filter's environment is empty.
    #[unsafe(no_mangle)]
    extern "C" fn getenv(_name: *const c_char) -> *mut c_char {
        ptr::null_mut()
    }
}
