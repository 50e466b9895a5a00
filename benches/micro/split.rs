//! One decision of a split, by the kind of key that a rollout hashes.

use std::hint::black_box;
use std::net::Ipv4Addr;

use criterion::Criterion;
use http::{HeaderMap, HeaderName, HeaderValue};
use lockgate::proxy::split::{Attributes, Split};
use lockgate_config::model::KeyPart;
use lockgate_config::units::Weight;

pub(crate) fn benches(criterion: &mut Criterion) {
    let headers: HeaderMap = [
        ("host", "shop.example.com"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
        ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
        ("accept-language", "en-GB,en;q=0.5"),
        ("cookie", "theme=dark; consent=yes; sid=8f14e45fceea167a5a36dedd4bea2543"),
        ("x-user-id", "user-42"),
    ]
    .into_iter()
    .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
    .collect();
    let request = Attributes {
        headers: &headers,
        client: Ipv4Addr::new(192, 0, 2, 7).into(),
        peer: Some(Ipv4Addr::LOCALHOST.into()),
        path: "/articles/2541",
        query: Some("page=2&user=user-42"),
    };
    let weight = Weight::from_basis_points(500).expect("5 % is a weight");

    let mut group = criterion.benchmark_group("split");
    for (name, key) in [
        ("header", vec![KeyPart::Header("x-user-id".into())]),
        ("cookie", vec![KeyPart::Cookie("sid".into())]),
        ("query", vec![KeyPart::Query("user".into())]),
        ("client_ip", vec![KeyPart::ClientIp]),
        (
            "the third of three keys",
            vec![KeyPart::Header("x-absent".into()), KeyPart::Cookie("absent".into()), KeyPart::ClientIp],
        ),
    ] {
        let split = Split::new("auth-1.5", &key, weight, None);
        group.bench_function(name, |bencher| bencher.iter(|| split.decide(black_box(&request))));
    }
    group.finish();
}
