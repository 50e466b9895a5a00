//! What `filter.wit` promises, phase by phase.

use bytes::Bytes;
use lockgate_guests::Guest;
use lockgate_host::{BodyMode, BodyOutcome, Lane, MetricKind, Outcome, Phases, ResponseBodyOutcome, ResponseOutcome};

use crate::{Recorder, acquire, get, header, pass, request, respond, response_header, setup};

#[tokio::test]
async fn headers_are_set_on_both_sides_by_one_instance() {
    let filter = setup(Guest::Tag).settings(r#"{"value": "v2"}"#).load();
    let mut exchange = get("/");
    let mut instance = acquire(&filter);
    assert_eq!(instance.on_request(&mut exchange).await, Ok(Outcome::Continue));
    assert_eq!(header(&exchange.request.headers, "x-tag-request"), "v2");
    respond(&mut exchange);
    assert_eq!(instance.on_response(&mut exchange).await, Ok(ResponseOutcome::Continue));
    assert_eq!(response_header(&exchange, "x-tag"), "v2");
    assert_eq!(&*exchange.id, "request-1", "the exchange came back whole");
}

#[tokio::test]
async fn a_phase_that_is_not_exported_does_nothing() {
    let filter = setup(Guest::Bare).settings("[1, 2]").load();
    let expected = Phases { on_request: true, ..Phases::default() };
    assert_eq!((filter.phases(), filter.lane()), (expected, Lane::Inline));
    assert_eq!(filter.request_body(), BodyMode::None);
    let mut exchange = get("/");
    let mut instance = acquire(&filter);
    assert_eq!(instance.on_request(&mut exchange).await, Ok(Outcome::Continue));
    assert_eq!(header(&exchange.request.headers, "x-settings"), "[1, 2]");
    respond(&mut exchange);
    assert_eq!(instance.on_response(&mut exchange).await, Ok(ResponseOutcome::Continue));
    let body = instance.on_response_body(&mut exchange, Bytes::from_static(b"body"), true);
    assert_eq!(body, Ok(ResponseBodyOutcome::Continue));
}

#[tokio::test]
async fn the_context_is_shared_along_the_chain_and_across_phases() {
    let first = setup(Guest::Context).settings(r#"{"put": {"key": "user", "value": "42"}}"#).load();
    let second = setup(Guest::Context).settings(r#"{"show": {"key": "user", "header": "x-user"}}"#).load();
    let mut exchange = get("/");
    pass(&second, &mut exchange).await;
    assert_eq!(header(&exchange.request.headers, "x-user"), "absent");
    pass(&first, &mut exchange).await;
    pass(&second, &mut exchange).await;
    assert_eq!(header(&exchange.request.headers, "x-user"), "42");
    respond(&mut exchange);
    assert_eq!(acquire(&second).on_response(&mut exchange).await, Ok(ResponseOutcome::Continue));
    assert_eq!(response_header(&exchange, "x-user"), "42");
    let mut another = get("/");
    pass(&second, &mut another).await;
    assert_eq!(header(&another.request.headers, "x-user"), "absent", "another request has a bag of its own");
}

#[tokio::test]
async fn a_filter_answers_instead_of_the_target() {
    let settings = r#"{"status": 429, "headers": {"retry-after": "7"}, "body": "slow down"}"#;
    let filter = setup(Guest::Respond).settings(settings).load();
    let Ok(Outcome::Respond(response)) = acquire(&filter).on_request(&mut get("/")).await else { panic!("answers") };
    assert_eq!((response.status.as_u16(), &response.body[..]), (429, &b"slow down"[..]));
    assert_eq!(header(&response.headers, "retry-after"), "7");
}

#[tokio::test]
async fn a_failure_carries_its_reason() {
    let filter = setup(Guest::Fail).settings(r#"{"phase": "on_request", "reason": "no key"}"#).load();
    let outcome = acquire(&filter).on_request(&mut get("/")).await;
    assert!(matches!(&outcome, Ok(Outcome::Fail(reason)) if reason.contains("no key")), "{outcome:?}");
}

#[tokio::test]
async fn bodies_are_replaced_chunk_by_chunk() {
    let filter = setup(Guest::BodyUpper).load();
    assert_eq!((filter.request_body(), filter.response_body()), (BodyMode::Stream, BodyMode::Stream));
    let sink = Recorder::bound_to(&filter);
    let mut exchange = get("/");
    let mut instance = acquire(&filter);
    assert_eq!(instance.on_request(&mut exchange).await, Ok(Outcome::Continue));
    let large = Bytes::from(vec![b'a'; 300_000]);
    for (chunk, end, expected) in [
        (Bytes::from_static(b"one"), false, Bytes::from_static(b"ONE")),
        (large, false, Bytes::from(vec![b'A'; 300_000])),
        (Bytes::new(), true, Bytes::new()),
    ] {
        let outcome = instance.on_request_body(&mut exchange, chunk, end).await;
        assert_eq!(outcome, Ok(BodyOutcome::Replace(expected)));
    }
    let lines = sink.take();
    assert_eq!(lines, ["request-1 stable on-request-body Info: request body: 300003 bytes in 2 chunks"]);
    respond(&mut exchange);
    let outcome = instance.on_response_body(&mut exchange, Bytes::from_static(b"two"), true);
    assert_eq!(outcome, Ok(ResponseBodyOutcome::Replace(Bytes::from_static(b"TWO"))));
}

#[tokio::test]
async fn a_filter_that_buffers_bodies_decides_on_the_whole() {
    let filter = setup(Guest::BodyBuffer).load();
    assert_eq!((filter.request_body(), filter.response_body()), (BodyMode::Buffer, BodyMode::Buffer));
    let send = async |body: &'static str| {
        let mut exchange = request(http::Request::post("/"));
        let outcome = acquire(&filter).on_request_body(&mut exchange, Bytes::from(body), true).await;
        (outcome.expect("no failure"), exchange)
    };
    let (outcome, exchange) = send("hello").await;
    assert_eq!(outcome, BodyOutcome::Continue);
    assert_eq!(header(&exchange.request.headers, "x-body-length"), "5");
    let (outcome, _) = send("replace:").await;
    assert_eq!(outcome, BodyOutcome::Replace(Bytes::from_static(b"replaced")));
    let (outcome, _) = send("a forbidden word").await;
    assert!(matches!(outcome, BodyOutcome::Respond(response) if response.status == 403));
    let (outcome, exchange) = send("upstream:other\n").await;
    assert_eq!((outcome, exchange.upstream), (BodyOutcome::Continue, 1));
    let (outcome, exchange) = send("upstream:nowhere\n").await;
    assert!(matches!(outcome, BodyOutcome::Fail(_)), "{outcome:?}");
    assert_eq!(exchange.upstream, 0, "an upstream that the route does not declare is not chosen");
}

#[tokio::test]
async fn writes_after_the_headers_were_sent_are_refused() {
    let filter = setup(Guest::Tag).settings(r#"{"value": "late"}"#).load();
    let mut exchange = get("/");
    exchange.request_sent = true;
    let outcome = acquire(&filter).on_request(&mut exchange).await;
    assert!(matches!(outcome, Ok(Outcome::Fail(_))), "{outcome:?}");
    assert!(!exchange.request.headers.contains_key("x-tag-request"));
    respond(&mut exchange);
    exchange.response_sent = true;
    let outcome = acquire(&filter).on_response(&mut exchange).await;
    assert!(matches!(outcome, Ok(ResponseOutcome::Fail(_))), "{outcome:?}");
}

#[tokio::test]
async fn no_filter_writes_a_header_that_breaks_a_message() {
    for guest in [Guest::BadHeader, Guest::ForbiddenHeader, Guest::HugeHeader] {
        let filter = setup(guest).load();
        let mut exchange = get("/");
        pass(&filter, &mut exchange).await;
        respond(&mut exchange);
        assert_eq!(acquire(&filter).on_response(&mut exchange).await, Ok(ResponseOutcome::Continue));
        let response = exchange.response.as_ref().expect("a response");
        for headers in [&exchange.request.headers, &response.headers] {
            let refused: Vec<_> = headers.get_all("x-refused").iter().collect();
            assert!(!refused.is_empty(), "{}", guest.name());
            for refusal in refused {
                let refusal = refusal.to_str().expect("visible ASCII");
                assert!(!refusal.contains("Accepted"), "{}: {refusal}", guest.name());
            }
            let known = ["x-refused", "host"];
            let written: Vec<_> = headers.keys().filter(|name| !known.contains(&name.as_str())).collect();
            assert!(written.is_empty(), "{}: {written:?}", guest.name());
        }
        assert_eq!(header(&exchange.request.headers, "host"), "example.com");
    }
}

#[tokio::test]
async fn log_lines_and_events_say_where_they_come_from() {
    let filter = setup(Guest::LogLines).load();
    let sink = Recorder::bound_to(&filter);
    pass(&filter, &mut get("/a")).await;
    let expected = [
        "request-1 stable on-request Debug: a debug line",
        "request-1 stable on-request Info: an info line",
        "request-1 stable on-request Warn: a warn line",
        "request-1 stable on-request Error: an error line",
        r#"request-1 stable on-request event request-seen: {"path":"/a"}"#,
    ];
    assert_eq!(sink.take(), expected);
}

#[tokio::test]
async fn metrics_are_declared_once_and_the_key_value_store_is_shared_by_versions() {
    let filter = setup(Guest::Counter).named("shared-counter").load();
    let names: Vec<_> = filter.declarations().iter().map(|metric| metric.name.as_str()).collect();
    assert_eq!(names, ["requests", "requests_by_method", "path_bytes", "path_bytes_by_method"]);
    assert_eq!(filter.declarations()[0].kind, MetricKind::Counter);
    assert_eq!(filter.declarations()[3].label.as_ref().map(|label| label.values.len()), Some(3));
    let sink = Recorder::bound_to(&filter);
    let mut exchange = request(http::Request::post("/abc"));
    pass(&filter, &mut exchange).await;
    assert_eq!(sink.take(), ["add 0 0 1", "add 1 1 1", "observe 2 0 4", "observe 3 1 4"]);
    assert_eq!(header(&exchange.request.headers, "x-count"), "1");

    // The same name with other settings: another version, the same store.
    let next = setup(Guest::Counter).named("shared-counter").settings("{}").load();
    assert_ne!(next.version(), filter.version());
    let mut exchange = get("/d");
    pass(&next, &mut exchange).await;
    assert_eq!(header(&exchange.request.headers, "x-count"), "2");
    assert_eq!(header(&exchange.request.headers, "x-last-path"), "/abc");
    let other = setup(Guest::Counter).named("another-counter").load();
    let mut exchange = get("/");
    pass(&other, &mut exchange).await;
    assert_eq!(header(&exchange.request.headers, "x-count"), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn increments_of_many_instances_are_atomic() {
    let filter = setup(Guest::Counter).named("atomic-counter").load();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let filter = filter.clone();
        tasks.spawn(async move {
            for _ in 0..25 {
                pass(&filter, &mut get("/")).await;
            }
        });
    }
    tasks.join_all().await;
    let mut exchange = get("/");
    pass(&filter, &mut exchange).await;
    assert_eq!(header(&exchange.request.headers, "x-count"), "201");
}

#[tokio::test]
async fn calls_can_be_spawned() {
    fn assert_send<T: Send>(_: &T) {}
    let filter = setup(Guest::Tag).settings(r#"{"value": "v1"}"#).load();
    let (mut instance, mut exchange) = (acquire(&filter), get("/"));
    assert_send(&instance);
    assert_send(&instance.on_request(&mut exchange));
    assert_send(&instance.on_request_body(&mut exchange, Bytes::new(), true));
    assert_send(&instance.on_response(&mut exchange));
}
