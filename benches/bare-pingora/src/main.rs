//! See the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    bare_pingora::main()
}
