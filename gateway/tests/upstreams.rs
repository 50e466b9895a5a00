//! How requests reach an upstream's endpoints: balancing, health, ejection, retries, limits, TLS.

mod harness;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use harness::{Builder, Gateway, Identity, Upstream};
use reqwest::StatusCode;

async fn pair(config: &str) -> (Upstream, Upstream, Gateway) {
    let (one, two) = (Upstream::named("one").await, Upstream::named("two").await);
    let gateway = in_front_of(config, &one, &two).await;
    (one, two, gateway)
}

async fn in_front_of(config: &str, one: &Upstream, two: &Upstream) -> Gateway {
    let builder = Builder::new(config).variable("ONE", &one.address.to_string());
    builder.variable("TWO", &two.address.to_string()).start().await
}

/// Sends requests one after the other; returns how many each endpoint answered, and how many failed.
async fn spread(gateway: &Gateway, path: &str, count: usize) -> BTreeMap<String, usize> {
    let mut answered = BTreeMap::new();
    for _ in 0..count {
        let reply = gateway.get(path).await;
        let by = if reply.status == StatusCode::OK { reply.header("x-upstream") } else { reply.status.as_str() };
        *answered.entry(by.to_owned()).or_default() += 1;
    }
    answered
}

fn counts<const N: usize>(counts: [(&str, usize); N]) -> BTreeMap<String, usize> {
    counts.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

#[tokio::test]
async fn requests_go_round_the_endpoints_by_weight() {
    let (_one, _two, gateway) = pair(
        r#"
upstreams: { app: { endpoints: ["${ONE}", { address: "${TWO}", weight: 3 }] } }
routes: [{ upstream: app }]
"#,
    )
    .await;

    assert_eq!(spread(&gateway, "/", 40).await, counts([("one", 10), ("two", 30)]));
}

#[tokio::test]
async fn requests_with_the_same_key_go_to_the_same_endpoint() {
    let (_one, _two, gateway) = pair(
        r#"
upstreams: { app: { endpoints: ["${ONE}", "${TWO}"], balance: { hash: [{ header: x-user }] } } }
routes: [{ upstream: app }]
"#,
    )
    .await;

    let mut seen = BTreeMap::<String, usize>::new();
    for user in 0..20 {
        let user = format!("user-{user}");
        let first = gateway.get_with("/", "x-user", &user).await.header("x-upstream").to_owned();
        for _ in 0..3 {
            assert_eq!(gateway.get_with("/", "x-user", &user).await.header("x-upstream"), first);
        }
        *seen.entry(first).or_default() += 1;
    }
    assert_eq!(seen.len(), 2, "both have users: {seen:?}");
}

#[tokio::test]
async fn the_less_busy_endpoint_gets_the_requests() {
    let (one, two, gateway) = pair(
        r#"
upstreams: { app: { endpoints: ["${ONE}", "${TWO}"], balance: least_requests } }
routes: [{ upstream: app }]
"#,
    )
    .await;
    let held = gateway.get("/hold");
    let others = async {
        let busy = tokio::select! {
            () = one.holding(1) => "one",
            () = two.holding(1) => "two",
        };
        let answered = spread(&gateway, "/", 40).await;
        one.release(1);
        two.release(1);
        (busy, answered)
    };

    let (held, (busy, answered)) = tokio::join!(held, others);

    assert_eq!(held.header("x-upstream"), busy);
    let there = answered.get(busy).copied().unwrap_or_default();
    assert!(there < 20, "a fourth of the draws hits `{busy}` twice: {answered:?}");
}

#[tokio::test]
async fn an_endpoint_whose_checks_fail_gets_nothing_until_they_succeed() {
    let (one, _two, gateway) = pair(
        r#"
upstreams:
  app:
    endpoints: ["${ONE}", "${TWO}"]
    health: { path: /healthz, interval: 50ms, timeout: 50ms }
routes: [{ upstream: app }]
"#,
    )
    .await;
    assert_eq!(spread(&gateway, "/", 10).await, counts([("one", 5), ("two", 5)]));

    one.set_health(503);
    let line = gateway.says("an endpoint is not well").await;
    assert!(line.to_string().contains("it answers with status 503"), "{line}");
    assert_eq!(spread(&gateway, "/", 10).await, counts([("two", 10)]));
    gateway.settles("lockgate_upstream_endpoints", &["state=\"unhealthy\""], 1.0).await;

    one.set_health(200);
    gateway.says("an endpoint is well again").await;
    assert_eq!(spread(&gateway, "/", 10).await, counts([("one", 5), ("two", 5)]));
}

#[tokio::test]
async fn with_all_endpoints_down_the_answer_is_503_at_once_and_recovery_needs_no_restart() {
    let (one, two, gateway) = pair(
        r#"
upstreams:
  app:
    endpoints: ["${ONE}", "${TWO}"]
    health: { check: tcp, interval: 50ms, timeout: 50ms, unhealthy: 1, healthy: 1 }
routes: [{ upstream: app }]
"#,
    )
    .await;
    let address = one.address;
    drop((one, two));
    gateway.says("an endpoint is not well").await;
    let said = gateway.said();
    if gateway.metric("lockgate_upstream_endpoints", &["state=\"usable\""]).await > 0.0 {
        gateway.says_after(said.saturating_sub(1), "an endpoint is not well").await;
    }

    let began = Instant::now();
    let reply = gateway.get("/").await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(began.elapsed() < Duration::from_secs(1));
    let line = gateway.logged(|line| line["status"] == 503).await;
    assert_eq!(line["error"]["kind"], "no_endpoint");

    let back = Upstream::at(address, "back").await;
    gateway.says("an endpoint is well again").await;
    assert_eq!(spread(&gateway, "/", 5).await, counts([("back", 5)]));
    drop(back);
}

#[tokio::test]
async fn a_dead_endpoint_costs_no_request_and_is_left_out() {
    let (one, _two, gateway) = pair(
        r#"
upstreams: { app: { endpoints: ["${ONE}", "${TWO}"] } }
routes: [{ upstream: app }]
"#,
    )
    .await;
    drop(one);

    assert_eq!(spread(&gateway, "/", 40).await, counts([("two", 40)]));
    gateway.says("it is left out for a while").await;
    gateway.settles("lockgate_upstream_ejections_total", &[], 1.0).await;
    gateway.settles("lockgate_upstream_retries_total", &["reason=\"connect\""], 5.0).await;
    gateway.settles("lockgate_upstream_endpoints", &["state=\"ejected\""], 1.0).await;
}

#[tokio::test]
async fn a_status_that_is_worth_it_is_tried_elsewhere_but_not_what_is_not_idempotent() {
    let (one, two, gateway) = pair(
        r#"
upstreams:
  app:
    endpoints: ["${ONE}", "${TWO}"]
    retries: { attempts: 1, on: [502, 503], backoff: 1ms }
    ejection: { failures: 0 }
routes: [{ upstream: app }]
"#,
    )
    .await;
    one.set_health(503);

    assert_eq!(spread(&gateway, "/sick", 20).await, counts([("two", 20)]));
    let mut refused = 0;
    for _ in 0..10 {
        let post = gateway.client().post(gateway.url("/sick")).body("once");
        refused += usize::from(gateway.send(post).await.status == StatusCode::SERVICE_UNAVAILABLE);
    }
    assert_eq!(refused, 5);
    assert_eq!((one.requests(), two.requests()), (15, 25));
}

#[tokio::test]
async fn a_body_is_sent_whole_at_every_attempt() {
    let (one, _two, gateway) = pair(
        r#"
upstreams:
  app:
    endpoints: ["${ONE}", "${TWO}"]
    retries: { attempts: 1, on: 503, backoff: 1ms, non_idempotent: true }
routes: [{ upstream: app }]
"#,
    )
    .await;
    drop(one);
    let body = vec![b'x'; 40_000];

    for _ in 0..4 {
        let reply = gateway.send(gateway.client().post(gateway.url("/echo")).body(body.clone())).await;
        assert_eq!(reply.status, StatusCode::OK);
        assert_eq!(reply.seen().body_length, body.len());
    }
}

#[tokio::test]
async fn an_upstream_in_trouble_is_not_buried_in_retries() {
    let (one, two, gateway) = pair(
        r#"
upstreams:
  app:
    endpoints: ["${ONE}", "${TWO}"]
    retries: { attempts: 3, on: 503, backoff: 1ms, budget: 10% }
    ejection: { failures: 0 }
routes: [{ upstream: app }]
"#,
    )
    .await;
    one.set_health(503);
    two.set_health(503);

    assert_eq!(spread(&gateway, "/sick", 100).await, counts([("503", 100)]));
    // Ten from the start, and a tenth of the requests.
    assert_eq!(one.requests() + two.requests(), 100 + 10 + 10);
    gateway.settles("lockgate_upstream_retries_total", &["reason=\"status\""], 20.0).await;
}

#[tokio::test]
async fn more_requests_than_an_upstream_takes_are_refused_at_once() {
    let up = Upstream::start().await;
    let config = r#"
upstreams: { app: { endpoints: ["${UPSTREAM}"], limits: { requests: 1, pending: 0 } } }
routes: [{ upstream: app }]
"#;
    let gateway = Gateway::start(config, &up).await;
    let (held, refused) = tokio::join!(gateway.get("/hold"), async {
        up.holding(1).await;
        let refused = gateway.get("/").await;
        up.release(1);
        refused
    });

    assert_eq!((held.status, refused.status), (StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE));
    let line = gateway.logged(|line| line["status"] == 503).await;
    assert_eq!(line["error"]["kind"], "overloaded");
    gateway.settles("lockgate_upstream_overflows_total", &[], 1.0).await;
    assert_eq!(gateway.get("/").await.status, StatusCode::OK, "the place is free again");
}

#[tokio::test]
async fn all_attempts_together_have_a_deadline() {
    let up = Upstream::start().await;
    let config = r#"
upstreams: { app: { endpoints: ["${UPSTREAM}"], timeouts: { total: 200ms } } }
routes: [{ upstream: app }]
"#;
    let gateway = Gateway::start(config, &up).await;

    let began = Instant::now();
    assert_eq!(gateway.get("/hold").await.status, StatusCode::GATEWAY_TIMEOUT);
    assert!(began.elapsed() < Duration::from_secs(10), "sixty seconds is what the timeout for reading would be");
}

/// Writes the files of an identity into the gateway's folder.
fn write_identity(builder: &Builder, name: &str, identity: &Identity) {
    std::fs::write(builder.path().join(format!("{name}.pem")), identity.own.cert.pem()).unwrap();
    std::fs::write(builder.path().join(format!("{name}.key")), identity.own.signing_key.serialize_pem()).unwrap();
}

#[tokio::test]
async fn an_upstream_is_reached_over_tls_only_where_its_certificate_is_right() {
    let identity = Identity::of("app.internal");
    let up = Upstream::tls("secure", &identity).await;
    let config = r#"
upstreams:
  right: { endpoints: ["${UPSTREAM}"], tls: { server_name: app.internal, ca: app.pem } }
  h2: { endpoints: ["${UPSTREAM}"], protocol: h2, tls: { server_name: app.internal, ca: app.pem } }
  checked:
    endpoints: ["${UPSTREAM}"]
    tls: { server_name: app.internal, ca: app.pem }
    health: { path: /healthz, host: app.internal }
  name: { endpoints: ["${UPSTREAM}"], tls: { server_name: other.internal, ca: app.pem } }
  unknown: { endpoints: ["${UPSTREAM}"], tls: { server_name: app.internal } }
routes:
  - { match: { path: /right }, upstream: right }
  - { match: { path: /h2 }, upstream: h2 }
  - { match: { path: /checked }, upstream: checked }
  - { match: { path: /name }, upstream: name }
  - { match: { path: /unknown }, upstream: unknown }
"#;
    let builder = Builder::new(config).upstream(&up);
    write_identity(&builder, "app", &identity);
    let gateway = builder.start().await;

    for path in ["/right", "/h2", "/checked"] {
        assert_eq!(gateway.get(path).await.status, StatusCode::OK, "{path}");
    }
    assert_eq!(up.requests(), 4, "three of ours, and a check");
    for path in ["/name", "/unknown"] {
        assert_eq!(gateway.get(path).await.status, StatusCode::BAD_GATEWAY, "{path}");
    }
    assert_eq!(up.requests(), 4, "nothing is sent to whom is not trusted");
}

#[tokio::test]
async fn the_gateway_shows_its_own_certificate_and_a_renewed_one_after_a_reload() {
    let (client, renewed) = (Identity::of("gateway"), Identity::of("gateway"));
    let mut identity = Identity::of("app.internal");
    identity.clients = Some(rcgen::CertifiedKey {
        cert: client.own.cert.clone(),
        signing_key: rcgen::KeyPair::from_pem(&client.own.signing_key.serialize_pem()).unwrap(),
    });
    let up = Upstream::tls("secure", &identity).await;
    let config = r#"
upstreams:
  app:
    endpoints: ["${UPSTREAM}"]
    tls: { server_name: app.internal, ca: app.pem, cert: gateway.pem, key: gateway.key }
routes: [{ upstream: app }]
"#;
    let builder = Builder::new(config).upstream(&up);
    write_identity(&builder, "app", &identity);
    write_identity(&builder, "gateway", &renewed);
    let gateway = builder.start().await;
    assert_eq!(gateway.get("/").await.status, StatusCode::BAD_GATEWAY, "the upstream does not know this one");

    std::fs::write(gateway.path().join("gateway.pem"), "nothing").unwrap();
    let refused = gateway.reload().await;
    assert!(refused.text().contains("`gateway.pem` has no certificate") || refused.text().contains("gateway.pem"));
    std::fs::write(gateway.path().join("gateway.pem"), client.own.cert.pem()).unwrap();
    let refused = gateway.reload().await;
    assert!(refused.text().contains("is not the key of its certificate"), "{}", refused.text());
    std::fs::write(gateway.path().join("gateway.key"), client.own.signing_key.serialize_pem()).unwrap();
    gateway.reload().await;

    assert_eq!(gateway.get("/").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_canary_of_which_no_endpoint_is_well_is_spared() {
    let (one, two, gateway) = pair(
        r#"
upstreams:
  app: { endpoints: ["${ONE}"] }
  next: { endpoints: ["${TWO}"], health: { path: /healthz, interval: 50ms, timeout: 50ms, unhealthy: 1, healthy: 1 } }
routes: [{ upstream: app }]
rollouts:
  next:
    upstream: app
    canary: next
    weight: 100%
    override: { trusted: [127.0.0.0/8] }
"#,
    )
    .await;
    assert_eq!(spread(&gateway, "/", 10).await, counts([("two", 10)]));

    two.set_health(503);
    let down =
        async || gateway.metric("lockgate_upstream_endpoints", &["upstream=\"next\"", "state=\"unhealthy\""]).await;
    while down().await != 1.0 {}
    let before = one.requests();
    assert_eq!(spread(&gateway, "/", 10).await, counts([("one", 10)]));
    assert_eq!(one.requests() - before, 10);
    gateway.settles("lockgate_rollout_spared_total", &["rollout=\"next\""], 10.0).await;
    // Whoever asks for it outright gets it, as it is.
    assert_eq!(gateway.get_with("/", "x-lockgate-track", "canary").await.status, StatusCode::SERVICE_UNAVAILABLE);

    two.set_health(200);
    while down().await != 0.0 {}
    assert_eq!(spread(&gateway, "/", 10).await, counts([("two", 10)]));
}

#[tokio::test]
async fn endpoints_of_a_file_are_followed_and_a_broken_file_changes_nothing() {
    let (one, two) = (Upstream::named("one").await, Upstream::named("two").await);
    let config = "upstreams: { app: { endpoints: { file: endpoints.yaml } } }\nroutes: [{ upstream: app }]";
    let builder = Builder::new(config);
    let file = builder.path().join("endpoints.yaml");
    let write = |text: &str| {
        // As whoever writes such a file should do it.
        std::fs::write(file.with_extension("new"), text).unwrap();
        std::fs::rename(file.with_extension("new"), &file).unwrap();
    };
    write(&format!("- {}", one.address));
    let gateway = builder.start().await;
    assert_eq!(spread(&gateway, "/", 5).await, counts([("one", 5)]));

    write(&format!("- {}\n- {{ address: \"{}\", weight: 3 }}", one.address, two.address));
    gateway.says("endpoints changed").await;
    assert_eq!(spread(&gateway, "/", 40).await, counts([("one", 10), ("two", 30)]));
    let failing = async || gateway.metric("lockgate_upstream_file_failing", &["upstream=\"app\""]).await;
    assert_eq!(failing().await, 0.0);

    write("- nowhere");
    while failing().await != 1.0 {}
    assert_eq!(spread(&gateway, "/", 40).await, counts([("one", 10), ("two", 30)]));
    // Other changes go on.
    gateway.write_config(&config.replace("upstream: app", "upstream: app, compress: [gzip]"));
    assert_eq!(gateway.reload().await.status, StatusCode::OK);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(spread(&gateway, "/", 40).await, counts([("one", 10), ("two", 30)]));
    // What begins with a broken file is refused.
    gateway.write_config(&config.replace("app", "other"));
    let refused = gateway.reload().await;
    assert!(refused.text().contains("cannot use `endpoints.yaml`"), "{refused:?}");

    let said = gateway.said();
    gateway.write_config(config);
    write(&format!("- {}", two.address));
    gateway.says_after(said, "endpoints changed").await;
    assert_eq!(spread(&gateway, "/", 5).await, counts([("two", 5)]));
    assert_eq!(failing().await, 0.0);
}
