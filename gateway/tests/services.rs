//! Functions of WASI 0.3, through the real binary.

mod harness;

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use harness::{Builder, Gateway, Upstream};
use lockgate_guests::Guest;
use reqwest::{Client, StatusCode};
use xxhash_rust::xxh3::xxh3_64;

const SERVICE: &str = r#"
experimental: [wasi-0.3]
functions:
  fn:
    component: filters/service.wasm
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
async fn a_service_answers_over_both_versions_of_http_and_the_log_tells_which_one_it_was() {
    let gateway = start(SERVICE).await;
    for client in [gateway.client(), &http2()] {
        let reply = gateway.send(client.get(gateway.url("/a/b?c=d"))).await;
        assert_eq!((reply.status, &*reply.text()), (StatusCode::OK, "GET /a/b?c=d v1\n"));
        assert_eq!(reply.header("content-type"), "text/plain");
        assert!(!reply.header("date").is_empty());
    }
    let line = gateway.logged(|line| line["path"] == "/a/b" && line["function"]["outcome"] == "respond").await;
    assert_eq!((&line["function"]["name"], &line["function"]["track"]), (&"fn".into(), &"stable".into()));
    while gateway.metric("lockgate_function_calls_total", &["function=\"fn\"", "outcome=\"respond\""]).await != 2.0 {}
    while gateway.metric("lockgate_function_instances", &["function=\"fn\""]).await != 0.0 {}
}

#[tokio::test]
async fn without_the_experiment_a_service_is_refused_with_the_line_that_allows_it() {
    let gateway = Builder::new(SERVICE).guest(Guest::Service).start().await;
    gateway.write_config(&SERVICE.replace("experimental: [wasi-0.3]", ""));
    let refused = gateway.reload().await.text();
    for part in ["`filters/service.wasm` is built for `wasi:http/service@0.3`", "add `experimental: [wasi-0.3]`"] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    assert_eq!(gateway.get("/").await.status, StatusCode::OK);
}

#[tokio::test]
async fn events_arrive_as_they_are_written() {
    let gateway = start(SERVICE).await;
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
async fn bodies_stream_both_ways_whole_whether_they_are_copied_or_handed_on() {
    let gateway = start(&SERVICE.replace("cpu: 400ms", "cpu: 20s").replace("deadline: 2s", "deadline: 20s")).await;
    let bytes: Vec<u8> = (0..3_000_000_usize).map(|index| (index * 13 % 241) as u8).collect();
    for client in [gateway.client(), &http2()] {
        for path in ["/echo", "/pass"] {
            let reply = gateway.send(client.post(gateway.url(path)).body(bytes.clone())).await;
            assert_eq!((reply.status, xxh3_64(&reply.body)), (StatusCode::OK, xxh3_64(&bytes)), "{path}");
            let reply = gateway.send(client.post(gateway.url(path)).body("")).await;
            assert_eq!((reply.status, reply.body.len()), (StatusCode::OK, 0), "{path}");
        }
        let reply = gateway.send(client.post(gateway.url("/length")).body(bytes.clone())).await;
        assert_eq!(reply.text(), format!("{}\n", bytes.len()));
        let reply = gateway.send(client.get(gateway.url("/download?10000000"))).await;
        assert_eq!((reply.status, reply.body.len()), (StatusCode::OK, 10_000_000));
    }
}

/// Each ends as its own named error, and takes nobody along.
#[tokio::test]
async fn what_goes_wrong_is_answered_counted_and_named() {
    let gateway = start(SERVICE).await;
    for (path, kind) in [
        ("/trap", "trap"),
        ("/spin", "cpu"),
        ("/sleep?60000", "deadline"),
        ("/memory", "memory"),
        ("/handles", "handles"),
        ("/insist-on-header", "forbidden-header"),
        ("/too-short", "content-length"),
        ("/too-long", "content-length"),
        ("/error", "no-response"),
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
}

#[tokio::test]
async fn a_response_that_has_begun_is_cut_off_and_never_looks_whole() {
    let gateway = start(SERVICE).await;
    for path in ["/trap-later", "/spin-after-header"] {
        for client in [gateway.client(), &http2()] {
            let response = client.get(gateway.url(path)).send().await.expect("a header");
            assert_eq!(response.status(), StatusCode::OK, "{path}");
            assert!(response.bytes().await.is_err(), "{path} looks whole");
        }
    }
}

#[tokio::test]
async fn a_service_sees_the_variables_that_it_is_given_and_nothing_of_the_gateways() {
    let config = SERVICE.replace("VERSION: v1", "GIVEN: \"${HOST_SECRET}\"");
    let builder = Builder::new(&config).variable("HOST_SECRET", "hunter2").guest(Guest::Service);
    assert_eq!(builder.start().await.get("/vars").await.text(), "GIVEN=hunter2\n");
}

#[tokio::test]
async fn outbound_requests_go_where_a_grant_says_and_nowhere_else() {
    let up = Upstream::start().await;
    let config = SERVICE.replace("vars:", "grants: { outbound: [\"http://${UPSTREAM}\"] }\n    vars:");
    let gateway = Gateway::start(&config, &up).await;
    assert_eq!(gateway.get(&format!("/fetch?{}", up.address)).await.text(), "200\n");
    assert_eq!(gateway.get("/fetch?127.0.0.1:1").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(up.requests(), 1);
}

#[tokio::test]
async fn an_address_that_the_grant_does_not_list_is_refused_by_name() {
    let up = Upstream::start().await;
    let port = up.address.port().to_string();
    let config = SERVICE.replace(
        "vars:",
        "grants: { outbound: [{ to: \"http://localhost:${PORT}\", addresses: [10.0.0.0/8] }] }\n    vars:",
    );
    let gateway = Builder::new(&config).variable("PORT", &port).guest(Guest::Service).start().await;
    assert_eq!(gateway.get(&format!("/fetch?localhost:{port}")).await.status, StatusCode::SERVICE_UNAVAILABLE);
    gateway.says("a loopback address, which the grant does not list").await;
    gateway.settles("lockgate_function_failures_total", &["kind=\"denied-address\""], 1.0).await;
    assert_eq!(up.requests(), 0);
}

#[tokio::test]
async fn what_a_service_prints_is_logged_with_version_and_track() {
    let gateway = start(SERVICE).await;
    gateway.get("/print?hello").await;
    for said in ["to standard output: hello", "to standard error: hello"] {
        let line = gateway.says(said).await.to_string();
        for part in ["\"function\":\"fn\"", "\"track\":\"stable\"", "\"request_id\":", "\"version\":"] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
}

#[tokio::test]
async fn requests_that_overlap_are_each_logged_under_their_own_id() {
    let reused = SERVICE.replace("limits:", "isolation: reused\n    limits:");
    let gateway = start(&format!("server: {{ trusted_proxies: [127.0.0.0/8] }}\n{reused}")).await;
    let asked = (0..16).map(|number| {
        let request = gateway.client().get(gateway.url(&format!("/print?request-{number}-")));
        gateway.send(request.header("x-request-id", format!("id-{number}")))
    });
    for reply in futures_util::future::join_all(asked).await {
        assert_eq!(reply.status, StatusCode::OK);
    }
    for number in 0..16 {
        let line = gateway.says(&format!("to standard output: request-{number}-")).await.to_string();
        assert!(line.contains(&format!("\"request_id\":\"id-{number}\"")), "{line}");
    }
}
