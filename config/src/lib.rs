//! YAML text → meaning. This crate knows no network, no Wasmtime and no Pingora.
pub mod model;
pub mod problem;
pub mod units;
