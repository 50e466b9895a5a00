//! Services and middleware of WASI 0.3, answering requests, well and badly.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use lockgate_guests::Guest;
use lockgate_host::{
    Call, CallError, CallErrorKind, Function, FunctionLimits, FunctionSpec, Grants, Handling, Isolation, Next,
    NextBody, NextError, RequestBody, Settled, Silent, World,
};
use parking_lot::Mutex;

use crate::functions::renamed;
use crate::{PATIENT, component, host};

fn spec(guest: Guest) -> FunctionSpec {
    FunctionSpec {
        name: guest.name().into(),
        component: component(guest),
        vars: vec![("VERSION".to_owned(), "v1".to_owned())],
        config: Vec::new(),
        grants: Grants::default(),
        isolation: Isolation::Request,
        limits: FunctionLimits { deadline: PATIENT, cpu: PATIENT, ..FunctionLimits::default() },
    }
}

fn load(spec: &FunctionSpec) -> Arc<Function> {
    host().load_function(spec, &Silent).unwrap_or_else(|error| panic!("{}: {error}", spec.name))
}

fn post(target: &str) -> http::request::Builder {
    http::Request::post(target).header("host", "example.com")
}

fn begin(function: &Arc<Function>, target: &str, body: RequestBody) -> Call {
    let request = post(target).body(body).expect("a request");
    function.call("stable", "request-1".into(), None, false, request, None).expect("an instance")
}

async fn rest(call: &mut Call) -> Result<Bytes, CallError> {
    let mut whole = Vec::new();
    while let Some(frame) = call.frame().await {
        if let Ok(data) = frame?.into_data() {
            whole.extend_from_slice(&data);
        }
    }
    Ok(whole.into())
}

async fn finish(mut call: Call) -> Result<(http::response::Parts, Bytes), CallError> {
    let parts = call.response().await?;
    let body = rest(&mut call).await?;
    match call.settle().await {
        Settled::Ended(ended) => ended?,
        Settled::Running(tail) => tail.run().await?,
    }
    Ok((parts, body))
}

/// Sends a request without a body, and returns the whole answer.
async fn get(function: &Arc<Function>, target: &str) -> Result<(http::response::Parts, Bytes), CallError> {
    finish(begin(function, target, RequestBody::whole(Bytes::new()))).await
}

#[tokio::test]
async fn a_service_answers_with_what_its_environment_says() {
    let service = load(&spec(Guest::Service));
    assert_eq!(service.world(), World::Service);
    let (parts, body) = get(&service, "/a?b=c").await.expect("an answer");
    assert_eq!((parts.status.as_u16(), &*body), (200, &b"POST /a?b=c v1\n"[..]));
    assert_eq!(parts.headers["x-version"], "v1");
    assert_eq!((service.live().instances, service.live().memory_bytes), (0, 0));
}

#[tokio::test]
async fn each_request_gets_a_fresh_instance_and_only_reused_ones_remember() {
    let fresh = load(&spec(Guest::Service));
    for _ in 0..3 {
        assert_eq!(get(&fresh, "/seen").await.expect("an answer").1, "1\n");
    }
    let isolation = Isolation::Reused { requests: 3, memory_bytes: 1 << 30 };
    let reused = load(&FunctionSpec { isolation, ..spec(Guest::Service) });
    for seen in ["1\n", "2\n", "3\n", "1\n"] {
        assert_eq!(get(&reused, "/seen").await.expect("an answer").1, seen);
    }
    get(&reused, "/trap").await.expect_err("a trap");
    assert_eq!(get(&reused, "/seen").await.expect("an answer").1, "1\n", "a failed instance is not used again");
    // What nobody will ever close ends with its instance.
    assert_eq!(get(&reused, "/leave-open").await.expect("an answer").1, "for ever\n");
    assert_eq!(get(&reused, "/seen").await.expect("an answer").1, "1\n", "nor is one that left something open");
    assert_eq!(reused.live().instances, 1);
}

#[tokio::test]
async fn instances_that_begin_together_do_not_all_end_together() {
    let isolation = Isolation::Reused { requests: 16, memory_bytes: 1 << 30 };
    let reused = load(&FunctionSpec { isolation, ..spec(Guest::Service) });
    let mut lives = Vec::new();
    let mut before = 0;
    while lives.len() < 4 {
        let (_, body) = get(&reused, "/seen").await.expect("an answer");
        let seen: u32 = std::str::from_utf8(&body).expect("a number").trim().parse().expect("a number");
        if seen <= before {
            lives.push(before);
        }
        before = seen;
    }
    assert!(lives.iter().all(|life| (14..=16).contains(life)), "{lives:?}");
    lives.dedup();
    assert!(lives.len() > 1, "{lives:?}");
}

#[tokio::test]
async fn a_body_passes_piece_by_piece_whether_it_is_copied_or_handed_on() {
    let service = load(&spec(Guest::Service));
    for target in ["/echo", "/pass"] {
        let (body, upload) = RequestBody::pulled();
        let mut call = begin(&service, target, body);
        assert_eq!(call.response().await.expect("an answer").status, 200);
        for piece in ["one", "two"] {
            let echoed = tokio::select! {
                biased;
                wanted = upload.wanted() => {
                    assert!(wanted);
                    upload.push(Bytes::from(piece));
                    call.frame().await
                }
                early = call.frame() => panic!("a piece before there was one: {early:?}"),
            };
            assert_eq!(echoed.expect("a piece").expect("no failure").data_ref().expect("data"), piece, "{target}");
        }
        upload.end();
        assert_eq!(rest(&mut call).await.expect("an end"), "", "{target}");
    }
}

#[tokio::test]
async fn trailers_come_after_the_body() {
    let mut call = begin(&load(&spec(Guest::Service)), "/trailers", RequestBody::whole(Bytes::new()));
    call.response().await.expect("an answer");
    let data = call.frame().await.expect("a piece").expect("no failure").into_data().expect("data");
    assert_eq!(data, "before the trailers\n");
    let trailers = call.frame().await.expect("trailers").expect("no failure").into_trailers().expect("trailers");
    assert_eq!(trailers["x-last"], "word");
    assert!(call.frame().await.is_none());
}

/// Everything that can go wrong, by its name.
#[tokio::test]
async fn each_failure_has_its_kind_and_takes_nobody_along() {
    use CallErrorKind as Kind;
    let limits = FunctionLimits {
        deadline: Duration::from_millis(500),
        cpu: Duration::from_millis(250),
        memory_bytes: 8 << 20,
        ..FunctionLimits::default()
    };
    let service = load(&FunctionSpec { limits, ..spec(Guest::Service) });
    for (target, kind, told) in [
        ("/trap", Kind::Trap, "unreachable"),
        ("/spin", Kind::Cpu, "busy for more than 250ms"),
        ("/spin-after-header", Kind::Cpu, "busy for more than 250ms"),
        ("/sleep?60000", Kind::Deadline, "no answer within 500ms"),
        ("/memory", Kind::Memory, "limit is 8388608"),
        ("/handles", Kind::Handles, "as many handles as it may"),
        ("/insist-on-header", Kind::ForbiddenHeader, "`transfer-encoding`"),
        ("/too-short", Kind::ContentLength, "less than the 100 bytes"),
        ("/too-long", Kind::ContentLength, "more than the 3 bytes"),
        ("/trap-later", Kind::Trap, "unreachable"),
        ("/error", Kind::NoResponse, "ConfigurationError"),
        ("/fetch?example.com", Kind::Denied, "`http://example.com:80` was denied"),
        ("/status?199", Kind::InvalidResponse, "status 199"),
    ] {
        let error = get(&service, target).await.map(|(parts, _)| parts.status).expect_err(target);
        assert_eq!(error.kind, kind, "{target}: {}", error.message);
        assert!(error.message.contains(told), "{target}: {}", error.message);
    }
    assert!(get(&service, "/").await.is_ok());
    assert_eq!(service.live().instances, 0);
    assert_eq!(service.live().memory_bytes, 0);
}

#[tokio::test]
async fn interfaces_of_a_later_version_of_the_series_are_met() {
    let names = [
        ("wasi:http/handler@0.3.0", "wasi:http/handler@0.3.1"),
        ("wasi:http/types@0.3.0", "wasi:http/types@0.3.1"),
        ("wasi:clocks/monotonic-clock@0.3.0", "wasi:clocks/monotonic-clock@0.3.2"),
    ];
    let service = load(&FunctionSpec { component: renamed(Guest::Service, &names), ..spec(Guest::Service) });
    assert_eq!(service.world(), World::Service);
    assert_eq!(get(&service, "/a?b=c").await.expect("an answer").1, "POST /a?b=c v1\n");
    assert_eq!(get(&service, "/events?2,1").await.expect("an answer").1, "data: 0\n\ndata: 1\n\n");
    let middleware = load(&FunctionSpec { component: renamed(Guest::Middleware, &names), ..spec(Guest::Middleware) });
    assert_eq!(middleware.world(), World::Middleware);
    let request = post("/").body(RequestBody::whole(Bytes::new())).expect("a request");
    let next = Box::new(Slow(Duration::ZERO));
    let call = middleware.call("stable", "request-1".into(), None, false, request, Some(next)).expect("an instance");
    assert_eq!(finish(call).await.expect("an answer").1, "late");
}

#[tokio::test]
async fn a_service_gets_no_socket_and_no_name_looked_up_by_either_version() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let target = format!("/touch?{}", listener.local_addr().expect("an address").port());
    let answer = get(&load(&spec(Guest::Service)), &target).await.expect("an answer");
    let denied = "tcp=denied,listen=denied,udp=denied,lookup=denied\n";
    assert_eq!(answer.1, denied.repeat(2));
}

#[tokio::test(flavor = "current_thread")]
async fn a_busy_loop_leaves_the_thread_to_its_neighbours() {
    let limits = FunctionLimits { cpu: Duration::from_millis(400), ..FunctionLimits::default() };
    let service = load(&FunctionSpec { limits, ..spec(Guest::Service) });
    let busy = Arc::clone(&service);
    let spinning = tokio::spawn(async move { get(&busy, "/spin").await.expect_err("it is cut") });
    let mut served = 0;
    while !spinning.is_finished() {
        let began = Instant::now();
        get(&service, "/").await.expect("a neighbour's answer");
        assert!(began.elapsed() < Duration::from_millis(200), "a neighbour waited {:?}", began.elapsed());
        served += 1;
    }
    assert!(served > 10, "only {served} neighbours were served meanwhile");
    assert_eq!(spinning.await.expect("no panic").kind, CallErrorKind::Cpu);
}

#[tokio::test]
async fn a_call_that_is_dropped_ends_its_guest() {
    let service = load(&spec(Guest::Service));
    let mut call = begin(&service, "/events?100000", RequestBody::whole(Bytes::new()));
    call.response().await.expect("an answer");
    call.frame().await.expect("an event").expect("no failure");
    assert_eq!(service.live().instances, 1);
    drop(call);
    assert_eq!(service.live().instances, 0);
}

type Lines = Arc<Mutex<Vec<String>>>;

fn listen(function: &Function) -> Lines {
    let lines = Lines::default();
    let taken = Arc::clone(&lines);
    function.bind(Arc::new(move |call, level, line| {
        taken.lock().push(format!("{} {} {level:?}: {line}", call.request_id, call.track));
    }));
    lines
}

#[tokio::test]
async fn what_is_printed_becomes_lines_with_the_request_they_belong_to() {
    let service = load(&spec(Guest::Service));
    let lines = listen(&service);
    get(&service, "/print?x").await.expect("an answer");
    let expected = ["request-1 stable Info: to standard output: x", "request-1 stable Warn: to standard error: x"];
    assert_eq!(*lines.lock(), expected);
}

#[tokio::test]
async fn a_guest_goes_on_after_its_response() {
    let service = load(&spec(Guest::Service));
    let lines = listen(&service);
    let mut call = begin(&service, "/linger?50", RequestBody::whole(Bytes::new()));
    call.response().await.expect("an answer");
    assert_eq!(rest(&mut call).await.expect("a body"), "answered\n");
    let Settled::Running(tail) = call.settle().await else { panic!("it lingers") };
    assert_eq!(tail.run().await, Ok(()));
    assert_eq!(*lines.lock(), ["request-1 stable Info: lingered"]);
}

#[tokio::test]
async fn a_service_sees_its_request_and_nothing_of_the_connection() {
    let service = load(&spec(Guest::Service));
    let request = http::Request::put("/request?q")
        .header("host", "example.com:8080")
        .header("connection", "close")
        .header("x-lockgate-track", "canary")
        .header("x-mine", "1")
        .body(RequestBody::whole(Bytes::new()))
        .expect("a request");
    let mut call = service.call("stable", "request-1".into(), None, true, request, None).expect("an instance");
    call.response().await.expect("an answer");
    let seen = rest(&mut call).await.expect("a body");
    assert_eq!(seen, "PUT Some(Scheme::Https) example.com:8080 /request?q\nx-mine: 1\n");
}

/// What is behind a middleware: says what it was asked, and answers with a body of its own.
struct Behind(Arc<Mutex<Option<(http::request::Parts, Bytes)>>>);

impl Next for Behind {
    fn handle(self: Box<Self>, request: http::Request<NextBody>) -> Handling {
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            *self.0.lock() = Some((parts, body.collect().await?.to_bytes()));
            let body = Full::new(Bytes::from_static(b"from behind")).map_err(|never| match never {}).boxed_unsync();
            let response = http::Response::builder().status(202).header("connection", "close").header("x-behind", "1");
            response.body(body).map_err(|error| NextError(error.to_string()))
        })
    }
}

async fn through(
    does: &str,
) -> (Result<(http::response::Parts, Bytes), CallError>, Option<(http::request::Parts, Bytes)>) {
    let middleware = load(&spec(Guest::Middleware));
    assert_eq!(middleware.world(), World::Middleware);
    let asked = Arc::default();
    let body = RequestBody::whole(Bytes::from_static(b"sent"));
    let request = post("/a?b").header("x-middleware-does", does).body(body).expect("a request");
    let next = Box::new(Behind(Arc::clone(&asked)));
    let call = middleware.call("canary", "request-1".into(), None, false, request, Some(next)).expect("an instance");
    let answer = finish(call).await;
    assert_eq!(middleware.live().instances, 0);
    let asked = asked.lock().take();
    (answer, asked)
}

#[tokio::test]
async fn a_middleware_has_the_request_handled_by_what_is_behind_it() {
    for does in ["", "sleep", "twice"] {
        let (answer, asked) = through(does).await;
        let (parts, body) = answer.unwrap_or_else(|error| panic!("{does}: {error}"));
        assert_eq!((parts.status.as_u16(), &*body), (202, &b"from behind"[..]), "{does}");
        assert_eq!(parts.headers["x-behind"], "1", "{does}");
        assert_eq!(parts.headers["x-middleware"], "v1", "{does}");
        assert!(!parts.headers.contains_key("connection"), "{does}");
        let (asked, body) = asked.expect("it was asked");
        assert_eq!((asked.method.as_str(), asked.uri.path_and_query().expect("a target").as_str()), ("POST", "/a?b"));
        assert_eq!(asked.headers["host"], "example.com", "{does}");
        assert_eq!(asked.headers["x-middleware-request"], "v1", "{does}");
        assert_eq!(body, "sent", "{does}");
    }
    assert_eq!(through("upper").await.0.expect("an answer").1, "FROM BEHIND");
}

#[tokio::test]
async fn a_middleware_may_answer_by_itself_or_fail_before_or_after_what_is_behind_it() {
    let (answer, asked) = through("answer").await;
    assert_eq!(answer.expect("an answer").1, "from the middleware\n");
    assert!(asked.is_none());
    let (answer, asked) = through("trap").await;
    assert_eq!(answer.map(|_| ()).expect_err("a trap").kind, CallErrorKind::Trap);
    assert!(asked.is_none());
    let (answer, asked) = through("trap-after").await;
    assert_eq!(answer.map(|_| ()).expect_err("a trap").kind, CallErrorKind::Trap);
    assert!(asked.is_some());
}

/// Answers with trailers, or with a body that breaks off.
struct Ends(Result<(), NextError>);

impl Next for Ends {
    fn handle(self: Box<Self>, _: http::Request<NextBody>) -> Handling {
        let trailers = http::HeaderMap::from_iter([(
            http::HeaderName::from_static("x-last"),
            http::HeaderValue::from_static("word"),
        )]);
        let body = Full::new(Bytes::from_static(b"body")).map_err(|never| match never {});
        let body = body.with_trailers(async move { Some(self.0.map(|()| trailers)) }).boxed_unsync();
        Box::pin(async move { Ok(http::Response::new(body)) })
    }
}

#[tokio::test]
async fn how_a_body_ends_is_told_whether_it_is_copied_or_handed_on() {
    let middleware = load(&spec(Guest::Middleware));
    for does in ["", "upper"] {
        for ends in [Ok(()), Err(NextError("it broke off".to_owned()))] {
            let body = RequestBody::whole(Bytes::new());
            let request = post("/").header("x-middleware-does", does).body(body).expect("a request");
            let next = Box::new(Ends(ends.clone()));
            let call = middleware.call("stable", "request-1".into(), None, false, request, Some(next));
            let mut call = call.expect("an instance");
            call.response().await.expect("an answer");
            let mut last = None;
            while let Some(frame) = call.frame().await {
                last = Some(frame.map(|frame| frame.into_trailers().ok()));
            }
            match (ends, last.expect("a frame")) {
                (Ok(()), Ok(Some(trailers))) => assert_eq!(trailers["x-last"], "word", "{does}"),
                (Err(_), Err(error)) => assert_eq!(error.kind, CallErrorKind::NoResponse, "{does}"),
                (_, last) => panic!("{does}: {last:?}"),
            }
        }
    }
}

/// Answers after a while.
struct Slow(Duration);

impl Next for Slow {
    fn handle(self: Box<Self>, _: http::Request<NextBody>) -> Handling {
        Box::pin(async move {
            tokio::time::sleep(self.0).await;
            let body = Full::new(Bytes::from_static(b"late")).map_err(|never| match never {}).boxed_unsync();
            Ok(http::Response::new(body))
        })
    }
}

#[tokio::test]
async fn the_time_that_is_taken_behind_a_middleware_is_not_its_own() {
    let limits = FunctionLimits { deadline: Duration::from_millis(400), ..FunctionLimits::default() };
    let middleware = load(&FunctionSpec { limits, ..spec(Guest::Middleware) });
    let request = post("/").body(RequestBody::whole(Bytes::new())).expect("a request");
    let next = Box::new(Slow(Duration::from_millis(800)));
    let call = middleware.call("stable", "request-1".into(), None, false, request, Some(next)).expect("an instance");
    assert_eq!(finish(call).await.expect("an answer").1, "late");
}

#[tokio::test]
async fn a_middleware_with_nothing_behind_it_is_told_so() {
    let error = get(&load(&spec(Guest::Middleware)), "/").await.map(|_| ()).expect_err("an error");
    assert_eq!(error.kind, CallErrorKind::NoResponse);
    assert!(error.message.contains("there is nothing behind this"), "{}", error.message);
}

#[test]
fn inspecting_tells_which_world_it_is() {
    let service = host().inspect_function(&component(Guest::Service)).expect("a function");
    assert_eq!((service.world, service.wants_outbound), ("wasi:http/service@0.3", true));
    let middleware = host().inspect_function(&component(Guest::Middleware)).expect("a function");
    assert_eq!((middleware.world, middleware.wants_outbound), ("wasi:http/middleware@0.3", false));
}
