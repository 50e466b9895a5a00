//! A fresh instance never sees what another left; a reused one does, and is discarded in time.

use lockgate_guests::Guest;
use lockgate_host::Live;

use crate::{acquire, get, header, pass, setup};

async fn count(filter: &std::sync::Arc<lockgate_host::Filter>) -> String {
    let mut exchange = get("/");
    pass(filter, &mut exchange).await;
    header(&exchange.request.headers, "x-instance-count").to_owned()
}

#[tokio::test]
async fn a_fresh_instance_never_sees_the_previous_ones_bytes() {
    let filter = setup(Guest::Stateful).load();
    // More often than the pool has slots: each is used several times.
    for _ in 0..300 {
        assert_eq!(count(&filter).await, "1");
    }
    assert_eq!(filter.live(), Live::default());
}

#[tokio::test]
async fn a_reused_instance_keeps_what_it_has() {
    let filter = setup(Guest::Stateful).reused(3, 64 << 20).load();
    let mut counts = vec![];
    for _ in 0..4 {
        counts.push(count(&filter).await);
    }
    assert_eq!(counts.last().map(String::as_str), Some("1"), "discarded after three requests: {counts:?}");
    assert_eq!(filter.live().instances, 1);
    assert!(filter.live().memory_bytes > 0);
}

#[tokio::test]
async fn instances_in_use_at_the_same_time_are_different_ones() {
    let filter = setup(Guest::Stateful).reused(100, 64 << 20).load();
    let (mut one, mut other) = (acquire(&filter), acquire(&filter));
    for instance in [&mut one, &mut other] {
        let mut exchange = get("/");
        instance.on_request(&mut exchange).await.expect("goes on");
    }
    assert_eq!(filter.live().instances, 2);
    drop((one, other));
    assert_eq!(filter.live().instances, 2, "both wait for their next request");
}

#[tokio::test]
async fn a_reused_instance_is_discarded_past_its_memory_mark() {
    let filter = setup(Guest::Stateful).reused(100, 1).load();
    assert_eq!(count(&filter).await, "1");
    assert_eq!(count(&filter).await, "1");
    assert_eq!(filter.live(), Live::default());
}

#[tokio::test]
async fn a_reused_instance_is_discarded_after_a_trap() {
    let filter =
        setup(Guest::Trap).settings(r#"{"phase": "on_request", "when": "x-trap"}"#).reused(100, 64 << 20).load();
    pass(&filter, &mut get("/")).await;
    assert_eq!(filter.live().instances, 1);
    let mut exchange = get("/");
    exchange.request.headers.insert("x-trap", http::HeaderValue::from_static("1"));
    acquire(&filter).on_request(&mut exchange).await.expect_err("traps");
    assert_eq!(filter.live().instances, 0);
    pass(&filter, &mut get("/")).await;
}

#[tokio::test]
async fn dropping_a_filter_frees_its_idle_instances() {
    let filter = setup(Guest::Stateful).reused(100, 64 << 20).load();
    count(&filter).await;
    let weak = std::sync::Arc::downgrade(&filter);
    drop(filter);
    assert!(weak.upgrade().is_none());
}

/// Memory that holds code: what a version that is gone must not keep.
fn executable_mappings() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("this is Linux");
    maps.lines().filter(|line| line.contains(" r-xp ") && line.ends_with(" 0 ")).count()
}

#[tokio::test]
async fn a_version_that_is_gone_leaves_no_code_behind() {
    if !wasmtime::PoolingAllocationConfig::is_pagemap_scan_available() {
        return; // Slots are given back in batches then, and their code with them.
    }
    // What the first one brings along stays: the engine's own.
    count(&setup(Guest::Stateful).load()).await;
    let before = executable_mappings();
    for _ in 0..20 {
        count(&setup(Guest::Stateful).load()).await;
    }
    let after = executable_mappings();
    assert!(after < before + 10, "{before} mappings before, {after} after");
}
