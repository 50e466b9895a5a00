//! Micro-benchmarks: what each step of a request costs by itself, and what a change of the configuration costs. Under load
//! everything is dearer, through caches and wake-ups: that is what the comparison measures.

mod access;
mod call;
mod chain;
mod function;
mod lean;
mod now;
mod route;
mod snapshot;
mod split;
mod world;

use criterion::{criterion_group, criterion_main};

/// The gateway's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

criterion_group!(
    micro,
    split::benches,
    route::benches,
    call::benches,
    access::benches,
    chain::benches,
    function::benches,
    snapshot::benches
);
criterion_main!(micro);
