//! One call of a filter: with a fresh and with a reused instance, of a lean guest and of one with Rust's standard
//! library; and one call from the guest to the host.

use std::sync::Arc;

use criterion::{Criterion, Throughput};
use lockgate_host::{Exchange, Filter};

use crate::lean;
use crate::now::now;
use crate::world::{ISOLATIONS, World, exchange};

/// In one call of the guest, so that what a call itself costs disappears.
const HOST_CALLS: u32 = 1_000;

pub(crate) fn benches(criterion: &mut Criterion) {
    let world = World::new();
    let mut exchange = exchange();

    let mut group = criterion.benchmark_group("call");
    for (isolation, setting) in ISOLATIONS {
        let lean = world.load("lean", lean::component(0), setting);
        group.bench_function(format!("{isolation}, lean guest, does nothing"), |bencher| {
            bencher.iter(|| on_request(&lean, &mut exchange));
        });
        let std = world.load_read_set(setting);
        group.bench_function(format!("{isolation}, std guest, reads and sets a header"), |bencher| {
            bencher.iter(|| on_request(&std, &mut exchange));
        });
        group.bench_function(format!("{isolation}, std guest, on-request and on-response"), |bencher| {
            bencher.iter(|| {
                let mut instance = std.acquire("stable").expect("an instance");
                now(instance.on_request(&mut exchange)).expect("an outcome");
                now(instance.on_response(&mut exchange)).expect("an outcome");
            });
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("host call");
    group.throughput(Throughput::Elements(u64::from(HOST_CALLS)));
    let calling = world.load("calling", lean::component(HOST_CALLS), ISOLATIONS[1].1);
    group.bench_function("header", |bencher| bencher.iter(|| on_request(&calling, &mut exchange)));
    group.finish();
}

fn on_request(filter: &Arc<Filter>, exchange: &mut Box<Exchange>) {
    let mut instance = filter.acquire("stable").expect("an instance");
    now(instance.on_request(exchange)).expect("an outcome");
}
