//! What guests may touch, and who lets them: through the real binary.

mod harness;

use std::fs;

use harness::{Builder, Gateway, Upstream};
use lockgate_guests::Guest;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

async fn start(config: &str) -> Gateway {
    Gateway::start(config, &Upstream::start().await).await
}

#[tokio::test]
async fn an_address_that_is_not_granted_is_refused_by_name_in_log_and_metrics() {
    let up = Upstream::start().await;
    let port = up.address.port().to_string();
    // The address that is listed is not the one that the name leads to.
    let config = r#"
functions:
  fn:
    component: filters/function.wasm
    grants: { outbound: [{ to: "http://localhost:${PORT}", addresses: [10.0.0.0/8] }, { to: "http://a.example", methods: POST }] }
routes: [{ function: fn }]
"#;
    let gateway = Builder::new(config).variable("PORT", &port).guest(Guest::Function).start().await;
    for (target, kind, told) in [
        (format!("/fetch?localhost:{port}"), "denied-address", "a loopback address, which the grant does not list"),
        ("/fetch?a.example".to_owned(), "denied-method", "its method is GET, and the grant is for POST"),
        ("/fetch?b.example".to_owned(), "denied", "no grant covers it"),
    ] {
        assert_eq!(gateway.get(&target).await.status, StatusCode::SERVICE_UNAVAILABLE, "{target}");
        gateway.says(told).await;
        let of = |label: &str| ["function=\"fn\"".to_owned(), format!("{label}=\"{kind}\"")];
        for (metric, label) in
            [("lockgate_function_outbound_refused_total", "reason"), ("lockgate_function_failures_total", "kind")]
        {
            let [function, reason] = of(label);
            gateway.settles(metric, &[&function, &reason], 1.0).await;
        }
    }
    assert_eq!(up.requests(), 0);
}

const FILES: &str = r#"
functions:
  files: { component: filters/files.wasm, grants: { folders: [{ path: ./data, as: /data }] } }
routes: [{ function: files }]
"#;

#[tokio::test]
async fn a_function_reads_the_folder_that_it_is_granted_and_a_missing_one_is_told_at_its_place() {
    let builder = Builder::new(FILES).guest(Guest::Files);
    fs::create_dir(builder.path().join("data")).expect("a folder");
    fs::write(builder.path().join("data/a.txt"), "a file\n").expect("a file");
    let gateway = builder.start().await;
    assert_eq!(gateway.get("/read?/data/a.txt").await.text(), "a file\n");
    for target in ["/write?/data/a.txt", "/read?/data/../lockgate.yaml", "/read?/etc/passwd"] {
        assert_eq!(gateway.get(target).await.status, StatusCode::FORBIDDEN, "{target}");
    }
    gateway.write_config(&FILES.replace("./data,", "./missing,"));
    let reply = gateway.reload().await;
    assert_eq!(reply.status, StatusCode::UNPROCESSABLE_ENTITY);
    let told = reply.text();
    assert!(
        told.contains("missing` is no folder") && told.contains("functions.files.grants.folders[0].path"),
        "{told}"
    );
    assert_eq!(gateway.get("/read?/data/a.txt").await.text(), "a file\n");
}

const APPROVED: &str = r#"
server: { require_approval: grants, watch: false }
functions:
  fn: { component: filters/function.wasm, vars: { VERSION: v1 }, grants: { outbound: ["http://a.example"] } }
routes: [{ function: fn }]
"#;

/// With a canary for everybody that may do more.
fn with_canary() -> String {
    let canary = r#"
rollouts:
  fn-2:
    function: fn
    canary: { vars: { VERSION: v2 }, grants: { outbound: ["http://a.example", "http://b.example"] } }
    weight: 100%
"#;
    format!("{APPROVED}{canary}")
}

async fn version(gateway: &Gateway) -> String {
    gateway.get("/").await.header("x-version").to_owned()
}

async fn status(gateway: &Gateway) -> Value {
    gateway.admin(Method::GET, "/api/v1/status", None).await.json()
}

/// Runs a command while the gateway does not.
async fn offline(gateway: &Gateway, arguments: &[&str]) -> (bool, String) {
    let config = gateway.path().join("lockgate.yaml");
    let output = gateway.command().args(arguments).env("LOCKGATE_CONFIG", config).output().await;
    let output = output.expect("the command runs");
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[tokio::test]
async fn a_canary_that_may_do_more_waits_until_somebody_lets_it_in() {
    let mut gateway = start(APPROVED).await;
    gateway.write_config(&with_canary());
    assert_eq!(gateway.reload().await.status, StatusCode::OK);
    assert_eq!(version(&gateway).await, "v1");

    let told = status(&gateway).await;
    assert_eq!(told["rollouts"][0]["state"], "waiting");
    assert_eq!(told["rollouts"][0]["weight"], "0%");
    let gain = "send requests of any method to http://b.example:80";
    assert_eq!(told["approvals"][0]["gains"], json!([gain]));
    gateway.settles("lockgate_approval_waiting", &["kind=\"function\"", "name=\"fn\""], 1.0).await;
    let (_, said) = gateway.cli(&["status"]).await;
    assert!(said.contains("fn-2 waits for approval") && said.contains(gain), "{said}");
    for decision in ["promote", "resume"] {
        let path = format!("/api/v1/rollouts/fn-2/{decision}");
        let reply = gateway.admin(Method::POST, &path, None).await;
        assert_eq!(reply.status, StatusCode::CONFLICT, "{decision}");
        assert!(reply.text().contains("lockgate approve fn"), "{}", reply.text());
    }

    // It waits over a restart, and so does its approval hold.
    gateway.kill().await;
    gateway.launch().await;
    assert_eq!(
        (version(&gateway).await, status(&gateway).await["rollouts"][0]["state"].clone()),
        ("v1".into(), "waiting".into())
    );
    let (_, listed) = gateway.cli(&["approve", "--list"]).await;
    assert!(listed.contains("rollout fn-2") && listed.contains(gain), "{listed}");
    let wrong =
        gateway.admin(Method::POST, "/api/v1/approvals/fn", Some(json!({ "version": "000000.000000.000000" }))).await;
    assert_eq!(wrong.status, StatusCode::NOT_FOUND);
    let (done, said) = gateway.cli(&["approve", "fn"]).await;
    assert!(done.success() && said.contains(gain), "{said}");
    assert_eq!(version(&gateway).await, "v2");
    assert_eq!(gateway.metric_or_zero("lockgate_approval_waiting", &[]).await, 0.0);
    gateway.kill().await;
    gateway.launch().await;
    assert_eq!(version(&gateway).await, "v2");

    // Who, what and when.
    let audit: Value = gateway.admin(Method::GET, "/api/v1/audit", None).await.json();
    let entries: Vec<_> = audit.as_array().expect("entries").iter().collect();
    let of = |action: &str| entries.iter().filter(|entry| entry["action"] == action).collect::<Vec<_>>();
    let granted = of("grant");
    assert_eq!(granted.len(), 1, "{audit:#}");
    assert!(granted[0]["after"].as_str().is_some_and(|after| after.contains(gain)), "{audit:#}");
    let approved = of("approve");
    assert!(approved.iter().any(|entry| entry["subject"].as_str().is_some_and(|it| it.starts_with("function fn "))));
    assert!(approved.iter().all(|entry| entry["actor"].as_str().is_some_and(|it| it.starts_with("cli"))), "{audit:#}");
}

#[tokio::test]
async fn an_approval_is_for_one_version() {
    let gateway = start(APPROVED).await;
    gateway.write_config(&with_canary());
    gateway.reload().await;
    assert!(gateway.cli(&["approve", "fn"]).await.0.success());
    gateway.write_config(&with_canary().replace("VERSION: v2", "VERSION: v3"));
    assert_eq!(gateway.reload().await.status, StatusCode::OK);
    assert_eq!(version(&gateway).await, "v1");
    assert_eq!(status(&gateway).await["rollouts"][0]["state"], "waiting");
    // A canary that may do no more than stable has nobody to wait for.
    gateway.write_config(&with_canary().replace(", \"http://b.example\"", ""));
    assert_eq!(gateway.reload().await.status, StatusCode::OK);
    assert_eq!(version(&gateway).await, "v2");
}

#[tokio::test]
async fn a_stable_version_that_may_do_more_keeps_its_file_waiting() {
    let mut gateway = start(APPROVED).await;
    let wider = APPROVED.replace("VERSION: v1", "VERSION: v2, TOKEN: secret");
    gateway.write_config(&wider);
    let refused = gateway.reload().await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
    let told = refused.text();
    assert!(told.contains("see the variable TOKEN") && told.contains("lockgate approve fn"), "{told}");
    assert_eq!(version(&gateway).await, "v1");
    assert_eq!(status(&gateway).await["approvals"][0]["rollout"], Value::Null);

    // A restart is no way around it.
    gateway.kill().await;
    let (started, said) = offline(&gateway, &["run"]).await;
    assert!(!started && said.contains("waits for approval"), "{said}");
    let (checked, said) = offline(&gateway, &["check"]).await;
    assert!(checked && said.contains("it waits for `lockgate approve`"), "{said}");
    gateway.write_config(APPROVED);
    gateway.launch().await;
    gateway.write_config(&wider);
    gateway.reload().await;
    assert!(gateway.cli(&["approve", "fn"]).await.0.success());
    // The file is read again by itself.
    gateway.says("\"reloaded\"").await;
    assert_eq!(version(&gateway).await, "v2");
}

#[tokio::test]
async fn a_version_is_let_in_while_no_gateway_runs() {
    let mut gateway = start(APPROVED).await;
    let (running, said) = gateway.cli(&["approve", "fn", "--offline"]).await;
    assert!(!running.success() && said.contains("a gateway runs"), "{said}");
    gateway.write_config(&APPROVED.replace("VERSION: v1", "VERSION: v2, TOKEN: secret"));
    gateway.kill().await;
    let (approved, said) = offline(&gateway, &["approve", "fn", "--offline"]).await;
    assert!(approved && said.contains("see the variable TOKEN"), "{said}");
    gateway.launch().await;
    assert_eq!(version(&gateway).await, "v2");
}

#[tokio::test]
async fn without_the_setting_nobody_is_asked_and_the_gain_is_told_all_the_same() {
    let config = |text: &str| text.replace("require_approval: grants, ", "");
    let gateway = start(&config(APPROVED)).await;
    gateway.write_config(&config(&with_canary()));
    assert_eq!(gateway.reload().await.status, StatusCode::OK);
    assert_eq!(version(&gateway).await, "v2");
    let (_, said) = gateway.cli(&["check"]).await;
    assert!(
        said.contains("the canary of rollout fn-2 may send requests of any method to http://b.example:80"),
        "{said}"
    );
    let audit: Value = gateway.admin(Method::GET, "/api/v1/audit", None).await.json();
    assert!(
        audit.as_array().is_some_and(|entries| entries.iter().any(|entry| entry["action"] == "grant")),
        "{audit:#}"
    );
}

#[tokio::test]
async fn what_versions_may_touch_can_be_asked_for_by_name() {
    let gateway = start(APPROVED).await;
    gateway.write_config(&with_canary());
    let (asked, said) = offline(&gateway, &["inspect", "fn"]).await;
    assert!(asked, "{said}");
    let lines: Vec<&str> = said.lines().collect();
    let a = "may send requests of any method to http://a.example:80";
    let b = "may send requests of any method to http://b.example:80";
    assert!(lines[0].starts_with("function fn, stable: ") && lines[0].ends_with(", filters/function.wasm"), "{said}");
    assert_eq!(lines[1..3], [format!("  {a}"), "  may see the variable VERSION".to_owned()]);
    assert!(lines[3].starts_with("function fn, canary of rollout fn-2: "), "{said}");
    let only = format!("  may, and stable may not, {}", b.strip_prefix("may ").unwrap_or(b));
    assert_eq!(lines[4..], [format!("  {a}"), format!("  {b}"), "  may see the variable VERSION".to_owned(), only]);
    let (_, said) = offline(&gateway, &["inspect", "fn", "--json"]).await;
    let told: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(told[0]["versions"][1]["gains"], json!(["send requests of any method to http://b.example:80"]));
    let (asked, said) = offline(&gateway, &["inspect", "nobody"]).await;
    assert!(!asked && said.contains("it has `fn`"), "{said}");
}

const ASKING: &str = r#"
upstreams:
  users: ["${UPSTREAM}"]
  next: { endpoints: ["${NEXT}"], retries: { attempts: 1 } }
  dead: ["127.0.0.1:1"]
filters:
  asks:
    component: filters/outbound.wasm
    settings: { url: "http://users.upstream/asked?by=filter", body: ping }
    grants: { outbound: ["upstream:users"] }
functions:
  fn:
    component: filters/function.wasm
    grants: { outbound: [{ to: "upstream:users", methods: [GET] }, "upstream:dead"] }
routes:
  - { match: { path: /filtered }, filters: [asks], upstream: next }
  - { function: fn }
rollouts:
  users-2: { upstream: users, canary: next, weight: 0%, key: [{ header: x-user }], override: { trusted: [127.0.0.0/8] } }
"#;

async fn asking(up: &Upstream, next: &Upstream) -> Gateway {
    let builder = Builder::new(ASKING).upstream(up).variable("NEXT", &next.address.to_string());
    builder.guest(Guest::Outbound).guest(Guest::Function).start().await
}

#[tokio::test]
async fn guests_reach_an_upstream_by_its_name_on_the_track_of_their_request() {
    let (up, next) = (Upstream::start().await, Upstream::start().await);
    let gateway = asking(&up, &next).await;
    assert_eq!(gateway.get("/fetch?users.upstream").await.text(), "200\n");
    assert_eq!((up.requests(), next.requests()), (1, 0));
    // The request's track is that of what its guests ask.
    let reply = gateway.get_with("/fetch?users.upstream", "x-lockgate-track", "canary").await;
    assert_eq!((reply.status, up.requests(), next.requests()), (StatusCode::OK, 1, 1));
    // A filter, with a body, and a target behind it.
    let filtered = gateway.get("/filtered").await;
    let came = filtered.seen().header("x-outbound").to_owned();
    assert!(came.starts_with("200 ") && came.contains("/asked?by=filter") && came.contains("users.upstream"), "{came}");
    assert_eq!((up.requests(), next.requests()), (2, 2));

    // It counts as one of the upstream's requests, and is no request of the gateway's.
    gateway.logged(|line| line["path"] == "/filtered").await;
    let of = ["upstream=\"users\"", "class=\"2xx\""];
    gateway.settles("lockgate_upstream_requests_total", &of, 2.0).await;
    gateway.settles("lockgate_requests_total", &[], 3.0).await;
    assert_eq!(gateway.access_log().len(), 3);
}

/// Two endpoints, of which one may be unwell, asked by a guest.
const BALANCED: &str = r#"
experimental: [wasi-0.3]
upstreams:
  users:
    endpoints: ["${ONE}", "${TWO}"]
    retries: { attempts: 2 }
    health: { path: /healthz, interval: 50ms, timeout: 50ms, unhealthy: 1, healthy: 1 }
functions:
  fn: { component: filters/GUEST.wasm, grants: { outbound: ["upstream:users"] } }
routes: [{ function: fn }]
"#;

#[tokio::test]
async fn what_guests_ask_of_an_upstream_is_balanced_checked_and_retried() {
    for guest in [Guest::Function, Guest::Service] {
        let (one, two) = (Upstream::start().await, Upstream::start().await);
        let config = BALANCED.replace("GUEST", guest.name());
        let builder = Builder::new(&config).guest(guest);
        let builder = builder.variable("ONE", &one.address.to_string()).variable("TWO", &two.address.to_string());
        let gateway = builder.start().await;
        let ask = async |times: usize| {
            for _ in 0..times {
                let reply = gateway.get("/fetch?users.upstream").await;
                assert_eq!((reply.status, &*reply.text()), (StatusCode::OK, "200\n"), "{}", guest.name());
            }
        };
        let unhealthy = async |count: f64| {
            while gateway.metric("lockgate_upstream_endpoints", &["state=\"unhealthy\""]).await != count {}
        };
        ask(20).await;
        assert!(one.asked() >= 4 && two.asked() >= 4, "{}: {} and {}", guest.name(), one.asked(), two.asked());
        one.set_health(503);
        unhealthy(1.0).await;
        let before = one.asked();
        ask(20).await;
        assert_eq!(one.asked(), before, "{}: who is unwell is not asked", guest.name());
        one.set_health(200);
        unhealthy(0.0).await;
        // Gone, before any check has said so: another one is asked in its place.
        drop(one);
        ask(10).await;
    }
}

#[tokio::test]
async fn an_upstream_that_is_not_granted_or_does_not_answer_is_the_guests_error() {
    let (up, next) = (Upstream::start().await, Upstream::start().await);
    let gateway = asking(&up, &next).await;
    for (target, told) in [
        ("/fetch?next.upstream", "an outbound request to the upstream `next` was denied: no grant covers it"),
        ("/fetch?dead.upstream", "ConnectionRefused"),
    ] {
        assert_eq!(gateway.get(target).await.status, StatusCode::SERVICE_UNAVAILABLE, "{target}");
        gateway.says(told).await;
    }
    gateway.settles("lockgate_function_outbound_refused_total", &["reason=\"denied\""], 1.0).await;
    assert_eq!((up.requests(), next.requests()), (0, 0));
    // Nothing of it is left: the next one is as good as the first.
    assert_eq!(gateway.get("/fetch?users.upstream").await.text(), "200\n");
}
