//! A request through a chain of 0, 1 and 5 filters and back, with the metrics that are counted on the way.

use criterion::{BenchmarkId, Criterion};
use lockgate::control::build::build;
use lockgate::control::policies::Policies;
use lockgate::metrics::Metrics;
use lockgate::proxy::chain::{Chain, Verdict};
use lockgate::seeing::spans::Collectors;
use lockgate::shadow::Shadows;
use lockgate::track::Tracks;

use crate::now::now;
use crate::world::{ISOLATIONS, World, chosen, exchange, facts};

pub(crate) fn benches(criterion: &mut Criterion) {
    let world = World::new();
    let metrics = Metrics::new().expect("the families have different names");
    let mut exchange = exchange();

    let mut group = criterion.benchmark_group("chain");
    for (isolation, setting) in ISOLATIONS {
        let filter = world.load_read_set(setting);
        for filters in [0, 1, 5] {
            let facts = facts(1, filters);
            let chosen = chosen(&facts.config, &filter, &metrics);
            let snapshot =
                build(1, &facts, &chosen, &metrics, &Shadows::default(), &Policies::default(), &Collectors::default());
            let links = &snapshot.routes[0].chain;
            group.bench_function(BenchmarkId::new(isolation, filters), |bencher| {
                bencher.iter(|| {
                    let mut chain = Chain::enter(links, Tracks::default(), None);
                    assert!(matches!(now(chain.on_request(links, &mut exchange)), Verdict::Continue));
                    assert!(now(chain.on_response(links, &mut exchange)).is_ok());
                    chain.leave();
                    chain
                });
            });
        }
    }
    group.finish();
}
