//! The admin API: who is let in, and what it says.

mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use harness::{Gateway, Upstream};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

const CONFIG: &str = r#"
upstreams: { app: ["${UPSTREAM}"] }
filters: { tag: { component: filters/tag.wasm, settings: { value: v1 } } }
routes: [{ name: all, filters: [tag], upstream: app }]
rollouts:
  tag-2: { filter: tag, canary: { settings: { value: v2 } }, weight: 5%, key: [{ header: x-user-id }, client_ip] }
"#;

async fn json(gateway: &Gateway, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
    let reply = gateway.admin(method, path, body).await;
    let value = serde_json::from_slice(&reply.body).unwrap_or_else(|error| panic!("{error}: {}", reply.text()));
    (reply.status, value)
}

#[tokio::test]
async fn a_rollout_is_moved_explained_and_recorded() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let rollout = "/api/v1/rollouts/tag-2";

    let (status, view) = json(&gateway, Method::GET, rollout, None).await;
    assert_eq!((status, &view["state"], &view["weight"]), (StatusCode::OK, &json!("ramping"), &json!("5%")));

    let weight = Some(json!({ "weight": "100%" }));
    let (status, view) = json(&gateway, Method::PUT, &format!("{rollout}/weight"), weight).await;
    assert_eq!((status, &view["weight"], &view["differs_from_file"]), (StatusCode::OK, &json!("100%"), &json!(true)));
    assert_eq!(gateway.get_with("/", "x-user-id", "42").await.header("x-tag"), "v2");

    let (_, explained) = json(&gateway, Method::GET, &format!("{rollout}/explain?header=x-user-id:42"), None).await;
    assert_eq!((&explained["track"], &explained["key"]), (&json!("canary"), &json!("header x-user-id")));

    let why = Some(json!({ "why": "logins fail" }));
    let (status, view) = json(&gateway, Method::POST, &format!("{rollout}/rollback"), why).await;
    assert_eq!((status, &view["state"]), (StatusCode::OK, &json!("rolled-back")));
    assert_eq!(gateway.get_with("/", "x-user-id", "42").await.header("x-tag"), "v1");

    let (status, refused) = json(&gateway, Method::POST, &format!("{rollout}/promote"), None).await;
    assert_eq!((status, &refused["kind"]), (StatusCode::CONFLICT, &json!("not-allowed")));
    let (status, view) = json(&gateway, Method::POST, &format!("{rollout}/resume"), None).await;
    assert_eq!((status, &view["weight"]), (StatusCode::OK, &json!("100%")));
    let (status, view) = json(&gateway, Method::POST, &format!("{rollout}/promote"), None).await;
    assert_eq!((status, &view["state"]), (StatusCode::OK, &json!("promoted")));
    assert_eq!(gateway.get("/").await.header("x-tag"), "v2");

    let (_, audit) = json(&gateway, Method::GET, "/api/v1/audit?last=6", None).await;
    let actions: Vec<&str> = audit.as_array().unwrap().iter().filter_map(|entry| entry["action"].as_str()).collect();
    assert_eq!(actions, ["set-weight", "quarantine", "roll-back", "release", "resume", "promote"]);
    assert_eq!(audit[1]["actor"], "api 127.0.0.1");
    let export = gateway.admin(Method::GET, "/api/v1/export", None).await.text();
    assert!(export.contains("`tag-2` is promoted"), "{export}");
}

#[tokio::test]
async fn what_is_wrong_is_said_with_a_kind_and_the_right_status() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let cases = [
        (Method::GET, "/nowhere", None, 404, "no-such-path"),
        (Method::DELETE, "/api/v1/status", None, 405, "no-such-method"),
        (Method::GET, "/api/v1/rollouts/none", None, 404, "unknown-rollout"),
        (Method::POST, "/api/v1/rollouts/none/promote", None, 404, "unknown-rollout"),
        (Method::PUT, "/api/v1/rollouts/tag-2/weight", Some(json!({ "weight": "5" })), 400, "bad-request"),
        (Method::PUT, "/api/v1/rollouts/tag-2/weight", Some(json!({ "wieght": "5%" })), 400, "bad-request"),
        (Method::GET, "/api/v1/rollouts/tag-2/explain?user=42", None, 400, "bad-request"),
        (Method::GET, "/api/v1/audit?last=many", None, 400, "bad-request"),
        (Method::DELETE, "/api/v1/quarantine/012345.6789ab.cdef01", None, 404, "unknown-version"),
        (Method::POST, "/api/v1/cache/prune", Some(json!({ "to": "much" })), 400, "bad-request"),
        (Method::POST, "/api/v1/reload", Some(json!({ "x": "x".repeat(70 << 10) })), 413, "body-too-large"),
    ];
    for (method, path, body, status, kind) in cases {
        let (got, problem) = json(&gateway, method.clone(), path, body).await;
        assert_eq!((got.as_u16(), &problem["kind"]), (status, &json!(kind)), "{method} {path}: {problem}");
        assert!(problem["error"].is_string(), "{problem}");
    }
}

#[tokio::test]
async fn what_is_described_is_there() {
    let up = Upstream::start().await;
    // What is counted can be asked for only where something is.
    let gateway = Gateway::start(&CONFIG.replace("weight: 5%", "weight: 5%, guard: {}"), &up).await;
    let (_, description) = json(&gateway, Method::GET, "/openapi.json", None).await;
    for (path, item) in description["paths"].as_object().unwrap() {
        // What never ends has a test of its own, and so has what only some rollouts have.
        if item.get("get").is_none() || path == "/api/v1/events" || path.ends_with("/shadow") {
            continue;
        }
        let path = path.replace("{rollout}", "tag-2");
        let reply = gateway.admin(Method::GET, &path, None).await;
        assert_eq!(reply.status, StatusCode::OK, "{path}: {}", reply.text());
    }
    let (_, routes) = json(&gateway, Method::GET, "/api/v1/routes", None).await;
    assert_eq!(routes[0]["name"], "all");
    let metrics = gateway.metrics().await;
    assert!(metrics.contains("lockgate_rollout_weight_ratio{rollout=\"tag-2\"} 0.05"), "{metrics}");
}

/// What a dashboard may count on: each family that a gateway with a filter, an upstream and a rollout has, with the names
/// of its labels.
#[tokio::test]
async fn every_metric_is_there() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    for path in ["/", "/status/500", "/status/404"] {
        gateway.get(path).await;
    }
    gateway.write_config(&CONFIG.replace("value: v1", "value: v3"));
    assert_eq!(gateway.reload().await.status, StatusCode::OK);
    gateway.get("/").await;

    let text = gateway.metrics().await;
    let mut families = BTreeMap::<&str, BTreeSet<&str>>::new();
    for line in text.lines().filter(|line| line.starts_with("# HELP lockgate_")) {
        families.insert(line.split(' ').nth(2).unwrap(), BTreeSet::new());
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, labels) = line.split_once(['{', ' ']).unwrap();
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let family = if families.contains_key(name) { name } else { of_histogram.unwrap_or(name) };
        let Some(names) = families.get_mut(family) else {
            assert!(!name.starts_with("lockgate_"), "{name} has no help");
            continue;
        };
        if line.contains('{') {
            let labels = labels.rsplit_once('}').unwrap().0.split("\",").map(|label| label.split_once('=').unwrap().0);
            names.extend(labels.filter(|label| *label != "le"));
        }
    }
    let mut list = String::new();
    for (family, labels) in families {
        let labels = labels.into_iter().collect::<Vec<_>>().join(" ");
        writeln!(list, "{}", format!("{family} {labels}").trim_end()).unwrap();
    }
    insta::assert_snapshot!(list, @"
    lockgate_accept_errors_total
    lockgate_access_log_dropped_total
    lockgate_cache_bytes
    lockgate_cache_hits_total
    lockgate_cache_misses_total
    lockgate_cache_rejects_total reason
    lockgate_compile_seconds_total
    lockgate_connections
    lockgate_connections_cut_total listener reason
    lockgate_connections_total
    lockgate_drain_left_total
    lockgate_draining_requests
    lockgate_draining_snapshots
    lockgate_errors_total kind source
    lockgate_filter_calls_total filter outcome phase track version
    lockgate_filter_duration_seconds filter phase track version
    lockgate_filter_events_total filter version
    lockgate_filter_failures_total filter kind track version
    lockgate_filter_instances filter version
    lockgate_filter_lines_dropped_total filter version
    lockgate_filter_memory_bytes filter version
    lockgate_filter_outbound_refused_total filter reason version
    lockgate_filter_snapshotted filter version
    lockgate_generation
    lockgate_key_value_operations_total operation outcome
    lockgate_key_value_wait_seconds_total operation
    lockgate_pool_size resource
    lockgate_pool_used resource
    lockgate_reload_failing
    lockgate_reload_success_timestamp_seconds
    lockgate_reloads_total outcome
    lockgate_request_duration_seconds class route
    lockgate_requests_total class route
    lockgate_rollout_decisions_total action rollout
    lockgate_rollout_held reason rollout
    lockgate_rollout_requests_total rollout track
    lockgate_rollout_spared_total rollout
    lockgate_rollout_weight_ratio rollout
    lockgate_state_corruptions_total
    lockgate_swap_duration_seconds
    lockgate_tls_handshakes_total listener outcome
    lockgate_trace_spans_total outcome
    lockgate_tunnels
    lockgate_tunnels_cut_total
    lockgate_tunnels_total
    lockgate_upstream_connections upstream
    lockgate_upstream_duration_seconds upstream
    lockgate_upstream_ejections_total upstream
    lockgate_upstream_endpoints state upstream
    lockgate_upstream_file_failing upstream
    lockgate_upstream_overflows_total limit outcome upstream
    lockgate_upstream_pending upstream
    lockgate_upstream_pending_seconds upstream
    lockgate_upstream_requests_total class upstream
    lockgate_upstream_retries_total reason upstream
    ");
}

#[tokio::test]
async fn web_pages_are_not_let_in() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let call = |name: &'static str, value: &'static str| {
        gateway.client().get(gateway.admin_url("/api/v1/status")).header(name, value).send()
    };
    assert_eq!(call("host", "evil.example").await.unwrap().status(), StatusCode::FORBIDDEN);
    assert_eq!(call("origin", "http://evil.example").await.unwrap().status(), StatusCode::FORBIDDEN);
    assert_eq!(call("host", "localhost:9901").await.unwrap().status(), StatusCode::OK);
}

/// A gateway whose admin listener is not the harness's.
struct Own {
    _child: tokio::process::Child,
    dir: tempfile::TempDir,
    address: String,
}

impl Own {
    async fn start(admin: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("lockgate-test-").tempdir().unwrap();
        let config = format!(
            "listeners: [\"127.0.0.1:0\"]\nadmin: {admin}\nupstreams: {{ app: [\"127.0.0.1:1\"] }}\nroutes: [{{ upstream: app }}]\n"
        );
        std::fs::write(dir.path().join("lockgate.yaml"), config.replace("DIR", &dir.path().display().to_string()))
            .unwrap();
        let mut child = command(&dir).arg("run").stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut address = None;
        while let Some(line) = log.next_line().await.unwrap() {
            let line: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
            if line["message"] == "listening" && line["kind"] == "admin" {
                address = line["address"].as_str().map(str::to_owned);
            }
            if line["message"] == "serving" {
                break;
            }
        }
        tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
        Self { _child: child, dir, address: address.expect("it says where it listens") }
    }

    async fn cli(&self, arguments: &[&str], token: Option<&str>) -> (Option<i32>, String) {
        let mut command = command(&self.dir);
        command.args(arguments).arg("--admin").arg(&self.address);
        if let Some(token) = token {
            command.env("LOCKGATE_ADMIN_TOKEN", token);
        }
        let output = command.output().await.unwrap();
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }
}

fn command(dir: &tempfile::TempDir) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_lockgate"));
    command.current_dir(dir.path()).env("LOCKGATE_LOG_FORMAT", "json").stdin(Stdio::null());
    command
}

#[tokio::test]
async fn without_the_token_only_probes_and_scrapers_are_let_in() {
    let own = Own::start("{ address: \"127.0.0.1:0\", token: s3cret }").await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = |path: &str| format!("http://{}{path}", own.address);
    for open in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(client.get(url(open)).send().await.unwrap().status(), StatusCode::OK, "{open}");
    }
    for closed in ["/api/v1/status", "/openapi.json", "/nowhere"] {
        let reply = client.get(url(closed)).send().await.unwrap();
        assert_eq!(reply.status(), StatusCode::UNAUTHORIZED, "{closed}");
        assert_eq!(reply.headers()["www-authenticate"], "Bearer");
        let reply = client.get(url(closed)).bearer_auth("wrong").send().await.unwrap();
        assert_eq!(reply.status(), StatusCode::UNAUTHORIZED, "{closed}");
    }
    let reply = client.get(url("/api/v1/status")).bearer_auth("s3cret").send().await.unwrap();
    assert_eq!(reply.status(), StatusCode::OK);
    let reply = client.get(url("/api/v1/config")).bearer_auth("s3cret").send().await.unwrap();
    assert!(!reply.text().await.unwrap().contains("s3cret"));

    let (code, said) = own.cli(&["status"], None).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("the token is missing"), "{said}");
    let (code, said) = own.cli(&["status"], Some("s3cret")).await;
    assert_eq!(code, Some(0), "{said}");
}

#[tokio::test]
async fn a_unix_socket_is_for_its_owner_and_needs_no_token() {
    let own = Own::start("{ address: \"unix:DIR/admin.sock\" }").await;
    let path = own.dir.path().join("admin.sock");
    assert_eq!(own.address, format!("unix:{}", path.display()));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: lockgate\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let (code, said) = own.cli(&["reload"], None).await;
    assert_eq!((code, said.trim()), (Some(0), "unchanged: the file and its components are what serves already"));
    let (_, said) = own.cli(&["status"], None).await;
    assert!(said.contains(&format!("by cli by uid {}", rustix::process::geteuid().as_raw())), "{said}");
}

#[tokio::test]
async fn a_filter_that_cannot_be_snapshotted_is_told_with_its_reason() {
    const CONFIG: &str = r#"
upstreams: { app: ["${UPSTREAM}"] }
filters:
  tag: { component: filters/tag.wasm, settings: { value: v1 } }
  prints: { component: filters/println-configure.wasm }
routes: [{ name: all, filters: [tag, prints], upstream: app }]
"#;
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    for (filter, snapshotted) in [("tag", 1.0), ("prints", 0.0)] {
        let series = gateway.metrics().await;
        let line = format!("lockgate_filter_snapshotted{{filter=\"{filter}\",version=");
        let value = series.lines().find(|series| series.starts_with(&line)).and_then(|line| line.rsplit(' ').next());
        assert_eq!(value.and_then(|value| value.parse().ok()), Some(snapshotted), "{filter}");
    }
    let (_, status) = json(&gateway, Method::GET, "/api/v1/status", None).await;
    let text = status.to_string();
    assert!(text.contains("it printed or opened something in `configure` and holds on to it"), "{text}");
}
