//! What routes ask for that needs no filter: limits, headers, redirects, rewriting, cross-origin requests, error pages.

mod harness;

use harness::{Builder, Gateway, Reply, Upstream};
use reqwest::{Method, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

async fn start(routes: &str) -> (Gateway, Upstream) {
    let up = Upstream::start().await;
    let gateway = Gateway::start(&config("", routes), &up).await;
    (gateway, up)
}

fn config(server: &str, routes: &str) -> String {
    format!("server: {{ watch: false {server} }}\nupstreams: {{ app: [\"${{UPSTREAM}}\"] }}\nroutes:\n{routes}")
}

/// Sends a request with headers, by a client that follows no redirect.
async fn send(gateway: &Gateway, method: Method, path: &str, headers: &[(&str, &str)]) -> Reply {
    let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let mut request = client.request(method, gateway.url(path));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    gateway.send(request).await
}

async fn get(gateway: &Gateway, path: &str, headers: &[(&str, &str)]) -> Reply {
    send(gateway, Method::GET, path, headers).await
}

async fn answers(gateway: &Gateway, policy: &str) -> f64 {
    gateway.metric("lockgate_policy_answers_total", &[&format!("policy=\"{policy}\"")]).await
}

const RATES: &str = r#"
  - name: keyed
    match: { path: /keyed/* }
    rate_limits:
      - { name: per-key, requests: 2, per: 1h, key: [{ header: x-key }] }
      - { name: all, requests: 1000, per: 1h, key: [], headers: false }
    upstream: app
  - { match: { path: /quick/* }, rate_limits: [{ requests: 1000, burst: 1, key: [] }], upstream: app }
  - { upstream: app }
"#;

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_come_again() {
    let (gateway, up) = start(RATES).await;
    let ask = async |key: &str| get(&gateway, "/keyed/a", &[("x-key", key)]).await.status;
    let first = get(&gateway, "/keyed/a", &[("x-key", "a")]).await;
    assert_eq!(first.status, StatusCode::OK);
    assert_eq!(first.header("ratelimit-policy"), "\"per-key\";q=2;w=3600");
    assert_eq!(first.header("ratelimit"), "\"per-key\";r=1;t=1800");
    assert_eq!(ask("a").await, StatusCode::OK);

    let refused = get(&gateway, "/keyed/refused", &[("x-key", "a")]).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!((1_700..=1_800).contains(&wait), "{wait}");
    assert_eq!(refused.header("ratelimit"), format!("\"per-key\";r=0;t={wait}"));

    // Others are not concerned, and those without a key count together.
    assert_eq!(ask("b").await, StatusCode::OK);
    for status in [StatusCode::OK, StatusCode::OK, StatusCode::TOO_MANY_REQUESTS] {
        assert_eq!(get(&gateway, "/keyed/a", &[]).await.status, status);
    }
    assert_eq!(get(&gateway, "/elsewhere", &[("x-key", "a")]).await.header("ratelimit"), "");
    assert_eq!(up.requests(), 6);

    let line = gateway.logged(|line| line["path"] == "/keyed/refused").await;
    assert_eq!((&line["status"], &line["policy"]), (&429.into(), &"rate_limit".into()));
    assert_eq!(line["error"]["source"], "downstream");
    assert_eq!(line["error"]["kind"], "rate_limited");
    assert_eq!(line["error"]["reason"], "limit per-key");
    assert_eq!(answers(&gateway, "rate_limit").await, 2.0);
    let count = async |limit: &str, outcome: &str| {
        let labels = [format!("limit=\"{limit}\""), format!("outcome=\"{outcome}\"")];
        gateway.metric("lockgate_rate_limit_requests_total", &[&labels[0], &labels[1]]).await
    };
    assert_eq!((count("per-key", "admitted").await, count("per-key", "refused").await), (5.0, 2.0));
    assert_eq!((count("all", "admitted").await, count("all", "refused").await), (5.0, 0.0));
}

#[tokio::test]
async fn what_was_used_comes_back() {
    let (gateway, _up) = start(RATES).await;
    // One a millisecond: of many at once some are refused, and whoever tries again gets through.
    let mut statuses = Vec::new();
    while !(statuses.contains(&StatusCode::TOO_MANY_REQUESTS) && statuses.last() == Some(&StatusCode::OK)) {
        let burst = (0..16).map(|_| gateway.get("/quick/a"));
        statuses = futures_util::future::join_all(burst).await.into_iter().map(|reply| reply.status).collect();
        statuses.push(gateway.get("/quick/a").await.status);
    }
}

#[tokio::test]
async fn a_reload_leaves_limits_that_stay_the_same_as_they_are() {
    let route = |requests: u32, rest: &str| {
        format!("  - {{ name: a, rate_limits: [{{ requests: {requests}, per: 1h, key: [] }}], upstream: app {rest} }}")
    };
    let up = Upstream::start().await;
    let gateway = Gateway::start(&config("", &route(2, "")), &up).await;
    assert_eq!(gateway.get("/").await.header("ratelimit"), "\"limit-1\";r=1;t=1800");
    // Something else changes.
    gateway.write_config(&config("", &route(2, ", limits: { body: 1MiB }")));
    assert_eq!(gateway.reload().await.status, StatusCode::OK);
    assert_eq!(gateway.get("/").await.header("ratelimit"), "\"limit-1\";r=0;t=3600");
    assert_eq!(gateway.get("/").await.status, StatusCode::TOO_MANY_REQUESTS);
    // The limit does, and begins anew.
    gateway.write_config(&config("", &route(4, "")));
    assert_eq!(gateway.reload().await.status, StatusCode::OK);
    assert_eq!(gateway.get("/").await.header("ratelimit"), "\"limit-1\";r=3;t=900");
}

#[tokio::test]
async fn requests_beyond_what_may_be_under_way_are_shed_at_once() {
    for (server, limits, kind, policy) in [
        (", limits: { requests: 2 }", "", "gateway_overloaded", "gateway_requests"),
        ("", "limits: { requests: 2 },", "route_overloaded", "route_requests"),
    ] {
        let up = Upstream::start().await;
        let routes = format!("  - {{ name: a, {limits} upstream: app }}");
        let gateway = Gateway::start(&config(server, &routes), &up).await;
        let (first, second) = (gateway.get("/hold"), gateway.get("/hold"));
        let third = async {
            up.holding(2).await;
            let third = gateway.get("/third").await;
            // Those under way are counted across a reload.
            gateway.write_config(&config(server, &routes.replace("name: a", "name: a, compress: [gzip]")));
            assert_eq!(gateway.reload().await.status, StatusCode::OK);
            let fourth = gateway.get("/fourth").await;
            up.release(2);
            (third, fourth)
        };
        let (first, second, (third, fourth)) = tokio::join!(first, second, third);
        assert_eq!([first.status, second.status], [StatusCode::OK; 2]);
        for refused in [third, fourth] {
            assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(refused.header("retry-after"), "1");
        }
        let line = gateway.logged(|line| line["path"] == "/third").await;
        assert_eq!((&line["error"]["kind"], &line["policy"]), (&kind.into(), &policy.into()));
        assert_eq!(answers(&gateway, policy).await, 2.0);
        // Their places are free again.
        while gateway.get("/").await.status != StatusCode::OK {}
        assert_eq!(gateway.get("/").await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn headers_are_edited_around_the_filters() {
    let up = Upstream::start().await;
    let filters = r#"
filters:
  tag: { component: filters/headers.wasm, settings: { request: { set: { x-debug: filter } }, response: { set: { x-late: filter, x-upstream: filter } } } }
"#;
    let routes = r#"
  - name: edited
    match: { path: /a/* }
    filters: [tag]
    headers:
      request:
        set: { x-client: "{client_ip}", x-url: "{scheme}://{host}{path}?{query}", x-id: "{request_id} {route} {method} {rest}" }
        append: { x-list: two }
        remove: [x-debug]
      response: { set: { x-late: policy }, append: { x-more: "{path}" }, remove: [x-upstream] }
    upstream: app
  - { match: { path: /fixed }, headers: { response: { set: { x-late: policy } } }, respond: { body: hello } }
"#;
    let gateway = Gateway::start(&(config("", routes) + filters), &up).await;
    let reply = get(&gateway, "/a/b?c=d", &[("x-debug", "client"), ("x-list", "one"), ("x-client", "forged")]).await;
    let seen = reply.seen();
    assert_eq!(seen.header("x-client"), "127.0.0.1");
    assert_eq!(seen.header("x-url"), format!("http://{}/a/b?c=d", gateway.http()));
    assert_eq!(seen.header("x-id"), format!("{} edited GET b", seen.header("x-request-id")));
    assert_eq!(seen.header("x-list"), "one, two");
    assert_eq!(seen.header("x-debug"), "filter", "what a filter sets stays");
    assert_eq!(reply.header("x-late"), "policy", "the last word is the policy's");
    assert_eq!(reply.header("x-more"), "/a/b");
    assert_eq!(reply.header("x-upstream"), "");
    assert_eq!(gateway.get("/fixed").await.header("x-late"), "policy");
}

#[tokio::test]
async fn redirects_and_fixed_responses_need_nobody() {
    let routes = r#"
  - { match: { path: /old/* }, redirect: { to: "https://example.com/new/{rest}", status: 308 } }
  - { match: { path: /moved }, redirect: /here?always=so }
  - { match: { path: /gone }, respond: 410 }
  - { match: { path: /robots.txt }, respond: { body: "none\n", headers: { cache-control: no-store } } }
  - { match: { path: /page }, respond: { status: 503, content_type: text/html, body: { file: page.html } } }
"#;
    let up = Upstream::start().await;
    let builder = Builder::new(&config("", routes)).upstream(&up);
    let page = builder.path().join("page.html");
    std::fs::write(&page, "<h1>closed</h1>").unwrap();
    let gateway = builder.start().await;

    let moved = get(&gateway, "/old/a/b?c=d", &[]).await;
    assert_eq!(moved.status, StatusCode::PERMANENT_REDIRECT);
    assert_eq!(moved.header("location"), "https://example.com/new/a/b?c=d");
    let moved = get(&gateway, "/moved?c=d", &[]).await;
    assert_eq!((moved.status, moved.header("location")), (StatusCode::TEMPORARY_REDIRECT, "/here?always=so"));
    // The client cannot choose where it leads.
    let sly = get(&gateway, "/old//evil.example/%2e%2e/", &[("host", "evil.example")]).await;
    assert_eq!(sly.header("location"), "https://example.com/new/");

    assert_eq!(get(&gateway, "/gone", &[]).await.status, StatusCode::GONE);
    let robots = get(&gateway, "/robots.txt", &[]).await;
    assert_eq!((robots.text().as_str(), robots.header("cache-control")), ("none\n", "no-store"));
    assert_eq!(robots.header("content-type"), "text/plain; charset=utf-8");
    let head = send(&gateway, Method::HEAD, "/robots.txt", &[]).await;
    assert_eq!((head.header("content-length"), head.body.len()), ("5", 0));
    let closed = get(&gateway, "/page", &[]).await;
    assert_eq!((closed.status, closed.text().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "<h1>closed</h1>"));

    // A file is read with the configuration, and a change of it is a change.
    std::fs::write(&page, "<h1>later</h1>").unwrap();
    assert_eq!(get(&gateway, "/page", &[]).await.text(), "<h1>closed</h1>");
    assert_eq!(gateway.reload().await.status, StatusCode::OK);
    assert_eq!(get(&gateway, "/page", &[]).await.text(), "<h1>later</h1>");
    std::fs::remove_file(&page).unwrap();
    let refused = gateway.reload().await;
    assert!(refused.text().contains("cannot read `page.html`"), "{refused:?}");

    assert_eq!(up.requests(), 0);
    assert_eq!((answers(&gateway, "redirect").await, answers(&gateway, "respond").await), (3.0, 6.0));
    assert_eq!(gateway.logged(|line| line["path"] == "/gone").await["policy"], "respond");
    assert_eq!(gateway.logged(|line| line["path"] == "/moved").await["policy"], "redirect");
    gateway.settles("lockgate_errors_total", &[], 0.0).await;
}

#[tokio::test]
async fn the_target_is_asked_for_another_path_and_host() {
    let routes = r#"
  - { match: { path: /api/* }, rewrite: { prefix: /v2, host: api.internal:8080 }, upstream: app }
  - { match: { path: /bare/* }, rewrite: { prefix: / }, upstream: app }
  - { match: { path: /users/* }, rewrite: { regex: '^/users/([0-9]+)/(.*)$', to: '/u-$1/$2' }, upstream: app }
  - { match: { path: /up/* }, rewrite: { regex: '^/up/(.*)$', to: '/../../$1' }, upstream: app }
"#;
    let (gateway, up) = start(routes).await;
    let seen = gateway.get("/api/users?a=b").await.seen();
    assert_eq!((seen.target.as_str(), seen.header("host")), ("/v2/users?a=b", "api.internal:8080"));
    assert_eq!(seen.header("x-forwarded-host"), gateway.http().to_string());
    for (path, target) in [
        ("/api", "/v2"),
        ("/bare/a/b", "/a/b"),
        ("/bare", "/"),
        ("/users/7/posts?q=%2F", "/u-7/posts?q=%2F"),
        ("/users/me/posts", "/users/me/posts"),
    ] {
        assert_eq!(gateway.get(path).await.seen().target, target, "{path}");
    }
    // The log and the router know what was asked for.
    assert_eq!(gateway.logged(|line| line["path"] == "/api/users").await["route"], "/api/*");
    let climbing = gateway.get("/up/secret").await;
    assert_eq!(climbing.status, StatusCode::BAD_REQUEST);
    assert_eq!(up.requests(), 6);
}

#[tokio::test]
async fn pages_of_other_origins_are_told_whether_they_may_ask() {
    let routes = r#"
  - name: api
    match: { path: /api/*, methods: [GET, PUT] }
    rate_limits: [{ requests: 2, per: 1h, key: [] }]
    cors: { origins: ["https://app.example.com", "https://*.example.net"], methods: [GET, PUT], headers: [x-key], expose: [x-upstream], credentials: true }
    headers: { request: { remove: [origin] } }
    upstream: app
  - { match: { path: /open }, cors: { origins: "*" }, upstream: app }
  - { match: { path: /closed }, upstream: app }
"#;
    let (gateway, up) = start(routes).await;
    let preflight = async |path: &str, origin: &str| {
        let headers = [("origin", origin), ("access-control-request-method", "PUT")];
        send(&gateway, Method::OPTIONS, path, &headers).await
    };
    // More of them than the limit allows: questions do not count.
    for _ in 0..3 {
        let allowed = preflight("/api/a", "https://a.example.net").await;
        assert_eq!(allowed.status, StatusCode::NO_CONTENT);
        assert_eq!(allowed.header("access-control-allow-origin"), "https://a.example.net");
        assert_eq!(allowed.header("access-control-allow-methods"), "GET, PUT");
        assert_eq!(allowed.header("access-control-allow-headers"), "x-key");
        assert_eq!(allowed.header("access-control-allow-credentials"), "true");
        assert_eq!(allowed.header("access-control-max-age"), "600");
        assert!(allowed.header("vary").contains("origin"));
    }
    let refused = preflight("/api/a", "https://evil.example").await;
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (StatusCode::NO_CONTENT, ""));
    assert_eq!(up.requests(), 0);
    assert_eq!(answers(&gateway, "cors_preflight").await, 4.0);

    let asked = get(&gateway, "/api/a", &[("origin", "https://app.example.com")]).await;
    assert_eq!(asked.header("access-control-allow-origin"), "https://app.example.com");
    assert_eq!(asked.header("access-control-expose-headers"), "x-upstream");
    assert_eq!((asked.header("vary"), asked.seen().header("origin")), ("origin", ""));
    let other = get(&gateway, "/api/a", &[("origin", "https://evil.example")]).await;
    assert_eq!((other.status, other.header("access-control-allow-origin")), (StatusCode::OK, ""));
    assert_eq!(other.header("vary"), "origin");
    // A page can read why it was turned away.
    let limited = get(&gateway, "/api/a", &[("origin", "https://app.example.com")]).await;
    assert_eq!(limited.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(limited.header("access-control-allow-origin"), "https://app.example.com");

    assert_eq!(get(&gateway, "/open", &[]).await.header("access-control-allow-origin"), "*");
    // Without the preset, the question is the target's.
    assert_eq!(preflight("/closed", "https://a.example.net").await.seen().method, "OPTIONS");
}

#[tokio::test]
async fn the_gateways_errors_look_as_the_operator_likes() {
    let server = r#", error_pages: [{ status: 4xx, body: "<i>{status}</i>" }, { status: [4xx, 5xx], content_type: application/json, body: '{"id": "{request_id}"}' }]"#;
    let routes = r#"
  - { name: a, match: { path: /a/* }, error_pages: [{ status: 413, body: { file: page.html } }], limits: { body: 4 }, upstream: app }
  - { match: { path: /status/* }, upstream: app }
  - { name: dead, match: { path: /dead }, upstream: dead }
"#;
    let up = Upstream::start().await;
    let config = config(server, routes).replace("upstreams: { ", "upstreams: { dead: [\"127.0.0.1:1\"], ");
    let builder = Builder::new(&config).upstream(&up);
    std::fs::write(builder.path().join("page.html"), "<b>too long</b>").unwrap();
    let gateway = builder.start().await;

    let lost = get(&gateway, "/nowhere", &[]).await;
    assert_eq!((lost.status, lost.text().as_str()), (StatusCode::NOT_FOUND, "<i>404</i>"));
    assert_eq!(lost.header("content-type"), "text/html; charset=utf-8");
    let lost = get(&gateway, "/nowhere", &[("accept", "application/json")]).await;
    assert_eq!(lost.json()["id"], lost.header("x-request-id"));
    let long = gateway.send(gateway.client().post(gateway.url("/a/b")).body("12345")).await;
    assert_eq!((long.status, long.text().as_str()), (StatusCode::PAYLOAD_TOO_LARGE, "<b>too long</b>"));
    let dead = get(&gateway, "/dead", &[("accept", "text/html")]).await;
    assert_eq!((dead.status, dead.header("content-type")), (StatusCode::BAD_GATEWAY, "application/json"));
    // What a target says is its own.
    let own = get(&gateway, "/status/404", &[]).await;
    assert_eq!((own.status, own.text().as_str()), (StatusCode::NOT_FOUND, "status 404\n"));
}

#[tokio::test]
async fn a_route_has_its_own_limit_for_bodies() {
    let routes = r#"
  - { match: { path: /small/* }, limits: { body: 10 }, upstream: app }
  - { match: { path: /large/* }, limits: { body: 1KiB }, upstream: app }
  - { upstream: app }
"#;
    let up = Upstream::start().await;
    let gateway = Gateway::start(&config(", limits: { body: 100 }", routes), &up).await;
    let post = async |path: &str, length: usize| {
        let request = gateway.client().post(gateway.url(path)).body("x".repeat(length));
        gateway.send(request).await.status
    };
    assert_eq!(
        (post("/small/a", 10).await, post("/small/a", 11).await),
        (StatusCode::OK, StatusCode::PAYLOAD_TOO_LARGE)
    );
    assert_eq!((post("/a", 100).await, post("/a", 101).await), (StatusCode::OK, StatusCode::PAYLOAD_TOO_LARGE));
    assert_eq!(
        (post("/large/a", 1024).await, post("/large/a", 1025).await),
        (StatusCode::OK, StatusCode::PAYLOAD_TOO_LARGE)
    );
    assert_eq!(up.requests(), 3);

    // What has no length is counted as it comes.
    let mut client = TcpStream::connect(gateway.http()).await.unwrap();
    let head = b"POST /small/chunks HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    client.write_all(&[&head[..], b"b\r\n12345678901\r\n0\r\n\r\n"].concat()).await.unwrap();
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer).await;
    assert!(answer.starts_with(b"HTTP/1.1 413 "), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_given_up() {
    let routes = r#"
  - { name: header, match: { path: /hold }, timeouts: { response: 200ms }, upstream: app }
  - { name: total, match: { path: /upload/* }, timeouts: { total: 300ms }, upstream: app }
  - { name: slow, match: { path: /bytes/* }, timeouts: { total: 500ms }, upstream: app }
  - { name: quick, timeouts: { total: 30s, response: 30s }, upstream: app }
"#;
    let (gateway, _up) = start(routes).await;
    let late = gateway.get("/hold").await;
    assert_eq!(late.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(late.text().lines().next(), Some("request took too long"));
    let line = gateway.logged(|line| line["path"] == "/hold").await;
    assert_eq!((&line["error"]["kind"], &line["error"]["source"]), (&"request_timeout".into(), &"gateway".into()));

    // A client that takes its time to send.
    let mut client = TcpStream::connect(gateway.http()).await.unwrap();
    client.write_all(b"POST /upload/a HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nx").await.unwrap();
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer).await;
    assert!(answer.starts_with(b"HTTP/1.1 504 "), "{}", String::from_utf8_lossy(&answer));

    // A response that goes on for longer is cut off.
    let mut client = TcpStream::connect(gateway.http()).await.unwrap();
    client.write_all(b"GET /bytes/10000000000 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut received = 0_u64;
    let mut piece = vec![0; 256 << 10];
    while let Ok(count @ 1..) = client.read(&mut piece).await {
        received += count as u64;
    }
    assert!(received < 10_000_000_000, "{received}");
    let line = gateway.logged(|line| line["route"] == "slow").await;
    assert_eq!(line["error"]["kind"], "request_timeout");
    assert_eq!(gateway.get("/text/a").await.text(), "a");
}

#[tokio::test]
async fn a_share_of_the_requests_goes_to_a_mirror_that_nobody_waits_for() {
    let (up, mirror) = (Upstream::start().await, Upstream::named("mirror").await);
    let routes = r#"
  - { name: all, match: { path: /all/* }, mirror: next, rewrite: { prefix: / }, upstream: app }
  - { name: none, match: { path: /none }, mirror: { upstream: next, share: 0% }, upstream: app }
  - { name: small, match: { path: /small }, mirror: { upstream: next, body: 4 }, upstream: app }
  - { name: one, match: { path: /hold }, mirror: { upstream: next, requests: 1 }, upstream: app }
  - { name: h2, match: { path: /h2/* }, mirror: next-h2, upstream: app }
"#;
    let mirrors = "upstreams: { next: [\"${NEXT}\"], next-h2: { endpoints: [\"${NEXT}\"], protocol: h2c }, ";
    let config = config("", routes).replace("upstreams: { ", mirrors);
    let builder = Builder::new(&config).upstream(&up).variable("NEXT", &mirror.address.to_string());
    let gateway = builder.start().await;
    let count = async |route: &str, outcome: &str| {
        let labels = [format!("route=\"{route}\""), format!("outcome=\"{outcome}\"")];
        gateway.metric("lockgate_mirror_requests_total", &[&labels[0], &labels[1]]).await
    };

    // It is asked for what the upstream is.
    let sent = gateway.send(gateway.client().post(gateway.url("/all/text/a")).body("some")).await;
    assert_eq!((sent.status, sent.header("x-upstream")), (StatusCode::OK, "upstream"));
    while count("all", "answered").await != 1.0 {}
    assert_eq!(mirror.requests(), 1);
    // By HTTP/2 just as well, over one connection.
    for path in ["/h2/a", "/h2/b"] {
        let answered = count("h2", "answered").await;
        assert_eq!(gateway.send(gateway.client().post(gateway.url(path)).body("some")).await.status, StatusCode::OK);
        while count("h2", "answered").await != answered + 1.0 {}
    }
    assert_eq!((mirror.requests(), mirror.connections()), (3, 2));
    // With its body, or not at all.
    assert_eq!(gateway.send(gateway.client().post(gateway.url("/small")).body("12345")).await.status, StatusCode::OK);
    while count("small", "too_long").await != 1.0 {}
    assert_eq!(gateway.get("/none").await.status, StatusCode::OK);

    // The upstream's own requests are let go; of those that the mirror holds, one is under way.
    up.release(2);
    assert_eq!(
        (gateway.get("/hold").await.status, gateway.get("/hold").await.status),
        (StatusCode::OK, StatusCode::OK)
    );
    mirror.holding(1).await;
    while count("one", "busy").await != 1.0 {}
    mirror.release(1);
    while count("one", "answered").await != 1.0 {}
    assert_eq!(mirror.requests(), 4);
    drop(mirror);
    assert_eq!(gateway.get("/all/text/b").await.status, StatusCode::OK);
    while count("all", "failed").await != 1.0 {}
}

#[tokio::test]
async fn policies_hold_for_http_2_as_well() {
    let routes = r#"
  - { match: { path: /old/* }, redirect: "https://{host}/new/{rest}" }
  - name: api
    rate_limits: [{ requests: 1, per: 1h }]
    headers: { request: { set: { x-from: "{host}" } }, response: { set: { x-edge: "{method}" } } }
    cors: { origins: "*" }
    rewrite: { regex: '^/(.*)$', to: '/v2/$1', host: internal.example }
    upstream: app
"#;
    let (gateway, _up) = start(routes).await;
    let builder = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
    let client = builder.http2_prior_knowledge().build().unwrap();
    let get = async |path: &str| gateway.send(client.get(gateway.url(path))).await;
    let moved = get("/old/a?b=c").await;
    assert_eq!(moved.header("location"), format!("https://{}/new/a?b=c", gateway.http()));
    let reply = get("/users").await;
    let seen = reply.seen();
    assert_eq!((seen.target.as_str(), seen.header("host")), ("/v2/users", "internal.example"));
    assert_eq!((seen.header("x-from"), reply.header("x-edge")), (gateway.http().to_string().as_str(), "GET"));
    assert_eq!(reply.header("access-control-allow-origin"), "*");
    let refused = get("/users").await;
    assert_eq!((refused.status, refused.header("x-edge")), (StatusCode::TOO_MANY_REQUESTS, "GET"));
    assert!(!refused.header("retry-after").is_empty());
}
