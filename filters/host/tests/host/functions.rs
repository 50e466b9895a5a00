//! Functions: standard `wasi:http` components, answering requests, well and badly.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockgate_guests::Guest;
use lockgate_host::{
    Call, CallError, CallErrorKind, Caller, Function, FunctionLimits, FunctionSpec, Grants, Isolation, LoadError,
    OutboundGrant, RequestBody, Settled, Silent, World,
};
use parking_lot::Mutex;

use crate::{PATIENT, component, host};

pub(crate) fn spec(guest: Guest) -> FunctionSpec {
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

pub(crate) fn load(spec: &FunctionSpec) -> Arc<Function> {
    host().load_function(spec, &Silent).unwrap_or_else(|error| panic!("{}: {error}", spec.name))
}

fn begin(function: &Arc<Function>, target: &str, body: RequestBody) -> Call {
    let request = http::Request::post(target).header("host", "example.com").body(body).expect("a request");
    function.call("stable", "request-1".into(), None, false, request, None).expect("an instance")
}

async fn rest(call: &mut Call) -> Result<Bytes, CallError> {
    let mut whole = Vec::new();
    while let Some(frame) = call.frame().await {
        whole.extend_from_slice(frame?.data_ref().expect("no trailers"));
    }
    Ok(whole.into())
}

/// Sends a request without a body, and returns the whole answer.
pub(crate) async fn get(function: &Arc<Function>, target: &str) -> Result<(http::response::Parts, Bytes), CallError> {
    let mut call = begin(function, target, RequestBody::whole(Bytes::new()));
    let parts = call.response().await?;
    let body = rest(&mut call).await?;
    match call.settle().await {
        Settled::Ended(ended) => ended?,
        Settled::Running(tail) => tail.run().await?,
    }
    Ok((parts, body))
}

#[tokio::test]
async fn a_function_answers_with_what_its_environment_says() {
    let (parts, body) = get(&load(&spec(Guest::Function)), "/a?b=c").await.expect("an answer");
    assert_eq!((parts.status.as_u16(), &*body), (200, &b"POST /a?b=c v1\n"[..]));
    assert_eq!(parts.headers["x-version"], "v1");
}

#[tokio::test]
async fn each_request_gets_a_fresh_instance_and_only_reused_ones_remember() {
    let fresh = load(&spec(Guest::Function));
    for _ in 0..3 {
        assert_eq!(get(&fresh, "/seen").await.expect("an answer").1, "1\n");
    }
    assert_eq!(fresh.live().instances, 0);
    let isolation = Isolation::Reused { requests: 2, memory_bytes: 1 << 30 };
    let reused = load(&FunctionSpec { isolation, ..spec(Guest::Function) });
    for seen in ["1\n", "2\n", "1\n"] {
        assert_eq!(get(&reused, "/seen").await.expect("an answer").1, seen);
    }
    get(&reused, "/trap").await.expect_err("a trap");
    assert_eq!(get(&reused, "/seen").await.expect("an answer").1, "1\n", "a failed instance is not used again");
    assert_eq!(reused.live().instances, 1);
}

#[tokio::test]
async fn a_body_passes_piece_by_piece_and_each_is_read_when_it_is_wanted() {
    let function = load(&spec(Guest::Function));
    let (body, upload) = RequestBody::pulled();
    let mut call = begin(&function, "/echo", body);
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
        assert_eq!(echoed.expect("a piece").expect("no failure").data_ref().expect("data"), piece);
    }
    upload.end();
    assert_eq!(rest(&mut call).await.expect("an end"), "");
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
    let post = OutboundGrant { methods: vec!["POST".to_owned()], ..OutboundGrant::new(false, "example.org", 80) };
    let local = OutboundGrant::new(false, "localhost", 80);
    let grants = Grants { outbound: vec![post, local], ..Grants::default() };
    let function = load(&FunctionSpec { limits, grants, ..spec(Guest::Function) });
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
        ("/short-stream", Kind::ContentLength, "less than the 1000000 bytes"),
        ("/trap-later", Kind::Trap, "unreachable"),
        ("/nothing", Kind::NoResponse, "ended without an answer"),
        ("/fetch?example.com", Kind::Denied, "`http://example.com:80` was denied"),
        ("/fetch?insist.example.com", Kind::Denied, "`http://insist.example.com:80` was denied"),
        ("/fetch?example.org", Kind::DeniedMethod, "its method is GET, and the grant is for POST"),
        ("/fetch?localhost", Kind::DeniedAddress, "a loopback address"),
        ("/status?99", Kind::Trap, ""),
        ("/status?199", Kind::InvalidResponse, "status 199"),
    ] {
        let error = get(&function, target).await.map(|(parts, _)| parts.status).expect_err(target);
        assert_eq!(error.kind, kind, "{target}: {}", error.message);
        assert!(error.message.contains(told), "{target}: {}", error.message);
    }
    assert!(get(&function, "/").await.is_ok());
    assert_eq!(function.live().instances, 0);
    assert_eq!(function.live().memory_bytes, 0);
    assert_eq!(function.live().refused, [2, 1, 1]);
}

#[tokio::test]
async fn a_table_ends_at_its_limit() {
    // No toolchain grows tables: this is written by hand.
    let text = r#"(component
        (import "wasi:http/types@0.2.3" (instance $types
            (export "incoming-request" (type (sub resource)))
            (export "response-outparam" (type (sub resource)))))
        (alias export $types "incoming-request" (type $request))
        (alias export $types "response-outparam" (type $answer))
        (core module $m
            (table $t 1 funcref)
            (func (export "handle") (param i32 i32)
                (drop (table.grow $t (ref.null func) (i32.const 1000)))))
        (core instance $i (instantiate $m))
        (func $handle (param "request" (own $request)) (param "response-out" (own $answer))
            (canon lift (core func $i "handle")))
        (instance $handler (export "handle" (func $handle)))
        (export "wasi:http/incoming-handler@0.2.3" (instance $handler)))"#;
    let component: Arc<[u8]> = wat::parse_str(text).expect("a component").into();
    for (table_elements, kind, told) in [
        (1_000, CallErrorKind::Table, "a table of 1001 elements was wanted; the limit is 1000"),
        (1_001, CallErrorKind::NoResponse, "without an answer"),
    ] {
        let limits = FunctionLimits { table_elements, ..spec(Guest::Hello).limits };
        let function = load(&FunctionSpec { component: Arc::clone(&component), limits, ..spec(Guest::Hello) });
        let error = get(&function, "/").await.map(|_| ()).expect_err(told);
        assert_eq!(error.kind, kind, "{}", error.message);
        assert!(error.message.contains(told), "{}", error.message);
    }
}

/// Returns a component in which some interfaces are of other versions. Each name is as long as before, so that nothing else
/// has to change.
pub(crate) fn renamed(guest: Guest, names: &[(&str, &str)]) -> Arc<[u8]> {
    let mut bytes = component(guest).to_vec();
    for (from, to) in names {
        assert_eq!(from.len(), to.len());
        let windows = bytes.windows(from.len()).enumerate();
        let places: Vec<_> = windows.filter(|(_, window)| *window == from.as_bytes()).map(|(place, _)| place).collect();
        assert!(!places.is_empty(), "{from} is not there");
        for place in places {
            bytes[place..place + to.len()].copy_from_slice(to.as_bytes());
        }
    }
    bytes.into()
}

#[tokio::test]
async fn interfaces_of_any_version_of_the_series_mix_in_one_component() {
    let names = [
        ("wasi:http/incoming-handler@0.2.12", "wasi:http/incoming-handler@0.2.10"),
        ("wasi:http/types@0.2.12", "wasi:http/types@0.2.99"),
        ("wasi:io/streams@0.2.12", "wasi:io/streams@0.2.11"),
        ("wasi:clocks/monotonic-clock@0.2.12", "wasi:clocks/monotonic-clock@0.2.31"),
    ];
    let function = load(&FunctionSpec { component: renamed(Guest::Function, &names), ..spec(Guest::Function) });
    assert_eq!(get(&function, "/a?b=c").await.expect("an answer").1, "POST /a?b=c v1\n");
    assert_eq!(get(&function, "/events?2,1").await.expect("an answer").1, "data: 0\n\ndata: 1\n\n");

    let names = [
        ("wasi:cli/run@0.2.0", "wasi:cli/run@0.2.9"),
        ("wasi:cli/stdout@0.2.0", "wasi:cli/stdout@0.2.5"),
        ("wasi:io/streams@0.2.0", "wasi:io/streams@0.2.3"),
    ];
    let program = load(&FunctionSpec { component: renamed(Guest::Cgi, &names), ..spec(Guest::Cgi) });
    assert_eq!(program.world(), World::Command);
    assert_eq!(get(&program, "/").await.expect("an answer").1, "POST /\n");
}

#[tokio::test]
async fn a_function_gets_no_socket_and_no_name_looked_up() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let target = format!("/touch?{}", listener.local_addr().expect("an address").port());
    let answer = get(&load(&spec(Guest::Function)), &target).await.expect("an answer");
    assert_eq!(answer.1, "tcp=denied,listen=denied,udp=denied,lookup=denied\n");
}

#[tokio::test]
async fn trailers_come_after_the_body() {
    let mut call = begin(&load(&spec(Guest::Function)), "/trailers", RequestBody::whole(Bytes::new()));
    call.response().await.expect("an answer");
    let data = call.frame().await.expect("a piece").expect("no failure").into_data().expect("data");
    assert_eq!(data, "before the trailers\n");
    let trailers = call.frame().await.expect("trailers").expect("no failure").into_trailers().expect("trailers");
    assert_eq!(trailers["x-last"], "word");
    assert!(call.frame().await.is_none());
}

#[tokio::test(flavor = "current_thread")]
async fn a_busy_loop_leaves_the_thread_to_its_neighbours() {
    let limits = FunctionLimits { cpu: Duration::from_millis(400), ..FunctionLimits::default() };
    let function = load(&FunctionSpec { limits, ..spec(Guest::Function) });
    let busy = Arc::clone(&function);
    let spinning = tokio::spawn(async move { get(&busy, "/spin").await.expect_err("it is cut") });
    let mut served = 0;
    while !spinning.is_finished() {
        let began = Instant::now();
        get(&function, "/").await.expect("a neighbour's answer");
        assert!(began.elapsed() < Duration::from_millis(200), "a neighbour waited {:?}", began.elapsed());
        served += 1;
    }
    assert!(served > 10, "only {served} neighbours were served meanwhile");
    assert_eq!(spinning.await.expect("no panic").kind, CallErrorKind::Cpu);
}

#[tokio::test]
async fn a_call_that_is_dropped_ends_its_guest() {
    let function = load(&spec(Guest::Function));
    let mut call = begin(&function, "/events?100000", RequestBody::whole(Bytes::new()));
    call.response().await.expect("an answer");
    call.frame().await.expect("an event").expect("no failure");
    assert_eq!(function.live().instances, 1);
    drop(call);
    assert_eq!(function.live().instances, 0);
}

#[tokio::test]
async fn instances_are_limited() {
    let limits = FunctionLimits { instances: 1, ..FunctionLimits::default() };
    let function = load(&FunctionSpec { limits, ..spec(Guest::Function) });
    let first = begin(&function, "/", RequestBody::whole(Bytes::new()));
    let second = get_request(&function);
    assert_eq!(second.expect_err("it is one too many").kind, CallErrorKind::Exhausted);
    drop(first);
    assert!(get_request(&function).is_ok());
}

fn get_request(function: &Arc<Function>) -> Result<Call, CallError> {
    let request = http::Request::get("/").body(RequestBody::whole(Bytes::new())).expect("a request");
    function.call("stable", "request-2".into(), None, false, request, None)
}

#[tokio::test]
async fn what_is_printed_becomes_lines_with_the_request_they_belong_to() {
    let function = load(&spec(Guest::Function));
    let lines = Arc::new(Mutex::new(Vec::new()));
    let taken = Arc::clone(&lines);
    function.bind(Arc::new(move |call, level, line| {
        taken.lock().push(format!("{} {} {} {level:?}: {line}", call.request_id, call.track, call.phase));
    }));
    get(&function, "/print?x").await.expect("an answer");
    assert_eq!(
        *lines.lock(),
        [
            "request-1 stable handle Info: to standard output: x",
            "request-1 stable handle Warn: to standard error: x",
            "request-1 stable handle Info: no line break",
        ]
    );
}

#[tokio::test]
async fn a_guest_goes_on_after_its_response() {
    let function = load(&spec(Guest::Function));
    let mut call = begin(&function, "/linger?50", RequestBody::whole(Bytes::new()));
    call.response().await.expect("an answer");
    assert_eq!(rest(&mut call).await.expect("a body"), "answered\n");
    let Settled::Running(tail) = call.settle().await else { panic!("it lingers") };
    assert_eq!(tail.run().await, Ok(()));
}

#[tokio::test]
async fn a_function_sees_its_request_and_nothing_of_the_connection() {
    let function = load(&spec(Guest::Function));
    let request = http::Request::put("/request?q")
        .header("host", "example.com:8080")
        .header("connection", "close")
        .header("x-lockgate-track", "canary")
        .header("x-mine", "1")
        .body(RequestBody::whole(Bytes::new()))
        .expect("a request");
    let mut call = function.call("stable", "request-1".into(), None, true, request, None).expect("an instance");
    call.response().await.expect("an answer");
    let seen = rest(&mut call).await.expect("a body");
    assert_eq!(seen, "PUT Some(Scheme::Https) example.com:8080 /request?q\nx-mine: 1\n");
}

#[test]
fn versions_that_differ_in_their_environment_share_an_artifact() {
    let misses = || host().cache().stats().misses;
    load(&spec(Guest::Hello));
    let before = misses();
    let other = load(&FunctionSpec { vars: vec![("VERSION".to_owned(), "v2".to_owned())], ..spec(Guest::Hello) });
    assert_ne!(*other.version(), spec(Guest::Hello).version());
    // Other tests load other components meanwhile: what counts is that this one is found.
    assert!(misses() - before <= 1, "{} artifacts were made", misses() - before);
}

#[test]
fn what_is_no_function_is_refused_with_what_to_build_instead() {
    let wat = |text: &str| -> Arc<[u8]> { wat::parse_str(text).expect("a component").into() };
    let exporting =
        |interface: &str| wat(&format!(r#"(component (instance $i) (export "{interface}" (instance $i)))"#));
    for (component, expected) in [
        (component(Guest::CoreModule), "is a core module, not a component; build for wasm32-wasip2"),
        (component(Guest::Tag), "it is a filter: name it under `filters`"),
        (exporting("wasi:cli/run@0.3.0"), "it is a command of WASI 0.3: build it for 0.2"),
        (exporting("wasi:cli/run@0.2.3"), "does not fit the contract"),
        (exporting("wasi:http/handler@0.3.0-rc-2025-09-16"), "it is for a draft of `wasi:http` 0.3"),
        (exporting("wasi:http/handler@0.3.0"), "does not fit the contract"),
        (
            exporting("example:elsewhere/arithmetic@1.0.0"),
            "build it for the world `wasi:http/proxy` or `wasi:cli/command`",
        ),
        (wat("(component)"), "it exports nothing; build it"),
        (
            wat(r#"(component (import "example:nowhere/thing@1.0.0" (instance)) (instance $i)
                (export "wasi:http/incoming-handler@0.2.0" (instance $i)))"#),
            "imports what a function cannot have: `example:nowhere/thing@1.0.0`; there are WASI 0.2, \
             `wasi:keyvalue@0.2.0-draft2`, `wasi:config` and `wasi:logging`",
        ),
        (exporting("wasi:http/incoming-handler@0.2.0"), "does not fit the contract"),
    ] {
        let spec = FunctionSpec { component, ..spec(Guest::Hello) };
        let error = host().load_function(&spec, &Silent).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// A program's answer, and what it was told.
#[tokio::test]
async fn a_program_reads_prints_and_ends() {
    let function = load(&spec(Guest::Cgi));
    assert_eq!(function.world(), World::Command);
    let request = |target: &str, body| {
        let caller = Caller { client: None, script_bytes: 0 };
        http::Request::post(target).header("host", "example.com").extension(caller).body(body).expect("a request")
    };
    let (body, upload) = RequestBody::pulled();
    let mut call =
        function.call("stable", "request-1".into(), None, false, request("/echo", body), None).expect("an instance");
    assert_eq!(call.response().await.expect("an answer").status, 200);
    let echoed = tokio::select! {
        biased;
        wanted = upload.wanted() => {
            assert!(wanted);
            upload.push(Bytes::from_static(b"line\n"));
            call.frame().await
        }
        early = call.frame() => panic!("a piece before there was one: {early:?}"),
    };
    assert_eq!(echoed.expect("a piece").expect("no failure").data_ref().expect("data"), "line\n");
    upload.end();
    assert_eq!(rest(&mut call).await.expect("an end"), "");
    drop(call);
    let limits = FunctionLimits { memory_bytes: 4 << 20, ..spec(Guest::Cgi).limits };
    let function = load(&FunctionSpec { limits, ..spec(Guest::Cgi) });
    // Far more than may be ahead of the reader: the program waits, and its memory does not grow.
    let body = RequestBody::whole(Bytes::new());
    let mut call = function
        .call("stable", "request-2".into(), None, false, request("/download?50000000", body), None)
        .expect("one");
    call.response().await.expect("an answer");
    assert_eq!(rest(&mut call).await.expect("a body").len(), 50_000_000);
    drop(call);
    assert_eq!(function.live().instances, 0);
}

#[test]
fn a_program_is_not_used_again() {
    let isolation = Isolation::Reused { requests: 2, memory_bytes: 1 << 30 };
    let refused = host().load_function(&FunctionSpec { isolation, ..spec(Guest::Cgi) }, &Silent);
    assert_eq!(refused.expect_err("is refused"), LoadError::ReusedCommand);
}

#[test]
fn a_function_that_needs_more_memory_than_it_may_have_is_refused() {
    let limits = FunctionLimits { memory_bytes: 64 << 10, ..FunctionLimits::default() };
    let error = host().load_function(&FunctionSpec { limits, ..spec(Guest::Hello) }, &Silent).expect_err("is refused");
    assert!(matches!(error, LoadError::Limits(_)), "{error}");
}

#[test]
fn inspecting_tells_what_a_function_is() {
    let found = host().inspect_function(&component(Guest::Function)).expect("a function");
    assert!(found.wants_outbound && found.need.stacks == 1 && found.need.memories == 1);
    assert_eq!(found.exports, ["wasi:http/incoming-handler@0.2.12"]);
}
