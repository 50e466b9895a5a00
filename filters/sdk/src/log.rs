//! Log lines, which carry the filter's name, version, track and the request's id.
//!
//! At most 16 KiB a line and 64 lines a request; what is more is cut, and counted. What is printed is logged as well:
//! `println!` as [`info`], `eprintln!` and the message of a panic as [`warn`](warn()).

use crate::bindings::imports::lockgate::filter::log::{Level, write};

/// Writes a line that helps to find a fault in the filter.
pub fn debug(message: impl AsRef<str>) {
    write(Level::Debug, message.as_ref());
}

/// Writes a line about the ordinary course of things.
pub fn info(message: impl AsRef<str>) {
    write(Level::Info, message.as_ref());
}

/// Writes a line about something unexpected that the filter can live with.
pub fn warn(message: impl AsRef<str>) {
    write(Level::Warn, message.as_ref());
}

/// Writes a line about something that a person should look at.
pub fn error(message: impl AsRef<str>) {
    write(Level::Error, message.as_ref());
}
