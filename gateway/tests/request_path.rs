//! What happens to a request between client and upstream.

mod harness;

use std::time::Duration;

use harness::{Gateway, Upstream};
use reqwest::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const PLAIN: &str = r#"
upstreams: { app: ["${UPSTREAM}"] }
routes: [{ upstream: app }]
"#;

const TAGGED: &str = r#"
upstreams: { app: ["${UPSTREAM}"] }
filters:
  outer: { component: filters/tag.wasm, settings: { value: outer, append: true } }
  inner: { component: filters/tag.wasm, settings: { value: inner, append: true } }
routes:
  - { name: tagged, match: { path: /tagged/* }, filters: [outer, inner], upstream: app }
  - { name: plain, upstream: app }
"#;

/// Sends bytes as they are, and returns everything that comes back until the connection closes.
async fn raw(gateway: &Gateway, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(gateway.http()).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut reply = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut reply)).await;
    end.expect("the connection is closed").unwrap();
    String::from_utf8_lossy(&reply).into_owned()
}

#[tokio::test]
async fn a_request_passes_through_with_forwarding_headers_and_an_id() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(PLAIN, &up).await;

    let reply = gateway.get("/a/b?c=d").await;

    assert_eq!(reply.status, StatusCode::OK);
    let seen = reply.seen();
    assert_eq!(seen.target, "/a/b?c=d");
    assert_eq!(seen.header("host"), gateway.http().to_string());
    assert_eq!(seen.header("x-forwarded-for"), "127.0.0.1");
    assert_eq!(seen.header("x-forwarded-proto"), "http");
    assert_eq!(seen.header("x-forwarded-host"), gateway.http().to_string());
    assert_eq!(seen.header("x-request-id").len(), 32);
    let line = gateway.logged(|line| line["id"] == seen.header("x-request-id")).await;
    assert_eq!((line["status"].as_u64(), line["path"].as_str()), (Some(200), Some("/a/b")));
    assert_eq!(line["upstream"]["name"], "app");
}

#[tokio::test]
async fn a_stranger_chooses_neither_its_address_nor_its_id() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(PLAIN, &up).await;
    let request = gateway.client().get(gateway.url("/"));
    let request = request.header("x-forwarded-for", "192.0.2.1").header("x-request-id", "mine");

    let seen = gateway.send(request).await.seen();

    assert_eq!(seen.header("x-forwarded-for"), "127.0.0.1");
    assert_ne!(seen.header("x-request-id"), "mine");
}

#[tokio::test]
async fn a_trusted_proxy_passes_on_address_and_id() {
    let up = Upstream::start().await;
    let config = format!("server: {{ trusted_proxies: [127.0.0.0/8] }}\n{PLAIN}");
    let gateway = Gateway::start(&config, &up).await;
    let request = gateway.client().get(gateway.url("/"));
    let request = request.header("x-forwarded-for", "192.0.2.1").header("x-request-id", "theirs");

    let seen = gateway.send(request).await.seen();

    assert_eq!(seen.header("x-forwarded-for"), "192.0.2.1, 127.0.0.1");
    assert_eq!(seen.header("x-request-id"), "theirs");
    let line = gateway.logged(|line| line["id"] == "theirs").await;
    assert_eq!(line["client"], "192.0.2.1");
}

#[tokio::test]
async fn the_request_passes_filters_in_order_and_the_response_in_reverse() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(TAGGED, &up).await;

    let reply = gateway.get("/tagged/x").await;

    assert_eq!(reply.seen().header("x-tag-request"), "outer, inner");
    let tags: Vec<_> = reply.headers.get_all("x-tag").iter().map(|tag| tag.to_str().unwrap()).collect();
    assert_eq!(tags, ["inner", "outer"]);
    let line = gateway.logged(|line| line["route"] == "tagged").await;
    assert_eq!(line["filters"][0]["name"], "outer");
    assert_eq!(line["filters"][1]["track"], "stable");
    assert_eq!(line["filters"][1]["outcome"], "continue");
    let calls = ["filter=\"inner\"", "phase=\"on-request\"", "outcome=\"continue\""];
    gateway.settles("lockgate_filter_calls_total", &calls, 1.0).await;

    let plain = gateway.get("/other").await;
    assert_eq!((plain.header("x-tag"), plain.seen().header("x-tag-request")), ("", ""));
}

/// Invariant 8.
#[tokio::test]
async fn every_request_whose_header_was_parsed_leaves_one_line_and_one_count() {
    let up = Upstream::start().await;
    let config = r#"
upstreams: { app: ["${UPSTREAM}"], gone: ["127.0.0.1:1"] }
filters: { trap: { component: filters/trap.wasm, settings: { phase: on_request } } }
routes:
  - { name: app, match: { path: /app, methods: [GET] }, upstream: app }
  - { name: gone, match: { path: /gone }, upstream: gone }
  - { name: trap, match: { path: /trap }, filters: [trap], upstream: app }
"#;
    let gateway = Gateway::start(config, &up).await;

    assert_eq!(gateway.get("/app").await.status, StatusCode::OK);
    assert_eq!(gateway.get("/gone").await.status, StatusCode::BAD_GATEWAY);
    assert_eq!(gateway.get("/trap").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(gateway.get("/nowhere").await.status, StatusCode::NOT_FOUND);
    let posted = gateway.send(gateway.client().post(gateway.url("/app"))).await;
    assert_eq!((posted.status, posted.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, "GET"));
    let connect = raw(&gateway, b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\nconnection: close\r\n\r\n").await;
    assert!(connect.starts_with("HTTP/1.1 405"), "{connect}");
    let climbing = raw(&gateway, b"GET /../etc HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(climbing.starts_with("HTTP/1.1 400"), "{climbing}");

    for (kind, source) in [
        ("connect_failed", "upstream"),
        ("filter_failed", "filter"),
        ("no_route", "downstream"),
        ("method_not_allowed", "downstream"),
        ("connect_refused", "downstream"),
        ("bad_target", "downstream"),
    ] {
        let line = gateway.logged(|line| line["error"]["kind"] == kind).await;
        assert_eq!(line["error"]["source"], source, "{kind}");
        let labels = [&*format!("kind=\"{kind}\""), &*format!("source=\"{source}\"")];
        gateway.settles("lockgate_errors_total", &labels, 1.0).await;
    }
    let refused = gateway.logged(|line| line["error"]["kind"] == "connect_failed").await;
    let reason = refused["error"]["reason"].as_str().unwrap_or_default();
    assert!(reason.to_ascii_lowercase().contains("refused"), "{refused}");
    assert_eq!(gateway.access_log().len(), 7);
    gateway.settles("lockgate_requests_total", &[], 7.0).await;
}

#[tokio::test]
async fn what_is_routed_is_what_is_forwarded() {
    let up = Upstream::start().await;
    let config = r#"
upstreams: { app: ["${UPSTREAM}"] }
filters: { deny: { component: filters/respond.wasm, settings: { status: 403, body: denied } } }
routes:
  - { name: admin, match: { path: /admin/* }, filters: [deny], upstream: app }
  - { name: rest, upstream: app }
"#;
    let gateway = Gateway::start(config, &up).await;
    for target in ["/admin", "//admin", "/x/../admin/y", "/%61dmin", "/./admin", "/x/%2e%2e/admin", "http://a/admin"] {
        let request = format!("GET {target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let reply = raw(&gateway, request.as_bytes()).await;
        assert!(reply.starts_with("HTTP/1.1 403"), "{target}: {reply}");
    }
    let passed = raw(&gateway, b"GET /a%2Fadmin//b HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(passed.contains("\"target\":\"/a%2Fadmin/b\""), "{passed}");
    for (request, why) in [
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n", "two hosts"),
        ("GET / HTTP/1.1\r\nconnection: close\r\n\r\n", "no host"),
        ("GET http://a/ HTTP/1.1\r\nhost: b\r\nconnection: close\r\n\r\n", "two different hosts"),
        ("GET / HTTP/1.1\r\nhost: u@a\r\nconnection: close\r\n\r\n", "user information"),
    ] {
        let reply = raw(&gateway, request.as_bytes()).await;
        assert!(reply.starts_with("HTTP/1.1 400"), "{why}: {reply}");
    }
}

#[tokio::test]
async fn hop_by_hop_fields_stop_at_the_gateway_both_ways() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(PLAIN, &up).await;

    let request = "GET /echo HTTP/1.1\r\nhost: a\r\nconnection: close, x-hop\r\nx-hop: 1\r\nte: trailers\r\n\
                   proxy-authorization: secret\r\nx-lockgate-internal: 1\r\nx-stays: 1\r\n\r\n";
    let reply = raw(&gateway, request.as_bytes()).await;
    let body = reply.split("\r\n\r\n").nth(1).unwrap();
    assert!(body.contains("x-stays"), "{body}");
    for gone in ["x-hop", "\"te\"", "proxy-authorization", "x-lockgate-internal"] {
        assert!(!body.contains(gone), "{gone} in {body}");
    }

    let reply = gateway.get("/hop").await;
    assert_eq!((reply.header("x-hop"), reply.header("keep-alive")), ("", ""));
}

#[tokio::test]
async fn a_filter_answers_in_the_place_of_the_upstream_and_the_outer_ones_see_it() {
    let up = Upstream::start().await;
    let config = r#"
upstreams: { app: ["${UPSTREAM}"] }
filters:
  outer: { component: filters/tag.wasm, settings: { value: outer } }
  deny: { component: filters/respond.wasm, settings: { status: 403, body: denied } }
  inner: { component: filters/tag.wasm, settings: { value: inner } }
routes: [{ filters: [outer, deny, inner], upstream: app }]
"#;
    let gateway = Gateway::start(config, &up).await;

    let reply = gateway.get("/").await;

    assert_eq!((reply.status, &*reply.text()), (StatusCode::FORBIDDEN, "denied"));
    assert_eq!(reply.header("x-tag"), "outer");
    assert_eq!(reply.header("content-length"), "6");
    assert_eq!(up.requests(), 0);
    let head = gateway.send(gateway.client().head(gateway.url("/"))).await;
    assert_eq!((head.status, head.body.len()), (StatusCode::FORBIDDEN, 0));
}

#[tokio::test]
async fn the_gateways_own_errors_go_back_along_the_chain() {
    let up = Upstream::start().await;
    let config = r#"
upstreams: { gone: ["127.0.0.1:1"] }
filters: { tag: { component: filters/tag.wasm, settings: { value: v1 } } }
routes: [{ filters: [tag], upstream: gone }]
"#;
    let gateway = Gateway::start(config, &up).await;

    let reply = gateway.get("/").await;

    assert_eq!((reply.status, reply.header("x-tag")), (StatusCode::BAD_GATEWAY, "v1"));
    assert!(reply.text().contains(reply.header("x-request-id")), "{reply:?}");
}

#[tokio::test]
async fn filters_share_a_bag_along_the_chain_and_across_phases() {
    let up = Upstream::start().await;
    let config = r#"
upstreams: { app: ["${UPSTREAM}"] }
filters: { context: { component: filters/context.wasm, settings: { put: { key: k, value: kept }, show: { key: k, header: x-context } } } }
routes: [{ filters: [context], upstream: app }]
"#;
    let gateway = Gateway::start(config, &up).await;
    let reply = gateway.get("/").await;
    assert_eq!((reply.seen().header("x-context"), reply.header("x-context")), ("absent", "kept"));
}

#[tokio::test]
async fn http2_without_tls_is_understood_on_the_same_port() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(TAGGED, &up).await;
    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();

    let reply = gateway.send(client.get(gateway.url("/tagged/x"))).await;

    assert_eq!(reply.seen().header("x-tag-request"), "outer, inner");
    let line = gateway.logged(|line| line["protocol"] == "HTTP/2").await;
    assert_eq!(line["status"], 200);
}

#[tokio::test]
async fn an_upstream_is_reached_over_h2c_when_it_is_told_so() {
    let up = Upstream::start().await;
    let config = r#"
upstreams: { app: { endpoints: ["${UPSTREAM}"], protocol: h2c } }
routes: [{ upstream: app }]
"#;
    let gateway = Gateway::start(config, &up).await;
    let request = gateway.client().post(gateway.url("/echo")).body("hello");
    let seen = gateway.send(request).await.seen();
    assert_eq!((&*seen.method, seen.body_length), ("POST", 5));
}

#[tokio::test]
async fn endpoints_take_turns_and_connections_are_reused() {
    let (one, two) = (Upstream::named("one").await, Upstream::named("two").await);
    let config = r#"
upstreams: { app: ["${UPSTREAM}", "${OTHER}"] }
routes: [{ upstream: app }]
"#;
    let builder = harness::Builder::new(config).upstream(&one).variable("OTHER", &two.address.to_string());
    let gateway = builder.start().await;
    for _ in 0..20 {
        assert_eq!(gateway.get("/").await.status, StatusCode::OK);
    }
    assert_eq!((one.requests(), two.requests()), (10, 10));
    assert_eq!((one.connections(), two.connections()), (1, 1));
}

#[tokio::test]
async fn a_dead_endpoint_is_passed_over() {
    let up = Upstream::start().await;
    let config = r#"
upstreams: { app: ["127.0.0.1:1", "${UPSTREAM}"] }
routes: [{ upstream: app }]
"#;
    let gateway = Gateway::start(config, &up).await;
    for _ in 0..4 {
        assert_eq!(gateway.get("/").await.status, StatusCode::OK);
    }
    let line = gateway.logged(|line| line["upstream"]["attempts"] == 2).await;
    assert_eq!(line["upstream"]["address"], up.address.to_string());
}

/// Invariant 9.
#[tokio::test]
async fn no_request_makes_a_series() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(TAGGED, &up).await;
    gateway.get("/tagged/x").await;
    gateway.get("/").await;
    let series = |text: String| text.lines().filter(|line| !line.starts_with('#')).count();
    let before = series(gateway.metrics().await);
    for n in 0..1_000 {
        gateway.get_with(&format!("/path-{n}"), "host", &format!("host-{n}.example")).await;
    }
    assert_eq!(series(gateway.metrics().await), before);
}
