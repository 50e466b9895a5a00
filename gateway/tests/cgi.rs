//! Programs as targets, in the manner of CGI: components that know nothing of HTTP, through the real binary.

mod harness;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use harness::{Builder, Gateway, Upstream};
use lockgate_guests::Guest;
use reqwest::{Client, Method, StatusCode};
use xxhash_rust::xxh3::xxh3_64;

const PROGRAM: &str = r#"
functions:
  program:
    component: filters/cgi.wasm
    vars: { VERSION: v1, HTTP_X_MODE: safe }
    limits: { deadline: 2s, cpu: 400ms, memory: 16MiB }
routes:
  - { name: all, match: { path: /app/* }, function: program }
  - { name: one, match: { path: "/users/{id}/{what}" }, function: program }
"#;

async fn start(config: &str) -> Gateway {
    Gateway::start(config, &Upstream::start().await).await
}

fn http2() -> Client {
    Client::builder().no_proxy().http2_prior_knowledge().build().expect("a client")
}

/// What a program finds in its environment.
async fn environment(gateway: &Gateway, request: reqwest::RequestBuilder) -> BTreeMap<String, String> {
    let text = gateway.send(request).await.text();
    text.lines().filter_map(|line| line.split_once('=')).map(|(n, v)| (n.to_owned(), v.to_owned())).collect()
}

#[tokio::test]
async fn a_program_answers_by_printing() {
    let gateway = start(PROGRAM).await;
    for client in [gateway.client(), &http2()] {
        let reply = gateway.send(client.get(gateway.url("/app/a/b?c=d"))).await;
        assert_eq!((reply.status, &*reply.text()), (StatusCode::OK, "GET /app/a/b\n"));
        assert_eq!((reply.header("content-type"), reply.header("x-version")), ("text/plain", "v1"));
        assert_eq!(reply.header("content-length"), "13");
    }
    let reply = gateway.get("/app/status?418").await;
    assert_eq!((reply.status.as_u16(), &*reply.text()), (418, "asked\n"));
    let line = gateway.logged(|line| line["path"] == "/app/a/b" && line["function"]["outcome"] == "respond").await;
    assert_eq!(line["function"]["name"], "program");
    let head = gateway.send(gateway.client().request(Method::HEAD, gateway.url("/app/download?100"))).await;
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (StatusCode::OK, "100", 0));
    let empty = gateway.get("/app/status?204").await;
    assert_eq!((empty.status.as_u16(), empty.body.len()), (204, 0));
    assert_eq!(
        gateway.metric("lockgate_function_failures_total", &[]).await,
        0.0,
        "nobody failed for want of a reader"
    );
}

#[tokio::test]
async fn a_location_sends_the_client_elsewhere() {
    let gateway = start(PROGRAM).await;
    let client = Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().expect("a client");
    let reply = gateway.send(client.get(gateway.url("/app/redirect"))).await;
    assert_eq!((reply.status, reply.header("location")), (StatusCode::FOUND, "/elsewhere"));
}

#[tokio::test]
async fn a_program_finds_its_request_in_its_environment() {
    let gateway = start(PROGRAM).await;
    let request = gateway.client().post(gateway.url("/app/env?a=%20b")).body("1234");
    let request = request.header("content-type", "text/x").header("host", "shop.example:81").header("x-mine", "1");
    let request = request.header("proxy", "http://evil").header("x-mode", "evil").header("x_mine", "forged");
    let told = environment(&gateway, request).await;
    for (name, value) in [
        ("GATEWAY_INTERFACE", "CGI/1.1"),
        ("REQUEST_METHOD", "POST"),
        ("SCRIPT_NAME", "/app"),
        ("PATH_INFO", "/env"),
        ("QUERY_STRING", "a=%20b"),
        ("REQUEST_URI", "/app/env?a=%20b"),
        ("SERVER_NAME", "shop.example"),
        ("SERVER_PORT", "81"),
        ("HTTP_HOST", "shop.example:81"),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
        ("REMOTE_ADDR", "127.0.0.1"),
        ("CONTENT_TYPE", "text/x"),
        ("CONTENT_LENGTH", "4"),
        ("HTTP_X_MINE", "1"),
        ("HTTP_X_FORWARDED_FOR", "127.0.0.1"),
        ("VERSION", "v1"),
        ("HTTP_X_MODE", "safe"),
    ] {
        assert_eq!(told.get(name).map(String::as_str), Some(value), "{name}: {told:#?}");
    }
    assert!(!told.contains_key("HTTP_PROXY") && !told.contains_key("HTTPS"), "{told:#?}");
}

#[tokio::test]
async fn parameters_of_the_path_are_headers_that_no_client_can_make_up() {
    let config = PROGRAM.replace("/app/*", "/users/env").replace("{ VERSION", "{ PATH_INFO: /env, VERSION");
    let gateway = start(&config).await;
    let forged = gateway.client().get(gateway.url("/users/a%20b/x")).header("x-lockgate-param-id", "forged");
    let told = environment(&gateway, forged.header("x-lockgate-param-other", "forged")).await;
    assert_eq!((&*told["HTTP_X_LOCKGATE_PARAM_ID"], &*told["HTTP_X_LOCKGATE_PARAM_WHAT"]), ("a%20b", "x"));
    assert!(!told.contains_key("HTTP_X_LOCKGATE_PARAM_OTHER"), "{told:#?}");
    // A path without parameters has none.
    let told =
        environment(&gateway, gateway.client().get(gateway.url("/users/env")).header("x-lockgate-param-id", "x")).await;
    assert!(told.keys().all(|name| !name.contains("PARAM")), "{told:#?}");
}

#[tokio::test]
async fn bodies_stream_through_a_program_both_ways() {
    let gateway = start(&PROGRAM.replace("cpu: 400ms", "cpu: 60s").replace("deadline: 2s", "deadline: 60s")).await;
    let bytes: Vec<u8> = (0..3_000_000_usize).map(|index| (index * 13 % 241) as u8).collect();
    for client in [gateway.client(), &http2()] {
        let reply = gateway.send(client.post(gateway.url("/app/echo")).body(bytes.clone())).await;
        assert_eq!((reply.status, xxh3_64(&reply.body)), (StatusCode::OK, xxh3_64(&bytes)));
        let reply = gateway.send(client.post(gateway.url("/app/length")).body(bytes.clone())).await;
        assert_eq!(reply.text(), "3000000\n");
        let reply = gateway.get("/app/download?5000000").await;
        assert_eq!((reply.header("content-length"), reply.body.len()), ("5000000", 5_000_000));
    }
}

#[tokio::test]
async fn what_is_printed_arrives_as_it_is_printed() {
    let gateway = start(PROGRAM).await;
    let began = Instant::now();
    let response = gateway.client().get(gateway.url("/app/events?8")).send().await.expect("an answer");
    let mut stream = response.bytes_stream();
    let mut arrived = Vec::new();
    while let Some(piece) = stream.next().await {
        piece.expect("a piece");
        arrived.push(began.elapsed());
    }
    let (first, last) = (arrived.first().expect("a piece"), arrived.last().expect("a piece"));
    assert!(arrived.len() >= 4 && *last - *first >= Duration::from_millis(200), "{arrived:?}");
}

/// Each ends as its own named error, and takes nobody along.
#[tokio::test]
async fn what_is_no_answer_is_counted_and_named() {
    let gateway = start(PROGRAM).await;
    for (path, kind) in [
        ("/app/no-header", "cgi-header"),
        ("/app/half-header", "cgi-header"),
        ("/app/no-cgi-field", "cgi-header"),
        ("/app/long-header", "cgi-header"),
        ("/app/status?abc", "cgi-header"),
        ("/app/status?199", "invalid-response"),
        ("/app/forbidden-header", "forbidden-header"),
        ("/app/too-short", "content-length"),
        ("/app/nothing", "no-response"),
        ("/app/exit", "exit"),
        ("/app/panic", "trap"),
        ("/app/spin", "cpu"),
    ] {
        let before = gateway.metric("lockgate_function_failures_total", &[&format!("kind=\"{kind}\"")]).await;
        let reply = gateway.get(path).await;
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        let after = gateway.metric("lockgate_function_failures_total", &[&format!("kind=\"{kind}\"")]).await;
        assert_eq!(after - before, 1.0, "{path}");
        assert_eq!(gateway.get("/app/").await.status, StatusCode::OK, "after {path}");
    }
    gateway.says("its header is malformed: line 1, \\\"hello\\\", has no colon").await;
    let later = gateway.client().get(gateway.url("/app/exit-later")).send().await.expect("a header");
    assert!(later.bytes().await.is_err(), "what a failing program leaves behind looks whole");
    gateway.settles("lockgate_function_failures_total", &["kind=\"exit\""], 2.0).await;
}

#[tokio::test]
async fn complaints_of_a_program_are_lines_of_the_log() {
    let gateway = start(PROGRAM).await;
    assert_eq!(gateway.get("/app/complain?loudly").await.text(), "complained\n");
    let line = gateway.says("a complaint: loudly").await.to_string();
    for part in ["\"function\":\"program\"", "\"track\":\"stable\"", "\"request_id\":", "\"version\":", "\"WARN\""] {
        assert!(line.contains(part), "{part}: {line}");
    }
}

#[tokio::test]
async fn a_program_gets_no_socket_and_nothing_of_the_gateways_environment() {
    let config = PROGRAM.replace("VERSION: v1", "GIVEN: \"${HOST_SECRET}\"");
    let gateway = Builder::new(&config).variable("HOST_SECRET", "hunter2").guest(Guest::Cgi).start().await;
    let port = gateway.http().port();
    let touched = gateway.get(&format!("/app/touch?{port}")).await.text();
    assert_eq!(touched, "tcp=denied,listen=denied,udp=denied,lookup=denied\n");
    let told = environment(&gateway, gateway.client().get(gateway.url("/app/env"))).await;
    assert_eq!(told["GIVEN"], "hunter2");
    for own in ["HOST_SECRET", "PATH", "HOME", "LOCKGATE_LOG_FORMAT"] {
        assert!(!told.contains_key(own), "{own}: {told:#?}");
    }
}

#[tokio::test]
async fn a_programs_canary_is_split_and_promoted_like_any_other() {
    let rollout = r#"
rollouts:
  next:
    function: program
    canary: { vars: { VERSION: v2 } }
    weight: 0%
    override: { trusted: [127.0.0.0/8] }
"#;
    let gateway = start(&format!("{PROGRAM}{rollout}")).await;
    assert_eq!(gateway.get_with("/app/", "x-lockgate-track", "canary").await.header("x-version"), "v2");
    assert_eq!(gateway.get("/app/").await.header("x-version"), "v1");
    let (status, said) = gateway.cli(&["rollout", "promote", "next"]).await;
    assert!(status.success(), "{said}");
    assert_eq!(gateway.get("/app/").await.header("x-version"), "v2");
}

#[tokio::test]
async fn what_is_no_program_is_refused_with_what_to_do() {
    let gateway =
        Builder::new(PROGRAM).guest(Guest::Cgi).guest(Guest::CoreModule).guest(Guest::WrongWorld).start().await;
    for (from, to, expected) in [
        ("    vars:", "    isolation: reused\n    vars:", "cannot be `reused`"),
        ("cgi.wasm", "core-module.wasm", "is a core module, not a component"),
        ("cgi.wasm", "wrong-world.wasm", "build it for the world `wasi:http/proxy` or `wasi:cli/command`"),
    ] {
        gateway.write_config(&PROGRAM.replace(from, to));
        let refused = gateway.reload().await;
        assert!(refused.text().contains(expected), "{expected}: {}", refused.text());
    }
    assert_eq!(gateway.get("/app/").await.status, StatusCode::OK);
}
