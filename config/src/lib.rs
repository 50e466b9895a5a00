//! YAML text → meaning. This crate knows no network, no Wasmtime and no Pingora.
//!
//! A configuration is read in three steps, each of which collects all the problems it finds: the text becomes a *tree*
//! of nodes that know their places, with variables expanded; the tree becomes the *file*, what was written, key by key;
//! the file is *resolved* into the [`model`], what is meant.

mod decode;
mod file;
pub mod model;
pub mod problem;
pub mod text;
mod tree;
pub mod units;
