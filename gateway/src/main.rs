//! `lockgate`: see [`lockgate::cli`].

use std::process::ExitCode;

/// Requests allocate a little on many threads, where it is faster than the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    lockgate::cli::main()
}
