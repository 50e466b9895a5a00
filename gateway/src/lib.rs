//! Lockgate, an edge gateway: every plugin is a sandboxed component, and every change of a plugin is a canary.
//!
//! Two halves. The **data plane** ([`proxy`]) runs for each request and reads one immutable
//! [`Snapshot`](control::snapshot::Snapshot); the **control plane** ([`control`]) builds snapshots and swaps them.

pub mod admin;
pub mod cli;
pub mod control;
pub mod folder;
pub mod metrics;
pub mod proxy;
pub mod seeing;
pub mod server;
pub mod shadow;
pub mod tls;
pub mod track;
