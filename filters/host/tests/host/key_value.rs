//! Key-value spaces: of filters by their contract, of functions by `wasi:keyvalue`. What the stores themselves promise is
//! tested beside them.

use std::sync::Arc;

use bytes::Bytes;
use lockgate_guests::Guest;
use lockgate_host::{
    CallErrorKind, Effects, Function, FunctionLimits, FunctionSpec, Grants, Host, Isolation, Lane, RequestBody, Silent,
};
use parking_lot::Mutex;

use crate::{PATIENT, component, get, header, host, options, pass, setup};

fn keeper(name: &str, granted: &[&str]) -> FunctionSpec {
    FunctionSpec {
        name: name.into(),
        component: component(Guest::Keeper),
        vars: Vec::new(),
        config: Vec::new(),
        grants: Grants { key_value: granted.iter().map(|name| (*name).to_owned()).collect(), ..Grants::default() },
        isolation: Isolation::Request,
        limits: FunctionLimits { deadline: PATIENT, cpu: PATIENT, ..FunctionLimits::default() },
    }
}

fn load(spec: &FunctionSpec) -> Arc<Function> {
    host().load_function(spec, &Silent).unwrap_or_else(|error| panic!("{}: {error}", spec.name))
}

/// Asks a function, and returns what it says; behind `500 ` where that is an error.
async fn ask(function: &Arc<Function>, target: &str) -> String {
    let request = http::Request::get(target).header("host", "example.com").body(RequestBody::whole(Bytes::new()));
    let mut call = function
        .call("stable", "request-1".into(), None, false, request.expect("a request"), None)
        .expect("an instance");
    let status = call.response().await.unwrap_or_else(|error| panic!("{target}: {error}")).status.as_u16();
    let mut text = if status == 200 { Vec::new() } else { format!("{status} ").into_bytes() };
    while let Some(frame) = call.frame().await {
        text.extend_from_slice(frame.expect("a body").data_ref().expect("no trailers"));
    }
    String::from_utf8(text).expect("a text")
}

#[tokio::test]
async fn a_function_keeps_lists_and_forgets() {
    let function = load(&keeper("keeps", &["default"]));
    for (target, said) in [
        ("/get?a", "absent"),
        ("/set?a=one", "set"),
        ("/get?a", "one"),
        ("/exists?a", "true"),
        ("/set?b=", "set"),
        ("/get?b", ""),
        ("/list", "a b"),
        ("/delete?a", "deleted"),
        ("/exists?a", "false"),
        ("/delete?a", "deleted"),
        ("/list", "b"),
        ("/add?n=40", "40"),
        ("/add?n=-50", "-10"),
        ("/count?n", "-9"),
        ("/get?n", "-9"),
        ("/count?b", "500 other: the value is no number"),
        ("/swap?b=two", " became two"),
        ("/swap?c=three", "absent became three"),
        ("/race?c", "lost, then second"),
    ] {
        assert_eq!(ask(&function, target).await, said, "{target}");
    }
}

#[tokio::test]
async fn a_function_reads_and_writes_many_at_a_time() {
    let function = load(&keeper("many", &["default"]));
    let said = ask(&function, "/many?key=2300").await;
    assert_eq!(said, "2300 key-0=0 key-nothing=absent key-1=1 key-0=0 0");
}

#[tokio::test]
async fn the_draft_before_is_served_as_well() {
    let function = load(&keeper("early", &["default"]));
    ask(&function, "/set?other=1").await;
    assert_eq!(ask(&function, "/early?hits").await, "2 hits,other None hits,absent");
    assert_eq!(ask(&function, "/early?hits").await, "4 hits,other None hits,absent");
    assert_eq!(ask(&function, "/get?hits").await, "4", "both drafts see the same");
}

#[tokio::test]
async fn only_what_is_granted_opens_and_the_rest_is_denied_in_the_log() {
    let function = load(&keeper("granted", &["visits"]));
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&lines);
    function.bind(Arc::new(move |_, level, line: &str| sink.lock().push(format!("{level:?} {line}"))));
    assert_eq!(ask(&function, "/in/visits/count?hits").await, "1");
    assert_eq!(ask(&function, "/count?hits").await, "500 access-denied");
    assert_eq!(ask(&function, "/in/others/count?hits").await, "500 access-denied");
    assert_eq!(ask(&function, "/in/no%20name/count?hits").await, "500 no-such-store");
    let denied =
        |name| format!("Warn it was denied the key-value bucket `{name}`: its `grants.key_value` does not name it");
    assert_eq!(*lines.lock(), ["default", "others"].map(denied));
    let nothing = load(&keeper("granted", &[]));
    assert_eq!(ask(&nothing, "/in/visits/get?hits").await, "500 access-denied");
    assert_ne!(nothing.version(), function.version(), "grants make a version");
}

#[tokio::test]
async fn a_space_belongs_to_a_name_and_a_shared_one_to_all_who_are_granted_it() {
    let one = load(&keeper("one", &["default", "shared-one"]));
    let again = load(&FunctionSpec { config: vec![("A".into(), "b".into())], ..keeper("one", &["default"]) });
    let two = load(&keeper("two", &["default", "shared-one"]));
    assert_eq!(ask(&one, "/count?hits").await, "1");
    assert_eq!(ask(&again, "/count?hits").await, "2", "a canary shares with stable");
    assert_eq!(ask(&two, "/count?hits").await, "1");
    assert_eq!(ask(&one, "/in/shared-one/set?said=hello").await, "set");
    assert_eq!(ask(&two, "/in/shared-one/get?said").await, "hello");
    assert_eq!(ask(&two, "/get?said").await, "absent");
    // A filter of the same name is another one; but what it shares, it shares.
    let mut filter = setup(Guest::Counter).named("one");
    filter.0.grants.key_value = vec!["shared-one".to_owned()];
    let filter = filter.load();
    pass(&filter, &mut get("/from-a-filter")).await;
    assert_eq!(ask(&two, "/in/shared-one/get?last-path").await, "/from-a-filter");
    assert_eq!(ask(&two, "/in/shared-one/list").await, "last-path said", "its counters are its own");
}

#[tokio::test]
async fn what_does_not_fit_is_an_error_that_names_the_limits() {
    let full = "500 other: it does not fit: `limits.key_value` is 200 bytes, `limits.key_value_entries` 2";
    let limits = FunctionLimits { key_value_bytes: 200, key_value_entries: 2, ..keeper("", &[]).limits };
    let function = load(&FunctionSpec { limits, ..keeper("tight", &["default"]) });
    assert_eq!(ask(&function, "/fill?a=200").await, full);
    assert_eq!(ask(&function, "/set?a=1").await, "set");
    assert_eq!(ask(&function, "/count?b").await, "1");
    assert_eq!(ask(&function, "/count?c").await, full);
    assert_eq!(ask(&function, "/swap?c=1").await, full);
    assert_eq!(ask(&function, "/get?c").await, "absent");
    let refused = host().key_value_sizes().into_iter().find(|space| space.space == "function/tight");
    assert_eq!(refused.expect("it is loaded").refused, 3);
}

#[tokio::test]
async fn what_a_guest_may_hold_of_the_host_is_bounded() {
    let function = load(&keeper("bounded", &["default"]));
    assert_eq!(ask(&function, "/fill?large=900000").await, "filled");
    let said = ask(&function, "/cas-many?large").await;
    assert_eq!(said, "500 other: values to compare with are 4500000 bytes together; the limit is 4194304");
    let key = "k".repeat(5_000);
    assert_eq!(ask(&function, &format!("/count?{key}")).await, "500 other: a key of 5000 bytes; the limit is 4096");
    let said = ask(&function, "/early?small").await;
    assert!(said.starts_with("2 large,small"), "{said}");
}

#[tokio::test]
async fn a_function_reads_its_configuration_and_speaks_by_levels() {
    let config = [("greeting", "hello"), ("empty", "")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    let function = load(&FunctionSpec { config: config.into(), ..keeper("told", &[]) });
    assert_eq!(ask(&function, "/config").await, r#"empty= greeting=hello Some("hello") None"#);
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&lines);
    function.bind(Arc::new(move |call, level, line: &str| {
        sink.lock().push(format!("{} {} {level:?} {line}", call.request_id, call.track));
    }));
    assert_eq!(ask(&function, "/log?word").await, "said");
    let expected = ["Debug", "Debug", "Info", "Warn", "Error", "Error"].map(|level| format!("{level} word"));
    let expected = expected.into_iter().chain(["Info billing: word".to_owned()]);
    assert_eq!(*lines.lock(), expected.map(|line| format!("request-1 stable {line}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_filter_with_a_space_waits_for_it_and_one_without_does_not() {
    let keeping = setup(Guest::Counter).named("lanes").keeping().load();
    let without = setup(Guest::Counter).named("lanes").load();
    assert_eq!((keeping.lane(), without.lane()), (Lane::Fibre, Lane::Inline));
    assert_eq!(
        setup(Guest::Tag).settings(r#"{"value": "x"}"#).keeping().load().lane(),
        Lane::Inline,
        "it keeps nothing"
    );
    for expected in ["1", "2"] {
        let mut exchange = get("/");
        pass(&keeping, &mut exchange).await;
        assert_eq!(header(&exchange.request.headers, "x-count"), expected);
    }
    let mut exchange = get("/");
    pass(&without, &mut exchange).await;
    assert_eq!(header(&exchange.request.headers, "x-count"), "1", "they are not the same store");
}

#[test]
fn inspecting_tells_who_would_keep_something() {
    let function = |guest| host().inspect_function(&component(guest)).expect("a function").wants_key_value;
    assert!(function(Guest::Keeper) && !function(Guest::Hello));
    let filter = |guest| host().inspect(&component(guest)).expect("a filter").wants_key_value;
    assert!(filter(Guest::Counter) && !filter(Guest::ReadSet));
}

#[tokio::test]
async fn a_store_that_is_not_to_be_had_ends_a_filter_by_its_name_and_tells_a_function() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut options = options(dir.path());
    options.store = lockgate_host::StoreOptions::Embedded { file: dir.path().join("missing/key-value.db") };
    let host = Host::new(options).expect("a host");
    let filter = setup(Guest::Counter).keeping().load_by(&host);
    let error = filter.acquire("stable").expect("an instance").on_request(&mut get("/")).await.expect_err("fails");
    assert_eq!(error.kind, CallErrorKind::Store);
    assert!(error.message.contains("the key-value store failed: `"), "{}", error.message);
    let mut private = filter.acquire_for("canary", Effects::Private).expect("an instance");
    assert_eq!(private.on_request(&mut get("/")).await.expect_err("fails").kind, CallErrorKind::Store);
    let function = host.load_function(&keeper("failing", &["default"]), &Silent).expect("loads");
    let said = ask(&function, "/count?hits").await;
    assert!(said.starts_with("500 other: the key-value store failed: `"), "{said}");
    let request = http::Request::get("/insist?a=b").header("host", "example.com");
    let request = request.body(RequestBody::whole(Bytes::new())).expect("a request");
    let mut call = function.call("stable", "request-1".into(), None, false, request, None).expect("an instance");
    let error = call.response().await.expect_err("it insists");
    assert_eq!(error.kind, CallErrorKind::Store, "{}", error.message);
}
