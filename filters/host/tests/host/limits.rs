//! A filter's trap, timeout or limit ends at most its own request.

use std::time::{Duration, Instant};

use lockgate_guests::Guest;
use lockgate_host::{CallErrorKind, Exchange, Host, Outcome};

use crate::{acquire, get, options, pass, respond, setup};

/// Calls `on-request`, which fails.
async fn failure(
    filter: &std::sync::Arc<lockgate_host::Filter>,
    exchange: &mut Box<Exchange>,
) -> (CallErrorKind, String) {
    let error = acquire(filter).on_request(exchange).await.expect_err("fails");
    (error.kind, error.message)
}

#[tokio::test]
async fn a_trap_says_where_it_happened_and_the_exchange_comes_back() {
    let filter = setup(Guest::Trap).settings(r#"{"phase": "on_request"}"#).load();
    let mut exchange = get("/a?b=c");
    let (kind, message) = failure(&filter, &mut exchange).await;
    assert_eq!(kind, CallErrorKind::Trap);
    assert!(message.contains(" (at ") && message.contains("on-request"), "{message}");
    assert!(!message.contains("_R"), "names are for people: {message}");
    assert_eq!((exchange.request.uri.to_string(), &*exchange.id), ("/a?b=c".to_owned(), "request-1"));
}

#[tokio::test]
async fn every_phase_can_trap_and_the_instance_is_not_called_again() {
    for phase in ["on_request", "on_request_body", "on_response", "on_response_body"] {
        let filter = setup(Guest::Trap).settings(&format!(r#"{{"phase": "{phase}"}}"#)).load();
        let mut exchange = get("/");
        let mut instance = acquire(&filter);
        let mut trapped = vec![];
        trapped.push(instance.on_request(&mut exchange).await.is_err());
        trapped.push(instance.on_request_body(&mut exchange, "x".into(), true).await.is_err());
        respond(&mut exchange);
        trapped.push(instance.on_response(&mut exchange).await.is_err());
        trapped.push(instance.on_response_body(&mut exchange, "x".into(), true).is_err());
        let first = ["on_request", "on_request_body", "on_response", "on_response_body"]
            .iter()
            .position(|name| *name == phase)
            .expect("a phase");
        let expected: Vec<_> = (0..4).map(|at| at >= first).collect();
        assert_eq!(trapped, expected, "{phase}");
        assert!(exchange.response.is_some());
    }
}

#[tokio::test]
async fn a_thousand_traps_leave_nothing_behind() {
    let filter = setup(Guest::Trap).settings(r#"{"phase": "on_request", "when": "x-trap"}"#).load();
    for _ in 0..1_000 {
        let mut exchange = get("/");
        exchange.request.headers.insert("x-trap", http::HeaderValue::from_static("1"));
        assert_eq!(failure(&filter, &mut exchange).await.0, CallErrorKind::Trap);
    }
    pass(&filter, &mut get("/")).await;
    assert_eq!(
        filter.live(),
        lockgate_host::Live {
            instances: 0,
            memory_bytes: 0,
            lines_dropped: filter.live().lines_dropped,
            refused: [0; 3]
        }
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_loop_is_cut_at_its_deadline() {
    let deadline = Duration::from_millis(30);
    let filter = setup(Guest::Spin).limits(|limits| limits.deadline = deadline).load();
    let neighbour = setup(Guest::Tag).settings(r#"{"value": "v1"}"#).load();
    let began = Instant::now();
    let (kind, _) = failure(&filter, &mut get("/")).await;
    let took = began.elapsed();
    assert_eq!(kind, CallErrorKind::Deadline);
    // Late by an epoch or two, and by however long this machine lets a thread wait.
    assert!(took >= deadline && took < deadline + Duration::from_secs(2), "{took:?}");
    pass(&neighbour, &mut get("/")).await;
}

#[tokio::test]
async fn a_memory_bomb_ends_at_its_limit() {
    let filter = setup(Guest::EatMemory).limits(|limits| limits.memory_bytes = 8 << 20).load();
    let (kind, message) = failure(&filter, &mut get("/")).await;
    assert_eq!(kind, CallErrorKind::Memory, "{message}");
    assert!(message.contains("8388608"), "{message}");
    assert_eq!(filter.live().memory_bytes, 0);
}

#[tokio::test]
async fn a_deep_recursion_ends_at_the_stacks_end() {
    let filter = setup(Guest::Recurse).load();
    let (kind, message) = failure(&filter, &mut get("/")).await;
    assert_eq!(kind, CallErrorKind::Stack, "{message}");
    // On the stack of a worker thread as well, which is the smallest one there is.
    let on_worker = tokio::spawn(async move { failure(&filter, &mut get("/")).await.0 });
    assert_eq!(on_worker.await.expect("no panic"), CallErrorKind::Stack);
}

#[tokio::test]
async fn copying_is_bounded() {
    let settings = format!(r#"{{"body": "{}"}}"#, "x".repeat(100_000));
    let small = setup(Guest::Respond).settings(&settings).limits(|limits| limits.copy_bytes = 64 << 10).load();
    assert_eq!(failure(&small, &mut get("/")).await.0, CallErrorKind::Copy);
    let large = setup(Guest::Respond).settings(&settings).load();
    assert!(matches!(acquire(&large).on_request(&mut get("/")).await, Ok(Outcome::Respond(_))));
}

#[tokio::test]
async fn an_answer_that_cannot_be_sent_is_a_failure() {
    for settings in [
        r#"{"status": 99}"#,
        r#"{"status": 600}"#,
        r#"{"headers": {"transfer-encoding": "chunked"}}"#,
        r#"{"headers": {"x-a": "b\r\nc: d"}}"#,
    ] {
        let filter = setup(Guest::Respond).settings(settings).load();
        assert_eq!(failure(&filter, &mut get("/")).await.0, CallErrorKind::InvalidResponse, "{settings}");
    }
}

#[tokio::test]
async fn instances_run_out_in_order_and_come_back() {
    let filter = setup(Guest::ReadSet).limits(|limits| limits.instances = 2).load();
    let (first, second) = (acquire(&filter), acquire(&filter));
    let error = filter.acquire("stable").expect_err("two is the limit");
    assert_eq!(error.kind, CallErrorKind::Exhausted);
    drop(first);
    pass(&filter, &mut get("/")).await;
    drop(second);
}

#[tokio::test]
async fn the_gateways_pool_runs_out_without_a_panic() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut options = options(dir.path());
    options.instances_max = 2;
    let host = Host::new(options).expect("a host");
    let one = setup(Guest::ReadSet).load_by(&host);
    let other = setup(Guest::Tag).settings(r#"{"value": "v1"}"#).load_by(&host);
    assert_eq!(host.pool().used, lockgate_host::Need::default(), "the probes are gone");
    let mut held = [acquire(&one), acquire(&other)];
    for instance in &mut held {
        assert_eq!(instance.on_request(&mut get("/")).await, Ok(Outcome::Continue));
    }
    let error = one.acquire("stable").expect_err("the pool is full");
    assert_eq!(error.kind, CallErrorKind::Exhausted);
    assert!(error.message.contains("memories") || error.message.contains("component instances"), "{error}");
    drop(held);
    pass(&one, &mut get("/")).await;
    assert_eq!(host.pool().used, lockgate_host::Need::default());
}

#[tokio::test]
async fn a_loop_in_configure_is_cut() {
    let setup = setup(Guest::SlowConfigure)
        .settings(r#"{"duration_ms": null}"#)
        .limits(|limits| limits.configure_deadline = Duration::from_millis(100));
    let text = setup.refused().to_string();
    assert!(text.starts_with("`configure` failed: it took longer than 100ms"), "{text}");
}
