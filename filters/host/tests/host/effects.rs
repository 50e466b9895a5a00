//! Where effects go: to the world, or nowhere.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockgate_guests::Guest;
use lockgate_host::{CallErrorKind, Effects, Exchange, Filter, Instance, Level, Outcome, ResponseOutcome};
use tokio::net::TcpListener;

use crate::{Recorder, get, header, pass, respond, response_header, setup};

fn acquire_for(filter: &Arc<Filter>, effects: Effects) -> Instance {
    filter.acquire_for("canary", effects).expect("an instance")
}

async fn call(instance: &mut Instance, path: &str) -> Box<Exchange> {
    let mut exchange = get(path);
    assert_eq!(instance.on_request(&mut exchange).await, Ok(Outcome::Continue));
    exchange
}

#[tokio::test]
async fn what_is_private_counts_for_nobody_else() {
    for setup in [setup(Guest::Counter).named("private-counter"), setup(Guest::Counter).named("keeping").keeping()] {
        counts_for_nobody_else(setup.load()).await;
    }
}

async fn counts_for_nobody_else(filter: Arc<Filter>) {
    let sink = Recorder::bound_to(&filter);
    pass(&filter, &mut get("/one")).await;
    sink.take();
    for _ in 0..3 {
        let mut private = acquire_for(&filter, Effects::Private);
        let mut exchange = call(&mut private, "/two").await;
        assert_eq!(header(&exchange.request.headers, "x-count"), "2", "on top of what was really counted");
        assert_eq!(header(&exchange.request.headers, "x-last-path"), "/one");
        respond(&mut exchange);
        assert_eq!(private.on_response(&mut exchange).await, Ok(ResponseOutcome::Continue));
        assert_eq!(response_header(&exchange, "x-count"), "2", "the overlay lasts for the request");
    }
    assert_eq!(sink.take(), Vec::<String>::new(), "no metric was counted");
    let mut exchange = get("/three");
    pass(&filter, &mut exchange).await;
    assert_eq!(header(&exchange.request.headers, "x-count"), "2");
    assert_eq!(header(&exchange.request.headers, "x-last-path"), "/one");
}

#[tokio::test]
async fn whoever_is_shown_the_notes_of_another_call_finds_the_same() {
    for setup in [setup(Guest::Counter).named("noted-counter"), setup(Guest::Counter).named("noting").keeping()] {
        finds_the_same(setup.load()).await;
    }
}

async fn finds_the_same(filter: Arc<Filter>) {
    let mut noted = acquire_for(&filter, Effects::Noted);
    let first = call(&mut noted, "/first").await;
    let notes = noted.take_notes();
    assert!(notes.is_complete() && notes.bytes() > 0);
    for _ in 0..5 {
        pass(&filter, &mut get("/others")).await;
    }
    let mut private = acquire_for(&filter, Effects::Private);
    private.show(notes);
    let again = call(&mut private, "/first").await;
    assert_eq!(again.request.headers, first.request.headers);
}

#[tokio::test]
async fn private_log_lines_are_kept_for_who_asks() {
    let filter = setup(Guest::Trap).settings(r#"{"phase": "on_request"}"#).load();
    let sink = Recorder::bound_to(&filter);
    let mut private = acquire_for(&filter, Effects::Private);
    let error = private.on_request(&mut get("/")).await.expect_err("traps");
    assert_eq!(error.kind, CallErrorKind::Trap);
    let kept = private.take_kept();
    assert!(!kept.outbound_denied);
    assert!(kept.lines.iter().any(|(level, line)| *level == Level::Warn && line.contains("trapped")), "{kept:?}");
    assert_eq!(sink.take(), Vec::<String>::new());
}

#[tokio::test]
async fn a_private_loop_ends_after_its_deadline_in_processor_time() {
    for filter in [
        setup(Guest::Spin).limits(|limits| limits.deadline = Duration::from_millis(30)).load(),
        setup(Guest::Spin).reused(10, 1 << 30).limits(|limits| limits.deadline = Duration::from_millis(30)).load(),
    ] {
        let idle = filter.live().instances;
        let mut private = acquire_for(&filter, Effects::Private);
        let began = Instant::now();
        let error = private.on_request(&mut get("/")).await.expect_err("loops");
        assert_eq!(error.kind, CallErrorKind::Deadline);
        assert!(began.elapsed() >= Duration::from_millis(25), "{:?}", began.elapsed());
        drop(private);
        assert_eq!(filter.live().instances, idle, "a private instance serves once");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_request_to_a_granted_place_is_denied_and_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let settings = format!(r#"{{"url": "http://127.0.0.1:{port}/"}}"#);
    let filter = setup(Guest::Outbound).settings(&settings).granted("127.0.0.1", port).load();
    let mut private = acquire_for(&filter, Effects::Private);
    let exchange = call(&mut private, "/").await;
    assert_eq!(header(&exchange.request.headers, "x-outbound"), "failed");
    assert!(private.take_kept().outbound_denied);
    let nobody = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
    assert!(nobody.is_err(), "nobody connected");
}
