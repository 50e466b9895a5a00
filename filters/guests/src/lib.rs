//! Builds the guests that tests, benches and the demo need, and says where they are.
//!
//! A *guest* is a WebAssembly component from `filters/library` or `filters/fixtures`, and with it the few files that a
//! gateway has to refuse. A test names a guest and never a command:
//!
//! ```no_run
//! let component = lockgate_guests::Guest::Tag.path();
//! ```

// Not a build script: that would have every `cargo check` of a crate that has tests look after another workspace, and
// would hide what it prints. The first test that asks for a guest pays instead, and cargo itself knows what is fresh.

mod build;
mod guest;

pub use build::BuildError;
pub use guest::Guest;

/// Builds what is not up to date. At most once in a process, however many guests are asked for afterwards.
///
/// # Errors
///
/// Cargo cannot be run, or the guests do not compile; the text is cargo's own.
pub fn build() -> Result<(), BuildError> {
    build::once().map(|_| ())
}
