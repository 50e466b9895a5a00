//! What an upstream is given at a time: requests, connections, and who waits for them.

mod harness;

use std::time::{Duration, Instant};

use harness::{Builder, Gateway, Identity, Upstream};
use reqwest::{Client, StatusCode};
use tokio::task::JoinHandle;

const ROUTES: &str = "routes: [{ upstream: app }]";

/// A gateway in front of an upstream with these settings.
async fn start(settings: &str, up: &Upstream) -> Gateway {
    Gateway::start(&config(settings), up).await
}

fn config(settings: &str) -> String {
    format!("upstreams: {{ app: {{ endpoints: [\"${{UPSTREAM}}\"], {settings} }} }}\n{ROUTES}\n")
}

/// Sends a request that nobody waits for yet.
fn send(client: &Client, gateway: &Gateway, path: &str) -> JoinHandle<StatusCode> {
    let request = client.get(gateway.url(path));
    tokio::spawn(async move { request.send().await.expect("the gateway answers").status() })
}

async fn all(requests: Vec<JoinHandle<StatusCode>>) -> Vec<StatusCode> {
    let mut statuses = Vec::new();
    for request in requests {
        statuses.push(request.await.unwrap());
    }
    statuses
}

async fn until(gateway: &Gateway, metric: &str, value: f64) {
    let reached = async { while gateway.metric(metric, &[]).await != value {} };
    if tokio::time::timeout(Duration::from_secs(30), reached).await.is_err() {
        panic!("`{metric}` is {} and not {value}", gateway.metric(metric, &[]).await);
    }
}

async fn pending(gateway: &Gateway, count: usize) {
    until(gateway, "lockgate_upstream_pending", count as f64).await;
}

async fn overflows(gateway: &Gateway, limit: &str, outcome: &str) -> f64 {
    let labels = [&*format!("limit=\"{limit}\""), &*format!("outcome=\"{outcome}\"")];
    gateway.metric("lockgate_upstream_overflows_total", &labels).await
}

#[tokio::test]
async fn connections_are_never_more_than_may_be_and_everybody_is_answered_in_turn() {
    let up = Upstream::start().await;
    let settings = "limits: { connections_per_endpoint: 2, pending: 48, pending_timeout: 60s }";
    let gateway = start(settings, &up).await;

    let requests: Vec<_> = (0..50).map(|_| send(gateway.client(), &gateway, "/hold")).collect();
    up.holding(2).await;
    pending(&gateway, 48).await;
    assert_eq!(up.requests(), 2);
    up.release(50);

    assert_eq!(all(requests).await, vec![StatusCode::OK; 50]);
    assert_eq!((up.requests(), up.connections()), (50, 2), "two connections were opened, and used again");
    assert!(gateway.metric("lockgate_upstream_pending_seconds_count", &[]).await >= 48.0);
    pending(&gateway, 0).await;

    // And so without anybody holding anything: as fast as it goes.
    let requests: Vec<_> = (0..50).map(|_| send(gateway.client(), &gateway, "/")).collect();
    assert_eq!(all(requests).await, vec![StatusCode::OK; 50]);
    assert_eq!(up.connections(), 2);
    gateway.settles("lockgate_upstream_overflows_total", &[], 0.0).await;
}

#[tokio::test]
async fn more_than_may_wait_are_refused_at_once_and_it_is_said_which_limit_it_was() {
    let up = Upstream::start().await;
    let gateway = start("limits: { connections_per_endpoint: 1, pending: 1, pending_timeout: 60s }", &up).await;
    let held = send(gateway.client(), &gateway, "/hold");
    up.holding(1).await;
    let waits = send(gateway.client(), &gateway, "/waits");
    pending(&gateway, 1).await;

    let refused = gateway.get("/refused").await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.header("retry-after"), "1");
    assert!(refused.text().starts_with("upstream overloaded\n"));
    let line = gateway.logged(|line| line["path"] == "/refused").await;
    assert_eq!((&line["error"]["source"], &line["error"]["kind"]), (&"upstream".into(), &"overloaded".into()));
    assert_eq!(line["error"]["reason"], "`limits.connections_per_endpoint` of upstream `app`");
    assert_eq!(overflows(&gateway, "connections_per_endpoint", "refused").await, 1.0);
    gateway.settles("lockgate_upstream_overflows_total", &[], 1.0).await;
    let status = gateway.admin(reqwest::Method::GET, "/api/v1/status", None).await.json();
    let app = &status["upstreams"][0];
    assert_eq!((&app["pending"], &app["endpoints"][0]["connections"]), (&1.into(), &1.into()));

    up.release(1);
    assert_eq!(all(vec![held, waits]).await, [StatusCode::OK; 2]);
    assert_eq!(gateway.get("/").await.status, StatusCode::OK);
    assert_eq!(up.connections(), 1);
}

#[tokio::test]
async fn whoever_came_first_is_let_in_first() {
    let up = Upstream::start().await;
    let gateway = start("limits: { requests: 1, pending_timeout: 60s }", &up).await;
    let mut requests = Vec::new();
    for before in 0..4 {
        requests.push(send(gateway.client(), &gateway, "/hold"));
        up.holding(1).await;
        pending(&gateway, before).await;
    }
    for _ in 0..4 {
        up.release(1);
        assert_eq!(requests.remove(0).await.unwrap(), StatusCode::OK);
        assert!(requests.iter().all(|later| !later.is_finished()));
    }
}

#[tokio::test]
async fn a_request_waits_no_longer_than_it_may() {
    let up = Upstream::start().await;
    let gateway = start("limits: { requests: 1, pending_timeout: 200ms }", &up).await;
    let held = send(gateway.client(), &gateway, "/hold");
    up.holding(1).await;

    let began = Instant::now();
    assert_eq!(gateway.get("/in-vain").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(began.elapsed() >= Duration::from_millis(200));
    let line = gateway.logged(|line| line["path"] == "/in-vain").await;
    assert_eq!((&line["error"]["source"], &line["error"]["kind"]), (&"upstream".into(), &"pending_timeout".into()));
    assert_eq!(line["error"]["reason"], "`limits.requests` of upstream `app`");
    assert_eq!(overflows(&gateway, "requests", "timed_out").await, 1.0);
    pending(&gateway, 0).await;
    up.release(1);
    assert_eq!(held.await.unwrap(), StatusCode::OK);
}

#[tokio::test]
async fn the_time_for_all_attempts_ends_the_wait_as_well() {
    let up = Upstream::start().await;
    let settings = "timeouts: { total: 300ms }, limits: { requests: 1, pending_timeout: 60s }";
    let gateway = start(settings, &up).await;
    let held = send(gateway.client(), &gateway, "/hold");
    up.holding(1).await;

    assert_eq!(gateway.get("/in-vain").await.status, StatusCode::GATEWAY_TIMEOUT);
    let line = gateway.logged(|line| line["path"] == "/in-vain").await;
    assert_eq!(line["error"]["kind"], "timeout");
    gateway.settles("lockgate_upstream_overflows_total", &[], 0.0).await;
    assert_eq!(held.await.unwrap(), StatusCode::GATEWAY_TIMEOUT);
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place() {
    let up = Upstream::start().await;
    let gateway = start("limits: { connections_per_endpoint: 1, pending: 1, pending_timeout: 60s }", &up).await;
    let http2 = Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    for (client, path) in [(gateway.client(), "/leaves"), (&http2, "/leaves-http-2")] {
        let held = send(gateway.client(), &gateway, "/hold");
        up.holding(1).await;
        let leaves = send(client, &gateway, path);
        pending(&gateway, 1).await;
        leaves.abort();
        pending(&gateway, 0).await;
        let line = gateway.logged(|line| line["path"] == path).await;
        assert_eq!(line["error"]["kind"], "client_gone");

        let comes = send(client, &gateway, "/comes");
        pending(&gateway, 1).await;
        up.release(1);
        assert_eq!(all(vec![held, comes]).await, [StatusCode::OK; 2]);
    }
}

#[tokio::test]
async fn those_that_wait_go_on_after_a_reload() {
    let up = Upstream::start().await;
    let settings = "limits: { connections_per_endpoint: 1, pending_timeout: 60s }";
    let gateway = start(settings, &up).await;
    let held = send(gateway.client(), &gateway, "/hold");
    up.holding(1).await;
    let first = send(gateway.client(), &gateway, "/first");
    pending(&gateway, 1).await;

    gateway.write_config(&config(settings).replace(ROUTES, "routes: [{ upstream: app, name: renamed }]"));
    assert_eq!(gateway.reload().await.status, StatusCode::OK);
    let second = send(gateway.client(), &gateway, "/second");
    pending(&gateway, 2).await;
    assert_eq!(up.connections(), 1, "the upstream is the same, and so is its limit");

    // Another limit is another version: those that wait have the one that they came for.
    gateway.write_config(&config("limits: { connections_per_endpoint: 2, pending_timeout: 60s }"));
    assert_eq!(gateway.reload().await.status, StatusCode::OK);
    assert_eq!(gateway.get("/third").await.status, StatusCode::OK);
    pending(&gateway, 2).await;
    up.release(1);
    assert_eq!(all(vec![held, first, second]).await, [StatusCode::OK; 3]);
    pending(&gateway, 0).await;
}

#[tokio::test]
async fn a_connection_of_http_2_counts_once_however_many_requests_it_carries() {
    let identity = Identity::of("app.internal");
    let limits = "limits: { connections_per_endpoint: 1, pending_timeout: 60s }";
    let tls = "tls: { server_name: app.internal, ca: app.pem }";
    for settings in ["protocol: h2c".to_owned(), format!("protocol: h2, {tls}"), format!("protocol: auto, {tls}")] {
        let up = if settings.contains("tls") { Upstream::tls("app", &identity).await } else { Upstream::start().await };
        let builder = Builder::new(&config(&format!("{settings}, {limits}"))).upstream(&up);
        std::fs::write(builder.path().join("app.pem"), identity.own.cert.pem()).unwrap();
        let gateway = builder.start().await;
        // What an endpoint prefers is known by its first response.
        if settings.contains("auto") {
            assert_eq!(gateway.get("/").await.status, StatusCode::OK);
        }

        let requests: Vec<_> = (0..50).map(|_| send(gateway.client(), &gateway, "/hold")).collect();
        up.holding(50).await;
        assert_eq!(up.connections(), 1, "{settings}");
        gateway.settles("lockgate_upstream_connections", &[], 1.0).await;
        up.release(50);
        assert_eq!(all(requests).await, vec![StatusCode::OK; 50]);
        assert_eq!((up.connections(), gateway.metric("lockgate_upstream_overflows_total", &[]).await), (1, 0.0));
    }
}

#[tokio::test]
async fn idle_connections_count_and_are_used_again_until_they_are_closed() {
    for protocol in ["http1", "h2c"] {
        let up = Upstream::start().await;
        let settings =
            format!("protocol: {protocol}, timeouts: {{ idle: 2s }}, limits: {{ connections_per_endpoint: 1 }}");
        let gateway = start(&settings, &up).await;
        for _ in 0..3 {
            assert_eq!(gateway.get("/").await.status, StatusCode::OK);
        }
        assert_eq!((up.connections(), gateway.metric("lockgate_upstream_connections", &[]).await), (1, 1.0));
        until(&gateway, "lockgate_upstream_connections", 0.0).await;
        assert_eq!(gateway.get("/").await.status, StatusCode::OK);
        assert_eq!(up.connections(), 2, "{protocol}");
    }
}

#[tokio::test]
async fn a_connection_that_cannot_be_opened_is_not_counted() {
    let up = Upstream::start().await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = r#"
upstreams:
  app: { endpoints: ["${CLOSED}"], retries: 0, ejection: { failures: 0 }, limits: { connections_per_endpoint: 1, pending: 0 } }
  tls:
    endpoints: ["${UPSTREAM}"]
    tls: { server_name: app.internal }
    retries: 0
    ejection: { failures: 0 }
    limits: { connections_per_endpoint: 1, pending: 0 }
routes: [{ upstream: app }, { match: { path: /tls }, upstream: tls }]
"#;
    let gateway = Builder::new(config).upstream(&up).variable("CLOSED", &closed.to_string()).start().await;
    for _ in 0..3 {
        assert_eq!(gateway.get("/").await.status, StatusCode::BAD_GATEWAY);
        let handshake = gateway.get("/tls").await.status;
        assert!(handshake.is_server_error() && handshake != StatusCode::SERVICE_UNAVAILABLE, "{handshake}");
    }
    gateway.settles("lockgate_upstream_connections", &[], 0.0).await;
    gateway.settles("lockgate_upstream_overflows_total", &[], 0.0).await;
}

#[tokio::test]
async fn requests_go_to_the_endpoint_that_has_room() {
    let (one, two) = (Upstream::named("one").await, Upstream::named("two").await);
    let config = format!(
        "upstreams: {{ app: {{ endpoints: [{{ address: \"${{ONE}}\", weight: 100 }}, {{ address: \"${{TWO}}\", weight: 1 }}], \
         limits: {{ connections_per_endpoint: 1, pending_timeout: 60s }} }} }}\n{ROUTES}\n"
    );
    let builder = Builder::new(&config).variable("ONE", &one.address.to_string());
    let gateway = builder.variable("TWO", &two.address.to_string()).start().await;

    let first = send(gateway.client(), &gateway, "/hold");
    one.holding(1).await;
    let second = send(gateway.client(), &gateway, "/hold");
    two.holding(1).await;
    let third = send(gateway.client(), &gateway, "/");
    pending(&gateway, 1).await;
    two.release(1);
    assert_eq!(third.await.unwrap(), StatusCode::OK);
    one.release(1);
    assert_eq!(all(vec![first, second]).await, [StatusCode::OK; 2]);
    assert_eq!((one.requests(), two.requests()), (1, 2));
}

#[tokio::test]
async fn a_further_attempt_needs_room_as_the_first_did() {
    let (one, two) = (Upstream::named("one").await, Upstream::named("two").await);
    let config = format!(
        "upstreams: {{ app: {{ endpoints: [\"${{ONE}}\", \"${{TWO}}\"], retries: {{ attempts: 1, on: 503, backoff: 1ms }}, \
         ejection: {{ failures: 0 }}, limits: {{ connections_per_endpoint: 1, pending_timeout: 60s }} }} }}\n{ROUTES}\n"
    );
    let builder = Builder::new(&config).variable("ONE", &one.address.to_string());
    let gateway = builder.variable("TWO", &two.address.to_string()).start().await;
    one.set_health(503);
    two.set_health(503);

    let requests: Vec<_> = (0..10).map(|_| send(gateway.client(), &gateway, "/sick")).collect();
    assert_eq!(all(requests).await, vec![StatusCode::SERVICE_UNAVAILABLE; 10]);
    assert_eq!(one.requests() + two.requests(), 20, "each was tried twice, and no wait counted as an attempt");
    pending(&gateway, 0).await;
}

#[tokio::test]
async fn a_mirrored_request_neither_waits_nor_keeps_its_connection() {
    let (up, copies) = (Upstream::start().await, Upstream::named("copies").await);
    let config = r#"
upstreams:
  app: ["${UPSTREAM}"]
  copies: { endpoints: ["${COPIES}"], limits: { connections_per_endpoint: 1, pending_timeout: 60s } }
routes:
  - { upstream: app, mirror: copies }
  - { match: { path: /hold }, upstream: copies }
"#;
    let gateway = Builder::new(config).upstream(&up).variable("COPIES", &copies.address.to_string()).start().await;
    let mirrored = async |outcome: &str, count: f64| {
        let labels = [&*format!("outcome=\"{outcome}\"")];
        while gateway.metric("lockgate_mirror_requests_total", &labels).await < count {}
    };
    assert_eq!(gateway.get("/").await.status, StatusCode::OK);
    mirrored("answered", 1.0).await;
    // One of its own: that of the copy is closed, which one that waits is told.
    let held = send(gateway.client(), &gateway, "/hold");
    copies.holding(1).await;
    assert_eq!(copies.connections(), 2);

    assert_eq!(gateway.get("/").await.status, StatusCode::OK);
    mirrored("busy", 1.0).await;
    copies.release(1);
    assert_eq!(held.await.unwrap(), StatusCode::OK);
    assert_eq!(copies.requests(), 2);
}

#[tokio::test]
async fn what_guests_ask_for_waits_as_what_clients_ask_for() {
    let up = Upstream::start().await;
    let config = r#"
experimental: [wasi-0.3]
upstreams: { app: { endpoints: ["${UPSTREAM}"], limits: { connections_per_endpoint: 1, pending_timeout: 60s } } }
functions:
  asks: { component: filters/function.wasm, grants: { outbound: ["upstream:app"] }, limits: { deadline: 60s } }
  mid: { component: filters/middleware.wasm, limits: { deadline: 60s } }
routes:
  - { match: { path: /fetch }, function: asks }
  - { match: { path: /mid }, filters: [{ function: mid }], upstream: app }
  - { upstream: app }
"#;
    let gateway = Gateway::start(config, &up).await;
    let held = send(gateway.client(), &gateway, "/hold");
    up.holding(1).await;
    let inner = send(gateway.client(), &gateway, "/fetch?app.upstream");
    pending(&gateway, 1).await;
    let behind = send(gateway.client(), &gateway, "/mid");
    pending(&gateway, 2).await;
    up.release(1);
    assert_eq!(all(vec![held, inner, behind]).await, [StatusCode::OK; 3]);
    assert_eq!((up.requests(), up.connections()), (3, 1));
}
