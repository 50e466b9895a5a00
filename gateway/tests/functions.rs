//! Functions: standard `wasi:http` components as targets, through the real binary.

mod harness;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use harness::{Builder, Gateway, Upstream};
use lockgate_guests::Guest;
use reqwest::{Client, Method, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use xxhash_rust::xxh3::xxh3_64;

const FUNCTION: &str = r#"
functions:
  fn:
    component: filters/function.wasm
    vars: { VERSION: v1 }
    limits: { deadline: 2s, cpu: 400ms, memory: 16MiB }
routes: [{ name: all, function: fn }]
"#;

/// Starts a gateway whose upstream, if it has one at all, does not matter.
async fn start(config: &str) -> Gateway {
    Gateway::start(config, &Upstream::start().await).await
}

fn http2() -> Client {
    Client::builder().no_proxy().http2_prior_knowledge().build().expect("a client")
}

#[tokio::test]
async fn a_function_answers_over_both_versions_of_http_and_the_log_tells_which_one_it_was() {
    let gateway = start(FUNCTION).await;
    for client in [gateway.client(), &http2()] {
        let reply = gateway.send(client.get(gateway.url("/a/b?c=d"))).await;
        assert_eq!((reply.status, &*reply.text()), (StatusCode::OK, "GET /a/b?c=d v1\n"));
        assert_eq!(reply.header("content-type"), "text/plain");
        // What is short goes out whole, with its length.
        assert_eq!(reply.header("content-length"), "16");
        assert!(!reply.header("date").is_empty());
    }
    let line = gateway.logged(|line| line["path"] == "/a/b" && line["function"]["outcome"] == "respond").await;
    assert_eq!((&line["function"]["name"], &line["function"]["track"]), (&"fn".into(), &"stable".into()));
    assert!(line["function"]["version"].as_str().is_some_and(|label| label.len() == 20), "{line}");
    gateway.settles("lockgate_function_calls_total", &["function=\"fn\"", "outcome=\"respond\""], 2.0).await;
    gateway.settles("lockgate_function_instances", &["function=\"fn\""], 0.0).await;
}

#[tokio::test]
async fn a_function_sees_what_an_upstream_would() {
    let gateway = start(FUNCTION).await;
    let request = gateway.client().get(gateway.url("/request")).header("x-mine", "1").header("x-lockgate-track", "x");
    let seen = gateway.send(request.header("host", "shop.example.com")).await.text();
    assert!(seen.starts_with("GET Some(Scheme::Http) shop.example.com /request\n"), "{seen}");
    for there in ["x-mine: 1", "x-forwarded-for: 127.0.0.1", "x-request-id: "] {
        assert!(seen.contains(there), "{there}: {seen}");
    }
    for absent in ["host: ", "connection", "x-lockgate-track"] {
        assert!(!seen.contains(&format!("\n{absent}")), "{absent}: {seen}");
    }
}

#[tokio::test]
async fn answers_without_a_body_have_none() {
    let gateway = start(FUNCTION).await;
    for status in [204_u16, 304, 200] {
        let reply = gateway.get(&format!("/status?{status}")).await;
        assert_eq!((reply.status.as_u16(), reply.body.len()), (status, 0));
        assert_eq!(reply.header("x-status"), "as asked");
    }
    let head = gateway.send(gateway.client().request(Method::HEAD, gateway.url("/download?100"))).await;
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (StatusCode::OK, "100", 0));
    // The connection is as good as before.
    assert_eq!(gateway.get("/").await.status, StatusCode::OK);
}

#[tokio::test]
async fn events_arrive_as_they_are_written() {
    let gateway = start(FUNCTION).await;
    for client in [gateway.client(), &http2()] {
        let began = Instant::now();
        let response = client.get(gateway.url("/events?8")).send().await.expect("an answer");
        let mut stream = response.bytes_stream();
        let mut arrived = Vec::new();
        while let Some(piece) = stream.next().await {
            arrived.push((began.elapsed(), piece.expect("a piece")));
        }
        let text: Vec<u8> = arrived.iter().flat_map(|(_, piece)| piece.to_vec()).collect();
        assert_eq!(String::from_utf8_lossy(&text), (0..8).map(|n| format!("data: {n}\n\n")).collect::<String>());
        let (first, last) = (arrived.first().expect("a piece").0, arrived.last().expect("a piece").0);
        // 50 ms lie between two events: they were not saved up.
        assert!(arrived.len() >= 4 && last - first >= Duration::from_millis(200), "{arrived:?}");
    }
}

#[tokio::test]
async fn an_echo_is_what_was_sent() {
    let gateway = start(&FUNCTION.replace("cpu: 400ms", "cpu: 20s")).await;
    let bytes: Vec<u8> = (0..300_000_usize).map(|index| (index * 13 % 241) as u8).collect();
    for client in [gateway.client(), &http2()] {
        let reply = gateway.send(client.post(gateway.url("/echo")).body(bytes.clone())).await;
        assert_eq!((reply.status, xxh3_64(&reply.body)), (StatusCode::OK, xxh3_64(&bytes)));
        let reply = gateway.send(client.post(gateway.url("/echo")).body("")).await;
        assert_eq!((reply.status, reply.body.len()), (StatusCode::OK, 0));
    }
}

#[tokio::test]
async fn a_client_that_expects_to_be_told_is_told_when_the_function_reads() {
    let gateway = start(FUNCTION).await;
    for (path, told) in [("/length", true), ("/ignore", false)] {
        let mut stream = TcpStream::connect(gateway.http()).await.expect("a connection");
        let head = format!("POST {path} HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n");
        stream.write_all(head.as_bytes()).await.expect("it is sent");
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.expect("an answer");
        assert_eq!(&first == b"HTTP/1.1 100", told, "{path}: {}", String::from_utf8_lossy(&first));
    }
}

/// Each ends as its own named error, and takes nobody along.
#[tokio::test]
async fn what_goes_wrong_is_answered_counted_and_named() {
    let gateway = start(FUNCTION).await;
    for (path, kind) in [
        ("/trap", "trap"),
        ("/spin", "cpu"),
        ("/sleep?60000", "deadline"),
        ("/memory", "memory"),
        ("/handles", "handles"),
        ("/insist-on-header", "forbidden-header"),
        ("/too-short", "content-length"),
        ("/too-long", "content-length"),
        ("/nothing", "no-response"),
        ("/fetch?192.0.2.1", "denied"),
        ("/status?199", "invalid-response"),
    ] {
        let before = gateway.metric("lockgate_function_failures_total", &[&format!("kind=\"{kind}\"")]).await;
        let reply = gateway.get(path).await;
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert!(reply.text().starts_with("function unavailable\nrequest id: "), "{path}: {}", reply.text());
        let after = gateway.metric("lockgate_function_failures_total", &[&format!("kind=\"{kind}\"")]).await;
        assert_eq!(after - before, 1.0, "{path}");
        assert_eq!(gateway.get("/").await.status, StatusCode::OK, "after {path}");
    }
    let line = gateway.logged(|line| line["path"] == "/trap").await;
    assert_eq!(line["error"]["kind"], "function_failed");
    assert_eq!(line["function"]["outcome"], "fail");
    let told = gateway.says("function failed: ").await;
    assert!(told.to_string().contains("\"function\":\"fn\""), "{told}");
}

#[tokio::test]
async fn a_function_sees_the_variables_that_it_is_given_and_nothing_of_the_gateways() {
    let config = FUNCTION.replace("VERSION: v1", "GIVEN: \"${HOST_SECRET}\"");
    let builder = Builder::new(&config).variable("HOST_SECRET", "hunter2").guest(Guest::Function);
    assert_eq!(builder.start().await.get("/vars").await.text(), "GIVEN=hunter2\n");
}

#[tokio::test]
async fn a_response_that_has_begun_is_cut_off_and_never_looks_whole() {
    let gateway = start(FUNCTION).await;
    for path in ["/trap-later", "/short-stream", "/spin-after-header"] {
        for client in [gateway.client(), &http2()] {
            let response = client.get(gateway.url(path)).send().await.expect("a header");
            assert_eq!(response.status(), StatusCode::OK, "{path}");
            assert!(response.bytes().await.is_err(), "{path} looks whole");
        }
    }
}

#[tokio::test]
async fn what_a_function_prints_is_logged_with_request_version_and_track() {
    let gateway = start(FUNCTION).await;
    gateway.get("/print?hello").await;
    let line = gateway.says("to standard output: hello").await.to_string();
    for part in ["\"function\":\"fn\"", "\"track\":\"stable\"", "\"request_id\":", "\"version\":"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    gateway.says("to standard error: hello").await;
}

#[tokio::test]
async fn outbound_requests_go_where_a_grant_says_and_nowhere_else() {
    let up = Upstream::start().await;
    let config = FUNCTION.replace("vars:", "grants: { outbound: [\"http://${UPSTREAM}\"] }\n    vars:");
    let gateway = Gateway::start(&config, &up).await;
    assert_eq!(gateway.get(&format!("/fetch?{}", up.address)).await.text(), "200\n");
    assert_eq!(gateway.get("/fetch?127.0.0.1:1").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(up.requests(), 1);
}

const CHAINED: &str = r#"
functions:
  fn: { component: filters/function.wasm, vars: { VERSION: v1 } }
filters:
  tag: { component: filters/tag.wasm, settings: { value: tagged } }
  upper: { component: filters/body-upper.wasm }
routes:
  - { match: { path: /upper/* }, filters: [tag, upper], function: fn }
  - { match: { path: /echo }, filters: [tag, upper], function: fn }
  - { match: { path: /trap }, filters: [tag], function: fn }
  - { filters: [tag], function: fn }
"#;

#[tokio::test]
async fn filters_act_on_a_functions_requests_and_responses_as_on_an_upstreams() {
    let gateway = start(CHAINED).await;
    let reply = gateway.get("/request").await;
    assert_eq!(reply.header("x-tag"), "tagged");
    assert!(reply.text().contains("x-tag-request: tagged"), "{}", reply.text());
    assert_eq!(gateway.get("/upper/a").await.text(), "GET /UPPER/A V1\n");
    let echoed = gateway.send(gateway.client().post(gateway.url("/echo")).body("shout")).await;
    assert_eq!((echoed.status, &*echoed.text()), (StatusCode::OK, "SHOUT"));
    // A function's failure goes back along the chain as well.
    let failed = gateway.get("/trap").await;
    assert_eq!((failed.status, failed.header("x-tag")), (StatusCode::SERVICE_UNAVAILABLE, "tagged"));
}

const CANARY: &str = r#"
functions:
  fn: { component: filters/function.wasm, vars: { VERSION: v1 } }
routes: [{ function: fn }]
rollouts:
  fn-v2:
    function: fn
    canary: { vars: { VERSION: v2 } }
    weight: 20%
    key: [{ header: x-user-id }]
    override: { trusted: [127.0.0.0/8] }
"#;

async fn versions(gateway: &Gateway) -> BTreeMap<usize, String> {
    let mut versions = BTreeMap::new();
    for user in 0..300 {
        let reply = gateway.get_with("/", "x-user-id", &format!("user-{user}")).await;
        versions.insert(user, reply.header("x-version").to_owned());
    }
    versions
}

#[tokio::test]
async fn a_functions_canary_is_split_promoted_and_rolled_back_like_a_filters() {
    let gateway = start(CANARY).await;
    let share = |versions: &BTreeMap<usize, String>| versions.values().filter(|version| *version == "v2").count();
    let first = versions(&gateway).await;
    assert!((30..=90).contains(&share(&first)), "{}", share(&first));
    assert_eq!(versions(&gateway).await, first, "users stay where they are");
    let canary = gateway.metric("lockgate_function_calls_total", &["track=\"canary\"", "outcome=\"respond\""]).await;
    assert_eq!(canary, 2.0 * share(&first) as f64);
    assert_eq!(gateway.get_with("/", "x-lockgate-track", "canary").await.header("x-version"), "v2");
    let (status, said) = gateway.cli(&["rollout", "promote", "fn-v2"]).await;
    assert!(status.success(), "{said}");
    assert_eq!(share(&versions(&gateway).await), 300);
    let (_, exported) = gateway.cli(&["rollout", "export"]).await;
    assert!(exported.contains("functions:") && exported.contains("\"VERSION\":\"v2\""), "{exported}");
    let (status, said) = gateway.cli(&["rollout", "rollback", "fn-v2"]).await;
    assert!(status.success(), "{said}");
    assert_eq!(share(&versions(&gateway).await), 0);
    let (_, shown) = gateway.cli(&["status"]).await;
    assert!(shown.contains("FUNCTION") && shown.contains("filters/function.wasm"), "{shown}");
}

#[tokio::test]
async fn a_reload_changes_a_function_and_refuses_what_is_none() {
    let gateway = Builder::new(FUNCTION).guest(Guest::Function).guest(Guest::Tag).start().await;
    gateway.write_config(&FUNCTION.replace("VERSION: v1", "VERSION: v2"));
    assert_eq!(gateway.reload().await.status, StatusCode::OK);
    assert_eq!(gateway.get("/").await.header("x-version"), "v2");
    gateway.write_config(&FUNCTION.replace("function.wasm", "tag.wasm"));
    let refused = gateway.reload().await;
    assert!(refused.text().contains("it is a filter: name it under `filters`"), "{}", refused.text());
    assert_eq!(gateway.get("/").await.header("x-version"), "v2");
}
