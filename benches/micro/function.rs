//! One request through a function: the guest `hello`, on a fresh and on a reused instance, from its request to the last
//! byte of its response.

use std::sync::Arc;

use bytes::Bytes;
use criterion::Criterion;
use lockgate_host::{Function, RequestBody};

use crate::world::{ISOLATIONS, World};

pub(crate) fn benches(criterion: &mut Criterion) {
    let world = World::new();
    // Guests of functions may wait, for which they need a runtime, though this one never does.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut group = criterion.benchmark_group("function");
    for (isolation, setting) in ISOLATIONS {
        let hello = world.load_hello(setting);
        group.bench_function(format!("{isolation}, hello"), |bencher| {
            bencher.iter(|| runtime.block_on(answer(&hello)));
        });
    }
    group.finish();
}

async fn answer(function: &Arc<Function>) {
    let request = http::Request::get("/articles/2541?page=2")
        .header("host", "shop.example.com")
        .header("accept", "text/html")
        .body(RequestBody::whole(Bytes::new()))
        .expect("a request");
    let mut call =
        function.call("stable", Arc::from("0123456789abcdef"), None, false, request, None).expect("an instance");
    call.response().await.expect("an answer");
    while let Some(frame) = call.frame().await {
        frame.expect("a piece");
    }
    call.settle().await;
}
