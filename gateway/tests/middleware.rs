//! Middleware of WASI 0.3 among native filters, through the real binary.

mod harness;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use harness::{Builder, Gateway, Upstream};
use lockgate_guests::Guest;
use reqwest::{Client, Method, StatusCode};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use xxhash_rust::xxh3::xxh3_64;

/// A native filter, a middleware, a native filter, an upstream.
const CHAIN: &str = r#"
experimental: [wasi-0.3]
upstreams: { up: ["${UPSTREAM}"] }
functions:
  mid:
    component: filters/middleware.wasm
    vars: { VERSION: m1 }
    limits: { deadline: 5s, cpu: 400ms, memory: 16MiB }
filters:
  outer: { component: filters/tag.wasm, settings: { value: outer, append: true } }
  inner: { component: filters/tag.wasm, settings: { value: inner, append: true } }
routes:
  - { filters: [outer, { function: mid }, inner], upstream: up }
  - { name: open, match: { path: /open/* }, filters: [outer, { function: mid, on_failure: open }, inner], upstream: up }
"#;

fn http2() -> Client {
    Client::builder().no_proxy().http2_prior_knowledge().build().expect("a client")
}

/// The chain of a log line: `name outcome`, in order.
fn chain(line: &Value) -> Vec<String> {
    let filters = line["filters"].as_array().expect("a chain");
    let told = |filter: &Value| {
        format!("{} {}", filter["name"].as_str().unwrap_or("?"), filter["outcome"].as_str().unwrap_or("-"))
    };
    filters.iter().map(told).collect()
}

#[tokio::test]
async fn a_middleware_stands_between_native_filters_and_each_ones_version_is_in_the_log() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CHAIN, &up).await;
    for client in [gateway.client(), &http2()] {
        let request = client.get(gateway.url("/a?b=c")).header("x-mine", "1");
        let reply = gateway.send(request).await;
        assert_eq!(reply.status, StatusCode::OK);
        // The response meets them in reverse.
        assert_eq!(reply.all("x-tag"), ["inner", "outer"]);
        assert_eq!(reply.header("x-middleware"), "m1");
        let seen = reply.seen();
        assert_eq!((&*seen.method, &*seen.target), ("GET", "/a?b=c"));
        assert_eq!(seen.header("x-tag-request"), "outer, inner");
        assert_eq!((seen.header("x-middleware-request"), seen.header("x-mine")), ("m1", "1"));
        // What the upstream is told of the client, it is told once.
        assert_eq!(seen.header("x-forwarded-for"), "127.0.0.1");
        assert_eq!((seen.header("transfer-encoding"), seen.header("content-length")), ("", ""));
    }
    let line = gateway.logged(|line| line["path"] == "/a").await;
    assert_eq!(chain(&line), ["outer continue", "mid continue", "inner continue"]);
    let labels: Vec<_> = line["filters"].as_array().expect("a chain").iter().map(|it| it["version"].as_str()).collect();
    assert!(labels.iter().all(|label| label.is_some_and(|label| label.len() == 20)), "{labels:?}");
    assert_eq!((&line["upstream"]["name"], &line["status"]), (&"up".into(), &200.into()));
    assert!(line["error"].is_null(), "{line}");
    // One line and one count for each request, however many parts it ran in.
    let lines = || gateway.access_log().iter().filter(|line| line["path"] == "/a").count();
    while gateway.metric("lockgate_requests_total", &[]).await < 2.0 || lines() < 2 {}
    assert_eq!((gateway.metric("lockgate_requests_total", &[]).await, lines()), (2.0, 2));
    assert_eq!(
        gateway.metric("lockgate_function_calls_total", &["function=\"mid\"", "outcome=\"respond\""]).await,
        2.0
    );
    while gateway.metric("lockgate_function_instances", &["function=\"mid\""]).await != 0.0 {}
    assert_eq!(up.requests(), 2);
}

#[tokio::test]
async fn bodies_pass_a_middleware_both_ways() {
    let up = Upstream::start().await;
    let config = CHAIN.replace("cpu: 400ms", "cpu: 20s").replace("deadline: 5s", "deadline: 20s");
    let gateway = Gateway::start(&config, &up).await;
    let bytes: Vec<u8> = (0..1_000_000_usize).map(|index| b'a' + (index * 13 % 23) as u8).collect();
    for client in [gateway.client(), &http2()] {
        let seen = gateway.send(client.post(gateway.url("/")).body(bytes.clone())).await.seen();
        assert_eq!((seen.body_length, seen.body_hash), (bytes.len(), xxh3_64(&bytes)));
        assert_eq!(seen.header("content-length"), bytes.len().to_string());
        let pieces = futures_util::stream::iter(
            bytes.chunks(50_000).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect::<Vec<_>>(),
        );
        let chunked = reqwest::Body::wrap_stream(pieces);
        let seen = gateway.send(client.post(gateway.url("/")).body(chunked)).await.seen();
        assert_eq!((seen.body_length, seen.body_hash), (bytes.len(), xxh3_64(&bytes)));
        let reply = gateway.send(client.get(gateway.url("/bytes/3000000"))).await;
        assert_eq!((reply.status, reply.body.len()), (StatusCode::OK, 3_000_000));
        let request = client.get(gateway.url("/text/shout")).header("x-middleware-does", "upper");
        assert_eq!(gateway.send(request).await.text(), "SHOUT");
        let head = gateway.send(client.request(Method::HEAD, gateway.url("/"))).await;
        assert_eq!((head.status, head.body.len(), head.header("x-middleware")), (StatusCode::OK, 0, "m1"));
    }
}

const IN_FRONT_OF_A_FUNCTION: &str = r#"
experimental: [wasi-0.3]
functions:
  mid: { component: filters/middleware.wasm, vars: { VERSION: m1 }, limits: { cpu: 60s, deadline: 60s } }
  fn: { component: filters/function.wasm, limits: { cpu: 60s, deadline: 60s } }
routes: [{ filters: [{ function: mid }], function: fn }]
"#;

#[tokio::test]
async fn what_streams_behind_a_middleware_streams_through_it() {
    const BYTES: usize = 256 << 20;
    let gateway = Gateway::start(IN_FRONT_OF_A_FUNCTION, &Upstream::start().await).await;
    for (does, bytes) in [("", BYTES), ("upper", BYTES / 8)] {
        let began = Instant::now();
        let request = gateway.client().get(gateway.url("/events?8")).header("x-middleware-does", does);
        let mut events = request.send().await.expect("an answer").bytes_stream();
        let mut arrived = Vec::new();
        while let Some(piece) = events.next().await {
            piece.expect("a piece");
            arrived.push(began.elapsed());
        }
        // 50 ms lie between two events: they were not saved up.
        let (first, last) = (arrived.first().expect("a piece"), arrived.last().expect("a piece"));
        assert!(arrived.len() >= 4 && *last - *first >= Duration::from_millis(200), "{does}: {arrived:?}");

        let request = gateway.client().get(gateway.url(&format!("/download?{bytes}")));
        let response = request.header("x-middleware-does", does).send().await.expect("an answer");
        let mut pieces = response.bytes_stream();
        let mut received = 0;
        while let Some(piece) = pieces.next().await {
            received += piece.expect("a piece").len();
        }
        assert_eq!(received, bytes, "{does}");
    }
}

#[tokio::test]
async fn a_response_that_breaks_off_behind_a_middleware_breaks_off() {
    let gateway = Gateway::start(IN_FRONT_OF_A_FUNCTION, &Upstream::start().await).await;
    for client in [gateway.client(), &http2()] {
        for does in ["", "upper"] {
            let request = client.get(gateway.url("/trap-later")).header("x-middleware-does", does);
            let response = request.send().await.expect("a header");
            assert_eq!(response.status(), StatusCode::OK, "{does}");
            assert!(response.bytes().await.is_err(), "{does} looks whole");
        }
    }
    // Whose fault it was is known, and it is not the middleware's.
    let line = gateway.logged(|line| line["path"] == "/trap-later").await;
    assert_eq!(line["error"]["kind"], "function_failed");
    assert_eq!(chain(&line), ["mid continue"]);
    gateway.settles("lockgate_function_failures_total", &["function=\"mid\""], 0.0).await;
    while gateway.metric("lockgate_function_failures_total", &["function=\"fn\""]).await != 4.0 {}
}

#[tokio::test]
async fn an_early_answer_of_a_middleware_passes_the_filters_in_front_of_it_and_no_others() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CHAIN, &up).await;
    let reply = gateway.get_with("/early", "x-middleware-does", "answer").await;
    assert_eq!((reply.status, &*reply.text()), (StatusCode::OK, "from the middleware\n"));
    assert_eq!((reply.all("x-tag"), reply.header("x-middleware")), (vec!["outer"], "m1"));
    assert_eq!(up.requests(), 0);
    let line = gateway.logged(|line| line["path"] == "/early").await;
    assert_eq!(chain(&line), ["outer continue", "mid respond", "inner -"]);
    assert!(line["upstream"].is_null());
}

#[tokio::test]
async fn a_middleware_that_fails_closed_is_answered_for_and_its_neighbours_are_untouched() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CHAIN, &up).await;
    for (does, kind) in [("trap", "trap"), ("spin", "cpu"), ("error", "no-response"), ("trap-after", "trap")] {
        let before = gateway.metric("lockgate_function_failures_total", &[&format!("kind=\"{kind}\"")]).await;
        let reply = gateway.get_with("/fails", "x-middleware-does", does).await;
        assert_eq!((reply.status, reply.header("x-tag")), (StatusCode::SERVICE_UNAVAILABLE, "outer"), "{does}");
        assert!(reply.text().starts_with("filter unavailable\nrequest id: "), "{does}: {}", reply.text());
        let after = gateway.metric("lockgate_function_failures_total", &[&format!("kind=\"{kind}\"")]).await;
        assert_eq!(after - before, 1.0, "{does}");
        assert_eq!(gateway.get("/").await.status, StatusCode::OK, "after {does}");
    }
    gateway.settles("lockgate_filter_failures_total", &[], 0.0).await;
    while gateway.metric("lockgate_function_instances", &[]).await != 0.0 {}
    while gateway.metric("lockgate_filter_instances", &[]).await != 0.0 {}
    let line = gateway.logged(|line| line["path"] == "/fails").await;
    assert_eq!(line["error"]["kind"], "filter_failed");
    assert_eq!(chain(&line), ["outer continue", "mid fail", "inner -"]);
}

#[tokio::test]
async fn a_middleware_that_fails_open_is_passed_by_where_it_has_done_nothing_yet() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CHAIN, &up).await;
    let request = gateway.client().post(gateway.url("/open/here")).header("x-middleware-does", "trap");
    let reply = gateway.send(request.body("as it was sent")).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!((reply.all("x-tag"), reply.header("x-middleware")), (vec!["inner", "outer"], ""));
    let seen = reply.seen();
    assert_eq!((seen.body_length, seen.body_hash), (14, xxh3_64(b"as it was sent")));
    assert_eq!((seen.header("x-tag-request"), seen.header("x-middleware-request")), ("outer, inner", ""));
    let line = gateway.logged(|line| line["path"] == "/open/here").await;
    assert_eq!(chain(&line), ["outer continue", "mid fail", "inner continue"]);
    assert!(line["error"].is_null(), "{line}");
    // What has been passed on cannot be passed on again.
    let before = up.requests();
    let reply = gateway.get_with("/open/late", "x-middleware-does", "trap-after").await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(up.requests(), before + 1);
}

#[tokio::test]
async fn what_fails_behind_a_middleware_is_a_response_to_it_and_told_in_the_log() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CHAIN, &up).await;
    drop(up);
    let reply = gateway.get("/down").await;
    assert_eq!((reply.status, reply.header("x-middleware")), (StatusCode::BAD_GATEWAY, "m1"));
    let line = gateway.logged(|line| line["path"] == "/down").await;
    assert_eq!((&line["error"]["kind"], &line["error"]["source"]), (&"connect_failed".into(), &"upstream".into()));
    assert_eq!(chain(&line), ["outer continue", "mid continue", "inner continue"]);
}

#[tokio::test]
async fn a_client_that_goes_away_ends_everything_that_was_done_for_it() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CHAIN, &up).await;
    let mut stream = TcpStream::connect(gateway.http()).await.expect("a connection");
    stream.write_all(b"GET /hold HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("it is sent");
    up.holding(1).await;
    gateway.settles("lockgate_function_instances", &["function=\"mid\""], 1.0).await;
    drop(stream);
    let line = gateway.logged(|line| line["path"] == "/hold").await;
    assert_eq!(line["error"]["kind"], "client_gone");
    while gateway.metric("lockgate_function_instances", &["function=\"mid\""]).await != 0.0 {}
    while gateway.metric("lockgate_filter_instances", &[]).await != 0.0 {}
}

#[tokio::test]
async fn middleware_stand_in_any_order_and_in_front_of_any_target() {
    let up = Upstream::start().await;
    let config = r#"
experimental: [wasi-0.3]
functions:
  first: { component: filters/middleware.wasm, vars: { VERSION: first } }
  second: { component: filters/middleware.wasm, vars: { VERSION: second } }
  fn: { component: filters/function.wasm, vars: { VERSION: v1 } }
filters:
  tag: { component: filters/tag.wasm, settings: { value: tagged } }
  buffer: { component: filters/body-buffer.wasm }
routes:
  - { filters: [{ function: first }, { function: second }, tag], function: fn }
  - { match: { path: /echo }, filters: [{ function: first }, buffer, { function: second }], function: fn }
  - { match: { path: /files/* }, filters: [{ function: first }, tag, { function: second }], static: pages }
"#;
    let builder = [Guest::Middleware, Guest::Function, Guest::Tag, Guest::BodyBuffer]
        .into_iter()
        .fold(Builder::new(config).upstream(&up), Builder::guest);
    std::fs::create_dir(builder.path().join("pages")).expect("a folder");
    std::fs::write(builder.path().join("pages/page.txt"), "a page").expect("a file");
    let gateway = builder.start().await;
    let reply = gateway.get("/request").await;
    assert_eq!((reply.all("x-middleware"), reply.header("x-tag")), (vec!["second", "first"], "tagged"));
    let text = reply.text();
    assert!(text.contains("x-middleware-request: first\nx-middleware-request: second\n"), "{text}");
    assert!(text.contains("x-tag-request: tagged"), "{text}");
    let line = gateway.logged(|line| line["path"] == "/request").await;
    assert_eq!(chain(&line), ["first continue", "second continue", "tag continue"]);
    assert_eq!(line["function"]["outcome"], "respond");
    let file = gateway.get("/files/page.txt").await;
    assert_eq!((&*file.text(), file.all("x-middleware")), ("a page", vec!["second", "first"]));
    assert_eq!((file.header("content-length"), file.header("x-tag")), ("6", "tagged"));
    // A filter that wants the whole body gets it behind a middleware as well.
    let sent = "x".repeat(200_000);
    let reply = gateway.send(gateway.client().post(gateway.url("/echo")).body(sent.clone())).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.text(), format!("{sent} ({} bytes)", sent.len()));
}

#[tokio::test]
async fn a_middlewares_canary_changes_nothing_about_the_others_tracks() {
    let up = Upstream::start().await;
    let config = format!(
        "{CHAIN}{}",
        r#"
rollouts:
  mid-2:
    function: mid
    canary: { vars: { VERSION: m2 } }
    weight: 20%
    key: [{ header: x-user-id }]
  inner-2:
    filter: inner
    canary: { settings: { value: inner-2, append: true } }
    weight: 50%
    key: [{ header: x-user-id }]
"#
    );
    let gateway = Gateway::start(&config, &up).await;
    let versions = async |gateway: &Gateway| {
        let mut versions = BTreeMap::new();
        for user in 0..200 {
            let reply = gateway.get_with("/", "x-user-id", &format!("user-{user}")).await;
            versions.insert(user, (reply.header("x-middleware").to_owned(), reply.all("x-tag")[0].to_owned()));
        }
        versions
    };
    let first = versions(&gateway).await;
    let count = |versions: &BTreeMap<i32, (String, String)>, label: &str| {
        versions.values().filter(|(middleware, inner)| middleware == label || inner == label).count()
    };
    assert!((20..=65).contains(&count(&first, "m2")), "{}", count(&first, "m2"));
    assert!((70..=130).contains(&count(&first, "inner-2")), "{}", count(&first, "inner-2"));
    let (status, said) = gateway.cli(&["rollout", "promote", "mid-2"]).await;
    assert!(status.success(), "{said}");
    let second = versions(&gateway).await;
    assert_eq!(count(&second, "m2"), 200);
    for (user, (_, inner)) in &second {
        assert_eq!(*inner, first[user].1, "user {user} has changed its version of the other filter");
    }
    let on_canary = gateway.metric("lockgate_function_calls_total", &["function=\"mid\"", "track=\"canary\""]).await;
    assert_eq!(on_canary, count(&first, "m2") as f64);
}

#[tokio::test]
async fn requests_that_overlap_keep_their_lines_and_counts_apart() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(&format!("server: {{ trusted_proxies: [127.0.0.0/8] }}\n{CHAIN}"), &up).await;
    let asked = (0..20).map(|number| {
        let request = gateway.client().get(gateway.url(&format!("/overlaps/{number}-")));
        let does = if number % 4 == 0 { "trap" } else { "sleep" };
        gateway.send(request.header("x-request-id", format!("id-{number}")).header("x-middleware-does", does))
    });
    let replies = futures_util::future::join_all(asked).await;
    for (number, reply) in replies.iter().enumerate() {
        let expected = if number % 4 == 0 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        assert_eq!(reply.status, expected, "{number}");
        let printed = gateway.says(&format!("m1 got /overlaps/{number}-")).await.to_string();
        assert!(printed.contains(&format!("\"request_id\":\"id-{number}\"")), "{printed}");
        let line = gateway.logged(|line| line["id"] == format!("id-{number}")).await;
        assert_eq!(line["path"], format!("/overlaps/{number}-"));
        let outcome = if number % 4 == 0 { "mid fail" } else { "mid continue" };
        assert_eq!(chain(&line)[1], outcome);
    }
    gateway.settles("lockgate_function_calls_total", &["outcome=\"fail\""], 5.0).await;
    gateway.settles("lockgate_function_calls_total", &["outcome=\"respond\""], 15.0).await;
}

#[tokio::test]
async fn what_is_no_middleware_or_nothing_else_is_refused_where_it_cannot_stand() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CHAIN, &up).await;
    let as_target = CHAIN.replace("upstream: up }\n  - { name", "function: mid }\n  - { name");
    gateway.write_config(&as_target);
    let refused = gateway.reload().await.text();
    assert!(refused.contains("a target has nothing behind it"), "{refused}");
    gateway.write_config(&CHAIN.replace("experimental: [wasi-0.3]", ""));
    let refused = gateway.reload().await.text();
    assert!(refused.contains("add `experimental: [wasi-0.3]`"), "{refused}");
    assert_eq!(gateway.get("/").await.status, StatusCode::OK);
}
