//! Finding the route among 10 to 10,000.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion};
use http::{HeaderMap, Method};
use lockgate::proxy::route::{Found, Router};
use lockgate_config::model::{HostPattern, PathPattern, RouteMatch, Segment};

/// Hosts that the routes are spread over.
const HOSTS: usize = 10;

pub(crate) fn benches(criterion: &mut Criterion) {
    let headers = HeaderMap::new();
    let mut group = criterion.benchmark_group("route");
    for routes in [10, 100, 1_000, 10_000] {
        let matches: Vec<RouteMatch> = (0..routes).map(route).collect();
        let router = Router::new(&matches);
        // One in the middle of each kind: 0 exact, 1 a template, 2 a prefix.
        for (kind, name) in ["exact path", "template", "prefix"].into_iter().enumerate() {
            let wanted = routes / 2 - (routes / 2) % 3 + kind;
            let host = format!("h{}.example.com", wanted % HOSTS);
            let path = match kind {
                0 => format!("/api/v1/things-{wanted}"),
                1 => format!("/api/v1/users/{wanted}-42/posts-{wanted}"),
                _ => format!("/static-{wanted}/css/site/main.css"),
            };
            assert_eq!(router.find(&Method::GET, &host, &path, &headers), Found::Route(wanted), "{name}");
            group.bench_function(BenchmarkId::new(name, routes), |bencher| {
                bencher.iter(|| router.find(&Method::GET, black_box(&host), black_box(&path), &headers));
            });
        }
        assert_eq!(router.find(&Method::GET, "h1.example.com", "/nothing/is/here", &headers), Found::Nothing);
        group.bench_function(BenchmarkId::new("none", routes), |bencher| {
            bencher.iter(|| {
                router.find(&Method::GET, black_box("h1.example.com"), black_box("/nothing/is/here"), &headers)
            });
        });
    }
    group.finish();
}

fn route(number: usize) -> RouteMatch {
    let literal = |text: &str| Segment::Literal(text.to_owned());
    let path = match number % 3 {
        0 => PathPattern::Exact(format!("/api/v1/things-{number}")),
        1 => PathPattern::Template(vec![
            literal("api"),
            literal("v1"),
            literal("users"),
            Segment::Parameter("user".to_owned()),
            literal(&format!("posts-{number}")),
        ]),
        _ => PathPattern::Prefix(format!("/static-{number}/")),
    };
    RouteMatch {
        hosts: vec![HostPattern::Exact(format!("h{}.example.com", number % HOSTS))],
        path,
        methods: Vec::new(),
        headers: Vec::new(),
    }
}
