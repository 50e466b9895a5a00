//! Reloads: all or nothing, and no request notices.

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use harness::{Builder, Gateway, Upstream};
use lockgate_guests::Guest;
use reqwest::StatusCode;
use rustix::process::Signal;

fn tagged(value: &str) -> String {
    format!(
        r#"
server: {{ drain: 5s }}
upstreams: {{ app: ["${{UPSTREAM}}"] }}
filters: {{ tag: {{ component: filters/tag.wasm, settings: {{ value: {value} }} }} }}
routes: [{{ filters: [tag], upstream: app }}]
"#
    )
}

async fn tag(gateway: &Gateway) -> String {
    gateway.get("/").await.header("x-tag").to_owned()
}

/// Waits until requests meet a version.
async fn until(gateway: &Gateway, value: &str) {
    let met = async {
        while tag(gateway).await != value {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), met).await.unwrap_or_else(|_| panic!("{value} never served"));
}

#[tokio::test]
async fn a_changed_file_is_picked_up_by_itself_by_a_signal_and_by_a_call() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(&tagged("v1"), &up).await;
    assert_eq!(tag(&gateway).await, "v1");
    gateway.write_config(&tagged("v2"));
    until(&gateway, "v2").await;

    let unwatched = |value| tagged(value).replace("drain: 5s", "drain: 5s, watch: false");
    let gateway = Gateway::start(&unwatched("v1"), &up).await;
    gateway.write_config(&unwatched("v2"));
    gateway.signal(Signal::HUP);
    until(&gateway, "v2").await;
    gateway.write_config(&unwatched("v3"));
    let reply = gateway.reload().await;
    assert!(reply.status.is_success(), "{}", reply.text());
    assert_eq!(tag(&gateway).await, "v3");
}

#[tokio::test]
async fn a_configmap_that_swaps_its_link_is_picked_up() {
    let up = Upstream::start().await;
    let builder = Builder::new(&tagged("v1")).upstream(&up).guest(Guest::Tag);
    let dir = builder.path().to_owned();
    let gateway = builder.start().await;
    // As Kubernetes does: files are links into `..data`, which is a link itself.
    let config = std::fs::read_to_string(dir.join("lockgate.yaml")).unwrap();
    for (folder, value) in [("..1", "v1"), ("..2", "v2"), ("..3", "v3")] {
        std::fs::create_dir(dir.join(folder)).unwrap();
        std::fs::write(dir.join(folder).join("lockgate.yaml"), config.replace("v1", value)).unwrap();
    }
    let point = |to: &str, name: &str| {
        let temporary = dir.join(format!("{name}.new"));
        std::os::unix::fs::symlink(to, &temporary).unwrap();
        std::fs::rename(temporary, dir.join(name)).unwrap();
    };
    point("..1", "..data");
    point("..data/lockgate.yaml", "lockgate.yaml");
    point("..2", "..data");
    until(&gateway, "v2").await;
    point("..3", "..data");
    until(&gateway, "v3").await;
}

/// Invariant 2.
#[tokio::test]
async fn a_failed_reload_changes_nothing_but_the_failure_counter() {
    let up = Upstream::start().await;
    let unwatched = tagged("v1").replace("drain: 5s", "drain: 5s, watch: false");
    let gateway = Gateway::start(&unwatched, &up).await;
    let component = std::fs::read(Guest::Tag.path()).unwrap();
    let generation = gateway.metric("lockgate_generation", &[]).await;
    let broken: [(&str, &[u8], &str); 7] = [
        ("filters: [", &component, "lockgate.yaml"),
        (&unwatched.replace("upstream: app", "upstream: nowhere"), &component, "nowhere"),
        (&unwatched.replace("value: v1", "wrong: 1"), &component, "wrong"),
        (&unwatched.replace("tag.wasm", "missing.wasm"), &component, "missing.wasm"),
        (&unwatched, b"not a component", "component"),
        (&unwatched, &component[..component.len() / 2], "tag.wasm"),
        (&unwatched, b"\0asm\x01\0\0\0", "wasm32-wasip2"),
    ];
    for (count, (config, bytes, named)) in broken.iter().enumerate() {
        gateway.write_config(config);
        gateway.replace_component("filters/tag.wasm", bytes);
        let reply = gateway.reload().await;
        assert!(reply.status.is_client_error(), "{named}: {}", reply.text());
        assert!(reply.text().contains(named), "{named}: {}", reply.text());
        assert_eq!(tag(&gateway).await, "v1");
        assert_eq!(gateway.metric("lockgate_reloads_total", &["refused"]).await, (count + 1) as f64);
        assert_eq!(gateway.metric("lockgate_generation", &[]).await, generation);
        gateway.settles("lockgate_reload_failing", &[], 1.0).await;
    }
    gateway.write_config(&unwatched.replace("v1", "v2"));
    gateway.replace_component("filters/tag.wasm", &component);
    assert!(gateway.reload().await.status.is_success());
    assert_eq!(tag(&gateway).await, "v2");
    gateway.settles("lockgate_reload_failing", &[], 0.0).await;
}

#[tokio::test]
async fn a_reload_of_the_same_is_recognised() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(&tagged("v1"), &up).await;
    let generation = gateway.metric("lockgate_generation", &[]).await;
    for _ in 0..3 {
        assert!(gateway.reload().await.status.is_success());
    }
    assert_eq!(gateway.metric("lockgate_generation", &[]).await, generation);
    gateway.settles("lockgate_reloads_total", &["unchanged"], 3.0).await;
}

#[tokio::test]
async fn a_request_under_way_ends_on_the_snapshot_that_it_began_with() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(&tagged("v1"), &up).await;
    let held = tokio::spawn(gateway.client().get(gateway.url("/hold")).send());
    up.holding(1).await;
    gateway.write_config(&tagged("v2"));
    until(&gateway, "v2").await;
    gateway.settles("lockgate_draining_snapshots", &[], 1.0).await;
    up.release(1);
    let reply = held.await.unwrap().unwrap();
    assert_eq!((reply.status(), reply.headers()["x-tag"].to_str().unwrap()), (StatusCode::OK, "v1"));
    let drained = async {
        while gateway.metric("lockgate_draining_snapshots", &[]).await != 0.0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), drained).await.expect("the old snapshot drains");
}

#[tokio::test]
async fn a_filter_replaced_under_load_fails_no_request_and_its_old_versions_drain() {
    let up = Upstream::start().await;
    let gateway = Arc::new(Gateway::start(&tagged("v0"), &up).await);
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (gateway, stop, served) = (Arc::clone(&gateway), Arc::clone(&stop), Arc::clone(&served));
            tokio::spawn(async move {
                let mut seen = std::collections::BTreeSet::new();
                while !stop.load(Ordering::Relaxed) {
                    let reply = gateway.get("/").await;
                    assert_eq!(reply.status, StatusCode::OK);
                    seen.insert(reply.header("x-tag").to_owned());
                    served.fetch_add(1, Ordering::Relaxed);
                }
                seen
            })
        })
        .collect();
    for version in 1..=10 {
        gateway.write_config(&tagged(&format!("v{version}")));
        until(&gateway, &format!("v{version}")).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut seen = std::collections::BTreeSet::new();
    for client in clients {
        seen.extend(client.await.unwrap());
    }
    assert!(seen.contains("v10") && seen.len() > 5, "{seen:?}");
    assert!(served.load(Ordering::Relaxed) > 100);
    let drained = async {
        while gateway.metric("lockgate_filter_instances", &[]).await != 0.0
            || gateway.metric("lockgate_draining_snapshots", &[]).await != 0.0
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), drained).await.expect("old versions reach zero instances");
}

#[tokio::test]
async fn a_request_that_outlives_the_drain_is_told_of_and_ends_all_the_same() {
    let up = Upstream::start().await;
    let config = |value: &str| tagged(value).replace("drain: 5s", "drain: 200ms");
    let gateway = Gateway::start(&config("v1"), &up).await;
    let held = tokio::spawn(gateway.client().get(gateway.url("/hold")).send());
    up.holding(1).await;
    gateway.write_config(&config("v2"));
    until(&gateway, "v2").await;

    let line = gateway.says("requests still read an old snapshot after `server.drain`").await;
    assert_eq!((&line["level"], &line["generation"], &line["requests"]), (&"WARN".into(), &1.into(), &1.into()));
    gateway.settles("lockgate_drain_left_total", &[], 1.0).await;
    gateway.settles("lockgate_draining_requests", &[], 1.0).await;

    up.release(1);
    let reply = harness::Reply::read(held.await.unwrap().unwrap()).await;
    assert_eq!((reply.status, reply.header("x-tag"), &*reply.text()), (StatusCode::OK, "v1", "held\n"));
    let drained = async {
        while gateway.metric("lockgate_draining_snapshots", &[]).await != 0.0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), drained).await.expect("the old snapshot drains");
    gateway.settles("lockgate_drain_left_total", &[], 1.0).await;
}
