//! A change of the configuration, when all that is slow has been done: a snapshot is built, and swapped.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion};
use lockgate::control::build::build;
use lockgate::control::policies::Policies;
use lockgate::control::snapshot::SnapshotCell;
use lockgate::metrics::Metrics;
use lockgate::seeing::spans::Collectors;
use lockgate::shadow::Shadows;

use crate::world::{ISOLATIONS, World, chosen, facts};

pub(crate) fn benches(criterion: &mut Criterion) {
    let world = World::new();
    let metrics = Metrics::new().expect("the families have different names");
    let filter = world.load_read_set(ISOLATIONS[0].1);

    let (shadows, policies, collectors) = (Shadows::default(), Policies::default(), Collectors::default());

    let mut group = criterion.benchmark_group("snapshot");
    for routes in [10, 100, 1_000, 10_000] {
        let facts = facts(routes, 5);
        let chosen = chosen(&facts.config, &filter, &metrics);
        group.bench_function(BenchmarkId::new("build", routes), |bencher| {
            bencher.iter_with_large_drop(|| build(1, &facts, &chosen, &metrics, &shadows, &policies, &collectors));
        });
        let cell = SnapshotCell::new(Arc::new(build(1, &facts, &chosen, &metrics, &shadows, &policies, &collectors)));
        let mut other = Arc::new(build(2, &facts, &chosen, &metrics, &shadows, &policies, &collectors));
        group.bench_function(BenchmarkId::new("swap", routes), |bencher| {
            bencher.iter(|| other = cell.swap(Arc::clone(&other)));
        });
        if routes == 10 {
            group.bench_function("read", |bencher| bencher.iter(|| black_box(cell.current()).generation));
        }
    }
    group.finish();
}
