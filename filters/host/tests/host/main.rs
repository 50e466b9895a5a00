//! The host from outside: real guests, loaded and called as the gateway does it. One program, since linking Wasmtime
//! takes longer than most of its tests.

mod cache;
mod contract;
mod effects;
mod folders;
mod functions;
mod isolation;
mod key_value;
mod limits;
mod outbound;
mod services;
mod snapshot;
mod wasi;
mod wrong_components;

use std::fs;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::HeaderMap;
use lockgate_guests::Guest;
use lockgate_host::{
    CallInfo, Exchange, Filter, FilterSpec, Grants, Host, Instance, Isolation, Level, Limits, LoadError, Options,
    OutboundGrant, Outcome, Silent, Sink, StoreOptions, UpstreamGrant,
};
use parking_lot::Mutex;
use tempfile::TempDir;

/// Far more than any call takes, since tests share their processor with compilers.
const PATIENT: Duration = Duration::from_secs(20);

fn options(dir: &Path) -> Options {
    Options {
        cache_dir: dir.join("cache"),
        cache_bytes_max: 1 << 30,
        key_file: dir.join("key"),
        compile_threads: 2,
        instances_max: 64,
        instance_memory_bytes_max: 256 << 20,
        store: StoreOptions::Embedded { file: dir.join("key-value.db") },
    }
}

/// The host of all tests that do not need one of their own.
fn host() -> &'static Arc<Host> {
    static HOST: LazyLock<(TempDir, Arc<Host>)> = LazyLock::new(|| {
        let dir = tempfile::tempdir().expect("a folder");
        let host = Host::new(options(dir.path())).expect("a host");
        (dir, host)
    });
    &HOST.1
}

fn component(guest: Guest) -> Arc<[u8]> {
    fs::read(guest.path()).expect("a built guest").into()
}

/// A filter to load.
struct Setup(FilterSpec);

fn setup(guest: Guest) -> Setup {
    setup_of(component(guest)).named(guest.name())
}

fn setup_of(component: Arc<[u8]>) -> Setup {
    Setup(FilterSpec {
        name: "filter".into(),
        component,
        settings: "null".to_owned(),
        grants: Grants::default(),
        isolation: Isolation::Request,
        limits: Limits { deadline: PATIENT, ..Limits::default() },
    })
}

impl Setup {
    fn named(mut self, name: &str) -> Self {
        self.0.name = name.into();
        self
    }

    fn settings(mut self, settings: &str) -> Self {
        self.0.settings = settings.to_owned();
        self
    }

    fn limits(mut self, change: impl FnOnce(&mut Limits)) -> Self {
        change(&mut self.0.limits);
        self
    }

    fn reused(mut self, requests: u32, memory_bytes: u64) -> Self {
        self.0.isolation = Isolation::Reused { requests, memory_bytes };
        self
    }

    fn granted(self, host: &str, port: u16) -> Self {
        self.granted_as(OutboundGrant::new(false, host, port))
    }

    fn granted_upstream(mut self, name: &str) -> Self {
        self.0.grants.upstreams.push(UpstreamGrant { upstream: name.to_owned(), methods: Vec::new() });
        self
    }

    fn granted_as(mut self, grant: OutboundGrant) -> Self {
        self.0.grants.outbound.push(grant);
        self
    }

    /// Grants it a space of its own in the store that outlives the process.
    fn keeping(mut self) -> Self {
        self.0.grants.key_value.push("default".to_owned());
        self
    }

    fn load(self) -> Arc<Filter> {
        self.load_by(host())
    }

    fn load_by(self, host: &Host) -> Arc<Filter> {
        host.load(&self.0, &Silent).unwrap_or_else(|error| panic!("{}: {error}", self.0.name))
    }

    fn refused(self) -> LoadError {
        host().load(&self.0, &Silent).expect_err("is refused")
    }
}

/// An exchange for `GET path` of example.com.
fn get(path: &str) -> Box<Exchange> {
    request(http::Request::get(path))
}

fn request(builder: http::request::Builder) -> Box<Exchange> {
    let (parts, ()) = builder.header("host", "example.com").body(()).expect("a valid request").into_parts();
    let upstreams: [Arc<str>; 2] = ["main".into(), "other".into()];
    Box::new(Exchange::new(
        parts,
        "https",
        "192.0.2.7".parse().expect("an address"),
        "request-1".into(),
        "route-a".into(),
        upstreams.into(),
    ))
}

fn respond(exchange: &mut Exchange) {
    let (parts, ()) = http::Response::new(()).into_parts();
    exchange.request_sent = true;
    exchange.response = Some(parts);
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).map_or("", |value| value.to_str().expect("visible ASCII"))
}

fn response_header<'a>(exchange: &'a Exchange, name: &str) -> &'a str {
    header(&exchange.response.as_ref().expect("a response").headers, name)
}

/// An instance for one request.
fn acquire(filter: &Arc<Filter>) -> Instance {
    filter.acquire("stable").expect("an instance")
}

/// Sends one request through the filter's `on-request`, which goes on.
async fn pass(filter: &Arc<Filter>, exchange: &mut Box<Exchange>) {
    let outcome = acquire(filter).on_request(exchange).await;
    assert_eq!(outcome, Ok(Outcome::Continue));
}

/// Remembers all that filters say.
#[derive(Default)]
struct Recorder {
    lines: Mutex<Vec<String>>,
}

impl Recorder {
    fn bound_to(filter: &Filter) -> Arc<Self> {
        let recorder = Arc::new(Self::default());
        filter.bind(recorder.clone());
        recorder
    }

    fn push(&self, line: String) {
        self.lines.lock().push(line);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.lines.lock())
    }
}

impl Sink for Recorder {
    fn log(&self, call: &CallInfo<'_>, level: Level, message: &str) {
        self.push(format!("{} {} {} {level:?}: {message}", call.request_id, call.track, call.phase));
    }

    fn event(&self, call: &CallInfo<'_>, name: &str, data: &str) {
        self.push(format!("{} {} {} event {name}: {data}", call.request_id, call.track, call.phase));
    }

    fn add(&self, id: u32, label: u32, by: u64) {
        self.push(format!("add {id} {label} {by}"));
    }

    fn observe(&self, id: u32, label: u32, value: f64) {
        self.push(format!("observe {id} {label} {value}"));
    }
}
